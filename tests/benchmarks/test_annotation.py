from __future__ import annotations

from functools import partial
from pathlib import Path

import anndata
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from benchmarks.data_sets import (
    ANNOTATION,
    DataSet,
    Pooled,
    Split,
    given,
    grouped_three_fold,
    of_groups,
    stratified,
    three_fold,
)
from benchmarks.methods import ANNOTATION as METHODS
from benchmarks.methods import LABEL_LOSSES, make
from benchmarks.methods.baselines import log_normalised
from benchmarks.methods.multimodal import centred_log_ratio
from benchmarks.metrics import annotation_scores, expected_calibration_error
from benchmarks.registry import Options
from benchmarks.tasks.annotation import TASK, annotate, bare
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
    assert set(measurement.metrics) == {"accuracy", "macro_f1", "ece", "ece_floor"}
    assert 0 <= measurement.metrics["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "reads"), [("cellxpert-nano", False), ("cellxpert-nano-rna-protein", True)])
def test_ours_reads_protein_where_it_is_given(method: str, reads: bool) -> None:
    (train, labels), (test, _) = _both(120, 0), _both(30, 1)
    seen, asked = bare(train, np.arange(120)), bare(test, np.arange(30))
    annotator = make(METHODS[method], seed=0, quick=True)
    annotator.fit(seen if reads else seen["rna"], labels)
    before = annotator.predict(asked).confidence
    asked["prot"].X = sp.csr_matrix(np.roll(asked["prot"].X.toarray(), 7, axis=1))
    assert np.allclose(annotator.predict(asked).confidence, before) is not reads


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


def test_the_only_cell_of_a_type_stays_in_training() -> None:
    adata, labels = _cells(61)
    labels = np.where(np.arange(61) == 60, "alone", labels)
    train, test = stratified(adata, labels)
    assert sorted([*train, *test]) == list(range(61))
    assert 60 in train
    assert len(test) == 12


def test_groups_are_on_one_side() -> None:
    adata, labels = _cells(90)
    adata.obs["donor"] = [f"d{i}" for i in np.arange(90) // 10]
    train, test = of_groups(adata, labels, column="donor", train=("d0", "d2"))
    assert list(train) == [*range(10), *range(20, 30)]
    assert list(test) == [*range(10, 20), *range(30, 90)]
    folds = [grouped_three_fold(adata, labels, column="donor", fold=k) for k in (1, 2, 3)]
    for train, test in folds:
        assert not set(adata.obs["donor"].iloc[train]) & set(adata.obs["donor"].iloc[test])
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(90))


def _both(n: int, seed: int) -> tuple[mudata.MuData, np.ndarray]:
    """Proteins tell the three types apart, RNA does not."""
    rng = np.random.default_rng(seed)
    marked, labels = _cells(n, seed)
    noise = anndata.AnnData(sp.csr_matrix(rng.poisson(1.0, size=(n, 60)).astype(np.int32)))
    noise.obs_names, noise.var_names = marked.obs_names, [f"r{i}" for i in range(60)]
    noise.obs["cell_type"] = labels
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": noise, "prot": marked}), labels


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if "multimodal" in entry.module])
def test_methods_of_two_modalities_read_the_protein(method: str) -> None:
    (train, labels), (test, truth) = _both(120, 0), _both(60, 1)
    annotator = make(METHODS[method], seed=0, quick=True)
    annotator.fit(train, labels)
    assert (annotator.predict(test).labels == truth).mean() > 0.95


def test_methods_of_rna_get_no_protein_and_no_column(tmp_path: Path) -> None:
    cells, labels = _both(90, 0)
    cells.write(tmp_path / "toy.h5mu")
    split = Split(name="s", make=stratified)
    data = DataSet(name="toy", label_key="cell_type", splits=(split,), multimodal=True)
    scores = {
        method: annotate(data, split, method=method, seed=0, options=Options(data_dir=tmp_path))[0].metrics["accuracy"]
        for method in ("logistic_regression", "logistic_regression_rna_protein")
    }
    assert scores["logistic_regression"] < 0.7  # noise: a third would be chance
    assert scores["logistic_regression_rna_protein"] > 0.9
    seen = bare(cells, np.arange(5))
    assert list(seen.mod) == ["rna", "prot"]
    assert all(modality.obs.columns.empty for modality in seen.mod.values())
    assert (cells["prot"].X[:5] != seen["prot"].X).nnz == 0


def test_answers_of_folds_are_scored_together(tmp_path: Path) -> None:
    """Every cell once, by the model that has not seen it."""
    adata = _both(90, 0)[0]["rna"].copy()
    adata.write(tmp_path / "toy.h5ad")
    folds = tuple(Split(name=f"f/{k}", make=partial(three_fold, fold=k)) for k in (1, 2, 3))
    pooled = Pooled(name="pooled", folds=folds)
    data = DataSet(name="toy", label_key="cell_type", splits=(*folds, pooled))
    options, labels = Options(data_dir=tmp_path), adata.obs["cell_type"].astype(str).to_numpy()
    found = {
        split.name: annotate(data, split, method="logistic_regression", seed=0, options=options)[0].metrics
        for split in data.splits
    }
    size = [len(test) for _, test in pooled.rounds(adata, labels)]
    assert sorted(np.concatenate([test for _, test in pooled.rounds(adata, labels)])) == list(range(90))
    right = sum(n * found[fold.name]["accuracy"] for n, fold in zip(size, folds, strict=True))
    assert found["pooled"]["accuracy"] == pytest.approx(right / 90)
    # gaps of bins add up before their size counts
    assert found["pooled"]["ece"] <= sum(n * found[f.name]["ece"] for n, f in zip(size, folds, strict=True)) / 90 + 1e-9


def test_centred_log_ratio_against_a_plain_loop() -> None:
    cells, _ = _both(5, 0)
    for row, counts in zip(centred_log_ratio(cells).toarray(), cells["prot"].X.toarray(), strict=True):
        logs = [np.log1p(c) for c in counts]
        np.testing.assert_allclose(row, [x - sum(logs) / len(logs) for x in logs], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["celltypist", "scanvi"])
def test_a_rival_whose_library_is_missing_is_left_out_and_says_so(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.methods.find_spec", lambda name: None)
    reasons = {case.missing for case in TASK.cases(Options(quick=True)) if case.method == method}
    assert len(reasons) == 1
    assert "benchmark-annotation" in reasons.pop()
    assert not any(case.missing for case in TASK.cases(Options(quick=True)) if case.method == "knn")


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.needs])
@pytest.mark.filterwarnings("ignore")  # of the rival's libraries
def test_rivals_of_the_second_environment_learn(method: str) -> None:
    if reason := METHODS[method].missing():
        pytest.skip(reason)
    (train, labels), (test, truth) = _cells(300), _cells(60, seed=1)
    annotator = make(METHODS[method], seed=0, quick=method == "celltypist")
    annotator.fit(train, labels)
    predicted = annotator.predict(test)
    assert (predicted.labels == truth).mean() > 0.9
    assert ((predicted.confidence > 0) & (predicted.confidence <= 1)).all()


def test_cases() -> None:
    full = TASK.cases(Options())
    assert {case.data for case in full} == set(ANNOTATION)
    both = {case.data for case in full if "protein" in case.method}
    assert both == {name for name, data in ANNOTATION.items() if data.multimodal} == {"bmmc_cite_neurips2021_set1"}
    folds = ["3-fold" in case.split for case in full]
    assert folds == sorted(folds)  # folds last
    seeds = {case.seed for case in full if case.method == "cellxpert-mini" and case.split == "given"}
    assert seeds == {0, 1, 2}
    assert {case.seed for case in full if case.method == "knn"} == {0}
    assert all("CELLXPERT_DATA" in case.missing for case in full if case.data == "pbmc3k")
    assert {case.data for case in TASK.cases(Options(quick=True))} == {"pbmc68k"}


def test_other_label_losses_are_settings_of_one_preset() -> None:
    losses = {name: make(entry, seed=0, quick=True).config for name, entry in LABEL_LOSSES.items()}
    assert {name.rpartition("-")[2]: config.training.label_loss for name, config in losses.items()} == {
        "weighted": "weighted",
        "plain": "plain",
        "ldam": "ldam",
    }
    default = make(METHODS["cellxpert-nano"], seed=0, quick=True).config
    assert all(config.replace(label_loss="balanced") == default for config in losses.values())
    variants = [case for case in TASK.cases(Options()) if case.method in LABEL_LOSSES]
    assert {case.seed for case in variants} == {0}
    assert not any("/" in case.split for case in variants)
