"""What each part of the sampler is worth: one trained network, many ways to ask it, on the strong Papalexi targets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.data_sets_perturbation import PERTURBATION
from benchmarks.holdout import CONTROL, held_out_replicate
from benchmarks.measure import measured
from benchmarks.methods.ours_perturbation import Ours
from benchmarks.perturbation_scores import panel_scores
from benchmarks.registry import Measurement, Options
from benchmarks.tasks.perturbation import move, panel_of
from cellxpert import metrics

__all__ = ["VARIANTS", "ablate"]

ANCHORED = {"n_cells": 50, "n_movable": 48}
BLOCK = ANCHORED | {"kernel": "block"}
PUBLISHED = BLOCK | {"temperature": 2.0}
VARIANTS: Mapping[str, tuple[str, dict[str, object]]] = {
    "zero-shot, token deletion": ("deletion", {}),
    "zero-shot, fill-in": ("zero-shot", ANCHORED | {"kernel": "fill-in"}),
    "zero-shot, ancestral": ("zero-shot", ANCHORED),
    "learned, fill-in": ("learned", ANCHORED | {"kernel": "fill-in"}),
    "learned, ancestral": ("learned", ANCHORED),
    "anchored, block MH": ("anchored", BLOCK),
    "anchored, suffix redraw": ("anchored", ANCHORED | {"kernel": "suffix"}),
    "anchored, block MH as published (tau 2, lambda 0)": ("anchored", PUBLISHED | {"weight": 0.0}),
    "anchored, block MH, lambda 1/tau (tau 2)": ("anchored", PUBLISHED | {"weight": 0.5}),
    "anchored, block MH, lambda 1 (tau 2)": ("anchored", PUBLISHED),
    "anchored, block MH, lambda 1 (tau 0.5)": ("anchored", BLOCK | {"temperature": 0.5}),
    "anchored, multiple try": ("anchored", ANCHORED | {"kernel": "multiple-try"}),
    "anchored, tilted Gibbs": ("anchored", ANCHORED | {"kernel": "tilted"}),
    "anchored, unigram in place of the network": ("anchored", BLOCK),
    "anchored, kappa 0.005": ("anchored", BLOCK | {"kappa": 0.005}),
    "anchored, kappa 0.05": ("anchored", BLOCK | {"kappa": 0.05}),
    "anchored, kappa 0.5": ("anchored", BLOCK | {"kappa": 0.5}),
    "anchored, K 1": ("anchored", BLOCK | {"n_anchors": 1}),
    "anchored, K 32": ("anchored", BLOCK | {"n_anchors": 32}),
    "anchored, blocks of 1": ("anchored", BLOCK | {"block_size": 1, "adapt": False}),
    "anchored, blocks of 16": ("anchored", BLOCK | {"block_size": 16, "adapt": False}),
}
"""Name -> target and settings."""
N_STEPS = 80
STEPS: Mapping[str, int] = {"suffix": 24, "multiple-try": 8}
"""Steps of kernels that ask the network for more at each: as many as cost about the same. The search for kappa comes on top."""


def ablate(
    *,
    options: Options,
    seed: int,
    data: str = "perturb_papalexi2021",
    replicate: str = "rep_3",
    variants: Mapping[str, tuple[str, dict[str, object]]] = VARIANTS,
) -> list[Measurement]:
    """Train once without the cells of one replicate, then ask for the strong targets in every way."""
    data_set = PERTURBATION[data]
    adata = data_set.read(options.data_dir)
    rng = np.random.default_rng([2022, seed + 1])
    fold = held_out_replicate(adata, rng, replicate=replicate)[0]
    held = [one for one in fold.held if one.condition in data_set.strong]
    fold = replace(fold, held=tuple(held))
    seen = adata[fold.train].copy()
    conditions = seen.obs.pop("condition").to_numpy()
    method = Ours(target="anchored", seed=seed, quick=options.quick, n_steps=N_STEPS)
    method.fit(seen, conditions, control=CONTROL)
    network = method.model._trained().network
    targets = metrics.target_mask(sorted(set(adata.obs["condition"]) - {CONTROL}), list(adata.var_names)).any(axis=0)
    found = []
    for name, (target, steering) in variants.items():
        method.target, method.steering = target, dict(steering)
        method.n_steps = STEPS.get(steering.get("kernel"), N_STEPS)
        asked = [one.condition for one in held]
        with _weights(network, _unigram if "unigram" in name else None), measured() as cost:
            predicted = _deletion(method, asked) if target == "deletion" else method.predict(asked)
        profiles = {one.condition: profile + move(adata, one) for one, profile in zip(held, predicted, strict=True)}
        scores = panel_scores(panel_of(adata, [fold], profiles), exclude=targets)
        if target != "deletion":
            scores |= _of_cells(method, adata, held, genes=~targets)
        found.append(Measurement(method=name, metrics=scores, seconds=cost.seconds, mib=cost.mib))
    return found


def _deletion(method: Ours, asked: Sequence[str]) -> np.ndarray:
    """Take the gene's token out of control cells and decode the cell vector: one pass before, one after (the peers' way)."""
    from cellxpert.data.cells import Cells
    from cellxpert.data.tokens import tokenize
    from cellxpert.exchange import collate

    model = method.model
    state = model._trained()
    tokens = tokenize(Cells.open(method.adata, model._setup), state.vocabulary, state.config.tokens)
    collator, network = collate(state, tokens), state.network
    rows = np.flatnonzero(method.conditions == CONTROL)[:100]
    names = list(state.vocabulary.names)
    query = torch.arange(network.n_features)[None].expand(len(rows), -1)
    level = (network.factors.levels(query[0]).expm1() * (method.target_sum / 1e4)).log1p()

    @torch.no_grad()
    def mean(hidden: np.ndarray) -> np.ndarray:
        encoded = network.encode(collator.context(rows, hidden))
        return (network.decode_cell(query, encoded).softmax(-1) * level).sum(-1).mean(0).numpy()

    nothing = np.zeros(network.n_features, dtype=bool)
    plain = mean(nothing)
    base = np.asarray(method.log1p[method.conditions == CONTROL].mean(axis=0)).ravel()
    place = [names.index(gene) for gene in method.adata.var_names]
    out = []
    for name in asked:
        hidden = nothing.copy()
        hidden[[i for i, gene in enumerate(names) if gene == name]] = True
        out.append(base + (mean(hidden) - plain)[place])
    return np.array(out)


def _of_cells(method: Ours, adata: object, held: Sequence[object], *, genes: np.ndarray) -> dict[str, float]:
    distances = []
    for one in held:
        if (one.condition, "all") not in method.last.expression:
            continue
        cells = method.predict_cells(one.condition) + move(adata, one)
        truth = adata.layers["log1p"][one.truth[:300]].toarray()
        distances.append(metrics.energy_distance(cells[:, genes], truth[:, genes]))
    table = method.last.conditions
    return {
        "energy_distance": float(np.mean(distances)),
        "r_hat": float(table["r_hat"].max()),
        "acceptance": float(table["acceptance"].mean()),
    }


class _weights:
    """A network whose weights are changed meanwhile."""

    def __init__(self, network: torch.nn.Module, change: Callable[[torch.nn.Module], None] | None) -> None:
        self.network, self.change = network, change

    def __enter__(self) -> None:
        self.kept = copy.deepcopy(self.network.state_dict())
        if self.change is not None:
            self.change(self.network)

    def __exit__(self, *error: object) -> None:
        self.network.load_state_dict(self.kept)


@torch.no_grad()
def _unigram(network: torch.nn.Module) -> None:
    """Every gene by its own frequencies of bins, whatever the others are."""
    network.bins.linear.weight.zero_()
    for table in (network.factors.answer, network.factors.zero, network.factors.intervention.direct):
        table.weight.zero_()
    network.factors.intervention.pair.weight.zero_()
    network.factors.intervention.usual.weight.zero_()
