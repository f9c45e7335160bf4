"""Inputs of the speed cases: random, of given size, the same on every machine."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cellxpert.batch import Batch, Questions
from cellxpert.config import ModelConfig

if TYPE_CHECKING:
    import anndata

__all__ = ["inference_batch", "load_batch", "random_counts", "save_batch", "training_batch"]


def random_counts(n_cells: int, *, n_genes: int, n_detected: int, seed: int = 0) -> anndata.AnnData:
    """Integer counts with ``n_detected`` genes per cell: popular and rare genes, mostly small values, a long tail."""
    import anndata  # here, as other imports of this module: the memory of training is measured without them
    import scipy.sparse as sp

    rng = np.random.default_rng(seed)
    # Gumbel top-k: n_detected genes without replacement, by weight, for all cells at once
    popularity = rng.normal(scale=1.5, size=n_genes)
    keys = popularity + rng.gumbel(size=(n_cells, n_genes))
    genes = np.sort(np.argpartition(-keys, n_detected - 1, axis=1)[:, :n_detected], axis=1)
    rate = np.exp(popularity[genes] * 0.7 + rng.normal(scale=0.7, size=genes.shape))
    counts = (1 + rng.poisson(rate)).astype(np.int32)
    start = np.arange(n_cells + 1) * n_detected
    matrix = sp.csr_matrix((counts.ravel(), genes.ravel().astype(np.int32), start), shape=(n_cells, n_genes))
    adata = anndata.AnnData(matrix)
    adata.obs_names = [f"cell{i}" for i in range(n_cells)]
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    return adata


def _features(n_cells: int, *, length: int, config: ModelConfig, seed: int) -> np.ndarray:
    """``length - 1`` distinct features per cell, ascending."""
    keys = np.random.default_rng(seed).random((n_cells, config.tokens.n_genes))
    return np.sort(np.argsort(keys, axis=1)[:, : length - 1], axis=1)


def inference_batch(n_cells: int, *, length: int, config: ModelConfig) -> Batch:
    """Return cells of ``length`` tokens ([CLS] included), packed, without questions."""
    features = _features(n_cells, length=length, config=config, seed=0)
    bins = np.random.default_rng(1).integers(1, config.tokens.n_bins, size=features.shape)
    return Batch(
        feature_T=torch.from_numpy(np.pad(features, ((0, 0), (1, 0)), constant_values=config.tokens.n_genes).ravel()),
        bin_T=torch.from_numpy(np.pad(bins, ((0, 0), (1, 0))).ravel()),
        lengths_B=torch.full((n_cells,), length),
    )


def training_batch(n_cells: int, *, length: int, config: ModelConfig, hidden: float = 0.15, seed: int = 0) -> Batch:
    """Return cells of ``length`` tokens of which the share ``hidden`` is hidden, with the questions of a training step."""
    from cellxpert.data.collate import Collator
    from cellxpert.data.tokens import Tokens

    features = _features(n_cells, length=length, config=config, seed=seed)
    tokens = Tokens(
        feature=features.ravel().astype(np.int32),
        bin=np.random.default_rng(seed + 1).integers(1, config.tokens.n_bins, size=features.size).astype(np.uint8),
        start=np.arange(n_cells + 1, dtype=np.int64) * (length - 1),
        rows=np.arange(n_cells, dtype=np.int64),
        pattern=np.zeros(n_cells, np.int32),
        measured_features=np.ones((1, config.tokens.n_genes), np.bool_),
    )
    collator = Collator(
        tokens,
        n_features=config.tokens.n_genes,
        n_bins=config.tokens.n_bins,
        mask_ratio=(hidden, hidden),
        n_queries=config.training.n_queries,
    )
    return collator(np.arange(n_cells), rng=np.random.default_rng(seed))


def save_batch(batch: Batch, path: Path) -> None:
    """Write a packed batch, for a process that is to train on it without what it takes to make it."""
    parts = {"": batch, "masked.": batch.masked, "whole.": batch.whole}
    values = {prefix + f.name: getattr(part, f.name) for prefix, part in parts.items() for f in fields(part)}
    np.savez(path, **{name: value.numpy() for name, value in values.items() if isinstance(value, torch.Tensor)})


def load_batch(path: Path) -> Batch:
    """Read what :func:`save_batch` wrote."""
    found: dict[str, dict[str, torch.Tensor]] = {"": {}, "masked": {}, "whole": {}}
    with np.load(path) as arrays:
        for name in arrays.files:
            prefix, _, field = name.rpartition(".")
            found[prefix][field] = torch.from_numpy(arrays[name])
    return Batch(**found[""], masked=Questions(**found["masked"]), whole=Questions(**found["whole"]))
