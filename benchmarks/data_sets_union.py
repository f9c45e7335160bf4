"""Data sets side by side: all cells in one table, labels as each laboratory wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.data_sets import ANNOTATION, stratified
from benchmarks.registry import missing_files

__all__ = ["UNION", "Part", "Union", "capped", "side_by_side"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Cells of one set.

    Parameters
    ----------
    name
        Its name, which is that of a batch.
    file
        The file; empty where no file is needed.
    read
        Folder -> AnnData with raw counts.
    label_key
        Column of ``obs`` with the labels.
    family
        Sets with the same family may share cells, by their names; the first keeps them.
    """

    name: str
    file: str
    read: Callable[[Path | None], anndata.AnnData]
    label_key: str = "cell_type"
    family: str = ""


@dataclass(frozen=True, kw_only=True)
class Union:
    """Several sets, each split 80/20.

    Parameters
    ----------
    name
        Name in the results.
    parts
        See :class:`Part`.
    per_label
        Most cells of a label of a set.
    """

    name: str
    parts: tuple[Part, ...]
    per_label: int = 60

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        return missing_files([part.file for part in self.parts if part.file], data_dir)

    def load(self, data_dir: Path | None) -> tuple[anndata.AnnData, np.ndarray, np.ndarray]:
        """Return all cells (``obs``: ``label``, ``set``), training rows and test rows."""
        cells, seen = [], {}
        for part in self.parts:
            adata = part.read(data_dir)
            known = seen.setdefault(part.family or part.name, set())
            new = np.array([name not in known for name in adata.obs_names])
            known.update(adata.obs_names)
            adata = adata[new]
            labels = adata.obs[part.label_key].astype(str).to_numpy()
            rows = capped(labels, self.per_label)
            names = f"{part.name}:" + adata.obs_names[rows].astype(str)
            obs = pd.DataFrame({"label": labels[rows], "set": part.name}, index=names)
            cells.append(anndata.AnnData(sp.csr_matrix(adata.X[rows]), obs=obs, var=adata.var[[]]))
        train, test, start = [], [], 0
        for adata in cells:
            here = stratified(adata, adata.obs["label"].to_numpy(dtype=str))
            train.append(start + here[0])
            test.append(start + here[1])
            start += adata.n_obs
        return side_by_side(cells), np.concatenate(train), np.concatenate(test)


def capped(labels: np.ndarray, per_label: int, *, seed: int = 2022) -> np.ndarray:
    """Draw at most so many rows of each label, in their order."""
    rows = np.random.default_rng(seed).permutation(len(labels))
    place = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
    return np.sort(rows[place < per_label])


def side_by_side(cells: Sequence[anndata.AnnData]) -> anndata.AnnData:
    """Concatenate on the genes that at least half of the sets measured, sorted; a gene that a set lacks has no counts there."""
    counts = pd.Series(np.concatenate([adata.var_names.unique() for adata in cells])).value_counts()
    genes = sorted(counts.index[2 * counts >= len(cells)])
    whole = anndata.concat(cells, join="outer", fill_value=0, index_unique=None)[:, genes].copy()
    whole.X = sp.csr_matrix(whole.X).astype(np.int32)
    return whole


def _h5ad(name: str, data_dir: Path | None) -> anndata.AnnData:
    return ANNOTATION[name].load(data_dir)


def _rna(file: str, data_dir: Path | None) -> anndata.AnnData:
    return mudata.read_h5ad(data_dir / file, mod="rna")


def _of_annotation(name: str) -> Part:
    data = ANNOTATION[name]
    file = data.file if data.make is None else ""
    return Part(name=name, file=file, read=partial(_h5ad, name), label_key=data.label_key)


def _of_rna(name: str, family: str = "") -> Part:
    file = f"{name}.h5mu"
    return Part(name=name, file=file, read=partial(_rna, file), family=family)


UNION = Union(
    name="blood-marrow-pancreas",
    parts=(
        *(
            _of_annotation(name)
            for name in (
                "pbmc3k",
                "pbmc68k",
                "pbmc_facs_zheng2017",
                "kang2018_ctrl_12261x1287",
                "pancreas_2protocols_2307x8634",
                "tcell_subtypes_861x1011",
            )
        ),
        *(_of_rna(f"bmmc_cite_neurips2021_set{i}", "bmmc_cite") for i in (1, 2, 3)),
        *(_of_rna(f"bmmc_multiome_neurips2021_set{i}", "bmmc_multiome") for i in (1, 2)),
        _of_rna("teaseq_pbmc_1262"),
        _of_rna("cite_pbmc10k_6661"),
    ),
)
"""Human sets with labels."""
