"""Names beside points, none over another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

__all__ = ["write_labels"]

_RINGS = (0.0, 9.0, 18.0, 30.0, 45.0, 62.0, 85.0, 115.0, 150.0)
"""How far from its point a label may be, in points of the page; the first needs no line."""
_N_DIRECTIONS = 16
_GAP = 4.0
_TAKEN, _LINE, _POINT, _NAMED, _FAR = 1e6, 300.0, 10.0, 6.0, 0.4
"""What it costs to cover another label or leave the axes, to cross a line, to cover a point, to be near another point with a name,
and to be a point farther away."""


def write_labels(
    ax: Axes, points: np.ndarray, names: Sequence[str], *, clear_of: np.ndarray, fontsize: float = 8.5
) -> list[Annotation]:
    """Write a name beside each point, at the first place around it that covers neither labels nor points.

    Greedy: earlier names choose first, and a name for which no place is free is left out. The limits of the axes must be final,
    and stay as they are.

    Parameters
    ----------
    ax
        Axes with everything else drawn.
    points
        Data coordinates (n_names, 2).
    names
        What to write; the most important first.
    clear_of
        Data coordinates (n, 2) of all points, which the names should not cover.
    fontsize
        In points.

    Returns
    -------
    list of matplotlib.text.Annotation
        One per name that is written; those that lie apart from their point have a line to it.
    """
    figure = ax.figure.figure
    figure.draw_without_rendering()  # lays the axes out: only then lengths on the page are known
    unit = figure.dpi / 72
    frame = np.array(ax.bbox.extents)
    here, obstacles = (ax.transData.transform(np.asarray(x, dtype=float).reshape(-1, 2)) for x in (points, clear_of))
    boxes, lines, written = np.empty((0, 4)), np.empty((0, 2)), []
    steps = np.linspace(0.0, 1.0, 15)[:, None]
    for i, (name, point) in enumerate(zip(names, here, strict=True)):
        size = _measure(ax, name, fontsize)
        centres, far = _candidates(size, unit)
        candidates = np.concatenate([point + centres - size / 2, point + centres + size / 2], axis=1)
        near = np.abs(obstacles - point).max(axis=1) < far.max() + size.max() + 2 * _GAP * unit
        cost = _FAR * far / unit + _POINT * _n_inside(candidates, obstacles[near], 3 * unit)
        cost += _NAMED * _n_inside(candidates, np.delete(here, i, axis=0), 8 * unit)  # whose name would it be?
        cost += _TAKEN * (_overlap(candidates, boxes, 1.5 * unit) + _outside(candidates, frame))
        cost += _LINE * _n_inside(candidates, lines, unit)
        cost += _LINE * np.array([_n_inside(boxes, point + steps * c, 0.0).sum() if len(boxes) else 0 for c in centres])
        best = int(np.argmin(cost))
        if cost[best] >= _TAKEN:
            continue
        boxes = np.concatenate([boxes, candidates[best : best + 1]])
        has_line = far[best] > 0
        if has_line:
            lines = np.concatenate([lines, point + steps * centres[best]])
        arrow = {"arrowstyle": "-", "color": "#808080", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2.5}
        written.append(
            ax.annotate(
                name,
                xy=ax.transData.inverted().transform(point),
                xytext=tuple(centres[best] / unit),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=fontsize,
                color="#202020",
                arrowprops=arrow if has_line else None,
                zorder=5,
            )
        )
    return written


def _measure(ax: Axes, name: str, fontsize: float) -> np.ndarray:
    """Width and height in pixels."""
    text = ax.text(0.5, 0.5, name, transform=ax.transAxes, fontsize=fontsize)
    box = text.get_window_extent()
    text.remove()
    return np.array([box.width, box.height])


def _candidates(size: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of boxes around a point, in pixels from it, and how far each is from touching it; right and left come first."""
    turn = np.arange(_N_DIRECTIONS)
    angle = np.where(turn % 2, np.pi, 0.0) + (2 * np.pi / _N_DIRECTIONS) * ((turn // 2 + 1) // 2) * (-1) ** (turn // 2)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # The box touches the point when its centre is this far away: an ellipse of half its sides serves as its outline.
    touching = direction * (size / 2 + _GAP * unit)
    rings = np.array(_RINGS) * unit
    centres = (touching[None] + rings[:, None, None] * direction[None]).reshape(-1, 2)
    return centres, np.repeat(rings, _N_DIRECTIONS)


def _n_inside(boxes: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """How many points lie in each box (x0, y0, x1, y1), which is widened by a margin."""
    low, high = boxes[:, None, :2] - margin, boxes[:, None, 2:] + margin
    return ((points[None] > low) & (points[None] < high)).all(axis=2).sum(axis=1)


def _overlap(boxes: np.ndarray, placed: np.ndarray, margin: float) -> np.ndarray:
    """How many of the placed boxes each box meets."""
    low = np.maximum(boxes[:, None, :2], placed[None, :, :2]) - margin
    high = np.minimum(boxes[:, None, 2:], placed[None, :, 2:]) + margin
    return (low < high).all(axis=2).sum(axis=1)


def _outside(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Whether a box leaves the frame."""
    return (boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1)
