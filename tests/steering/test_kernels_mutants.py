"""The tests see what they are for: samplers with one flaw each are caught, and the same sampler without a flaw is not.

Which test sees what is a table in ``mutants.py``. On exact conditionals at temperature 1 any rule of acceptance is right, so
that flaws in it show at another temperature, or on a model whose conditionals disagree.
"""

from __future__ import annotations

import pytest

from cellxpert.steering import BlockMH

from .checks import Case, Numbers, balance, covers, effects, enough, escapes, geweke, long_run, one_step, ranks, spread
from .enumeration import passes
from .mutants import MUTANTS, Block

PART = {"consistent": "joint", "inconsistent": "pseudo", "network": "pseudo"}
CERTAIN = 1e-6
"""A p value below this: the second look, at another seed and four times the sample, would not be better."""


def case(model, kind, kernel, streams):
    return Case(kernel, model, part=PART[kind], streams=streams, tabulated=True)


def p_value_of(test, case, n_long):
    return {
        "1": one_step(case, 100_000),
        "1c": one_step(case, 100_000, n_steps=4, n_clamped=2),
        "2": balance(case, 100_000),
        "3": long_run(case, n_long, enough(case, n_long, tau=1.0), start="unexpected"),
        "4": ranks(case, 4000),
        "5": geweke(case, 500, 200),
    }[test]


def catches(test, model, kind, name):
    mutant = MUTANTS[name]
    wrong = case(model, kind, lambda: Block(name, size=mutant.size), mutant.streams)
    if test == "1t":
        hot = case(model, kind, lambda: Block(name, size=mutant.size, temperature=0.5), mutant.streams)
        return one_step(hot, 100_000)(0, 1) < CERTAIN
    if test == "10":
        return escapes(wrong) > 0
    if test == "13":
        return not covers(effects(wrong, 60, 300))
    if test == "15":
        return not 0.85 < spread(wrong, 2000, 60) < 1.15
    return p_value_of(test, wrong, mutant.n_long)(0, 1) < CERTAIN


@pytest.mark.parametrize("kind", PART)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_flawed_sampler_is_caught(models, kind, name):
    for test in MUTANTS[name].seen_by(kind):
        assert catches(test, models[kind], kind, name), f"test {test} does not see: {name}"


@pytest.mark.parametrize("kind", PART)
@pytest.mark.parametrize("test", ["1", "1c", "2", "3", "4", "5"])
def test_without_a_flaw_it_passes(models, kind, test):
    right = case(models[kind], kind, Block, Numbers)
    assert passes(p_value_of(test, right, 1000))


@pytest.mark.parametrize("kind", PART)
def test_without_a_flaw_it_passes_what_has_no_p_value(models, kind):
    right = case(models[kind], kind, Block, Numbers)
    assert escapes(right) == 0
    assert covers(effects(right, 60, 300))
    assert 0.85 < spread(right, 2000, 200) < 1.15
    cold = case(models[kind], kind, lambda: Block(temperature=0.5), right.streams)
    assert passes(one_step(cold, 100_000))


@pytest.mark.parametrize("name", ["always accepted", "shared number", "rejections dropped", "wrong temperature"])
def test_a_consistent_model_at_temperature_one_hides_flaws_of_acceptance(models, name):
    """Why the others are needed."""
    hidden = case(models["consistent"], "consistent", lambda: Block(name), MUTANTS[name].streams)
    assert passes(one_step(hidden, 100_000))
    assert passes(geweke(hidden, 500, 200))


@pytest.mark.parametrize("kind", PART)
def test_the_flawless_sampler_is_the_packages(models, kind):
    """Written independently, block of two, temperature 2: both have the transition probabilities of the same row."""
    one, two = (
        case(models[kind], kind, kernel, Numbers)
        for kernel in (lambda: Block(size=2, temperature=2.0), lambda: BlockMH(size=2, temperature=2.0))
    )
    assert one_step(one, 100_000)(3, 1) > 1e-4
    assert one_step(two, 100_000)(3, 1) > 1e-4
