"""Where a network begins: not at random, but at what simple models of the training cells say.

Answers begin at frequencies of bins and at a factor model, cell vectors at principal components, what interventions do at the
effects that were observed.

Shape suffixes: N cells, V features, K bins, P conditions, G targets, S directions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.special import log_softmax

from cellxpert.data.components import MAX_COMPONENTS, factor_model, principal_components
from cellxpert.data.frequencies import log_bin_frequencies
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.nn.cell import magnitude_scale
from cellxpert.nn.factors import N_CODES
from cellxpert.nn.network import Network

__all__ = ["condition_effects", "start_from_data", "tilts"]

Floats = npt.NDArray[np.float64]
RIDGE = 0.1
MAX_TILT = 20.0


def start_from_data(
    network: Network,
    vocabulary: Vocabulary,
    tokens: Tokens,
    *,
    rows: npt.NDArray[np.int64],
    assigned: Assigned | None,
    seed: int,
) -> None:
    """Set a fresh network's first weights, in place.

    Parameters
    ----------
    network
        The network.
    vocabulary, tokens
        Its features, and the tokens of all cells.
    rows
        Training cells.
    assigned
        Genes that were set in each cell; None where nothing was. What is usual is then that of control cells.
    seed
        Seed of samples and solvers.
    """
    control = rows if assigned is None else rows[~assigned.intervened[rows]]
    modality_V = network.embedding.feature_modality[:-1].numpy()
    frequencies = log_bin_frequencies(tokens, control, n_bins=network.n_bins)
    network.set_bin_prior(torch.from_numpy(frequencies))
    if network.factors is not None:
        level_MK = vocabulary.levels(len(network.factors.level_MK))
        found = factor_model(
            tokens,
            rows,
            modality_V=modality_V,
            level_MK=level_MK,
            n_factors=network.config.n_factors,
            condition_N=None if assigned is None else _conditions(assigned),
            usual_rows=control,
            seed=seed,
        )
        network.factors.start_from(
            level_MK=torch.from_numpy(level_MK).float(),
            centre_V=torch.from_numpy(found.centre_V),
            deviation_V=torch.from_numpy(found.deviation_V),
            loading_VR=torch.from_numpy(found.loading_VR),
            unique_V=torch.from_numpy(found.unique_V),
        )
        if assigned is not None and network.factors.intervention is not None:
            _start_interventions(network, tokens, rows, assigned, level_VK=level_MK[modality_V], log_p_VK=frequencies)
    if network.config.pooling == "mean":
        usual_V, vector_VN = principal_components(
            tokens,
            rows,
            modality_V=modality_V,
            scale_K=magnitude_scale(network.n_bins).double().numpy(),
            max_components=min(network.config.width, MAX_COMPONENTS),
            seed=seed,
        )
        network.cell.start_from(torch.from_numpy(usual_V), torch.from_numpy(vector_VN))


def _conditions(assigned: Assigned) -> npt.NDArray[np.int64]:
    """A number for each set of genes that is set together."""
    said = np.sort(np.where(assigned.dose_NI != 0, assigned.target_NI, -1), axis=1)
    return np.unique(said, axis=0, return_inverse=True)[1].reshape(-1)


def condition_effects(
    tokens: Tokens, rows: npt.NDArray[np.int64], assigned: Assigned, *, level_VK: Floats, n_targets: int
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.float64]]:
    """Mean effects of the conditions of training cells.

    Returns
    -------
    The effect that all conditions share (V,); what each has beside it (P, V), shrunk by the share of its size that is sampling
    noise; its standard errors (P, V); and the dose of each target in it (P, G), knock-outs counting 1.
    """
    value = level_VK[tokens.feature, tokens.bin]
    level_NV = sparse.csr_array((value, tokens.feature, tokens.start), shape=(tokens.n_cells, len(level_VK)))
    condition_N = _conditions(assigned)
    control = rows[~assigned.intervened[rows]]

    def moments(chosen: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        mean_V = np.asarray(level_NV[chosen].mean(axis=0)).ravel()
        square_V = np.asarray(level_NV[chosen].power(2).mean(axis=0)).ravel()
        return mean_V, np.maximum(square_V - mean_V**2, 1e-8)

    control_V, spread_V = moments(control)
    effects, errors, members = [], [], []
    for code in np.unique(condition_N[rows[assigned.intervened[rows]]]):
        chosen = rows[condition_N[rows] == code]
        mean_V, variance_V = moments(chosen)
        effect_V = mean_V - control_V
        own = assigned.feature_NI[chosen[0]][assigned.dose_NI[chosen[0]] != 0]
        effect_V[own[own >= 0]] = 0.0  # not measured there
        effects.append(effect_V)
        errors.append(np.sqrt(variance_V / len(chosen) + spread_V / len(control)))
        member_G = np.zeros(n_targets)
        for target, dose in zip(assigned.target_NI[chosen[0]], assigned.dose_NI[chosen[0]], strict=True):
            if target >= 0:
                member_G[target] = -dose
        members.append(member_G)
    effect_PV, error_PV, member_PG = np.stack(effects), np.stack(errors), np.stack(members)
    usual_V = effect_PV.mean(axis=0)
    own_PV = effect_PV - usual_V
    noise_P = (error_PV**2 / spread_V).mean(axis=1)
    size_P = (own_PV**2 / spread_V).mean(axis=1)
    share_P = np.clip(1 - noise_P / np.maximum(size_P, 1e-12), 0.0, 1.0)
    return usual_V, own_PV * share_P[:, None], error_PV, member_PG


def tilts(log_p_VK: Floats, level_VK: Floats, shift_PV: Floats) -> Floats:
    """Exponents by which distributions must be tilted for their means to move by given amounts, (P, V), by bisection."""
    mean_V = (np.exp(log_p_VK) * level_VK).sum(axis=1)
    low, high = np.full(shift_PV.shape, -MAX_TILT), np.full(shift_PV.shape, MAX_TILT)
    for _ in range(40):
        middle = (low + high) / 2
        for row, exponent_V in enumerate(middle):  # one condition at a time: (V, K) numbers
            p_VK = np.exp(log_softmax(log_p_VK + exponent_V[:, None] * level_VK, axis=1))
            above_V = (p_VK * level_VK).sum(axis=1) - mean_V > shift_PV[row]
            high[row], low[row] = np.where(above_V, exponent_V, high[row]), np.where(above_V, low[row], exponent_V)
    return (low + high) / 2


def _start_interventions(
    network: Network,
    tokens: Tokens,
    rows: npt.NDArray[np.int64],
    assigned: Assigned,
    *,
    level_VK: Floats,
    log_p_VK: npt.NDArray[np.float32],
) -> None:
    """Begin at the observed effects: what all conditions share, a code for each target, and what pairs have beside their parts."""
    part = network.factors.intervention
    n_targets = part.code.weight.shape[0]
    usual_V, own_PV, _, member_PG = condition_effects(tokens, rows, assigned, level_VK=level_VK, n_targets=n_targets)
    log_p_VK = log_softmax(log_p_VK.astype(np.float64), axis=1)
    usual_tilt_V = tilts(log_p_VK, level_VK, usual_V[None])[0]
    own_tilt_PV = tilts(log_p_VK, level_VK, usual_V + own_PV) - usual_tilt_V
    by_target_GV = np.linalg.solve(member_PG.T @ member_PG + 1e-3 * np.eye(n_targets), member_PG.T @ own_tilt_PV)
    left_GS, size_S, right_SV = np.linalg.svd(by_target_GV, full_matrices=False)
    n = min(N_CODES, len(size_S))
    root_S = np.sqrt(size_S[:n])
    code_GS, direct_VS = left_GS[:, :n] * root_S, right_SV[:n].T * root_S
    pair_VS = np.zeros_like(direct_VS)
    pairs = (member_PG != 0).sum(axis=1) > 1
    if pairs.any():
        code_PGS = member_PG[pairs][..., None] * code_GS
        product_PS = (code_PGS.sum(axis=1) ** 2 - (code_PGS**2).sum(axis=1)) / 2
        rest_PV = own_tilt_PV[pairs] - member_PG[pairs] @ code_GS @ direct_VS.T
        penalty = RIDGE * max(np.trace(product_PS.T @ product_PS) / n, 1e-6)
        pair_VS = np.linalg.solve(product_PS.T @ product_PS + penalty * np.eye(n), product_PS.T @ rest_PV).T
    part.start_from(
        usual_V=torch.from_numpy(usual_tilt_V),
        code_GS=torch.from_numpy(code_GS),
        direct_VS=torch.from_numpy(direct_VS),
        pair_VS=torch.from_numpy(pair_VS),
    )
