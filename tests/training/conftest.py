"""A small screen whose truth is known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellxpert as cx

GENES = [f"g{j:02d}" for j in range(24)]
CONDITIONS = ["control"] * 5 + ["g00", "g01", "g02", "g03", "g00+g01", "outside", "g02+ctrl"]


@pytest.fixture
def screen() -> ad.AnnData:
    """180 cells with counts of 24 genes, set up. A gene that is knocked out has none left, and halves the two after next."""
    rng = np.random.default_rng(0)
    condition = np.array(CONDITIONS * 15)
    rate = rng.lognormal(1, 0.5, len(GENES)) * rng.lognormal(0, 0.3, (len(condition), 1))
    for j, gene in enumerate(GENES):
        out = np.array([gene in name.split("+") for name in condition])
        rate[out, j] = 0
        rate[np.ix_(out, [(j + 4) % 24, (j + 8) % 24])] /= 2
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.obs_names = pd.Index([f"c{i}" for i in range(len(condition))], dtype=object)
    adata.var_names = pd.Index(GENES, dtype=object)
    adata.obs["guide"] = pd.Categorical(condition)
    adata.obs["part"] = np.resize(["train", "train", "train", "train", "val"], len(condition))
    cx.CellxPert.setup_anndata(adata, perturbation_key="guide")
    return adata


@pytest.fixture
def screen_config() -> cx.config.ModelConfig:
    """Settings for it."""
    return cx.config.preset("nano").replace(n_genes=12, n_bins=12, n_queries=8, n_cell_queries=8, n_factors=5)
