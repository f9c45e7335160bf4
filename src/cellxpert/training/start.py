"""Where a network begins: not at random, but at what simple models of the training cells say.

Answers begin at frequencies of bins and at a factor model, cell vectors at principal components, what interventions do at the
effects that were observed.

Shape suffixes: N cells, V features, K bins, P conditions, G targets, S directions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from cellxpert.config import ModelConfig
from cellxpert.data.calibration import Tissues
from cellxpert.data.components import (
    MAX_CELLS,
    MAX_COMPONENTS,
    factor_model,
    principal_components,
    scaled_magnitudes,
)
from cellxpert.data.effects import condition_effects, conditions_of
from cellxpert.data.frequencies import log_bin_frequencies
from cellxpert.data.perturbations import Assigned, Perturbations
from cellxpert.data.roles import MODALITIES, NICHE
from cellxpert.data.tokens import Tokens
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.nn.cell import magnitude_scale
from cellxpert.nn.heads import LabelHead
from cellxpert.nn.network import Network

__all__ = ["make_network", "start_from_data", "start_interventions", "start_label_head", "tilts"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
RIDGE, LEAST_RIDGE = 0.1, 1e-3
"""Penalties of what pairs have beside their parts, relative to its scale, and of the parts."""
MAX_TILT = 20.0
COUNT_SCALE = 2.0
"""Scale of log1p of counts in the label head: at its fixed penalty, as good as 1 or better on all benchmark sets."""
PROTEIN = MODALITIES.index("protein")
PROTEIN_WEIGHT = 4.0
"""Variance of proteins in the label head, relative to that of genes."""
NICHE_WEIGHT = 0.25
"""Variance of niches in the cell vector, relative to that of what is measured in the cell itself."""


def make_network(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    labels: tuple[str, ...],
    perturbations: Perturbations | None,
    tissues: Tissues | None,
    batches: tuple[str, ...],
    seed: int,
) -> Network:
    """Make a network that reads these features and can name all of these; its weights are drawn."""
    return Network.from_config(
        config,
        feature_modality=vocabulary.role_of_feature.tolist(),
        place=vocabulary.place,
        n_image=vocabulary.n_image,
        n_labels=len(labels),
        n_targets=0 if perturbations is None else len(perturbations.targets),
        n_tissues=0 if tissues is None else len(tissues.names),
        n_batches=len(batches),
        seed=seed,
    )


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
        level_MK = _levels(vocabulary, tokens, rows, n_modalities=len(network.factors.level_MK))
        found = factor_model(
            tokens,
            rows,
            modality_V=modality_V,
            level_MK=level_MK,
            n_factors=network.config.n_factors,
            condition_N=None if assigned is None else conditions_of(assigned),
            usual_rows=control,
            seed=seed,
        )
        network.factors.start_from(
            level_MK=torch.from_numpy(level_MK).float(),
            cap_V=torch.from_numpy(found.cap_V),
            centre_V=torch.from_numpy(found.centre_V),
            deviation_V=torch.from_numpy(found.deviation_V),
            loading_VR=torch.from_numpy(found.loading_VR),
            unique_V=torch.from_numpy(found.unique_V),
        )
    if network.config.pooling == "mean":
        usual_V, vector_VN = principal_components(
            tokens,
            rows,
            modality_V=modality_V,
            scale_K=magnitude_scale(network.n_bins).double().numpy(),
            max_components=min(network.config.width, MAX_COMPONENTS),
            seed=seed,
            weight_M=_weights(vocabulary),
        )
        network.cell.start_from(torch.from_numpy(usual_V), torch.from_numpy(vector_VN))


def start_label_head(head: LabelHead, vocabulary: Vocabulary, tokens: Tokens, *, rows: npt.NDArray[np.int64]) -> None:
    """Let a label head that was never fitted read magnitudes, those of genes as log1p of counts in a usual cell, in place.

    Niches are left to the cell vector, which a cell without neighbours does not lack; read directly they cost accuracy where types lie
    mixed, and gain as little where they do not.
    """
    if head.magnitude.weight.any():
        return
    scale_MK = _levels(vocabulary, tokens, rows, n_modalities=len(head.scale_MK))
    if _counts_genes(vocabulary):
        scale_MK[0] *= COUNT_SCALE
        if "protein" in vocabulary.roles:
            modality_V = head.modality_V[:-1].numpy()
            scale_MK[PROTEIN] *= _protein_scale(tokens, rows, scale_MK=scale_MK, modality_V=modality_V)
    if NICHE in vocabulary.roles:
        scale_MK[MODALITIES.index(NICHE)] = 0.0
    head.start_from(torch.from_numpy(scale_MK))


def _protein_scale(tokens: Tokens, rows: Ints, *, scale_MK: Floats, modality_V: Ints) -> float:
    """Scale at which proteins vary ``PROTEIN_WEIGHT`` times as much as genes: few and telling, one penalty would silence them."""
    rows = rows[tokens.measured_features[tokens.pattern[rows]][:, modality_V == PROTEIN].any(axis=1)]
    if not len(rows):  # fine-tuning on cells that lack them
        return 1.0
    level_NV = scaled_magnitudes(tokens, rows[:MAX_CELLS], scale_MK=scale_MK, modality_V=modality_V)
    mean_V = np.asarray(level_NV.mean(axis=0)).ravel()
    variance_V = np.asarray(level_NV.power(2).mean(axis=0)).ravel() - mean_V**2
    genes, proteins = variance_V[modality_V == 0].sum(), variance_V[modality_V == PROTEIN].sum()
    return float(np.sqrt(PROTEIN_WEIGHT * genes / proteins)) if genes > 0 and proteins > 0 else 1.0


def _weights(vocabulary: Vocabulary) -> Floats:
    """How much the modalities weigh in the cell vector."""
    weight_M = np.ones(int(vocabulary.role_of_feature.max()) + 1)
    if NICHE in vocabulary.roles:
        weight_M[MODALITIES.index(NICHE)] = NICHE_WEIGHT
    return weight_M


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


def _counts_genes(vocabulary: Vocabulary) -> bool:
    return "rna" in vocabulary.roles and vocabulary.block("rna").transform == "log"


def _levels(vocabulary: Vocabulary, tokens: Tokens, rows: Ints, *, n_modalities: int) -> Floats:
    """Magnitude of each bin in each modality; of genes log1p of counts in a usual cell.

    Magnitudes of genes are of counts per 10,000: where cells have fewer, as in targeted panels, these hardly tell one count from
    five, and noise of the few counts weighs as much as what cells have in common.
    """
    level_MK = vocabulary.levels(n_modalities)
    if not _counts_genes(vocabulary):
        return level_MK
    return _counted(tokens, rows, level_MK=level_MK, modality_V=vocabulary.role_of_feature)


def _counted(tokens: Tokens, rows: npt.NDArray[np.int64], *, level_MK: Floats, modality_V: Ints) -> Floats:
    """Magnitudes of bins as log1p of counts in a usual cell, for genes: the smallest magnitude of a cell is that of one count.

    Magnitudes of other modalities stay as they are.
    """
    counted_MK = level_MK.copy()
    gene_N = modality_V[tokens.feature] == 0
    value_N = np.where(gene_N & (tokens.bin > 0), level_MK[0, tokens.bin], np.inf)
    filled = rows[tokens.lengths[rows] > 0]
    lowest = np.array([value_N[tokens.start[row] : tokens.start[row + 1]].min() for row in filled])
    lowest = lowest[np.isfinite(lowest)]
    if len(lowest):
        counted_MK[0] = np.log1p(np.expm1(level_MK[0]) / np.expm1(np.median(lowest)))
    return counted_MK


@torch.no_grad()
def start_interventions(
    network: Network,
    tokens: Tokens,
    *,
    rows: npt.NDArray[np.int64],
    assigned: Assigned,
    kept_G: npt.NDArray[np.bool_],
) -> None:
    """Let what interventions do begin at the observed effects, in place.

    What all conditions share, a code for each target, and what pairs have beside their parts. Where some targets were learned
    before (fine-tuning), they and what is shared stay, and the others' effects are told in the same directions and in unused ones.

    Parameters
    ----------
    network
        The network; its answers in an empty context are what effects are added to.
    tokens, rows, assigned
        Tokens without the genes that were set, training cells, genes that were set.
    kept_G
        Targets that were learned before.
    """
    factors = network.factors
    if factors is None or factors.intervention is None or kept_G.all() or not assigned.intervened[rows].any():
        return
    part, fresh = factors.intervention, not kept_G.any()
    level_VK = factors.level_MK.double().numpy()[factors.modality_V.numpy()]
    effects = condition_effects(tokens, rows, assigned, level_VK=level_VK, n_targets=len(kept_G))
    log_p_VK = network.bins.prior.weight[: network.n_features].double().log_softmax(-1).numpy()
    member_PG = effects.member_PG
    code_GS, direct_VS, pair_VS = (t.weight.double().numpy().copy() for t in (part.code, part.direct, part.pair))
    code_GS[~kept_G] = 0.0
    free_S = ~code_GS.any(axis=0)
    direct_VS[:, free_S] = 0.0
    usual_V = part.usual.weight[:, 0].double().numpy()
    if fresh:
        usual_V = tilts(log_p_VK, level_VK, effects.usual_V[None])[0]
        pair_VS[:] = 0.0
    own_PV = (tilts(log_p_VK, level_VK, effects.usual_V + effects.own_PV) - usual_V) * effects.measured_PV
    rest_PV = own_PV - member_PG @ code_GS @ direct_VS.T
    new_PG = member_PG[:, ~kept_G]
    new_GV = np.linalg.solve(new_PG.T @ new_PG + LEAST_RIDGE * np.eye(new_PG.shape[1]), new_PG.T @ rest_PV)
    new_GS = np.linalg.lstsq(direct_VS, new_GV.T, rcond=None)[0].T
    left_GS, size_S, right_SV = np.linalg.svd(new_GV - new_GS @ direct_VS.T, full_matrices=False)
    n = min(int(free_S.sum()), len(size_S))
    unused, root_S = np.flatnonzero(free_S)[:n], np.sqrt(size_S[:n])
    new_GS[:, unused] = left_GS[:, :n] * root_S
    direct_VS[:, unused] = right_SV[:n].T * root_S
    code_GS[~kept_G] = new_GS
    pairs, pair_gain = (member_PG != 0).sum(axis=1) > 1, float(part.pair_gain)
    if fresh and pairs.any():
        code_PGS = member_PG[pairs][..., None] * code_GS
        product_PS = (code_PGS.sum(axis=1) ** 2 - (code_PGS**2).sum(axis=1)) / 2
        left_PV = own_PV[pairs] - member_PG[pairs] @ code_GS @ direct_VS.T
        penalty = RIDGE * max((product_PS**2).sum() / len(code_GS[0]), 1e-6)
        pair_VS, pair_gain = _pairs(product_PS, left_PV, penalty=penalty)
    part.start_from(
        log_usual_VK=torch.from_numpy(log_p_VK) if fresh else part.log_usual_VK,
        usual_V=torch.from_numpy(usual_V),
        code_GS=torch.from_numpy(code_GS),
        direct_VS=torch.from_numpy(direct_VS),
        pair_VS=torch.from_numpy(pair_VS),
        pair_gain=pair_gain,
    )


def _pairs(product_PS: Floats, left_PV: Floats, *, penalty: float) -> tuple[Floats, float]:
    """Ridge regression of what pairs do beside their parts on products of codes (V, S), and how much of it other pairs share.

    The share is the slope of what each pair did on what the others say of it. It is 0 where they say nothing, as where there is one pair:
    what was seen of one combination is then expected of no other.
    """
    inverse_SS = np.linalg.inv(product_PS.T @ product_PS + penalty * np.eye(product_PS.shape[1]))
    pair_SV = inverse_SS @ product_PS.T @ left_PV
    leverage_P = ((product_PS @ inverse_SS) * product_PS).sum(axis=1)
    others_PV = left_PV - (left_PV - product_PS @ pair_SV) / (1 - leverage_P)[:, None]
    size = (others_PV**2).sum()
    gain = (others_PV * left_PV).sum() / size if len(left_PV) > 1 and size > 0 else 0.0
    return pair_SV.T, float(np.clip(gain, 0.0, 1.0))
