"""Heads against plain loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cellxpert.nn.attention import Layout
from cellxpert.nn.heads import BatchAdversary, BinHead, LabelHead

LENGTHS = [1, 4, 2]
FEATURES = torch.tensor([5, 5, 0, 1, 3, 5, 4])
BINS = torch.tensor([0, 0, 2, 1, 3, 0, 2])


def _drawn(head):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(generator=generator)
    return head.eval()


MODALITY = torch.tensor([0, 0, 1, 1, 1])


def _label_head(gradient=0.0, n_image=0):
    return _drawn(LabelHead(8, 3, modality_V=MODALITY, n_bins=4, dropout=0.5, gradient=gradient, n_image=n_image))


def test_label_logits_are_a_loop():
    head, cell = _label_head(), torch.randn(3, 8)
    found = head(cell, Layout.of(torch.tensor(LENGTHS)), feature_T=FEATURES, bin_T=BINS)
    for logits, vector, features, bins in zip(found, cell, FEATURES.split(LENGTHS), BINS.split(LENGTHS), strict=True):
        expected = head.cell(vector)
        for feature, bin_ in zip(features[1:], bins[1:], strict=True):
            expected = expected + head.scale_MK[MODALITY[feature], bin_] * head.magnitude.weight[feature]
        torch.testing.assert_close(logits, expected)


def test_each_modality_has_a_scale_of_its_own():
    head = _label_head()
    assert head.scale_MK.tolist() == [[0, 2, 3, 4]] * 2
    head.start_from(torch.tensor([[0, 1, 1.5, 3], [0, 0, 0, 0]]))
    cell, layout = torch.randn(3, 8), Layout.of(torch.tensor(LENGTHS))
    found = head(cell, layout, feature_T=FEATURES, bin_T=BINS)
    weight = head.magnitude.weight
    torch.testing.assert_close(found[1], head.cell(cell[1]) + 1.5 * weight[0] + weight[1])
    torch.testing.assert_close(found[2], head.cell(cell[2]))  # what it has is of the modality left out


def test_image_features_add_to_the_logits_of_cells_that_have_them():
    head, cell, layout = _label_head(n_image=2), torch.randn(3, 8), Layout.of(torch.tensor(LENGTHS))
    image = torch.tensor([[1.0, -2.0], [float("nan"), 1.0], [0.5, 0.0]])
    plain = head(cell, layout, feature_T=FEATURES, bin_T=BINS)
    found = head(cell, layout, feature_T=FEATURES, bin_T=BINS, image_BF=image)
    torch.testing.assert_close(found[[0, 2]], plain[[0, 2]] + image[[0, 2]] @ head.image.weight.T)
    torch.testing.assert_close(found[1], plain[1])


@pytest.mark.parametrize("gradient", [0.0, 0.25, 1.0])
def test_share_of_the_gradient_that_reaches_the_encoder(gradient):
    head, cell = _label_head(gradient), torch.randn(3, 8, requires_grad=True)
    head(cell, Layout.of(torch.tensor(LENGTHS)), feature_T=FEATURES, bin_T=BINS)[:, 0].sum().backward()
    torch.testing.assert_close(cell.grad, gradient * head.cell.weight[0].detach().expand(3, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_are_exact_under_autocast(dtype):
    layout, vectors = Layout.of(torch.tensor(LENGTHS)), torch.randn(3, 8, dtype=dtype)
    label, bins = _label_head().to(dtype), BinHead(8, n_features=5, n_bins=4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        labels = label(vectors, layout, feature_T=FEATURES, bin_T=BINS)
        logits = bins(vectors[None], torch.tensor([[0, 4, -1]]))
    assert {x.dtype for x in (labels, logits)} == {dtype}
    assert torch.equal(labels, label(vectors, layout, feature_T=FEATURES, bin_T=BINS))


def test_bins_add_what_is_usual_for_the_feature():
    head, answers = BinHead(8, n_features=5, n_bins=4), torch.randn(2, 3, 8)
    ids = torch.tensor([[0, 4, 2], [1, 1, -1]])
    found = head(answers, ids)
    expected = answers @ head.linear.weight.T + head.prior.weight[ids.clamp(min=0)]
    torch.testing.assert_close(found, expected)


# --- an adversary ------------------------------------------------------------------------------------------------------


def test_an_adversary_answers_as_a_plain_head_and_turns_the_gradient_round():
    adversary = BatchAdversary(8, 3, generator=torch.Generator().manual_seed(0))
    cell = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    batch = torch.tensor([0, 2, 1, 1, 0])
    loss = F.cross_entropy(adversary(cell), batch)
    plain = F.cross_entropy(adversary.out(F.gelu(adversary.hidden(cell))), batch)
    assert loss.item() == plain.item()
    own = [cell, *adversary.parameters()]
    for found, expected, sign in zip(
        torch.autograd.grad(loss, own), torch.autograd.grad(plain, own), [-1, 1, 1, 1, 1], strict=True
    ):
        torch.testing.assert_close(found, sign * expected)


def test_an_adversary_is_drawn_from_its_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (
        BatchAdversary(8, 3, generator=torch.Generator().manual_seed(s)).state_dict() for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["hidden.weight"], other["hidden.weight"])
