"""The task ``spatial``: what is held out stays hidden, and its figures are what they are called."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets_spatial import SPATIAL, Tissue, folds, split, tiled
from benchmarks.methods import SPATIAL as METHODS
from benchmarks.methods import make_labeller
from benchmarks.methods.spatial import _with_niche
from benchmarks.registry import Options
from benchmarks.tasks.spatial import TASK, label

TISSUE = Tissue(name="toy")


@pytest.fixture
def adata() -> anndata.AnnData:
    """Three types in three stripes, each with ten genes of its own."""
    rng = np.random.default_rng(0)
    n_cells = 120
    kind = np.arange(n_cells) % 3
    rate = 0.3 + 4.0 * (np.arange(30)[None, :] // 10 == kind[:, None])
    xy = np.column_stack([rng.uniform(size=n_cells), kind + 0.8 * rng.uniform(size=n_cells)])
    made = anndata.AnnData(sp.csr_matrix(rng.poisson(rate * 5).astype("float32")), obsm={"spatial": 10 * xy})
    made.var_names, made.obs_names = [f"g{i}" for i in range(30)], [f"c{i}" for i in range(n_cells)]
    made.obs["cell_type"] = np.array(["a", "b", "c"])[kind]
    return made


def test_rare_and_missing_labels_are_not_scored(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[adata.obs_names[:2], "cell_type"] = "rare"
    adata.obs.loc[adata.obs_names[2], "cell_type"] = np.nan
    labels = TISSUE.labels(adata)
    assert set(labels[3:]) == {"a", "b", "c"}
    assert labels[:3].tolist() == ["", "", ""]
    for train, test in [split(labels, 0), *folds(labels)]:
        assert not set(train) & set(test)
        assert (labels[[*train, *test]] != "").all()
        assert len(train) + len(test) == 117
    assert sorted(i for _, test in folds(labels) for i in test) == list(range(3, 120))


def test_tiles_are_copies_side_by_side(adata):
    large = tiled(adata, 400)
    assert large.shape == (400, 30)
    np.testing.assert_array_equal(large.X[120:240].toarray(), adata.X.toarray())
    xy = large.obsm["spatial"]
    assert len(np.unique(xy, axis=0)) == 400
    np.testing.assert_allclose(
        xy[120:240] - xy[:120], np.tile([1.02 * np.ptp(adata.obsm["spatial"][:, 0]), 0], (120, 1))
    )


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("cellxpert")])
def test_baselines_learn(method, adata):
    labels = TISSUE.labels(adata)
    known = np.where(np.arange(120) % 4, labels, "")
    found = make_labeller(METHODS[method], seed=0, quick=True).label(adata, known, TISSUE)
    right = (found.labels == labels)[known == ""].mean()
    assert right == pytest.approx(1 / 3) if method == "majority" else right > 0.9


@pytest.mark.parametrize("method", ["cellxpert-nano", "cellxpert-nano-no-space"])
def test_ours_is_given_no_hidden_label(method, adata):
    labels = TISSUE.labels(adata)
    known = np.where(np.arange(120) % 4, labels, "")
    model = make_labeller(METHODS[method], seed=0, quick=True).fit(adata, known, TISSUE)
    assert (model._data.obs["label"][known == ""] == "Unknown").all()
    assert list(model._data.obs) == ["label", "part"]
    assert ("niche" in model._state.vocabulary.roles) == (method == "cellxpert-nano")


def test_niches_of_the_baseline_are_means_of_ten_neighbours(adata):
    values = _with_niche(adata, TISSUE).toarray()
    own, xy = values[:, :30], adata.obsm["spatial"]
    near = np.argsort(np.linalg.norm(xy - xy[7], axis=1))[1:11]
    np.testing.assert_allclose(values[7, 30:], own[near].mean(axis=0))


def test_cases_cover_every_bar():
    cases = list(TASK.cases(Options()))
    keys = {case.key for case in cases}
    assert len(keys) == len(cases)
    for tissue in SPATIAL:
        for number in range(3):
            for method in ("cellxpert-nano", "cellxpert-nano-no-space", "logistic_regression"):
                assert (tissue, f"stratified/{number}", number, method) in keys
    assert {key[1] for key in keys if key[1].startswith("tiled")} == {"tiled/10000", "tiled/30000", "tiled/100000"}
    assert all("needs --data DIR" in case.missing for case in cases)


def test_a_real_row(real_data):
    tissue = SPATIAL["spatial_starmap_1549x1020"]
    (found,) = label(tissue, number=0, method="logistic_regression", options=Options(data_dir=real_data))
    # by hand: scikit-learn on log1p of counts per 10,000, 16 types, split of seed 0
    assert found.metrics["accuracy"] == pytest.approx(0.773, abs=6e-4)
    assert found.metrics["macro_f1"] == pytest.approx(0.623, abs=6e-4)


def test_report_and_plot(tmp_path):
    rows = [
        {
            "method": method,
            "data": "toy",
            "split": name,
            "seed": 0,
            "metric": metric,
            "value": value,
            "seconds": 1.0,
            "mib": 9.0,
        }
        for method, value in (("cellxpert-nano", 0.9), ("logistic_regression", 0.8))
        for name, metrics in {
            "stratified/0": ["accuracy", "macro_f1", "ece"],
            "cross-fitted": ["nhood_pearson", "nhood_spearman", "accuracy", "macro_f1"],
            "tiled/10000": ["setup_seconds", "embed_seconds", "annotate_seconds", "ms_per_cell", "gib"],
        }.items()
        for metric in metrics
    ]
    text = TASK.report(pd.DataFrame(rows))
    assert "**0.900**" in text
    assert "| 10,000 |" in text
    assert "nhood_pearson" in text
    (picture,) = TASK.plot(pd.DataFrame(rows), tmp_path / "spatial")
    assert picture.exists()
