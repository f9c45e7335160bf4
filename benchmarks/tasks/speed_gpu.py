"""Equality, speed, MFU and memory of ``base`` on a CUDA device. Without one, every case is left out and says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.registry import Case, Options, Task
from benchmarks.render import markdown
from benchmarks.tasks.speed import call

__all__ = ["TASK"]

TOKENS = 65_536
"""Tokens of a batch."""


def _missing() -> str:
    import torch

    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def cases(options: Options) -> Iterator[Case]:
    """List what is measured; ``split`` says what and at which size."""
    quick, missing, gpu = options.quick, _missing(), "benchmarks.speed.gpu"
    repeats = 2 if quick else 20
    plan: list[tuple[str, str, dict[str, object]]] = [
        ("backends-agree", "backends_agree", {"lengths": (300, 1, 777, 1024)}),
    ]
    for what in ("embed", "train"):
        plan += [
            (f"{what}-{length}", what, {"length": length, "n_cells": TOKENS // length})
            for length in ((512,) if quick else (512, 1024, 2048, 4096))
        ]
    plan += [("ragged-2048", "ragged", {"longest": 2048, "n_cells": 64})]
    for split, function, arguments in plan:
        run = partial(call, gpu, function, device="cuda", repeats=repeats, **arguments)
        yield Case(data="random_tokens", split=split, seed=0, method="cellxpert-base", run=run, missing=missing)


def report(frame: pd.DataFrame) -> str:
    """Return everything, one table per case."""
    parts = [
        "bf16, wall seconds between synchronisations, medians. `mfu`: model operations per second (counted from the shape) "
        "over those of an 8192-wide bf16 matrix product in the same rounds. `peak_device_mib`: of torch's allocator."
    ]
    for split, rows in frame.groupby("split", sort=False):
        lines = [[f"`{r.method}`", r.metric, f"{r.value:.4g}"] for r in rows.itertuples()]
        parts += [f"## {split}", markdown(["method", "metric", "value"], lines)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw nothing: the table says it."""
    return []


TASK = Task(name="speed-gpu", cases=lambda options: list(cases(options)), report=report, plot=plot)
