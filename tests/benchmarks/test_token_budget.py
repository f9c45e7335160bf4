"""The task ``token-budget``: a grid of features, trained on one batch."""

from __future__ import annotations

import pandas as pd
import pytest
from benchmarks.data_sets_integration import SYNTHETIC
from benchmarks.methods.ours_integration import Budgeted
from benchmarks.registry import Options
from benchmarks.tasks.token_budget import GRIDS, TASK, annotate, parts_of


def test_the_grid_is_whole():
    cases = list(TASK.cases(Options()))
    for name, other in zip(GRIDS, ((10, 34, 67, 134), (50, 100, 300, 600)), strict=True):
        sizes = [parts_of(case.split) for case in cases if case.data == name]
        assert sorted(sizes) == sorted((g, o) for g in (100, 250, 500, 1000) for o in other)
    assert len(cases) == 32


@pytest.mark.slow
def test_a_model_reads_as_many_features_as_it_is_given():
    loaded = SYNTHETIC.load(None)
    annotator = Budgeted({"rna": 20, "prot": 5}, seed=0, quick=True)
    annotator.fit(loaded.mdata, loaded.labels)
    sizes = {block.role: len(block.names) for block in annotator.model._state.vocabulary.blocks}
    assert sizes == {"rna": 20, "protein": 5}
    (measured,) = annotate(SYNTHETIC, "20 genes, 5 proteins", train="batch_0", options=Options(quick=True))
    assert set(measured.metrics) == {"accuracy", "macro_f1", "ece"}


def test_report_and_plot(tmp_path):
    rows = [
        {
            "data": "toy",
            "split": f"{g} genes, {o} peaks",
            "seed": 0,
            "method": "m",
            "metric": metric,
            "value": g / 1000 + o / 1e4,
        }
        for g in (100, 1000)
        for o in (50, 600)
        for metric in ("accuracy", "macro_f1")
        if (g, o, metric) != (100, 600, "macro_f1")
    ]
    text = TASK.report(pd.DataFrame(rows))
    assert "|  | 50 peaks | 600 peaks |" in text
    assert "| 1,000 genes | 1.005 | 1.060 |" in text
    assert "| 100 genes | 0.105 | – |" in text
    (picture,) = TASK.plot(pd.DataFrame(rows), tmp_path / "token-budget")
    assert picture.exists()
