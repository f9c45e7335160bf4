from __future__ import annotations

import pytest
import torch


def test_statistics_leave_out_cls_and_padding(make_network, make_batch):
    network, lengths = make_network(), [4, 9, 6]
    for batch in (make_batch(lengths), make_batch(lengths, pad_length=11)):
        routers = network.encode(batch).routers
        assert len(routers) == network.config.encoder_layers
        for stats in routers:
            assert stats.count_E.sum() == 2 * (sum(lengths) - len(lengths))
            assert stats.importance_E.sum().item() == pytest.approx(sum(lengths) - len(lengths), rel=1e-5)


def test_tokens_come_back_packed(make_network, make_batch):
    network = make_network()
    packed, padded = (network.encode(make_batch([4, 9, 6], pad_length=p)) for p in (None, 12))
    assert packed.tokens_TD.shape == (19, 64)
    assert torch.equal(packed.tokens_TD, padded.tokens_TD)
    assert packed.layout.lengths == padded.layout.lengths == (4, 9, 6)


def test_the_order_of_tokens_does_not_matter_without_positions(make_network, make_batch):
    network, batch = make_network().double(), make_batch([15])
    order = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(14) + 1])
    shuffled = type(batch)(feature_T=batch.feature_T[order], bin_T=batch.bin_T[order], lengths_B=batch.lengths_B)
    one, other = network.encode(batch).cell_BD, network.encode(shuffled).cell_BD
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
