"""The kernels at the full size of each statistical test, on a consistent, an inconsistent and the network's model.

The network's is the table of its answers (``conftest.py``). A p value of 1e-4 fails, if another seed and four times the
sample say so too. Numbers are those of ``checks.py``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from cellxpert.steering import BlockMH, Informed, MultipleTry, Schedule, Streams, SuffixRedraw, Target, TiltedGibbs, run

from .checks import (
    ORDER,
    Case,
    Numbers,
    balance,
    calibration,
    counted,
    covers,
    draws,
    effects,
    escapes,
    geweke,
    long_run,
    one_step,
    ranks,
    relaxation,
    slowest,
    spread,
)
from .conftest import N_BINS, N_SITES, STATES, Table
from .enumeration import passes

LAWS = {
    "consistent": ("consistent", "joint"),
    "pseudo-likelihood": ("inconsistent", "pseudo"),
    "any-order joint": ("inconsistent", "joint"),
    "network, pseudo-likelihood": ("network", "pseudo"),
    "network, any-order joint": ("network", "joint"),
}
PSEUDO = ["pseudo-likelihood", "network, pseudo-likelihood"]
KERNELS = {
    "site": BlockMH(size=1, temperature=1.0),
    "block": BlockMH(size=2, temperature=2.0),
    "tries": MultipleTry(size=2, n_tries=3),
    "informed": Informed(),
    "suffix": SuffixRedraw(),
}
EACH = [(k, law) for k, law in itertools.product(KERNELS, LAWS) if k != "suffix" or LAWS[law][1] == "joint"]


def stated(models, kernel, law, **settings):
    kind, part = LAWS[law]
    kernel = KERNELS.get(kernel, kernel)
    return Case(lambda: kernel, models[kind], part=part, **settings)


@pytest.mark.parametrize(("kernel", "law"), EACH)
def test_1_one_step_leaves_the_law_invariant(models, kernel, law):
    n = 50_000 if kernel in {"tries", "informed"} else 200_000  # those ask the model four times as much
    assert passes(one_step(stated(models, kernel, law), n))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_1_at_other_temperatures(models, temperature, law):
    kernel = BlockMH(size=1, temperature=temperature)
    assert passes(one_step(stated(models, kernel, law, kappa=0.5), 200_000))


@pytest.mark.parametrize(("kernel", "law"), EACH)
def test_1_four_steps_with_clamped_sites(models, kernel, law):
    assert passes(one_step(stated(models, kernel, law), 20_000, n_steps=4, n_clamped=2))


def test_1_tilted_gibbs_on_exact_conditionals(models):
    assert passes(one_step(stated(models, TiltedGibbs(size=1), "consistent", kappa=0.5), 200_000))


@pytest.mark.parametrize(("kernel", "law"), [(k, law) for k, law in EACH if (k, law) != ("site", "any-order joint")])
def test_2_detailed_balance(models, kernel, law):
    n = 400_000 if kernel == "site" else 100_000
    assert passes(balance(stated(models, kernel, law), n))


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_3_long_runs_from_the_least_likely_state(models, law):
    """For twenty relaxation times and at least 400 steps; what the target keeps of a state is tested under the joint."""
    case = stated(models, "site", law, tabulated=law != "any-order joint")
    n_steps = max(400, math.ceil(20 * relaxation(case, tau=1.0)))
    assert passes(long_run(case, 20_000, n_steps))


@pytest.mark.parametrize(("kernel", "law"), EACH)
def test_4_ranks_in_runs_through_a_draw(models, kernel, law):
    assert passes(ranks(stated(models, kernel, law), 4000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "law"), [*itertools.product(["site"], list(LAWS)[:4]), ("suffix", "any-order joint")]
)
def test_5_data_and_sites_redrawn_in_turn(models, kernel, law):
    """As many sweeps as 64 chains of 60,000, of more chains: the errors are those between chains."""
    assert passes(geweke(stated(models, kernel, law), 4000, 960))


@pytest.mark.parametrize("law", ["consistent", *PSEUDO])
def test_6_the_truth_has_any_rank_among_draws(models, law):
    case = stated(models, "site", law)
    second = slowest(case.model, case.part, 0.0, 2, tau=1.0)
    thin = math.ceil(5 * (1 + second) / (1 - second))  # five autocorrelation times of the slowest quantity
    assert passes(calibration(case, 1000, thin))


@pytest.mark.parametrize(("kernel", "law"), EACH)
def test_10_clamped_sites_stay_for_fifty_steps(models, kernel, law):
    assert escapes(stated(models, kernel, law)) == 0


def independent(model):
    """The same model with site 2, the first in order, independent of the others: answers as if it were never seen."""
    hidden = model.log_p.unflatten(1, (N_BINS + 1,) * N_SITES)[:, :, :, N_BINS:]
    log_p = hidden.expand(-1, -1, -1, N_BINS + 1, -1, -1).flatten(1, 4).clone()
    log_p[ORDER[0]] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    return Table(log_p)


def clamped_runs(model, kernel, *, streams, n, n_steps):
    """Ends of runs with site 2 clamped to either extreme, from one start otherwise."""
    ends = []
    for arm, value in enumerate((0, 2)):
        x = draws(torch.full((81,), 1 / 81).numpy(), n, 0)
        x[:, ORDER[0]] = value
        target = Target(model=model, order_CM=torch.tensor([ORDER]).expand(n, -1), n_clamped=1)
        schedule = Schedule(n_steps=n_steps, thin=n_steps)
        ends.append(run(kernel, target, x, schedule=schedule, streams=streams(arm)).state.x_CM)
    return ends


@pytest.mark.parametrize("kind", ["consistent", "network"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_11_clamping_an_independent_site_changes_nothing_else(models, kernel, kind):
    n = 100_000 if kernel == "site" else 20_000
    model, n_steps = independent(models[kind]), 5 if kernel == "site" else 3
    low, high = clamped_runs(model, KERNELS[kernel], streams=lambda arm: Numbers(arm, n), n=n, n_steps=n_steps)
    difference = (high - low)[:, [0, 1, 3]].double()
    z = difference.mean(0) / (difference.std(0) / math.sqrt(n))
    assert (z.abs() < 4).all()


@pytest.mark.parametrize("kind", ["consistent", "network"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_11_and_in_paired_runs_the_effect_is_exactly_zero(models, kernel, kind):
    """Common random numbers: what does not depend on the perturbed site moves alike, number by number."""
    model = independent(models[kind])
    low, high = clamped_runs(model, KERNELS[kernel], streams=lambda arm: Streams(5, 200), n=200, n_steps=40)
    assert torch.equal(low[:, [0, 1, 3]], high[:, [0, 1, 3]])
    assert not torch.equal(low[:, 0], draws(np.full(81, 1 / 81), 200, 0)[:, 0])


@pytest.mark.parametrize("law", LAWS)
def test_12_two_runs_without_a_perturbation_do_not_differ(models, law):
    case = stated(models, "site", law)
    means = []
    for seed in (1, 2):
        x = draws(np.full(81, 1 / 81), 300, 0)
        seen = torch.stack([y for y, _ in case.walk(x, 400, seed=seed)])[100:]
        means.append(seen.double().mean(0))
    difference = means[0] - means[1]
    z = difference.mean(0) / (difference.std(0) / math.sqrt(300))
    assert (z.abs() < 4).all()
    assert (difference != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "paired"),
    [
        ("consistent", False),
        ("pseudo-likelihood", False),
        ("any-order joint", True),
        ("network, pseudo-likelihood", False),
        ("network, any-order joint", True),
    ],
)
def test_13_intervals_of_effects_hold_the_truth(models, law, paired):
    assert covers(effects(stated(models, "site", law), 300, 600, paired=paired))


def test_13_pairing_makes_intervals_shorter(models):
    """What common random numbers are for: the same effect with less error."""
    from cellxpert.steering.diagnostics import mcse

    model, n = models["inconsistent"], 400
    x = draws(np.full(81, 1 / 81), n, 0)
    x[:, ORDER[0]] = 2
    values = []
    for n_clamped, seed in ((0, 1), (1, 1), (1, 2)):
        target = Target(model=model, order_CM=torch.tensor([ORDER]).expand(n, -1), n_clamped=n_clamped)
        trace = run(KERNELS["site"], target, x, schedule=Schedule(n_steps=300), streams=Streams(seed, n))
        values.append(trace.x_RCM[:, :, ORDER[1:]].movedim(0, 1).double().numpy())
    null, same_numbers, others = values
    assert (mcse(same_numbers - null) < 0.9 * mcse(others - null)).all()


@pytest.mark.parametrize("law", PSEUDO)
def test_15_chains_from_one_start_spread_as_the_law(models, law):
    assert 0.85 < spread(stated(models, "site", law), 4000, 400) < 1.15


@pytest.mark.parametrize("kind", ["inconsistent", "network"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_empty_perturbation_has_exactly_no_effect(models, kernel, kind):
    """Nothing is perturbed, or one site is clamped to the value that its null keeps: bit for bit the null's trajectory.

    The perturbed run has objects of its own, and only some of the null's chains beside it.
    """
    some = torch.tensor([3, 4, 5, 6])
    for n_clamped in (0, 1):
        traces = []
        for chains in (torch.arange(81), some):
            target = Target(
                model=Table(models[kind].log_p.clone()),
                order_CM=torch.tensor([ORDER]).expand(len(chains), -1),
                n_clamped=n_clamped,
            )
            streams = Streams(11, len(chains), first=int(chains[0]))
            schedule = Schedule(n_steps=50, adapt=False)
            traces.append(run(KERNELS[kernel], target, STATES[chains], schedule=schedule, streams=streams))
        null, empty = traces
        assert torch.equal(empty.x_RCM, null.x_RCM[:, some])
        assert torch.equal(empty.log_alpha_TC, null.log_alpha_TC[:, some])
        assert torch.equal(empty.log_density_TC, null.log_density_TC[:, some])
        effect = empty.x_RCM.double().mean(0) - null.x_RCM[:, some].double().mean(0)
        assert (effect == 0).all()
        assert null.moved_CM.any()


def test_the_checks_count_what_is_impossible():
    law = np.zeros(81)
    law[:2] = 0.5
    assert counted(STATES[[0, 0, 1, 2]], law) == 0
