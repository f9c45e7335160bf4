"""Run the cases of a task, one after another, each in a process of its own, and note what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.measure import ROOT, commit, versions
from benchmarks.registry import Case, Measurement, Options, Task, get_task
from benchmarks.results import ResultFile, rows_of

__all__ = ["Outcome", "PACKAGES", "run_case", "run_task", "selected"]

PACKAGES = (
    "cellxpert",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "anndata",
    "mudata",
    "scanpy",
    "numba",
    "transformers",
    "celltypist",
    "scvi-tools",
    "scib-metrics",
    "harmonypy",
    "muon",
)
"""Packages whose versions go into each row."""


@dataclass
class Outcome:
    """How many cases ran, were there already, could not run here, or failed."""

    done: int = 0
    present: int = 0
    missing: int = 0
    failed: int = 0


def selected(case: Case, only: Sequence[str]) -> bool:
    """Whether a pattern ``METHOD``, ``METHOD/DATA`` or ``METHOD/DATA/SPLIT`` (shell wildcards) names the case.

    No pattern names every case; an empty part names everything.

    >>> selected(Case(data="pbmc3k", split="s", seed=0, method="knn", run=list), ["knn/pbmc*"])
    True
    """
    for pattern in only:
        parts = (pattern.split("/", 2) + ["", ""])[:3]
        if all(
            fnmatchcase(name, part or "*")
            for name, part in zip((case.method, case.data, case.split), parts, strict=True)
        ):
            return True
    return not only


def run_case(task: str, case: tuple[str, str, int, str], options: Options) -> list[Measurement]:
    """Run one case here and now."""
    for found in get_task(task).cases(options):
        if found.key == case:
            return list(found.run())
    raise KeyError(f"task {task!r} has no case {case}")


def _run_apart(task: Task, case: Case, options: Options) -> list[Measurement]:
    """Run one case in a fresh interpreter; its measurements come back as JSON."""
    environment = os.environ | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    if task.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(task.threads), "NUMBA_NUM_THREADS": str(task.threads)}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "measurements.json"
        command = [sys.executable, "-m", "benchmarks", "case", task.name, json.dumps(case.key), "--out", str(answer)]
        command += ["--quick"] if options.quick else []
        command += ["--data", str(options.data_dir.resolve())] if options.data_dir else []
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            log = [line for line in done.stderr.splitlines() if line.strip()]
            raise RuntimeError("\n    ".join([f"exit status {done.returncode}", *log[-12:]]))
        return [Measurement(**record) for record in json.loads(answer.read_text())]


def write_measurements(measurements: Sequence[Measurement], path: Path) -> None:
    """Write what a case measured where :func:`run_task` looks for it."""
    path.write_text(json.dumps([asdict(m) | {"metrics": dict(m.metrics)} for m in measurements]))


def run_task(
    task: Task,
    options: Options,
    results: ResultFile,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Run every selected case that the file of results lacks.

    Parameters
    ----------
    task, options, results
        What to run, how, and where rows are appended (after every case: an interrupted run loses one case).
    only
        Patterns ``METHOD/DATA/SPLIT``; see :func:`selected`.
    force
        Run cases that are there already, and replace their rows.
    say
        Takes a line per case.

    Raises
    ------
    ValueError
        If the file of results has other columns.
    """
    outcome, present = Outcome(), results.keys()
    stamp = {"commit": commit(), "versions": versions(PACKAGES)}
    cases = [case for case in task.cases(options) if selected(case, only)]
    for number, case in enumerate(cases, start=1):
        name = f"[{number}/{len(cases)}] {case.data} {case.split} seed {case.seed} {case.method}"
        if case.key in present and not force:
            outcome.present += 1
            say(f"{name}: there already")
            continue
        if case.missing:
            outcome.missing += 1
            say(f"{name}: left out, {case.missing}")
            continue
        try:
            measurements = _run_apart(task, case, options) if task.isolate else list(case.run())
        except Exception as error:  # noqa: BLE001 - one method that fails must not stop the others
            outcome.failed += 1
            say(f"{name}: FAILED, {error}")
            continue
        results.append(rows_of(task.name, case, measurements, **stamp))
        outcome.done += 1
        shown = "; ".join(
            f"{m.method} "
            + " ".join(f"{metric}={value:.4g}" for metric, value in m.metrics.items())
            + f" ({m.seconds:.1f} s, {m.mib:.0f} MiB)"
            for m in measurements
        )
        say(f"{name}: {shown}")
    return outcome
