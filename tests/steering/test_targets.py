"""Targets against enumeration."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.steering import targets
from cellxpert.steering.anchors import Anchors
from cellxpert.steering.targets import Target

from .conftest import STATES, inconsistent
from .enumeration import log_target

ORDER = [2, 0, 3, 1]
ANCHORS = torch.tensor([[0, 1, 2, 0], [2, 2, 0, 1]])


@pytest.mark.parametrize("kind", ["consistent", "inconsistent"])
@pytest.mark.parametrize("part", ["joint", "pseudo", "none"])
@pytest.mark.parametrize(("weight", "kappa"), [(1.0, 0.0), (0.7, 0.4), (0.0, 0.4)])
def test_density_is_the_stated_one(models, kind, part, weight, kappa):
    model = models[kind]
    anchors = Anchors(bin_AM=ANCHORS, kappa=kappa) if kappa else None
    target = Target(
        model=model, order_CM=torch.tensor([ORDER]).expand(81, -1), part=part, weight=weight, anchors=anchors
    )
    found = target(STATES).log_density_C
    expected = log_target(
        model, STATES.tolist(), ORDER, part=part, weight=weight, anchors=ANCHORS.tolist() if kappa else (), kappa=kappa
    )
    torch.testing.assert_close(found.log_softmax(0), torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_clamped_sites_stand_first_and_leave_the_pseudo_likelihood(models):
    model = models["inconsistent"]
    target = Target(model=model, order_CM=torch.tensor([ORDER]).expand(81, -1), n_clamped=2, part="pseudo")
    assert target.free_CM[0].tolist() == [False, True, False, True]
    expected = log_target(model, STATES.tolist(), ORDER, part="pseudo", weight=1.0, clamped=2)
    torch.testing.assert_close(
        target(STATES).log_density_C.log_softmax(0), torch.from_numpy(expected), rtol=0, atol=1e-10
    )


def test_known_parts_are_not_computed_again(models):
    anchors = Anchors(bin_AM=ANCHORS, kappa=0.4)
    target = Target(model=models["consistent"], order_CM=torch.tensor([ORDER]).expand(81, -1), anchors=anchors)
    whole = target(STATES)
    again = target(STATES, log_model_C=whole.log_model_C)
    assert torch.equal(again.log_density_C, whole.log_density_C)
    half = target.scaled(0.5)
    combined = half.combine(whole.log_model_C, whole.distance_CA)
    assert torch.equal(combined.log_density_C, half(STATES).log_density_C)
    assert Target(model=models["consistent"], order_CM=target.order_CM).scaled(0.5).anchors is None


def test_rows_repeat_each_chain(models):
    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    target = Target(model=models["inconsistent"], order_CM=orders)
    x = STATES[[5, 60]]
    found = target.rows(3)(x.repeat_interleave(3, dim=0)).log_density_C
    torch.testing.assert_close(found, target(x).log_density_C.repeat_interleave(3))
    picked = target(x).where(torch.tensor([True, False]), target(STATES[[7, 8]]))
    assert picked.log_density_C[0] == target(x).log_density_C[0]
    assert picked.log_density_C[1] == target(STATES[[7, 8]]).log_density_C[1]


MODEL = inconsistent(3)
SITES = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@given(
    before=st.lists(SITES, min_size=5, max_size=5),
    after=st.lists(SITES, min_size=5, max_size=5),
    changed=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=5, max_size=5),
    order=st.lists(st.permutations(range(4)), min_size=5, max_size=5),
    part=st.sampled_from(["joint", "pseudo", "none"]),
    n_clamped=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_what_a_move_changes_is_all_that_it_changes(before, after, changed, order, part, n_clamped):
    order = torch.tensor(order)
    anchors = Anchors(bin_AM=ANCHORS, kappa=0.4)
    target = Target(model=MODEL, order_CM=order, part=part, n_clamped=n_clamped, anchors=anchors, weight=0.7)
    before = torch.tensor(before)
    after = torch.where(torch.tensor(changed) & target.free_CM, torch.tensor(after), before)
    found = target.moved(after, from_CM=before, density=target(before))
    expected = target(after)
    torch.testing.assert_close(found.log_density_C, expected.log_density_C, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.log_model_C, expected.log_model_C, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.distance_CA, expected.distance_CA, rtol=0, atol=0)
    if part != "none":
        torch.testing.assert_close(found.term_CM, expected.term_CM, rtol=0, atol=1e-12)


class Counting:
    """A model that counts what it is asked."""

    def __init__(self, model):
        self.model, self.n_sites, self.n_bins, self.asked = model, model.n_sites, model.n_bins, []

    def log_prob(self, query_CQ, x_CM, visible_CQM):
        return self.model.log_prob(query_CQ, x_CM, visible_CQM)

    def log_prob_packed(self, site_R, x_CM, visible_RM, *, count_C):
        self.asked.append(count_C.tolist())
        x_RM = x_CM.repeat_interleave(count_C, dim=0)
        return self.model.log_prob(site_R[:, None], x_RM, visible_RM[:, None])[:, 0]

    def in_order(self, x_CM, order_CM, *, start_C, choose):
        raise NotImplementedError


@pytest.mark.parametrize("part", ["joint", "pseudo"])
def test_a_move_costs_what_it_changes(part):
    model = Counting(MODEL)
    before = torch.zeros(6, 4, dtype=torch.int64)
    after = before.clone()
    for chain, site in enumerate(ORDER):
        after[chain, site] = 1
    after[4, [ORDER[1], ORDER[3]]] = 2
    target = Target(model=model, order_CM=torch.tensor([ORDER]).expand(6, -1), part=part)
    density = target(before)
    model.asked.clear()
    target.moved(after, from_CM=before, density=density)
    # the sites from the first that changed on, in the order; all of them in a pseudo-likelihood; none where nothing changed
    assert model.asked == [[4, 3, 2, 1, 3, 0] if part == "joint" else [4, 4, 4, 4, 4, 0]]


def test_unknown_terms_are_computed(models):
    target = Target(model=models["inconsistent"], order_CM=torch.tensor([ORDER]).expand(81, -1))
    known = target(STATES.flip(0), log_model_C=torch.zeros(81, dtype=torch.float64))
    assert known.term_CM is None
    found = target.moved(STATES, from_CM=STATES.flip(0), density=known)
    assert torch.equal(found.log_density_C, target(STATES).log_density_C)


def test_rows_of_a_density(models):
    target = Target(model=models["inconsistent"], order_CM=torch.tensor([ORDER]).expand(81, -1))
    index = torch.tensor([5, 5, 0])
    found, expected = (
        target(STATES).rows(index),
        dataclasses.replace(target, order_CM=target.order_CM[:3])(STATES[index]),
    )
    for name in ("log_model_C", "log_density_C", "term_CM"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-12)
    assert found.distance_CA is None


def test_a_term_left_out_is_seen(monkeypatch):
    """The mutant: sites after the first that changed, without it."""
    real = targets.terms_of
    target = Target(model=MODEL, order_CM=torch.tensor([ORDER]).expand(81, -1))
    before, after = STATES, STATES.flip(0)

    def late(model, x_CM, asked_CM, *, rank_CM):
        first = asked_CM & (rank_CM == rank_CM.masked_fill(~asked_CM, 9).amin(1, keepdim=True))
        terms = real(model, x_CM, asked_CM, rank_CM=rank_CM)
        return torch.where(first[asked_CM], target(before).term_CM[asked_CM], terms)

    density = target(before)
    assert (
        target.moved(after, from_CM=before, density=density).log_density_C - target(after).log_density_C
    ).abs().max() < 1e-12
    monkeypatch.setattr(targets, "terms_of", late)
    assert (
        target.moved(after, from_CM=before, density=density).log_density_C - target(after).log_density_C
    ).abs().max() > 0.1
