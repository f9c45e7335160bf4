"""Rankings of the genes that respond to a target, learnt from the lists of other targets.

Suffixes: T training targets, Q targets asked for, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.methods.perturbation import GeneSets, embed_targets
from cellxpert.metrics import baselines

__all__ = ["LISTS"]

Rule = Callable[[Sequence[str], np.ndarray, Sequence[str], GeneSets, int], np.ndarray]
"""``(training targets, their lists T x G, targets asked for, gene sets, seed) -> scores, Q x G``."""


def _random(names: Sequence[str], lists_TG: np.ndarray, asked: Sequence[str], sets: GeneSets, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((len(asked), lists_TG.shape[1]))


def _frequency(
    names: Sequence[str], lists_TG: np.ndarray, asked: Sequence[str], sets: GeneSets, seed: int
) -> np.ndarray:
    """How often a gene is on a list: the same for every target."""
    return baselines.perturbed_mean(lists_TG, n_conditions=len(asked))


def _knn(names: Sequence[str], lists_TG: np.ndarray, asked: Sequence[str], sets: GeneSets, seed: int) -> np.ndarray:
    """How often among the 20 targets with the most similar gene sets; the frequency among all breaks ties."""
    embedding, n = embed_targets([*names, *asked], sets), len(names)
    near = baselines.knn(lists_TG, target_embedding_TD=embedding[:n], query_embedding_QD=embedding[n:], n_neighbors=20)
    return near + 1e-3 * lists_TG.mean(axis=0)


def _linear(names: Sequence[str], lists_TG: np.ndarray, asked: Sequence[str], sets: GeneSets, seed: int) -> np.ndarray:
    """The linear model on gene sets."""
    embedding, n = embed_targets([*names, *asked], sets), len(names)
    return baselines.linear(
        lists_TG,
        gene_embedding_GD=baselines.principal_genes(lists_TG, n_components=10),
        target_embedding_TD=embedding[:n],
        query_embedding_QD=embedding[n:],
    )


LISTS: Mapping[str, Rule] = {
    "random": _random,
    "frequency": _frequency,
    "knn_gene_sets": _knn,
    "linear_gene_sets": _linear,
}
"""Methods of the lists in the task ``perturbation``."""
