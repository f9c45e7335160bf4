"""What the sampler asks of a model, and the distributions that are made of the answers.

Shape suffixes: C chains, A some of them, Q queries, R rows (questions of all chains end to end), Y numbers that a bin stands for, M sites (movable features),
K bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Choose",
    "Conditionals",
    "Drawn",
    "Packed",
    "Padded",
    "block_log_prob",
    "categorical",
    "causal_terms",
    "draw_in_order",
    "leave_one_out_log_prob",
    "packed",
    "ranks",
    "terms_of",
]

Choose = Callable[[int, Tensor, Tensor], Tensor]
"""(place, the chains A that are asked there, what they are told) -> bins (A)."""


class Conditionals(Protocol):
    """A model of M sites with K bins each, in some fixed context: any conditional of one site given any others."""

    n_sites: int
    n_bins: int

    def log_prob(self, query_CQ: Tensor, x_CM: Tensor, visible_CQM: Tensor) -> Tensor:
        """Return log p(bin of the queried site | context, values of the visible sites), (C, Q, K), normalised over bins.

        ``query_CQ`` holds sites, ``x_CM`` bins (both int64), ``visible_CQM`` what each query sees (bool; its first axis may
        be 1), never itself. An answer may depend on nothing else: not on other queries, on values that are not visible, or
        on other chains. Where a caller has more rows than there are chains, it lays out the rows of a chain together.
        """
        ...


@runtime_checkable
class Packed(Conditionals, Protocol):
    """A model that can do the same with less work: other numbers of questions per chain, or one site after another."""

    def log_prob_packed(self, site_R: Tensor, x_CM: Tensor, visible_RM: Tensor, *, count_C: Tensor) -> Tensor:
        """Return log p(bin of the site | context, values of the visible sites), (R, K).

        Chain c asks ``count_C[c]`` questions (none at all is possible); those of a chain stand together, in the order of the
        chains.
        """
        ...

    def in_order(self, x_CM: Tensor, order_CM: Tensor, *, start_C: Tensor, choose: Choose) -> None:
        """Ask for site after site of each chain's order, beginning at place ``start_C``, given the values of those before it.

        ``choose`` is told log p (A, K) of the chains that are asked, and returns their bins, which later places see. A chain
        meets its places in their order; nothing else about the order of calls is promised.
        """
        ...


class Padded:
    """Any model as a :class:`Packed` one, by asking rectangles of questions and dropping what is too much."""

    def __init__(self, model: Conditionals) -> None:
        self.model, self.n_sites, self.n_bins = model, model.n_sites, model.n_bins

    def log_prob(self, query_CQ: Tensor, x_CM: Tensor, visible_CQM: Tensor) -> Tensor:
        """Ask the model."""
        return self.model.log_prob(query_CQ, x_CM, visible_CQM)

    def log_prob_packed(self, site_R: Tensor, x_CM: Tensor, visible_RM: Tensor, *, count_C: Tensor) -> Tensor:
        """Ask as many questions of every chain as of the one that asks most."""
        n_chains, n_sites = x_CM.shape
        n_queries = int(count_C.max())
        asked_CQ = torch.arange(n_queries, device=x_CM.device) < count_C[:, None]
        query_CQ = torch.zeros((n_chains, n_queries), dtype=torch.int64, device=x_CM.device)
        visible_CQM = torch.zeros((n_chains, n_queries, n_sites), dtype=torch.bool, device=x_CM.device)
        query_CQ[asked_CQ], visible_CQM[asked_CQ] = site_R, visible_RM
        return self.model.log_prob(query_CQ, x_CM, visible_CQM)[asked_CQ]

    def in_order(self, x_CM: Tensor, order_CM: Tensor, *, start_C: Tensor, choose: Choose) -> None:
        """Ask one question of every chain per place."""
        x_CM, rank_CM = x_CM.clone(), ranks(order_CM)
        for place in range(int(start_C.min()), x_CM.shape[1]):
            site_C1, before_C1M = order_CM[:, place : place + 1], (rank_CM < place)[:, None, :]
            chain_A = (start_C <= place).nonzero()[:, 0]
            log_p_AK = self.model.log_prob(site_C1, x_CM, before_C1M)[chain_A, 0]
            x_CM[chain_A, site_C1[chain_A, 0]] = choose(place, chain_A, log_p_AK)


def packed(model: Conditionals) -> Packed:
    """Return the model itself where it answers packed questions, and otherwise a form of it that does."""
    return model if isinstance(model, Packed) else Padded(model)


def ranks(order_CM: Tensor) -> Tensor:
    """Return the place of each site in its chain's order."""
    return torch.empty_like(order_CM).scatter_(1, order_CM, _all_sites(order_CM))


def _all_sites(x_CM: Tensor) -> Tensor:
    return torch.arange(x_CM.shape[1], device=x_CM.device).expand_as(x_CM)


def _of_values(log_p_CMK: Tensor, x_CM: Tensor) -> Tensor:
    return log_p_CMK.gather(2, x_CM[..., None])[..., 0]


def causal_terms(model: Conditionals, x_CM: Tensor, rank_CM: Tensor) -> Tensor:
    """Return log p(x_m | sites before m in the order), (C, M), in one pass. Their sum is a normalised joint."""
    visible_CMM = rank_CM[:, None, :] < rank_CM[:, :, None]
    return _of_values(model.log_prob(_all_sites(x_CM), x_CM, visible_CMM), x_CM)


def leave_one_out_log_prob(model: Conditionals, x_CM: Tensor) -> Tensor:
    """Return log p(. | all other sites) of every site, (C, M, K), in one pass."""
    n_sites = x_CM.shape[1]
    others_1MM = ~torch.eye(n_sites, dtype=torch.bool, device=x_CM.device)[None]
    return model.log_prob(_all_sites(x_CM), x_CM, others_1MM)


def terms_of(model: Conditionals, x_CM: Tensor, asked_CM: Tensor, *, rank_CM: Tensor | None) -> Tensor:
    """Return the terms of some sites, those of a chain together and by ascending site, (R,), in one pass.

    With ``rank_CM``, log p(x_m | sites before m in the order); without, log p(x_m | all other sites).
    """
    chain_R, site_R = asked_CM.nonzero(as_tuple=True)
    if rank_CM is None:
        visible_RM = site_R[:, None] != torch.arange(x_CM.shape[1], device=x_CM.device)
    else:
        rank_CM = rank_CM.to(torch.int16)  # a row per question: small numbers
        visible_RM = rank_CM[chain_R] < rank_CM[chain_R, site_R][:, None]
    log_p_RK = packed(model).log_prob_packed(site_R, x_CM, visible_RM, count_C=asked_CM.sum(1))
    return log_p_RK.gather(1, x_CM[chain_R, site_R][:, None])[:, 0]


def block_log_prob(model: Conditionals, x_CM: Tensor, block_CS: Tensor) -> Tensor:
    """Return log p(. | sites outside the block) of every site of a block, (C, S, K), in one pass."""
    outside_CM = torch.ones_like(x_CM, dtype=torch.bool).scatter_(1, block_CS, value=False)
    visible_CSM = outside_CM[:, None, :].expand(-1, block_CS.shape[1], -1)
    return model.log_prob(block_CS, x_CM, visible_CSM)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Values drawn in an order."""

    x_CM: Tensor
    """All values."""
    log_prob_CM: Tensor
    """Log probability of each site that was drawn, given those before it (float64); NaN at the others."""
    expected_CMY: Tensor | None = None
    """What each site's values were expected to be before its bin was drawn, given those before it; NaN at the others."""


def draw_in_order(
    model: Conditionals,
    x_CM: Tensor,
    order_CM: Tensor,
    *,
    start_C: Tensor,
    uniform_CM: Tensor,
    value_MKY: Tensor | None = None,
) -> Drawn:
    """Draw, site after site, all that stand at ``start`` or later in their chain's order.

    Parameters
    ----------
    model
        The conditionals.
    x_CM, order_CM
        Values to start from, and the order.
    start_C
        First place that is drawn anew.
    uniform_CM
        Numbers in [0, 1), one per place.
    value_MKY
        Numbers that bins stand for, whose expectations are wanted. Their means over draws are those of the drawn values, with
        less noise (Rao-Blackwell).
    """
    expected_CMY = None
    if value_MKY is not None:
        expected_CMY = value_MKY.new_full((*x_CM.shape, value_MKY.shape[2]), float("nan"))
    drawn_CM = x_CM.clone()
    log_prob_CM = torch.full(x_CM.shape, float("nan"), dtype=torch.float64, device=x_CM.device)

    def choose(place: int, chain_A: Tensor, log_p_AK: Tensor) -> Tensor:
        bin_A = categorical(log_p_AK[:, None], uniform_CM[chain_A, place, None])[:, 0]
        site_A = order_CM[chain_A, place]
        drawn_CM[chain_A, site_A] = bin_A
        log_prob_CM[chain_A, site_A] = log_p_AK.gather(1, bin_A[:, None])[:, 0].double()
        if expected_CMY is not None and value_MKY is not None:
            p_A1K = log_p_AK.exp().to(value_MKY.dtype)[:, None]
            expected_CMY[chain_A, site_A] = (p_A1K @ value_MKY[site_A])[:, 0]
        return bin_A

    packed(model).in_order(x_CM, order_CM, start_C=start_C, choose=choose)
    return Drawn(x_CM=drawn_CM, log_prob_CM=log_prob_CM, expected_CMY=expected_CMY)


def categorical(log_p_CQK: Tensor, uniform_CQ: Tensor) -> Tensor:
    """Draw from normalised log probabilities by inverting their cumulative sum, so that numbers may be shared."""
    cumulative_CQK = log_p_CQK.double().exp().cumsum(-1)
    below_CQ = (cumulative_CQK < (uniform_CQ * cumulative_CQK[..., -1])[..., None]).sum(-1)
    # a bin of probability zero is never drawn, not even by the number 0
    first_CQ = (cumulative_CQK > 0).int().argmax(-1)
    return torch.maximum(below_CQ, first_CQ).clamp(max=log_p_CQK.shape[-1] - 1)
