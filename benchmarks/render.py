"""Tidy rows -> Markdown tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.registry import Task
from benchmarks.results import ResultFile

__all__ = ["dot_plot", "family", "markdown", "method_table", "render"]


PANELS_PER_ROW = 5


def family(split: str) -> str:
    """Name of a split without the number of its fold: ``"3-fold/2"`` -> ``"3-fold"``.

    >>> family("stratified-2022")
    'stratified-2022'
    """
    return split.partition("/")[0]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all but the first column are right-aligned."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean_sd(values: np.ndarray, digits: int) -> str:
    text = f"{values.mean():.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def _standard_error(values: np.ndarray, digits: int) -> str:
    return "–" if len(values) < 2 else f"{values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


def method_table(
    rows: pd.DataFrame,
    metrics: Mapping[str, bool | None],
    *,
    digits: int = 3,
    standard_error: bool = False,
    controls: Sequence[str] = (),
) -> str:
    """Return a table of methods x metrics: mean ± sd over seeds and folds, the best mean of a column in bold.

    Parameters
    ----------
    rows
        Tidy rows of one data set and split family.
    metrics
        Metric -> whether more is better, None where neither is; the first decides the order of the methods.
    digits
        Digits after the point.
    standard_error
        Whether a column says the standard error of the mean of the first metric.
    controls
        Methods that are never the best: they know the truth, or nothing.
    """
    first, first_up = next(iter(metrics.items()))
    means = rows.groupby(["method", "metric"])["value"].mean().unstack()
    means = means.reindex(columns=list(metrics)).sort_values(first, ascending=not first_up, kind="stable")
    rounded = means.round(digits)
    rivals = rounded.drop(index=list(controls), errors="ignore")
    judged = {metric: up for metric, up in metrics.items() if up is not None}
    best = {metric: rivals[metric].max() if up else rivals[metric].min() for metric, up in judged.items()}
    lines = []
    for method in means.index:
        mine = rows[rows["method"] == method]
        line = [f"`{method}`"]
        for metric in metrics:
            values = mine.loc[mine["metric"] == metric, "value"].to_numpy()
            text = _mean_sd(values, digits) if len(values) else "–"
            leads = len(values) and method in rivals.index and rounded.loc[method, metric] == best.get(metric)
            line.append(f"**{text}**" if leads else text)
        if standard_error:
            line.append(_standard_error(mine.loc[mine["metric"] == first, "value"].to_numpy(), digits))
        runs = mine.drop_duplicates(["split", "seed"])
        line += [f"{runs['seconds'].mean():.1f}", f"{runs['mib'].mean():.0f}", str(len(runs))]
        lines.append(line)
    error = ["se"] if standard_error else []
    return markdown(["method", *metrics, *error, "seconds", "peak MiB", "runs"], lines)


def dot_plot(rows: pd.DataFrame, metrics: Sequence[str], path: Path, *, order: Sequence[str]) -> Path:
    """Draw one panel per data set and split family: every run a dot, methods in rows, metrics in colours.

    Parameters
    ----------
    rows, metrics
        Tidy rows, and the metrics to draw (all on one scale).
    path
        The PNG to write.
    order
        Methods from top to bottom.
    """
    rows = rows.assign(family=rows["split"].map(family))
    panels = list(rows.groupby(["data", "family"], sort=False))
    n_columns = min(len(panels), PANELS_PER_ROW)
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(3.2 * n_columns + 1.6, n_rows * (0.32 * len(order) + 1.3)), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis in axes[max(len(panels) - n_columns, 0) : len(panels)]:  # the lowest that is left of each column
        axis.tick_params(labelbottom=True)
    colours = ("#1b6ca8", "#d1495b", "#66a182", "#edae49")
    height = {method: -place for place, method in enumerate(order)}
    for axis, ((data, split), part) in zip(axes, panels, strict=False):
        for shift, (metric, colour) in enumerate(zip(metrics, colours, strict=False)):
            mine = part[part["metric"] == metric]
            heights = mine["method"].map(height) + 0.12 * (len(metrics) - 1 - 2 * shift)
            axis.scatter(mine["value"], heights, s=18, color=colour, label=metric, alpha=0.8, linewidths=0)
        axis.set_title(f"{data}\n{split}", fontsize=9)
        axis.set_yticks(list(height.values()), list(height))
        axis.grid(axis="both", color="#e5e5e5", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[n_columns - 1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
    return path


def render(task: Task, results: ResultFile) -> list[Path]:
    """Write the report of a task beside its file of results; returns what was written."""
    frame = results.frame()
    stem = results.path.with_suffix("")
    pictures = list(task.plot(frame, stem))
    quick = stem.suffix == ".quick"
    text = [
        f"# Benchmark `{task.name}`",
        f"Made from `{results.path.name}` by `python -m benchmarks render {task.name}{' --quick' if quick else ''}`; "
        "do not edit.",
    ]
    if quick:
        text.append("**Quick form: these figures only prove that the code runs.**")
    text += [task.report(frame), *[f"![{task.name}]({picture.name})" for picture in pictures]]
    text += ["Measured with:", "\n".join(f"* commit {c}: {v}" for c, v in _provenance(frame))]
    path = stem.with_name(stem.name + ".md")
    path.write_text("\n\n".join(text) + "\n")
    return [path, *pictures]


def _provenance(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(frame[["commit", "versions"]].drop_duplicates().itertuples(index=False, name=None))
