"""Arms on the smallest network, against the enumeration of its laws by the network asked question by question."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from cellxpert.batch import Intervention, Questions
from cellxpert.config import SteeringConfig
from cellxpert.steering import Anchors
from cellxpert.tasks import arms
from cellxpert.tasks.arms import Population, for_cells

FEATURES = np.array([1, 3, 4, 6])
STATES = list(itertools.product(range(3), repeat=4))
ROWS = np.array([2, 0, 1])
KNOCKOUT = Intervention(
    feature_BI=torch.tensor([[5, 1]]),
    target_BI=torch.tensor([[1, -1]]),
    dose_BI=torch.tensor([[-1.0, -0.6]]).double(),
    before=True,
)
NOTHING = replace(KNOCKOUT, dose_BI=torch.zeros(1, 2).double())


def population(network, collator, *, n_held=0, n_replicates=5, seed=0, settings=None, rows=ROWS):
    return Population(
        network,
        collator,
        rows=rows,
        feature_M=FEATURES,
        n_held=n_held,
        n_replicates=n_replicates,
        level_VK=network.factors.levels(torch.arange(8)).double(),
        settings=settings or SteeringConfig(block_size=2),
        seed=seed,
    )


class Laws:
    """All conditionals of the movable features in each cell, each asked for alone, and the joint laws that they make."""

    def __init__(self, network, collator, intervention=None):
        hidden = np.zeros(8, bool)
        hidden[FEATURES] = True
        context = collator.context(ROWS, hidden)
        if intervention is not None:
            context = replace(context, intervention=for_cells(intervention, 3))
        self.log_p = {}
        with torch.no_grad():
            memory = network.memory(network.encode(context))
            for site in range(4):
                for seen in itertools.product((None, 0, 1, 2), repeat=4):
                    at = [m for m in range(4) if seen[m] is not None]
                    if seen[site] is not None:
                        continue
                    asked = Questions(
                        query_BQ=torch.full((3, 1), int(FEATURES[site])),
                        value_feature_BM=torch.from_numpy(FEATURES[at]).expand(3, -1),
                        value_bin_BM=torch.tensor([seen[m] for m in at], dtype=torch.int64).expand(3, -1),
                        visible_BQM=torch.ones(3, 1, len(at), dtype=torch.bool),
                    )
                    self.log_p[site, seen] = network.decode(asked, memory)[:, 0].log_softmax(-1).numpy()

    def joint(self, cell, order, n_held=0):
        """Probabilities of all states, the first sites of the order given (their values are those of the state)."""
        out = []
        for x in STATES:
            seen, total = [None] * 4, 0.0
            for place, site in enumerate(order):
                if place >= n_held:
                    total += self.log_p[site, tuple(seen)][cell, x[site]]
                seen[site] = x[site]
            out.append(np.exp(total))
        return np.array(out)

    def mixture(self, arm_orders, cell):
        """Law of a state of any of the cell's chains, which have orders of their own."""
        return np.mean([self.joint(cell, order) for order in arm_orders], axis=0)


@pytest.fixture(scope="module")
def laws(tiny, tiny_cells):
    return {"nothing": Laws(tiny, tiny_cells), "knockout": Laws(tiny, tiny_cells, KNOCKOUT)}


def code(x):
    return (np.asarray(x, np.int64) * [27, 9, 3, 1]).sum(-1)


def p_value(x_XM, law):
    """Chi-square of states against a law by the margins of all pairs of sites, the smallest of six; rare values pooled."""
    found = []
    for pair in itertools.combinations(range(4), 2):
        place = np.array(STATES)[:, pair] @ [3, 1]
        expected = len(x_XM) * np.bincount(place, law, minlength=9)
        counts = np.bincount(np.asarray(x_XM, int)[:, pair] @ [3, 1], minlength=9)
        assert not counts[expected == 0].any()
        counts, expected = counts[expected > 0], expected[expected > 0]
        rare = expected < 5
        if rare.any():
            counts, expected = (np.append(v[~rare], v[rare].sum()) for v in (counts, expected))
        assert len(expected) > 1
        found.append(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)
    return 6 * min(found)


def by_cell(x_CM, n_replicates):
    return x_CM.numpy().reshape(3, n_replicates, -1)


# --- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["nothing", "knockout"])
def test_ancestral_draws_have_the_stated_law(tiny, tiny_cells, laws, told):
    people = population(tiny, tiny_cells, n_replicates=100)
    intervention = KNOCKOUT if told == "knockout" else None
    arm = people.run(kernel="ancestral", n_steps=200, intervention=intervention)
    assert len(arm.x_DCM) == 8
    level = people.value_MKY.numpy()
    orders = people.order_CM.numpy().reshape(3, 100, 4)
    for cell in range(3):
        law = laws[told].mixture(orders[cell], cell)
        draws = arm.x_DCM.numpy().reshape(8, 3, 100, 4)[:, cell].reshape(-1, 4)
        assert p_value(draws, law) > 1e-4
        # expectations are as exact as 800 draws and better than their mean
        exact = np.einsum("s,smy->my", law, level[np.arange(4), np.array(STATES)])
        found, plain = arm.mean_NMY[cell].numpy(), level[np.arange(4), draws].mean(0)
        error = level[np.arange(4), draws].std(0) / np.sqrt(len(draws))
        assert (np.abs(found - exact) < 4 * error).all()
        assert np.abs(found - exact).sum() < np.abs(plain - exact).sum()
    if told == "knockout":
        assert np.abs(laws["knockout"].mixture(orders[0], 0) - laws["nothing"].mixture(orders[0], 0)).sum() > 0.1


@pytest.mark.parametrize("kernel", ["block", "suffix", "multiple-try", "informed"])
def test_chains_without_anchors_have_the_law_of_ancestral_draws(tiny, tiny_cells, laws, kernel):
    n = 40 if kernel == "multiple-try" else 100
    settings = SteeringConfig(block_size=2, n_tries=4)
    people = population(tiny, tiny_cells, n_replicates=n, settings=settings)
    arm = people.run(kernel=kernel, n_steps=30, intervention=KNOCKOUT)
    last = by_cell(arm.x_DCM[-1], n)
    orders = people.order_CM.numpy().reshape(3, n, 4)
    for cell in range(3):
        assert p_value(last[cell], laws["knockout"].mixture(orders[cell], cell)) > 1e-4
    assert arm.burn_in == len(arm.accepted_TC) // 2
    assert 0 < arm.accepted_TC.mean() <= 1
    assert np.isnan(arm.kappa)
    # states of an unconverged run fail the test
    first = by_cell(people.start_NM.repeat_interleave(n, dim=0), n)
    assert p_value(first[0], laws["knockout"].mixture(orders[0], 0)) < 1e-10


def test_anchored_chains_have_the_tilted_law(tiny, tiny_cells, laws):
    anchors = Anchors(
        bin_AM=torch.tensor([[0, 1, 2, 0], [2, 2, 0, 1]]), kappa=0.6, weight_M=torch.tensor([0.5, 1.5, 1.0, 1.0])
    )
    people = population(tiny, tiny_cells, n_replicates=100)
    arm = people.run(kernel="block", n_steps=30, intervention=KNOCKOUT, anchors=anchors)
    distance = np.array(
        [[np.abs(np.array(x) - a) @ anchors.weight_M.numpy() for a in anchors.bin_AM.numpy()] for x in STATES]
    )
    tilt = np.exp(-0.6 * distance).mean(axis=1)
    for cell in range(3):
        law = np.zeros(81)
        for order in people.order_CM.numpy().reshape(3, 100, 4)[cell]:
            one = laws["knockout"].joint(cell, order) * tilt
            law += one / one.sum() / 100
        assert p_value(by_cell(arm.x_DCM[-1], 100)[cell], law) > 1e-4
    # and what is recorded of them
    states = arm.x_DCM[-1].numpy()
    expected = distance[code(states)].min(axis=1) / 4
    np.testing.assert_allclose(arm.distance_TC[-1], expected, atol=1e-12)
    assert arm.kappa == 0.6


def test_held_sites_are_conditioned_on(tiny, tiny_cells, laws):
    held = torch.tensor([[2], [0], [1]])
    people = population(tiny, tiny_cells, n_held=1, n_replicates=200)
    arm = people.run(kernel="ancestral", n_steps=100, held_NM=held)
    x = arm.x_DCM.numpy().reshape(4, 3, 200, 4)
    assert (x[..., 0] == held.numpy()[:, 0][None, :, None]).all()
    orders = people.order_CM.numpy().reshape(3, 200, 4)
    assert (orders[..., 0] == 0).all()
    values = people.value_MKY.numpy()
    for cell in range(3):
        law = np.mean([laws["nothing"].joint(cell, order, n_held=1) for order in orders[cell]], axis=0)
        law = np.where([s[0] == held[cell, 0] for s in STATES], law, 0)
        assert law.sum() == pytest.approx(1)
        assert p_value(x[:, cell].reshape(-1, 4), law) > 1e-4
        np.testing.assert_allclose(arm.mean_NMY[cell, 0], values[0, held[cell, 0]])
    # their own values, where nothing else is said
    own = people.run(kernel="ancestral", n_steps=100).x_DCM[:, :, 0]
    assert (own == people.start_NM[:, :1].repeat_interleave(200, dim=0).T).all()


def test_blind_draws_know_the_context_only(tiny, tiny_cells, laws):
    people = population(tiny, tiny_cells, n_replicates=100)
    arm = people.run(kernel="fill-in", n_steps=200, intervention=KNOCKOUT)
    nothing = (None,) * 4
    for cell in range(3):
        own = [np.exp(laws["knockout"].log_p[site, nothing][cell]) for site in range(4)]
        law = np.array([np.prod([own[m][x[m]] for m in range(4)]) for x in STATES])
        assert p_value(arm.x_DCM.numpy().reshape(8, 3, 100, 4)[:, cell].reshape(-1, 4), law) > 1e-4
        exact = np.einsum("mk,mky->my", own, people.value_MKY.numpy())
        np.testing.assert_allclose(arm.mean_NMY[cell], exact, atol=1e-12)  # no noise at all
        state = arm.x_DCM[3].numpy().reshape(3, 100, 4)[cell, 7]
        density = arm.log_density_TC[3].reshape(3, 100)[cell, 7]
        assert density == pytest.approx(sum(np.log(own[m][state[m]]) for m in range(4)))


# --- pairs of arms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["ancestral", "fill-in", "block", "suffix"])
def test_what_does_nothing_does_nothing(tiny, tiny_cells, kernel):
    """Not a bit differs: a dose of nothing, or a part of the network that says nothing."""
    people = population(tiny, tiny_cells)
    null = people.run(kernel=kernel, n_steps=12)
    silent = copy.deepcopy(tiny)
    with torch.no_grad():
        for weight in silent.factors.intervention.parameters():
            weight.zero_()
        silent.factors.intervention.response_V.zero_()
    for arm in (
        people.run(kernel=kernel, n_steps=12, intervention=NOTHING),
        population(silent, tiny_cells).run(kernel=kernel, n_steps=12, intervention=KNOCKOUT),
        people.run(kernel=kernel, n_steps=12, held_NM=people.start_NM[:, :0]),
    ):
        assert torch.equal(arm.x_DCM, null.x_DCM)
        assert torch.equal(arm.mean_NMY, null.mean_NMY)
        assert torch.equal(arm.level_JDM, null.level_JDM)
        assert np.array_equal(arm.log_density_TC, null.log_density_TC)
    told = people.run(kernel=kernel, n_steps=12, intervention=KNOCKOUT)
    assert not torch.equal(told.mean_NMY, null.mean_NMY)


def test_anchors_without_strength_are_none(tiny, tiny_cells):
    people = population(tiny, tiny_cells)
    anchors = Anchors(bin_AM=torch.tensor([[0, 1, 2, 0]]), kappa=0.0)
    free, loose = (people.run(kernel="block", n_steps=20, anchors=a, intervention=KNOCKOUT) for a in (None, anchors))
    assert torch.equal(free.x_DCM, loose.x_DCM)
    assert np.array_equal(free.log_density_TC, loose.log_density_TC)
    assert free.distance_TC is None
    assert loose.distance_TC.shape == (20, 15)
    assert loose.kappa == 0


def test_common_random_numbers_bring_arms_together(tiny, tiny_cells):
    """Draws of the two arms are alike because they share their numbers, which is what makes their difference precise."""
    people = population(tiny, tiny_cells, n_replicates=50)
    null, arm = (people.run(kernel="ancestral", n_steps=200, intervention=i) for i in (None, KNOCKOUT))
    other = population(tiny, tiny_cells, n_replicates=50, seed=1).run(kernel="ancestral", n_steps=200)
    together = (null.x_DCM == arm.x_DCM).double().mean()
    assert together > (other.x_DCM == arm.x_DCM).double().mean() + 0.15


def test_seeds(tiny, tiny_cells):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for kernel in ("ancestral", "block"):
        one, again = (population(tiny, tiny_cells).run(kernel=kernel, n_steps=12) for _ in range(2))
        other = population(tiny, tiny_cells, seed=1).run(kernel=kernel, n_steps=12)
        assert torch.equal(one.x_DCM, again.x_DCM)
        assert not torch.equal(one.x_DCM, other.x_DCM)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002


def test_portions_change_nothing(tiny, tiny_cells, monkeypatch):
    whole = {k: population(tiny, tiny_cells).run(kernel=k, n_steps=150) for k in ("ancestral", "fill-in")}
    monkeypatch.setattr(arms, "AT_ONCE", 3 * 5 * 4 * 2)  # two draws of all chains
    for kernel, arm in whole.items():
        parts = population(tiny, tiny_cells).run(kernel=kernel, n_steps=150)
        assert torch.equal(parts.x_DCM, arm.x_DCM)
        torch.testing.assert_close(parts.mean_NMY, arm.mean_NMY, rtol=0, atol=1e-12)


# --- what is recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["ancestral", "block"])
def test_summaries_of_the_states(tiny, tiny_cells, kernel):
    people = population(tiny, tiny_cells, n_held=1, n_replicates=4)
    arm = people.run(kernel=kernel, n_steps=150 if kernel == "ancestral" else 20)
    x = arm.x_DCM.numpy().astype(int)
    start = people.start_NM.repeat_interleave(4, dim=0).numpy()
    assert x.shape == ((6, 12, 4) if kernel == "ancestral" else (10, 12, 4))
    every = len(arm.shift_TC) - arm.burn_in
    assert every == len(x)
    np.testing.assert_allclose(arm.shift_TC[arm.burn_in :], np.abs(x - start)[..., 1:].mean(-1), atol=1e-6)
    if kernel == "block":
        level = people.level_VK.numpy()[FEATURES[None, None], x]
        np.testing.assert_allclose(arm.level_JDM, level.reshape(10, 3, 4, 4).mean(axis=1).swapaxes(0, 1), atol=1e-12)
        expected = np.stack([level, np.expm1(level)], axis=-1).reshape(10, 3, 4, 4, 2).mean(axis=(0, 2))
        np.testing.assert_allclose(arm.mean_NMY, expected, atol=1e-12)
        assert arm.size == 2 or arm.size <= 3
    else:
        assert arm.moved == (x != start)[..., 1:].any(axis=0).mean()
        assert arm.accepted_TC.all()
        assert arm.size is None
    assert arm.level_JDM.shape == (4, len(x), 4)
    np.testing.assert_allclose(arm.level_JDM.mean((0, 1)), arm.mean_NMY[..., 0].mean(0), atol=1e-6)


@pytest.mark.parametrize("kernel", ["block", "multiple-try"])
def test_blocks_of_a_fixed_size(tiny, tiny_cells, kernel):
    """Nearly every block of one gene is accepted, so that sizes that follow the acceptance grow."""
    sizes = [
        population(tiny, tiny_cells, settings=SteeringConfig(block_size=1, adapt=adapt))
        .run(kernel=kernel, n_steps=60)
        .size
        for adapt in (True, False)
    ]
    assert sizes[0] > sizes[1] == 1


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("kernel", ["ancestral", "block"])
def test_the_shortest_runs(tiny, tiny_cells, kernel, n_steps):
    arm = population(tiny, tiny_cells).run(kernel=kernel, n_steps=n_steps)
    assert len(arm.x_DCM) == (4 if kernel == "ancestral" else n_steps - n_steps // 2)


def test_one_cell_alone(tiny, tiny_cells):
    """What the others are does not matter, but for the random numbers that a chain has by its place."""
    people = population(tiny, tiny_cells)
    first = population(tiny, tiny_cells, rows=ROWS[:1])
    assert torch.equal(first.order_CM, people.order_CM[:5])
    whole, alone = (p.run(kernel="ancestral", n_steps=100, intervention=KNOCKOUT) for p in (people, first))
    assert torch.equal(whole.x_DCM[:, :5], alone.x_DCM)


def test_cells_are_read_once(tiny, tiny_cells, monkeypatch):
    calls, real = [], type(tiny).encode
    monkeypatch.setattr(type(tiny), "encode", lambda self, batch: calls.append(1) or real(self, batch))
    people = population(tiny, tiny_cells)
    for intervention in (None, KNOCKOUT, NOTHING):
        people.run(kernel="ancestral", n_steps=10, intervention=intervention)
    assert len(calls) == 1


# --- strength of the anchors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aim", [0.3, 0.5])
def test_chains_come_as_near_as_asked(tiny, tiny_cells, aim):
    people = population(tiny, tiny_cells, rows=np.tile(ROWS, 10), n_replicates=2)
    anchors = Anchors(bin_AM=torch.tensor([[2, 0, 2, 0]]), kappa=0.02)
    free = people.run(kernel="block", n_steps=20, anchors=replace(anchors, kappa=0.0))
    arm = people.run(kernel="block", n_steps=40, anchors=anchors, aim=aim)
    assert free.distance_TC[10:].mean() > aim + 0.15
    assert arm.distance_TC[arm.burn_in :].mean() == pytest.approx(aim, abs=0.06)
    assert arms.KAPPA_RANGE[0] < arm.kappa < arms.KAPPA_RANGE[1]


def test_pilots_have_one_chain_per_cell(tiny, tiny_cells, monkeypatch):
    sizes, real = [], arms.run
    monkeypatch.setattr(
        arms, "run", lambda kernel, target, x, **more: sizes.append(len(x)) or real(kernel, target, x, **more)
    )
    anchors = Anchors(bin_AM=torch.tensor([[2, 0, 2, 0]]), kappa=0.02)
    population(tiny, tiny_cells, n_replicates=4).run(kernel="block", n_steps=10, anchors=anchors, aim=0.5)
    assert sizes == [3] * arms.PILOT_ROUNDS + [12]


@pytest.mark.parametrize(("aim", "kappa"), [(0.0, 5.0), (9.0, 1e-4)])
def test_an_aim_out_of_reach_ends_at_the_bound(tiny, tiny_cells, aim, kappa):
    anchors = Anchors(bin_AM=torch.tensor([[2, 0, 2, 0]]), kappa=0.02)
    arm = population(tiny, tiny_cells).run(kernel="block", n_steps=4, anchors=anchors, aim=aim)
    assert arm.kappa == pytest.approx(kappa)


def test_interventions_of_one_row_serve_all_cells():
    many = for_cells(KNOCKOUT, 4)
    assert torch.equal(many.dose_BI, KNOCKOUT.dose_BI.expand(4, -1))
    assert torch.equal(many.feature_BI, KNOCKOUT.feature_BI.expand(4, -1))
    assert many.before
    assert many.code_BIS is None
    assert for_cells(many, 4) is many
