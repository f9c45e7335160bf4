"""Heads against plain loops."""

from __future__ import annotations

import pytest
import torch

from cellxpert.nn.attention import Layout
from cellxpert.nn.heads import BinHead, LabelHead

LENGTHS = [1, 4, 2]
FEATURES = torch.tensor([5, 5, 0, 1, 3, 5, 4])
BINS = torch.tensor([0, 0, 2, 1, 3, 0, 2])


def _drawn(head):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(generator=generator)
    return head.eval()


def _label_head(gradient=0.0):
    return _drawn(LabelHead(8, 3, n_features=5, n_bins=4, dropout=0.5, gradient=gradient))


def test_label_logits_are_a_loop():
    head, cell = _label_head(), torch.randn(3, 8)
    found = head(cell, Layout.of(torch.tensor(LENGTHS)), feature_T=FEATURES, bin_T=BINS)
    for logits, vector, features, bins in zip(found, cell, FEATURES.split(LENGTHS), BINS.split(LENGTHS), strict=True):
        expected = head.cell(vector)
        for feature, bin_ in zip(features[1:], bins[1:], strict=True):
            expected = expected + head.scale_K[bin_] * head.magnitude.weight[feature]
        torch.testing.assert_close(logits, expected)
    assert head.scale_K.tolist() == [0, 2, 3, 4]


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
