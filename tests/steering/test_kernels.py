"""Every kernel against its transition matrix by plain loops, and the matrix against the target it is to leave invariant."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from cellxpert.steering import kernels
from cellxpert.steering.anchors import Anchors
from cellxpert.steering.conditionals import causal_terms, leave_one_out_log_prob, ranks
from cellxpert.steering.kernels import BlockMH, Informed, MultipleTry, SuffixRedraw, TiltedGibbs, ancestral, init
from cellxpert.steering.streams import Streams
from cellxpert.steering.targets import Density, Target

from .conftest import STATES, Table, all_codes, code, joint_of
from .enumeration import (
    block_matrix,
    chi_square,
    informed_matrix,
    log_conditional,
    log_target,
    passes,
    suffix_matrix,
    tries_matrix,
)

ORDER = [2, 0, 3, 1]
ANCHORS = [[0, 1, 2, 0], [2, 2, 0, 1]]
LIST = STATES.tolist()
KINDS = ["consistent", "inconsistent", "network"]

TARGETS = {
    "joint": {"part": "joint", "weight": 1.0, "kappa": 0.0},
    "joint, anchored": {"part": "joint", "weight": 1.0, "kappa": 0.5},
    "joint, weight 0.7, anchored": {"part": "joint", "weight": 0.7, "kappa": 0.5},
    "pseudo, anchored": {"part": "pseudo", "weight": 1.0, "kappa": 0.5},
    "anchors alone": {"part": "none", "weight": 0.0, "kappa": 0.5},
}
KERNELS = {
    "block of 1": BlockMH(size=1, temperature=1.0),
    "block of 2, hot": BlockMH(size=2, temperature=2.0),
    "block of 3, cold, mixed": BlockMH(size=3, temperature=0.5, mix=0.2),
    "whole block": BlockMH(size=4, temperature=2.0),
    "multiple try": MultipleTry(size=2, n_tries=4),
    "informed": Informed(),
    "suffix": SuffixRedraw(),
}


def stated(model, name, n_rows, *, n_clamped=0):
    """Return a target for so many chains, and its log density over all states."""
    settings = TARGETS[name]
    anchors = Anchors(bin_AM=torch.tensor(ANCHORS), kappa=settings["kappa"]) if settings["kappa"] else None
    target = Target(
        model=model,
        order_CM=torch.tensor([ORDER]).expand(n_rows, -1),
        n_clamped=n_clamped,
        part=settings["part"],
        weight=settings["weight"],
        anchors=anchors,
    )
    log_pi = log_target(
        model,
        LIST,
        ORDER,
        part=settings["part"],
        weight=settings["weight"],
        anchors=ANCHORS if settings["kappa"] else (),
        kappa=settings["kappa"],
        clamped=n_clamped,
    )
    return target, log_pi


def step(kernel, target, x, *, seed, n_steps=1):
    state, streams = init(x, target), Streams(seed, len(x), buffer=1)
    info = None
    for _ in range(n_steps):
        state, info = kernel(state, target, streams)
    return state, info


def drawn_from(log_pi, n, seed):
    """Independent draws by enumeration."""
    return STATES[
        torch.multinomial(
            torch.from_numpy(np.exp(log_pi)), n, replacement=True, generator=torch.Generator().manual_seed(seed)
        )
    ]


def stationarity(kernel, name, model, *, n=20_000, n_steps=1, n_clamped=0):
    """Test 1: draws from the target have its law after a step. Returns a function of seed and factor."""

    def p_value(seed, factor):
        rows = n * factor
        target, log_pi = stated(model, name, rows, n_clamped=n_clamped)
        if n_clamped:  # the law of the free sites, given one value of the clamped ones
            same = [all(x[g] == LIST[50][g] for g in ORDER[:n_clamped]) for x in LIST]
            log_pi = np.where(same, log_pi, -np.inf)
            log_pi = log_pi - np.logaddexp.reduce(log_pi)
        state, _ = step(kernel, target, drawn_from(log_pi, rows, seed), seed=seed + 100, n_steps=n_steps)
        counts = torch.bincount(code(state.x_CM), minlength=81)
        keep = np.exp(log_pi) > 0
        assert not counts[torch.from_numpy(~keep)].any()
        return chi_square(counts[torch.from_numpy(keep)], rows * np.exp(log_pi)[keep])

    return p_value


@pytest.mark.parametrize(
    ("kind", "name"), [(k, name) for k in KINDS for name in TARGETS if k != "network" or ", anchored" in name]
)
@pytest.mark.parametrize("move", KERNELS)
def test_one_step_leaves_the_target_invariant(models, kind, name, move):
    if move == "suffix" and not name.startswith("joint"):
        return
    assert passes(stationarity(KERNELS[move], name, models[kind]))


@pytest.mark.parametrize("move", KERNELS)
def test_clamped_sites_never_change_and_the_rest_has_the_conditional_law(models, move):
    kernel = KERNELS[move]
    if "size" in {f.name for f in dataclasses.fields(kernel)}:
        kernel = dataclasses.replace(kernel, size=min(kernel.size, 2))
    assert passes(stationarity(kernel, "joint, anchored", models["inconsistent"], n_steps=4, n_clamped=2))


def matrix_of(move, name, model):
    target, log_pi = stated(model, name, 1)
    kernel = KERNELS[move]
    if move == "suffix":
        log_joint = log_target(model, LIST, ORDER, part="joint", weight=1.0)
        return kernel, log_pi, suffix_matrix(model, LIST, log_pi, ORDER, n_clamped=0, log_joint=log_joint)
    if move == "informed":
        log_anchors = log_target(
            model, LIST, ORDER, part="none", weight=0.0, anchors=ANCHORS, kappa=target.anchors.kappa
        )
        weight = target.weight
        return (
            kernel,
            log_pi,
            informed_matrix(model, LIST, log_pi, weight=weight, log_anchors=log_anchors, free=range(4)),
        )
    block = {"size": kernel.size, "tau": kernel.temperature, "free": range(4)}
    if move == "multiple try":
        return kernel, log_pi, tries_matrix(model, LIST, log_pi, n_tries=kernel.n_tries, **block)
    return kernel, log_pi, block_matrix(model, LIST, log_pi, mix=kernel.mix, **block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["joint, weight 0.7, anchored", "pseudo, anchored"])
@pytest.mark.parametrize("move", KERNELS)
def test_the_matrix_is_in_detailed_balance_and_the_kernel_is_the_matrix(models, kind, name, move):
    if move == "suffix" and not name.startswith("joint"):
        return
    kernel, log_pi, matrix = matrix_of(move, name, models[kind])
    pi = np.exp(log_pi)
    flow = pi[:, None] * matrix
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-12
    assert np.abs(flow - flow.T).max() < 1e-12
    assert np.abs(pi @ matrix - pi).max() < 1e-12
    values, vectors = np.linalg.eig(matrix.T)
    stationary = np.real(vectors[:, np.argmax(values.real)])
    assert np.abs(stationary / stationary.sum() - pi).max() < 1e-10

    starts = [3, 40, 77]

    def p_value(seed, factor):
        n = 4000 * factor
        target, _ = stated(models[kind], name, n * len(starts))
        state, _ = step(kernel, target, STATES[starts].repeat_interleave(n, dim=0), seed=seed)
        ends = code(state.x_CM).view(len(starts), n)
        smallest = 1.0
        for row, start in zip(ends, starts, strict=True):
            counts, possible = np.bincount(row, minlength=81), matrix[start] > 0
            assert not counts[~possible].any()
            smallest = min(smallest, chi_square(counts[possible], n * matrix[start][possible]))
        return smallest * len(starts)

    assert passes(p_value)


def test_published_rule_is_its_formula(models):
    """log alpha = -(energy difference) + (weight - 1 / tau) * (difference of the block's log conditionals)."""
    model = models["inconsistent"]
    target, _ = stated(model, "joint, weight 0.7, anchored", 81)
    kernel = BlockMH(size=2, temperature=2.0, rule="local")
    _, info = step(kernel, target, STATES, seed=0)
    anchors = target.anchors
    for x, y, log_alpha in zip(LIST, info.proposed_CM.tolist(), info.log_alpha_C.tolist(), strict=True):
        block = [g for g in range(4) if x[g] != y[g]]
        if len(block) == 2:
            outside = [g for g in range(4) if g not in block]
            gain = sum(
                log_conditional(model, g, x, outside)[y[g]] - log_conditional(model, g, x, outside)[x[g]] for g in block
            )
            energy = [anchors.log_weight(anchors.distances(torch.tensor([s]))).item() for s in (x, y)]
            assert log_alpha == pytest.approx(min(0.0, energy[1] - energy[0] + (0.7 - 0.5) * gain), abs=1e-10)


def test_published_rule_targets_what_it_says_only_where_conditionals_agree(models):
    """Fact B of the reference: with weight 1 and single sites exact for a consistent model, and not for another."""
    for kind, exact in (("consistent", True), ("inconsistent", False), ("network", False)):
        model = models[kind]
        _, log_pi = stated(model, "joint, anchored", 1)
        log_energy = np.array(
            [
                Anchors(bin_AM=torch.tensor(ANCHORS), kappa=0.5)
                .log_weight(Anchors(bin_AM=torch.tensor(ANCHORS), kappa=0.5).distances(torch.tensor([x])))
                .item()
                for x in LIST
            ]
        )
        at = {tuple(x): i for i, x in enumerate(LIST)}

        def local(x, y, block, outside, model=model, log_energy=log_energy, at=at):
            gain = sum(
                log_conditional(model, g, x, outside)[y[g]] - log_conditional(model, g, x, outside)[x[g]] for g in block
            )
            return float(np.exp(log_energy[at[tuple(y)]] - log_energy[at[tuple(x)]] + gain))

        matrix = block_matrix(model, LIST, log_pi, size=1, tau=2.0, mix=0.0, free=range(4), local=local)
        residual = np.abs(np.exp(log_pi) @ matrix - np.exp(log_pi)).max()
        assert (residual < 1e-12) == exact


def test_exact_conditionals_are_always_accepted(models):
    """Test 7: single site, temperature 1, consistent joint."""
    target, _ = stated(models["consistent"], "joint", 8100)
    for kernel in (BlockMH(size=1, temperature=1.0), SuffixRedraw()):
        _, info = step(kernel, target, STATES.repeat(100, 1), seed=0)
        assert info.log_alpha_C.abs().max() < 1e-9
        assert info.accepted_C.all()


@pytest.mark.parametrize("kind", ["inconsistent", "network"])
def test_suffix_under_the_joint_is_decided_by_the_anchors_alone(models, kind):
    model = models[kind]
    target, _ = stated(model, "joint, anchored", 810)
    x = STATES.repeat(10, 1)
    _, info = step(SuffixRedraw(), target, x, seed=0)
    energy = [target.anchors.log_weight(target.anchors.distances(s)) for s in (x, info.proposed_CM)]
    torch.testing.assert_close(info.log_alpha_C, (energy[1] - energy[0]).clamp(max=0), rtol=0, atol=1e-9)
    target, _ = stated(model, "joint", 810)
    assert step(SuffixRedraw(), target, x, seed=0)[1].accepted_C.all()


def test_a_bounded_suffix_leaves_the_head_alone(models):
    target, _ = stated(models["inconsistent"], "joint", 810)
    x = STATES.repeat(10, 1)
    state, _ = step(SuffixRedraw(longest=2), target, x, seed=0, n_steps=5)
    assert torch.equal(state.x_CM[:, ORDER[:2]], x[:, ORDER[:2]])
    assert not torch.equal(state.x_CM[:, ORDER[2:]], x[:, ORDER[2:]])


def test_ancestral_draws_are_independent_samples_of_the_joint(models):
    model = models["inconsistent"]

    def p_value(seed, factor):
        n = 20_000 * factor
        target, log_pi = stated(model, "joint", n)
        x = ancestral(torch.zeros(n, 4, dtype=torch.int64), target, Streams(seed, n, buffer=1))
        return chi_square(torch.bincount(code(x), minlength=81), n * np.exp(log_pi))

    assert passes(p_value)


def test_tilted_gibbs_is_exact_for_single_sites_of_a_consistent_model(models):
    kernel = TiltedGibbs(size=1)
    assert passes(stationarity(kernel, "joint, anchored", models["consistent"]))
    assert stationarity(TiltedGibbs(size=3), "joint, anchored", models["consistent"])(0, 1) < 1e-6  # blocks are not


@pytest.mark.parametrize(
    ("kind", "part"), [("consistent", "joint"), *itertools.product(KINDS[1:], ["joint", "pseudo"])]
)
def test_flat_and_cold_limits(models, kind, part):
    """Test 8, pi ** (1 / T) by scaling the weight: uniform proposals."""
    target = dataclasses.replace(stated(models[kind], "joint", 8100)[0], part=part)
    log_pi = log_target(models[kind], LIST, ORDER, part=part, weight=1.0)
    x, even = STATES.repeat(100, 1), BlockMH(size=1, temperature=1e12)
    _, info = step(even, dataclasses.replace(target, weight=1e-8), x, seed=0)
    assert info.accepted_C.all()
    _, info = step(even, dataclasses.replace(target, weight=1e8), x, seed=0)
    log_pi = torch.from_numpy(log_pi)
    worse = log_pi[code(info.proposed_CM)] < log_pi[code(x)] - 1e-12
    assert worse.any()
    assert not info.accepted_C[worse].any()


@pytest.mark.parametrize("kind", KINDS)
def test_flat_limit_with_conditional_proposals(models, kind):
    """Test 8b: acceptance against its enumerated expectation, in which of the law only the conditionals are left."""
    model = models[kind]
    target, _ = stated(model, "joint", 81_000)
    x = STATES.repeat(1000, 1)
    _, info = step(BlockMH(size=1, temperature=1.0), dataclasses.replace(target, weight=1e-8), x, seed=0)
    expected = []
    for s in LIST:
        for g in range(4):
            q = np.exp(log_conditional(model, g, s, [h for h in range(4) if h != g]))
            expected.append(sum(q[v] * min(1, q[s[g]] / q[v]) for v in range(3)))
    accepted = info.accepted_C.double()
    assert abs(accepted.mean() - np.mean(expected)) < 4 * accepted.std() / len(accepted) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_in_the_energy_changes_no_decision(models, kind):
    """Test 9: anchors whose energy is 1000 everywhere."""
    target, _ = stated(models[kind], "pseudo, anchored", 810)

    class Shifted(Anchors):
        def log_weight(self, distance_CA):
            return super().log_weight(distance_CA) - 1000

    shifted = dataclasses.replace(target, anchors=Shifted(bin_AM=target.anchors.bin_AM, kappa=target.anchors.kappa))
    x = STATES.repeat(10, 1)
    for kernel in KERNELS.values():
        if not isinstance(kernel, SuffixRedraw):
            assert torch.equal(
                step(kernel, target, x, seed=1, n_steps=5)[0].x_CM, step(kernel, shifted, x, seed=1, n_steps=5)[0].x_CM
            )


def test_detailed_balance_of_the_random_scan(models):
    """Test 2: Bowker's test of symmetry on pairs (x, x') with x from the target."""
    model = models["inconsistent"]

    def p_value(seed, factor):
        n = 100_000 * factor
        target, log_pi = stated(model, "pseudo, anchored", n)
        x = drawn_from(log_pi, n, seed)
        state, _ = step(BlockMH(size=2), target, x, seed=seed + 50)
        pairs = torch.zeros(81 * 81).index_add_(0, code(x) * 81 + code(state.x_CM), torch.ones(n)).view(81, 81).numpy()
        upper = np.triu_indices(81, 1)
        one, two = pairs[upper], pairs.T[upper]
        enough = one + two >= 10
        statistic = ((one - two)[enough] ** 2 / (one + two)[enough]).sum()
        return stats.chi2.sf(statistic, enough.sum())

    assert passes(p_value)


def test_independent_site_is_not_affected(models):
    """Test 11: a site that is independent of the others, clamped to either value, changes nothing else."""
    log_joint = joint_of(0).view(3, 3, 3, 3)
    first = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    rest = log_joint.logsumexp(0)
    log_p = torch.zeros((4, 256, 3), dtype=torch.float64)
    for at, seen in enumerate(all_codes()):
        for site in range(4):
            if site == 0:
                log_p[site, at] = first
            elif seen[site] == 3:
                shown = rest
                for s in (3, 2, 1):
                    if s != site:
                        shown = (
                            shown.select(s - 1, seen[s])[..., None].movedim(-1, s - 1)
                            if seen[s] < 3
                            else shown.logsumexp(s - 1, keepdim=True)
                        )
                log_p[site, at] = shown.flatten().log_softmax(0)
    n, means = 50_000, []
    for value in (0, 2):
        order = torch.tensor([[0, 2, 3, 1]]).expand(n, -1)
        target = Target(model=Table(log_p), order_CM=order, n_clamped=1)
        x = torch.zeros(n, 4, dtype=torch.int64)
        x[:, 0] = value
        means.append(ancestral(x, target, Streams(value, n, buffer=1))[:, 1].double())
    z = (means[0].mean() - means[1].mean()) / ((means[0].var() + means[1].var()) / n).sqrt()
    assert abs(z) < 4


# --- mutants: what is wrong must be caught ---------------------------------------------------------------------------


def _without_reverse(monkeypatch):
    monkeypatch.setattr(kernels, "_log_prob_of", lambda log_q, bins: torch.zeros(len(bins), dtype=torch.float64))


def _inverted(monkeypatch):
    real = kernels._log_prob_of
    monkeypatch.setattr(kernels, "_log_prob_of", lambda log_q, bins: -real(log_q, bins))


def _always_accept(monkeypatch):
    real = kernels._decide
    monkeypatch.setattr(kernels, "_decide", lambda s, p, d, r, u: real(s, p, d, torch.zeros_like(r), u))


def _shared_number(monkeypatch):
    """The number that decides also drew the first site's bin."""
    real = Streams.uniform

    def shared(self, n):
        drawn = real(self, n)
        drawn[:, -1] = drawn[:, 4] if n > 5 else drawn[:, 0]
        return drawn

    monkeypatch.setattr(Streams, "uniform", shared)


def _stale_energy(monkeypatch):
    real = kernels._decide

    def stale(state, proposed, density, ratio, uniform):
        moved, info = real(state, proposed, density, ratio, uniform)
        return kernels.State(x_CM=moved.x_CM, density=state.density), info

    monkeypatch.setattr(kernels, "_decide", stale)


def _leaky_clamp(monkeypatch):
    monkeypatch.setattr(kernels, "_choose_block", lambda target, size, u: u.argsort(dim=1)[:, :size])


def _rounded_proposal(monkeypatch):
    """Drawn from logits rounded to a half, divided by the exact ones: the precision mismatch."""
    real = kernels.categorical
    monkeypatch.setattr(kernels, "categorical", lambda log_p, u: real(((log_p * 2).round() / 2).log_softmax(-1), u))


def _top_two_drawn(monkeypatch):
    """The rarest bin is never drawn, and the ratio does not know."""
    real = kernels.categorical

    def top(log_p, uniform):
        lowest = log_p == log_p.min(-1, keepdim=True).values
        return real(log_p.masked_fill(lowest, -1e9).log_softmax(-1), uniform)

    monkeypatch.setattr(kernels, "categorical", top)


def _off_by_one(monkeypatch):
    real = kernels.categorical
    monkeypatch.setattr(kernels, "categorical", lambda log_p, u: (real(log_p, u) + 1) % log_p.shape[-1])


def _greedy(monkeypatch):
    monkeypatch.setattr(kernels, "categorical", lambda log_p, u: log_p.argmax(-1))


MUTANTS = {
    f.__name__.strip("_"): f
    for f in (
        _without_reverse,
        _inverted,
        _always_accept,
        _shared_number,
        _rounded_proposal,
        _top_two_drawn,
        _off_by_one,
        _greedy,
    )
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught_by_one_step(models, monkeypatch, mutant):
    if mutant == "rounded_proposal":  # the subtlest one: single sites of the joint show it best
        check = stationarity(BlockMH(size=1, temperature=1.0), "joint", models["inconsistent"], n=100_000)
    else:
        check = stationarity(BlockMH(size=2), "pseudo, anchored", models["inconsistent"], n=20_000)
    MUTANTS[mutant](monkeypatch)
    assert not passes(check)


def test_stale_energy_is_caught_by_two_steps(models, monkeypatch):
    """A cache that is not moved along with the state."""
    check = stationarity(BlockMH(size=2), "pseudo, anchored", models["inconsistent"], n_steps=4)
    assert passes(check)
    _stale_energy(monkeypatch)
    assert not passes(check)


def _kept(kernel, name, model, *, n_steps=6):
    """How far what is kept with the states is from what they are, after some steps from all states."""
    target, _ = stated(model, name, 81)
    state, _ = step(kernel, target, STATES, seed=0, n_steps=n_steps)
    assert not torch.equal(state.x_CM, STATES)
    fresh, known = target(state.x_CM), state.density
    pairs = [(known.log_density_C, fresh.log_density_C), (known.term_CM, fresh.term_CM)]
    if state.conditional_CMK is not None:
        pairs.append((state.conditional_CMK, leave_one_out_log_prob(model, state.x_CM)))
    return max((a - b).abs().max().item() for a, b in pairs if a is not None)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "anchors alone"])
@pytest.mark.parametrize("move", KERNELS)
def test_what_is_kept_is_moved_along_with_the_state(models, move, name):
    if move == "suffix" and not name.startswith("joint"):
        return
    assert _kept(KERNELS[move], name, models["inconsistent"]) < 1e-12


def _stale_terms(monkeypatch):
    """Accepted moves keep the terms of the state that they left."""
    real = Density.where
    monkeypatch.setattr(
        Density, "where", lambda self, mask, other: dataclasses.replace(real(self, mask, other), term_CM=other.term_CM)
    )


def _terms_of_the_rejected(monkeypatch):
    real = Density.where
    monkeypatch.setattr(
        Density, "where", lambda self, mask, other: dataclasses.replace(real(self, mask, other), term_CM=self.term_CM)
    )


def _stale_draws(monkeypatch):
    """A redrawn suffix keeps the terms of the values before."""
    real = kernels.draw_in_order

    def stale(model, x, order, *, start_C, uniform_CM):
        drawn = real(model, x, order, start_C=start_C, uniform_CM=uniform_CM)
        terms = causal_terms(model, x, ranks(order))
        return dataclasses.replace(drawn, log_prob_CM=torch.where(drawn.log_prob_CM.isnan(), drawn.log_prob_CM, terms))

    monkeypatch.setattr(kernels, "draw_in_order", stale)


def _stale_conditionals(monkeypatch):
    """The conditionals of the first state stand for those of all later ones."""
    real = Informed.__call__

    def stale(self, state, target, streams):
        moved, info = real(self, state, target, streams)
        first = state.conditional_CMK
        first = leave_one_out_log_prob(target.model, state.x_CM) if first is None else first
        return dataclasses.replace(moved, conditional_CMK=first), info

    monkeypatch.setattr(Informed, "__call__", stale)


STALE = {
    "block": (BlockMH(size=2), "joint, weight 0.7, anchored", _stale_terms),
    "block, rejected": (BlockMH(size=2), "joint, weight 0.7, anchored", _terms_of_the_rejected),
    "multiple try": (MultipleTry(size=2, n_tries=4), "joint, weight 0.7, anchored", _stale_terms),
    "suffix": (SuffixRedraw(), "joint, weight 0.7, anchored", _stale_draws),
    "informed": (Informed(), "pseudo, anchored", _stale_conditionals),
}


@pytest.mark.parametrize("case", STALE)
def test_stale_caches_are_caught(models, monkeypatch, case):
    """By what is kept, and by the law of what comes of it."""
    kernel, name, mutant = STALE[case]
    check = stationarity(kernel, name, models["inconsistent"], n_steps=6)
    assert passes(check)
    mutant(monkeypatch)
    assert _kept(kernel, name, models["inconsistent"]) > 0.1
    assert not passes(check)


def test_leaky_clamp_is_caught(models, monkeypatch):
    _leaky_clamp(monkeypatch)
    target, _ = stated(models["inconsistent"], "joint", 81, n_clamped=2)
    state, _ = step(BlockMH(size=2), target, STATES, seed=0, n_steps=20)
    assert not torch.equal(state.x_CM[:, ORDER[:2]], STATES[:, ORDER[:2]])


def test_dropped_rejections_are_caught(models):
    """Counting accepted states only is another law."""
    model, kernel = models["inconsistent"], BlockMH(size=2)

    def p_value(seed, factor):
        n = 20_000 * factor
        target, log_pi = stated(model, "pseudo, anchored", n)
        state, info = step(kernel, target, drawn_from(log_pi, n, seed), seed=seed)
        kept = code(state.x_CM[info.accepted_C])
        return chi_square(torch.bincount(kept, minlength=81), len(kept) * np.exp(log_pi))

    assert not passes(p_value)


def test_state_dependent_blocks_are_caught(models, monkeypatch):
    """Fact E: blocks chosen by the state (the sites of the highest bins) need a correction that the kernel does not make."""
    check = stationarity(BlockMH(size=2), "pseudo, anchored", models["inconsistent"])
    real = BlockMH.__call__

    def looking(self, state, target, streams):
        monkeypatch.setattr(
            kernels, "_choose_block", lambda t, size, u: (state.x_CM + u).argsort(dim=1, descending=True)[:, :size]
        )
        return real(self, state, target, streams)

    monkeypatch.setattr(BlockMH, "__call__", looking)
    assert not passes(check)
