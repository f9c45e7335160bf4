from __future__ import annotations

from dataclasses import dataclass
from itertools import product

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


@dataclass(frozen=True)
class Result:
    """What the plots read of a perturbation's result."""

    table: pd.DataFrame
    conditions: pd.DataFrame
    baselines: pd.DataFrame
    trajectory: pd.DataFrame
    latent: dict[tuple[str, str], dict[str, np.ndarray]]


GENES = ("GATA1", "KLF1", "SPI1", "HBB", "HBG1", "AHSP", "LYZ", "CD3E", "MT-CO1")
#           GATA1  KLF1  SPI1   HBB  HBG1  AHSP   LYZ  CD3E  MT-CO1
EFFECTS = {
    "GATA1": [-1.4, -0.1, 0.1, -1.0, 0.8, -0.5, 0.1, 0.02, 0.0],
    "GATA1+KLF1": [-1.4, -1.5, 0.1, -2.0, 1.6, -1.0, 0.15, 0.03, 0.0],
    "SPI1": [0.1, 0.05, -1.6, 0.3, 0.1, -0.2, -1.1, 0.5, 0.0],
}
ADJUSTED = {
    "GATA1": [np.nan, 0.3, 0.2, 1e-6, 1e-5, 0.01, 0.5, 0.9, np.nan],
    "GATA1+KLF1": [np.nan, np.nan, 0.2, 0.0, 1e-8, 0.0, 0.5, 0.9, np.nan],
    "SPI1": [0.5, 0.6, np.nan, 0.04, 0.3, 0.2, 1e-9, 0.01, np.nan],
}
BASELINES = {"no_change": 0.0, "perturbed_mean": 0.5, "additive": 0.9}


@pytest.fixture
def perturbed() -> Result:
    """Three perturbations of nine genes in one group; GATA1 converged, so did the pair, SPI1 did not; MT-CO1 cannot move."""
    tables, baselines, traces, latent = [], [], [], {}
    for i, name in enumerate(EFFECTS):
        where = {"perturbation": name, "group": "all"}
        table = pd.DataFrame({**where, "variable": GENES, "effect": EFFECTS[name], "adj_p_value": ADJUSTED[name]})
        table["p_value"] = table["adj_p_value"] / np.linspace(3, 2, len(GENES))
        table["se"] = np.where(table["variable"] == "MT-CO1", 0.0, 0.05 + 0.01 * np.arange(len(GENES)))
        table["is_target"] = table["variable"].isin(name.split("+"))
        table["is_movable"] = table["variable"] != "MT-CO1"
        table["converged"] = name != "SPI1"
        tables.append(table)
        baselines += [
            pd.DataFrame({"baseline": b, **where, "variable": GENES, "effect": share * table["effect"]})
            for b, share in BASELINES.items()
        ]
        rng = np.random.default_rng(i)
        step = np.arange(20)
        for (a, arm), chain in product(enumerate(("perturbed", "null")), range(3)):
            values = {"log_density": rng.normal(-100 * (a + 1), 1, 20), "acceptance": rng.random(20)}
            traces.append(
                pd.DataFrame({**where, "arm": arm, "chain": chain, "step": step, **values, "burn_in": step < 8})
            )
        start = rng.normal(size=(30, 5)) * [3, 2, 1, 0.5, 0.2]
        move = rng.normal(size=(2, 30, 5)) + [[[2.0, 1, 0, 0, 1]], [[0.0] * 5]]
        latent[name, "all"] = {
            k: v.astype(np.float32)
            for k, v in zip(("start", "perturbed", "null"), (start, *(start + move)), strict=True)
        }
    conditions = pd.DataFrame({"perturbation": list(EFFECTS), "group": "all", "n_cells": 1200, "n_chains": 3})
    conditions["target"] = ["anchored", "predicted", "zero-shot"]
    conditions["silent"] = [False, False, True]
    conditions["r_hat"] = [1.003, 1.009, 1.071]
    conditions["converged"] = conditions["r_hat"] <= 1.01
    conditions["ess_bulk"], conditions["acceptance"] = [900.0, 800.0, 40.0], 0.3
    return Result(
        table=pd.concat(tables, ignore_index=True),
        conditions=conditions,
        baselines=pd.concat(baselines, ignore_index=True),
        trajectory=pd.concat(traces, ignore_index=True),
        latent=latent,
    )
