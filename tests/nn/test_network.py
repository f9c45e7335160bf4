from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from cellxpert.batch import Batch, Intervention, Questions
from cellxpert.config import preset
from cellxpert.nn import Network
from cellxpert.nn.decoder import Memory


@pytest.mark.parametrize("name", ["base", "paper"])
def test_base_and_paper_have_the_published_number_of_parameters(name):
    network = Network(preset(name).network, feature_modality=[0] * 4095, n_bins=50)
    assert network.n_parameters() == pytest.approx(26.3e6, rel=0.01)


@pytest.mark.parametrize("name", ["nano", "mini", "base", "paper"])
def test_presets_answer(name, make_batch):
    config = preset(name).network
    network = Network(config, feature_modality=[0] * 30, n_bins=7, n_labels=3).eval()
    output = network(make_batch([5, 9], n_queries=4))
    assert output.cell_BD.shape == (2, config.width)
    assert output.masked_BQK.shape == output.whole_BQK.shape == (2, 4, 7)
    assert output.label_BC.shape == (2, 3)
    layers = config.encoder_layers + 2 * config.decoder_layers * config.decoder_experts
    assert len(output.routers) == layers
    for tensor in (output.cell_BD, output.masked_BQK, output.whole_BQK, output.label_BC):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_a_cell_is_the_same_alone_or_in_any_batch_padded_or_packed(make_network, make_batch, position, backend):
    network = make_network(position=position, attention=backend)
    lengths = [7, 23, 1, 12]
    with torch.no_grad():
        packed = make_batch(lengths)
        together = network.encode(packed).cell_BD
        padded = network.encode(make_batch(lengths, pad_length=40)).cell_BD
        assert (together - padded).abs().max() < 1e-5
        starts = [0, 7, 30, 31]
        for b in range(4):
            own = slice(starts[b], starts[b] + lengths[b])
            alone = Batch(
                feature_T=packed.feature_T[own], bin_T=packed.bin_T[own], lengths_B=packed.lengths_B[b : b + 1]
            )
            assert (network.encode(alone).cell_BD[0] - together[b]).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 0.01


def test_learned_positions_are_places_in_the_cell(make_network, make_batch):
    network, batch = make_network(position=True), make_batch([3, 5])
    given = dataclasses.replace(batch, position_T=torch.tensor([0, 1, 2, 0, 1, 2, 3, 4]))
    other = dataclasses.replace(batch, position_T=torch.tensor([0, 2, 1, 0, 1, 2, 4, 3]))
    cells = [network.encode(b).cell_BD for b in (batch, given, other)]
    assert torch.equal(cells[0], cells[1])
    assert not torch.allclose(cells[0], cells[2])


def test_weights_come_from_the_generator_and_nothing_else(small_config):
    state = torch.get_rng_state()
    networks = [
        Network(small_config, feature_modality=[0] * 9, n_bins=4, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (n.state_dict() for n in networks)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embedding.feature.weight"], other["embedding.feature.weight"])
    assert all(x.isfinite().all() for x in first.values())


def test_weights_travel_through_safetensors(make_network, make_batch):
    network, other = make_network(n_labels=3), make_network(n_labels=3, seed=1)
    batch = make_batch([5, 9], n_queries=4)
    other.load_state_dict(load(save(network.state_dict())))
    one, two = network(batch), other(batch)
    for name in ("cell_BD", "masked_BQK", "whole_BQK", "label_BC"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_every_weight_learns(make_network, make_batch):
    network = make_network(n_labels=3, n_targets=2, decoder_experts=True, position=True).train()
    torch.manual_seed(0)
    torch.nn.init.normal_(
        network.factors.intervention.code.weight
    )  # it begins at 0, where what it multiplies learns nothing
    genes = torch.tensor([[0, 1]]).expand(4, -1)
    pairs = Intervention(feature_BI=genes, target_BI=genes, dose_BI=-torch.ones(4, 2), before=True)
    output = network(dataclasses.replace(make_batch([25, 29, 28, 30], n_queries=30), intervention=pairs))
    loss = output.masked_BQK.square().mean() + output.whole_BQK.square().mean() + output.label_BC.square().mean()
    loss = loss + sum(r.load_E.var() for r in output.routers)
    loss.backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


def test_training_is_reproducible_and_evaluation_is_silent(make_network, make_batch):
    network, batch = make_network(), make_batch([9, 12], n_queries=4)
    assert torch.equal(network(batch).masked_BQK, network(batch).masked_BQK)
    network.train()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(network(batch).masked_BQK)
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_bf16_autocast_is_close(make_network, make_batch):
    network, batch = make_network(n_labels=3), make_batch([9, 25, 17], n_queries=6)
    with torch.no_grad():
        exact = network(batch)
        with torch.autocast("cpu", torch.bfloat16):
            fast = network(batch)
    for name in ("cell_BD", "masked_BQK", "whole_BQK", "label_BC"):
        one, two = getattr(exact, name), getattr(fast, name)
        assert two.dtype == torch.float32
        assert F.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.99


def test_prior_is_what_an_empty_network_answers(small_config):
    network = Network(small_config, feature_modality=[0] * 5, n_bins=3).eval()
    log_p = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    network.set_bin_prior(log_p)
    with torch.no_grad():
        network.bins.linear.weight.zero_()
        memory = Memory(tokens_BLD=torch.randn(1, 1, 64))
        logits = network.decode(Questions(query_BQ=torch.tensor([[4, 0, 2]])), memory)
    torch.testing.assert_close(logits[0].log_softmax(-1), log_p[[4, 0, 2]])


@torch.no_grad()
def test_means_of_a_blank_cell_are_those_of_its_answers(make_network):
    """Nothing known: the mean over bins of what is answered to a lone [CLS]; with values clamped, given these."""
    network = make_network()
    features, bins = (4, 17, 29), (0, 6, 2)
    blank = Batch(feature_T=torch.tensor([30]), bin_T=torch.tensor([0]), lengths_B=torch.tensor([1]))
    memory = network.memory(network.encode(blank))
    for clamped in (((), ()), (features, bins)):
        found = network.blank_means(None, clamped=clamped)
        assert found.shape == (30,)
        for v in (0, 5, 17):
            n = len(clamped[0])
            one = Questions(
                query_BQ=torch.tensor([[v]]),
                value_feature_BM=torch.tensor([clamped[0]], dtype=torch.int64),
                value_bin_BM=torch.tensor([clamped[1]], dtype=torch.int64),
                visible_BQM=torch.ones(1, 1, n, dtype=torch.bool),
            )
            p = network.decode(one, memory)[0, 0].softmax(-1)
            level = network.factors.level_MK[v % 2]
            expected = sum(float(p[k] * level[k]) for k in range(7))
            assert found[v].item() == pytest.approx(expected, abs=1e-5)
    assert not torch.allclose(network.blank_means(None), found, atol=1e-3)


def test_a_network_may_have_no_factors(make_network, make_batch):
    network = make_network(n_factors=0)
    encoded = network.encode(make_batch([5, 9]))
    assert encoded.evidence is None
    assert network.memory(encoded).evidence is None
    assert not [name for name in network.state_dict() if name.startswith("factors")]


def test_a_small_network_learns_a_small_batch(make_batch):
    config = preset("nano")
    network = Network(config.network, feature_modality=[0] * 30, n_bins=7, n_labels=2)
    batch = make_batch([12, 15, 9, 14], n_queries=8)
    labels = torch.tensor([0, 1, 1, 0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    torch.manual_seed(0)
    network.train()
    for _ in range(60):
        output = network(batch)
        loss = F.cross_entropy(output.label_BC, labels) + sum(
            F.cross_entropy(logits.flatten(0, 1), batch.masked.target_BQ.flatten())
            for logits in (output.masked_BQK, output.whole_BQK)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    output = network(batch)
    assert torch.equal(output.label_BC.argmax(-1), labels)
    assert (output.masked_BQK.argmax(-1) == batch.masked.target_BQ).float().mean() > 0.9
