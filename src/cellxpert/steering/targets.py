"""The distribution that a chain leaves invariant.

log pi(x) = weight * log p(x | context) - energy of the anchors(x) + constant, where log p is the any-order joint in one fixed
order per chain (normalised, one causal pass), the pseudo-likelihood (one leave-one-out pass), or left out. Its terms, one per site, are kept with a state: a move computes only those that it changes.

Shape suffixes: C chains, M sites, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cellxpert.steering.anchors import Anchors
from cellxpert.steering.conditionals import Conditionals, causal_terms, ranks, terms_of

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
    term_CM: Tensor | None = None
    """Terms of the model's part by site, of which ``log_model_C`` is the sum; None where they are not known."""

    def where(self, mask_C: Tensor, other: Density) -> Density:
        """Return this density where the mask is true, the other elsewhere."""
        return Density(
            log_model_C=torch.where(mask_C, self.log_model_C, other.log_model_C),
            distance_CA=_where(mask_C, self.distance_CA, other.distance_CA),
            log_density_C=torch.where(mask_C, self.log_density_C, other.log_density_C),
            term_CM=_where(mask_C, self.term_CM, other.term_CM),
        )

    def rows(self, index_N: Tensor) -> Density:
        """Return the densities of chosen states, in this order, with repetition."""
        return Density(**{name: None if x is None else x[index_N] for name, x in vars(self).items()})


def _where(mask_C: Tensor, x_CN: Tensor | None, y_CN: Tensor | None) -> Tensor | None:
    return None if x_CN is None or y_CN is None else torch.where(mask_C[:, None], x_CN, y_CN)


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
        return self.rank_CM >= self.n_clamped

    def scaled(self, share: float) -> Target:
        """Return the target with its anchors at a share of their strength."""
        return self if self.anchors is None else replace(self, anchors=self.anchors.scaled(share))

    def rows(self, n_copies: int) -> Target:
        """Return the target of chains that stand ``n_copies`` times in a row each."""
        return replace(self, order_CM=self.order_CM.repeat_interleave(n_copies, dim=0))

    @property
    def rank_CM(self) -> Tensor:
        """Place of each site in its chain's order."""
        return ranks(self.order_CM)

    def __call__(self, x_CM: Tensor, *, log_model_C: Tensor | None = None) -> Density:
        """Evaluate states; the model's part need not be computed where it is known."""
        if log_model_C is not None:
            return self.combine(log_model_C, self._distances(x_CM))
        if self.part == "none":
            nothing_C = torch.zeros(len(x_CM), dtype=torch.float64, device=x_CM.device)
            return self.combine(nothing_C, self._distances(x_CM))
        if self.part == "joint":
            return self.of_terms(x_CM, causal_terms(self.model, x_CM, self.rank_CM))
        term_CM = torch.zeros(x_CM.shape, dtype=torch.float64, device=x_CM.device)
        term_CM[self.free_CM] = terms_of(self.model, x_CM, self.free_CM, rank_CM=None).double()
        return self.of_terms(x_CM, term_CM)

    def of_terms(self, x_CM: Tensor, term_CM: Tensor) -> Density:
        """Return the density of states whose terms are known (those of clamped sites are 0 in a pseudo-likelihood)."""
        return self.combine(term_CM.double().sum(1), self._distances(x_CM), term_CM=term_CM)

    def moved(self, x_CM: Tensor, *, from_CM: Tensor, density: Density) -> Density:
        """Evaluate states that were reached from known ones: only the terms that the way there changes.

        Parameters
        ----------
        x_CM
            New states.
        from_CM, density
            The states that they were reached from, and what is known of them.
        """
        if density.term_CM is None:
            return self(x_CM)
        changed_CM = x_CM != from_CM
        if self.part == "joint":
            # a site's term knows its own value and those before it in the order
            rank_CM = self.rank_CM
            first_C1 = rank_CM.masked_fill(~changed_CM, x_CM.shape[1]).amin(1, keepdim=True)
            asked_CM = rank_CM >= first_C1
        else:
            rank_CM, asked_CM = None, self.free_CM & changed_CM.any(1, keepdim=True)
        term_CM = density.term_CM.clone()
        term_CM[asked_CM] = terms_of(self.model, x_CM, asked_CM, rank_CM=rank_CM).to(term_CM.dtype)
        return self.of_terms(x_CM, term_CM)

    def combine(self, log_model_C: Tensor, distance_CA: Tensor | None, *, term_CM: Tensor | None = None) -> Density:
        """Return the density of states of which both parts are known."""
        log_density_C = self.weight * log_model_C if self.weight else torch.zeros_like(log_model_C)
        if self.anchors is not None and distance_CA is not None:
            log_density_C = log_density_C + self.anchors.log_weight(distance_CA)
        return Density(log_model_C=log_model_C, distance_CA=distance_CA, log_density_C=log_density_C, term_CM=term_CM)

    def _distances(self, x_CM: Tensor) -> Tensor | None:
        return None if self.anchors is None else self.anchors.distances(x_CM)
