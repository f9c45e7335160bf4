"""Many chains, from start to record.

Shape suffixes: C chains, M sites, T steps, R recorded states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cellxpert.steering.kernels import BlockMH, Kernel, MultipleTry, State, init
from cellxpert.steering.streams import Streams
from cellxpert.steering.targets import Target

__all__ = ["Schedule", "Trace", "run"]

AIM = 0.3
"""Acceptance that block sizes adapt to; the optimum of size times acceptance is flat around a quarter (Roberts et al. 1997)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a run.

    Parameters
    ----------
    n_steps
        Steps that are kept, after the burn-in.
    burn_in
        Steps before them. In these the block size adapts, and in their first half the anchors' strength rises from 0
        (an annealed start); both are fixed afterwards.
    thin
        One state is recorded every so many kept steps.
    anneal
        Whether the anchors' strength rises.
    adapt
        Whether block sizes adapt.
    """

    n_steps: int
    burn_in: int = 0
    thin: int = 1
    anneal: bool = True
    adapt: bool = True

    def __post_init__(self) -> None:
        assert self.n_steps >= 1
        assert self.burn_in >= 0
        assert self.thin >= 1


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a run leaves behind."""

    state: State
    """Where the chains ended."""
    x_RCM: Tensor
    """Recorded states of the kept steps (uint8)."""
    log_density_TC: Tensor
    """Target at every step, burn-in first (float64); while the start is annealed, that of the annealed target."""
    log_alpha_TC: Tensor
    """Log acceptance probability of every step (float64)."""
    accepted_TC: Tensor
    """Accepted proposals (bool)."""
    moved_CM: Tensor
    """Sites that left their starting bin at any time (bool)."""
    burn_in: int
    """Steps before those that are kept."""
    size: int | None
    """Block size of the kept steps; None for kernels that do not adapt it."""

    @property
    def acceptance(self) -> tuple[float, float]:
        """Return mean acceptance during the burn-in (NaN without one) and after it."""
        accepted = self.accepted_TC.double()
        return accepted[: self.burn_in].mean().item(), accepted[self.burn_in :].mean().item()


def run(
    kernel: Kernel,
    target: Target,
    x_CM: Tensor,
    *,
    schedule: Schedule,
    streams: Streams,
    on_step: Callable[[int, State], None] | None = None,
) -> Trace:
    """Run chains from given states.

    Parameters
    ----------
    kernel
        The move.
    target
        What the kept steps leave invariant.
    x_CM
        Starting states (int64).
    schedule
        Numbers of steps.
    streams
        Random numbers; the same seed with another target gives the paired run.
    on_step
        Called after every step with its number and the state.
    """
    state = init(x_CM, target)
    start_CM, moved_CM = x_CM.clone(), torch.zeros_like(x_CM, dtype=torch.bool)
    log_density, log_alpha, accepted, recorded = [], [], [], []
    log_size = None if (size := _size(kernel)) is None else math.log(size)
    half = schedule.burn_in // 2
    for step in range(schedule.burn_in + schedule.n_steps):
        current = target
        if schedule.anneal and step < half:
            current = target.scaled((step + 1) / (half + 1))
        if schedule.anneal and step <= half:  # the energy has changed: what is known of the state is weighed anew
            known = state.density
            density = current.combine(known.log_model_C, known.distance_CA, term_CM=known.term_CM)
            state = replace(state, density=density)
        state, info = kernel(state, current, streams)
        moved_CM |= state.x_CM != start_CM
        log_density.append(state.density.log_density_C)
        log_alpha.append(info.log_alpha_C)
        accepted.append(info.accepted_C)
        if log_size is not None and schedule.adapt and step < schedule.burn_in:
            log_size, kernel = _adapted(kernel, log_size, info.log_alpha_C, step=step, target=target)
        if step >= schedule.burn_in and (step - schedule.burn_in + 1) % schedule.thin == 0:
            recorded.append(state.x_CM.to(torch.uint8))
        if on_step is not None:
            on_step(step, state)
    return Trace(
        state=state,
        x_RCM=torch.stack(recorded) if recorded else state.x_CM.new_empty((0, *x_CM.shape), dtype=torch.uint8),
        log_density_TC=torch.stack(log_density),
        log_alpha_TC=torch.stack(log_alpha),
        accepted_TC=torch.stack(accepted),
        moved_CM=moved_CM,
        burn_in=schedule.burn_in,
        size=_size(kernel),
    )


def _size(kernel: Kernel) -> int | None:
    return kernel.size if isinstance(kernel, BlockMH | MultipleTry) else None


def _adapted(
    kernel: Kernel, log_size: float, log_alpha_C: Tensor, *, step: int, target: Target
) -> tuple[float, Kernel]:
    """Move the log of the block size towards the acceptance aimed at, by steps that shrink (Andrieu & Thoms 2008)."""
    assert isinstance(kernel, BlockMH | MultipleTry)
    n_free = target.order_CM.shape[1] - target.n_clamped
    log_size += (log_alpha_C.exp().mean().item() - AIM) / (1 + step) ** 0.6 * 2
    log_size = min(max(log_size, 0.0), math.log(n_free))
    return log_size, replace(kernel, size=round(math.exp(log_size)))
