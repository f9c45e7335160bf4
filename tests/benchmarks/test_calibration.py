"""What a few labelled cells of another donor are worth."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets import CALIBRATION, DataSet, Pooled, Split, of_groups, three_fold
from benchmarks.methods import CALIBRATION as METHODS
from benchmarks.methods import Prediction
from benchmarks.registry import Options
from benchmarks.tasks import calibration
from benchmarks.tasks.calibration import TASK, calibrate

KINDS = np.array(["a", "b"])


def _cells() -> anndata.AnnData:
    """Two types; the second donor has 400 cells."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 600)
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(1.0 + 4.0 * (np.arange(20)[None] // 10 == kind[:, None]))))
    adata.var_names = [f"g{i}" for i in range(20)]
    adata.obs["kind"], adata.obs["donor"] = KINDS[kind], np.repeat(["d1", "d2", "d2"], 200)
    return adata


SPLIT = Split(name="s", make=partial(of_groups, column="donor", train=("d1",)))
FOLDS = Pooled(name="f", folds=tuple(Split(name=f"f/{i}", make=partial(three_fold, fold=i)) for i in (1, 2, 3)))
TOY = DataSet(name="toy", label_key="kind", splits=(SPLIT,), make=_cells)


class Spy:
    """Says ``a`` with confidence 1, and what it was told where it may use that."""

    def __init__(self, seen: list[object]) -> None:
        self.seen = seen

    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
        assert not len(cells.obs.columns)
        self.seen.append(("fit", list(cells.obs_names), labels))

    def predict(self, cells: anndata.AnnData) -> Prediction:
        self.seen.append(("predict", list(cells.obs_names), None))
        return Prediction(np.full(cells.n_obs, "a"), np.ones(cells.n_obs))

    def predict_calibrated(self, cells: anndata.AnnData, known: np.ndarray) -> Prediction:
        self.seen.append(("known", list(cells.obs_names), known))
        return Prediction(np.full(cells.n_obs, "b"), np.full(cells.n_obs, 0.5))


@pytest.mark.parametrize("split", [SPLIT, FOLDS], ids=["one", "pooled"])
def test_methods_are_told_a_hundred_labels_and_scored_on_the_others(
    monkeypatch: pytest.MonkeyPatch, split: Split | Pooled
) -> None:
    adata, seen, again = _cells(), [], []
    label = dict(zip(adata.obs_names, adata.obs["kind"].astype(str), strict=True))
    run = partial(calibrate, TOY, split, method="logistic_regression", seed=4, options=Options())
    monkeypatch.setattr(calibration, "make", lambda entry, *, seed, quick: Spy(seen))
    plain, told = run(retrained=False)
    monkeypatch.setattr(calibration, "make", lambda entry, *, seed, quick: Spy(again))
    (retrained,) = run(retrained=True)
    names = [m.method for m in (plain, told, retrained)]
    assert names == [f"logistic_regression{end}" for end in ("", "-calibrated", "-retrained")]
    scored: list[str] = []
    n_folds = 3 if split is FOLDS else 1
    assert [what for what, *_ in seen] == ["fit", "predict", "known"] * n_folds
    assert [what for what, *_ in again] == ["fit", "predict"] * n_folds
    for fold in range(n_folds):
        (_, trained, labels), (_, asked, _), (_, cells, known) = seen[3 * fold : 3 * fold + 3]
        assert asked == cells
        assert not set(trained) & set(asked)
        assert [label[c] for c in trained] == list(labels)
        given = {c: k for c, k in zip(cells, known, strict=True) if k}
        assert len(given) == 100
        assert all(label[c] == k for c, k in given.items())
        _, more, labels = again[2 * fold]
        assert set(more) == set(trained) | set(given)
        assert [label[c] for c in more] == list(labels)
        scored += [c for c in cells if c not in given]
    share = np.mean([label[c] == "a" for c in scored])
    for one in (plain, retrained):
        assert one.metrics["accuracy"] == pytest.approx(share)
        assert one.metrics["ece"] == pytest.approx(1 - share)
        assert one.metrics["ece_floor"] == 0
    assert told.metrics["accuracy"] == pytest.approx(1 - share)
    assert told.metrics["ece"] == pytest.approx(abs(0.5 - (1 - share)))


def test_cells_drawn_differ_by_seed_and_are_the_same_for_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for seed in (0, 0, 1):
        seen: list[object] = []
        monkeypatch.setattr(calibration, "make", lambda entry, *, seed, quick, seen=seen: Spy(seen))
        calibrate(TOY, SPLIT, method="nearest_centroid", retrained=False, seed=seed, options=Options())
        drawn.append(seen[-1][2].tolist())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_ours_uses_the_labels() -> None:
    as_is, told = calibrate(TOY, SPLIT, method="cellxpert-nano", retrained=False, seed=0, options=Options(quick=True))
    assert (as_is.method, told.method) == ("cellxpert-nano", "cellxpert-nano-calibrated")
    assert told.metrics["accuracy"] > 0.9


def test_cases_and_report(tmp_path: Path) -> None:
    full, quick = TASK.cases(Options()), TASK.cases(Options(quick=True))
    assert len(full) == 3 * 2 * len(METHODS) * sum(data.make is None for data, _ in CALIBRATION)
    assert len({case.key for case in full}) == len(full)
    assert {(case.data, case.seed) for case in quick} == {("pbmc68k", 0)}
    rows = [
        {"data": "toy", "split": "s", "seed": seed, "method": method, "metric": metric, "value": value, "seconds": 1.0}
        | {"mib": 9.0}
        for seed in (0, 1)
        for method, value in (("cellxpert-nano", 0.5), ("cellxpert-nano-calibrated", 0.75))
        for metric in ("accuracy", "macro_f1", "ece", "ece_floor")
    ]
    assert "| `cellxpert-nano-calibrated` | **0.750" in TASK.report(pd.DataFrame(rows))
    assert all(path.exists() for path in TASK.plot(pd.DataFrame(rows), tmp_path / "calibration"))
