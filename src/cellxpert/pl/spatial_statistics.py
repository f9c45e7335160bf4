"""What lies beside what, and over which distance cells are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.errors import MetricError, PlotError
from cellxpert.pl.colors import PALETTE
from cellxpert.pl.figure import begin, finish, new_figure
from cellxpert.pl.read import column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["neighborhood_enrichment", "variogram"]

_EMPTY_COLOR = "#D8D8D8"


def neighborhood_enrichment(
    data: AnnData | MuData,
    keys: str | Sequence[str],
    *,
    vmax: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | np.ndarray | Figure:
    """Draw the z-scores of neighbourhood enrichment: which labels lie beside each other more (red) or less (blue) than by chance.

    Parameters
    ----------
    data
        Object in which :func:`squidpy.gr.nhood_enrichment` left ``uns[f"{key}_nhood_enrichment"]["zscore"]``.
    keys
        Column of ``obs``, or two: truth and prediction. Two maps have the same labels, order and colours; the title of the
        second has the Pearson correlation of the z-scores that both have, each pair of labels once.
    vmax
        The z-score, above 0, of the strongest colour; larger ones look the same. Default: the 95th percentile of the absolute
        z-scores.
    title
        Above everything. Default: nothing for two maps, the name of the column for one.
    ax
        Axes to draw on; only for one column.
    show, save, return_fig
        Open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of two for two columns, or the Figure with ``return_fig=True``. Labels are in the order of the categories of
        the first column, then those that only the second has; what has no z-score is grey.

    Raises
    ------
    PlotError
        If z-scores are missing, do not fit the categories or are none of them finite, or ``keys`` are not one or two columns.
    """
    names = [keys] if isinstance(keys, str) else list(keys)
    if len(names) not in {1, 2} or (ax is not None and len(names) == 2):
        found = f"{len(names)} columns" + (" and one Axes" if ax is not None else "")
        fix = "pl.neighborhood_enrichment(adata, 'cell_type') or (adata, ['cell_type', 'cellxpert_label']), without ax"
        raise PlotError("pl.neighborhood_enrichment", found=found, fix=fix)
    tables = [_z_scores(data, name) for name in names]
    order = list(dict.fromkeys(label for table in tables for label in table.index))
    tables = [table.reindex(index=order, columns=order) for table in tables]
    sizes = np.abs(np.concatenate([table.to_numpy().ravel() for table in tables]))
    # Of the largest z-score all others would be pale: some labels lie among themselves only.
    limit = (np.nanquantile(sizes, 0.95) or np.nanmax(sizes) or 1.0) if vmax is None else vmax
    if vmax is not None and not vmax > 0:
        raise PlotError("pl.neighborhood_enrichment(vmax=)", found=repr(vmax), fix="give a number above 0")
    headings = list(names)
    if len(tables) == 2:
        headings[1] += f" (correlation {_correlation(*tables)})"
    side, room = 1.2 + 0.3 * len(order), 0.9 + 0.075 * max(len(str(label)) for label in order)
    if len(tables) == 2:
        figsize = (2 * side + room + 1.4, side + room)
        figure = new_figure(figsize=figsize, show=show, save=save, return_fig=return_fig)
        axes = figure.subplots(1, 2)
    else:
        figsize = (side + room + 0.8, side + room)
        axes = np.array([begin(ax, figsize=figsize, show=show, save=save, return_fig=return_fig)], dtype=object)
        figure = axes[0].figure
        headings = [headings[0] if title is None else title]
    for i, (panel, table, heading) in enumerate(zip(axes, tables, headings, strict=True)):
        image = _heat_map(panel, table, limit)
        panel.set_title(heading, loc="left", fontsize=12)
        panel.set_yticks(range(len(order)), [str(label) for label in order] if i == 0 else [""] * len(order))
    extend = "both" if limit < np.nanmax(sizes) else "neither"
    bar = figure.colorbar(
        image, ax=list(axes), fraction=0.04, pad=0.02, aspect=30, extend=extend, label="enrichment (z-score)"
    )
    bar.outline.set_visible(False)
    if title and len(tables) == 2:
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    drawn = axes if len(tables) == 2 else axes[0]
    return finish(drawn, figure=figure.figure, show=show, save=save, return_fig=return_fig)


def variogram(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw variograms: below the dashed line at 1, cells at this distance are more alike than cells of a section at large.

    Parameters
    ----------
    tables
        What :func:`cellxpert.metrics.variogram` returns, or several by name. Bins without pairs are left out.
    title
        Above the plot.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If a table has other columns or no bin with pairs.
    """
    named = {"": tables} if isinstance(tables, pd.DataFrame) or not hasattr(tables, "items") else dict(tables.items())
    lines = [(name, *_line(table)) for name, table in named.items()]
    if not lines:
        _line(None)
    ax = begin(ax, figsize=(5.0, 3.8), show=show, save=save, return_fig=return_fig)
    ax.axhline(1, color="#A0A0A0", linestyle="--", linewidth=1, zorder=1)
    for i, (name, distance, ratio) in enumerate(lines):
        color = PALETTE[i % len(PALETTE)]
        ax.plot(distance, ratio, color=color, marker="o", markersize=4, linewidth=1.2, label=str(name), zorder=2)
    _log_axis(ax, np.concatenate([distance for _, distance, _ in lines]))
    ax.set_ylim(bottom=0, top=max(1.1, 1.08 * max(ratio.max() for _, _, ratio in lines)))
    ax.set(xlabel="distance", ylabel="semivariance / variance")
    ax.spines[["top", "right"]].set_visible(False)
    if any(named):
        ax.legend(frameon=False, fontsize=9, loc="lower right")
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _log_axis(ax: Axes, distance: np.ndarray) -> None:
    """Logarithmic, with plain numbers that do not run into each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    few_decades = distance.max() / distance.min() < 300
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _line(table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distance and ratio of the bins that have pairs."""
    fits = {"distance", "variance_ratio"} <= set(getattr(table, "columns", ()))
    found = table[["distance", "variance_ratio"]].to_numpy(dtype=float) if fits else np.empty((0, 2))
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        fix = "pl.variogram(cx.metrics.variogram(values, adata.obsm['spatial']))"
        raise PlotError("pl.variogram", found="no table of a variogram", fix=fix)
    return found[:, 0], found[:, 1]


def _z_scores(data: Any, key: str) -> pd.DataFrame:
    """z-scores with the categories of ``obs[key]`` as index and columns; labels without any are left out."""
    line = f"squidpy.gr.nhood_enrichment(adata, cluster_key={key!r})"
    labels, entry = column(data, key, "keys"), f"{key}_nhood_enrichment"
    parts = [data, *getattr(data, "mod", {}).values()]
    stored = next((part.uns[entry] for part in parts if entry in part.uns), None)
    if stored is None or "zscore" not in stored:
        raise PlotError(f"uns[{entry!r}]", found="no z-scores", fix=f"make the spatial graph, then {line}")
    if not isinstance(labels.dtype, pd.CategoricalDtype):
        raise PlotError(f"obs[{key!r}]", found="no categories, which name the z-scores", fix=f"make them, then {line}")
    scores, names = np.asarray(stored["zscore"], dtype=np.float64), labels.cat.categories
    if scores.shape != (len(names), len(names)):
        found = f"shape {scores.shape} for {len(names)} categories of obs[{key!r}]"
        raise PlotError(f"uns[{entry!r}]", found=found, fix=line)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    used = np.isfinite(scores).any(axis=1)
    if not used.any():
        raise PlotError(f"uns[{entry!r}]", found="no finite z-score", fix=line)
    return pd.DataFrame(scores, index=names, columns=names).loc[used, used]


def _correlation(truth: pd.DataFrame, predicted: pd.DataFrame) -> str:
    """Correlation of two tables of z-scores, or a word if it has none."""
    from cellxpert.metrics import neighborhood_correlation

    try:
        return f"{neighborhood_correlation(truth, predicted):.3f}"
    except MetricError:
        return "undefined"


def _heat_map(ax: Axes, table: pd.DataFrame, vmax: float) -> Any:
    from matplotlib import colormaps

    n = len(table)
    colors = colormaps["RdBu_r"].with_extremes(bad=_EMPTY_COLOR)
    image = ax.imshow(np.ma.masked_invalid(table.to_numpy()), cmap=colors, vmin=-vmax, vmax=vmax, aspect="equal")
    ax.set_xticks(range(n), [str(label) for label in table.columns], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="both", length=0)
    ax.tick_params(labelsize=9 if n <= 16 else 7 if n <= 30 else 6)
    ax.spines[:].set_visible(False)
    return image
