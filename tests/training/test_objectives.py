"""Losses against closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cellxpert.batch import IGNORE, Questions, RouterStats
from cellxpert.training.objectives import bins_loss, class_weights, label_loss, router_losses


def test_bins_loss_is_the_mean_negative_log_likelihood() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([[0, 3, IGNORE], [2, IGNORE, 1]])
    expected = np.mean(
        [-logits[b, q].log_softmax(-1)[target[b, q]].item() for b in range(2) for q in range(3) if target[b, q] >= 0]
    )
    questions = Questions(query_BQ=torch.zeros(2, 3, dtype=torch.long), target_BQ=target)
    assert bins_loss(logits, questions).item() == pytest.approx(expected, rel=1e-6)


def test_bins_loss_without_targets_is_zero_and_has_a_gradient() -> None:
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss = bins_loss(logits, Questions(query_BQ=torch.zeros(1, 2), target_BQ=torch.full((1, 2), IGNORE)))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_bins_loss_corrects_for_the_rate_at_which_zeros_are_asked() -> None:
    """With all expressed features asked and a tenth of the zeros, the minimum is at the frequencies in the cell."""
    frequency = torch.tensor([0.9, 0.07, 0.03], dtype=torch.float64)  # bins in the cell; bin 0 is zero
    rate = torch.tensor([0.1, 1.0])
    n = 10_000
    asked = [round(n * f * r) for f, r in zip(frequency.tolist(), (0.1, 1.0, 1.0), strict=True)]
    target = torch.repeat_interleave(torch.arange(3), torch.tensor(asked))[None]
    questions = Questions(query_BQ=torch.zeros_like(target), target_BQ=target, rate_B2=rate[None])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = bins_loss(logits.expand(1, target.shape[1], 3), questions)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(logits.softmax(-1), frequency, atol=1e-3)


def test_weighted_label_loss_is_the_published_one() -> None:
    """arXiv:2605.00930: alpha_k = (1/n_k) / sum_j (1/n_j), loss = -sum alpha log p / sum alpha."""
    counts = [10, 3, 1]
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 0, 1, 2, 1])
    alpha = (1 / np.array(counts)) / (1 / np.array(counts)).sum()
    log_p = logits.double().log_softmax(-1).numpy()
    weights = alpha[label.numpy()]
    expected = -(weights * log_p[np.arange(5), label.numpy()]).sum() / weights.sum()
    loss = label_loss(logits, label, weight_C=class_weights(counts, "weighted"))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_follow_the_effective_number() -> None:
    weights = class_weights([100, 1, 0], "balanced")
    ratio = ((1 - 0.99) / (1 - 0.99**1)) / ((1 - 0.99) / (1 - 0.99**100))
    assert weights[1].item() / weights[0].item() == pytest.approx(ratio, rel=1e-5)
    assert weights[2].item() == 0
    assert weights[:2].mean().item() == pytest.approx(1, rel=1e-6)


def test_plain_has_no_weights() -> None:
    assert class_weights([3, 4], "plain") is None


def test_unlabelled_cells_do_not_count() -> None:
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    some = label_loss(logits, torch.tensor([1, IGNORE, 0]))
    assert some.item() == pytest.approx(label_loss(logits[[0, 2]], torch.tensor([1, 0])).item(), rel=1e-6)
    assert label_loss(logits, torch.full((3,), IGNORE)).item() == 0


def test_router_losses() -> None:
    importance, load = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    stats = RouterStats(importance_E=importance, load_E=load, z=torch.tensor(0.5), count_E=load)
    losses = router_losses([stats, stats])
    assert losses["importance"].item() == pytest.approx((math.sqrt(1.0) / 2.0) ** 2, rel=1e-5)
    assert losses["load"].item() == 0
    assert losses["router_z"].item() == 0.5
