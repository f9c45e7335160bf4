"""The result of an annotation in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert import keys
from cellxpert.errors import PlotError
from cellxpert.pl.colors import MISSING_COLOR, label_colors
from cellxpert.pl.confusion import confusion_matrix
from cellxpert.pl.embedding import draw_points, legend_handles, style_axes
from cellxpert.pl.figure import finish, new_figure
from cellxpert.pl.read import column, coordinates, mask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure
    from mudata import MuData
    from numpy.typing import ArrayLike

__all__ = ["annotation_report"]


def annotation_report(
    data: AnnData | MuData | ArrayLike,
    truth: str | ArrayLike,
    predicted: str | ArrayLike = keys.LABEL,
    *,
    held_out: str | ArrayLike | None = None,
    basis: str = "X_umap",
    scores: Mapping[str, float] | None = None,
    palette: Mapping[Any, str] | None = None,
    title: str | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure:
    """Draw true labels, predicted labels of held-out cells, and which were taken for which, side by side.

    A label has the same colour in both panels. Held-out cells are outlined, the others pale; held-out cells with a wrong label
    carry a cross.

    Parameters
    ----------
    data
        Object with coordinates in ``obsm``, or an array of them (n, 2).
    truth, predicted
        Columns of ``obs``, or one label per cell.
    held_out
        Column of ``obs`` or truth values: cells whose label the model had not seen. Default: all cells.
    basis
        Entry of ``obsm`` with the coordinates.
    scores
        Numbers to print above the matrix, such as ``{"accuracy": 0.87}``. Default: the accuracy.
    palette
        Colour of each label. Default: colours of our own.
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
        If coordinates or columns are missing, or no held-out cell has a true label.
    """
    points = coordinates(data, basis)
    true, pred = column(data, truth, "truth"), column(data, predicted, "predicted")
    unseen = np.ones(len(points), dtype=bool) if held_out is None else mask(data, held_out, "held_out")
    judged = unseen & true.notna().to_numpy() & pred.notna().to_numpy()
    if not judged.any():
        raise PlotError(
            "pl.annotation_report(held_out=)", found="no held-out cell with both labels", fix="hold some out"
        )
    colors = label_colors(true, pred, palette=palette)
    # Compared as plain objects: categoricals with other categories refuse to be compared.
    wrong = judged & (true.to_numpy(dtype=object) != pred.to_numpy(dtype=object))

    figure = new_figure(figsize=(14.5, 6.2), show=show, save=save, return_fig=return_fig)
    left, right = figure.subfigures(1, 2, width_ratios=[1.6, 1.0], wspace=0.03)
    true_ax, pred_ax = left.subplots(1, 2)
    for ax, labels, strong in ((true_ax, true, None), (pred_ax, pred, unseen)):
        draw_points(ax, points, np.array([colors.get(x, MISSING_COLOR) for x in labels], dtype=object), strong=strong)
    style_axes(true_ax, basis, f"True labels ({len(points):,} cells)")
    style_axes(
        pred_ax,
        basis,
        "Predicted labels" + (f" ({unseen.sum():,} held-out cells outlined)" if held_out is not None else ""),
    )
    handles = legend_handles(colors)
    if wrong.any():
        # White beneath black, so that a cross can be told from its point whatever the colour.
        for width, shade in ((2.6, "white"), (1.2, "black")):
            pred_ax.scatter(*points[wrong].T, marker="x", s=20, linewidths=width, color=shade, zorder=3)
        handles += _cross()
    left.legend(handles=handles, loc="outside lower center", ncols=_n_columns(handles), frameon=False, fontsize=9.5)
    matrix_ax = right.subplots()
    shown = scores or {"accuracy": 1 - wrong.sum() / judged.sum()}
    line = ", ".join(f"{name.replace('_', ' ').replace(' f1', ' F1')} {value:.3f}" for name, value in shown.items())
    confusion_matrix(true[judged], pred[judged], labels=list(colors), ax=matrix_ax, colorbar=False)
    # The names of the rows are long: a heading that ends with the matrix has room, one that starts with it has not.
    matrix_ax.set_title(f"{'All' if held_out is None else 'Held-out'} cells: {line}", loc="right", fontsize=12)
    matrix_ax.set_anchor("N")
    if title:
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    return finish(
        np.array([true_ax, pred_ax, matrix_ax], dtype=object),
        figure=figure,
        show=show,
        save=save,
        return_fig=return_fig,
    )


def _cross() -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], linestyle="", marker="x", color="black", markersize=6, label="wrong label")]


def _n_columns(handles: list[Any]) -> int:
    """As many columns as fit below two panels, by the longest name."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return int(np.clip(110 // (longest + 6), 1, len(handles)))
