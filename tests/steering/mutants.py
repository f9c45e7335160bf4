"""Samplers that are wrong, each in one way, and the same sampler without a flaw.

They use what any kernel may use: the target, its model, and the streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from cellxpert.steering import Info, State

from .checks import Numbers


class Block:
    """Metropolis-Hastings with the masked conditionals of a random block, written once more."""

    def __init__(self, flaw=None, *, size=1, temperature=1.0):
        self.flaw, self.size, self.temperature = flaw, size, temperature
        self._seen, self._steps = None, 0

    def __call__(self, state, target, streams):
        if self.flaw != "stale context" or self._steps % 5 == 0:
            self._seen = state.x_CM
        moved, info = self._once(state, target, streams)
        if self.flaw == "rejections dropped":
            for _ in range(20):
                if info.accepted_C.all():
                    break
                again, more = self._once(state, target, streams)
                left = ~info.accepted_C
                moved = State(
                    x_CM=torch.where(left[:, None], again.x_CM, moved.x_CM),
                    density=again.density.where(left, moved.density),
                )
                info = dataclasses.replace(info, accepted_C=info.accepted_C | more.accepted_C)
        self._steps += 1
        return moved, info

    def _once(self, state, target, streams):
        x, n_sites = state.x_CM, state.x_CM.shape[1]
        uniform = streams.uniform(n_sites + self.size + 2)
        block = self._block(target, uniform[:, :n_sites], uniform[:, -1])
        log_p = self._log_conditionals(target.model, self._seen, block)
        log_q = (log_p / self.temperature).log_softmax(-1)
        old = x.gather(1, block)
        new = self._drawn(self._proposal(log_q, old), uniform[:, n_sites:-2])
        if self.flaw == "neighbouring bin":
            new = (new + 1) % log_q.shape[-1]
        proposed = x.scatter(1, block, new)
        density = target(proposed)
        log_ratio = density.log_density_C - state.density.log_density_C + self._correction(log_q, log_p, old, new)
        if self.flaw == "block taken for a site":  # its conditionals stand for the law, as if they were one conditional
            log_ratio = self._correction(log_q, log_p, old, new) - self._correction(log_p, log_p, old, new)
        if self.flaw == "always accepted":
            log_ratio = torch.zeros_like(log_ratio)
        deciding = uniform[:, n_sites] if self.flaw == "shared number" else uniform[:, -2]
        accepted = deciding.log() < log_ratio
        kept = state.density if self.flaw == "stale energy" else density.where(accepted, state.density)
        moved = State(x_CM=torch.where(accepted[:, None], proposed, x), density=kept)
        return moved, Info(proposed_CM=proposed, log_alpha_C=log_ratio.clamp(max=0), accepted_C=accepted)

    def _block(self, target, uniform, leak):
        fixed = ~target.free_CM
        if self.flaw == "clamp ignored":
            fixed = torch.zeros_like(fixed)
        elif self.flaw == "leaking clamp":
            fixed = fixed & (leak >= 0.05)[:, None]
        return uniform.masked_fill(fixed, 2.0).argsort(1)[:, : self.size]

    @staticmethod
    def _log_conditionals(model, x, block):
        outside = torch.ones_like(x, dtype=torch.bool).scatter_(1, block, False)
        return model.log_prob(block, x, outside[:, None].expand(-1, block.shape[1], -1))

    def _proposal(self, log_q, old):
        """What is drawn from, which may not be what is divided by."""
        if self.flaw == "current excluded":
            return log_q.scatter(2, old[..., None], -torch.inf).log_softmax(-1)
        if self.flaw == "rounded for drawing":
            return ((log_q * 2).round() / 2).log_softmax(-1)
        if self.flaw in {"top two, uncorrected", "top two, corrected"}:
            return self._top(log_q)
        if self.flaw == "most likely bin":
            return torch.zeros_like(log_q).masked_fill_(log_q < log_q.max(-1, keepdim=True).values, -torch.inf)
        return log_q

    @staticmethod
    def _top(log_q):
        return log_q.masked_fill(log_q == log_q.min(-1, keepdim=True).values, -torch.inf).log_softmax(-1)

    def _drawn(self, log_q, uniform):
        cumulative = log_q.exp().cumsum(-1)
        drawn = (cumulative <= (uniform * cumulative[..., -1])[..., None]).sum(-1)
        return drawn.clamp(max=log_q.shape[-1] - 1)

    def _correction(self, log_q, log_p, old, new):
        if self.flaw == "no Hastings ratio":
            return 0.0
        if self.flaw == "wrong temperature":
            log_q = log_p
        if self.flaw == "top two, corrected":
            log_q = self._top(log_q)
        ratio = (log_q.gather(2, old[..., None]) - log_q.gather(2, new[..., None]))[..., 0].sum(1)
        return -ratio if self.flaw == "Hastings ratio inverted" else ratio


class SharedNumbers(Numbers):
    """Every chain takes the first one's numbers."""

    def uniform(self, n):
        return super().uniform(n)[:1].expand(self.n_chains, -1).clone()


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A flaw, and the tests that must see it on a consistent and on an inconsistent model (numbers of ``checks.py``).

    1t is test 1 at temperature 0.5, 1c that of four steps with clamped sites.
    """

    consistent: str
    inconsistent: str
    size: int = 1
    streams: Callable = Numbers
    n_long: int = 1000
    """Chains of test 3."""
    on_network: str = ""
    """The tests that must see it on the network, where they are not those of the other inconsistent model."""

    def seen_by(self, kind):
        """Return the tests that must see it on a kind of model."""
        told = {"consistent": self.consistent, "network": self.on_network or self.inconsistent}
        return told.get(kind, self.inconsistent).split()


MUTANTS = {
    "no Hastings ratio": Mutant("1 2 3 4 5 13", "1 2 3 4 5"),
    "Hastings ratio inverted": Mutant("1 2 3 4 5 13", "1 2 3 4 5"),
    "current excluded": Mutant("1 2 3 4 5 13", "1 2 3 4 5"),
    "most likely bin": Mutant("1 2 3 4 5 13", "1 2 3 4 5"),
    "neighbouring bin": Mutant("1 2 3 4 5 13", "1 2 3 4 5"),
    "top two, uncorrected": Mutant("1 2 3 4 5 13", "1 2 3 4 5"),
    "block taken for a site": Mutant("1 2 3 4 5", "1 2 3 4 5 13", size=2, n_long=2000),
    "always accepted": Mutant("1t", "1 2 3 4 5 13"),
    "shared number": Mutant("1t", "1 2 3 4 5 13"),
    "rejections dropped": Mutant("1t", "1 2 1c", on_network="1c"),
    "wrong temperature": Mutant("1t", "1t"),
    "stale energy": Mutant("1c 4", "1c 3 4 13"),
    "stale context": Mutant("1c 5", "1c 5"),
    "leaking clamp": Mutant("10 13", "10 13"),
    "clamp ignored": Mutant("10 1c 13", "10 1c 13"),
    "rounded for drawing": Mutant("1 2 3 5", "1 2 1c", n_long=8000),
    "top two, corrected": Mutant("3 13", "3 13"),
    "numbers of the first chain": Mutant("1 2 3 15", "1 2 3 15", streams=SharedNumbers),
}
