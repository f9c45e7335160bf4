"""How training went."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.errors import PlotError
from cellxpert.pl.figure import begin, finish, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["training_history"]

_PHASES = {"train": ("training", "#0072B2"), "validation": ("validation", "#D55E00"), "": ("", "#404040")}
_WORDS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}


def training_history(
    history: Mapping[str, Any] | pd.DataFrame,
    keys: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> np.ndarray | Axes | Figure:
    """Draw each recorded quantity over the epochs, training and validation in one panel.

    Parameters
    ----------
    history
        ``model.history``: name to a Series, a one-column DataFrame or a sequence over epochs, or one DataFrame. Names that differ
        only by ``train`` or ``validation`` (``val``) before or after them belong together.
    keys
        Quantities to draw, named without their phase. Default: all.
    ax, show, save, return_fig
        Axes to draw on (one quantity); open a window; file to write; return the Figure.

    Returns
    -------
    numpy.ndarray
        Axes, one per quantity, in a flat array; the given Axes if ``ax`` is; or the Figure with ``return_fig=True``. Epochs
        whose value is not a number are marked with red crosses at the foot of the panel.

    Raises
    ------
    PlotError
        If there is nothing to draw, or several quantities for one ``ax``.
    """
    panels = _group(history)
    wanted = list(panels) if keys is None else [key for key in keys if key in panels]
    if not wanted or (keys is not None and len(wanted) < len(keys)):
        missing = sorted(set(keys or []) - set(wanted)) or "no values"
        raise PlotError(
            "pl.training_history", found=f"{missing}; history has {list(panels)}", fix="train the model first"
        )
    if ax is not None and len(wanted) > 1:
        raise PlotError("pl.training_history(ax=)", found=f"{len(wanted)} quantities", fix=f"give keys=[{wanted[0]!r}]")
    if ax is not None:
        figsize = (4.0, 3.0)
        axes = [begin(ax, figsize=figsize, show=show, save=save, return_fig=return_fig)]
    else:
        n_columns = min(3, len(wanted))
        n_rows = -(-len(wanted) // n_columns)
        size = (4.0 * n_columns, 2.8 * n_rows)
        figure = new_figure(figsize=size, show=show, save=save, return_fig=return_fig)
        axes = [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(len(wanted))]
    for panel, name in zip(axes, wanted, strict=True):
        _draw(panel, name, panels[name])
    drawn = ax if ax is not None else np.array(axes, dtype=object)
    return finish(drawn, figure=axes[0].figure.figure, show=show, save=save, return_fig=return_fig)


def _group(history: Mapping[str, Any] | pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """Quantity to phase to values over epochs."""
    panels: dict[str, dict[str, pd.Series]] = {}
    for name in history:
        values = history[name]
        if isinstance(values, pd.DataFrame):
            values = values.iloc[:, 0]
        series = pd.to_numeric(pd.Series(values), errors="coerce").astype(float)
        words = [w for w in re.split(r"[_/]", str(name)) if w not in {"epoch", "step"}]
        phase = next((_WORDS[w] for w in (words[0], words[-1]) if w in _WORDS), "") if words else ""
        quantity = "_".join(w for i, w in enumerate(words) if not (w in _WORDS and i in {0, len(words) - 1}))
        if len(series):
            panels.setdefault(quantity or str(name), {})[phase] = series
    return panels


def _draw(ax: Axes, name: str, phases: dict[str, pd.Series]) -> None:
    from matplotlib.ticker import MaxNLocator

    for phase, (label, color) in _PHASES.items():
        if phase not in phases:
            continue
        values = phases[phase]
        # A value recorded now and then (validation every few epochs) leaves gaps that are joined; one that is infinite does not.
        known = values.dropna() if phase == "validation" else values
        ax.plot(
            known.index, known.where(np.isfinite(known)), color=color, label=label or None, marker="o", markersize=3
        )
        bad = values.index[~np.isfinite(values) & (values.notna() | (phase != "validation"))]
        if len(bad):
            style = {"marker": "x", "color": "#C00000", "zorder": 3, "clip_on": False}
            ax.scatter(bad, np.zeros(len(bad)), transform=ax.get_xaxis_transform(), label="not a number", **style)
    ax.set_title(name.replace("_", " "), loc="left", fontsize=11)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=9)
