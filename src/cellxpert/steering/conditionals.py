"""What the sampler asks of a model, and the distributions that are made of the answers.

Shape suffixes: C chains, Q queries, M sites (movable features), K bins.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "Conditionals",
    "block_log_prob",
    "categorical",
    "causal_terms",
    "draw_in_order",
    "leave_one_out_log_prob",
    "ranks",
]


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


def ranks(order_CM: Tensor) -> Tensor:
    """Return the place of each site in its chain's order."""
    return order_CM.argsort(dim=1)


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


def block_log_prob(model: Conditionals, x_CM: Tensor, block_CS: Tensor) -> Tensor:
    """Return log p(. | sites outside the block) of every site of a block, (C, S, K), in one pass."""
    outside_CM = torch.ones_like(x_CM, dtype=torch.bool).scatter_(1, block_CS, value=False)
    visible_CSM = outside_CM[:, None, :].expand(-1, block_CS.shape[1], -1)
    return model.log_prob(block_CS, x_CM, visible_CSM)


def draw_in_order(
    model: Conditionals, x_CM: Tensor, order_CM: Tensor, *, start_C: Tensor, uniform_CM: Tensor
) -> Tensor:
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

    Returns
    -------
    The new values, (C, M).
    """
    x_CM, rank_CM = x_CM.clone(), ranks(order_CM)
    for place in range(int(start_C.min()), x_CM.shape[1]):
        site_C1 = order_CM[:, place : place + 1]
        before_C1M = (rank_CM < place)[:, None, :]
        log_p_CK = model.log_prob(site_C1, x_CM, before_C1M)[:, 0]
        drawn_C1 = categorical(log_p_CK[:, None], uniform_CM[:, place : place + 1])
        value_C1 = torch.where(start_C[:, None] <= place, drawn_C1, x_CM.gather(1, site_C1))
        x_CM.scatter_(1, site_C1, value_C1)
    return x_CM


def categorical(log_p_CQK: Tensor, uniform_CQ: Tensor) -> Tensor:
    """Draw from normalised log probabilities by inverting their cumulative sum, so that numbers may be shared."""
    cumulative_CQK = log_p_CQK.double().exp().cumsum(-1)
    below_CQ = (cumulative_CQK < (uniform_CQ * cumulative_CQK[..., -1])[..., None]).sum(-1)
    # a bin of probability zero is never drawn, not even by the number 0
    first_CQ = (cumulative_CQK > 0).int().argmax(-1)
    return torch.maximum(below_CQ, first_CQ).clamp(max=log_p_CQK.shape[-1] - 1)
