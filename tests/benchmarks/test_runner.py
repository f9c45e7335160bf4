from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.cli import main
from benchmarks.measure import ROOT, interleaved, measured, peak_mib, ratio, versions
from benchmarks.registry import TASKS, Case, Measurement, Options, Task, get_task
from benchmarks.results import ResultFile
from benchmarks.runner import Outcome, run_task, selected


class Counter:
    """A fake task that counts its runs; ``broken`` fails, ``absent`` cannot run here."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def _case(self, method: str, data: str, seed: int) -> Case:
        def run() -> list[Measurement]:
            self.runs.append(f"{method}/{data}/{seed}")
            if method == "broken":
                raise RuntimeError("on purpose")
            return [Measurement(method=method, metrics={"score": seed + 0.5}, seconds=0.1, mib=1.0)]

        return Case(
            data=data, split="s", seed=seed, method=method, run=run, missing="no file" if data == "absent" else ""
        )

    def task(self) -> Task:
        def cases(options: Options) -> list[Case]:
            found = [self._case("ours", "a", 0), self._case("ours", "a", 1), self._case("rival", "a", 0)]
            return [*found, self._case("broken", "a", 0), self._case("ours", "absent", 0)]

        def report(frame: pd.DataFrame) -> str:
            return f"{len(frame)} rows"

        return Task(name="fake", cases=cases, report=report, plot=lambda frame, stem: [], isolate=False)


def _silent(line: str) -> None:
    del line


def test_every_case_runs_once_and_failures_do_not_stop_the_others(tmp_path: Path) -> None:
    counter, file, lines = Counter(), ResultFile(tmp_path / "fake.csv"), []
    outcome = run_task(counter.task(), Options(), file, say=lines.append)
    assert outcome == Outcome(done=3, present=0, missing=1, failed=1)
    assert counter.runs == ["ours/a/0", "ours/a/1", "rival/a/0", "broken/a/0"]
    assert len(file.frame()) == 3
    assert any("on purpose" in line for line in lines)
    assert any("no file" in line for line in lines)


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole = ResultFile(tmp_path / "whole.csv")
    run_task(Counter().task(), Options(), whole, say=_silent)
    file, counter = ResultFile(tmp_path / "fake.csv"), Counter()
    run_task(counter.task(), Options(), file, only=["ours/a"], say=_silent)
    before = file.path.read_text()
    counter.runs.clear()
    outcome = run_task(counter.task(), Options(), file, say=_silent)
    assert outcome.present == 2
    assert counter.runs == ["rival/a/0", "broken/a/0"]  # what failed has left no row and is tried again
    assert file.path.read_text().startswith(before)
    assert file.path.read_text() == whole.path.read_text()


def test_force_replaces(tmp_path: Path) -> None:
    counter, file = Counter(), ResultFile(tmp_path / "fake.csv")
    run_task(counter.task(), Options(), file, only=["ours"], say=_silent)
    run_task(counter.task(), Options(), file, only=["ours"], force=True, say=_silent)
    assert counter.runs == ["ours/a/0", "ours/a/1"] * 2
    assert len(file.frame()) == 2


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ([], True),
        (["knn"], True),
        (["k*/pbmc?k"], True),
        (["*/pbmc3k"], True),
        (["knn/pbmc68k"], False),
        (["svd", "/pbmc3k"], True),
        (["knn/pbmc3k/3-fold*"], True),
        (["//given"], False),
    ],
)
def test_selected(only: list[str], expected: bool) -> None:
    assert selected(Case(data="pbmc3k", split="3-fold-2022/1", seed=0, method="knn", run=list), only) is expected


def test_tasks_list_unique_keys_without_data() -> None:
    for name in TASKS:
        for quick in (True, False):
            cases = get_task(name).cases(Options(quick=quick))
            assert len({case.key for case in cases}) == len(cases) > 0


def test_unknown_task() -> None:
    with pytest.raises(KeyError, match="annotation"):
        get_task("nothing")


def test_interleaved_takes_turns() -> None:
    seen: list[str] = []
    ticks = iter(range(100))

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append(name)

    seconds = interleaved({"a": note("a"), "b": note("b")}, repeats=2, clock=lambda: float(next(ticks)))
    assert seen == ["a", "b"] * 3  # one round to warm up
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_memory_is_that_of_the_block() -> None:
    with measured() as small:
        pass
    with measured() as large:
        held = bytearray(64 * 2**20)
        held[::4096] = b"x" * len(held[::4096])
    assert 55 < large.mib - small.mib < 90
    assert large.seconds > 0
    assert peak_mib() >= large.mib - 1


def test_versions() -> None:
    text = versions(("numpy", "surely-not-there"))
    assert text.startswith("python 3.")
    assert "; numpy " in text
    assert "surely" not in text


def test_command_line_runs_each_case_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src")]))
    }
    command = [sys.executable, "-m", "benchmarks", "run", "annotation", "--quick", "--results", str(tmp_path)]
    command += ["--only", "majority/pbmc68k"]
    for expected in ("1 run, 0 there already", "0 run, 1 there already"):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    rows = ResultFile(tmp_path / "annotation.quick.csv").frame()
    assert rows.set_index("metric")["value"]["accuracy"] == pytest.approx(48 / 140, abs=1e-5)
    assert (rows["mib"] > 50).all()
    assert {p.name for p in tmp_path.iterdir()} == {f"annotation.quick.{kind}" for kind in ("csv", "md", "png")}


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "annotation", "--results", str(tmp_path)]) == 1
    assert "run the task first" in capsys.readouterr().err
    assert main(["run", "annotation", "--data", str(tmp_path / "none"), "--results", str(tmp_path)]) == 2
    assert main(["run", "annotation", "--data", str(tmp_path), "--only", "knn/pbmc3k", "--results", str(tmp_path)]) == 1
    assert "has no pbmc3k.h5ad" in capsys.readouterr().out
    with pytest.raises(KeyError):
        main(["case", "annotation", json.dumps(["a", "b", 0, "c"]), "--out", str(tmp_path / "x")])
