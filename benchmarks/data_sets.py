"""Data sets of the benchmarks: how each is read, which column holds the labels, and how it is split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import mudata
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from benchmarks.registry import missing_files

__all__ = [
    "ANNOTATION",
    "CALIBRATION",
    "DataSet",
    "LeftOut",
    "Pooled",
    "Route",
    "Split",
    "TRANSFER",
    "UNKNOWN",
    "given",
    "grouped_three_fold",
    "of_groups",
    "stratified",
    "three_fold",
]

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

    def rounds(self, adata: anndata.AnnData, labels: np.ndarray) -> list[Indices]:
        """Return training and test rows, once."""
        return [self.make(adata, labels)]


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Folds whose answers are scored as one, each by a model of its own: calibration needs more cells than a fold has.

    Parameters
    ----------
    name
        Name in the results.
    folds
        The folds.
    n_seeds
        As in :class:`Split`.
    """

    name: str
    folds: tuple[Split, ...]
    n_seeds: int = 1

    def rounds(self, adata: anndata.AnnData, labels: np.ndarray) -> list[Indices]:
        """Return training and test rows of every fold."""
        return [rows for fold in self.folds for rows in fold.rounds(adata, labels)]


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
        See :class:`Split` and :class:`Pooled`.
    make
        Returns the data without any file; None for data read from a file.
    multimodal
        Whether the file is an h5mu with ``rna`` (whose ``obs`` has labels and groups) and ``prot``, both raw counts.
    """

    name: str
    label_key: str
    splits: tuple[Split | Pooled, ...]
    make: Callable[[], anndata.AnnData] | None = None
    multimodal: bool = False

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}.{'h5mu' if self.multimodal else 'h5ad'}"

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        return missing_files([self.file] if self.make is None else [], data_dir)

    def load(self, data_dir: Path | None) -> anndata.AnnData | mudata.MuData:
        """Read the data: raw counts in ``X`` (of each modality)."""
        if self.make is not None:
            return self.make()
        if reason := self.missing(data_dir):
            raise FileNotFoundError(reason)
        if not self.multimodal:
            return anndata.read_h5ad(data_dir / self.file)
        with mudata.set_options(pull_on_update=False):  # what the next mudata does by default
            return mudata.read_h5mu(data_dir / self.file)


def stratified(adata: anndata.AnnData, labels: np.ndarray, *, seed: int = 2022, test_size: float = 0.2) -> Indices:
    """Stratified random split; the only cell of a type stays in training.

    ``labels`` must be text: the draw depends on the order of the classes.
    """
    names, counts = np.unique(labels, return_counts=True)
    rows = np.flatnonzero(np.isin(labels, names[counts > 1]))
    train, test = train_test_split(rows, test_size=test_size, stratify=labels[rows], random_state=seed)
    return np.concatenate([train, np.setdiff1d(np.arange(len(labels)), rows)]), test


def given(adata: anndata.AnnData, labels: np.ndarray, *, column: str = "split") -> Indices:
    """Split by a column of ``obs`` that says ``"train"`` or ``"test"``."""
    side = adata.obs[column].astype(str).to_numpy()
    return np.flatnonzero(side == "train"), np.flatnonzero(side == "test")


def of_groups(adata: anndata.AnnData, labels: np.ndarray, *, column: str, train: Collection[str]) -> Indices:
    """Train on the cells of some groups (donors, protocols ...), test on those of all others."""
    inside = adata.obs[column].astype(str).isin(train).to_numpy()
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def three_fold(adata: anndata.AnnData, labels: np.ndarray, *, fold: int, seed: int = 2022) -> Indices:
    """Fold 1, 2 or 3 of a stratified, shuffled three-fold split."""
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    train, test = list(folds.split(np.zeros(len(labels)), labels))[fold - 1]
    return train, test


def grouped_three_fold(
    adata: anndata.AnnData, labels: np.ndarray, *, column: str, fold: int, seed: int = 2022
) -> Indices:
    """Fold 1, 2 or 3 of a split in which no group is on both sides; labels are balanced as far as that allows."""
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
    groups = adata.obs[column].astype(str).to_numpy()
    train, test = list(folds.split(np.zeros(len(labels)), labels, groups))[fold - 1]
    return train, test


def _pbmc68k() -> anndata.AnnData:
    import cellxpert as cx

    mdata = cx.datasets.pbmc68k()
    adata = mdata["rna"].copy()
    if "bulk_labels" not in adata.obs:
        adata.obs["bulk_labels"] = mdata.obs.loc[adata.obs_names, "bulk_labels"]
    return adata


def _grouped_folds(column: str) -> tuple[Split | Pooled, ...]:
    folds = tuple(
        Split(
            name=f"{column}-3-fold-2022/{fold}",
            make=partial(grouped_three_fold, column=column, fold=fold),
            n_seeds=1,
        )
        for fold in (1, 2, 3)
    )
    return *folds, Pooled(name=f"{column}-3-fold-2022-pooled", folds=folds)


_STRATIFIED = Split(name="stratified-2022", make=stratified)
_SINGLE_FOLDS = tuple(
    Split(name=f"3-fold-2022/{fold}", make=partial(three_fold, fold=fold), n_seeds=1) for fold in (1, 2, 3)
)
_FOLDS = (*_SINGLE_FOLDS, Pooled(name="3-fold-2022-pooled", folds=_SINGLE_FOLDS))
# The first five donors by name (as text); 1244, 1256 and 1488 are the test.
_DONORS = Split(
    name="donors", make=partial(of_groups, column="donor", train=("101", "1015", "1016", "1039", "107")), n_seeds=3
)
_INDROP = Split(
    name="indrop-to-celseq", make=partial(of_groups, column="dataset", train=("indrop_baron_human4",)), n_seeds=3
)
_DAY_1 = Split(name="s1d1-to-s1d2", make=partial(of_groups, column="batch", train=("s1d1",)), n_seeds=3)

ANNOTATION: Mapping[str, DataSet] = {
    data.name: data
    for data in (
        DataSet(name="pbmc68k", label_key="bulk_labels", splits=(_STRATIFIED, *_FOLDS), make=_pbmc68k),
        DataSet(name="pbmc_facs_zheng2017", label_key="cell_type", splits=(Split(name="given", make=given), *_FOLDS)),
        DataSet(name="pbmc3k", label_key="cell_type", splits=(_STRATIFIED, *_FOLDS)),
        DataSet(name="pancreas_2protocols_2307x8634", label_key="cell_type", splits=(_INDROP, _STRATIFIED)),
        DataSet(name="kang2018_ctrl_12261x1287", label_key="cell_type", splits=(_DONORS, *_grouped_folds("donor"))),
        DataSet(
            name="tcell_subtypes_861x1011",
            label_key="cell_type",
            splits=(_STRATIFIED, *_FOLDS, *_grouped_folds("sample")),
        ),
        DataSet(name="bmmc_cite_neurips2021_set1", label_key="cell_type", splits=(_DAY_1,), multimodal=True),
    )
}
"""Data sets of the task ``annotation``."""


def _split(name: str, split: str) -> tuple[DataSet, Split | Pooled]:
    return ANNOTATION[name], next(s for s in ANNOTATION[name].splits if s.name == split)


CALIBRATION: tuple[tuple[DataSet, Split | Pooled], ...] = (
    _split("pancreas_2protocols_2307x8634", "indrop-to-celseq"),
    _split("bmmc_cite_neurips2021_set1", "s1d1-to-s1d2"),
    _split("tcell_subtypes_861x1011", "sample-3-fold-2022-pooled"),
    _split("kang2018_ctrl_12261x1287", "donors"),
    _split("pbmc68k", "3-fold-2022/1"),
)
"""Data sets of the task ``calibration``; the last, which needs no file, for its quick form alone."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Types that are left out of training, one at a time, while the test cells of a split keep them.

    Parameters
    ----------
    data, split
        Which cells.
    kinds
        Types with at least 20 test cells, some far from all others and some near to one of them.
    """

    data: DataSet
    split: Split
    kinds: tuple[str, ...]


def _left_out(name: str, split: str, *kinds: str) -> LeftOut:
    data, found = _split(name, split)
    assert isinstance(found, Split)
    return LeftOut(data=data, split=found, kinds=kinds)


UNKNOWN: Mapping[str, LeftOut] = {
    left.data.name: left
    for left in (
        # its test fifth has too few cells of most types
        _left_out("pbmc68k", "3-fold-2022/1", "CD14+ Monocyte", "CD19+ B", "Dendritic", "CD4+/CD25 T Reg"),
        _left_out("pbmc_facs_zheng2017", "3-fold-2022/1", "CD14+ Monocyte", "CD19+ B", "CD34+", "CD4+/CD25 T Reg"),
        _left_out("pbmc3k", "stratified-2022", "B cells", "CD8 T cells", "FCGR3A+ Monocytes", "NK cells"),
        _left_out("pancreas_2protocols_2307x8634", "stratified-2022", "acinar", "alpha", "delta", "ductal"),
        _left_out("kang2018_ctrl_12261x1287", "donors", "B cells", "Dendritic cells", "Megakaryocytes", "NK cells"),
    )
}
"""Data sets of the task ``unknown``."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """From some data sets to another, whose labels are other words for other groups of the same cells.

    Parameters
    ----------
    name
        Name of the split in the results.
    sources
        Data sets to train on, all cells of them, on the genes that they share with one another and the target.
    target
        Data set to annotate.
    """

    name: str
    sources: tuple[DataSet, ...]
    target: DataSet

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        return next(filter(None, (data.missing(data_dir) for data in (*self.sources, self.target))), "")

    def load(self, data_dir: Path | None) -> tuple[anndata.AnnData, anndata.AnnData]:
        """Return training and test cells on the shared genes, each with its labels in ``obs["label"]`` and nothing else."""
        sets = [(data, data.load(data_dir)) for data in (*self.sources, self.target)]
        genes = [gene for gene in sets[-1][1].var_names if all(gene in adata.var_names for _, adata in sets[:-1])]
        parts = []
        for data, adata in sets:
            labels = adata.obs[data.label_key].astype(str)
            part = anndata.AnnData(adata[:, genes].X.copy(), obs=labels.to_frame("label"))
            part.obs_names, part.var_names = data.name + ":" + adata.obs_names.astype(str), genes
            parts.append(part)
        return anndata.concat(parts[:-1]), parts[-1]


TRANSFER: tuple[Route, ...] = (
    Route(
        name="from-pbmc3k-and-kang",
        sources=(ANNOTATION["pbmc3k"], ANNOTATION["kang2018_ctrl_12261x1287"]),
        target=ANNOTATION["pbmc_facs_zheng2017"],
    ),
    Route(name="from-pbmc3k", sources=(ANNOTATION["pbmc3k"],), target=ANNOTATION["pbmc_facs_zheng2017"]),
)
"""Routes of the task ``transfer``."""
