"""Methods under test: ours and the rivals, each behind the same ``fit`` and ``predict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import anndata
import numpy as np

__all__ = ["ANNOTATION", "Annotator", "Entry", "Prediction", "make"]


@dataclass(frozen=True)
class Prediction:
    """Labels of the cells asked for, and the probability of each label."""

    labels: np.ndarray
    confidence: np.ndarray


class Annotator(Protocol):
    """A method that learns labels from cells. Made before the clock starts: imports belong into its module."""

    def fit(self, adata: anndata.AnnData, labels: np.ndarray) -> None:
        """Learn from raw counts in ``adata.X`` and one label (text) per cell."""

    def predict(self, adata: anndata.AnnData) -> Prediction:
        """Label other cells, raw counts in ``adata.X``."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a method is. Its class is called with ``seed`` and ``quick``.

    Parameters
    ----------
    module, maker
        Module and name in it.
    seeded
        Whether its result depends on the seed; if not it is run once.
    """

    module: str
    maker: str
    seeded: bool = False


ANNOTATION: Mapping[str, Entry] = {
    "cellxpert-nano": Entry(module="benchmarks.methods.ours", maker="nano", seeded=True),
    "cellxpert-mini": Entry(module="benchmarks.methods.ours", maker="mini", seeded=True),
    "logistic_regression": Entry(module="benchmarks.methods.baselines", maker="logistic_regression"),
    "svd_logistic_regression": Entry(module="benchmarks.methods.baselines", maker="svd_logistic_regression"),
    "knn": Entry(module="benchmarks.methods.baselines", maker="knn"),
    "nearest_centroid": Entry(module="benchmarks.methods.baselines", maker="nearest_centroid"),
    "majority": Entry(module="benchmarks.methods.baselines", maker="majority"),
}
"""Methods of the task ``annotation``."""


def make(entry: Entry, *, seed: int, quick: bool) -> Annotator:
    """Import a method and make it."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick)
