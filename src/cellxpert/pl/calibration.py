"""Confidence against accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cellxpert.errors import PlotError
from cellxpert.pl.figure import begin, finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration"]


def calibration(
    table: pd.DataFrame,
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
        What :func:`cellxpert.metrics.reliability` returns.
    title
        Above the plot. Default: the expected calibration error.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If the table has other columns or no rows.
    """
    if not {"n", "confidence", "accuracy"} <= set(getattr(table, "columns", ())) or not len(table):
        fix = "pl.calibration(cx.metrics.reliability(confidence, correct))"
        raise PlotError("pl.calibration", found="no table of reliability", fix=fix)
    ax = begin(ax, figsize=(4.2, 4.2), show=show, save=save, return_fig=return_fig)
    confidence, accuracy, n = (table[name].to_numpy(dtype=float) for name in ("confidence", "accuracy", "n"))
    error = np.average(np.abs(confidence - accuracy), weights=n)
    ax.plot([0, 1], [0, 1], color="#A0A0A0", linestyle="--", linewidth=1, zorder=1)
    ax.plot(confidence, accuracy, color="#0072B2", linewidth=1, zorder=2)
    ax.scatter(confidence, accuracy, s=15 + 250 * n / n.sum(), color="#0072B2", edgecolors="white", zorder=3)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy", aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
    shown = f"expected calibration error {error:.3f}" if title is None else title
    ax.set_title(shown, loc="left", fontsize=11)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)
