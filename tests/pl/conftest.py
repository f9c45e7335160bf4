from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    from matplotlib import pyplot

    yield
    pyplot.close("all")


@pytest.fixture
def adata() -> AnnData:
    """60 cells of three types, two of them labelled, with coordinates."""
    rng = np.random.default_rng(0)
    kind = np.repeat(np.array(["T", "B", "NK"], dtype=object), 20)
    predicted = kind.copy()
    predicted[[0, 1, 25]] = ["B", "Unknown", "NK"]
    obs = pd.DataFrame(index=[f"c{i}" for i in range(60)])
    obs["kind"] = pd.Categorical(kind, categories=["T", "B", "NK"])
    obs["cellxpert_label"] = pd.Categorical(predicted)
    obs["depth"] = rng.random(60)
    obs["held_out"] = np.arange(60) % 2 == 0
    found = AnnData(np.ones((60, 2), dtype=np.float32), obs=obs)
    found.obsm["X_umap"] = rng.normal(size=(60, 2)) + 6 * np.repeat(np.eye(3)[:, :2], 20, axis=0)
    return found
