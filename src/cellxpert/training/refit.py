"""Parts of a network that are fitted to their optimum after training: the label head, and how far features follow interventions.

With the network fixed, the label head is a multinomial logistic regression on a cell's binned magnitudes and its vector: a
convex problem, so that a solver finds what a few hundred steps of gradient descent do not.

Shape suffixes: N cells, D width, V features, C labels, P conditions, K bins.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cellxpert.batch import Intervention
from cellxpert.data.collate import Collator
from cellxpert.data.effects import condition_effects
from cellxpert.data.loaders import inference_batches
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens
from cellxpert.nn.network import Network

__all__ = ["refit_label_head", "refit_responses"]

INVERSE_PENALTY = 0.1
"""scikit-learn's C, as in the baseline that the benchmarks compare with."""


@torch.no_grad()
def refit_label_head(
    network: Network,
    collator: Collator,
    *,
    rows: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
    label_loss: Literal["plain", "weighted", "balanced"],
) -> None:
    """Fit the label head of a trained network, in place: to binned magnitudes, cell vectors, and image features.

    Parameters
    ----------
    network
        The network, in evaluation mode on the CPU; all but its label head stays.
    collator
        Tokens of the cells.
    rows
        Training cells; those without a label are left out.
    codes
        Label code of every cell, negative without a label. With fewer than two labels nothing is done.
    label_loss
        ``"plain"`` weighs cells alike, the others weigh labels alike.
    """
    from sklearn.linear_model import LogisticRegression

    rows = rows[codes[rows] >= 0]
    head = network.labels
    if head is None or len(np.unique(codes[rows])) < 2:
        return
    vector_ND = np.zeros((collator.tokens.n_cells, network.config.width))
    for chosen, batch in inference_batches(collator, rows):
        vector_ND[chosen] = network.encode(batch).cell_BD.numpy()
    tokens = collator.tokens
    scale_MK, modality_V = head.scale_MK.numpy().astype(np.float64), head.modality_V.numpy()
    shape = (tokens.n_cells, network.n_features)
    scale_T = scale_MK[modality_V[tokens.feature], tokens.bin]
    magnitude_NV = sparse.csr_matrix((scale_T, tokens.feature, tokens.start), shape=shape)
    parts = [magnitude_NV[rows], sparse.csr_matrix(vector_ND[rows])]
    if head.image is not None and tokens.image is not None:
        parts.append(sparse.csr_matrix(np.nan_to_num(tokens.image[rows])))
    inputs = sparse.hstack(parts, format="csr")
    weight = None if label_loss == "plain" else "balanced"
    fitted = LogisticRegression(C=INVERSE_PENALTY, class_weight=weight, max_iter=5000).fit(inputs, codes[rows])
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(coefficients) == 1:  # two labels: scikit-learn gives the difference of their logits
        coefficients, intercepts = np.stack([-0.5, 0.5])[:, None] * coefficients, np.array([-0.5, 0.5]) * intercepts
    weight_CX = torch.from_numpy(coefficients).float()
    seen_C = torch.from_numpy(fitted.classes_)
    head.magnitude.weight[: network.n_features, seen_C] = weight_CX[:, : network.n_features].T
    at = network.n_features + network.config.width
    head.cell.weight[seen_C] = weight_CX[:, network.n_features : at]
    if head.image is not None:
        head.image.weight[seen_C] = weight_CX[:, at:]
    head.cell.bias[seen_C] = torch.from_numpy(intercepts).float()


MIN_CONDITIONS = 4
"""Fewest perturbed genes from which responses are fitted."""
RATIOS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Strengths that are tried, as multiples of the least-squares one."""
SLOPE_TOLERANCE = 0.05
"""Share of the best correlation that a larger strength may lose."""
RESPONSE_SPREAD = 0.4
"""Standard deviation of responses before any data, relative to their mean."""


@torch.no_grad()
def refit_responses(
    network: Network,
    tokens: Tokens,
    *,
    rows: npt.NDArray[np.int64],
    assigned: Assigned,
) -> None:
    """Fit how far each feature follows genes that were never perturbed, in place.

    What a gene says of a feature is a correlation: a feature upstream of it, or beside it, has one too and follows nothing.
    Training cells tell: the observed effects of the perturbed genes on a feature are regressed on those carried over from what
    the genes say, over conditions, by ridge regression towards one common slope. Conditions, not cells, are the sample: that
    the model is wrong about a gene is not averaged out by more of its cells.

    Parameters
    ----------
    network
        The network, in evaluation mode on the CPU.
    tokens
        Tokens of the cells, without the genes that were set.
    rows
        Training cells.
    assigned
        Genes that were set in each cell.
    """
    factors = network.factors
    if factors is None or factors.intervention is None:
        return
    level_VK = factors.level_MK[factors.modality_V].double().numpy()
    if not assigned.intervened[rows].any():
        return
    n_targets = len(factors.intervention.code.weight)
    effects = condition_effects(tokens, rows, assigned, level_VK=level_VK, n_targets=n_targets)
    one_P = effects.gene_P >= 0
    if one_P.sum() < MIN_CONDITIONS:
        return
    genes, dose_P = effects.gene_P[one_P], -effects.member_PG[one_P].sum(axis=1)
    observed_PV, counted_PV = effects.observed_PV[one_P], effects.measured_PV[one_P]
    factors.intervention.response_V.fill_(1.0)  # an earlier fit is replaced, not refined
    asked_V = network.blank_means(None)
    plain_V = network.blank_means(_single(-1, dose=1.0)) - asked_V  # what any intervention does
    carried = [network.blank_means(_single(g, dose=d)) - asked_V - plain_V for g, d in zip(genes, dose_P, strict=True)]
    carried_PV = torch.stack(carried).double().numpy() * counted_PV
    rest_PV = (observed_PV - plain_V.double().numpy()) * counted_PV
    slope = _slope(carried_PV, observed_PV, rest_PV=rest_PV, counted_PV=counted_PV)
    carried_PV = slope * carried_PV
    size_V = np.maximum((carried_PV**2).sum(axis=0), 1e-12)
    best_V = (carried_PV * rest_PV).sum(axis=0) / size_V
    # noise about a feature's own line, not about the common one: that a feature does not follow is no noise
    noise_V = ((rest_PV - best_V * carried_PV) ** 2).sum(axis=0) / np.maximum(counted_PV.sum(axis=0) - 1, 1) + 1e-8
    gain_V = (best_V - 1) * size_V / (size_V + noise_V / RESPONSE_SPREAD**2)
    factors.intervention.response_V.copy_(torch.from_numpy(slope * np.clip(1 + gain_V, 0.0, 2.0)))


def _slope(
    carried_PV: npt.NDArray[np.float64],
    observed_PV: npt.NDArray[np.float64],
    *,
    rest_PV: npt.NDArray[np.float64],
    counted_PV: npt.NDArray[np.bool_],
) -> float:
    """Choose how strongly effects are carried over: what correlates best with those observed, the other conditions' mean added.

    Least squares would choose less: what is carried over is itself estimated, and its noise attenuates a slope. Of strengths that
    correlate about equally well the largest tells conditions apart best; a correlation hardly tells large ones apart, so none is
    more than a few times the least-squares one.
    """
    least = (carried_PV * rest_PV).sum() / max((carried_PV**2).sum(), 1e-12)
    others_PV = (observed_PV.sum(axis=0) - observed_PV) / (len(observed_PV) - 1)
    ratios = np.array(RATIOS) if least > 0 else np.zeros(1)
    scores = []
    for slope in least * ratios:
        found = [
            np.corrcoef((usual + slope * carried)[counted], observed[counted])[0, 1]
            for usual, carried, observed, counted in zip(others_PV, carried_PV, observed_PV, counted_PV, strict=True)
        ]
        scores.append(np.nan_to_num(np.mean(found), nan=-1.0))
    best = np.array(scores) >= max(scores) - SLOPE_TOLERANCE * abs(max(scores))
    return float(max(least * ratios[best]))


def _single(gene: int, *, dose: float) -> Intervention:
    """One gene that no training cell was perturbed in, as far as the network is told."""
    none = torch.full((1, 1), -1)
    return Intervention(
        feature_BI=torch.tensor([[int(gene)]]), target_BI=none, dose_BI=torch.tensor([[dose]]).float(), before=True
    )
