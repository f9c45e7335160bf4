"""Targets against enumeration."""

from __future__ import annotations

import pytest
import torch

from cellxpert.steering.anchors import Anchors
from cellxpert.steering.targets import Target

from .conftest import STATES
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
