"""Heads against plain loops."""

from __future__ import annotations

import pytest
import torch

from cellxpert.nn.attention import Layout
from cellxpert.nn.heads import BinHead, CellHead, LabelHead

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


def _cell_head(pooling):
    return _drawn(CellHead(8, n_features=5, n_bins=4, pooling=pooling))


def test_mean_pooling_is_a_loop():
    head, tokens = _cell_head("mean"), torch.randn(7, 8)
    found = head(tokens, Layout.of(torch.tensor(LENGTHS)), feature_T=FEATURES, bin_T=BINS)
    parts = (x.split(LENGTHS) for x in (tokens, FEATURES, BINS))
    for vector, own, features, bins in zip(found, *parts, strict=True):
        mean, bag = torch.zeros(8), torch.zeros(8)
        for token, feature, bin_ in zip(own[1:], features[1:], bins[1:], strict=True):
            mean = mean + token / (len(own) - 1)
            bag = bag + head.scale[bin_] * head.feature.weight[feature]
        expected = head.norm(head.bag_norm(bag) + head.gate * (own[0] + head.pool.weight @ mean))
        torch.testing.assert_close(vector, expected)


def test_cls_pooling_reads_cls_alone():
    head, tokens = _cell_head("cls"), torch.randn(7, 8)
    assert [name for name, _ in head.named_parameters()] == ["norm.weight"]
    found = head(tokens, Layout.of(torch.tensor(LENGTHS)), feature_T=FEATURES, bin_T=BINS)
    torch.testing.assert_close(found, head.norm(tokens[[0, 1, 5]]))


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
    layout = Layout.of(torch.tensor(LENGTHS))
    cell, label = _cell_head("mean").to(dtype), _label_head().to(dtype)
    bins = BinHead(8, n_features=5, n_bins=4).to(dtype)
    tokens = torch.randn(7, 8).bfloat16()
    plain = cell(tokens, layout, feature_T=FEATURES, bin_T=BINS)
    with torch.autocast("cpu", torch.bfloat16):
        found = cell(tokens, layout, feature_T=FEATURES, bin_T=BINS)
        labels = label(found, layout, feature_T=FEATURES, bin_T=BINS)
        logits = bins(found[None], torch.tensor([[0, 4, -1]]))
    assert {x.dtype for x in (found, labels, logits)} == {dtype}
    assert torch.equal(found, plain)


def test_bins_add_what_is_usual_for_the_feature():
    head, answers = BinHead(8, n_features=5, n_bins=4), torch.randn(2, 3, 8)
    ids = torch.tensor([[0, 4, 2], [1, 1, -1]])
    found = head(answers, ids)
    expected = answers @ head.linear.weight.T + head.prior.weight[ids.clamp(min=0)]
    torch.testing.assert_close(found, expected)
