"""Moves that leave a target invariant.

Each kernel is a small frozen object, called as ``kernel(state, target, streams)``; it returns the new state and an
:class:`Info` that keeps what was proposed. All ratios are in log space and float64. A step takes the same count of random
numbers in every chain, whatever happens in it.

=====================  ==============================================================================================
:class:`SuffixRedraw`  draws the end of the order anew from the model: a Gibbs move under the joint, so that only the anchors
                       decide (and, where ``weight`` is not 1, the rest of the model's part)
:class:`BlockMH`       masked conditionals of a random block at a temperature, then Metropolis–Hastings (the published
                       sampler's move; Goyal et al. 2022)
:class:`MultipleTry`   many candidates for a block, one of them or the current state chosen by weight (i-SIR: Andrieu et al.
                       2010, Tjelmeland 2004)
:class:`Informed`      one site to one bin, chosen by the square root of what it is worth (locally balanced: Zanella 2020)
:class:`TiltedGibbs`   block conditionals tilted by one anchor, always accepted: exact for single sites of a model whose
                       conditionals agree, and otherwise an ablation
=====================  ==============================================================================================

Shape suffixes: C chains, M sites, S sites of a block, K bins, A anchors, N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from cellxpert.steering.conditionals import block_log_prob, categorical, draw_in_order, leave_one_out_log_prob
from cellxpert.steering.streams import Streams
from cellxpert.steering.targets import Density, Target

__all__ = [
    "BlockMH",
    "Info",
    "Informed",
    "Kernel",
    "MultipleTry",
    "State",
    "SuffixRedraw",
    "TiltedGibbs",
    "ancestral",
    "init",
]


@dataclass(frozen=True, kw_only=True)
class State:
    """Where the chains are."""

    x_CM: Tensor
    """Bins (int64)."""
    density: Density
    """The target there."""
    conditional_CMK: Tensor | None = None
    """log p(. | all other sites) there, where a kernel has computed it."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a step did."""

    proposed_CM: Tensor
    """The proposed states, accepted or not."""
    log_alpha_C: Tensor
    """Log probability of leaving the current state for what was proposed (float64)."""
    accepted_C: Tensor
    """Whether the chain went there (bool); the proposal may equal the current state."""


class Kernel(Protocol):
    """A move."""

    def __call__(self, state: State, target: Target, streams: Streams) -> tuple[State, Info]:
        """Move every chain once."""
        ...


def init(x_CM: Tensor, target: Target) -> State:
    """Return the state of chains that begin at these bins.

    Parameters
    ----------
    x_CM
        Bins (int64).
    target
        What is evaluated there.
    """
    return State(x_CM=x_CM, density=target(x_CM))


def _decide(
    state: State, proposed_CM: Tensor, density: Density, log_ratio_C: Tensor, uniform_C: Tensor
) -> tuple[State, Info]:
    """Accept or reject."""
    log_alpha_C = log_ratio_C.clamp(max=0)
    accepted_C = uniform_C.log() < log_alpha_C
    moved = State(
        x_CM=torch.where(accepted_C[:, None], proposed_CM, state.x_CM), density=density.where(accepted_C, state.density)
    )
    return moved, Info(proposed_CM=proposed_CM, log_alpha_C=log_alpha_C, accepted_C=accepted_C)


def _choose_block(target: Target, size: int, uniform_CM: Tensor) -> Tensor:
    """Return ``size`` free sites of each chain, every subset equally likely, whatever the state."""
    n_free = target.order_CM.shape[1] - target.n_clamped
    assert 1 <= size <= n_free, f"a block of {size} among {n_free} free sites"
    return uniform_CM.masked_fill(~target.free_CM, float("inf")).topk(size, dim=1, largest=False).indices


def _tempered(log_p_CSK: Tensor, temperature: float, mix: float) -> Tensor:
    """Return log of (1 - mix) softmax(log p / temperature) + mix / K, float64: what is drawn from, and what is divided by."""
    log_q_CSK = (log_p_CSK.double() / temperature).log_softmax(-1)
    if not mix:
        return log_q_CSK
    even = torch.full_like(log_q_CSK, mix / log_q_CSK.shape[-1]).log()
    return torch.logaddexp(log_q_CSK + torch.tensor(1 - mix).double().log(), even)


def _log_prob_of(log_q_CSK: Tensor, bin_CS: Tensor) -> Tensor:
    return log_q_CSK.gather(2, bin_CS[..., None])[..., 0].sum(1)


@dataclass(frozen=True, kw_only=True)
class BlockMH:
    """Draw a block at once from its masked conditionals; the reverse move has the same ones.

    ``rule="local"`` is the published reading (steering of a model without a stated joint): the block's own conditionals stand
    for the model's part of the target, so that log alpha = energy difference + (weight - 1 / temperature) * difference of
    log conditionals. Its stationary law depends on size and temperature unless the conditionals agree.
    """

    size: int
    temperature: float = 2.0
    mix: float = 0.0
    rule: Literal["target", "local"] = "target"

    def __call__(self, state: State, target: Target, streams: Streams) -> tuple[State, Info]:
        """Move every chain once."""
        n_sites = state.x_CM.shape[1]
        uniform = streams.uniform(n_sites + self.size + 1)
        block_CS = _choose_block(target, self.size, uniform[:, :n_sites])
        log_p_CSK = block_log_prob(target.model, state.x_CM, block_CS)
        log_q_CSK = _tempered(log_p_CSK, self.temperature, self.mix)
        new_CS, old_CS = categorical(log_q_CSK, uniform[:, n_sites:-1]), state.x_CM.gather(1, block_CS)
        proposed_CM = state.x_CM.scatter(1, block_CS, new_CS)
        log_ratio_C = _log_prob_of(log_q_CSK, old_CS) - _log_prob_of(log_q_CSK, new_CS)
        if self.rule == "local":
            log_p_CSK = log_p_CSK.double()
            gain_C = _log_prob_of(log_p_CSK, new_CS) - _log_prob_of(log_p_CSK, old_CS)
            density = target(proposed_CM, log_model_C=state.density.log_model_C + gain_C)
        else:
            density = target.moved(proposed_CM, from_CM=state.x_CM, density=state.density)
        log_ratio_C = log_ratio_C + density.log_density_C - state.density.log_density_C
        return _decide(state, proposed_CM, density, log_ratio_C, uniform[:, -1])


@dataclass(frozen=True, kw_only=True)
class SuffixRedraw:
    """Draw all sites from a random place of the order on, given those before it."""

    longest: int | None = None
    """Most sites drawn anew; None: any number of the free ones. A bound below that never moves the head of the order."""

    def __call__(self, state: State, target: Target, streams: Streams) -> tuple[State, Info]:
        """Move every chain once."""
        assert target.part == "joint", "the end of an order is drawn under the joint of that order"
        n_sites = state.x_CM.shape[1]
        n_free = n_sites - target.n_clamped
        length = n_free if self.longest is None else min(self.longest, n_free)
        uniform = streams.uniform(n_sites + 2)
        start_C = n_sites - 1 - (uniform[:, 0] * length).long()
        drawn = draw_in_order(target.model, state.x_CM, target.order_CM, start_C=start_C, uniform_CM=uniform[:, 1:-1])
        proposed_CM = drawn.x_CM
        if state.density.term_CM is None:
            density = target(proposed_CM)
        else:  # the draws have told the terms that changed
            kept_CM = target.rank_CM < start_C[:, None]
            term_CM = torch.where(kept_CM, state.density.term_CM.double(), drawn.log_prob_CM)
            density = target.of_terms(proposed_CM, term_CM)
        log_ratio_C = density.log_density_C - state.density.log_density_C
        # the proposal's own probability: what of the joint was drawn anew
        log_ratio_C = log_ratio_C + state.density.log_model_C - density.log_model_C
        return _decide(state, proposed_CM, density, log_ratio_C, uniform[:, -1])


def ancestral(x_CM: Tensor, target: Target, streams: Streams) -> Tensor:
    """Draw all free sites in order: independent samples of the joint given the clamped sites, without a chain.

    Parameters
    ----------
    x_CM
        States; only clamped sites are read.
    target
        Its model and orders; anchors and weight are not read.
    streams
        Random numbers, one per chain and site.
    """
    n_sites = x_CM.shape[1]
    start_C = torch.full((len(x_CM),), target.n_clamped)
    uniform_CM = streams.uniform(n_sites)
    return draw_in_order(target.model, x_CM, target.order_CM, start_C=start_C, uniform_CM=uniform_CM).x_CM


@dataclass(frozen=True, kw_only=True)
class MultipleTry:
    """Draw candidates for a block from one pass, and choose among them and the current state by target / proposal."""

    size: int
    n_tries: int = 16
    temperature: float = 2.0
    mix: float = 0.0

    def __call__(self, state: State, target: Target, streams: Streams) -> tuple[State, Info]:
        """Move every chain once."""
        n_chains, n_sites = state.x_CM.shape
        n, size = self.n_tries, self.size
        uniform = streams.uniform(n_sites + n * size + 1)
        block_CS = _choose_block(target, size, uniform[:, :n_sites])
        log_q_CSK = _tempered(block_log_prob(target.model, state.x_CM, block_CS), self.temperature, self.mix)
        rows_NSK = log_q_CSK.repeat_interleave(n, dim=0)
        new_NS = categorical(rows_NSK, uniform[:, n_sites:-1].reshape(n_chains * n, size))
        tried_NM = state.x_CM.repeat_interleave(n, dim=0).scatter_(1, block_CS.repeat_interleave(n, dim=0), new_NS)
        chain_N = torch.arange(n_chains).repeat_interleave(n)
        density = target.rows(n).moved(tried_NM, from_CM=state.x_CM[chain_N], density=state.density.rows(chain_N))
        weight_CN = (density.log_density_C - _log_prob_of(rows_NSK, new_NS)).view(n_chains, n)
        stay_C = state.density.log_density_C - _log_prob_of(log_q_CSK, state.x_CM.gather(1, block_CS))
        log_p_CN = torch.cat([stay_C[:, None], weight_CN], dim=1).log_softmax(1)
        chosen_C = categorical(log_p_CN[:, None], uniform[:, -1:])[:, 0]
        accepted_C = chosen_C > 0
        row_C = torch.arange(n_chains) * n + (chosen_C - 1).clamp(min=0)
        proposed_CM = tried_NM[row_C]
        moved = State(
            x_CM=torch.where(accepted_C[:, None], proposed_CM, state.x_CM),
            density=density.rows(row_C).where(accepted_C, state.density),
        )
        log_alpha_C = log_p_CN[:, 1:].logsumexp(1)
        return moved, Info(proposed_CM=proposed_CM, log_alpha_C=log_alpha_C, accepted_C=accepted_C)


@dataclass(frozen=True, kw_only=True)
class Informed:
    """Move one site to another bin, chosen among all by the square root of conditional and anchor ratio."""

    def __call__(self, state: State, target: Target, streams: Streams) -> tuple[State, Info]:
        """Move every chain once."""
        n_chains, n_sites = state.x_CM.shape
        n_bins = target.model.n_bins
        uniform = streams.uniform(2)
        now_CMK = state.conditional_CMK
        if now_CMK is None:
            now_CMK = self._conditionals(state.x_CM, target)
        forward_CK = self._log_proposal(state.x_CM, state.density, target, conditional_CMK=now_CMK)
        move_C1 = categorical(forward_CK[:, None], uniform[:, :1])
        site_C1 = move_C1 // n_bins
        proposed_CM = state.x_CM.scatter(1, site_C1, move_C1 % n_bins)
        then_CMK = self._conditionals(proposed_CM, target)
        if target.part == "pseudo" and then_CMK is not None:  # they are the target's own terms
            term_CM = then_CMK.gather(2, proposed_CM[..., None])[..., 0] * target.free_CM
            density = target.of_terms(proposed_CM, term_CM)
        else:
            density = target.moved(proposed_CM, from_CM=state.x_CM, density=state.density)
        backward_CK = self._log_proposal(proposed_CM, density, target, conditional_CMK=then_CMK)
        back_C1 = site_C1 * n_bins + state.x_CM.gather(1, site_C1)
        log_ratio_C = (
            density.log_density_C
            - state.density.log_density_C
            + backward_CK.gather(1, back_C1)[:, 0]
            - forward_CK.gather(1, move_C1)[:, 0]
        )
        moved, info = _decide(state, proposed_CM, density, log_ratio_C, uniform[:, 1])
        if now_CMK is not None and then_CMK is not None:
            known_CMK = torch.where(info.accepted_C[:, None, None], then_CMK, now_CMK)
            moved = replace(moved, conditional_CMK=known_CMK)
        return moved, info

    def _conditionals(self, x_CM: Tensor, target: Target) -> Tensor | None:
        """Return log p(. | all other sites); None where the target knows no model."""
        return leave_one_out_log_prob(target.model, x_CM) if target.part != "none" and target.weight else None

    def _log_proposal(
        self, x_CM: Tensor, density: Density, target: Target, *, conditional_CMK: Tensor | None
    ) -> Tensor:
        """Return normalised log probabilities of all moves, (C, M * K)."""
        worth_CMK = torch.zeros((*x_CM.shape, target.model.n_bins), dtype=torch.float64)
        if conditional_CMK is not None:
            log_p_CMK = conditional_CMK.double()
            worth_CMK = target.weight * (log_p_CMK - log_p_CMK.gather(2, x_CM[..., None]))
        if target.anchors is not None and density.distance_CA is not None and target.anchors.distance != "histogram":
            cost_AMK = target.anchors.site_costs(target.model.n_bins)
            now_CAM1 = cost_AMK.expand(len(x_CM), -1, -1, -1).gather(
                3, x_CM[:, None, :, None].expand(-1, len(cost_AMK), -1, 1)
            )
            energy_CA = target.anchors.kappa * density.distance_CA
            after_CAMK = energy_CA[:, :, None, None] + cost_AMK - now_CAM1
            worth_CMK = worth_CMK + (-after_CAMK).logsumexp(1) - (-energy_CA).logsumexp(1)[:, None, None]
        staying_CMK = torch.zeros_like(worth_CMK, dtype=torch.bool).scatter_(2, x_CM[..., None], value=True)
        barred_CMK = staying_CMK | ~target.free_CM[..., None]
        return (worth_CMK / 2).masked_fill(barred_CMK, float("-inf")).flatten(1).log_softmax(1)


@dataclass(frozen=True, kw_only=True)
class TiltedGibbs:
    """Choose an anchor by its closeness, then draw a block from conditional ** weight * exp(-cost of that anchor)."""

    size: int

    def __call__(self, state: State, target: Target, streams: Streams) -> tuple[State, Info]:
        """Move every chain once; nothing is ever rejected."""
        n_sites = state.x_CM.shape[1]
        uniform = streams.uniform(n_sites + self.size + 1)
        block_CS = _choose_block(target, self.size, uniform[:, :n_sites])
        log_p_CSK = target.weight * block_log_prob(target.model, state.x_CM, block_CS).double()
        if target.anchors is not None and state.density.distance_CA is not None:
            closeness_CA = (-target.anchors.kappa * state.density.distance_CA).log_softmax(1)
            anchor_C1 = categorical(closeness_CA[:, None], uniform[:, -1:])
            cost_AMK = target.anchors.site_costs(target.model.n_bins)
            log_p_CSK = log_p_CSK - cost_AMK[anchor_C1, block_CS]
        new_CS = categorical(log_p_CSK.log_softmax(-1), uniform[:, n_sites:-1])
        proposed_CM = state.x_CM.scatter(1, block_CS, new_CS)
        density = target.moved(proposed_CM, from_CM=state.x_CM, density=state.density)
        moved = State(x_CM=proposed_CM, density=density)
        ones = torch.ones(len(proposed_CM), dtype=torch.bool)
        return moved, Info(
            proposed_CM=proposed_CM, log_alpha_C=torch.zeros(len(ones), dtype=torch.float64), accepted_C=ones
        )
