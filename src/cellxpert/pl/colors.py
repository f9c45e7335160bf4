"""One colour per label, the same in every panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.errors import PlotError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike

__all__ = ["MISSING_COLOR", "PALETTE", "label_colors", "labels_in_order"]

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#9E1861",
    "#864900",
    "#8679F3",
    "#92E761",
    "#92B686",
    "#3D249E",
    "#005549",
    "#6D4986",
    "#86000C",
    "#6D0C6D",
    "#92616D",
    "#F39EB6",
    "#5549C2",
    "#FF79CE",
)
"""Colours that stay apart for people who confuse red and green: six of Okabe and Ito's, then each new one chosen as far as
possible from those before it, to normal, protanope and deuteranope eyes; dark ones come last."""
MISSING_COLOR = "#B8B8B8"


def labels_in_order(*labels: ArrayLike) -> list[Any]:
    """Labels that occur: in the order of their categories if all arrays agree on one, else sorted by name.

    Parameters
    ----------
    labels
        Arrays of labels; missing ones are passed over.
    """
    series = [pd.Series(x) for x in labels]
    occurring = set().union(*(set(s.dropna()) for s in series))
    orders = {tuple(s.cat.categories) if isinstance(s.dtype, pd.CategoricalDtype) else () for s in series}
    order = next(iter(orders)) if len(orders) == 1 else ()
    return [x for x in order if x in occurring] if order else _sorted(occurring)


def label_colors(
    *labels: ArrayLike, palette: Mapping[Any, str] | None = None, unknown: Any = "Unknown"
) -> dict[Any, str]:
    """Give every label a colour; pass the result to several plots so that a label has one colour in all of them.

    The first 20 colours are distinct also for colour-blind readers; later ones are lighter, then darker, forms of them.

    Parameters
    ----------
    labels
        One or more arrays of labels; all labels that occur in any of them get a colour.
    palette
        Colours that are already decided, by label.
    unknown
        The label that stands for no label; it is grey.

    Returns
    -------
    dict
        Label to hex colour, in the order of the legend; ``unknown`` comes last.

    Examples
    --------
    >>> label_colors(["T", "B", "Unknown"])
    {'B': '#0072B2', 'T': '#D55E00', 'Unknown': '#B8B8B8'}
    """
    from matplotlib.colors import to_hex

    given = dict(palette or {})
    order = labels_in_order(*labels)
    order = [x for x in order if x != unknown] + [x for x in order if x == unknown]
    colors: dict[Any, str] = dict.fromkeys(order, MISSING_COLOR)
    free = iter(c for c in (_color(i) for i in range(len(order) + len(given))) if c not in set(given.values()))
    # By name, not by category, so that two columns with the same labels get the same colours.
    for label in _sorted(order):
        if label in given:
            try:
                colors[label] = to_hex(given[label])
            except ValueError as error:
                raise PlotError("pl palette", found=f"{given[label]!r} for {label!r}", fix="give a colour") from error
        elif label != unknown:
            colors[label] = next(free)
    return colors


def _sorted(labels: Iterable[Any]) -> list[Any]:
    try:
        return sorted(labels)
    except TypeError:  # numbers among names
        return sorted(labels, key=str)


def _color(i: int) -> str:
    from matplotlib.colors import to_hex, to_rgb

    lap, place = divmod(i, len(PALETTE))
    base = np.array(to_rgb(PALETTE[place]))
    # Laps alternate between lighter and darker and move less each time, so that no two colours are equal.
    share = (0.55 if lap % 2 else 0.45) / max(1, (lap + 1) // 2) if lap else 0.0
    return to_hex(base + share * ((1.0 if lap % 2 else 0.0) - base)).upper()
