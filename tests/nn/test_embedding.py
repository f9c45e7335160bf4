from __future__ import annotations

import torch

from cellxpert.nn.embedding import Embedding


def _embedding(n_positions=0):
    return Embedding([0, 0, 1, 2], n_bins=5, width=8, n_positions=n_positions)


def test_a_token_is_the_sum_of_its_tables():
    e = _embedding(n_positions=6)
    found = e.tokens(torch.tensor([2, 0]), torch.tensor([4, 1]), torch.tensor([5, 3]))
    for row, (feature, bin_, modality, position) in zip(found, [(2, 4, 1, 5), (0, 1, 0, 3)], strict=True):
        expected = (
            e.feature.weight[feature] + e.bin.weight[bin_] + e.modality.weight[modality] + e.position.weight[position]
        )
        torch.testing.assert_close(row, expected)


def test_a_value_is_a_function_of_feature_and_bin_alone():
    e = _embedding(n_positions=6)
    one = e.tokens(torch.tensor([3]), torch.tensor([2]))
    many = e.tokens(torch.tensor([[1, 3], [3, 0]]), torch.tensor([[2, 2], [2, 4]]))
    torch.testing.assert_close(many[0, 1], one[0], rtol=0, atol=0)
    torch.testing.assert_close(many[1, 0], one[0], rtol=0, atol=0)


def test_a_query_has_a_table_of_its_own():
    e = _embedding()
    expected = e.query.weight[1] + e.modality.weight[0]
    torch.testing.assert_close(e.queries(torch.tensor([1]))[0], expected)


def test_cls_has_an_id_and_a_modality_of_its_own():
    e = _embedding()
    assert e.feature.weight.shape == (5, 8)
    assert e.feature_modality.tolist() == [0, 0, 1, 2, 3]
    torch.testing.assert_close(e.identity(torch.tensor([4]))[0], e.feature.weight[4] + e.modality.weight[3])


def test_padding_is_finite():
    assert _embedding().tokens(torch.tensor([-1]), torch.tensor([-1])).isfinite().all()
    assert _embedding().queries(torch.tensor([[-1]])).isfinite().all()
