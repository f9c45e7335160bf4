"""Distributions made of conditionals, against loops over states."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from cellxpert.steering.conditionals import (
    Packed,
    Padded,
    block_log_prob,
    categorical,
    causal_terms,
    draw_in_order,
    leave_one_out_log_prob,
    packed,
    ranks,
    terms_of,
)

from .conftest import STATES, joint_of
from .enumeration import chi_square, log_conditional, passes

X = STATES[[0, 17, 40, 80]]


def test_ranks_invert_an_order():
    order = torch.tensor([[2, 0, 3, 1]])
    assert ranks(order).tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize("kind", ["consistent", "inconsistent"])
def test_passes_equal_single_questions(models, kind):
    model, order = models[kind], torch.tensor([[2, 0, 3, 1]]).expand(4, -1)
    causal, loo = causal_terms(model, X, ranks(order)), leave_one_out_log_prob(model, X)
    block = block_log_prob(model, X, torch.tensor([[1, 3]]).expand(4, -1))
    for c, x in enumerate(X.tolist()):
        for place, g in enumerate([2, 0, 3, 1]):
            seen = [2, 0, 3, 1][:place]
            assert causal[c, g].item() == pytest.approx(log_conditional(model, g, x, seen)[x[g]], abs=1e-12)
            others = [h for h in range(4) if h != g]
            assert loo[c, g].tolist() == pytest.approx(log_conditional(model, g, x, others), abs=1e-12)
        for b, g in enumerate([1, 3]):
            assert block[c, b].tolist() == pytest.approx(log_conditional(model, g, x, [0, 2]), abs=1e-12)


def test_every_order_gives_a_normalised_joint_and_a_consistent_model_the_same(models):
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        rank = ranks(torch.tensor([order])).expand(81, -1)
        for kind, model in models.items():
            log_joint = causal_terms(model, STATES, rank).sum(1)
            assert log_joint.exp().sum().item() == pytest.approx(1, abs=1e-12)
            if kind == "consistent":
                torch.testing.assert_close(log_joint, joint_of(0), rtol=0, atol=1e-12)


def test_draws_in_order_have_the_joint_law(models):
    order, model = [3, 1, 0, 2], models["inconsistent"]

    def p_value(seed, factor):
        n = 20_000 * factor
        uniform = torch.rand(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        start = torch.zeros(n, dtype=torch.int64)
        orders = torch.tensor([order]).expand(n, -1)
        zeros = torch.zeros(n, 4, dtype=torch.int64)
        x = draw_in_order(model, zeros, orders, start_C=start, uniform_CM=uniform).x_CM
        counts = torch.zeros(81).index_add_(0, (x * torch.tensor([27, 9, 3, 1])).sum(1), torch.ones(n))
        log_joint = [
            sum(log_conditional(model, g, s, order[:p])[s[g]] for p, g in enumerate(order)) for s in STATES.tolist()
        ]
        return chi_square(counts, n * torch.tensor(log_joint).exp())

    assert passes(p_value)


def test_what_stands_before_the_start_stays(models):
    uniform = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([[2, 0, 3, 1]]).expand(4, -1)
    start = torch.tensor([0, 1, 3, 4])
    x = draw_in_order(models["inconsistent"], X, order, start_C=start, uniform_CM=uniform).x_CM
    for c in range(4):
        kept = order[c, : start[c]]
        assert torch.equal(x[c, kept], X[c, kept])
    assert torch.equal(x[3], X[3])


@pytest.mark.parametrize("kind", ["consistent", "inconsistent"])
def test_draws_tell_the_terms_of_the_joint(models, kind):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(81, 4, dtype=torch.float64, generator=generator)
    order = torch.stack([torch.randperm(4, generator=generator) for _ in range(81)])
    start = torch.arange(81) % 5
    drawn = draw_in_order(models[kind], STATES, order, start_C=start, uniform_CM=uniform)
    terms = causal_terms(models[kind], drawn.x_CM, ranks(order))
    fresh = ranks(order) >= start[:, None]
    torch.testing.assert_close(drawn.log_prob_CM[fresh], terms[fresh], rtol=0, atol=1e-12)
    assert drawn.log_prob_CM[~fresh].isnan().all()


def test_packed_questions_of_any_model(models):
    """Every model answers different numbers of questions per chain; one that can do it itself is asked itself."""
    model = models["inconsistent"]
    generator = torch.Generator().manual_seed(0)
    for counts in ([3, 0, 1, 4], [2, 2, 2, 2], [0, 0, 0, 0]):
        site = torch.randint(0, 4, (sum(counts),), generator=generator)
        visible = torch.rand(sum(counts), 4, generator=generator) < 0.5
        found = packed(model).log_prob_packed(site, X, visible, count_C=torch.tensor(counts))
        chain = torch.arange(4).repeat_interleave(torch.tensor(counts))
        expected = [
            log_conditional(model, int(s), X[c].tolist(), seen.nonzero()[:, 0].tolist())
            for c, s, seen in zip(chain, site, visible, strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).view(-1, 3), rtol=0, atol=1e-12)
    able = packed(model)
    assert isinstance(able, Padded)
    assert isinstance(able, Packed)
    assert packed(able) is able


@pytest.mark.parametrize("in_order", [True, False])
def test_terms_of_some_sites(models, in_order):
    model = models["inconsistent"]
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(4, generator=generator) for _ in range(81)])
    rank = ranks(order) if in_order else None
    asked = torch.rand(81, 4, generator=generator) < 0.4
    everything = (
        causal_terms(model, STATES, rank)
        if in_order
        else leave_one_out_log_prob(model, STATES).gather(2, STATES[..., None])[..., 0]
    )
    found = terms_of(model, STATES, asked, rank_CM=rank)
    torch.testing.assert_close(found, everything[asked], rtol=0, atol=1e-12)


def test_categorical_inverts_the_cumulative_sum():
    log_p = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25]).log()
    uniform = torch.tensor([[0.0, 0.2, 0.24, 0.3, 0.74, 0.76, 1 - 2**-53]], dtype=torch.float64)
    drawn = categorical(log_p.expand(1, 7, 5), uniform)
    assert drawn[0].tolist() == [1, 1, 1, 2, 2, 4, 4]
    many = torch.rand(1, 40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(categorical(log_p.expand(1, 40_000, 5), many)[0], minlength=5)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert stats.chisquare(counts[[1, 2, 4]], [10_000, 20_000, 10_000]).pvalue > 1e-4
    assert math.isclose(counts.sum().item(), 40_000)
