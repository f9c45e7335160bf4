"""Cells as points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.errors import PlotError
from cellxpert.pl.colors import MISSING_COLOR, label_colors
from cellxpert.pl.figure import begin, finish
from cellxpert.pl.read import column, coordinates, mask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from mudata import MuData
    from numpy.typing import ArrayLike

__all__ = ["draw_points", "embedding", "legend_handles", "style_axes"]


def embedding(
    data: AnnData | MuData | ArrayLike,
    color: str | ArrayLike | None = None,
    *,
    basis: str = "X_umap",
    palette: Mapping[Any, str] | None = None,
    emphasis: str | ArrayLike | None = None,
    size: float | None = None,
    legend: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw cells as points, coloured by label or number.

    Unlike :func:`scanpy.pl.embedding` it reads a MuData, writes no colours into the object, draws points in mixed order (no type
    covers another), and can fade all cells but some.

    Parameters
    ----------
    data
        Object with coordinates in ``obsm``, or an array of them (n, 2). Cells without coordinates are not drawn.
    color
        Column of ``obs``, or one label or number per cell. Missing labels are grey.
    basis
        Entry of ``obsm``, with or without ``X_``; the first two columns are drawn.
    palette
        Colour of each label, for example from :func:`label_colors`. Default: the ``uns`` colours of the column if they fit its
        categories, else colours of our own.
    emphasis
        Column of ``obs``, or truth values: these cells are drawn large, the others small and pale.
    size
        Area of a point; smaller for more cells by default.
    legend
        Name the labels beside the points, or draw the scale of the numbers.
    title
        Above the points. Default: the name of the column.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If coordinates or column are missing or do not fit the cells.
    """
    points = coordinates(data, basis)
    values = pd.Series("cells", index=range(len(points))) if color is None else column(data, color)
    strong = np.ones(len(points), dtype=bool) if emphasis is None else mask(data, emphasis, "emphasis")
    if not np.isfinite(points).all(axis=1).any():
        raise PlotError(f"obsm[{basis!r}]", found="no finite coordinates", fix="compute them again")
    ax = begin(ax, figsize=(6.4, 4.8), show=show, save=save, return_fig=return_fig)
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric:
        drawn = draw_points(ax, points, values.to_numpy(dtype=np.float64), strong=strong, size=size)
        if legend:
            bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.04, pad=0.02, aspect=30)
            bar.outline.set_visible(False)
    else:
        colors = label_colors(values, palette=palette or _stored_colors(data, color))
        points_colors = np.array([colors.get(x, MISSING_COLOR) for x in values], dtype=object)
        draw_points(ax, points, points_colors, strong=strong, size=size)
        if legend and color is not None:
            where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            ax.legend(handles=legend_handles(colors), frameon=False, fontsize=9, ncols=1 + len(colors) // 20, **where)
    style_axes(ax, basis, title if title is not None else (color if isinstance(color, str) else ""))
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def draw_points(
    ax: Axes, points: np.ndarray, colors: np.ndarray, *, strong: np.ndarray | None = None, size: float | None = None
) -> Any:
    """Scatter cells in mixed order, those that are not ``strong`` small and pale beneath the others.

    ``colors`` are colour names or numbers. Returns the collection of the strong cells.
    """
    placed = np.isfinite(points).all(axis=1)
    strong = placed if strong is None else placed & strong
    numbers = colors.dtype.kind == "f"
    area = float(np.clip(60_000 / max(1, placed.sum()), 2, 26)) if size is None else size
    # Mixed order, always the same: with cells in the order of the object the last type would cover the others.
    mixed = np.random.default_rng(0).permutation(len(points))
    weak_cells, strong_cells = mixed[(placed & ~strong)[mixed]], mixed[strong[mixed]]
    limits = (
        (np.nanmin(colors[placed]), np.nanmax(colors[placed])) if numbers and _any_number(colors, placed) else (0, 1)
    )
    scale = {"cmap": "viridis", "vmin": limits[0], "vmax": limits[1], "plotnonfinite": True} if numbers else {}
    edge = {"linewidths": 0.0, "rasterized": len(points) > 5000}
    if len(weak_cells):
        ax.scatter(
            *points[weak_cells].T, c=list(colors[weak_cells]), s=area * 0.6, alpha=0.3, zorder=1, **scale, **edge
        )
        edge |= {"linewidths": 0.5, "edgecolors": "#202020"}
        area *= 1.4
    return ax.scatter(*points[strong_cells].T, c=list(colors[strong_cells]), s=area, zorder=2, **scale, **edge)


def legend_handles(colors: Mapping[Any, str]) -> list[Line2D]:
    """One dot per label for a legend."""
    from matplotlib.lines import Line2D

    dot = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgewidth": 0}
    return [Line2D([], [], color=color, label=str(label), **dot) for label, color in colors.items()]


def style_axes(ax: Axes, basis: str, title: str) -> None:
    """Neither ticks nor frame: only neighbourhood means something in such a picture, and lengths in a tissue."""
    name = basis.removeprefix("X_")
    name = {"umap": "UMAP", "pca": "PC", "tsne": "t-SNE"}.get(name, name)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(f"{name} 1", loc="left", color="#606060", fontsize=9)
    ax.set_ylabel(f"{name} 2", loc="bottom", color="#606060", fontsize=9)
    ax.spines[:].set_visible(False)
    if name == "spatial":
        ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(title, loc="left", fontsize=12)


def _any_number(values: np.ndarray, placed: np.ndarray) -> bool:
    return bool(np.isfinite(values[placed]).any())


def _stored_colors(data: Any, color: Any) -> dict[Any, str] | None:
    """Colours that scanpy keeps for a column, if there is one per category."""
    if not isinstance(color, str) or not hasattr(data, "uns") or color not in data.obs:
        return None
    stored, values = data.uns.get(f"{color}_colors"), data.obs[color]
    if stored is None or not isinstance(values.dtype, pd.CategoricalDtype) or len(stored) != len(values.cat.categories):
        return None
    return dict(zip(values.cat.categories, map(str, stored), strict=True))
