"""scVI, totalVI and MultiVI of scvi-tools, settings of their tutorials; what is not a default is said here.

Genes are those of the baselines, peaks the 5,000 that most cells have. The number of steps is bounded so that each runs in minutes on one core
without a GPU: scVI 4,000 of 128 cells, totalVI 2,000 of 256, MultiVI 2,000 of 128. MultiVI then learns at 1e-3, not 1e-4,
and does not stop early: at its own rate so few steps leave it where it started.

In mosaics: scVI reads the cells with RNA. totalVI reads these too; cells without protein are batches of their own, in which all proteins are
zero, as its documentation says. What neither reads stands at the mean of the other cells. MultiVI takes mosaics as they are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi

from benchmarks.data_sets_integration import BATCH
from benchmarks.methods.integration import clr, magnitudes, places_of, selected_genes

__all__ = ["MultiVI", "SCVI", "TotalVI", "epochs", "multivi", "scvi_rna", "totalvi"]

N_PEAKS = 5000
STEPS = {"scvi": (4000, 128, 400), "totalvi": (2000, 256, 400), "multivi": (2000, 128, 500)}
"""Most steps, cells per step, most epochs."""
CPU = {"accelerator": "cpu", "enable_progress_bar": False}
WITHOUT = "/no protein"


def epochs(model: str, n_cells: int) -> int:
    """Epochs of a model on so many cells.

    >>> [epochs("scvi", n) for n in (600, 2307, 6661)]
    [400, 221, 76]
    """
    steps, size, most = STEPS[model]
    return min(most, max(1, steps * size // n_cells))


def _start(seed: int) -> None:
    scvi.settings.seed = seed
    scvi.settings.verbosity = logging.ERROR


def _counts(adata: anndata.AnnData, kept: np.ndarray) -> anndata.AnnData:
    return anndata.AnnData(
        sp.csr_matrix(adata.X, dtype=np.float32)[:, kept], obs=adata.obs[[]].copy(), var=adata.var[[]].loc[kept].copy()
    )


def _at_mean(values: np.ndarray, places: np.ndarray, n_cells: int) -> np.ndarray:
    whole = np.tile(values.mean(axis=0), (n_cells, 1))
    whole[places] = values
    return whole


def _filled(expected: pd.DataFrame, mdata: mudata.MuData, modality: str, features: Sequence[str]) -> np.ndarray:
    """Return all features asked for; those that are not modelled are at their mean."""
    means = np.asarray(magnitudes(mdata[modality], modality, features).mean(axis=0)).ravel()
    return expected.reindex(columns=list(features)).fillna(pd.Series(means, index=list(features))).to_numpy()


class SCVI:
    """scVI on the RNA."""

    def __init__(self, *, seed: int, quick: bool) -> None:
        self.seed, self.quick = seed, quick

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        _start(self.seed)
        adata, places = mdata["rna"], places_of(mdata, "rna")
        read = _counts(adata, selected_genes(adata))
        read.obs[BATCH] = mdata.obs[BATCH].astype(str).to_numpy()[places]
        with warnings.catch_warnings(action="ignore"):  # Lightning's, of workers and loggers
            scvi.model.SCVI.setup_anndata(read, batch_key=BATCH)
            model = scvi.model.SCVI(read)
            model.train(max_epochs=1 if self.quick else epochs("scvi", read.n_obs), **CPU)
            return _at_mean(model.get_latent_representation(), places, mdata.n_obs)


class TotalVI:
    """totalVI on RNA and protein."""

    def __init__(self, *, seed: int, quick: bool) -> None:
        self.seed, self.quick = seed, quick

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        _start(self.seed)
        self.mdata, adata = mdata, mdata["rna"]
        self.places = places_of(mdata, "rna")
        read = _counts(adata, selected_genes(adata))
        protein = pd.DataFrame(
            mdata["prot"].X.toarray(), index=mdata["prot"].obs_names, columns=mdata["prot"].var_names
        )
        read.obsm["protein"] = protein.reindex(read.obs_names).fillna(0).astype(np.float32)
        here = read.obs_names.isin(protein.index)
        batch = mdata.obs[BATCH].astype(str).to_numpy()[self.places]
        self.batches = sorted(set(batch[here]))
        read.obs[BATCH] = np.where(here, batch, np.char.add(batch.astype(str), WITHOUT))
        with warnings.catch_warnings(action="ignore"):
            scvi.model.TOTALVI.setup_anndata(read, protein_expression_obsm_key="protein", batch_key=BATCH)
            self.model = scvi.model.TOTALVI(read)
            self.model.train(max_epochs=1 if self.quick else epochs("totalvi", read.n_obs), batch_size=256, **CPU)
            return _at_mean(self.model.get_latent_representation(), self.places, mdata.n_obs)

    def impute(self, modality: str, features: Sequence[str]) -> np.ndarray | None:
        """Expected proteins, background included, as the batches that have them would show them; no RNA."""
        if modality != "prot":
            return None
        with warnings.catch_warnings(action="ignore"):
            _, protein = self.model.get_normalized_expression(
                transform_batch=self.batches, include_protein_background=True, n_samples=10, return_mean=True
            )
        expected = pd.DataFrame(clr(protein.to_numpy()), columns=protein.columns)
        return _at_mean(_filled(expected, self.mdata, "prot", features), self.places, self.mdata.n_obs)


class MultiVI:
    """MultiVI on RNA and ATAC."""

    def __init__(self, *, seed: int, quick: bool) -> None:
        self.seed, self.quick = seed, quick

    def _read(self, mdata: mudata.MuData) -> mudata.MuData:
        """Return all cells in both modalities, without counts where a cell lacks one: how MultiVI is told."""
        mods = {}
        for name, kept in self.kept.items():
            there = _counts(mdata[name], mdata[name].var_names.isin(kept))
            at = sp.csr_matrix(
                (np.ones(there.n_obs, np.float32), (places_of(mdata, name), np.arange(there.n_obs))),
                shape=(mdata.n_obs, there.n_obs),
            )
            mods[name] = anndata.AnnData((at @ there.X).tocsr(), obs=mdata.obs[[]].copy(), var=there.var)
            mods[name].obs[BATCH] = mdata.obs[BATCH].astype(str).to_numpy()
        with mudata.set_options(pull_on_update=False):
            read = mudata.MuData(mods)
        names = {"rna_layer": "rna", "atac_layer": "atac", "batch_key": "rna"}
        scvi.model.MULTIVI.setup_mudata(read, batch_key=BATCH, modalities=names)
        return read

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        _start(self.seed)
        self.mdata = mdata
        n_open = np.asarray((mdata["atac"].X > 0).sum(axis=0)).ravel()
        peaks = np.sort(np.argsort(-n_open, kind="stable")[: min(N_PEAKS, int((n_open > 0).sum()))])
        self.kept = {
            "rna": mdata["rna"].var_names[selected_genes(mdata["rna"])],
            "atac": mdata["atac"].var_names[peaks],
        }
        with warnings.catch_warnings(action="ignore"):
            read = self._read(mdata)
            self.model = scvi.model.MULTIVI(read, n_genes=read["rna"].n_vars, n_regions=read["atac"].n_vars)
            n = 1 if self.quick else epochs("multivi", read.n_obs)
            self.model.train(max_epochs=n, lr=1e-3, early_stopping=False, **CPU)
            return self.model.get_latent_representation()

    def embed_modality(self, mdata: mudata.MuData, modality: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        with warnings.catch_warnings(action="ignore"):
            read = self._read(mdata)
            kind = {"rna": "expression", "atac": "accessibility"}[modality]
            return self.model.get_latent_representation(read, modality=kind)

    def impute(self, modality: str, features: Sequence[str]) -> np.ndarray:
        """Expected RNA, log1p of the decoded share times 10,000; probability that a peak is open."""
        with warnings.catch_warnings(action="ignore"):
            if modality == "rna":
                values = np.log1p(1e4 * self.model.get_normalized_expression(return_numpy=True))
            else:
                values = self.model.get_normalized_accessibility(return_numpy=True)
        return _filled(pd.DataFrame(values, columns=self.kept[modality]), self.mdata, modality, features)


def scvi_rna(*, seed: int, quick: bool) -> SCVI:
    """SCVI on the RNA."""
    return SCVI(seed=seed, quick=quick)


def totalvi(*, seed: int, quick: bool) -> TotalVI:
    """TotalVI on RNA and protein."""
    return TotalVI(seed=seed, quick=quick)


def multivi(*, seed: int, quick: bool) -> MultiVI:
    """MultiVI on RNA and ATAC."""
    return MultiVI(seed=seed, quick=quick)
