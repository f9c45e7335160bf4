"""What a benchmark is made of: a task has cases, a case yields measurements.

Tasks are found by name in :data:`TASKS` and imported only when asked for, so that ``--help`` is quick and a task whose
rivals are not installed does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd

__all__ = ["TASKS", "Case", "Measurement", "Options", "Task", "get_task", "missing_files"]

TASKS: Mapping[str, str] = {
    "adapters": "benchmarks.tasks.adapters",
    "annotation": "benchmarks.tasks.annotation",
    "calibration": "benchmarks.tasks.calibration",
    "integration": "benchmarks.tasks.integration",
    "objectives": "benchmarks.tasks.objectives",
    "perturbation": "benchmarks.tasks.perturbation",
    "spatial": "benchmarks.tasks.spatial",
    "speed": "benchmarks.tasks.speed",
    "speed-gpu": "benchmarks.tasks.speed_gpu",
    "token-budget": "benchmarks.tasks.token_budget",
    "transfer": "benchmarks.tasks.transfer",
    "union": "benchmarks.tasks.union",
    "unknown": "benchmarks.tasks.unknown",
}
"""Name of each task -> the module whose ``TASK`` it is."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says about a run.

    Parameters
    ----------
    data_dir
        Folder of the h5ad/h5mu files; None when there is none.
    quick
        Smallest form that still runs every kind of case: it proves that the code works, its figures mean nothing.
    """

    data_dir: Path | None = None
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one method did in one case.

    Parameters
    ----------
    method
        Name of the method.
    metrics
        Metric -> value.
    seconds
        Wall seconds of fitting and predicting (task ``annotation``) or of the whole measurement (``speed``).
    mib
        Peak resident memory of the process meanwhile, MiB; NaN where it was not measured.
    """

    method: str
    metrics: Mapping[str, float]
    seconds: float
    mib: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to run. ``data``, ``split``, ``seed`` and ``method`` name it within its task.

    Parameters
    ----------
    run
        Does the work. It may return measurements of other methods too, when a ratio asks for both in one process.
    missing
        Why the case cannot run here (a file or a device that is not there); empty when it can.
    """

    data: str
    split: str
    seed: int
    method: str
    run: Callable[[], Sequence[Measurement]]
    missing: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """``(data, split, seed, method)``."""
        return (self.data, self.split, self.seed, self.method)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A set of cases and the form of their report.

    Parameters
    ----------
    cases
        Lists the cases; must not load data.
    report
        Markdown body made of the tidy rows.
    plot
        Writes pictures beside the path given (its stem) and returns what it wrote.
    isolate
        Run each case in a process of its own, so that peak memory is its own and a crash takes nothing along.
    threads
        Value of ``OMP_NUM_THREADS`` for those processes; None leaves the libraries' default.
    """

    name: str
    cases: Callable[[Options], Sequence[Case]]
    report: Callable[[pd.DataFrame], str]
    plot: Callable[[pd.DataFrame, Path], Sequence[Path]]
    isolate: bool = True
    threads: int | None = None


def missing_files(files: Sequence[str], data_dir: Path | None) -> str:
    """Why files cannot be read here; empty when they can."""
    if files and data_dir is None:
        return f"{files[0]} needs --data DIR or $CELLXPERT_DATA"
    lacking = [file for file in files if not (data_dir / file).exists()]
    return f"{data_dir} has no {', '.join(lacking)}" if lacking else ""


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises
    ------
    KeyError
        If there is none; the message lists those that exist.
    """
    if name not in TASKS:
        raise KeyError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
    return import_module(TASKS[name]).TASK
