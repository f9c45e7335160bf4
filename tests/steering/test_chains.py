"""Whole runs: schedule, record, adaptation, pairing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellxpert.steering.anchors import Anchors
from cellxpert.steering.chains import Schedule, run
from cellxpert.steering.kernels import BlockMH, MultipleTry, SuffixRedraw
from cellxpert.steering.streams import Streams
from cellxpert.steering.targets import Target

from .conftest import STATES, code
from .enumeration import chi_square, log_target, passes

ORDER = [2, 0, 3, 1]
ANCHORS = [[0, 1, 2, 0], [2, 2, 0, 1]]


def _target(model, n_chains, *, kappa=0.5, part="joint"):
    anchors = Anchors(bin_AM=torch.tensor(ANCHORS), kappa=kappa) if kappa else None
    return Target(model=model, order_CM=torch.tensor([ORDER]).expand(n_chains, -1), anchors=anchors, part=part)


def _law(model, *, kappa=0.5, part="joint"):
    return np.exp(
        log_target(model, STATES.tolist(), ORDER, part=part, weight=1.0, anchors=ANCHORS if kappa else (), kappa=kappa)
    )


@pytest.mark.parametrize("kernel", [BlockMH(size=2), SuffixRedraw(), MultipleTry(size=2, n_tries=4)])
def test_long_runs_forget_where_they_began(models, kernel):
    """Test 3: all chains start from the least likely state; burn-in anneals and adapts."""
    model = models["inconsistent"]
    law = _law(model)

    def p_value(seed, factor):
        n = 5000 * factor
        x = STATES[int(law.argmin())].expand(n, -1)
        schedule = Schedule(n_steps=40, burn_in=20, thin=40)
        trace = run(kernel, _target(model, n), x, schedule=schedule, streams=Streams(seed, n))
        return chi_square(torch.bincount(code(trace.state.x_CM), minlength=81), n * law)

    assert passes(p_value)


def test_annealed_start_ends_in_the_whole_target(models):
    """After an annealed burn-in the energy of every state is that of the target, not of a share of it."""
    target = _target(models["inconsistent"], 50)
    for burn_in in (0, 1, 2, 7):
        schedule = Schedule(n_steps=1, burn_in=burn_in)
        trace = run(BlockMH(size=1), target, STATES[:50], schedule=schedule, streams=Streams(0, 50))
        torch.testing.assert_close(
            trace.state.density.log_density_C, target(trace.state.x_CM).log_density_C, rtol=0, atol=1e-12
        )


def test_record(models):
    target = _target(models["inconsistent"], 81)
    seen = []
    trace = run(
        BlockMH(size=2),
        target,
        STATES,
        schedule=Schedule(n_steps=10, burn_in=4, thin=3, adapt=False),
        streams=Streams(0, 81),
        on_step=lambda step, state: seen.append((step, state.x_CM)),
    )
    assert [step for step, _ in seen] == list(range(14))
    assert trace.x_RCM.dtype == torch.uint8
    assert torch.equal(trace.x_RCM.long(), torch.stack([seen[t][1] for t in (6, 9, 12)]))
    assert torch.equal(trace.state.x_CM, seen[-1][1])
    moved = torch.zeros(81, 4, dtype=torch.bool)
    for _, x in seen:
        moved |= x != STATES
    assert torch.equal(trace.moved_CM, moved)
    assert trace.log_density_TC.shape == trace.log_alpha_TC.shape == trace.accepted_TC.shape == (14, 81)
    before, after = trace.acceptance
    assert before == pytest.approx(trace.accepted_TC[:4].double().mean().item())
    assert after == pytest.approx(trace.accepted_TC[4:].double().mean().item())
    assert trace.size == 2
    assert (trace.log_alpha_TC <= 0).all()


class Independent:
    """Sites that know nothing of one another: a block of any size is accepted as often as its sites together."""

    n_sites, n_bins = 40, 3

    def log_prob(self, query_CQ, x_CM, visible_CQM):
        return torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log().expand(*query_CQ.shape, 3)


def test_block_size_adapts_to_the_acceptance_aimed_at_and_is_then_frozen():
    order = torch.arange(40).expand(64, -1)
    target, x = Target(model=Independent(), order_CM=order), torch.zeros(64, 40, dtype=torch.int64)
    for start in (1, 40):
        trace = run(
            BlockMH(size=start, temperature=4.0),
            target,
            x,
            schedule=Schedule(n_steps=60, burn_in=150),
            streams=Streams(0, 64),
        )
        assert 0.2 < trace.acceptance[1] < 0.4
        assert 2 < trace.size < 39
    fixed = run(
        BlockMH(size=3), target, x, schedule=Schedule(n_steps=2, burn_in=9, adapt=False), streams=Streams(0, 64)
    )
    assert fixed.size == 3
    assert run(SuffixRedraw(), target, x, schedule=Schedule(n_steps=1, burn_in=3), streams=Streams(0, 64)).size is None


def test_an_empty_perturbation_has_no_effect_at_all(models):
    """The paired null: same seed, same target, same chains, bit for bit."""
    target, schedule = _target(models["inconsistent"], 81), Schedule(n_steps=20, burn_in=10)
    one, two, other = (
        run(BlockMH(size=2), target, STATES, schedule=schedule, streams=Streams(seed, 81)).x_RCM for seed in (7, 7, 8)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_chain_is_the_same_in_any_company(models):
    """Test 17 at the level of chains: alone, or among 81."""
    schedule = Schedule(n_steps=30, burn_in=0)
    together = run(
        BlockMH(size=2), _target(models["inconsistent"], 81), STATES, schedule=schedule, streams=Streams(3, 81)
    )
    for c in (0, 44, 80):
        alone = run(
            BlockMH(size=2),
            _target(models["inconsistent"], 1),
            STATES[c : c + 1],
            schedule=schedule,
            streams=Streams(3, 1, first=c),
        )
        assert torch.equal(alone.x_RCM[:, 0], together.x_RCM[:, c])


def test_chains_do_not_share_their_numbers(models):
    """Test 15: from one start, the variance over chains of log pi is that of the target."""
    model, n = models["inconsistent"], 4000
    law = _law(model, kappa=0.0)
    trace = run(
        BlockMH(size=2),
        _target(model, n, kappa=0.0),
        STATES[40].expand(n, -1),
        schedule=Schedule(n_steps=60),
        streams=Streams(1, n),
    )
    log_pi = np.log(law)
    exact = (law * log_pi**2).sum() - (law * log_pi).sum() ** 2
    found = torch.from_numpy(log_pi)[code(trace.state.x_CM)].var().item()
    assert 0.85 < found / exact < 1.15
    shared = run(
        BlockMH(size=2),
        _target(model, n, kappa=0.0),
        STATES[40].expand(n, -1),
        schedule=Schedule(n_steps=60),
        streams=_Shared(1, n),
    )
    assert torch.from_numpy(log_pi)[code(shared.state.x_CM)].var().item() < 0.85 * exact


class _Shared(Streams):
    """The mutant: every chain takes the first one's numbers."""

    def uniform(self, n):
        return super().uniform(n)[:1].expand(self.n_chains, -1).clone()


def test_ranks_of_forward_and_backward_runs_are_even(models):
    """Test 4 (Gandy & Scott 2020): in a run from the target, the middle state has any rank among all, whatever the mixing."""
    model = models["inconsistent"]
    law = _law(model, part="pseudo")

    def p_value(seed, factor):
        n = 4000 * factor
        rng = np.random.default_rng(seed)
        x = STATES[rng.choice(81, n, p=law)]
        forward = rng.integers(0, 20, n)
        values = np.zeros((20, n))
        log_pi = np.log(law)
        # a reversible kernel runs backward as it runs forward: two runs from the middle state
        for sign, offset in ((1, 0), (-1, 1000)):
            trace = run(
                BlockMH(size=2),
                _target(model, n, part="pseudo"),
                x,
                schedule=Schedule(n_steps=19),
                streams=Streams(seed + offset, n),
            )
            ends = np.stack([log_pi[code(s.long()).numpy()] for s in trace.x_RCM])
            for step in range(1, 20):
                place = forward + sign * step
                inside = (place >= 0) & (place < 20)
                values[place[inside], np.flatnonzero(inside)] = ends[step - 1, inside]
        middle = log_pi[code(x).numpy()]
        values[forward, np.arange(n)] = middle
        ties = rng.random((20, n))
        own = ties[forward, np.arange(n)]
        rank = ((values < middle) | ((values == middle) & (ties < own))).sum(axis=0)
        return chi_square(np.bincount(rank, minlength=20), np.full(20, n / 20))

    assert passes(p_value)
