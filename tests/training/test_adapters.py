"""Adapters as tensors against a hand computation, W + scale * B A."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cellxpert.batch import Batch, Questions
from cellxpert.config import AdapterConfig, preset
from cellxpert.errors import AdapterError
from cellxpert.nn.experts import Experts
from cellxpert.nn.network import Network
from cellxpert.training.adapters import (
    DEFAULT_TARGETS,
    chosen_weights,
    first_tensors,
    inject,
    merged,
    n_trainable,
    require_same_answers,
    tensors_of,
)

LORA = AdapterConfig(targets=DEFAULT_TARGETS, rank=4, alpha=6.0)
EXPERTS = AdapterConfig(targets=("up", "down"), rank=4, alpha=6.0)
PROMPTS = AdapterConfig(method="prompts", n_prompts=5)
SHAPES = {
    "experts": {},
    "one expert": {"experts_per_token": 1, "n_experts": 1},
    "dense": {"feed_forward": "dense"},
    "experts in the decoder": {"decoder_experts": True},
    "square experts": {"expert_hidden": 64},
}


def _network(*, n_labels: int = 3, **settings: object) -> Network:
    config = preset("nano").replace(n_bins=8, **settings)
    network = Network.from_config(config, feature_modality=[0] * 30 + [1] * 4, n_labels=n_labels, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():  # routers start at zero, where all experts tie
            if "router" in name:
                weight.normal_(generator=generator)
    return network.eval()


def _tensors(network: Network, config: AdapterConfig, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """An adapter that has learned something: no part of it is zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: x if name.startswith("labels.") else 0.3 * torch.randn(x.shape, generator=generator)
        for name, x in first_tensors(network, config, seed=0).items()
    }


def _batch(lengths: tuple[int, ...] = (9, 4, 15)) -> Batch:
    rng = np.random.default_rng(0)
    features = [np.r_[34, np.sort(rng.choice(34, n - 1, replace=False))] for n in lengths]
    bins = [np.r_[0, rng.integers(1, 8, n - 1)] for n in lengths]
    query_BQ = torch.from_numpy(rng.integers(0, 34, (len(lengths), 6)))
    masked = Questions(
        query_BQ=query_BQ,
        value_feature_BM=query_BQ,
        value_bin_BM=torch.from_numpy(rng.integers(0, 8, query_BQ.shape)),
        visible_BQM=torch.ones(1, 6, 6, dtype=torch.bool).tril(-1),
    )
    return Batch(
        feature_T=torch.from_numpy(np.concatenate(features)),
        bin_T=torch.from_numpy(np.concatenate(bins)),
        lengths_B=torch.tensor(lengths),
        masked=masked,
        whole=Questions(query_BQ=query_BQ),
    )


@pytest.mark.parametrize("config", [LORA, EXPERTS], ids=["all", "experts"])
@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_updates_are_what_a_hand_computation_says(settings, config):
    network = _network(**settings)
    tensors = _tensors(network, config)
    plain = merged(network, config, tensors)
    by_hand = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            a, b = (tensors.get(f"{name.removesuffix('.weight')}.lora_{x}") for x in "AB")
            if a is None:
                continue
            if weight.ndim == 2:
                for o in range(weight.shape[0]):
                    weight[o] += 6.0 / 4 * sum(b[o, r] * a[r] for r in range(a.shape[0]))
            else:
                for e in range(weight.shape[0]):
                    for i in range(weight.shape[1]):
                        weight[e, i] += 6.0 / 4 * sum(b[e, :, r] * a[e, r, i] for r in range(a.shape[1]))
    for (name, found), expected in zip(plain.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)
    # and the network that trains, with the layers of peft, computes the same
    one, other = inject(network, config, tensors).double()(_batch()), by_hand.double()(_batch())
    for part in ("cell_BD", "label_BC", "masked_BQK", "whole_BQK"):
        torch.testing.assert_close(getattr(one, part), getattr(other, part), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one.cell_BD, network.double()(_batch()).cell_BD, atol=1e-2)


@pytest.mark.parametrize("config", [LORA, EXPERTS, PROMPTS], ids=["all", "experts", "prompts"])
@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_tensors_survive_the_way_into_a_network_and_out_of_it(settings, config):
    network = _network(**settings)
    tensors = _tensors(network, config)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    state = torch.get_rng_state()
    injected = inject(network, config, tensors)
    found = tensors_of(injected)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    require_same_answers(injected, network, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(network.state_dict()[name], x) for name, x in before.items())


@pytest.mark.parametrize("config", [LORA, PROMPTS], ids=["lora", "prompts"])
def test_the_adapter_and_the_label_head_alone_get_gradients(config):
    network = _network()
    tensors = _tensors(network, config)
    injected = inject(network, config, tensors)
    output = injected(_batch())
    (output.masked_BQK.square().sum() + output.whole_BQK.square().sum() + output.label_BC.square().sum()).backward()
    learning = {name: x for name, x in injected.named_parameters() if x.requires_grad}
    assert sum(x.numel() for x in learning.values()) == n_trainable(network, tensors)
    assert {name.split(".")[0] for name in learning if "lora_" not in name} <= {"labels", "prompts"}
    assert "labels.magnitude.weight" not in learning  # it is fitted after training
    for name, weight in injected.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.any())
        assert reached == (name in learning), name
    own = [name for name in tensors if not name.startswith("labels.")]
    assert len(learning) == len(own) + 2  # weight and bias of the head


def test_gradients_are_those_of_the_hand_computation():
    """Through peft's layers and the hand-written backward pass of the experts, into A and B."""
    network = _network().double()
    tensors = {name: x.double() if x.is_floating_point() else x for name, x in _tensors(network, LORA).items()}
    injected = inject(network, LORA, tensors)
    injected(_batch()).masked_BQK.square().sum().backward()
    theirs = copy.deepcopy(injected)
    for parameter, copied in zip(injected.parameters(), theirs.parameters(), strict=True):
        if parameter.grad is not None:
            copied.data = parameter.grad
    gradients = tensors_of(theirs)  # in our names and layout
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items() if not name.startswith("labels.")}
    weights = {}
    for name, weight in chosen_weights(network, LORA.targets).items():
        update = LORA.scale * leaves[f"{name}.lora_B"] @ leaves[f"{name}.lora_A"]
        full = name if weight.ndim == 3 else f"{name}.weight"
        weights[full] = weight.detach() + (update if weight.ndim == 2 else update.mT)
    output = torch.func.functional_call(network, weights, (_batch(),))
    output.masked_BQK.square().sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad.any(), name
        torch.testing.assert_close(gradients[name], leaf.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_gradients_reach_adapters_in_half_precision_too():
    network = _network()
    injected = inject(network, LORA, _tensors(network, LORA))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        injected(_batch()).masked_BQK.square().sum().backward()
    own = {name: x.grad for name, x in injected.named_parameters() if "lora_" in name}
    assert all(grad.isfinite().all() and grad.any() for grad in own.values())


def test_a_first_adapter_changes_nothing_and_comes_from_its_seed():
    network = _network()
    state = torch.get_rng_state()
    first, same, other = (first_tensors(network, LORA, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    name = "encoder.blocks.0.qkv.lora_A"
    assert not torch.equal(first[name], other[name])
    assert all(not x.any() for name, x in first.items() if name.endswith("lora_B"))
    assert first[name].abs().max() <= 64**-0.5
    plain = merged(network, LORA, first)
    for key, weight in network.state_dict().items():
        assert torch.equal(plain.state_dict()[key], weight), key


def test_experts_share_the_rank_of_a_token():
    network = _network()
    tensors = first_tensors(network, LORA, seed=0)
    experts = network.encoder.blocks[0].feed_forward.experts
    assert isinstance(experts, Experts)
    n, width, hidden = experts.up.shape
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    assert shapes["encoder.blocks.0.feed_forward.experts.up.lora_A"] == (n, 2, width)
    assert shapes["encoder.blocks.0.feed_forward.experts.up.lora_B"] == (n, hidden, 2)
    assert shapes["decoder.layers.0.memory_kv.lora_B"] == (128, 4)


def test_default_targets_are_all_products_of_encoder_and_decoder_and_nothing_else():
    network = _network()
    names = set(chosen_weights(network, DEFAULT_TARGETS))
    expected = set()
    for b in range(2):
        expected |= {f"encoder.blocks.{b}.{x}" for x in ("qkv", "out")}
        expected |= {f"encoder.blocks.{b}.feed_forward.experts.{x}" for x in ("up", "down")}
    expected |= {f"decoder.layers.0.{x}" for x in ("query", "memory_kv", "value_kv", "out")}
    expected |= {f"decoder.layers.0.feed_forward.dense.{x}" for x in ("up", "down")}
    assert names == expected


def test_targets_are_ends_of_names_or_whole_names():
    network = _network()
    assert list(chosen_weights(network, ("encoder.blocks.1.qkv",))) == ["encoder.blocks.1.qkv"]
    assert set(chosen_weights(network, ("experts.up",))) == {
        f"encoder.blocks.{b}.feed_forward.experts.up" for b in range(2)
    }


@pytest.mark.parametrize("wrong", ["qvk", "router", "labels.cell", "kv", "", "encoder", "q.kv"])
def test_a_target_that_fits_nothing_is_refused_also_if_others_fit(wrong):
    with pytest.raises(AdapterError, match="names no weight") as caught:
        chosen_weights(_network(), ("out", wrong))
    assert repr(wrong) in caught.value.found
    if wrong == "qvk":
        assert "'qkv'" in caught.value.found


def test_tensors_of_another_adapter_are_refused():
    network = _network()
    tensors = _tensors(network, LORA)
    name = "encoder.blocks.0.qkv.lora_A"
    for wrong in (
        {k: v for k, v in tensors.items() if k != name},
        tensors | {"extra": torch.zeros(1)},
        tensors | {name: torch.zeros(3, 64)},
    ):
        with pytest.raises(AdapterError, match="missing, unexpected or of another shape"):
            merged(network, LORA, wrong)


def test_a_network_that_was_merged_otherwise_is_refused():
    network = _network()
    injected = inject(network, LORA, _tensors(network, LORA))
    other = AdapterConfig(targets=DEFAULT_TARGETS, rank=4, alpha=7.0)
    with pytest.raises(AdapterError, match="differ by"):
        require_same_answers(injected, network, other)


def test_prompts_are_not_added_twice():
    network = _network()
    twice = merged(network, PROMPTS, first_tensors(network, PROMPTS, seed=0))
    assert twice.config.n_prompts == len(twice.prompts.weight) == 5
    with pytest.raises(AdapterError, match="5 prompts"):
        first_tensors(twice, PROMPTS, seed=0)
    assert network.prompts is None


def test_at_most_a_twentieth_of_the_parameters_train():
    """By counting: the default rank, ten labels, 2,000 genes; 4,095 for the large network."""
    for name, n_genes in (("nano", 2000), ("mini", 2000), ("base", 4095)):
        network = Network.from_config(preset(name), feature_modality=[0] * n_genes, n_labels=10, seed=0)
        config = AdapterConfig(targets=DEFAULT_TARGETS, rank=8)
        tensors = first_tensors(network, config, seed=0)
        own = sum(x.numel() for key, x in tensors.items() if not key.startswith("labels."))
        share = n_trainable(network, tensors) / (network.n_parameters() + own)
        assert 0.01 < share <= 0.05, name
