"""Effects of a perturbation gene by gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert.errors import PlotError
from cellxpert.pl.figure import begin, finish
from cellxpert.pl.labels import write_labels
from cellxpert.pl.perturbation import (
    HIGHER,
    LOWER,
    NEUTRAL,
    Condition,
    check_count,
    check_names,
    choose,
    head,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["top_genes", "volcano"]

_EFFECT = "effect: perturbed minus null, log1p of counts per 10,000"
_NO_CHANGE = "no_change"
_MARKERS = (("s", "#009E73"), ("D", "#9E1861"), ("^", "#202020"), ("v", "#5549C2"), ("P", "#864900"), ("X", "#005549"))


def volcano(
    result: Any,
    perturbation: str | None = None,
    *,
    group: str | None = None,
    n_labels: int = 10,
    genes: Sequence[str] | None = None,
    alpha: float = 0.05,
    p_floor: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw every gene's effect against its adjusted p value.

    Perturbed genes are left out, and so are genes that could not move. Where the chains did not converge (R-hat above 1.01) no p
    value is drawn: the height is the effect in standard errors, and the title says so.

    Parameters
    ----------
    result
        What ``model.perturb`` returns.
    perturbation, group
        Which condition. Default: the only one.
    n_labels
        Number of genes to name: the highest, among equals those with the largest effect. A name that finds no free place is left
        out.
    genes
        Names to write instead.
    alpha
        Adjusted p value up to which a gene is coloured, a dashed line.
    p_floor
        Adjusted p values below it are drawn at it, as triangles above a dotted line. Default: the smallest that is above zero
        where others are zero, or where several genes share the smallest p value, as when a test can give no smaller one.
    title
        Above the plot. Default: the condition, and whether it converged.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If this is no result of a perturbation, a name is unknown or must be chosen, or no gene has a p value or a standard error.
    """
    where = "pl.volcano"
    n_labels = check_count(n_labels, "n_labels", where=where, low=0)
    _check_p(alpha, "alpha", where)
    condition = choose(result, perturbation, group, where=where, reads=["table"])
    rows = rows_of(result, "table", where=where, condition=condition, columns=("p_value", "adj_p_value", "is_movable"))
    shown = _heights(rows, condition, p_floor)
    names = [str(x) for x in shown.rows["variable"]]
    wanted = None if genes is None else check_names(genes, names, what="gene", where=f"{where}(genes=)")
    ax = begin(ax, figsize=(7.0, 4.8), show=show, save=save, return_fig=return_fig)
    effect = shown.rows["effect"].to_numpy(dtype=float)
    _draw_volcano(ax, effect, shown, alpha)
    lines = [_left_out(rows, len(rows) - int(rows["is_target"].sum()) - len(shown.rows))]
    if not condition.converged:
        lines.insert(0, f"no p values: the chains disagree, and the heights of the {len(names):,} genes are no test")
    head(ax, condition, title, lines=lines)
    order = np.lexsort((-np.abs(effect), -shown.height))
    chosen = order[:n_labels] if wanted is None else np.array([names.index(x) for x in wanted], dtype=int)
    points = np.stack([effect, shown.height], axis=1)
    write_labels(ax, points[chosen], [names[i] for i in chosen], clear_of=np.concatenate([points, *_along_lines(ax)]))
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def top_genes(
    result: Any,
    perturbation: str | None = None,
    *,
    group: str | None = None,
    n: int = 20,
    baselines: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw the genes with the largest effects as bars, with one standard error, and what the baselines say beside them.

    Perturbed genes are left out.

    Parameters
    ----------
    result
        What ``model.perturb`` returns.
    perturbation, group
        Which condition. Default: the only one.
    n
        Number of genes: those with the largest absolute effects, the most positive on top.
    baselines
        Names of baselines to mark. Default: all that the result has for the condition; "no_change" is the line at zero.
    title
        Above the plot. Default: the condition, and whether it converged.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If this is no result of a perturbation, a name is unknown or must be chosen, or no gene has an effect.
    """
    where = "pl.top_genes"
    n = check_count(n, "n", where=where, low=1)
    condition = choose(result, perturbation, group, where=where, reads=["table", "baselines"])
    rows = rows_of(result, "table", where=where, condition=condition)
    others = rows_of(result, "baselines", where=where, condition=condition)
    drawn = rows[~rows["is_target"].astype(bool) & np.isfinite(rows["effect"].astype(float))]
    if not len(drawn):
        raise PlotError(where, found=f"no gene with an effect in {condition.name!r}", fix="perturb with other genes")
    largest = drawn["effect"].abs().sort_values(ascending=False, kind="stable").index[:n]
    drawn = drawn.loc[largest].sort_values("effect", ascending=False, kind="stable")
    known = [str(x) for x in dict.fromkeys(others["baseline"])]
    wanted = known if baselines is None else check_names(baselines, known, what="baseline", where=where)
    ax = begin(ax, figsize=(6.8, 1.9 + 0.24 * len(drawn)), show=show, save=save, return_fig=return_fig)
    effect = drawn["effect"].to_numpy(dtype=float)
    place = np.arange(len(drawn))
    ax.barh(place, effect, height=0.76, color=np.where(effect > 0, HIGHER, LOWER), alpha=0.4, zorder=1)
    whiskers = {"fmt": "none", "ecolor": "#202020", "elinewidth": 1, "capsize": 2, "zorder": 5}
    ax.errorbar(effect, place, xerr=drawn["se"].to_numpy(dtype=float), label="standard error", **whiskers)
    zero = "no change" if _NO_CHANGE in wanted else None
    ax.axvline(0, color="#404040", linewidth=1, label=zero, zorder=2)
    _draw_baselines(ax, others, list(drawn["variable"]), [x for x in wanted if x != _NO_CHANGE])
    ax.set_yticks(place, [str(x) for x in drawn["variable"]])
    ax.set(ylim=(len(drawn) - 0.4, -0.6), xlabel=_EFFECT)
    ax.tick_params(axis="y", length=0, labelsize=9 if len(drawn) <= 40 else 6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    head(ax, condition, title, lines=[_left_out(rows, 0)])
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


@dataclass(frozen=True)
class _Heights:
    """Genes of a volcano, their heights, whether each lies at the floor, and what the heights are."""

    rows: pd.DataFrame
    height: np.ndarray
    at_floor: np.ndarray
    floor: float | None
    p_value: np.ndarray | None


def _heights(rows: pd.DataFrame, condition: Condition, p_floor: float | None) -> _Heights:
    """Negative logarithm of the adjusted p value, or the effect in standard errors where p values may not be shown."""
    where = condition.where
    needed = ["effect", "adj_p_value"] if condition.converged else ["effect", "se"]
    finite = np.isfinite(rows[needed].to_numpy(dtype=float)).all(axis=1)
    kept = rows[finite & rows["is_movable"].to_numpy(dtype=bool) & ~rows["is_target"].to_numpy(dtype=bool)]
    if not len(kept):
        what = "p value" if condition.converged else "standard error"
        raise PlotError(where, found=f"no gene with a {what} in {condition.name!r}", fix="perturb with more chains")
    if condition.converged:
        p = kept["adj_p_value"].to_numpy(dtype=float)
        floor = _floor(p, kept["p_value"].to_numpy(dtype=float), p_floor, where)
        at_floor = np.zeros(len(p), dtype=bool) if floor is None else p <= floor
        return _Heights(kept, -np.log10(np.where(at_floor, floor or 1.0, p)), at_floor, floor, p)
    size, se = kept["effect"].abs().to_numpy(dtype=float), kept["se"].to_numpy(dtype=float)
    height = np.divide(size, se, out=np.where(size > 0, np.inf, 0.0), where=se > 0)
    # Chains that agree exactly have no standard error: as high as the highest.
    ceiling = height[np.isfinite(height)].max(initial=0.0) or 1.0
    return _Heights(kept, np.minimum(height, ceiling), np.isinf(height), None, None)


def _floor(adjusted: np.ndarray, p: np.ndarray, given: float | None, where: str) -> float | None:
    """Adjusted p value below which none is drawn; None if all can be."""
    if given is not None:
        _check_p(given, "p_floor", where)
        return given
    positive = adjusted[adjusted > 0]
    if len(positive) < len(adjusted):
        return float(positive.min(initial=1.0)) if len(positive) else float(np.finfo(float).tiny)
    # Adjusted values are often equal; p values themselves are only where the test has a smallest one.
    smallest = p == p.min()
    return float(adjusted[smallest].max()) if smallest.sum() > 1 and adjusted.min() < 1 else None


def _check_p(value: float, name: str, where: str) -> None:
    if not 0 < value < 1:
        raise PlotError(f"{where}({name}=)", found=repr(value), fix="give a p value above 0 and below 1")


def _draw_volcano(ax: Axes, effect: np.ndarray, shown: _Heights, alpha: float) -> None:
    significant = np.zeros(len(effect), dtype=bool) if shown.p_value is None else shown.p_value <= alpha
    up, down = significant & (effect > 0), significant & (effect < 0)
    rest = "not significant" if shown.p_value is not None else ""
    edge = {"linewidths": 0.4, "edgecolors": "white", "rasterized": len(effect) > 5000}
    for members, color, label in (
        (~(up | down), NEUTRAL, rest),
        (up, HIGHER, "higher"),
        (down, LOWER, "lower"),
    ):
        label = f"{label} ({members.sum():,})" if label and members.any() else None
        for part, marker, size in ((members & ~shown.at_floor, "o", 20), (members & shown.at_floor, "^", 30)):
            if part.any():
                ax.scatter(
                    effect[part], shown.height[part], s=size, marker=marker, color=color, label=label, zorder=2, **edge
                )
                label = None
    if shown.p_value is not None:
        line = {"color": "#606060", "linewidth": 1, "zorder": 1}
        ax.axhline(-np.log10(alpha), linestyle="--", label=f"adjusted p = {alpha:g}", **line)
        if shown.floor is not None:
            ax.axhline(-np.log10(shown.floor), linestyle=":", label=f"floor: adjusted p ≤ {shown.floor:.2g}", **line)
    ax.axvline(0, color="#D8D8D8", linewidth=1, zorder=0)
    reach = 1.12 * (np.abs(effect).max() or 1.0)
    top = max(shown.height.max(), -np.log10(alpha) if shown.p_value is not None else 0.0)
    ax.set(xlim=(-reach, reach), ylim=(-0.03 * top, 1.18 * top), xlabel=_EFFECT)
    ax.set_ylabel("−log10 adjusted p" if shown.p_value is not None else "|effect| / standard error")
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _along_lines(ax: Axes) -> list[np.ndarray]:
    """Points along the lines of a volcano, which labels should not cover either."""
    heights = [line.get_ydata()[0] for line in ax.lines if line.get_ydata()[0] == line.get_ydata()[1]]
    along = np.linspace(*ax.get_xlim(), 100)
    return [np.stack([along, np.full(100, height)], axis=1) for height in heights]


def _draw_baselines(ax: Axes, others: pd.DataFrame, variables: list[Any], wanted: list[str]) -> None:
    """Small markers, one row of them per gene: each baseline at its own height within the bar."""
    offsets = np.linspace(-0.24, 0.24, len(wanted)) if len(wanted) > 1 else np.zeros(len(wanted))
    for i, (name, offset) in enumerate(zip(wanted, offsets, strict=True)):
        effect = others[others["baseline"] == name].set_index("variable")["effect"].reindex(variables)
        marker, color = _MARKERS[i % len(_MARKERS)]
        style = {"s": 20, "linewidths": 0.5, "edgecolors": "white", "zorder": 4}
        place = np.arange(len(variables)) + offset
        ax.scatter(
            effect.to_numpy(dtype=float), place, marker=marker, color=color, label=name.replace("_", " "), **style
        )


def _left_out(rows: pd.DataFrame, n_others: int) -> str:
    """Names of the perturbed genes, which are not drawn, and how many others are not."""
    targets = [str(x) for x in rows["variable"][rows["is_target"].astype(bool)]]
    named = ", ".join(targets[:3]) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
    parts = [f"{named} (perturbed)"] if targets else []
    parts += [f"{n_others:,} that cannot move or have no value"] if n_others else []
    return "left out: " + ", ".join(parts) if parts else ""
