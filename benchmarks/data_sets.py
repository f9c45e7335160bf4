"""Data sets of the benchmarks: how each is read, which column holds the labels, and how it is split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

__all__ = ["ANNOTATION", "DataSet", "Split", "given", "stratified", "three_fold"]

Indices = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Split:
    """How training and test cells are chosen.

    Parameters
    ----------
    name
        Name in the results. Folds of one scheme are called ``scheme/1``, ``scheme/2`` ...; reports average over them.
    make
        ``(object, labels) -> (training rows, test rows)``.
    n_seeds
        How many seeds a method that depends on one is run with.
    """

    name: str
    make: Callable[[anndata.AnnData, np.ndarray], Indices]
    n_seeds: int = 3


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Labelled raw counts.

    Parameters
    ----------
    name
        The file's stem, or the name of the function that makes the data.
    label_key
        Column of ``obs`` with the truth.
    splits
        See :class:`Split`.
    make
        Returns the data without any file; None for data read from ``name + ".h5ad"``.
    """

    name: str
    label_key: str
    splits: tuple[Split, ...]
    make: Callable[[], anndata.AnnData] | None = None

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        if self.make is not None:
            return ""
        if data_dir is None:
            return f"{self.name}.h5ad needs --data DIR or $CELLXPERT_DATA"
        return "" if (data_dir / f"{self.name}.h5ad").exists() else f"{data_dir} has no {self.name}.h5ad"

    def load(self, data_dir: Path | None) -> anndata.AnnData:
        """Read the data: raw counts in ``X``."""
        if self.make is not None:
            return self.make()
        if reason := self.missing(data_dir):
            raise FileNotFoundError(reason)
        return anndata.read_h5ad(data_dir / f"{self.name}.h5ad")


def stratified(adata: anndata.AnnData, labels: np.ndarray, *, seed: int = 2022, test_size: float = 0.2) -> Indices:
    """Stratified random split. ``labels`` must be text: the draw depends on the order of the classes."""
    train, test = train_test_split(np.arange(adata.n_obs), test_size=test_size, stratify=labels, random_state=seed)
    return train, test


def given(adata: anndata.AnnData, labels: np.ndarray, *, column: str = "split") -> Indices:
    """Split by a column of ``obs`` that says ``"train"`` or ``"test"``."""
    side = adata.obs[column].astype(str).to_numpy()
    return np.flatnonzero(side == "train"), np.flatnonzero(side == "test")


def three_fold(adata: anndata.AnnData, labels: np.ndarray, *, fold: int, seed: int = 2022) -> Indices:
    """Fold 1, 2 or 3 of a stratified, shuffled three-fold split."""
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    train, test = list(folds.split(np.zeros(len(labels)), labels))[fold - 1]
    return train, test


def _pbmc68k() -> anndata.AnnData:
    import cellxpert as cx

    mdata = cx.datasets.pbmc68k()
    adata = mdata["rna"].copy()
    if "bulk_labels" not in adata.obs:
        adata.obs["bulk_labels"] = mdata.obs.loc[adata.obs_names, "bulk_labels"]
    return adata


_STRATIFIED = Split(name="stratified-2022", make=stratified)
_FOLDS = tuple(Split(name=f"3-fold-2022/{fold}", make=partial(three_fold, fold=fold), n_seeds=1) for fold in (1, 2, 3))

ANNOTATION: Mapping[str, DataSet] = {
    "pbmc68k": DataSet(name="pbmc68k", label_key="bulk_labels", splits=(_STRATIFIED,), make=_pbmc68k),
    "pbmc_facs_zheng2017": DataSet(
        name="pbmc_facs_zheng2017", label_key="cell_type", splits=(Split(name="given", make=given), *_FOLDS)
    ),
    "pbmc3k": DataSet(name="pbmc3k", label_key="cell_type", splits=(_STRATIFIED, *_FOLDS)),
}
"""Data sets of the task ``annotation``."""
