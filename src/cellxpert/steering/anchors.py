"""Anchors: observed states that a chain is drawn towards, and how far a state is from them.

Shape suffixes: N observed states, A anchors, C chains, M sites, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Anchors", "Distance", "medoids"]

Distance = Literal["bins", "squared", "histogram"]


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The energy -log mean_a exp(-kappa D(x, anchor a)): a soft minimum of distances.

    Distances are sums over sites of ``weight * abs(bin - bin of the anchor)`` (``"bins"``: the Wasserstein-1 distance
    of two point masses whose ground metric is L1), of weight * squared difference (``"squared"``), or ``"histogram"``:
    the 1-D Wasserstein-1 distance between the sorted bins, times the number of sites. The last is blind to which site
    has which bin, and knows no weights.
    """

    bin_AM: Tensor
    """Bins of the anchors."""
    kappa: float
    """Strength in nats per bin and site."""
    weight_M: Tensor | None = None
    """Weight of each site; all 1 if None."""
    distance: Distance = "bins"

    def __post_init__(self) -> None:
        assert self.bin_AM.ndim == 2, self.bin_AM.shape
        assert len(self.bin_AM), "no anchors"
        assert self.kappa >= 0, self.kappa

    def scaled(self, share: float) -> Anchors:
        """Return the same anchors at a share of their strength."""
        return replace(self, kappa=self.kappa * share)

    def distances(self, x_CM: Tensor) -> Tensor:
        """Return D(x, anchor), (C, A), float64."""
        if self.distance == "histogram":
            x_CM, anchor_AM = x_CM.sort(dim=1).values, self.bin_AM.sort(dim=1).values
            return (x_CM[:, None] - anchor_AM).abs().sum(-1).double()
        gap_CAM = (x_CM[:, None] - self.bin_AM).double()
        gap_CAM = gap_CAM.abs() if self.distance == "bins" else gap_CAM**2
        return gap_CAM.sum(-1) if self.weight_M is None else gap_CAM @ self.weight_M.double()

    def log_weight(self, distance_CA: Tensor) -> Tensor:
        """Return log mean_a exp(-kappa D), (C,)."""
        n_anchors = distance_CA.new_tensor(distance_CA.shape[1])
        return (-self.kappa * distance_CA).logsumexp(1) - n_anchors.log()

    def site_costs(self, n_bins: int) -> Tensor:
        """Return kappa * what each bin of each site adds to the distance from each anchor, (A, M, K)."""
        assert self.distance != "histogram", "a histogram distance is no sum over sites"
        gap_AMK = (torch.arange(n_bins, device=self.bin_AM.device) - self.bin_AM[..., None]).double()
        gap_AMK = gap_AMK.abs() if self.distance == "bins" else gap_AMK**2
        if self.weight_M is not None:
            gap_AMK = gap_AMK * self.weight_M.double()[:, None]
        return self.kappa * gap_AMK


def medoids(bin_NM: Tensor, n_anchors: int, *, weight_M: Tensor | None = None) -> Tensor:
    """Return the rows of the most central of N observed states, most central first.

    The score of a state is the sum over states i of d(i, j) / sum_l d(i, l), with the distance ``"bins"`` (Park & Jun 2009).

    Parameters
    ----------
    bin_NM
        Bins of the states.
    n_anchors
        How many rows to return, at most N.
    weight_M
        Weight of each site; all 1 if None.
    """
    state_NM = bin_NM.double() if weight_M is None else bin_NM.double() * weight_M.double()
    distance_NN = torch.cdist(state_NM, state_NM, p=1)
    total_N = distance_NN.sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    score_N = (distance_NN / total_N[:, None]).sum(0)
    return score_N.argsort(stable=True)[:n_anchors]
