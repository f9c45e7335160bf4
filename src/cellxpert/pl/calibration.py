"""Confidence against accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cellxpert.errors import PlotError
from cellxpert.pl.colors import PALETTE
from cellxpert.pl.figure import begin, finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["calibration"]


def calibration(
    table: pd.DataFrame | Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw accuracy over confidence; points below the diagonal are overconfident. Areas show how many cells a point stands for.

    Parameters
    ----------
    table
        What :func:`cellxpert.metrics.reliability` returns. Or several to compare, such as before and after scaling: name to
        confidence and whether the label is right, one of each per cell.
    title
        Above the plot. Default: the expected calibration error; of several, the legend has it.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If the table has other columns or no rows, or there is nothing to compare.
    MetricError
        If confidences and truth values that are compared do not fit each other.
    """
    several = isinstance(table, Mapping)
    tables = {name: _table(*_pair(x)) for name, x in table.items()} if several else {"": table}
    if not tables or not all(_is_reliability(x) for x in tables.values()):
        fix = "pl.calibration(cx.metrics.reliability(confidence, correct))"
        raise PlotError("pl.calibration", found="no table of reliability", fix=fix)
    ax = begin(ax, figsize=(4.2, 4.2), show=show, save=save, return_fig=return_fig)
    ax.plot([0, 1], [0, 1], color="#A0A0A0", linestyle="--", linewidth=1, zorder=1)
    shown = title
    for i, (name, one) in enumerate(tables.items()):
        confidence, accuracy, n = (one[column].to_numpy(dtype=float) for column in ("confidence", "accuracy", "n"))
        error = np.average(np.abs(confidence - accuracy), weights=n)
        color = PALETTE[i % len(PALETTE)]
        label = f"{name} (ECE {error:.3f})" if several else None
        ax.plot(confidence, accuracy, color=color, linewidth=1, zorder=2, label=label)
        ax.scatter(confidence, accuracy, s=15 + 250 * n / n.sum(), color=color, edgecolors="white", zorder=3)
        if title is None and not several:
            shown = f"expected calibration error {error:.3f}"
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy", aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(shown or "", loc="left", fontsize=11)
    if several:
        ax.legend(frameon=False, fontsize=9)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _is_reliability(table: object) -> bool:
    return {"n", "confidence", "accuracy"} <= set(getattr(table, "columns", ())) and len(table) > 0


def _pair(given: object) -> tuple[ArrayLike, ArrayLike]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        fix = "pl.calibration({'before': (confidence, correct), 'after': (scaled, correct)})"
        raise PlotError("pl.calibration", found=f"{type(given).__name__} in place of two arrays", fix=fix)
    return given[0], given[1]


def _table(confidence: ArrayLike, correct: ArrayLike) -> pd.DataFrame:
    from cellxpert.metrics import reliability

    return reliability(confidence, correct)
