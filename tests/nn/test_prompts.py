from __future__ import annotations

import dataclasses

import pytest
import torch

from cellxpert.batch import Batch
from cellxpert.nn.attention import Layout
from cellxpert.nn.prompts import Prompts


def test_prompts_follow_the_tokens_of_each_cell():
    lengths, width = [3, 1, 4], 2
    prompts = Prompts(2, width)
    with torch.no_grad():
        prompts.weight.copy_(torch.tensor([[-1.0, -1.0], [-2.0, -2.0]]))
    tokens = torch.arange(1.0, 9.0)[:, None].expand(-1, width)
    found = prompts(tokens, Layout.of(torch.tensor(lengths)))
    expected, counted, own, at = [], [], [], 0
    for n in lengths:  # a plain loop
        for i in range(n):
            own.append(len(expected))
            expected.append(float(tokens[at, 0]))
            counted.append(i > 0)
            at += 1
        expected += [-1.0, -2.0]
        counted += [False, False]
    assert found.tokens_WD[:, 0].tolist() == expected
    assert found.counted_W.tolist() == counted
    assert found.own_T.tolist() == own
    assert found.layout.lengths == (5, 3, 6)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_a_cell_with_prompts_is_the_same_alone_or_in_any_batch(make_network, make_batch, backend):
    network, lengths = make_network(n_prompts=3, attention=backend), [7, 23, 1, 12]
    with torch.no_grad():
        packed = make_batch(lengths)
        together = network.encode(packed).cell_BD
        assert (together - network.encode(make_batch(lengths, pad_length=40)).cell_BD).abs().max() < 1e-5
        starts = [0, 7, 30, 31]
        for b in range(4):
            own = slice(starts[b], starts[b] + lengths[b])
            alone = Batch(
                feature_T=packed.feature_T[own], bin_T=packed.bin_T[own], lengths_B=packed.lengths_B[b : b + 1]
            )
            assert (network.encode(alone).cell_BD[0] - together[b]).abs().max() < 1e-5


def test_nothing_after_the_encoder_sees_prompts(make_network, make_batch):
    network, batch = make_network(n_prompts=3), make_batch([4, 9, 6], n_queries=5)
    encoded = network.encode(batch)
    assert encoded.tokens_TD.shape == (19, 64)
    assert encoded.layout.lengths == (4, 9, 6)
    assert network.memory(encoded).tokens_BLD.shape == (3, 9, 64)
    for stats in encoded.routers:  # of the tokens that count, two experts each
        assert stats.count_E.sum() == 2 * (19 - 3)


def test_prompts_change_cells_and_learn(make_network, make_batch):
    plain, prompted, batch = make_network(), make_network(n_prompts=3), make_batch([5, 8], n_queries=4)
    theirs = prompted.state_dict()
    for name, weight in plain.state_dict().items():
        if "router" not in name and "prior" not in name and "norm" not in name:  # the fixture draws these afterwards
            assert torch.equal(weight, theirs[name]), name  # prompts are drawn last
    prompted.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(plain.encode(batch).cell_BD, prompted.encode(batch).cell_BD, atol=1e-4)
    prompted(batch).masked_BQK.square().sum().backward()
    assert (prompted.prompts.weight.grad.abs().sum(1) > 0).all()


def test_a_network_without_prompts_has_none(make_network):
    network = make_network()
    assert network.prompts is None
    assert not [name for name in network.state_dict() if name.startswith("prompts")]
    assert dataclasses.replace(network.config, n_prompts=2).n_prompts == 2
