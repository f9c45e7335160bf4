"""Which predicted labels the cells of a label in another vocabulary got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert import keys
from cellxpert.errors import PlotError
from cellxpert.pl.colors import labels_in_order
from cellxpert.pl.figure import begin, finish
from cellxpert.pl.read import column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData
    from numpy.typing import ArrayLike

__all__ = ["label_dotplot"]

_WIDEST = 0.92
"""Diameter of the dot of all cells; the side of a field is 1."""
_LEGEND = (0.05, 0.25, 0.5, 1.0)
_BESIDE, _BELOW = 6.0, 6.5
"""Fields that the legends take, to the right and downwards."""


def label_dotplot(
    data: AnnData | MuData,
    reference: str | ArrayLike,
    *,
    key: str = keys.LABEL,
    confidence: str | ArrayLike | None = None,
    order: Sequence[Any] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw which labels were predicted for the cells of each reference label; the two may have different names.

    The area of a dot is the share of the reference label's cells that got the predicted one, its colour their mean confidence.

    Parameters
    ----------
    data
        Object that ``model.annotate`` wrote into.
    reference
        Column of ``obs`` with labels to compare with, or one label per cell. Cells without one are left out.
    key
        Column of ``obs`` with the predicted labels; cells without one are left out.
    confidence
        Column of ``obs``, or one number per cell. Default: the confidence that belongs to ``key``.
    order
        Reference labels to draw, from top to bottom. Default: all, so that the largest dots lie along the diagonal.
    title
        Above the dots.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If columns are missing, the confidence is no number, no cell has both labels, or ``order`` has other labels.
    """
    rows, columns, counts, means = _count(data, reference, key, confidence, order)
    n_cells = counts.sum(axis=1)
    shares = counts / n_cells[:, None]
    n_rows, n_columns = counts.shape
    names = [f"{label} ({n:,})" for label, n in zip(rows, n_cells, strict=True)]
    field = 0.34 if max(n_rows, n_columns) <= 20 else 0.24
    beside, below = (0.08 * max(map(len, map(str, x))) for x in (names, columns))
    figsize = (field * (n_columns + _BESIDE) + beside + 0.7, max(field * n_rows + 0.75 * below, field * _BELOW) + 0.9)
    ax = begin(ax, figsize=figsize, show=show, save=save, return_fig=return_fig)
    i, j = np.nonzero(counts)
    height = n_rows - 1 - np.arange(n_rows)  # upwards: an inset has no place in an axis that is turned over
    dots = _draw_dots(ax, np.stack([j, height[i]], axis=1), shares[i, j])
    dots.set(cmap="viridis", clim=(0, 1), array=means[i, j])
    _draw_fields(ax, n_rows, n_columns)
    ax.set_xticks(range(n_columns), map(str, columns), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(height, names)
    ax.set_xlabel("predicted", x=n_columns / (n_columns + _BESIDE) / 2)
    ax.set_ylabel("reference (cells)", y=1 - n_rows / max(n_rows, _BELOW) / 2)
    ax.tick_params(length=0, labelsize=9 if max(n_rows, n_columns) <= 20 else 7)
    if title:
        ax.set_title(title, loc="left", fontsize=12)
    _draw_legends(ax, dots, n_rows, n_columns)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _count(
    data: Any, reference: Any, key: str, confidence: Any, order: Sequence[Any] | None
) -> tuple[list[Any], list[Any], np.ndarray, np.ndarray]:
    """Rows, columns, cells of each pair, and their mean confidence (NaN without cells)."""
    where = "pl.label_dotplot"
    if not hasattr(data, "obsm"):
        raise PlotError(where, found=type(data).__name__, fix="give an AnnData or a MuData")
    true, pred = column(data, reference, "reference"), column(data, key, "key")
    sure = column(data, keys.confidence_key(key) if confidence is None else confidence, "confidence")
    if not pd.api.types.is_numeric_dtype(sure):
        raise PlotError(f"{where}(confidence=)", found=f"values of type {sure.dtype}", fix="give one number per cell")
    both = (true.notna() & pred.notna()).to_numpy()
    if not both.any():
        raise PlotError(where, found="no cell with both labels", fix="model.annotate(data)")
    if sure[both].isna().any():
        raise PlotError(f"{where}(confidence=)", found="missing values", fix="give one number per cell")
    rows, columns = labels_in_order(true[both]), labels_in_order(pred[both])
    table = pd.DataFrame(
        {"row": pd.Categorical(true[both], rows).codes, "column": pd.Categorical(pred[both], columns).codes}
    )
    table["sure"] = sure[both].to_numpy(dtype=np.float64)
    found = table.groupby(["row", "column"])["sure"].agg(["size", "mean"])
    counts, means = np.zeros((len(rows), len(columns)), dtype=np.int64), np.full((len(rows), len(columns)), np.nan)
    place = tuple(found.index.get_level_values(level).to_numpy() for level in (0, 1))
    counts[place], means[place] = found["size"], found["mean"]
    if order is not None:
        unknown = [label for label in order if label not in set(rows)]
        if unknown or len(order) == 0 or len(set(order)) < len(order):
            found = f"{unknown[:5]} not among the reference labels" if unknown else "no labels, or one of them twice"
            raise PlotError(f"{where}(order=)", found=found, fix=f"give some of {rows[:8]}")
        chosen = [rows.index(label) for label in order]
    else:
        chosen = _near_diagonal(counts)
    return [rows[i] for i in chosen], columns, counts[chosen], means[chosen]


def _near_diagonal(counts: np.ndarray) -> list[int]:
    """Rows by the column of their largest share; among those of one column the surest first."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return sorted(range(len(shares)), key=lambda i: (shares[i].argmax(), -shares[i].max()))


def _draw_dots(ax: Axes, places: np.ndarray, shares: np.ndarray) -> Any:
    """Circles of a given share of a field, in units of the data: they fit their fields however large the axes are."""
    from matplotlib.collections import EllipseCollection

    width = _WIDEST * np.sqrt(shares)
    dots = EllipseCollection(
        width, width, np.zeros(len(width)), units="xy", offsets=places, offset_transform=ax.transData
    )
    dots.set(edgecolor="#505050", linewidth=0.4, zorder=2)
    return ax.add_collection(dots, autolim=False)


def _draw_fields(ax: Axes, n_rows: int, n_columns: int) -> None:
    """A frame and lines around the matrix, and room for the legends, which are in the same units, beside it."""
    from matplotlib.patches import Rectangle

    ax.set(xlim=(-0.5, n_columns + _BESIDE - 0.5), ylim=(min(-0.5, n_rows - _BELOW - 0.5), n_rows - 0.5))
    ax.set_aspect("equal")
    lines = {"color": "#EDEDED", "linewidth": 0.8, "zorder": 1}
    ax.hlines(range(n_rows), -0.5, n_columns - 0.5, **lines)
    ax.vlines(range(n_columns), -0.5, n_rows - 0.5, **lines)
    frame = Rectangle((-0.5, -0.5), n_columns, n_rows, fill=False, edgecolor="#D0D0D0", clip_on=False)
    ax.add_artist(frame)
    ax.spines[:].set_visible(False)
    ax.spines["bottom"].set_position(("data", -0.5))


def _draw_legends(ax: Axes, dots: Any, n_rows: int, n_columns: int) -> None:
    """Sizes and colours, right of the matrix."""
    left, top, n_sizes = n_columns + 0.5, n_rows - 2.5, len(_LEGEND)
    places = np.stack([np.full(n_sizes, left), top - np.arange(n_sizes)], axis=1)
    _draw_dots(ax, places, np.array(_LEGEND)).set_facecolor("#909090")
    for (x, y), share in zip(places, _LEGEND, strict=True):
        ax.text(x + 0.8, y, f"{100 * share:.0f} %", va="center", fontsize=8)
    scale = ax.inset_axes((left + 3.3, top - n_sizes + 0.5, 0.5, n_sizes), transform=ax.transData)
    ax.figure.colorbar(dots, cax=scale).outline.set_visible(False)
    scale.tick_params(length=0, labelsize=8)
    for x, text in ((left - 0.5, "share of\nreference"), (left + 3.3, "mean\nconfidence")):
        ax.text(x, top + 0.7, text, va="bottom", fontsize=8, linespacing=1.1)
