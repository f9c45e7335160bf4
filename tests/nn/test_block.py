from __future__ import annotations

import dataclasses

import pytest
import torch

from cellxpert.nn.attention import Layout
from cellxpert.nn.block import Dropout, EncoderBlock


def test_dropout_keeps_the_mean_and_drops_the_share():
    x = torch.ones(400, 501)
    dropout = Dropout(0.25).train()
    torch.manual_seed(0)
    out = dropout(x)
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == 0).float().mean(0).max() < 0.4  # no pattern along columns


def test_dropout_is_reproducible_and_off_in_evaluation():
    x = torch.randn(9, 7, dtype=torch.float64)
    dropout = Dropout(0.5).train()
    torch.manual_seed(3)
    first = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert first.dtype == x.dtype
    assert dropout(x.bfloat16()).dtype == torch.bfloat16
    assert dropout.eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_dropout_scales_the_gradient_alike():
    x = torch.ones(50, 50, requires_grad=True)
    torch.manual_seed(0)
    out = Dropout(0.1).train()(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_dense_block_has_the_active_size_of_the_experts(small_config):
    sparse = EncoderBlock(small_config).feed_forward.experts
    dense = EncoderBlock(dataclasses.replace(small_config, feed_forward="dense")).feed_forward.dense
    per_expert = (sparse.up.numel() + sparse.down.numel()) // small_config.n_experts
    assert dense.up.weight.numel() + dense.down.weight.numel() == small_config.experts_per_token * per_expert


def test_dense_block_returns_no_statistics(small_config):
    block = EncoderBlock(dataclasses.replace(small_config, feed_forward="dense")).eval()
    out, stats = block(torch.randn(5, 64), Layout.of(torch.tensor([2, 3])), torch.ones(5, dtype=torch.bool))
    assert out.shape == (5, 64)
    assert stats is None
