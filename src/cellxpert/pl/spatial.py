"""Labels in the embedding and in the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.errors import PlotError
from cellxpert.pl.colors import MISSING_COLOR, label_colors
from cellxpert.pl.embedding import draw_points, legend_handles, style_axes
from cellxpert.pl.figure import finish, new_figure
from cellxpert.pl.read import column, coordinates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["tissue"]

_MOST_SECTIONS = 6
_ROW_HEIGHT = 4.6


def tissue(
    data: AnnData | MuData,
    color: str | Sequence[str],
    *,
    basis: str = "X_umap",
    spatial_key: str = "spatial",
    library_key: str | None = None,
    palette: Mapping[Any, str] | None = None,
    size: float | None = None,
    title: str | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure:
    """Draw labels in the embedding and in the tissue, side by side; a label has one colour in all panels, and one legend.

    Sections have the same scale and equal axes; positions are drawn as they are, y upwards.

    Parameters
    ----------
    data
        Object with ``obsm[basis]`` and ``obsm[spatial_key]``.
    color
        Column of ``obs`` with labels; several columns, such as truth and prediction, give one row of panels each. Missing
        labels are grey.
    basis
        Entry of ``obsm`` for the left panel, with or without ``X_``; the first two columns are drawn.
    spatial_key
        Entry of ``obsm`` with the positions, (n, 2) or (n, 3); of three axes the first two are drawn.
    library_key
        Column of ``obs`` with the section of each cell: one panel each, at most 6, and the embedding then has the cells of all
        sections. Default: one section.
    palette
        Colour of each label, for example from :func:`label_colors`. Default: colours of our own.
    size
        Area of a point; smaller for more cells by default.
    title
        Above everything.
    show, save, return_fig
        Open a window; file to write; return the Figure.

    Returns
    -------
    numpy.ndarray
        The Axes, (columns, 1 + sections), or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If coordinates or columns are missing, a column has numbers in place of labels, or no cell has a section and a position.
    """
    names = [color] if isinstance(color, str) or not hasattr(color, "__iter__") else list(color)
    if not hasattr(data, "obsm") or not names or not all(isinstance(name, str) for name in names):
        fix = "pl.tissue(adata, 'cell_type') or pl.tissue(adata, ['cell_type', 'cellxpert_label'])"
        raise PlotError("pl.tissue", found="no object with names of columns", fix=fix)
    labels = [_labels(data, name) for name in names]
    points, places = _finite(coordinates(data, basis), basis), _places(data, spatial_key)
    sections, n_sections = _sections(data, places, library_key)
    colors = label_colors(*labels, palette=palette)
    n_rows, n_columns = _grid(len(sections))
    panel = _ROW_HEIGHT / n_rows
    legend_width = (0.55 + 0.085 * max((len(str(x)) for x in colors), default=0)) * _legend_columns(colors, len(names))
    width = _ROW_HEIGHT + max(_ROW_HEIGHT, panel * n_columns) + legend_width
    figure = new_figure(figsize=(width, _ROW_HEIGHT * len(names)), show=show, save=save, return_fig=return_fig)
    grid = figure.add_gridspec(len(names), 2, width_ratios=[_ROW_HEIGHT, max(_ROW_HEIGHT, panel * n_columns)])
    drawn = np.empty((len(names), 1 + len(sections)), dtype=object)
    for row, (name, values) in enumerate(zip(names, labels, strict=True)):
        shades = np.array([colors.get(x, MISSING_COLOR) for x in values], dtype=object)
        drawn[row, 0] = figure.add_subplot(grid[row, 0])
        draw_points(drawn[row, 0], points, shades, size=size)
        style_axes(drawn[row, 0], basis, name)
        cells_of_row = grid[row, 1].subgridspec(n_rows, n_columns)
        for i, (heading, cells) in enumerate(sections.items()):
            ax = drawn[row, 1 + i] = figure.add_subplot(cells_of_row[divmod(i, n_columns)])
            area = _area(places[cells], panel) if size is None else size
            draw_points(ax, places[cells], shades[cells], size=area)
            style_axes(ax, spatial_key, heading)
            _same_scale(ax, places, list(sections.values()), cells)
    if colors:
        figure.legend(
            handles=legend_handles(colors),
            loc="outside right center",
            ncols=_legend_columns(colors, len(names)),
            frameon=False,
            fontsize=9,
        )
    if n_sections > len(sections):
        figure.supxlabel(f"{len(sections)} of {n_sections} sections of {library_key} are drawn", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    return finish(drawn, figure=figure, show=show, save=save, return_fig=return_fig)


def _labels(data: Any, name: str) -> pd.Series:
    values = column(data, name)
    if pd.api.types.is_float_dtype(values) and values.notna().any():
        fix = f"pl.embedding(adata, {name!r}, basis='spatial')"
        raise PlotError(f"obs[{name!r}]", found="numbers, not labels", fix=fix)
    return values


def _places(data: Any, spatial_key: str) -> np.ndarray:
    try:
        places = coordinates(data, spatial_key)
    except PlotError as error:
        fix = "pl.tissue(adata, color, spatial_key=...), the entry of obsm with the positions"
        raise PlotError(error.where, found=error.found, fix=fix) from error
    return _finite(places, spatial_key)


def _finite(points: np.ndarray, basis: str) -> np.ndarray:
    if not np.isfinite(points).all(axis=1).any():
        raise PlotError(f"obsm[{basis!r}]", found="no finite coordinates", fix="compute or read them again")
    return points


def _sections(data: Any, places: np.ndarray, library_key: str | None) -> tuple[dict[str, np.ndarray], int]:
    """Heading and cells of each section that is drawn, and how many sections there are."""
    placed = np.isfinite(places).all(axis=1)
    if library_key is None:
        return {"tissue": np.flatnonzero(placed)}, 1
    library = column(data, library_key, "library_key")
    known = pd.Categorical(library.where(placed))
    names = [name for name in known.categories if (known == name).any()]
    if not names:
        raise PlotError(f"obs[{library_key!r}]", found="no cell with a section and a position", fix="name the sections")
    shown = names[:_MOST_SECTIONS]
    return {f"{library_key} {name}": np.flatnonzero(known == name) for name in shown}, len(names)


def _grid(n: int) -> tuple[int, int]:
    """Rows and columns of the panels of ``n`` sections."""
    n_rows = 1 if n <= 2 else 2
    return n_rows, -(-n // n_rows)


def _legend_columns(colors: Mapping[Any, str], n_rows: int) -> int:
    return 1 + (len(colors) - 1) // (20 * n_rows) if colors else 1


def _area(places: np.ndarray, panel: float) -> float:
    """Area of a point, in square points, that covers half the tissue of a cell in a panel of so many inches."""
    spans = np.ptp(places, axis=0)
    share = np.prod(spans) / spans.max() ** 2 if spans.max() > 0 else 1.0
    return float(np.clip(0.5 * share * (0.85 * 72 * panel) ** 2 / len(places), 0.5, 20))


def _same_scale(ax: Axes, places: np.ndarray, sections: list[np.ndarray], cells: np.ndarray) -> None:
    """As much tissue in every panel as the largest section needs, this section in the middle."""
    spans = np.max([np.ptp(places[c], axis=0) for c in sections], axis=0)
    half = spans / 2 + 0.03 * (spans.max() or 1.0)
    middle = (places[cells].min(axis=0) + places[cells].max(axis=0)) / 2
    ax.set(xlim=(middle[0] - half[0], middle[0] + half[0]), ylim=(middle[1] - half[1], middle[1] + half[1]))
    ax.set_aspect("equal", adjustable="box")
