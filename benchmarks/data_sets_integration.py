"""Data sets of the tasks ``integration`` and ``token-budget``: paired modalities, mosaics made of them, and RNA of several batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.registry import missing_files

__all__ = [
    "BATCH",
    "INTEGRATION",
    "SYNTHETIC",
    "Loaded",
    "Source",
    "asked_features",
    "bare",
    "mosaic",
    "stratified_rows",
]

BATCH = "batch"
"""Column of ``obs`` with the batch of each cell: the only one that a method gets."""
SHARE_LOST = 0.3
N_ASKED = 500


@dataclass(frozen=True)
class Loaded:
    """Cells, and what methods are not told.

    Parameters
    ----------
    mdata
        Raw counts and ``obs["batch"]``, nothing else; all modalities have all cells, in one order.
    labels
        Label per cell, "" where it is not scored.
    """

    mdata: mudata.MuData
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set.

    Parameters
    ----------
    name
        The file's stem.
    other
        The modality beside ``rna``: ``"prot"``, ``"atac"``, or None for an h5ad of RNA.
    batch_key
        Column of ``obs`` (of the RNA) with batches; None: the set has none, and only labels and modalities are scored.
    unlabelled
        Labels that mean "not known": these cells are given to methods, and not scored.
    dropped
        Labels whose cells are left out altogether.
    n_cells
        At most so many cells, drawn with seed 0, batches in proportion; None: all.
    make
        Returns the object without any file; None for data read from one.
    """

    name: str
    other: str | None
    batch_key: str | None = None
    label_key: str = "cell_type"
    unlabelled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    n_cells: int | None = None
    make: Callable[[], mudata.MuData] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return ("rna",) if self.other is None else ("rna", self.other)

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        file = f"{self.name}.{'h5ad' if self.other is None else 'h5mu'}"
        return missing_files([file] if self.make is None else [], data_dir)

    def load(self, data_dir: Path | None) -> Loaded:
        """Read the data."""
        if reason := self.missing(data_dir):
            raise FileNotFoundError(reason)
        with mudata.set_options(pull_on_update=False):  # what the next mudata does by default
            if self.make is not None:
                mods = dict(self.make().mod)
            elif self.other is None:
                mods = {"rna": anndata.read_h5ad(data_dir / f"{self.name}.h5ad")}
            else:
                mods = dict(mudata.read_h5mu(data_dir / f"{self.name}.h5mu").mod)
        obs = mods["rna"].obs
        labels = obs[self.label_key].astype(object).fillna("nan").astype(str).to_numpy()
        batch = np.full(len(obs), "0") if self.batch_key is None else obs[self.batch_key].astype(str).to_numpy()
        rows = np.flatnonzero(~np.isin(labels, self.dropped))
        if self.n_cells is not None and self.n_cells < len(rows):
            rows = rows[stratified_rows(batch[rows], self.n_cells)]
        names = obs.index[rows]
        mdata = bare({name: mods[name][names] for name in self.modalities}, pd.Series(batch[rows], index=names))
        return Loaded(mdata, np.where(np.isin(labels[rows], self.unlabelled), "", labels[rows]))


def bare(modalities: Mapping[str, anndata.AnnData], batch: pd.Series) -> mudata.MuData:
    """Return a MuData of counts alone, with the batch of each cell (by name): no other column of ``obs`` reaches a method."""
    kept = {}
    for name, adata in modalities.items():
        kept[name] = anndata.AnnData(sp.csr_matrix(adata.X), obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.MuData(kept)
    mdata.obs[BATCH] = pd.Categorical(batch.loc[mdata.obs_names].to_numpy())
    return mdata


def stratified_rows(groups: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """Draw ``n`` rows, each group in proportion, in their order."""
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(groups, return_counts=True)
    exact = sizes * n / len(groups)
    take = np.floor(exact).astype(int)
    take[np.argsort(take - exact, kind="stable")[: n - take.sum()]] += 1  # the largest remainders
    drawn = [rng.choice(np.flatnonzero(groups == name), k, replace=False) for name, k in zip(names, take, strict=True)]
    return np.sort(np.concatenate(drawn))


def mosaic(mdata: mudata.MuData, *, seed: int = 0) -> tuple[mudata.MuData, np.ndarray]:
    """Take one modality away from some cells: 30 % lose the first, 30 % the second, the others keep both.

    Returns
    -------
    The mosaic, whose cells may have another order, and the modality that each of them lost, "" for none.
    """
    first, second = mdata.mod
    n = round(SHARE_LOST * mdata.n_obs)
    order = np.random.default_rng(seed).permutation(mdata.n_obs)
    lost = pd.Series("", index=mdata.obs_names, dtype=object)
    lost.iloc[order[:n]], lost.iloc[order[n : 2 * n]] = first, second
    batch = pd.Series(mdata.obs[BATCH].to_numpy(), index=mdata.obs_names)
    made = bare({name: mdata[name][lost[lost != name].index] for name in (first, second)}, batch)
    return made, lost.loc[made.obs_names].to_numpy(dtype=str)


def asked_features(adata: anndata.AnnData, modality: str, *, at_most: int = N_ASKED) -> list[str]:
    """Features whose values are asked for: all proteins; of genes and peaks those that vary most among the cells given.

    Genes by the variance of log1p of counts per 10,000, peaks by that of being open.
    """
    if modality == "prot":
        return list(adata.var_names)
    values = sp.csr_matrix(adata.X, dtype=np.float64)
    if modality == "rna":
        totals = np.maximum(np.asarray(values.sum(axis=1)).ravel(), 1.0)
        values = (sp.diags_array(1e4 / totals) @ values).log1p().tocsr()
    else:
        values.data = (values.data > 0).astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    return list(adata.var_names[np.sort(np.argsort(-variance, kind="stable")[:at_most])])


def _synthetic() -> mudata.MuData:
    import cellxpert as cx

    mdata = cx.datasets.synthetic(n_cells=240, n_genes=120, n_peaks=0, n_proteins=16, n_types=3, n_batches=2, seed=0)
    mods = {"rna": mdata["rna"].copy(), "prot": mdata["protein"].copy()}
    for adata in mods.values():
        adata.obs = mdata.obs.loc[adata.obs_names]
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(mods)


SYNTHETIC = Source(name="synthetic", other="prot", batch_key="batch", make=_synthetic)
"""Needs no file: for the quick form."""

INTEGRATION: Mapping[str, Source] = {
    source.name: source
    for source in (
        *(Source(name=f"bmmc_cite_neurips2021_set{i}", other="prot", batch_key="batch") for i in (1, 2, 3)),
        *(Source(name=f"bmmc_multiome_neurips2021_set{i}", other="atac", batch_key="batch") for i in (1, 2)),
        Source(name="teaseq_pbmc_1262", other="prot"),
        Source(name="scicar_kidney_554", other="atac", batch_key="replicate", unlabelled=("nan",)),
        Source(name="kang2018_ifnb_2000x9015", other=None, batch_key="stim", unlabelled=("unknown",)),
        Source(name="pancreas_2protocols_2307x8634", other=None, batch_key="dataset"),
        Source(name="snareseq_cortex_10309", other="atac", batch_key="batch", dropped=("Mis",), n_cells=3000),
        Source(name="cite_pbmc10k_6661", other="prot"),
    )
}
"""Data sets of the task ``integration``."""
