"""Objects shared by the tests: real counts that come with scanpy, and one small trained model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from mudata import MuData, set_options

import cellxpert as cx

LABELS = "bulk_labels"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the larger real data sets."""
    folder = os.environ.get("CELLXPERT_DATA")
    if not folder:
        pytest.skip("CELLXPERT_DATA does not name the folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def _pbmc() -> MuData:
    return cx.datasets.pbmc68k()


@pytest.fixture
def pbmc(_pbmc: MuData) -> MuData:
    """700 PBMCs with raw counts, a fresh copy."""
    with set_options(pull_on_update=False):
        return _pbmc.copy()


@pytest.fixture(scope="session")
def trained(_pbmc: MuData) -> cx.CellxPert:
    """A nano model after two epochs on every third PBMC of the six commonest types; tests must not train it on or move it."""
    with set_options(pull_on_update=False):
        common = _pbmc.obs[LABELS].isin(_pbmc.obs[LABELS].value_counts().index[:6]).to_numpy()
        mdata = _pbmc[np.flatnonzero(common)[::3]].copy()
    cx.CellxPert.setup_mudata(mdata, rna="rna", labels_key=LABELS)
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    model.train(max_epochs=2, progress_bar=False)
    return model


@pytest.fixture(scope="session")
def _knockouts() -> MuData:
    return cx.datasets.synthetic(
        n_cells=500,
        n_genes=44,
        n_peaks=0,
        n_proteins=6,
        n_types=2,
        n_batches=1,
        spatial_dims=0,
        n_perturbations=6,
        n_pairs=1,
        missing={"rna": 0.06, "protein": 0.3},
        seed=0,
    )


@pytest.fixture
def knockouts(_knockouts: MuData) -> MuData:
    """Control cells and those of six knock-outs and a pair; some lack RNA, some proteins. A fresh copy."""
    with set_options(pull_on_update=False):
        return _knockouts.copy()


@pytest.fixture(scope="session")
def screened(_knockouts: MuData) -> cx.CellxPert:
    """A nano model after two epochs on ``knockouts``; tests must not train it on, move it or write into its object."""
    with set_options(pull_on_update=False):
        mdata = _knockouts.copy()
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein", perturbation_key="perturbation")
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    model.train(max_epochs=2, progress_bar=False)
    return model
