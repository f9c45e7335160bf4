"""What all plots share: where they draw, and how they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellxpert.errors import PlotError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["begin", "finish", "new_figure"]


def new_figure(*, figsize: tuple[float, float], show: bool, save: str | Path | None, return_fig: bool) -> Figure:
    """Make an empty figure.

    pyplot keeps the figure, so that notebooks display it, unless the caller writes it to a file or takes it: programs that draw
    many files then pile up no open figures.
    """
    if (save is not None or return_fig) and not show:
        from matplotlib.figure import Figure

        return Figure(figsize=figsize, layout="constrained")
    from matplotlib import pyplot

    return pyplot.figure(figsize=figsize, layout="constrained")


def begin(
    ax: Axes | None, *, figsize: tuple[float, float], show: bool, save: str | Path | None, return_fig: bool
) -> Axes:
    """Return the given Axes, or those of a new figure."""
    if ax is None:
        return new_figure(figsize=figsize, show=show, save=save, return_fig=return_fig).add_subplot()
    if not hasattr(ax, "transData"):
        raise PlotError("pl ax=", found=type(ax).__name__, fix="give one Axes of matplotlib")
    return ax


def finish(drawn: Any, *, figure: Figure, show: bool, save: str | Path | None, return_fig: bool) -> Any:
    """Write and show the figure if asked to; return what was drawn, or the figure."""
    if save is not None:
        figure.savefig(save, dpi=200, bbox_inches="tight")
    if show:
        from matplotlib import pyplot

        pyplot.show()
    return figure if return_fig else drawn
