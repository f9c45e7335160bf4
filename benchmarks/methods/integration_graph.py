"""Harmony (harmonypy) and weighted nearest neighbours (muon) on the blocks of ``methods/integration.py``."""

from __future__ import annotations

import warnings

import harmonypy
import mudata
import muon
import numpy as np
import scanpy as sc
import scipy.sparse as sp

from benchmarks.data_sets_integration import BATCH
from benchmarks.methods.integration import (
    N_COMPONENTS,
    Concatenated,
    OneModality,
    block,
    places_of,
    principal,
    spread,
)

__all__ = ["Harmony", "WNN", "harmony_concat", "harmony_rna", "spectral", "wnn"]


class Harmony:
    """An embedding, and Harmony on it with its own settings. Cells that stand at the mean are moved with the others."""

    def __init__(self, before: OneModality | Concatenated, seed: int) -> None:
        self.before, self.seed = before, seed

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        values = self.before.integrate(mdata)
        found = harmonypy.run_harmony(
            values, mdata.obs[[BATCH]].astype(str), BATCH, random_state=self.seed, ncores=1, verbose=False
        )
        corrected = np.asarray(found.Z_corr)
        return corrected if corrected.shape == values.shape else corrected.T


def spectral(graph: sp.spmatrix, n: int = N_COMPONENTS) -> np.ndarray:
    """Return the eigenvectors 2 to n + 1 of a graph's random walk, times their eigenvalues (a diffusion map at time 1)."""
    graph = sp.csr_matrix(graph, dtype=np.float64)
    graph = (graph + graph.T) / 2
    root = np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-12))
    walk = sp.diags_array(1 / root) @ graph @ sp.diags_array(1 / root)
    values, vectors = sp.linalg.eigsh(walk, k=n + 1, which="LA", v0=np.ones(len(root)))
    order = np.argsort(-values)[1:]
    return vectors[:, order] / root[:, None] * values[order] * np.sqrt(graph.sum())


class WNN:
    """Muon's graph of weighted nearest neighbours, embedded by its spectrum: 30 dimensions, no UMAP.

    Cells that lack a modality stand next to its mean, not on it: muon divides by distances.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        mods = {}
        for name, adata in mdata.mod.items():
            values = block(adata, name)
            values = values if name == "atac" else principal(values)
            whole = spread(values, places_of(mdata, name), mdata.n_obs)
            lacks = ~whole.any(axis=1)
            noise = np.random.default_rng(self.seed).normal(scale=1e-2, size=(lacks.sum(), whole.shape[1]))
            whole[lacks] = noise * values.std(axis=0)
            mods[name] = sc.AnnData(whole, obs=mdata.obs[[]])
        with warnings.catch_warnings(action="ignore"), mudata.set_options(pull_on_update=False):
            joint = mudata.MuData(mods)
            for adata in joint.mod.values():
                sc.pp.neighbors(adata, n_neighbors=20, use_rep="X", random_state=self.seed)
            muon.pp.neighbors(joint, n_multineighbors=min(200, joint.n_obs // 3), random_state=self.seed)
        return spectral(joint.obsp["connectivities"])


def harmony_rna(*, seed: int, quick: bool) -> Harmony:
    """Harmony on 30 principal components of the RNA."""
    return Harmony(OneModality("rna"), seed)


def harmony_concat(*, seed: int, quick: bool) -> Harmony:
    """Harmony on 30 principal components of all modalities."""
    return Harmony(Concatenated(), seed)


def wnn(*, seed: int, quick: bool) -> WNN:
    """Weighted nearest neighbours."""
    return WNN(seed)
