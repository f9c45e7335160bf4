from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from benchmarks.data_sets import ANNOTATION, given, stratified, three_fold
from benchmarks.methods import ANNOTATION as METHODS
from benchmarks.methods import make
from benchmarks.methods.baselines import log_normalised
from benchmarks.metrics import annotation_scores, expected_calibration_error
from benchmarks.registry import Options
from benchmarks.tasks.annotation import TASK, annotate
from hypothesis import given as given_data
from hypothesis import settings
from hypothesis import strategies as st


def _cells(n: int = 60, seed: int = 0) -> tuple[anndata.AnnData, np.ndarray]:
    """Three types, each with ten genes of its own."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    rate = 0.3 + 4.0 * (np.arange(30)[None, :] // 10 == kind[:, None])
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate * 5).astype(np.int32)))
    adata.var_names = [f"g{i}" for i in range(30)]
    adata.obs_names = [f"c{i}" for i in range(n)]
    return adata, np.array(["a", "b", "c"])[kind]


# --- truth: the figures that the issue gives for logistic regression ---


@pytest.mark.parametrize(
    ("data", "accuracy", "macro_f1"),
    [("pbmc68k", 0.871, 0.737), ("pbmc_facs_zheng2017", 0.920, 0.884), ("pbmc3k", 0.945, 0.857)],
)
def test_logistic_regression_reproduces_the_known_figures(
    request: pytest.FixtureRequest, data: str, accuracy: float, macro_f1: float
) -> None:
    data_dir: Path | None = None if data == "pbmc68k" else request.getfixturevalue("real_data")
    entry = ANNOTATION[data]
    (measurement,) = annotate(
        entry, entry.splits[0], method="logistic_regression", seed=0, options=Options(data_dir=data_dir)
    )
    assert measurement.metrics["accuracy"] == pytest.approx(accuracy, abs=6e-4)
    assert measurement.metrics["macro_f1"] == pytest.approx(macro_f1, abs=6e-4)
    assert measurement.seconds > 0


# --- methods ---


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if "baselines" in entry.module])
def test_baselines_learn_and_give_probabilities(method: str) -> None:
    (train, labels), (test, truth) = _cells(120), _cells(60, seed=1)
    if "svd" in method or method in {"knn", "nearest_centroid"}:
        train, test = (_wider(a) for a in (train, test))
    annotator = make(METHODS[method], seed=0, quick=True)
    annotator.fit(train, labels)
    predicted = annotator.predict(test)
    assert ((predicted.confidence > 0) & (predicted.confidence <= 1)).all()
    accuracy = (predicted.labels == truth).mean()
    assert accuracy == pytest.approx(1 / 3) if method == "majority" else accuracy > 0.95


def _wider(adata: anndata.AnnData) -> anndata.AnnData:
    """More genes than the 50 singular vectors."""
    rng = np.random.default_rng(0)
    noise = sp.csr_matrix(rng.poisson(0.2, size=(adata.n_obs, 40)).astype(np.int32))
    return anndata.AnnData(sp.hstack([adata.X, noise], format="csr"))


def test_log_normalised_against_a_plain_loop() -> None:
    adata, _ = _cells(5)
    dense = adata.X.toarray()
    dense[3] = 0
    got = log_normalised(anndata.AnnData(sp.csr_matrix(dense))).toarray()
    for row, counts in zip(got, dense, strict=True):
        expected = np.log1p(1e4 * counts / counts.sum()) if counts.sum() else np.zeros(len(counts))
        np.testing.assert_allclose(row, expected, rtol=1e-12)


@pytest.mark.slow
def test_ours_runs_on_the_smallest_data() -> None:
    data = ANNOTATION["pbmc68k"]
    options = Options(quick=True)
    (measurement,) = annotate(data, data.splits[0], method="cellxpert-nano", seed=0, options=options)
    assert set(measurement.metrics) == {"accuracy", "macro_f1", "ece"}
    assert 0 <= measurement.metrics["accuracy"] <= 1


# --- metrics ---


@settings(max_examples=50, deadline=None)
@given_data(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_error_against_a_plain_loop(cells: list[tuple[float, bool]]) -> None:
    confidence, correct = np.array([c for c, _ in cells]), np.array([r for _, r in cells])
    expected = 0.0
    for b in range(15):
        inside = [(c, r) for c, r in cells if np.ceil(c * 15) - 1 == b or (b == 0 and c == 0)]
        if inside:
            gap = np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside])
            expected += len(inside) / len(cells) * abs(gap)
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_is_over_the_true_classes() -> None:
    truth, predicted = np.array(["a", "a", "b"]), np.array(["a", "c", "b"])
    scores = annotation_scores(truth, predicted, np.ones(3))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["ece"] == pytest.approx(1 / 3)


# --- splits ---


def test_splits_are_partitions() -> None:
    adata, labels = _cells(90)
    adata.obs["split"] = np.where(np.arange(90) < 20, "test", "train")
    train, test = given(adata, labels)
    assert list(test) == list(range(20))
    for train, test in (stratified(adata, labels), *(three_fold(adata, labels, fold=k) for k in (1, 2, 3))):
        assert sorted([*train, *test]) == list(range(90))
    assert sorted(np.concatenate([three_fold(adata, labels, fold=k)[1] for k in (1, 2, 3)])) == list(range(90))


def test_cases() -> None:
    full = TASK.cases(Options())
    assert {case.data for case in full} == set(ANNOTATION)
    both = {case.data for case in full if "protein" in case.method}
    assert both == {name for name, data in ANNOTATION.items() if data.multimodal} == {"bmmc_cite_neurips2021_set1"}
    folds = ["/" in case.split for case in full]
    assert folds == sorted(folds)  # folds last
    seeds = {case.seed for case in full if case.method == "cellxpert-mini" and case.split == "given"}
    assert seeds == {0, 1, 2}
    assert {case.seed for case in full if case.method == "knn"} == {0}
    assert all("CELLXPERT_DATA" in case.missing for case in full if case.data == "pbmc3k")
    assert {case.data for case in TASK.cases(Options(quick=True))} == {"pbmc68k"}
