"""Losses against closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cellxpert.batch import IGNORE, Questions, RouterStats
from cellxpert.training.objectives import (
    TEMPERATURE,
    LabelObjective,
    adversary_loss,
    bins_loss,
    class_margins,
    class_weights,
    contrast_loss,
    label_loss,
    router_losses,
)


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
    loss = label_loss(logits, label, LabelObjective(weight_C=class_weights(counts, "weighted")))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_follow_the_effective_number() -> None:
    weights = class_weights([100, 1, 0], "balanced")
    ratio = ((1 - 0.99) / (1 - 0.99**1)) / ((1 - 0.99) / (1 - 0.99**100))
    assert weights[1].item() / weights[0].item() == pytest.approx(ratio, rel=1e-5)
    assert weights[2].item() == 0
    assert weights[:2].mean().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("kind", ["plain", "ldam"])
def test_all_cells_weigh_alike(kind: str) -> None:
    assert class_weights([3, 4], kind) is None


def test_margins_are_the_published_ones() -> None:
    """Cao et al. 2019: proportional to n^(-1/4), here with 2 for the rarest; a label without cells has none."""
    margins = class_margins([16, 1, 0, 81])
    assert margins.tolist() == pytest.approx([2 / 2, 2.0, 0.0, 2 / 3], rel=1e-6)
    assert class_margins(torch.tensor([32, 512])).tolist() == pytest.approx([2.0, 1.0], rel=1e-6)


ALLOWED = [[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
"""Labels 2 and 3 are kinds of label 0."""


def _labelled(seed: int, n_cells: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n_cells, 4, generator=generator), torch.arange(n_cells) % 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_exact_labels_have_the_cross_entropy_of_torch(smoothing: float) -> None:
    logits, label = _labelled(0)
    for allowed in (None, torch.eye(4, dtype=torch.bool)):
        found = label_loss(logits, label, LabelObjective(allowed_CC=allowed, smoothing=smoothing))
        assert found.item() == pytest.approx(F.cross_entropy(logits, label, label_smoothing=smoothing).item(), rel=1e-5)


def test_weights_are_those_of_torch() -> None:
    logits, label = _labelled(1)
    weight = torch.tensor([0.2, 1.0, 3.0, 0.0])
    found = label_loss(logits, label, LabelObjective(weight_C=weight))
    assert found.item() == pytest.approx(F.cross_entropy(logits, label, weight=weight).item(), rel=1e-5)


@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("margins", [False, True])
def test_label_loss_is_a_plain_loop(marginal: bool, margins: bool) -> None:
    """Weights, margins, labels that others are kinds of and smoothing, all at once."""
    logits, label = _labelled(2)
    label[4] = IGNORE
    weight, margin = [0.2, 1.0, 3.0, 0.7], [0.5, 2.0, 1.0, 0.1] if margins else [0.0] * 4
    allowed = ALLOWED if marginal else np.eye(4).tolist()
    total = size = 0.0
    for cell, truth in zip(logits.double().tolist(), label.tolist(), strict=True):
        if truth == IGNORE:
            continue
        shifted = [x - m if may else x for x, m, may in zip(cell, margin, allowed[truth], strict=True)]
        p = [math.exp(x) / sum(math.exp(y) for y in shifted) for x in shifted]
        right = -math.log(sum(x for x, may in zip(p, allowed[truth], strict=True) if may))
        total += weight[truth] * (0.8 * right + 0.2 * sum(-math.log(x) for x in p) / 4)
        size += weight[truth]
    objective = LabelObjective(
        weight_C=torch.tensor(weight),
        margin_C=torch.tensor(margin) if margins else None,
        allowed_CC=torch.tensor(ALLOWED).bool() if marginal else None,
        smoothing=0.2,
    )
    assert label_loss(logits, label, objective).item() == pytest.approx(total / size, rel=1e-5)


def test_a_coarse_label_does_not_choose_among_its_kinds() -> None:
    """Where the classes it may be have all the probability, no logit is pushed anywhere; a fine label still pushes."""
    logits = torch.tensor([[1.0, -40.0, 0.0, 2.0]], requires_grad=True)
    objective = LabelObjective(allowed_CC=torch.tensor(ALLOWED).bool())
    label_loss(logits, torch.tensor([0]), objective).backward()
    assert logits.grad.abs().max() < 1e-6
    logits.grad = None
    label_loss(logits, torch.tensor([2]), objective).backward()
    assert logits.grad[0, 2] < -0.5


def test_unlabelled_cells_do_not_count() -> None:
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), requires_grad=True)
    plain = LabelObjective()
    some = label_loss(logits, torch.tensor([1, IGNORE, 0]), plain)
    assert some.item() == pytest.approx(label_loss(logits[[0, 2]], torch.tensor([1, 0]), plain).item(), rel=1e-6)
    none = label_loss(logits, torch.full((3,), IGNORE), plain)
    none.backward()
    assert none.item() == 0
    assert not logits.grad.any()


def test_router_losses() -> None:
    importance, load = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    stats = RouterStats(importance_E=importance, load_E=load, z=torch.tensor(0.5), count_E=load)
    losses = router_losses([stats, stats])
    assert losses["importance"].item() == pytest.approx((math.sqrt(1.0) / 2.0) ** 2, rel=1e-5)
    assert losses["load"].item() == 0
    assert losses["router_z"].item() == 0.5


def _vectors(seed: int, n: int = 5) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def test_contrast_is_a_plain_loop() -> None:
    a, b = _vectors(0), _vectors(1)
    total = 0.0
    for one, other in ((a, b), (b, a)):
        for i in range(5):
            cosine = [float(one[i] @ other[j] / (one[i].norm() * other[j].norm())) / TEMPERATURE for j in range(5)]
            total -= math.log(math.exp(cosine[i]) / sum(math.exp(x) for x in cosine))
    assert contrast_loss(a, b).item() == pytest.approx(total / 10, rel=1e-5)
    assert contrast_loss(3 * a, b).item() == pytest.approx(contrast_loss(a, b).item(), rel=1e-5)


@pytest.mark.parametrize("n", [2, 7])
def test_contrast_where_it_is_known(n: int) -> None:
    """All vectors alike: chance. Each alike with its partner and at right angles to the others: nearly nothing."""
    assert contrast_loss(torch.ones(n, 3), torch.ones(n, 3)).item() == pytest.approx(math.log(n), rel=1e-5)
    right = math.log(1 + (n - 1) * math.exp(-1 / TEMPERATURE))
    assert contrast_loss(torch.eye(n), torch.eye(n)).item() == pytest.approx(right, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_a_pair_without_others_is_no_contrast(n: int) -> None:
    a, b = _vectors(0, n).requires_grad_(), _vectors(1, n).requires_grad_()
    loss = contrast_loss(a, b)
    loss.backward()
    assert loss.item() == 0
    assert not a.grad.any()
    assert not b.grad.any()


def test_an_adversary_counts_where_the_batch_is_told() -> None:
    logits, batch = _vectors(3), torch.tensor([0, 3, IGNORE, 1, IGNORE])
    expected = np.mean([-logits[b].log_softmax(-1)[batch[b]].item() for b in (0, 1, 3)])
    assert adversary_loss(logits, batch).item() == pytest.approx(expected, rel=1e-5)
    logits = logits.requires_grad_()
    nothing = adversary_loss(logits, torch.full((5,), IGNORE))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()
