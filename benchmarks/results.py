"""The file of results: tidy rows, one per metric, appended as cases finish."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.registry import Case, Measurement

__all__ = ["COLUMNS", "ResultFile", "rows_of"]

COLUMNS = ("task", "data", "split", "seed", "method", "metric", "value", "seconds", "mib", "commit", "versions")
"""Columns of ``results/TASK.csv``, in this order."""

Row = dict[str, str]
Key = tuple[str, str, int, str]


def rows_of(task: str, case: Case, measurements: Iterable[Measurement], *, commit: str, versions: str) -> list[Row]:
    """Return the rows of a finished case, values as text."""
    return [
        {
            "task": task,
            "data": case.data,
            "split": case.split,
            "seed": str(case.seed),
            "method": measured.method,
            "metric": metric,
            "value": f"{value:.6g}",
            "seconds": f"{measured.seconds:.3f}",
            "mib": f"{measured.mib:.1f}",
            "commit": commit,
            "versions": versions,
        }
        for measured in measurements
        for metric, value in measured.metrics.items()
    ]


class ResultFile:
    """``results/TASK.csv``. Every finished case is on disk before the next one starts.

    Parameters
    ----------
    path
        The file; made with its folder at the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _rows(self) -> list[Row]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{self.path}: columns {reader.fieldnames}, not {list(COLUMNS)}; move the file away")
            return list(reader)

    def keys(self) -> set[Key]:
        """``(data, split, seed, method)`` of every row."""
        return {(r["data"], r["split"], int(r["seed"]), r["method"]) for r in self._rows()}

    def frame(self) -> pd.DataFrame:
        """All rows, numbers as numbers."""
        frame = pd.DataFrame(self._rows(), columns=list(COLUMNS))
        return frame.astype({"seed": int, "value": float, "seconds": float, "mib": float})

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; those of the same key that were there before go."""
        if not rows:
            return
        new = {(r["data"], r["split"], int(r["seed"]), r["method"]) for r in rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if new & self.keys():
            kept = [r for r in self._rows() if (r["data"], r["split"], int(r["seed"]), r["method"]) not in new]
            self._replace([*kept, *rows])
            return
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(rows)

    def _replace(self, rows: Sequence[Row]) -> None:
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.path)
