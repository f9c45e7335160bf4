"""Which labels are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.errors import PlotError
from cellxpert.pl.colors import labels_in_order
from cellxpert.pl.figure import begin, finish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["confusion_matrix"]

_MOST_LABELS_WITH_COUNTS = 30


def confusion_matrix(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    labels: Sequence[Any] | None = None,
    groups: Mapping[Any, str] | None = None,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw true labels against predicted ones: the colour is the share of the true label's cells, the number counts them.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.
    labels
        Order of the labels; must contain all that occur. Default: the order of the categories if both arrays have the same
        ones, else by name. Labels that occur in neither array are left out; labels that are only predicted get no row.
    groups
        Name of the branch that a label belongs to, such as ``{"CD4 T": "T cell", "CD8 T": "T cell"}``. Labels of a branch are
        brought together, lines part the branches, and brackets above name them; labels without one come last.
    title
        Above the matrix.
    colorbar
        Draw the scale of the shares.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If the arrays differ in length, are empty, or hold missing or unlisted labels.
    """
    rows, columns, counts = _count(y_true, y_pred, labels, groups or {})
    shares = counts / counts.sum(axis=1, keepdims=True)
    side = 1.8 + 0.42 * len(columns)
    figsize = (side + 2.2 + 0.8 * colorbar, 1.8 + 0.42 * len(rows) + 1.2)
    ax = begin(ax, figsize=figsize, show=show, save=save, return_fig=return_fig)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    _write_counts(ax, counts, shares)
    ax.set_xticks(range(len(columns)), [str(c) for c in columns], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), [f"{label} ({n})" for label, n in zip(rows, counts.sum(axis=1), strict=True)])
    ax.set_xlabel("predicted")
    ax.set_ylabel("true (cells)")
    ax.tick_params(length=0, labelsize=9 if len(columns) <= 16 else 7 if len(columns) <= 30 else 6)
    _draw_grid(ax, len(rows), len(columns))
    if groups:
        _draw_groups(ax, rows, columns, groups)
    if title:
        ax.set_title(title, loc="left", fontsize=12)
    if colorbar:
        bar = ax.figure.colorbar(
            image, ax=ax, fraction=0.04, pad=0.03, aspect=30, label="share of the true label's cells"
        )
        bar.outline.set_visible(False)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _count(
    y_true: ArrayLike, y_pred: ArrayLike, labels: Sequence[Any] | None, groups: Mapping[Any, str]
) -> tuple[list[Any], list[Any], np.ndarray]:
    true, pred = pd.Series(y_true), pd.Series(y_pred)
    if len(true) != len(pred) or not len(true):
        raise PlotError("y_true, y_pred", found=f"{len(true)} and {len(pred)} labels", fix="give one of each per cell")
    if true.isna().any() or pred.isna().any():
        raise PlotError("y_true, y_pred", found="missing labels", fix="leave these cells out")
    occurring = labels_in_order(true, pred)
    order = occurring if labels is None else [label for label in labels if label in set(occurring)]
    if unlisted := [label for label in occurring if label not in set(order)]:
        raise PlotError("pl.confusion_matrix(labels=)", found=f"{unlisted[:5]} not listed", fix="list all labels")
    branches = list(dict.fromkeys(groups[label] for label in order if label in groups))
    order.sort(key=lambda label: branches.index(groups[label]) if label in groups else len(branches))
    present = set(true)
    rows = [label for label in order if label in present]
    row, place = {x: i for i, x in enumerate(rows)}, {x: i for i, x in enumerate(order)}
    counts = np.zeros((len(rows), len(order)), dtype=np.int64)
    np.add.at(counts, ([row[t] for t in true], [place[p] for p in pred]), 1)
    return rows, order, counts


def _write_counts(ax: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    if counts.shape[1] > _MOST_LABELS_WITH_COUNTS:
        return
    small = 9 if counts.shape[1] <= 15 and counts.max() < 1000 else 6
    for i, j in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[i, j] > 0.55 else "#202020"
        ax.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=small)


def _draw_grid(ax: Axes, n_rows: int, n_columns: int) -> None:
    ax.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="#E4E4E4", linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)


def _draw_groups(ax: Axes, rows: list[Any], columns: list[Any], groups: Mapping[Any, str]) -> None:
    """Lines between branches, and a bracket with the name above each; labels without a branch have neither name nor bracket."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import offset_copy

    lines = {"color": "#606060", "linewidth": 1.0, "zorder": 3}
    for place in _starts(columns, groups)[1:]:
        ax.axvline(place - 0.5, **lines)
    for place in _starts(rows, groups)[1:]:
        ax.axhline(place - 0.5, **lines)
    starts = _starts(columns, groups)
    runs = [(a, b) for a, b in zip(starts, [*starts[1:], len(columns)], strict=True) if columns[a] in groups]
    above = offset_copy(ax.get_xaxis_transform(), fig=ax.figure.figure, y=4, units="points")
    for first, after in runs:
        bracket = Line2D([first - 0.35, after - 0.65], [1, 1], transform=above, clip_on=False)
        bracket.set(color="#404040", linewidth=2.0)
        ax.add_artist(bracket)  # unlike what is plotted it leaves the limits as they are
    top = ax.secondary_xaxis("top")
    names = [str(groups[columns[first]]) for first, _ in runs]
    box = ax.get_window_extent()
    n_letters = min(box.width / len(columns), box.height / len(rows)) / ax.figure.dpi * 72 / 6  # in a column's width
    flat = all(len(name) <= n_letters * (after - first) for name, (first, after) in zip(names, runs, strict=True))
    turn = {"ha": "center"} if flat else {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
    top.set_xticks([(first + after - 1) / 2 for first, after in runs], names, **turn)
    top.tick_params(length=0, pad=7, labelsize=9)
    top.spines[:].set_visible(False)


def _starts(labels: list[Any], groups: Mapping[Any, str]) -> list[int]:
    """Where a branch begins."""
    of = [groups.get(label) for label in labels]
    return [i for i in range(len(of)) if i == 0 or of[i] != of[i - 1]]
