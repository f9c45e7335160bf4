"""Cell vectors, and queries that carry them, against plain loops."""

from __future__ import annotations

import pytest
import torch

from cellxpert.nn.attention import Layout
from cellxpert.nn.cell import CellHead, CellQueries, magnitude_scale

MODALITY = torch.tensor([0, 0, 1, 0, 1])
LENGTHS = [1, 4, 2, 4]
FEATURES = torch.tensor([5, 5, 0, 1, 2, 5, 4, 5, 0, 2, 3])
BINS = torch.tensor([0, 0, 2, 1, 3, 0, 2, 0, 0, 1, 3])
LAYOUT = Layout.of(torch.tensor(LENGTHS))


def _drawn(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(generator=generator)
    return module.eval()


def _head(pooling):
    head = _drawn(CellHead(8, modality_V=MODALITY, n_bins=4, pooling=pooling))
    if pooling == "mean":
        head.usual_V.copy_(torch.tensor([0.5, 0.25, 0.25, 0.25, 0.75]))
    return head


def _cells():
    return zip(FEATURES.split(LENGTHS), BINS.split(LENGTHS), strict=True)


def test_scale_of_bins():
    assert magnitude_scale(4).tolist() == [0, 0.5, 0.75, 1]


def test_mean_pooling_is_a_loop():
    head, tokens = _head("mean"), torch.randn(11, 8)
    found = head(tokens, LAYOUT, feature_T=FEATURES, bin_T=BINS)
    for vector, own, (features, bins) in zip(found, tokens.split(LENGTHS), _cells(), strict=True):
        reading = torch.zeros(8)
        for modality in (0, 1):
            read = {
                f: head.scale_K[b]
                for f, b in zip(features[1:].tolist(), bins[1:], strict=True)
                if MODALITY[f] == modality
            }
            total = sum(read.values())
            for f in range(5):
                if total and MODALITY[f] == modality:
                    share = read.get(f, 0.0) / total
                    reading = reading + (share - head.usual_V[f]) * head.feature.weight[f]
        mean = own[1:].mean(0) if len(own) > 1 else torch.zeros(8)
        expected = head.norm(head.reading_norm(reading) + head.gate * (own[0] + head.pool.weight @ mean))
        torch.testing.assert_close(vector, expected)


def test_cls_pooling_reads_cls_alone():
    head, tokens = _head("cls"), torch.randn(11, 8)
    assert [name for name, _ in head.named_parameters()] == ["norm.weight"]
    found = head(tokens, LAYOUT, feature_T=FEATURES, bin_T=BINS)
    torch.testing.assert_close(found, head.norm(tokens[[0, 1, 5, 7]]))


def test_reading_starts_at_given_components():
    head, vectors = _head("mean"), torch.randn(5, 3)
    head.start_from(torch.full((5,), 0.2), vectors)
    assert torch.equal(head.feature.weight[:, :3], vectors)
    assert not head.feature.weight[:, 3:].any()
    assert torch.equal(head.usual_V, torch.full((5,), 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_are_exact_under_autocast(dtype):
    head, tokens = _head("mean").to(dtype), torch.randn(11, 8).bfloat16()
    plain = head(tokens, LAYOUT, feature_T=FEATURES, bin_T=BINS)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(tokens, LAYOUT, feature_T=FEATURES, bin_T=BINS)
    assert found.dtype == dtype
    assert torch.equal(found, plain)


def test_lowest_bins_are_a_loop():
    found = CellQueries(8, modality_V=MODALITY, n_bins=4).lowest(LAYOUT, feature_T=FEATURES, bin_T=BINS)
    for lowest, (features, bins) in zip(found.tolist(), _cells(), strict=True):
        seen = [
            [b for f, b in zip(features[1:].tolist(), bins[1:].tolist(), strict=True) if b and MODALITY[f] == m]
            for m in (0, 1)
        ]
        assert lowest == [min(bins_of, default=0) for bins_of in seen]


def test_queries_carry_vector_and_depth():
    module = _drawn(CellQueries(8, modality_V=MODALITY, n_bins=4))
    queries, cells = torch.randn(2, 3, 8), torch.randn(2, 8)
    found = module(queries, cells, torch.tensor([[1, 0], [3, 2]]))
    for b, rows in enumerate(((1, 4), (3, 6))):
        gain = 1 + module.gain.weight @ cells[b]
        for q in range(3):
            expected = queries[b, q] * gain + module.depth.weight[rows[0]] + module.depth.weight[rows[1]]
            torch.testing.assert_close(found[b, q], expected)
