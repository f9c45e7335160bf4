"""Adapters as tensors: where they go, how they train (through peft), and how they become plain weights again.

Only a network that trains carries peft's layers. What is kept are tensors by our own names, and what computes results is a plain
network: the base's weights and, of rank-r updates, ``W + scale * B A``.

Shape suffixes: E experts, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cellxpert.batch import Batch, Questions
from cellxpert.config import AdapterConfig
from cellxpert.errors import AdapterError
from cellxpert.nn.experts import Experts
from cellxpert.nn.network import EMBEDDING_STD, Network
from cellxpert.nn.prompts import Prompts

__all__ = [
    "DEFAULT_TARGETS",
    "HEAD",
    "chosen_weights",
    "first_tensors",
    "inject",
    "merged",
    "n_trainable",
    "require_same_answers",
    "tensors_of",
]

DEFAULT_TARGETS = ("qkv", "out", "query", "memory_kv", "value_kv", "up", "down")
"""Projections of all attention, feed-forwards, experts. Routers, embeddings and heads stay."""
HEAD = "labels."
"""What the names of the label head's tensors begin with."""
PROMPTS = "prompts.weight"
TOLERANCE = 1e-6
"""Largest difference, in float64 and relative to the largest answer, between a network that trains and its plain twin."""


def _adaptable(network: Network) -> dict[str, Tensor]:
    """Weights that an update can be added to: all products of encoder and decoder, by name; ``.weight`` is left out."""
    found: dict[str, Tensor] = {}
    for part in ("encoder", "decoder"):
        for name, module in network.get_submodule(part).named_modules(prefix=part):
            if isinstance(module, nn.Linear):
                found[name] = module.weight
            elif isinstance(module, Experts):
                found |= {f"{name}.up": module.up, f"{name}.down": module.down}
    return found


def chosen_weights(network: Network, targets: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the weights that targets name: in full, or by the end of their names.

    Raises
    ------
    AdapterError
        If any of the targets names none, also if others do.
    """
    weights = _adaptable(network)
    chosen: set[str] = set()
    for target in targets:
        matching = {name for name in weights if name == target or name.endswith(f".{target}")}
        if not matching:
            ends = sorted({name.rpartition(".")[2] for name in weights})
            near = difflib.get_close_matches(target, [*ends, *weights], n=5, cutoff=0.5)
            raise AdapterError(
                "add_adapter(targets=)",
                found=f"{target!r} names no weight" + (f"; close to it: {near}" if near else ""),
                fix=f"use some of {ends}, or full names such as {next(iter(weights))!r}",
            )
        chosen |= matching
    return {name: weight for name, weight in weights.items() if name in chosen}


def _rank(weight: Tensor, network: Network, config: AdapterConfig) -> int:
    """Rank of the update of one weight: the experts that read one token share it (Schulman et al. 2025)."""
    return config.rank if weight.ndim == 2 else max(1, config.rank // network.config.experts_per_token)


def first_tensors(network: Network, config: AdapterConfig, *, seed: int) -> dict[str, Tensor]:
    """Draw an adapter's first tensors, with those of the label head as it is.

    Updates begin at zero: A is random, (R, I) or (E, R, I); B is zero, (O, R) or (E, O, R).

    Parameters
    ----------
    network
        The plain network.
    config
        The adapter.
    seed
        Seed of what is drawn; the global generator is not touched.

    Raises
    ------
    AdapterError
        If a target names no weight, or the network has prompts already.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: x.detach().cpu().clone() for name, x in network.state_dict().items() if name.startswith(HEAD)}
    if config.method == "prompts":
        if network.prompts is not None:
            found = f"a network that has {len(network.prompts.weight)} prompts"
            raise AdapterError("add_adapter(method='prompts')", found=found, fix="use method='lora'")
        size = (config.n_prompts, network.config.width)
        tensors[PROMPTS] = nn.init.normal_(torch.empty(size), std=EMBEDDING_STD, generator=generator)
        return tensors
    for name, weight in chosen_weights(network, config.targets).items():
        rank = _rank(weight, network, config)
        experts = weight.shape[:-2]
        n_in, n_out = weight.shape[-2:] if experts else weight.shape[::-1]
        bound = 1 / math.sqrt(n_in)  # as peft draws it
        drawn = torch.empty(*experts, rank, n_in)
        tensors[f"{name}.lora_A"] = nn.init.uniform_(drawn, -bound, bound, generator=generator)
        tensors[f"{name}.lora_B"] = torch.zeros(*experts, n_out, rank)
    return tensors


def n_trainable(network: Network, tensors: Mapping[str, Tensor]) -> int:
    """Count what trains: an adapter's own tensors, and the parameters of the label head."""
    own = sum(x.numel() for name, x in tensors.items() if not name.startswith(HEAD))
    return own + sum(x.numel() for name, x in network.named_parameters() if name.startswith(HEAD) and x.requires_grad)


def inject(network: Network, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Network:
    """Return a copy of a network, on the CPU, in which the adapter and the label head train, and nothing else.

    Parameters
    ----------
    network
        The plain network, with a label head of the shape that the adapter's has; not changed.
    config, tensors
        The adapter.
    """
    injected = copy.deepcopy(network).to("cpu")
    free = {name for name, x in injected.named_parameters() if name.startswith(HEAD) and x.requires_grad}
    if config.method == "prompts":
        injected = _with_prompts(injected, tensors[PROMPTS])
        free.add(PROMPTS)
    else:
        _inject_updates(injected, config)
    for name, parameter in injected.named_parameters():
        parameter.requires_grad_(name in free or ".lora_" in name)
    _load(injected, tensors)
    return injected


def _inject_updates(network: Network, config: AdapterConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    weights = chosen_weights(network, config.targets)
    linear = [name for name, weight in weights.items() if weight.ndim == 2]
    stacked = [name for name, weight in weights.items() if weight.ndim == 3]
    # peft's patterns are for modules alone: the rank of experts is the one without a pattern
    rank = _rank(weights[stacked[0]], network, config) if stacked else config.rank
    settings = LoraConfig(
        r=rank,
        lora_alpha=config.scale * rank,
        rank_pattern={re.escape(name): config.rank for name in linear},
        alpha_pattern={re.escape(name): config.alpha for name in linear},
        target_modules=linear,
        target_parameters=stacked,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws what is loaded over
        inject_adapter_in_model(settings, network)


def _layers(network: Network) -> dict[str, nn.Module]:
    """Layers of peft, by the name of the weight that each updates."""
    found: dict[str, nn.Module] = {}
    for path, module in network.named_modules():
        if hasattr(module, "lora_A"):
            name = path.replace(".base_layer", "")  # layers of two weights of one module are nested
            parameter = getattr(module, "parameter_name", None)
            found[name if parameter is None else f"{name}.{parameter}"] = module
    return found


def _is_stacked(layer: nn.Module) -> bool:
    return hasattr(layer, "parameter_name")


def _to_peft(a: Tensor, b: Tensor, *, stacked: bool) -> tuple[Tensor, Tensor]:
    """Tensors as peft lays them out.

    It takes stacked weights for (experts, out, in), where ours are (experts, in, out): what it calls A is our B, and the reverse.
    """
    if not stacked:
        return a, b
    return b.mT.flatten(0, 1), a.permute(2, 1, 0).flatten(1)


def _from_peft(a: Tensor, b: Tensor, *, n_experts: int | None) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`_to_peft`."""
    if n_experts is None:
        return a, b
    return b.unflatten(1, (-1, n_experts)).permute(2, 1, 0), a.unflatten(0, (n_experts, -1)).mT


@torch.no_grad()
def _load(injected: Network, tensors: Mapping[str, Tensor]) -> None:
    state = injected.state_dict()
    for name, tensor in tensors.items():
        if name.startswith(HEAD):
            state[name].copy_(tensor)
    for name, layer in _layers(injected).items():
        ours = (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"])
        for own, theirs in zip((layer.lora_A, layer.lora_B), _to_peft(*ours, stacked=_is_stacked(layer)), strict=True):
            own["default"].weight.copy_(theirs)


def tensors_of(injected: Network) -> dict[str, Tensor]:
    """Return the adapter of a network that :func:`inject` made, the label head included; copies, on the CPU."""
    found = {name: x for name, x in injected.state_dict().items() if name.startswith((HEAD, PROMPTS))}
    for name, layer in _layers(injected).items():
        theirs = [x["default"].weight for x in (layer.lora_A, layer.lora_B)]
        n_experts = layer.num_experts if _is_stacked(layer) else None
        found[f"{name}.lora_A"], found[f"{name}.lora_B"] = _from_peft(*theirs, n_experts=n_experts)
    return {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in found.items()}


@torch.no_grad()
def merged(network: Network, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Network:
    """Return a plain network that answers as the adapted one does; on the CPU, in evaluation mode.

    Parameters
    ----------
    network
        The plain network, with a label head of the shape that the adapter's has; not changed.
    config, tensors
        The adapter.

    Raises
    ------
    AdapterError
        If the tensors are not those that such an adapter of this network has.
    """
    plain = copy.deepcopy(network).to("cpu").eval()
    expected = first_tensors(plain, config, seed=0)
    wrong = expected.keys() ^ tensors.keys()
    wrong |= {name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape}
    if wrong:
        found = f"{len(wrong)} tensors are missing, unexpected or of another shape: {sorted(wrong)[:5]}"
        raise AdapterError("the adapter's tensors", found=found, fix="load it on the model that it was trained on")
    if config.method == "prompts":
        plain = _with_prompts(plain, tensors[PROMPTS])
    else:
        for name, weight in chosen_weights(plain, config.targets).items():
            update = config.scale * tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
            weight += update if weight.ndim == 2 else update.mT
    state = plain.state_dict()
    for name, tensor in tensors.items():
        if name.startswith(HEAD):
            state[name].copy_(tensor)
    return plain


def _with_prompts(network: Network, weight: Tensor) -> Network:
    """Give a network prompts, in place."""
    network.config = replace(network.config, n_prompts=len(weight))
    network.prompts = Prompts(*weight.shape)
    network.prompts.weight = nn.Parameter(weight.clone())
    return network


@torch.no_grad()
def require_same_answers(injected: Network, network: Network, config: AdapterConfig) -> None:
    """Compare what trained with its plain twin, on cells made up for it: cell vectors, labels and bins.

    In float64: in float32 a rounding may change which expert reads a token.

    Raises
    ------
    AdapterError
        If they differ: the updates were not merged as they were trained.
    """
    tensors = {name: x.double() if x.is_floating_point() else x for name, x in tensors_of(injected).items()}
    twins = [copy.deepcopy(injected).double().eval(), merged(copy.deepcopy(network).double(), config, tensors)]
    one, other = (twin(_probe(network)) for twin in twins)
    for part in ("cell_BD", "label_BC", "masked_BQK", "whole_BQK"):
        trained, plain = getattr(one, part), getattr(other, part)
        if trained is None:
            continue
        gap, size = float((trained - plain).abs().max()), float(trained.abs().max())
        if not gap <= TOLERANCE * max(size, 1.0):
            raise AdapterError(
                "the merged network",
                found=f"its {part} differ by {gap:.2g} from those of the network that was trained",
                fix="report this, with the versions of torch and peft",
            )


def _probe(network: Network) -> Batch:
    """A few cells of random features and bins, and questions about all kinds of features."""
    generator = torch.Generator().manual_seed(0)
    n_cells, length = 4, min(24, network.n_features)
    drawn = [torch.randperm(network.n_features, generator=generator)[:length].sort().values for _ in range(n_cells)]
    cls = torch.tensor([network.n_features])
    bins = torch.randint(1, network.n_bins, (n_cells, length), generator=generator)
    query_BQ = torch.randint(0, network.n_features, (n_cells, 8), generator=generator)
    return Batch(
        feature_T=torch.cat([torch.cat([cls, features]) for features in drawn]),
        bin_T=nn.functional.pad(bins, (1, 0)).flatten(),
        lengths_B=torch.full((n_cells,), length + 1),
        masked=Questions(
            query_BQ=query_BQ,
            value_feature_BM=query_BQ,
            value_bin_BM=torch.randint(0, network.n_bins, query_BQ.shape, generator=generator),
            visible_BQM=torch.ones(1, 8, 8, dtype=torch.bool).tril(-1),
        ),
        whole=Questions(query_BQ=query_BQ),
    )
