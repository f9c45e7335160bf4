"""Which perturbations do alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert.errors import PlotError
from cellxpert.pl.figure import begin, finish
from cellxpert.pl.perturbation import MAX_R_HAT, heading, name_of, rows_of

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["similarity"]

_MOST_WITH_NUMBERS = 12
_MOST_WITH_NAMES = 80
_ZERO = 1e-12


def similarity(
    result: Any,
    *,
    group: str | None = None,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw the cosine similarity of the effects of every pair of perturbations.

    Genes that any of the perturbations targets are left out for all, and so are genes without an effect in one of them.
    Perturbations of one call share their null chains, whose noise pulls all similarities up a little.

    Parameters
    ----------
    result
        What ``model.perturb`` returns for several perturbations.
    group
        Which group of cells. Default: the only one.
    title
        Above the matrix.
    colorbar
        Draw the scale.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``. Rows are ordered by average-linkage clustering; perturbations without any effect
        are grey, at the end; a star marks those whose chains did not converge.

    Raises
    ------
    PlotError
        If this is no result of a perturbation, the group is unknown or must be chosen, fewer than two perturbations are there,
        or no gene is left.
    """
    where = "pl.similarity"
    conditions = rows_of(result, "conditions", where=where)
    table = rows_of(result, "table", where=where)
    group = name_of(conditions["group"], group, what="group", where=where)
    conditions, table = (x[x["group"].astype(str) == group] for x in (conditions, table))
    names, effects, n_targets = _effects(table, where)
    matrix = _cosines(effects)
    order = _order(matrix)
    names, matrix = [names[i] for i in order], matrix[np.ix_(order, order)]
    bad = {str(r.perturbation) for r in conditions.itertuples() if not (r.converged and r.r_hat <= MAX_R_HAT)}
    side = 1.8 + (0.36 if len(names) <= 30 else 0.17) * min(len(names), _MOST_WITH_NAMES)
    beside = 0.085 * max(map(len, names)) if len(names) <= _MOST_WITH_NAMES else 0.0
    figsize = (side + 0.6 + beside + 0.9 * colorbar, side + 0.9 + 0.75 * beside)
    ax = begin(ax, figsize=figsize, show=show, save=save, return_fig=return_fig)
    from matplotlib import colormaps

    image = ax.imshow(matrix, cmap=colormaps["RdBu_r"].with_extremes(bad="#B8B8B8"), vmin=-1, vmax=1, aspect="equal")
    _write(ax, matrix, [f"{name}*" if name in bad else name for name in names])
    lines = [f"{effects.shape[1]:,} genes; {n_targets:,} perturbed left out"]
    lines += ["* chains did not converge"] if bad & set(names) else []
    lines += ["grey: no effect at all"] if np.isnan(np.diag(matrix)).any() else []
    heading(ax, title or ("Similarity of effects" if group == "all" else f"Similarity of effects, {group}"), lines)
    if colorbar:
        # Inside the axes' own box: one beside them would be as high as the figure, not as the matrix.
        bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0, 0.03, 1)), label="cosine similarity")
        bar.outline.set_visible(False)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _effects(table: pd.DataFrame, where: str) -> tuple[list[str], np.ndarray, int]:
    """Perturbations, their effects (n_perturbations, n_genes), and how many perturbed genes were left out."""
    targets = set(table["variable"][table["is_target"].astype(bool)])
    wide = table.pivot(index="perturbation", columns="variable", values="effect")
    wide = wide.reindex(list(dict.fromkeys(table["perturbation"])))
    if len(wide) < 2:
        fix = "model.perturb([...]) with several perturbations"
        raise PlotError(where, found=f"{len(wide)} perturbation", fix=fix)
    wide = wide.loc[:, ~wide.columns.isin(targets)].dropna(axis=1)
    if not wide.shape[1]:
        raise PlotError(where, found="no gene with an effect in every perturbation", fix="compare fewer perturbations")
    return [str(x) for x in wide.index], wide.to_numpy(dtype=float), len(targets)


def _cosines(effects: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows; NaN with a row of zeros."""
    length = np.linalg.norm(effects, axis=1, keepdims=True)
    unit = np.divide(effects, length, out=np.full_like(effects, np.nan), where=length > _ZERO)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def _order(matrix: np.ndarray) -> np.ndarray:
    """Similar rows beside each other, rows without a similarity last."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    known = np.flatnonzero(~np.isnan(np.diag(matrix)))
    if len(known) > 2:
        distance = 1.0 - matrix[np.ix_(known, known)]
        np.fill_diagonal(distance, 0.0)
        tree = linkage(squareform((distance + distance.T) / 2), method="average", optimal_ordering=True)
        known = known[leaves_list(tree)]
    return np.concatenate([known, np.flatnonzero(np.isnan(np.diag(matrix)))])


def _write(ax: Axes, matrix: np.ndarray, names: list[str]) -> None:
    places = range(len(names) if len(names) <= _MOST_WITH_NAMES else 0)
    ax.set_xticks(places, [names[i] for i in places], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, [names[i] for i in places])
    ax.tick_params(length=0, labelsize=9 if len(names) <= 30 else 6)
    ax.spines[:].set_visible(False)
    if len(names) > _MOST_WITH_NUMBERS:
        return
    for i, j in zip(*np.nonzero(~np.isnan(matrix)), strict=True):
        color = "white" if abs(matrix[i, j]) > 0.6 else "#202020"
        # Adding zero turns -0.00 into 0.00.
        text = f"{round(float(matrix[i, j]), 2) + 0.0:.2f}".replace("-", "−")
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=7)
