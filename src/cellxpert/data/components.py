"""Principal components and factors of the training cells: where the cell vector and the answers start from.

Shape suffixes: N cells, V features, M modalities, C components, K bins, R factors, G groups of cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from cellxpert.data.tokens import Tokens

__all__ = [
    "MAX_CELLS",
    "MAX_COMPONENTS",
    "FactorModel",
    "deviations",
    "factor_model",
    "label_inputs",
    "leading_factors",
    "principal_components",
    "scaled_magnitudes",
]

MAX_COMPONENTS = 50
"""Components looked for: the customary number."""
MAX_CELLS = 20_000
"""Cells that are enough to find them."""
CAP = 2.0
"""Deviations above what a feature usually shows where it is there, beyond which magnitudes count as this much."""
MAX_DEVIATIONS = 10.0
"""Deviations from its mean at which a feature's cap may lie: else factors follow single cells that show a rare one."""

Floats = npt.NDArray[np.float64]
_LEAST_UNIQUE = 0.1
"""Least share of a feature's variance that is left to itself."""


def principal_components(
    tokens: Tokens,
    rows: npt.NDArray[np.int64],
    *,
    modality_V: npt.NDArray[np.int64],
    scale_K: Floats,
    max_components: int,
    seed: int,
    weight_M: Floats | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Find what training cells have in common and how they differ most.

    A cell is read as shares: a feature's part of the sum of the cell's magnitudes in its modality. Every modality has the same
    total variance (or the one given), and one that a cell lacks deviates by nothing there. Components are kept while they explain more than
    chance does: their singular values exceed the largest of the same data with every feature shuffled across cells (parallel
    analysis, Horn 1965).

    Parameters
    ----------
    tokens
        Tokens of an object.
    rows
        Training cells; more than ``MAX_CELLS`` are sampled.
    modality_V
        Modality of each feature, as small integers.
    scale_K
        Magnitude that stands for each bin, 0 for bin 0.
    max_components
        Most components returned.
    seed
        Seed of the sample, of the shuffle and of the solver's start.
    weight_M
        Total variance of each modality relative to the others; 1 for all if None.

    Returns
    -------
    The mean share of each feature, of shape (V,), and the components, of shape (V, C) with ``0 <= C <= max_components``,
    scaled so that training cells have a mean squared length of C. Both float32.
    """
    rng = np.random.default_rng(seed)
    if len(rows) > MAX_CELLS:
        rows = np.sort(rng.choice(rows, MAX_CELLS, replace=False))
    share_NV, present_NM = _shares(tokens, rows, modality_V=modality_V, scale_K=scale_K)
    n_present_V = np.maximum(present_NM.sum(axis=0), 1)[modality_V]
    usual_V = np.asarray(share_NV.sum(axis=0)).ravel() / n_present_V
    variance_V = np.asarray(share_NV.power(2).sum(axis=0)).ravel() / n_present_V - usual_V**2
    variance_M = np.bincount(modality_V, weights=variance_V, minlength=present_NM.shape[1])
    weight_V = 1 / np.sqrt(np.where(variance_M > 0, variance_M, 1.0))[modality_V]
    if weight_M is not None:
        weight_V *= np.sqrt(weight_M)[modality_V]
    n_wanted = min(max_components, min(share_NV.shape) - 1)
    if n_wanted < 1 or not variance_M.any():
        return usual_V.astype(np.float32), np.zeros((len(usual_V), 0), np.float32)

    def decompose(matrix_NV: sparse.csr_array, n: int) -> tuple[Floats, Floats]:
        operator = _centred(sparse.csr_array(matrix_NV * weight_V), present_NM, usual_V * weight_V, modality_V)
        _, size_C, vector_CV = svds(operator, k=n, v0=rng.standard_normal(min(operator.shape)))
        order = np.argsort(-size_C)
        return size_C[order], vector_CV[order]

    size_C, vector_CV = decompose(share_NV, n_wanted)
    chance = decompose(_shuffled(share_NV, rng), 1)[0][0]
    kept_C = size_C > chance
    vector_VC = weight_V[:, None] * vector_CV[kept_C].T
    if kept_C.any():
        vector_VC *= np.sqrt(kept_C.sum() * len(rows) / (size_C[kept_C] ** 2).sum())
    return usual_V.astype(np.float32), vector_VC.astype(np.float32)


def scaled_magnitudes(
    tokens: Tokens, rows: npt.NDArray[np.int64], *, scale_MK: Floats, modality_V: npt.NDArray[np.int64]
) -> sparse.csr_matrix:
    """Return what is read of cells, one row each: the scale of each token's bin in its modality, 0 for a feature without a token."""
    bin_NV = _bins(tokens, rows, n_features=len(modality_V))
    scale_T = scale_MK[modality_V[bin_NV.indices], bin_NV.data]
    return sparse.csr_matrix((scale_T, bin_NV.indices, bin_NV.indptr), shape=bin_NV.shape)


def label_inputs(
    tokens: Tokens,
    rows: npt.NDArray[np.int64],
    vector_ND: Floats,
    *,
    scale_MK: Floats,
    modality_V: npt.NDArray[np.int64],
    image: bool,
    usual_GV: Floats | None = None,
) -> sparse.csr_matrix:
    """Return what a label head reads of cells, one row each: magnitudes, cell vector, image features.

    ``vector_ND`` are the vectors of these cells; ``usual_GV`` stands, where it is given, for what the cells of each pattern did not measure.
    """
    magnitude_NV = scaled_magnitudes(tokens, rows, scale_MK=scale_MK, modality_V=modality_V)
    if usual_GV is not None:
        magnitude_NV = magnitude_NV + sparse.csr_matrix(usual_GV)[tokens.pattern[rows]]
    parts = [magnitude_NV, sparse.csr_matrix(vector_ND)]
    if image and tokens.image is not None:
        parts.append(sparse.csr_matrix(np.nan_to_num(tokens.image[rows]).astype(np.float64)))
    return sparse.hstack(parts, format="csr")


def _bins(tokens: Tokens, rows: npt.NDArray[np.int64], *, n_features: int) -> sparse.csr_matrix:
    """Bins of some cells: nothing is computed of the tokens of all cells, of which an atlas has billions."""
    shape = (tokens.n_cells, n_features)
    return sparse.csr_matrix((tokens.bin, tokens.feature, tokens.start), shape=shape)[rows]


@dataclass(frozen=True, eq=False)
class FactorModel:
    """Magnitudes of features as ``centre + deviation * (loading @ z + noise)``, z standard normal, noise of variance ``unique``."""

    centre_V: npt.NDArray[np.float32]
    deviation_V: npt.NDArray[np.float32]
    """Standard deviation; of rare features more: the cap lies at most ``MAX_DEVIATIONS`` of these above the centre."""
    cap_V: npt.NDArray[np.float32]
    """``CAP`` deviations above the mean of the feature's magnitudes other than 0: what hardly a cell exceeds."""
    loading_VR: npt.NDArray[np.float32]
    unique_V: npt.NDArray[np.float32]


def factor_model(
    tokens: Tokens,
    rows: npt.NDArray[np.int64],
    *,
    modality_V: npt.NDArray[np.int64],
    level_MK: Floats,
    n_factors: int,
    seed: int,
    condition_N: npt.NDArray[np.int64] | None = None,
    usual_rows: npt.NDArray[np.int64] | None = None,
) -> FactorModel:
    """Fit probabilistic principal components to the standardised magnitudes of training cells (Tipping & Bishop 1999).

    A feature that was not measured in a cell stands at its mean there.

    Parameters
    ----------
    tokens, rows, modality_V, seed
        As in :func:`principal_components`.
    level_MK
        Magnitude that each bin of each modality stands for, 0 for bin 0.
    n_factors
        Most factors returned.
    condition_N
        Condition of every cell of the object; cells are then compared with the others of their condition.
    usual_rows
        Cells whose mean is the centre; the training cells if None.

    Returns
    -------
    The model, float32. Features that never vary have a deviation of 1 and no loadings.
    """
    rng = np.random.default_rng(seed)
    if len(rows) > MAX_CELLS:
        rows = np.sort(rng.choice(rows, MAX_CELLS, replace=False))
    level_NV = sparse.csr_array(scaled_magnitudes(tokens, rows, scale_MK=level_MK, modality_V=modality_V))
    group_NX = tokens.pattern[rows][:, None].astype(np.int64)
    if condition_N is not None:
        group_NX = np.concatenate([group_NX, condition_N[rows][:, None]], axis=1)
    group_PX, pattern_N = np.unique(group_NX, axis=0, return_inverse=True)
    measured_PV = tokens.measured_features[group_PX[:, 0]].astype(np.float64)
    pattern = group_PX
    n_V = np.maximum(np.bincount(pattern_N.reshape(-1), minlength=len(pattern)) @ measured_PV, 1)
    centre_V, deviation_V, varies_V = _moments(level_NV, n_V)
    usual_V, spread_V, _ = _moments(level_NV, np.maximum(np.asarray((level_NV != 0).sum(axis=0)).ravel(), 1))
    cap_V, told_V = usual_V + CAP * spread_V, deviation_V
    deviation_V = np.where(varies_V, np.maximum(told_V, (cap_V - centre_V) / MAX_DEVIATIONS), told_V)
    level_NV = sparse.csr_array(level_NV * (varies_V / deviation_V))
    member_NP = sparse.csr_array((np.ones(len(rows)), (np.arange(len(rows)), pattern_N.reshape(-1))))
    mean_PV = measured_PV * varies_V * centre_V / deviation_V
    if condition_N is not None:
        mean_PV = (member_NP.T @ level_NV).toarray() / np.asarray(member_NP.sum(axis=0)).reshape(-1, 1)
    loading_VR, unique_V = leading_factors(
        level_NV,
        member_NP,
        mean_PV,
        variance_V=varies_V * n_V / len(rows) * (told_V / deviation_V) ** 2,
        n_factors=n_factors,
        least_unique=_LEAST_UNIQUE,
        rng=rng,
    )
    if usual_rows is not None and len(usual_rows):
        total_V = np.zeros(len(modality_V))
        for some in np.array_split(usual_rows, len(usual_rows) // MAX_CELLS + 1):
            total_V += scaled_magnitudes(tokens, some, scale_MK=level_MK, modality_V=modality_V).sum(axis=0).A1
        n_G = np.bincount(tokens.pattern[usual_rows], minlength=len(tokens.measured_features))
        measured_V = n_G @ tokens.measured_features
        centre_V = np.where(measured_V > 0, total_V / np.maximum(measured_V, 1), centre_V)
    return FactorModel(*(x.astype(np.float32) for x in (centre_V, deviation_V, cap_V, loading_VR, unique_V)))


def _moments(level_NV: sparse.csr_array, n_V: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Mean and standard deviation of each feature over so many cells (1 where nothing varies), and which vary."""
    centre_V = np.asarray(level_NV.sum(axis=0)).ravel() / n_V
    variance_V = np.asarray(level_NV.power(2).sum(axis=0)).ravel() / n_V - centre_V**2
    varies_V = variance_V > 1e-8
    return centre_V, np.sqrt(np.where(varies_V, variance_V, 1.0)), varies_V


def leading_factors(
    level_NV: sparse.csr_array,
    member_NG: sparse.csr_array,
    mean_GV: Floats,
    *,
    variance_V: Floats,
    n_factors: int,
    least_unique: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return loadings (V, R) and variances of noise (V,) of standardised magnitudes (Tipping & Bishop 1999).

    Parameters
    ----------
    level_NV, member_NG, mean_GV
        Magnitudes in deviations of each feature, the group of each cell, and the groups' means: 0 where a feature was not measured.
    variance_V
        Variance of each feature over all cells: the share of them in which it was measured, less if it is rare; 0 for features
        that have no factors. What is left to noise is counted over what was measured: over all features it would exceed weak
        factors where there are gaps.
    n_factors
        Most factors returned.
    least_unique
        Least variance of noise.
    rng
        Source of the solver's start.
    """
    operator, n_told = deviations(level_NV, member_NG, mean_GV), int((variance_V > 0).sum())
    n = max(min(n_factors, min(operator.shape) - 1, n_told - 1), 0)
    loading_VR = np.zeros((len(variance_V), n))
    if n:
        _, size_R, vector_RV = svds(operator, k=n, v0=rng.standard_normal(min(operator.shape)))
        order = np.argsort(-size_R)
        explained_R = size_R[order] ** 2 / level_NV.shape[0]
        rest = max(variance_V.sum() - explained_R.sum(), 0.0) / max(n_told - n, 1)
        loading_VR = vector_RV[order].T * np.sqrt(np.maximum(explained_R - rest, 0.0))
    return loading_VR, np.clip(1 - (loading_VR**2).sum(axis=1), least_unique, 1.0)


def deviations(level_NV: sparse.csr_array, member_NG: sparse.csr_array, mean_GV: Floats) -> LinearOperator:
    """Deviations of cells from the mean of the group that they are members of, as an operator that stays sparse."""
    return LinearOperator(
        level_NV.shape,
        matvec=lambda x: level_NV @ x - member_NG @ (mean_GV @ x),
        rmatvec=lambda y: level_NV.T @ y - mean_GV.T @ (member_NG.T @ y),
        dtype=np.float64,
    )


def _shares(
    tokens: Tokens, rows: npt.NDArray[np.int64], *, modality_V: npt.NDArray[np.int64], scale_K: Floats
) -> tuple[sparse.csr_array, Floats]:
    """Shares of the chosen cells' features, and which modalities each has (1 or 0)."""
    n_modalities = int(modality_V.max()) + 1
    bin_NV = _bins(tokens, rows, n_features=len(modality_V))
    matrix = sparse.csr_array((scale_K[bin_NV.data], bin_NV.indices, bin_NV.indptr), shape=bin_NV.shape)
    cell = np.repeat(np.arange(len(rows)), np.diff(matrix.indptr))
    at = cell * n_modalities + modality_V[matrix.indices]
    total = np.bincount(at, weights=matrix.data, minlength=len(rows) * n_modalities)
    matrix.data = matrix.data / np.where(total > 0, total, 1.0)[at]
    return matrix, (total > 0).reshape(-1, n_modalities).astype(np.float64)


def _centred(
    matrix_NV: sparse.csr_array, present_NM: Floats, usual_V: Floats, modality_V: npt.NDArray[np.int64]
) -> LinearOperator:
    """The deviations from the usual shares, as an operator that stays sparse."""
    usual_MV = (np.arange(present_NM.shape[1])[:, None] == modality_V) * usual_V
    return LinearOperator(
        matrix_NV.shape,
        matvec=lambda x: matrix_NV @ x - present_NM @ (usual_MV @ x),
        rmatvec=lambda y: matrix_NV.T @ y - usual_MV.T @ (present_NM.T @ y),
        dtype=np.float64,
    )


def _shuffled(matrix_NV: sparse.csr_array, rng: np.random.Generator) -> sparse.csr_array:
    """The same values in every column, in random rows."""
    columns = matrix_NV.tocsc()
    n_cells = columns.shape[0]
    places = [rng.choice(n_cells, n, replace=False) for n in np.diff(columns.indptr)]
    indices = np.concatenate(places) if places else columns.indices
    return sparse.csc_array((columns.data, indices, columns.indptr), shape=columns.shape).tocsr()
