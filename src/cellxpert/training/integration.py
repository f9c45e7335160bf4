"""Fits the space of integrated cells after training: factors by expectation and maximisation, batches by soft clusters.

Shape suffixes: N cells, V features, M modalities, K bins, R coordinates, G groups of cells with the same features measured, X sets of
groups, F features of one modality, Q levels of quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cellxpert.data.cells import Cells
from cellxpert.data.components import leading_factors
from cellxpert.data.integration import LEVELS, FactorReading, Integration, read_magnitudes
from cellxpert.data.roles import MEASURED, MODALITIES, NICHE
from cellxpert.data.tokens import Tokens
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.training.batch_shifts import fit_shifts

__all__ = ["fit_factors", "fit_integration", "integrate_cells"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NICHES = MODALITIES.index(NICHE)
MAX_CELLS = 10_000
"""Cells that are enough to find them."""
LEAST_BRIDGE, LEAST_OF_BATCH = 1000, 50
"""Cells with several modalities, and cells of each batch, that are among them if there are as many."""
MIN_TOLD = 30
"""Fewest cells that have a modality beside another for errors of imputation to be known."""
N_FOLDS = 3
"""Parts of the cells of which one at a time is kept back to measure errors."""
N_FACTORS = 20
"""Coordinates looked for."""
N_ITERATIONS = 30
"""Iterations of the factor model: later ones move no coordinate by much."""
LEAST_UNIQUE = 0.1
"""Least share of a feature's variance that is its own."""
LEAST_VARIANCE = 1e-4
"""Least variance of a feature's noise."""
RELIABILITY = 4
"""Power of the share of an axis' variance that is known which is its standard deviation."""
PRIOR_CELLS = 20
"""Cells in which nothing follows the factors that every feature is taken to have: few cells with two modalities tell little of either."""
MIN_SEEN = 10
"""Fewest cells that show a feature for factors to be told by it: a few cells with rare features in common would get a factor of their own."""


def integrate_cells(
    cells: Cells, vocabulary: Vocabulary, tokens: Tokens, *, rows: Ints, seed: int, before: Integration | None
) -> Integration:
    """Fit the space to the training cells of an object; see :func:`fit_integration`."""
    batches = cells.batches()
    counts = [role in vocabulary.roles and vocabulary.block(role).transform == "counts" for role in MODALITIES]
    return fit_integration(
        tokens,
        rows,
        level_MK=vocabulary.levels(len(MODALITIES)),
        share_M=np.array(counts, np.float64),
        modality_V=vocabulary.role_of_feature.astype(np.int64),
        batch_N=None if batches is None else batches.to_numpy(dtype=object),
        seed=seed,
        before=before,
    )


def fit_integration(
    tokens: Tokens,
    rows: Ints,
    *,
    level_MK: Floats,
    share_M: Floats,
    modality_V: Ints,
    batch_N: npt.NDArray[np.object_] | None,
    seed: int,
    before: Integration | None = None,
) -> Integration:
    """Fit the space to training cells.

    Parameters
    ----------
    tokens
        Tokens of an object.
    rows
        Training cells; more than ``MAX_CELLS`` are sampled.
    level_MK
        Magnitude of each bin of each modality.
    share_M
        1 for modalities whose magnitudes are counts, which are read as shares.
    modality_V
        Modality of each feature; niches are not read.
    batch_N
        Batch of every cell of the object; None where nothing is said of batches.
    seed
        Seed of the sample, the solver's start and the clusters.
    before
        What was fitted before, to other cells: where these lack some of the features, it stays, and only batches are found anew.
    """
    rows = _sample(tokens, rows, modality_V=modality_V, batch_N=batch_N, seed=seed)
    read_V = modality_V != NICHES
    measured_V = tokens.measured_features[np.unique(tokens.pattern[rows])].any(axis=0)
    if before is None or measured_V[read_V].all():
        reading = fit_factors(tokens, rows, level_MK=level_MK, share_M=share_M, modality_V=modality_V, seed=seed)
        found = _with_errors(Integration(reading=reading), tokens, rows, modality_V=modality_V, seed=seed)
    else:
        found = replace(before, shifts=None)
    if batch_N is None or len(names := sorted(set(batch_N[rows]))) < 2:
        return found.rounded()
    point_NR = found.coordinates(tokens, rows, modality_V=modality_V)
    kept = np.isfinite(point_NR).all(axis=1)
    if not point_NR[kept].size:  # nothing varies
        return found.rounded()
    code_N = np.searchsorted(names, batch_N[rows][kept].astype(str))
    shifts = fit_shifts(point_NR[kept], code_N, names=tuple(names), seed=seed)
    return replace(found, shifts=shifts).rounded()


def _sample(
    tokens: Tokens, rows: Ints, *, modality_V: Ints, batch_N: npt.NDArray[np.object_] | None, seed: int
) -> Ints:
    """Draw at most ``MAX_CELLS``, among them enough of each batch and of those with several modalities to be told anything by them."""
    if len(rows) <= MAX_CELLS:
        return rows
    drawn = np.random.default_rng(seed).permutation(rows)
    n_present_N = _present(tokens, modality_V)[drawn].sum(axis=1)
    first = [drawn[n_present_N > 1][: min(LEAST_BRIDGE, MAX_CELLS // 4)]]
    if batch_N is not None:
        code_N, names = pd.factorize(batch_N[drawn])
        least = min(LEAST_OF_BATCH, max(MAX_CELLS // (4 * len(names)), 1))
        first += [drawn[code_N == code][:least] for code in range(len(names))]
    wanted, at = np.unique(np.concatenate([*first, drawn]), return_index=True)
    return np.sort(wanted[np.argsort(at)][:MAX_CELLS])


def _present(tokens: Tokens, modality_V: Ints) -> npt.NDArray[np.bool_]:
    """Which modalities each cell of an object has (N, M), niches not among them."""
    measured_GM = [tokens.measured_features[:, modality_V == m].any(axis=1) for m in range(len(MEASURED))]
    return np.stack(measured_GM, axis=1)[tokens.pattern]


def _with_errors(found: Integration, tokens: Tokens, rows: Ints, *, modality_V: Ints, seed: int) -> Integration:
    """Add how far features are from what the cell's other modalities expect, in cells that the expectation was not fitted to."""
    reading = found.reading
    told: dict[str, int] = {}
    present_NM = _present(tokens, modality_V)
    error_QV = np.zeros((len(LEVELS), len(modality_V)))
    both_N = present_NM[rows].sum(axis=1) > 1
    beside_M = present_NM[rows][both_N].sum(axis=0)
    if not (beside_M >= MIN_TOLD).any():
        return found
    error_NV = np.full((len(rows), len(modality_V)), np.nan)
    fold_N = np.random.default_rng(seed).permutation(len(rows)) % N_FOLDS
    for fold in range(N_FOLDS):
        fitted = fit_factors(
            tokens,
            rows[fold_N != fold],
            level_MK=reading.level_MK,
            share_M=reading.share_M,
            modality_V=modality_V,
            seed=seed,
        )
        for m, role in enumerate(MEASURED):
            here = (fold_N == fold) & both_N & present_NM[rows, m]
            if beside_M[m] < MIN_TOLD or not here.any():
                continue
            mine_V, others = modality_V == m, [other for other in MEASURED if other != role]
            z_NR = fitted.factors(tokens, rows[here], modality_V=modality_V, roles=others)
            level_NV = fitted.magnitudes(tokens, rows[here], modality_V=modality_V)
            error_NV[np.ix_(here, mine_V)] = level_NV[:, mine_V].toarray() - fitted.expected(z_NR, mine_V)
    for m, role in enumerate(MEASURED):
        if beside_M[m] >= MIN_TOLD:
            mine_V = modality_V == m
            error_NF = error_NV[:, mine_V]
            kept_NF = error_NF[np.isfinite(error_NF).all(axis=1)]
            # the i-th of n errors is at level i / (n + 1): a new cell's error is as likely to be in any of the gaps between them
            error_QV[:, mine_V] = np.quantile(kept_NF, LEVELS, axis=0, method="weibull")
            told[role] = len(kept_NF)
    return replace(found, told=tuple(told), n_told=tuple(told.values()), error_QV=error_QV)


def fit_factors(
    tokens: Tokens, rows: Ints, *, level_MK: Floats, share_M: Floats, modality_V: Ints, seed: int
) -> FactorReading:
    """Fit a factor model to magnitudes of which any may be missing (Rubin & Thayer 1982), by expectation and maximisation.

    Coordinates are along the axes on which the factors say most of the features, in units of their noise; see :func:`_stretch`.
    """
    group_G, group_N = np.unique(tokens.pattern[rows], return_inverse=True)
    groups = [
        _Group.of(
            read_magnitudes(
                tokens, rows[group_N.reshape(-1) == g], level_MK=level_MK, share_M=share_M, modality_V=modality_V
            ),
            tokens.measured_features[pattern] & (modality_V != NICHES),
        )
        for g, pattern in enumerate(group_G)
    ]
    seen_V = sum(group.seen_V for group in groups) >= MIN_SEEN
    reading = _start(groups, seen_V=seen_V, level_MK=level_MK, share_M=share_M, seed=seed)
    # features that the same groups have share their normal equations
    sets_XG, set_V = np.unique(np.stack([group.measured_V for group in groups], axis=1), axis=0, return_inverse=True)
    set_V = np.where(seen_V, set_V.reshape(-1), -1)
    for _ in range(N_ITERATIONS):
        reading = _improved(reading, groups, sets_XG=sets_XG, set_V=set_V)
    return replace(reading, stretch_RR=_stretch(reading, groups))


def _stretch(reading: FactorReading, groups: Sequence[_Group]) -> Floats:
    """Choose coordinates: an axis has the standard deviation 1 where all of its variance is known in the cells, and less where it is not.

    How strong a programme is says nothing of how much it matters, so that length along an axis is not that of what it explains. How
    much of an axis a cell's measurements tell (its reliability) does: that what only one modality tells is guessed in cells without it.
    """
    told_RR = (reading.loading_VR.T / reading.unique_V) @ reading.loading_VR
    axis_RR = np.linalg.eigh(told_RR)[1][:, ::-1]
    points, known_R, n_cells = [], np.zeros(len(axis_RR)), 0
    for group in groups:
        z_NR, spread_RR = reading.posterior(group.level_NV, group.measured_V)
        if group.measured_V.any():
            points.append(z_NR @ axis_RR)
            known_R += len(z_NR) * (1 - ((axis_RR.T @ spread_RR) * axis_RR.T).sum(axis=1))
            n_cells += len(z_NR)
    if not n_cells:
        return axis_RR
    deviation_R = np.concatenate(points).std(axis=0)
    length_R = np.clip(known_R / n_cells, 0.0, 1.0) ** RELIABILITY
    return axis_RR * np.where(deviation_R > 1e-6, length_R / np.maximum(deviation_R, 1e-6), 0.0)


def _start(
    groups: Sequence[_Group],
    *,
    seen_V: npt.NDArray[np.bool_],
    level_MK: Floats,
    share_M: Floats,
    seed: int,
) -> FactorReading:
    """Probabilistic principal components of standardised magnitudes; what was not measured is at its mean."""
    level_NV = sparse.csr_array(sparse.vstack([group.level_NV for group in groups]))
    measured_GV = np.stack([group.measured_V for group in groups])
    n_G = np.array([group.level_NV.shape[0] for group in groups])
    n_V = n_G @ measured_GV.astype(np.float64)
    sum_V, square_V = sum(group.sum_V for group in groups), sum(group.square_V for group in groups)
    usual_V = sum_V / np.maximum(n_V, 1.0)
    variance_V = square_V / np.maximum(n_V, 1.0) - usual_V**2
    varies_V = variance_V > 1e-8
    deviation_V = np.sqrt(np.where(varies_V, variance_V, 1.0))
    told_V = varies_V & seen_V
    member_NG = sparse.csr_array(np.repeat(np.eye(len(n_G)), n_G, axis=0))
    loading_VR, unique_V = leading_factors(
        sparse.csr_array(level_NV * (told_V / deviation_V)),
        member_NG,
        measured_GV * told_V * usual_V / deviation_V,
        variance_V=told_V * n_V / n_G.sum(),
        n_factors=N_FACTORS,
        least_unique=LEAST_UNIQUE,
        rng=np.random.default_rng(seed),
    )
    return FactorReading(
        level_MK=level_MK,
        share_M=share_M,
        usual_V=usual_V,
        loading_VR=loading_VR * deviation_V[:, None],
        unique_V=unique_V * deviation_V**2,
        stretch_RR=np.eye(loading_VR.shape[1]),
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """Cells of which the same features were measured, and sums over them."""

    level_NV: sparse.csr_array
    measured_V: npt.NDArray[np.bool_]
    sum_V: Floats
    square_V: Floats
    seen_V: Ints
    """How many of the cells show each feature."""

    @classmethod
    def of(cls, level_NV: sparse.csr_array, measured_V: npt.NDArray[np.bool_]) -> _Group:
        shown_T = level_NV.indices[(level_NV.data > 0) & measured_V[level_NV.indices]]
        sum_V, square_V = (np.asarray(x.sum(axis=0)).ravel() * measured_V for x in (level_NV, level_NV.power(2)))
        return cls(level_NV, measured_V, sum_V, square_V, np.bincount(shown_T, minlength=len(measured_V)))


def _improved(
    reading: FactorReading, groups: Sequence[_Group], *, sets_XG: npt.NDArray[np.bool_], set_V: Ints
) -> FactorReading:
    """One iteration: what is expected of the factors of all cells, then the best features for these; those of no set have no loadings."""
    n_features, n_factors = reading.loading_VR.shape
    second_GRR, mean_GR = np.zeros((len(groups), n_factors, n_factors)), np.zeros((len(groups), n_factors))
    product_VR, n_V = np.zeros((n_features, n_factors)), np.zeros(n_features)
    for g, group in enumerate(groups):
        z_NR, spread_RR = reading.posterior(group.level_NV, group.measured_V)
        second_GRR[g], mean_GR[g] = len(z_NR) * spread_RR + z_NR.T @ z_NR, z_NR.sum(axis=0)
        deviation_VR = group.level_NV.T @ z_NR - np.outer(reading.usual_V, mean_GR[g])
        product_VR += group.measured_V[:, None] * deviation_VR
        n_V += group.measured_V * len(z_NR)
    sum_V, square_V = sum(group.sum_V for group in groups), sum(group.square_V for group in groups)
    loading_VR, told_V = np.zeros_like(product_VR), np.zeros(n_features)
    for x, has_G in enumerate(sets_XG):
        mine_V = set_V == x
        if has_G.any():
            moment_RR = second_GRR[has_G].sum(axis=0) + PRIOR_CELLS * np.eye(n_factors)
            loading_VR[mine_V] = np.linalg.solve(moment_RR, product_VR[mine_V].T).T
            told_V[mine_V] = loading_VR[mine_V] @ mean_GR[has_G].sum(axis=0)
    n_V = np.maximum(n_V, 1.0)
    usual_V = (sum_V - told_V) / n_V
    about_V = square_V / n_V - 2 * reading.usual_V * sum_V / n_V + reading.usual_V**2
    unique_V = about_V - (loading_VR * product_VR).sum(axis=1) / n_V - (usual_V - reading.usual_V) ** 2
    variance_V = square_V / n_V - (sum_V / n_V) ** 2
    least_V = np.maximum(LEAST_UNIQUE * variance_V, LEAST_VARIANCE)
    return replace(reading, usual_V=usual_V, loading_VR=loading_VR, unique_V=np.maximum(unique_V, least_V))
