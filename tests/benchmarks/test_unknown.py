from __future__ import annotations

from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets import UNKNOWN, DataSet, LeftOut, Split, stratified
from benchmarks.methods import UNKNOWN as METHODS
from benchmarks.methods import Prediction
from benchmarks.methods.baselines import log_normalised
from benchmarks.methods.novelty import KnnDistance, Mahalanobis
from benchmarks.metrics import novelty_scores
from benchmarks.registry import Options
from benchmarks.tasks import unknown
from benchmarks.tasks.unknown import TASK, notice
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

N_GENES = 60


def _cells(n: int = 120, seed: int = 0) -> anndata.AnnData:
    """Four types, each with fifteen genes of its own."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 4
    rate = 0.5 + 8.0 * (np.arange(N_GENES)[None, :] // 15 == kind[:, None])
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.int32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], [f"g{i}" for i in range(N_GENES)]
    adata.obs["kind"] = np.array(["a", "b", "c", "d"])[kind]
    return adata


def _toy() -> LeftOut:
    split = Split(name="s", make=partial(stratified, test_size=0.5))
    data = DataSet(name="toy", label_key="kind", splits=(split,), make=_cells)
    return LeftOut(data=data, split=split, kinds=("b",))


# --- metrics ---


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=25),
    st.lists(st.integers(0, 6), min_size=1, max_size=25),
)
def test_novelty_scores_against_plain_loops(known: list[int], new: list[int]) -> None:
    keep = (0.9, 0.5)
    scores = novelty_scores(np.array(known + new, float), np.arange(len(known) + len(new)) >= len(known), keep=keep)
    wins = [1.0 if n > k else 0.5 if n == k else 0.0 for n in new for k in known]
    assert scores["auroc"] == pytest.approx(sum(wins) / len(wins))
    for name, percent in (("refused_90", 90), ("refused_50", 50)):
        # the lowest of the known cells' scores that lets at least so many of them keep their label
        threshold = min(t for t in known if 100 * sum(k <= t for k in known) >= percent * len(known))
        assert scores[name] == pytest.approx(sum(n > threshold for n in new) / len(new))


# --- methods ---


def test_knn_distance_is_the_mean_over_fifteen_cells() -> None:
    seen, asked = _cells(80), _cells(20, seed=1)
    method = KnnDistance(seed=0)
    method.fit(seen, seen.obs["kind"].to_numpy(dtype=str))
    found = method.predict(asked)
    apart = cdist(*(method.svd.transform(log_normalised(a)) for a in (asked, seen)))
    np.testing.assert_allclose(found.novelty, np.sort(apart, axis=1)[:, :15].mean(axis=1), rtol=1e-8)


def test_mahalanobis_against_scipy() -> None:
    seen, asked = _cells(80), _cells(20, seed=1)
    method = Mahalanobis(seed=0)
    method.fit(seen, seen.obs["kind"].to_numpy(dtype=str))
    found = method.predict(asked)
    scores = method.svd.transform(log_normalised(asked))
    apart = cdist(scores, method.means, "mahalanobis", VI=method.precision)
    np.testing.assert_allclose(np.sqrt(found.novelty), apart.min(axis=1), rtol=1e-8)
    assert list(found.labels) == list(method.classes[apart.argmin(axis=1)])


# --- the task ---


@pytest.mark.parametrize("method", ["logistic_regression", "knn_distance", "mahalanobis"])
def test_a_type_of_its_own_is_noticed(method: str) -> None:
    (measurement,) = notice(_toy(), "b", method=method, seed=0, options=Options(quick=True))
    assert measurement.metrics["auroc"] > 0.9
    assert measurement.metrics["accuracy_known"] > 0.95
    shares = [measurement.metrics[f"refused_{percent}"] for percent in (95, 90, 80, 50)]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] <= 1


def test_the_type_is_not_seen_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    class Spy:
        def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
            seen["labels"], seen["columns"] = labels, list(cells.obs.columns)

        def predict(self, cells: anndata.AnnData) -> Prediction:
            seen["asked"] = cells.n_obs
            return Prediction(np.full(cells.n_obs, "a"), np.linspace(0.1, 0.9, cells.n_obs))

    monkeypatch.setattr(unknown, "make", lambda entry, *, seed, quick: Spy())
    (measurement,) = notice(_toy(), "b", method="logistic_regression", seed=0, options=Options())
    assert set(seen["labels"]) == {"a", "c", "d"}
    assert seen["columns"] == []
    assert seen["asked"] == 60
    assert measurement.metrics["accuracy_known"] == pytest.approx(1 / 3)


class Plain:
    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None: ...

    def predict(self, cells: anndata.AnnData) -> Prediction:
        return Prediction(np.full(cells.n_obs, "a"), np.linspace(0.1, 0.9, cells.n_obs))


class Careful(Plain):
    def refuses(self, cells: anndata.AnnData) -> np.ndarray:
        return np.arange(cells.n_obs) % 3 == 0


def test_what_a_method_refuses_itself_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, found = _toy(), {}
    for method in (Plain, Careful):
        monkeypatch.setattr(unknown, "make", lambda entry, *, seed, quick, made=method: made())
        (measurement,) = notice(toy, "b", method="logistic_regression", seed=0, options=Options())
        found[method] = {name: measurement.metrics.get(name) for name in ("unknown", "labelled")}
    adata = toy.data.load(None)
    labels = adata.obs[toy.data.label_key].astype(str).to_numpy()
    _, test = toy.split.make(adata, labels)
    new = [i % 3 == 0 for i, cell in enumerate(test) if labels[cell] == "b"]
    others = [i % 3 == 0 for i, cell in enumerate(test) if labels[cell] != "b"]
    assert found[Plain] == {"unknown": None, "labelled": None}
    assert found[Careful] == pytest.approx({"unknown": sum(new) / len(new), "labelled": 1 - sum(others) / len(others)})


class Two(Plain):
    def predict(self, cells: anndata.AnnData) -> Prediction:
        plain, rank = super().predict(cells), np.arange(cells.n_obs, dtype=float)
        return Prediction(plain.labels, plain.confidence, rank, -rank)


def test_both_scores_of_a_method_that_has_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown, "make", lambda entry, *, seed, quick: Two())
    first, second = notice(_toy(), "b", method="logistic_regression", seed=0, options=Options())
    assert (first.method, second.method) == ("logistic_regression", "logistic_regression-distance")
    assert first.metrics["auroc"] == pytest.approx(1 - second.metrics["auroc"])
    assert first.metrics["accuracy_known"] == second.metrics["accuracy_known"]


def test_cases_and_report(tmp_path: Path) -> None:
    full = TASK.cases(Options())
    assert {case.data for case in full} == set(UNKNOWN)
    assert len(full) == len(METHODS) * sum(len(left.kinds) for left in UNKNOWN.values())
    assert {(c.data, c.split) for c in TASK.cases(Options(quick=True))} == {("pbmc68k", "without/CD14+ Monocyte")}
    common = {"data": "toy", "seed": 0, "seconds": 1.0, "mib": 9.0}
    rows = [
        {**common, "split": f"without/{kind}", "method": method, "metric": metric, "value": value}
        for kind in ("A", "B/C")
        for method, value in (("knn_distance", 0.9), ("mahalanobis", 0.8 + 0.15 * (kind == "A")))
        for metric in ("auroc", "refused_90", "accuracy_known")
    ]
    text = TASK.report(pd.DataFrame(rows))
    assert "| AUROC without | A | B/C |" in text
    assert "| `knn_distance` | 0.900 | **0.900** |" in text
    assert "| `mahalanobis` | **0.950** | 0.800 |" in text
    assert f"{np.std([0.95, 0.8], ddof=1) / np.sqrt(2):.3f}" in text
    assert all(path.exists() for path in TASK.plot(pd.DataFrame(rows), tmp_path / "unknown"))


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_every_type_left_out_has_twenty_test_cells(request: pytest.FixtureRequest, name: str) -> None:
    left = UNKNOWN[name]
    data_dir = None if left.data.make is not None else request.getfixturevalue("real_data")
    adata = left.data.load(data_dir)
    labels = adata.obs[left.data.label_key].astype(str).to_numpy()
    _, test = left.split.make(adata, labels)
    assert all((labels[test] == kind).sum() >= 20 for kind in left.kinds)
    assert 3 <= len(left.kinds) <= 4
