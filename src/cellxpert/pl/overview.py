"""What an annotation says of every cell: which label, how sure, and why none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert import keys
from cellxpert.errors import PlotError
from cellxpert.pl.colors import label_colors
from cellxpert.pl.embedding import embedding, legend_handles
from cellxpert.pl.figure import finish, new_figure
from cellxpert.pl.read import column, coordinates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["annotation_overview"]

_LABELLED, _COARSER = "labelled", "coarser"
_REASONS = {
    _LABELLED: "#A9CBE0",
    _COARSER: "#7FB59B",
    "low_confidence": "#E69F00",
    "out_of_distribution": "#9E1861",
    "few_genes": "#303030",
}
"""Colour of each reason, in the order of the legend; pale where nothing is the matter."""
_PANEL = 4.4
_LABELS_PER_COLUMN = 20


def annotation_overview(
    data: AnnData | MuData,
    *,
    key: str = keys.LABEL,
    basis: str = "X_umap",
    palette: Mapping[Any, str] | None = None,
    size: float | None = None,
    title: str | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure:
    """Draw predicted labels, their confidence, and why cells were refused, side by side.

    The scale of the confidence goes from 0 to 1 always, so that pictures of two models can be compared. In the right panel cells
    without a label are large and outlined, those with one small and pale.

    Parameters
    ----------
    data
        Object that ``model.annotate`` wrote into, with coordinates in ``obsm``.
    key
        Column of ``obs`` with the labels; the names of confidence and reason follow from it.
    basis
        Entry of ``obsm``, with or without ``X_``; the first two columns are drawn.
    palette
        Colour of each label, for example from :func:`label_colors`. Default: the ``uns`` colours of the column if they fit its
        categories, else colours of our own.
    size
        Area of a point; smaller for more cells by default.
    title
        Above everything.
    show, save, return_fig
        Open a window; file to write; return the Figure.

    Returns
    -------
    numpy.ndarray
        The three Axes, or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If coordinates or columns are missing.
    """
    coordinates(data, basis)  # before a figure is made of which nothing comes
    labels, confidence, reasons = (_read(data, name) for name in (key, keys.confidence_key(key), keys.reason_key(key)))
    counts = reasons.value_counts()
    found = label_colors(reasons, palette=_REASONS)
    reason_colors = {name: found[name] for name in (*_REASONS, *found) if name in found}
    n_columns = 1 + (labels.nunique() - 1) // _LABELS_PER_COLUMN
    longest = max((len(str(x)) for x in labels.dropna().unique()), default=0)
    width = 3 * _PANEL + (0.4 + 0.085 * longest) * n_columns + 3.0
    figure = new_figure(figsize=(width, _PANEL + (0.7 if title else 0.3)), show=show, save=save, return_fig=return_fig)
    axes = figure.subplots(1, 3)
    drawn = {"basis": basis, "size": size}
    embedding(data, key, ax=axes[0], palette=palette, title="label", **drawn)
    embedding(data, confidence, ax=axes[1], title="confidence", **drawn)
    for points in axes[1].collections:
        points.set_clim(0, 1)
    refused = reasons.notna() & ~reasons.isin([_LABELLED, _COARSER])
    emphasis = refused if refused.any() else None
    embedding(
        data, reasons, ax=axes[2], palette=reason_colors, emphasis=emphasis, legend=False, title="reason", **drawn
    )
    named = {f"{str(x).replace('_', ' ')} ({counts[x]:,})": c for x, c in reason_colors.items()}
    where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes[2].legend(handles=legend_handles(named), frameon=False, fontsize=9, **where)
    if title:
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    return finish(axes, figure=figure, show=show, save=save, return_fig=return_fig)


def _read(data: Any, name: str) -> pd.Series:
    if not hasattr(data, "obsm"):
        raise PlotError("pl.annotation_overview", found=type(data).__name__, fix="give an AnnData or a MuData")
    try:
        return column(data, name)
    except PlotError as error:
        raise PlotError(error.where, found=error.found, fix="model.annotate(data)") from error
