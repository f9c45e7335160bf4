"""Ratios to the forms of the peers, and the share of the machine's peak: each measured within one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.registry import Case, Measurement, Options, Task, missing_files
from benchmarks.render import markdown

__all__ = ["BARS", "TASK", "call", "judge"]

SCREENED = "perturb_papalexi2021.h5ad"
TOKENS = 4096
"""Tokens of a batch: cells = TOKENS / length."""

BARS: tuple[tuple[str, str, str, str, float], ...] = (
    ("tokenise-1023", "cellxpert-per-cell-bins", "speed_vs_scgpt_binning", ">=", 10.0),
    ("tokenise-1023", "cellxpert-global-bins", "speed_vs_scgpt_binning", ">=", 10.0),
    ("tokenise-2662", "cellxpert-per-cell-bins", "speed_vs_scgpt_binning", ">=", 10.0),
    ("tokenise-2662", "cellxpert-global-bins", "speed_vs_scgpt_binning", ">=", 10.0),
    ("embed-1024", "cellxpert-base", "speed_vs_geneformer_v1", ">=", 2.0),
    ("train-1024", "cellxpert-base", "speed_vs_geneformer_v1", ">=", 3.0),
    ("memory-1024", "cellxpert-base", "memory_vs_geneformer_v1", "<=", 0.35),
    ("embed-1024", "cellxpert-base", "share_of_peak", ">=", 0.7),
    ("embed-2048", "cellxpert-base", "share_of_peak", ">=", 0.7),
    ("train-1024", "cellxpert-base", "share_of_peak", ">=", 0.7),
    ("train-2048", "cellxpert-base", "share_of_peak", ">=", 0.7),
    ("experts-2048", "cellxpert-experts", "time_vs_dense_feed_forward", "<=", 1.10),
    ("experts-4096", "cellxpert-experts", "time_vs_dense_feed_forward", "<=", 1.10),
    ("experts-8192", "cellxpert-experts", "time_vs_dense_feed_forward", "<=", 1.10),
    ("steps-1024", "cellxpert-base", "speed_vs_bert_four_passes", ">=", 100.0),
    ("steps-1024", "cellxpert-base", "speed_vs_bert_two_passes", ">=", 60.0),
    ("pseudo-likelihood-1024", "cellxpert-base", "speed_vs_masked_passes", ">=", 1000.0),
    ("screen-25", "cellxpert-learned", "minutes", "<=", 10.0),
)
"""(split, method, metric, relation, bar)."""


def call(module: str, function: str, **arguments: object) -> list[Measurement]:
    """Import late: listing the cases must not load torch."""
    return getattr(import_module(module), function)(**arguments)


def cases(options: Options) -> Iterator[Case]:
    """List what is timed; ``split`` says what and at which size."""
    quick, timed, memory = options.quick, "benchmarks.speed.cases", "benchmarks.speed.memory"
    repeats = 1 if quick else 9
    for n_detected in (1023, 2662):
        run = partial(call, timed, "tokenise", n_detected=n_detected, n_cells=64 if quick else 2048, repeats=repeats)
        yield Case(
            data="random_counts", split=f"tokenise-{n_detected}", seed=0, method="cellxpert-per-cell-bins", run=run
        )
    for what in ("embed", "train"):
        for length in (256,) if quick else (512, 1024, 2048):
            run = partial(call, timed, what, length=length, n_cells=1 if quick else TOKENS // length, repeats=repeats)
            yield Case(data="random_tokens", split=f"{what}-{length}", seed=0, method="cellxpert-base", run=run)
    length = 256 if quick else 1024
    run = partial(call, memory, "training_memory", length=length, n_cells=1 if quick else TOKENS // length)
    yield Case(data="random_tokens", split=f"memory-{length}", seed=0, method="cellxpert-base", run=run)
    for n_tokens in (512,) if quick else (2048, 4096, 8192):
        run = partial(call, timed, "experts", n_tokens=n_tokens, repeats=repeats)
        yield Case(data="random_tokens", split=f"experts-{n_tokens}", seed=0, method="cellxpert-experts", run=run)
    length, sampling = 256 if quick else 1024, "benchmarks.speed.sampling"
    for what, function in (("steps", "steps"), ("pseudo-likelihood", "pseudo_likelihood")):
        run = partial(call, sampling, function, length=length, repeats=repeats)
        yield Case(data="random_tokens", split=f"{what}-{length}", seed=0, method="cellxpert-base", run=run)
    if not quick:
        run = partial(call, "benchmarks.speed.screen", "screen", file=options.data_dir and options.data_dir / SCREENED)
        missing = missing_files((SCREENED,), options.data_dir)
        yield Case(
            data="perturb_papalexi2021", split="screen-25", seed=0, method="cellxpert-learned", run=run, missing=missing
        )


def judge(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every bar that was measured: value, relation, bar and whether it holds."""
    rows = []
    for split, method, metric, relation, bar in BARS:
        found = frame[(frame["split"] == split) & (frame["method"] == method) & (frame["metric"] == metric)]
        for value in found["value"]:
            holds = value >= bar if relation == ">=" else value <= bar
            rows.append((split, method, metric, value, relation, bar, holds))
    return pd.DataFrame(rows, columns=["split", "method", "metric", "value", "relation", "bar", "holds"])


def report(frame: pd.DataFrame) -> str:
    """Return the bars, then everything."""
    bars = judge(frame)
    header = ["what", "method", "metric", "measured", "bar", "holds"]
    lines = [
        [
            r.split,
            f"`{r.method}`",
            r.metric,
            f"**{r.value:.2f}**",
            f"{r.relation} {r.bar:g}",
            "yes" if r.holds else "**no**",
        ]
        for r in bars.itertuples()
    ]
    parts = [
        "One thread, CPU seconds, each comparison in one process with the methods in turn; medians over the rounds of the "
        "ratio within a round. `share_of_peak`: our operations per second (counted from the shape, "
        "`benchmarks/speed/flops.py`) over those of the machine's fastest fp32 matrix product in the same rounds.",
        markdown(header, lines) if lines else "No bar was measured.",
    ]
    for split, rows in frame.groupby("split", sort=False):
        lines = [[f"`{r.method}`", r.metric, f"{r.value:.4g}"] for r in rows.itertuples()]
        parts += [f"## {split}", markdown(["method", "metric", "value"], lines)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw every bar as the measured value over it, on a scale where right of 1 is held."""
    bars = judge(frame)
    if bars.empty:
        return []
    better = (bars["value"] / bars["bar"]).where(bars["relation"] == ">=", bars["bar"] / bars["value"])
    figure = Figure(figsize=(7, 0.34 * len(bars) + 1), layout="constrained")
    axis = figure.subplots()
    names = [f"{b.split} {b.metric}\n({b.method})" for b in bars.itertuples()]
    colours = ["#66a182" if holds else "#d1495b" for holds in bars["holds"]]
    axis.barh(range(len(bars)), better, color=colours)
    axis.axvline(1, color="#333333", linewidth=1)
    axis.set_yticks(range(len(bars)), names, fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("times the bar (right of the line: held)")
    axis.spines[["top", "right"]].set_visible(False)
    path = stem.with_name(stem.name + ".png")
    figure.savefig(path, dpi=150)
    return [path]


TASK = Task(name="speed", cases=lambda options: list(cases(options)), report=report, plot=plot, threads=1)
