"""What interventions are told from, and how far features follow them, is fitted after training, with the network fixed.

Shape suffixes: V features, P conditions, K bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cellxpert.batch import Intervention
from cellxpert.data.effects import condition_effects
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens
from cellxpert.nn.network import Network

__all__ = ["refit_responses", "refit_usual"]

MIN_CONDITIONS = 4
"""Fewest perturbed genes from which responses are fitted."""
RATIOS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Strengths that are tried, as multiples of the least-squares one."""
SLOPE_TOLERANCE = 0.05
"""Share of the best correlation that a larger strength may lose."""
RESPONSE_SPREAD = 0.4
"""Standard deviation of responses before any data, relative to their mean."""


@torch.no_grad()
def refit_usual(network: Network) -> None:
    """Set what cells show where nothing was done to what the network now says of a cell of which nothing is known, in place.

    Visible values are compared with it, moved by the intervention. Were it the frequencies that training began with, a rare gene that was
    learned to be less rare would differ from what is expected of it in every cell that it is switched on in, and would be taken for
    another state of the cell.

    Parameters
    ----------
    network
        The network, in evaluation mode on the CPU.
    """
    if network.factors is not None and network.factors.intervention is not None:
        network.factors.intervention.log_usual_VK.copy_(network.blank_log_prob(None))


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
