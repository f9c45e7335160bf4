"""The distribution that a chain leaves invariant.

log pi(x) = weight * log p(x | context) - energy of the anchors(x) + constant, where log p is the any-order joint in one fixed
order per chain (normalised, one causal pass), the pseudo-likelihood (one leave-one-out pass), or left out.

Shape suffixes: C chains, M sites, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cellxpert.steering.anchors import Anchors
from cellxpert.steering.conditionals import Conditionals, causal_terms, leave_one_out_log_prob, ranks

__all__ = ["Density", "ModelPart", "Target"]

ModelPart = Literal["joint", "pseudo", "none"]


@dataclass(frozen=True, kw_only=True)
class Density:
    """What the target knows of C states; kept with a state, so that it is computed once."""

    log_model_C: Tensor
    """log p of the model's part (float64), not weighted; 0 where there is none."""
    distance_CA: Tensor | None
    """Distances from the anchors (float64)."""
    log_density_C: Tensor
    """log pi up to a constant (float64)."""

    def where(self, mask_C: Tensor, other: Density) -> Density:
        """Return this density where the mask is true, the other elsewhere."""
        distance_CA = None
        if self.distance_CA is not None and other.distance_CA is not None:
            distance_CA = torch.where(mask_C[:, None], self.distance_CA, other.distance_CA)
        return Density(
            log_model_C=torch.where(mask_C, self.log_model_C, other.log_model_C),
            distance_CA=distance_CA,
            log_density_C=torch.where(mask_C, self.log_density_C, other.log_density_C),
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A stated distribution over the bins of the free sites, for C chains.

    Clamped sites are given: they keep their values, and the target is the conditional distribution of the others.
    """

    model: Conditionals
    order_CM: Tensor
    """Order of the sites of each chain, clamped ones first. The joint is that of this order; draws in order follow it."""
    n_clamped: int = 0
    """How many sites at the head of every order are clamped."""
    part: ModelPart = "joint"
    weight: float = 1.0
    """Weight of the model's part (lambda)."""
    anchors: Anchors | None = None

    @property
    def free_CM(self) -> Tensor:
        """Sites that may change (bool)."""
        return ranks(self.order_CM) >= self.n_clamped

    def scaled(self, share: float) -> Target:
        """Return the target with its anchors at a share of their strength."""
        return self if self.anchors is None else replace(self, anchors=self.anchors.scaled(share))

    def rows(self, n_copies: int) -> Target:
        """Return the target of chains that stand ``n_copies`` times in a row each."""
        return replace(self, order_CM=self.order_CM.repeat_interleave(n_copies, dim=0))

    def log_model(self, x_CM: Tensor) -> Tensor:
        """Return log p of the model's part, (C,), float64."""
        if self.part == "joint":
            return causal_terms(self.model, x_CM, ranks(self.order_CM)).double().sum(1)
        if self.part == "pseudo":
            log_p_CMK = leave_one_out_log_prob(self.model, x_CM)
            terms_CM = log_p_CMK.gather(2, x_CM[..., None])[..., 0].double()
            return (terms_CM * self.free_CM).sum(1)
        return torch.zeros(len(x_CM), dtype=torch.float64, device=x_CM.device)

    def __call__(self, x_CM: Tensor, *, log_model_C: Tensor | None = None) -> Density:
        """Evaluate states; the model's part need not be computed where it is known."""
        log_model_C = self.log_model(x_CM) if log_model_C is None else log_model_C
        distance_CA = None if self.anchors is None else self.anchors.distances(x_CM)
        return self.combine(log_model_C, distance_CA)

    def combine(self, log_model_C: Tensor, distance_CA: Tensor | None) -> Density:
        """Return the density of states of which both parts are known."""
        log_density_C = self.weight * log_model_C if self.weight else torch.zeros_like(log_model_C)
        if self.anchors is not None and distance_CA is not None:
            log_density_C = log_density_C + self.anchors.log_weight(distance_CA)
        return Density(log_model_C=log_model_C, distance_CA=distance_CA, log_density_C=log_density_C)
