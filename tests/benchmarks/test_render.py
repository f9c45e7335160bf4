from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.registry import Case, Measurement, get_task
from benchmarks.render import dot_plot, family, markdown, method_table, render
from benchmarks.results import ResultFile, rows_of
from benchmarks.tasks.speed import BARS, judge


def _file(path: Path, entries: list[tuple[str, str, str, int, dict[str, float]]], *, task: str) -> ResultFile:
    file = ResultFile(path)
    for data, split, method, seed, metrics in entries:
        case = Case(data=data, split=split, seed=seed, method=method, run=list)
        measured = [Measurement(method=method, metrics=metrics, seconds=2.0, mib=100.0)]
        file.append(rows_of(task, case, measured, commit="abc", versions="python 3"))
    return file


def test_mean_sd_and_best_in_bold(tmp_path: Path) -> None:
    values = [0.8, 0.9, 0.85]
    entries = [("d", "s", "ours", seed, {"accuracy": v, "ece": 0.1}) for seed, v in enumerate(values)]
    entries.append(("d", "s", "rival", 0, {"accuracy": 0.7, "ece": 0.05}))
    rows = _file(tmp_path / "t.csv", entries, task="t").frame()
    lines = method_table(rows, {"accuracy": True, "ece": False}).splitlines()
    assert lines[0] == "| method | accuracy | ece | seconds | peak MiB | runs |"
    assert lines[2] == f"| `ours` | **0.850 ± {np.std(values, ddof=1):.3f}** | 0.100 ± 0.000 | 2.0 | 100 | 3 |"
    assert lines[3] == "| `rival` | 0.700 | **0.050** | 2.0 | 100 | 1 |"
    assert "**0.050**" not in method_table(rows, {"accuracy": True, "ece": None})  # neither more nor less is better
    lines = method_table(rows, {"accuracy": True}, standard_error=True).splitlines()
    assert lines[0] == "| method | accuracy | se | seconds | peak MiB | runs |"
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert lines[2] == f"| `ours` | **0.850 ± {np.std(values, ddof=1):.3f}** | {error:.3f} | 2.0 | 100 | 3 |"
    assert lines[3] == "| `rival` | 0.700 | – | 2.0 | 100 | 1 |"


def test_controls_are_never_the_best(tmp_path: Path) -> None:
    entries = [("d", "s", name, 0, {"total": v}) for name, v in (("labels", 0.9), ("ours", 0.6), ("rival", 0.5))]
    rows = _file(tmp_path / "t.csv", entries, task="t").frame()
    lines = method_table(rows, {"total": True}, controls=["labels", "shuffled"]).splitlines()
    assert lines[2].startswith("| `labels` | 0.900 |")
    assert lines[3].startswith("| `ours` | **0.600** |")


def test_missing_metric_is_a_dash(tmp_path: Path) -> None:
    entries = [("d", "s", "a", 0, {"accuracy": 0.5}), ("d", "s", "b", 0, {"accuracy": 0.4, "ece": 0.2})]
    table = method_table(_file(tmp_path / "t.csv", entries, task="t").frame(), {"accuracy": True, "ece": False})
    assert "| `a` | **0.500** | – |" in table


def test_annotation_report_averages_folds_and_keeps_splits_apart(tmp_path: Path) -> None:
    entries = [
        ("pbmc3k", f"3-fold-2022/{k}", "knn", 0, {"accuracy": 0.8 + k / 100, "macro_f1": 0.5, "ece": 0.1})
        for k in (1, 2, 3)
    ]
    entries.append(("pbmc3k", "stratified-2022", "knn", 0, {"accuracy": 0.6, "macro_f1": 0.5, "ece": 0.1}))
    written = render(get_task("annotation"), _file(tmp_path / "annotation.quick.csv", entries, task="annotation"))
    assert [p.name for p in written] == ["annotation.quick.md", "annotation.quick.png"]
    text = written[0].read_text()
    assert "## pbmc3k, 3-fold-2022" in text
    assert "0.820 ± 0.010" in text
    assert "0.600" in text
    assert "commit abc: python 3" in text
    assert "only prove that the code runs" in text
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_more_panels_than_fit_into_a_row(tmp_path: Path) -> None:
    entries = [(f"data{i}", "s", "knn", 0, {"accuracy": 0.5}) for i in range(7)]
    rows = _file(tmp_path / "t.csv", entries, task="t").frame()
    (wide, height), (one, low) = (
        _size(dot_plot(part, ["accuracy"], tmp_path / f"{n}.png", order=["knn"]))
        for n, part in enumerate((rows, rows[rows["data"] == "data0"]))
    )
    assert wide > 4 * (one - 300)  # five of seven side by side
    assert height > 1.8 * low


def _size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_speed_report_judges_by_the_bars(tmp_path: Path) -> None:
    entries = [
        ("random_tokens", "train-1024", "cellxpert-base", 0, {"speed_vs_geneformer_v1": 2.9, "share_of_peak": 0.75}),
        ("random_tokens", "memory-1024", "cellxpert-base", 0, {"memory_vs_geneformer_v1": 0.35}),
    ]
    file = _file(tmp_path / "speed.csv", entries, task="speed")
    judged = judge(file.frame()).set_index("metric")["holds"].to_dict()
    assert judged == {"speed_vs_geneformer_v1": False, "share_of_peak": True, "memory_vs_geneformer_v1": True}
    written = render(get_task("speed"), file)
    assert (
        "| train-1024 | `cellxpert-base` | speed_vs_geneformer_v1 | **2.90** | >= 3 | **no** |"
        in written[0].read_text()
    )
    assert len(written) == 2


def test_bars_of_the_specification() -> None:
    bars = {(split, metric): (relation, bar) for split, _, metric, relation, bar in BARS}
    assert bars["embed-1024", "speed_vs_geneformer_v1"] == (">=", 2.0)
    assert bars["train-1024", "speed_vs_geneformer_v1"] == (">=", 3.0)
    assert bars["memory-1024", "memory_vs_geneformer_v1"] == ("<=", 0.35)
    assert bars["tokenise-2662", "speed_vs_scgpt_binning"] == (">=", 10.0)


def test_nothing_measured(tmp_path: Path) -> None:
    frame = ResultFile(tmp_path / "none.csv").frame()
    assert isinstance(frame, pd.DataFrame)
    assert judge(frame).empty
    assert markdown(["a"], []) == "| a |\n| --- |"


@pytest.mark.parametrize(("split", "expected"), [("given", "given"), ("3-fold-2022/2", "3-fold-2022")])
def test_family(split: str, expected: str) -> None:
    assert family(split) == expected
