"""Which experts compute which cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert import keys
from cellxpert.errors import PlotError
from cellxpert.pl.colors import labels_in_order
from cellxpert.pl.figure import begin, finish
from cellxpert.pl.read import column, matrix

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData
    from numpy.typing import ArrayLike

__all__ = ["expert_routing"]

_MAP = 0.74
"""Share of the axes that the map takes; bars and scale have the rest."""


def expert_routing(
    data: AnnData | MuData,
    groupby: str | ArrayLike,
    *,
    key: str = keys.EXPERTS,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw how much of each group of cells each expert computes, and how evenly.

    The bars at the right are the effective number of experts: the exponential of the entropy of a row, from 1 (one expert does
    it all) to the number of experts (all do the same share). The last row has all cells: where its bar is short, experts idle.

    Parameters
    ----------
    data
        Object with the usage of the experts in ``obsm[key]``.
    groupby
        Column of ``obs``, or one label per cell. Cells without a label, or without usage, are left out.
    key
        Entry of ``obsm``, (n_cells, n_experts); rows sum to 1.
    title
        Above the map.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If the usage or the labels are missing, or rows of the usage are no shares.
    """
    rows, counts, usage = _mean_usage(data, groupby, key)
    n_rows, n_experts = usage.shape
    names = [f"{label} ({n:,})" for label, n in zip(rows, counts, strict=True)]
    field = 0.3 if n_rows <= 20 else 0.22
    width = 0.3 * max(8, min(n_experts, 40)) / _MAP + 0.08 * max(map(len, names)) + 1.6
    ax = begin(ax, figsize=(width, field * n_rows + 1.3), show=show, save=save, return_fig=return_fig)
    image = ax.imshow(usage, cmap="Blues", vmin=0, vmax=usage.max(), aspect="auto")
    step = -(-n_experts // 24)
    ax.set_xticks(range(0, n_experts, step), [str(i) for i in range(0, n_experts, step)])
    ax.set_yticks(range(n_rows), names)
    ax.set_xlabel("expert", x=_MAP / 2)
    ax.tick_params(length=0, labelsize=9 if n_rows <= 20 else 7)
    ax.axhline(n_rows - 1.5, color="white", linewidth=4)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, loc="left", fontsize=12)
    _draw_bars(ax, usage)
    scale = ax.inset_axes((0.97, 0, 0.03, 1))
    bar = ax.figure.colorbar(image, cax=scale, label="mean share of an expert")
    bar.outline.set_visible(False)
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _mean_usage(data: Any, groupby: Any, key: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Groups, their cells, and their mean usage; all cells come last."""
    if not hasattr(data, "obsm"):
        raise PlotError("pl.expert_routing", found=type(data).__name__, fix="give an AnnData or a MuData")
    usage = matrix(data, key, fix="annotate with a model that has experts")
    labels = column(data, groupby, "groupby")
    kept = labels.notna().to_numpy() & ~np.isnan(usage).any(axis=1)
    if not kept.any():
        found = "no cell with a label and usage of experts"
        raise PlotError("pl.expert_routing(groupby=)", found=found, fix="name a column with labels")
    usage, labels = usage[kept], labels[kept]
    if not ((usage >= 0).all() and np.allclose(usage.sum(axis=1), 1, atol=1e-3)):
        raise PlotError(f"obsm[{key!r}]", found="rows that are no shares", fix="give rows that sum to 1")
    groups = labels_in_order(labels)
    cells = [(labels == label).to_numpy() for label in groups]
    means = np.stack([*(usage[c].mean(axis=0) for c in cells), usage.mean(axis=0)])
    return [*groups, "all cells"], np.array([*(c.sum() for c in cells), len(usage)]), means


def _draw_bars(ax: Axes, usage: np.ndarray) -> None:
    from scipy.stats import entropy

    n_rows, n_experts = usage.shape
    effective = np.exp(entropy(usage, axis=1))
    # Within the axes: how much room they need is then known before they are laid out.
    ax.set(xlim=(-0.5, n_experts / _MAP - 0.5), ylim=(n_rows - 0.5, -0.5))
    beside = ax.inset_axes((_MAP + 0.02, 0, 0.18, 1), sharey=ax)
    beside.barh(range(n_rows), effective, height=0.7, color=["#7A9CB8"] * (n_rows - 1) + ["#404040"])
    beside.set_xlim(0, n_experts)
    beside.set_xticks([1, n_experts] if n_experts > 1 else [1])
    beside.set_xlabel("effective\nexperts")
    beside.tick_params(axis="y", length=0, labelleft=False)
    beside.tick_params(axis="x", labelsize=8)
    beside.spines[["top", "right", "left"]].set_visible(False)
    ax.set_ylim(n_rows - 0.5, -0.5)  # bars move it
