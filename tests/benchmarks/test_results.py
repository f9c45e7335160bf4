from __future__ import annotations

import csv
from pathlib import Path

import pytest
from benchmarks.registry import Case, Measurement
from benchmarks.results import COLUMNS, ResultFile, rows_of

ISSUE_COLUMNS = "task,data,split,seed,method,metric,value,seconds,mib,commit,versions"


def _rows(method: str, value: float, *, seed: int = 0) -> list[dict[str, str]]:
    case = Case(data="d", split="s", seed=seed, method=method, run=list)
    measured = Measurement(method=method, metrics={"accuracy": value, "f1": value / 2}, seconds=1.25, mib=7.0)
    return rows_of("t", case, [measured], commit="abc", versions="python 3; numpy 2, or so")


def test_columns_are_those_of_the_specification(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "deep" / "t.csv")
    file.append(_rows("a", 0.5))
    with file.path.open(newline="") as handle:
        lines = list(csv.reader(handle))
    assert ",".join(lines[0]) == ISSUE_COLUMNS == ",".join(COLUMNS)
    assert lines[1] == ["t", "d", "s", "0", "a", "accuracy", "0.5", "1.250", "7.0", "abc", "python 3; numpy 2, or so"]


def test_append_keeps_what_was_there_and_replaces_the_same_key(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "t.csv")
    file.append(_rows("a", 0.1))
    file.append(_rows("a", 0.2, seed=1))
    first = file.path.read_text()
    file.append(_rows("b", 0.3))
    assert file.path.read_text().startswith(first)
    file.append(_rows("a", 0.9))
    frame = file.frame()
    accuracy = frame[frame["metric"] == "accuracy"].set_index(["method", "seed"])["value"].to_dict()
    assert accuracy == {("a", 0): 0.9, ("a", 1): 0.2, ("b", 0): 0.3}
    assert len(frame) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    assert file.keys() == {("d", "s", 0, "a"), ("d", "s", 1, "a"), ("d", "s", 0, "b")}


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        ResultFile(path).keys()
    assert ResultFile(tmp_path / "none.csv").frame().empty
