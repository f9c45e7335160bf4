"""What the plots of a perturbation share: finding one condition in the result, and the lines above the axes."""

from __future__ import annotations

import difflib
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellxpert.errors import PlotError
from cellxpert.pl.figure import begin, new_figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = [
    "HIGHER",
    "LOWER",
    "MAX_R_HAT",
    "NEUTRAL",
    "Condition",
    "begin_panels",
    "check_count",
    "check_names",
    "choose",
    "head",
    "heading",
    "name_of",
    "rows_of",
]

HIGHER, LOWER, NEUTRAL = "#D55E00", "#0072B2", "#B8B8B8"
"""Colours of what goes up or is perturbed, what goes down or is the null, and the rest."""
MAX_R_HAT = 1.01
_PAIR = ("perturbation", "group")
_COLUMNS = {
    "conditions": (*_PAIR, "r_hat", "converged"),
    "table": (*_PAIR, "variable", "effect", "se", "is_target"),
    "baselines": ("baseline", *_PAIR, "variable", "effect"),
    "trajectory": (*_PAIR, "arm", "chain", "step", "log_density", "acceptance", "burn_in"),
}
_MOST_NAMES = 5


@dataclass(frozen=True)
class Condition:
    """One perturbation in one group of cells.

    Parameters
    ----------
    where
        The function that draws, for messages.
    perturbation, group
        Names as in the result.
    facts
        Its row of ``result.conditions``.
    """

    where: str
    perturbation: str
    group: str
    facts: pd.Series

    @property
    def r_hat(self) -> float:
        """Largest R-hat over the genes."""
        return float(self.facts["r_hat"])

    @property
    def converged(self) -> bool:
        """Whether p values may be shown; an R-hat that is not known (one chain) does not count as converged."""
        return bool(self.facts["converged"]) and self.r_hat <= MAX_R_HAT

    @property
    def name(self) -> str:
        """Perturbation, and the group where there is more than one."""
        return self.perturbation if self.group == "all" else f"{self.perturbation}, {self.group}"

    @property
    def verdict(self) -> str:
        """Words for the title: the R-hat, and what it means."""
        value = f"R-hat {self.r_hat:.3f}" if self.r_hat == self.r_hat else "R-hat unknown"
        return value if self.converged else f"not converged ({value})"

    @property
    def caption(self) -> str:
        """How many cells and chains, which target, and whether the perturbed gene is silent; what is not recorded is left out."""
        parts = [f"{int(self.facts[key]):,} {key[2:]}" for key in ("n_cells", "n_chains") if key in self.facts]
        parts += [f"{self.facts['target']} target"] if "target" in self.facts else []
        parts += ["perturbed gene silent in these cells"] if bool(self.facts.get("silent", False)) else []
        return ", ".join(parts)


def choose(
    result: Any,
    perturbation: str | None,
    group: str | None,
    *,
    where: str,
    reads: Sequence[str],
) -> Condition:
    """Find the condition to draw; with one perturbation, or one group, its name may be left out.

    Parameters
    ----------
    result
        What ``model.perturb`` returns.
    perturbation, group
        Names, or None for the only one.
    where
        The function that draws, for messages.
    reads
        Attributes of the result that it needs besides ``conditions``.

    Raises
    ------
    PlotError
        If the object is no such result, a name is unknown, or one of several must be chosen.
    """
    conditions = rows_of(result, "conditions", where=where)
    for attribute in reads:
        rows_of(result, attribute, where=where)
    for key, asked in (("perturbation", perturbation), ("group", group)):
        name = name_of(conditions[key], asked, what=key, where=where)
        conditions = conditions[conditions[key].astype(str) == name]
    row = conditions.iloc[0]
    return Condition(where=where, perturbation=str(row["perturbation"]), group=str(row["group"]), facts=row)


def rows_of(
    result: Any, attribute: str, *, where: str, condition: Condition | None = None, columns: Iterable[str] = ()
) -> Any:
    """Return an attribute of the result: a checked table (of one condition), or anything else as it is."""
    fix = f"res = model.perturb(...); {where}(res)"
    found = getattr(result, attribute, None)
    if found is None:
        raise PlotError(where, found=f"{type(result).__name__} without .{attribute}", fix=fix)
    if attribute not in _COLUMNS:
        return found
    needed = [*_COLUMNS[attribute], *columns]
    if not isinstance(found, pd.DataFrame) or (missing := [c for c in needed if c not in found.columns]):
        what = f"columns {missing} missing" if isinstance(found, pd.DataFrame) else type(found).__name__
        raise PlotError(where, found=f".{attribute}: {what}", fix=fix)
    if condition is not None:
        pair = (found["perturbation"] == condition.perturbation) & (found["group"] == condition.group)
        found = found[pair]
        if attribute != "baselines" and not len(found):  # a result may have no baselines
            raise PlotError(where, found=f".{attribute} has no rows for {condition.name!r}", fix=fix)
    elif not len(found):
        raise PlotError(where, found=f".{attribute} has no rows", fix=fix)
    return found


def name_of(known: Iterable[Any], asked: Any, *, what: str, where: str) -> str:
    """Return the name asked for, or the only one; names that are not known are refused with the closest that is."""
    names = list(dict.fromkeys(map(str, known)))
    if asked is None and len(names) == 1:
        return names[0]
    listed = f"{names[:_MOST_NAMES]}" + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
    if asked is None:
        raise PlotError(where, found=f"{len(names)} {what}s: {listed}", fix=f"give {what}={names[0]!r}, or another")
    if str(asked) in names:
        return str(asked)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(str(asked).casefold(), list(folded), n=1, cutoff=0.6)
    fix = f"did you mean {folded[near[0]]!r}?" if near else f"give a {what} of the result"
    raise PlotError(f"{where}({what}=)", found=f"{asked!r} is not there; there are {listed}", fix=fix)


def check_names(asked: Iterable[str] | str, known: Iterable[Any], *, what: str, where: str) -> list[str]:
    """Return the names asked for as a list, once each; all must be known."""
    names = list(map(str, known))
    wanted = [asked] if isinstance(asked, str) else asked
    return list(dict.fromkeys(name_of(names, x, what=what, where=where) for x in wanted))


def check_count(value: int, name: str, *, where: str, low: int) -> int:
    """Return a whole number; anything else, or one below ``low``, is refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise PlotError(f"{where}({name}=)", found=repr(value), fix=f"give a whole number from {low}")
    return int(value)


def begin_panels(
    ax: Any, shape: tuple[int, int], *, figsize: tuple[float, float], options: Mapping[str, Any], sharex: bool = False
) -> list[Axes]:
    """Return the given Axes, as many as panels, or those of a new figure.

    ``options`` are ``show``, ``save`` and ``return_fig``, which decide who keeps the figure.
    """
    show: bool = options["show"]
    save: str | Path | None = options["save"]
    n_panels = shape[0] * shape[1]
    if ax is None:
        figure = new_figure(figsize=figsize, show=show, save=save, return_fig=options["return_fig"])
        return list(figure.subplots(*shape, sharex=sharex, squeeze=False).flat)
    given = list(getattr(ax, "flat", ax)) if hasattr(ax, "__len__") else [ax]
    if len(given) != n_panels:
        raise PlotError("pl ax=", found=f"{len(given)} Axes", fix=f"give {n_panels}: plt.subplots{shape}[1]")
    return [begin(x, figsize=figsize, show=show, save=save, return_fig=options["return_fig"]) for x in given]


def head(ax: Axes, condition: Condition, title: str | None, *, lines: Sequence[str] = ()) -> None:
    """Write the title of one condition; that its chains did not converge stands there whatever the title is."""
    first = f"{condition.name}: {condition.verdict}"
    above = [first] if title else []
    heading(ax, title or first, [*above, condition.caption, *lines], alarm=not condition.converged)


def heading(ax: Axes, title: str, lines: Sequence[str] = (), *, alarm: bool = False) -> None:
    """Write a title, and smaller grey lines between it and the axes; ``alarm`` makes the title red."""
    small = [line for line in lines if line]
    ax.set_title(title, loc="left", fontsize=11, pad=6 + 11.5 * len(small), color="#B00000" if alarm else "#000000")
    if small:
        place = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, 5), "textcoords": "offset points"}
        ax.annotate("\n".join(small), **place, fontsize=8.5, color="#606060", va="bottom", annotation_clip=False)
