"""The package's own smallest network asked itself: 4 movable features, 3 bins, random weights.

The other tests of kernels ask the table of its answers (model "network"), so that they have their full size. Here is tested
that chains on the network are those on its table, and that answers do not depend on company, order or device.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from cellxpert.steering import BlockMH, Informed, MultipleTry, Schedule, Streams, SuffixRedraw, Target, init, run
from cellxpert.tasks.conditionals import NetworkConditionals

from .checks import ORDER
from .conftest import CELL, FEATURES, N_BINS, N_SITES, STATES, context, make
from .enumeration import passes


@pytest.fixture(scope="module")
def networks():
    return {dtype: make(dtype) for dtype in (torch.float64, torch.float32)}


KERNELS = {
    "site": BlockMH(size=1, temperature=1.0),
    "block": BlockMH(size=2, temperature=2.0),
    "tries": MultipleTry(size=2, n_tries=3),
    "informed": Informed(),
    "suffix": SuffixRedraw(),
}


def test_the_network_has_no_joint_law(models):
    """Two orders give two joints, far apart: what makes the tests on its table bite."""
    laws = [
        Target(model=models["network"], order_CM=torch.tensor([order]).expand(81, -1))(STATES).log_density_C.exp()
        for order in (ORDER, ORDER[::-1])
    ]
    assert (laws[0] - laws[1]).abs().sum() / 2 > 0.1


@pytest.mark.parametrize(
    ("kernel", "part"),
    [(k, part) for k in KERNELS for part in ("joint", "pseudo") if (k, part) != ("suffix", "pseudo")],
)
def test_chains_on_the_network_are_those_on_its_table(models, networks, kernel, part):
    """Same numbers, same states, one site clamped: the truth of the tests on the table is the network's own."""
    network = NetworkConditionals(networks[torch.float64], context(CELL), FEATURES)
    asked, looked_up = (
        run(
            KERNELS[kernel],
            Target(model=model, order_CM=torch.tensor([ORDER]).expand(81, -1), n_clamped=1, part=part),
            STATES,
            schedule=Schedule(n_steps=20),
            streams=Streams(3, 81),
        )
        for model in (network, models["network"])
    )
    assert torch.equal(asked.x_RCM, looked_up.x_RCM)
    torch.testing.assert_close(asked.log_density_TC, looked_up.log_density_TC, rtol=0, atol=1e-9)
    assert asked.moved_CM.any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_7_the_last_site_of_the_order_is_always_accepted(networks, dtype, tolerance):
    """Its conditional is the joint's own, through two different passes of the network."""
    model = NetworkConditionals(networks[dtype], context(CELL), FEATURES)
    target = Target(model=model, order_CM=torch.tensor([ORDER]).expand(81, -1), n_clamped=3)
    state, streams = init(STATES, target), Streams(0, 81)
    for _ in range(10):
        state, info = KERNELS["site"](state, target, streams)
        assert info.log_alpha_C.abs().max() < tolerance
        assert info.accepted_C.all()
    assert (state.x_CM != STATES)[:, ORDER[3]].any()


# --- 17: company, order and padding ----------------------------------------------------------------------------------

CELLS = [CELL, [7, 2], [5], [2, 0, 5, 7], [0], [7, 5, 2]]


def leave_one_out(network, cells, x, *, feature_M=FEATURES):
    """Answers for one state of each cell."""
    model = NetworkConditionals(network, context(*cells), feature_M)
    others = ~torch.eye(N_SITES, dtype=torch.bool)[None]
    return model.log_prob(torch.arange(N_SITES).expand(len(x), -1), x, others)


def distance(one, two):
    return ((one - two).abs().max() / two.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("n", [1, 7, 64])
def test_17_answers_do_not_depend_on_company(networks, n):
    """Contexts of all lengths side by side (so all but the longest are padded), in another order, and each alone."""
    network = networks[torch.float32]
    cells, x = [CELLS[i % len(CELLS)] for i in range(n)], STATES[torch.arange(n) * 5 % 81]
    together = leave_one_out(network, cells, x)
    shuffled = np.random.default_rng(0).permutation(n)
    again = leave_one_out(network, [cells[i] for i in shuffled], x[shuffled])
    assert distance(again, together[shuffled]) < 1e-5
    for i in range(min(n, 12)):
        assert distance(leave_one_out(network, [cells[i]], x[i : i + 1])[0], together[i]) < 1e-5
    some = slice(0, min(n, 3))
    assert distance(leave_one_out(network, cells[some], x[some]), together[some]) < 1e-5


def test_17_answers_do_not_depend_on_the_order_of_features(networks):
    network, x = networks[torch.float32], STATES[[5, 17, 44]]
    cells, order = [CELL, CELLS[3], CELLS[5]], [2, 0, 3, 1]
    straight = leave_one_out(network, cells, x)
    assert distance(leave_one_out(network, [cell[::-1] for cell in cells], x), straight) < 1e-5
    permuted = leave_one_out(network, cells, x[:, order], feature_M=FEATURES[order])
    assert distance(permuted, straight[:, order]) < 1e-5


@pytest.mark.parametrize("kernel", ["site", "suffix"])
def test_17_chains_are_the_same_in_any_company(networks, kernel):
    """32 chains together for 100 steps, and two of them alone, with their own numbers."""

    def states(chains):
        model = NetworkConditionals(networks[torch.float32], context(CELL), FEATURES)
        target = Target(model=model, order_CM=torch.tensor([ORDER]).expand(len(chains), -1))
        streams = Streams(3, len(chains), first=chains[0])
        start = STATES[[5 * c % 81 for c in chains]]
        return run(KERNELS[kernel], target, start, schedule=Schedule(n_steps=100), streams=streams).x_RCM

    together = states(range(32))
    same = torch.cat([(states([c])[:, 0] == together[:, c]).all(1) for c in (0, 31)])
    assert same.double().mean() >= 0.999


# --- 18: another device ----------------------------------------------------------------------------------------------


class Elsewhere:
    """A model on another device, for chains on the processor."""

    n_sites, n_bins = N_SITES, N_BINS

    def __init__(self, model, device):
        self.model, self.device = model, device

    def log_prob(self, query_CQ, x_CM, visible_CQM):
        asked = (tensor.to(self.device) for tensor in (query_CQ, x_CM, visible_CQM))
        return self.model.log_prob(*asked).cpu()


def two_samples(one, two):
    """P value of the hypothesis that two sets of states have the same bins at each site (Bonferroni)."""
    p_values = []
    for site in range(N_SITES):
        counts = torch.stack([torch.bincount(x[:, site], minlength=N_BINS) for x in (one, two)])
        p_values.append(stats.chi2_contingency(counts.numpy()).pvalue)
    return min(p_values) * N_SITES


def ends(network, n, seed, device):
    model = NetworkConditionals(network.to(device), context(CELL).to(device), FEATURES.to(device))
    target = Target(model=Elsewhere(model, device), order_CM=torch.tensor([ORDER]).expand(n, -1))
    x = STATES[torch.arange(n) % 81]
    schedule = Schedule(n_steps=20, thin=20)
    return run(KERNELS["suffix"], target, x, schedule=schedule, streams=Streams(seed, n, buffer=1)).state.x_CM


def test_18_two_samples_of_one_law_pass_and_of_two_do_not():
    rng = torch.Generator().manual_seed(0)
    x = STATES[torch.randint(0, 81, (20_000,), generator=rng)]
    assert two_samples(x[:10_000], x[10_000:]) > 1e-4
    shifted = x.clone()
    shifted[:2000, 2] = 0
    assert two_samples(x, shifted) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_18_answers_on_cuda_are_those_of_the_processor():
    assert not torch.backends.cuda.matmul.allow_tf32, "the comparison is of full single precision"
    cells, x = [CELLS[i % len(CELLS)] for i in range(64)], STATES[torch.arange(64)]
    here = leave_one_out(make(torch.float32), cells, x)
    model = NetworkConditionals(make(torch.float32).to("cuda"), context(*cells).to("cuda"), FEATURES.to("cuda"))
    others = ~torch.eye(N_SITES, dtype=torch.bool)[None]
    there = Elsewhere(model, "cuda").log_prob(torch.arange(N_SITES).expand(64, -1), x, others)
    assert distance(there, here) < 1e-4


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_18_chains_on_cuda_have_the_law_of_the_processors():
    def p_value(seed, factor):
        n = 20_000 * factor
        here = ends(make(torch.float32), n, seed, "cpu")
        there = ends(make(torch.float32), n, seed + 100, "cuda")
        return two_samples(here, there)

    assert passes(p_value)
