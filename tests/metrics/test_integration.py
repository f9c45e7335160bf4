"""Integration and imputation, against plain loops, scikit-learn, and scib-metrics' own pipeline."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import f1_score, roc_auc_score

from cellxpert import metrics
from cellxpert.errors import MetricError, MetricMissingError
from cellxpert.metrics.integration import BATCH, BIO

needs_scib = pytest.mark.skipif(
    find_spec("scib_metrics") is None, reason="scib-metrics is not installed (extra integration, which brings jax)"
)
# umap, which scib-metrics imports, says so once where tensorflow is not installed
without_tensorflow = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")


def _cells(n: int = 620, *, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four types of cells in three batches; ``shift`` is how far batches are apart."""
    rng = np.random.default_rng(seed)
    kinds, batches = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]), rng.choice(3, n, p=[0.5, 0.3, 0.2])
    axes = np.eye(12)
    cells = rng.normal(size=(n, 12)) + 4 * axes[kinds] + shift * axes[batches + 4]
    return cells, np.array(["b", "nk", "t", "mono"])[kinds], np.array(["x", "y", "z"])[batches]


# --- foscttm ---


def _plain_foscttm(a: np.ndarray, b: np.ndarray) -> float:
    shares = []
    for x, y in ((a, b), (b, a)):
        for i in range(len(x)):
            own = sum((x[i] - y[i]) ** 2)
            others = [sum((x[i] - y[j]) ** 2) for j in range(len(y)) if j != i]
            shares.append(np.mean([1.0 if d < own else 0.5 if d == own else 0.0 for d in others]))
    return float(np.mean(shares))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 12), d=st.integers(1, 3), levels=st.integers(1, 4), seed=st.integers(0, 99))
def test_foscttm_equals_a_plain_loop(n, d, levels, seed):
    """Whole numbers: many distances are equal."""
    a, b = np.random.default_rng(seed).integers(0, levels, (2, n, d)).astype(float)
    assert metrics.foscttm(a, b) == pytest.approx(_plain_foscttm(a, b), abs=1e-12)


def test_foscttm_has_known_ends(monkeypatch):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 5))
    assert metrics.foscttm(a, a) == 0
    assert metrics.foscttm(np.ones((50, 3)), np.ones((50, 3))) == 0.5
    assert metrics.foscttm(a, rng.permutation(a)) == pytest.approx(0.5, abs=0.06)
    assert metrics.foscttm(np.array([[0.0], [1.0]]), np.array([[1.0], [0.0]])) == 1
    whole = metrics.foscttm(a, a + rng.normal(size=a.shape))
    monkeypatch.setattr("cellxpert.metrics.integration._BYTES_AT_ONCE", 8 * 300 * 7)  # seven rows at a time
    assert metrics.foscttm(a, a + 0) == 0
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 5))
    rng.permutation(a)
    assert metrics.foscttm(a, a + rng.normal(size=a.shape)) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("b", [np.ones((3, 2)), np.ones((4, 3)), np.full((4, 2), np.nan)])
def test_foscttm_refuses(b):
    with pytest.raises(MetricError):
        metrics.foscttm(np.ones((4, 2)), b)


# --- knn_transfer ---


def _plain_transfer(cells: np.ndarray, labels: np.ndarray, batch: np.ndarray, k: int) -> list[str]:
    found = []
    for i in range(len(cells)):
        others = [j for j in range(len(cells)) if batch[j] != batch[i]]
        near = sorted(others, key=lambda j: float(((cells[i] - cells[j]) ** 2).sum()))[:k]
        counts = Counter(labels[j] for j in near)
        most = max(counts.values())
        found.append(next(labels[j] for j in near if counts[labels[j]] == most))
    return found


@pytest.mark.parametrize("k", [1, 2, 15, 1000])
def test_knn_transfer_equals_a_plain_loop(k):
    cells, labels, batch = _cells(90)
    labels[0] = "only here"
    found = metrics.knn_transfer(cells, pd.Categorical(labels), batch, k=k)
    predicted = _plain_transfer(cells, labels, batch, k)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == labels))
    expected = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(expected)
    assert found["n_unseen"] == 1


def test_knn_transfer_asks_other_batches_only():
    """Batches far apart, and types the other way round in the second: within a batch every neighbour would be right."""
    line = np.arange(40.0)
    cells = np.concatenate([line, line])[:, None] + np.repeat([0.0, 1e3], 40)[:, None]
    labels = np.concatenate([line < 20, line >= 20])
    assert metrics.knn_transfer(cells, labels, np.repeat([0, 1], 40), k=5)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": ["x"] * 90}, "one batch"),
        ({"batch": ["x"] * 80}, "80 values, 90 cells"),
        ({"labels": ["a", None] * 45}, "45 missing"),
        ({"k": 0}, "0"),
    ],
)
def test_knn_transfer_refuses(changed, said):
    cells, labels, batch = _cells(90)
    given_ = {"labels": labels, "batch": batch, "k": 3} | changed
    with pytest.raises(MetricError, match=said):
        metrics.knn_transfer(cells, given_["labels"], given_["batch"], k=given_["k"])


# --- imputation_scores ---


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 20), n_features=st.integers(1, 6), seed=st.integers(0, 99), sparse=st.booleans())
def test_imputation_scores_equal_scipy_and_scikit_learn(n, n_features, seed, sparse):
    rng = np.random.default_rng(seed)
    truth = rng.poisson(0.7, (n, n_features)).astype(float)
    predicted = np.round(truth + rng.normal(size=truth.shape), 1)  # rounded: some are equal
    found = metrics.imputation_scores(sp.csr_matrix(truth) if sparse else truth, predicted, detection=True)
    varies = [j for j in range(n_features) if len(set(truth[:, j])) > 1]
    both = [j for j in range(n_features) if 0 < (truth[:, j] > 0).sum() < n]
    guessed = [j for j in varies if len(set(predicted[:, j])) > 1]
    assert (found["n_features"], found["n_constant"]) == (len(varies), n_features - len(varies))
    assert found["n_auroc"] == len(both)
    assert found["rmse"] == pytest.approx(np.sqrt(((truth - predicted) ** 2).mean()))
    pearson = sum(pearsonr(truth[:, j], predicted[:, j])[0] for j in guessed) / len(varies) if varies else np.nan
    assert found["pearson"] == pytest.approx(pearson, nan_ok=True)
    auroc = np.mean([roc_auc_score(truth[:, j] > 0, predicted[:, j]) for j in both]) if both else np.nan
    assert found["auroc"] == pytest.approx(auroc, nan_ok=True)


def test_a_constant_prediction_knows_nothing_and_a_constant_truth_is_not_scored():
    rng = np.random.default_rng(0)
    truth = np.column_stack([rng.normal(size=50), np.ones(50)])
    found = metrics.imputation_scores(truth, np.tile(truth.mean(axis=0), (50, 1)))
    assert (found["pearson"], found["n_features"], found["n_constant"]) == (0, 1, 1)
    assert set(found) == {"pearson", "rmse", "n_features", "n_constant"}


def test_tables_are_paired_by_name():
    rng = np.random.default_rng(0)
    names = {"index": [f"c{i}" for i in range(20)], "columns": [f"f{i}" for i in range(5)]}
    truth = pd.DataFrame(rng.normal(size=(20, 5)), **names)
    said = truth + rng.normal(size=(20, 5))
    bounds = {"lower": said - 1, "upper": said + 1}
    scores = metrics.imputation_scores(truth, said, **bounds)
    assert scores == metrics.imputation_scores(truth.to_numpy(), said.to_numpy(), lower=said - 1, upper=said + 1)
    turned = {name: table.iloc[::-1, ::-1] for name, table in bounds.items()}
    assert metrics.imputation_scores(truth, said.iloc[::-1, ::-1], **turned) == scores
    for other in (said.rename(columns={"f0": "g"}), said.iloc[:, [0, 0, 1, 2, 3]], said.rename(index={"c0": "c1"})):
        with pytest.raises(MetricError, match="other names"):
            metrics.imputation_scores(truth, other)


def test_chunks_do_not_change_scores(monkeypatch):
    rng = np.random.default_rng(0)
    truth, predicted = rng.poisson(1.0, (30, 25)), rng.normal(size=(30, 25))
    bounds = {"lower": predicted - 1, "upper": predicted + 1}
    whole = metrics.imputation_scores(truth, predicted, detection=True, **bounds)
    monkeypatch.setattr("cellxpert.metrics.integration._BYTES_AT_ONCE", 8 * 30 * 4)  # four features at a time
    assert metrics.imputation_scores(truth, predicted, detection=True, **bounds) == pytest.approx(whole)
    inside = np.mean([abs(t - p) <= 1 for t, p in zip(truth.ravel(), predicted.ravel(), strict=True)])
    assert whole["coverage"] == pytest.approx(inside)


def test_imputation_scores_refuse():
    x = np.arange(6.0).reshape(3, 2)
    with pytest.raises(MetricError, match="shapes"):
        metrics.imputation_scores(x, x.T)
    with pytest.raises(MetricError, match="not finite"):
        metrics.imputation_scores(x, x * np.nan)
    with pytest.raises(MetricError, match="give both"):
        metrics.imputation_scores(x, x, lower=x)
    with pytest.raises(MetricError, match="lower <= upper"):
        metrics.imputation_scores(x, x, lower=x, upper=x - 1)


# --- integration_scores ---


def test_integration_scores_say_what_is_missing(monkeypatch):
    cells, labels, batch = _cells(40)
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(MetricMissingError, match=r'pip install "cellxpert\[integration\]"'):
        metrics.integration_scores(cells, batch=batch, labels=labels)
    with pytest.raises(MetricError, match="one label"):
        metrics.integration_scores(cells, batch=batch, labels=["b"] * 40)
    with pytest.raises(MetricError, match="39 rows, 40 cells"):
        metrics.integration_scores(cells, batch=batch, labels=labels, pre=cells[1:])


@needs_scib
@without_tensorflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_scores_equal_those_of_the_benchmarker(shift):
    from anndata import AnnData
    from scib_metrics.benchmark import Benchmarker

    cells, labels, batch = _cells(shift=shift)
    labels[:3] = ["one", "two", "two"]  # labels of one and two cells
    pre = cells + np.random.default_rng(1).normal(size=cells.shape)
    adata = AnnData(cells, obs=pd.DataFrame({"label": labels, "batch": batch}, index=[f"c{i}" for i in range(620)]))
    adata.obsm["made"], adata.obsm["pre"] = cells, pre
    judge = Benchmarker(
        adata, "batch", "label", ["made"], pre_integrated_embedding_obsm_key="pre", progress_bar=False, n_jobs=1
    )
    judge.benchmark()
    expected = judge.get_results(clean_names=False).loc["made"].astype(float)
    found = metrics.integration_scores(cells, batch=batch, labels=labels, pre=pre)
    names = {
        "nmi_ari_cluster_labels_kmeans_nmi": "kmeans_nmi",
        "nmi_ari_cluster_labels_kmeans_ari": "kmeans_ari",
        "clisi_knn": "clisi",
        "ilisi_knn": "ilisi",
        "kbet_per_label": "kbet",
        "Bio conservation": "bio",
        "Batch correction": "batch",
        "Total": "total",
    }
    theirs = {names.get(name, name): value for name, value in expected.items()}
    assert set(theirs) == set(found) == {*BIO, *BATCH, "bio", "batch", "total"}
    for name, value in theirs.items():
        assert found[name] == pytest.approx(value, abs=2e-5), name


@needs_scib
@without_tensorflow
@pytest.mark.slow
# scib-metrics asks for more neighbours than a label of ten cells has
@pytest.mark.filterwarnings("ignore:Failed to correctly find n_neighbors:UserWarning")
def test_scores_of_few_cells_and_of_one_batch():
    """Fewer cells than the 90 neighbours, labels of one cell, batches that labels do not share."""
    cells, labels, batch = _cells(60)
    labels[:2] = ["one", "another"]
    found = metrics.integration_scores(cells, batch=batch, labels=labels, pre=cells)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["bio"] == pytest.approx(np.mean([found[name] for name in BIO]))
    assert found["total"] == pytest.approx(0.6 * found["bio"] + 0.4 * found["batch"])
    assert found["pcr_comparison"] == 0  # nothing was removed
    alone = metrics.integration_scores(cells, batch=["x"] * 60, labels=labels)
    assert all(np.isnan(alone[name]) for name in (*BATCH, "batch", "total"))
    for name in ("kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi"):
        assert alone[name] == found[name]
    apart = metrics.integration_scores(cells, batch=labels, labels=labels)  # each label is a batch of its own
    assert all(np.isnan(apart[name]) for name in ("bras", "kbet", "pcr_comparison"))
    assert apart["batch"] == pytest.approx((apart["ilisi"] + apart["graph_connectivity"]) / 2)


@needs_scib
@without_tensorflow
@pytest.mark.slow
def test_what_is_better_scores_better():
    mixed, labels, batch = _cells(200)
    apart, *_ = _cells(200, shift=6.0)
    noise = np.random.default_rng(1).permutation(mixed)
    scores = {
        name: metrics.integration_scores(cells, batch=batch, labels=labels, pre=apart)
        for name, cells in {"mixed": mixed, "apart": apart, "noise": noise}.items()
    }
    assert scores["mixed"]["total"] > max(scores["apart"]["total"], scores["noise"]["total"]) + 0.1
    assert scores["mixed"]["batch"] > scores["apart"]["batch"] + 0.3
    assert scores["mixed"]["bio"] > scores["noise"]["bio"] + 0.3
