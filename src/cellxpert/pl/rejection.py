"""What it costs, and what it brings, to leave cells without a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert.errors import PlotError
from cellxpert.pl.colors import PALETTE
from cellxpert.pl.figure import begin, finish

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["novelty_curve", "risk_coverage"]

_KNOWN_KEPT = 0.9
_FEW = 0.02
"""Below this share of cells kept the error rate is that of a handful of cells, and does not decide how high the plot is."""
_RANDOM = {"color": "#A0A0A0", "linestyle": "--", "linewidth": 1, "zorder": 1}
_POINT = {"s": 55, "edgecolors": "white", "linewidths": 1.2, "zorder": 4, "clip_on": False}


def risk_coverage(
    confidence: ArrayLike | Mapping[str, ArrayLike],
    correct: ArrayLike,
    *,
    threshold: float | Mapping[str, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw the error rate among the cells kept, the surest first; below the dashed line, confidence knows what is right.

    Parameters
    ----------
    confidence
        One number per cell, higher for cells to keep, such as the confidence of the label or the out-of-distribution score with
        a minus; or several by name. Any scale will do: only the order counts.
    correct
        Whether the label is right.
    threshold
        Cells with at least this confidence are kept: a point marks where that is. By name for several confidences.
    title
        Above the plot.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``. The legend has the area under each curve (AURC), which
        :func:`cellxpert.metrics.aurc` computes.

    Raises
    ------
    PlotError
        If a confidence is empty or not finite, or a threshold has a name that no confidence has.
    MetricError
        If ``correct`` does not fit the confidence.
    """
    from scipy.stats import rankdata

    from cellxpert.metrics import risk_coverage as curve_of

    where = "pl.risk_coverage"
    scores = _named(confidence, f"{where}(confidence=)")
    marks = _thresholds(threshold, scores, where)
    curves = {}
    for name, values in scores.items():
        # The metric asks for probabilities; the curve is that of any scores in the same order, ties included.
        rank = rankdata(values, method="dense")
        curves[name] = curve_of(rank / rank.max(), correct)
    right = np.asarray(correct, dtype=bool)
    ax = begin(ax, figsize=(7.2, 3.8), show=show, save=save, return_fig=return_fig)
    for i, (name, curve) in enumerate(curves.items()):
        color, prefix = PALETTE[i % len(PALETTE)], f"{name}, " if name else ""
        label = f"{prefix}AURC {curve['risk'].mean():.3f}"
        ax.plot(curve["coverage"], curve["risk"], color=color, linewidth=1.6, label=label, zorder=2)
        kept = scores[name] >= marks.get(name, np.inf)
        if kept.any():
            ax.scatter(kept.mean(), 1 - right[kept].mean(), color=color, **_POINT)
    ax.axhline(1 - right.mean(), label="at random", **_RANDOM)
    highest = max(curve["risk"][curve["coverage"] >= _FEW].max() for curve in curves.values())
    ax.set(xlim=(0, 1), ylim=(0, 1.1 * max(highest, 1 - right.mean()) or 0.01))
    ax.set(xlabel="cells kept", ylabel="wrong labels among them")
    _finish_axes(ax, title, marked=bool(marks))
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def novelty_curve(
    known: ArrayLike | Mapping[str, ArrayLike],
    novel: ArrayLike | Mapping[str, ArrayLike],
    *,
    threshold: float | Mapping[str, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw how many cells of novel types are refused, for every share of cells of known types that is kept.

    It is the ROC curve of telling novel cells by their score, in the terms of the task.

    Parameters
    ----------
    known, novel
        Scores of cells whose type was, and was not, trained on; higher is stranger, as the out-of-distribution score or 1 minus
        the confidence. Or several scores by name, the same names in both.
    threshold
        Cells with a score above it are refused: a point marks where that is. By name for several scores.
    title
        Above the plot.
    ax, show, save, return_fig
        Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    matplotlib.axes.Axes
        Or the Figure with ``return_fig=True``. The legend has the area under the curve (AUROC) and the share of novel cells
        refused at the dotted line, where 90 % of the known cells are kept.

    Raises
    ------
    PlotError
        If scores are empty or not finite, or names differ.
    """
    from sklearn.metrics import auc, roc_curve

    where = "pl.novelty_curve"
    of_known, of_novel = _named(known, f"{where}(known)"), _named(novel, f"{where}(novel)")
    if set(of_known) != set(of_novel):
        found = f"scores {list(of_known)} and {list(of_novel)}"
        raise PlotError(f"{where}(known, novel)", found=found, fix="give the same scores of both kinds of cells")
    marks = _thresholds(threshold, of_known, where)
    ax = begin(ax, figsize=(7.6, 4.4), show=show, save=save, return_fig=return_fig)
    for i, name in enumerate(of_known):
        here, there = of_known[name], of_novel[name]
        is_novel = np.repeat([False, True], [len(here), len(there)])
        lost, refused, _ = roc_curve(is_novel, np.concatenate([here, there]), drop_intermediate=False)
        at_line = np.interp(1 - _KNOWN_KEPT, lost, refused)
        color, prefix = PALETTE[i % len(PALETTE)], f"{name}: " if name else ""
        label = f"{prefix}AUROC {auc(lost, refused):.3f}, {100 * at_line:.0f} % at the line"
        ax.plot(1 - lost, refused, color=color, linewidth=1.6, label=label, zorder=2)
        if name in marks:
            ax.scatter((here <= marks[name]).mean(), (there > marks[name]).mean(), color=color, **_POINT)
    ax.plot([0, 1], [1, 0], label="at random", **_RANDOM)
    line = f"{100 * _KNOWN_KEPT:.0f} % of known cells kept"
    ax.axvline(_KNOWN_KEPT, color="#707070", linestyle=":", linewidth=1.2, zorder=1, label=line)
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="known cells kept", ylabel="novel cells refused")
    _finish_axes(ax, title, marked=bool(marks))
    return finish(ax, figure=ax.figure.figure, show=show, save=save, return_fig=return_fig)


def _named(given: Any, where: str) -> dict[str, np.ndarray]:
    """Scores by name; one without a name has the empty one."""
    named = {k: np.asarray(x) for k, x in (given if isinstance(given, Mapping) else {"": given}).items()}
    for name, values in named.items():
        numbers = values.ndim == 1 and len(values) and values.dtype.kind in "fiub" and np.isfinite(values).all()
        if not numbers:
            found = f"{name or 'scores'} of shape {values.shape}, not all of them finite numbers"
            raise PlotError(where, found=found, fix="give one finite number per cell")
    if not named:
        raise PlotError(where, found="no scores", fix="give one finite number per cell")
    return named


def _thresholds(given: Any, scores: Mapping[str, Any], where: str) -> dict[str, float]:
    if given is None:
        return {}
    marks = dict(given) if isinstance(given, Mapping) else {"": given}
    if unknown := [name for name in marks if name not in scores]:
        found = f"{unknown[:5]} for {list(scores)}" if isinstance(given, Mapping) else f"one for {list(scores)}"
        raise PlotError(f"{where}(threshold=)", found=found, fix=f"threshold={{{next(iter(scores))!r}: ...}}")
    return marks


def _finish_axes(ax: Axes, title: str | None, *, marked: bool) -> None:
    from matplotlib.ticker import FuncFormatter

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    ax.spines[["top", "right"]].set_visible(False)
    if marked:
        ax.scatter([], [], color="#606060", label="threshold", **_POINT)
    # Beside the axes: curves may go through every corner.
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    if title:
        ax.set_title(title, loc="left", fontsize=11)
