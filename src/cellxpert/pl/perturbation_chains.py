"""How the chains of a perturbation ran, and where they took the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert.errors import PlotError
from cellxpert.pl.figure import finish
from cellxpert.pl.perturbation import HIGHER, LOWER, begin_panels, check_count, choose, head, heading, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cellxpert.pl.perturbation import Condition

__all__ = ["trace", "trajectory"]

_ARMS = {"perturbed": HIGHER, "null": LOWER}


def trace(
    result: Any,
    perturbation: str | None = None,
    *,
    group: str | None = None,
    window: int | None = None,
    title: str | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure:
    """Draw the log density of every chain by step, and how many proposals were accepted.

    Chains that have forgotten their start look alike and have no trend after burn-in, which is shaded. The two arms have different
    targets, so the levels of their log densities cannot be compared, and each has its own panel.

    Parameters
    ----------
    result
        What ``model.perturb`` returns.
    perturbation, group
        Which condition. Default: the only one.
    window
        Number of steps, up to the one drawn, over which acceptance is averaged. Default: a twentieth of all steps.
    title
        Above the panels. Default: the condition, its R-hat and whether it converged.
    ax, show, save, return_fig
        Three Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    numpy.ndarray
        Three Axes in a flat array (perturbed chains, null chains, acceptance), or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If this is no result of a perturbation, or a name is unknown or must be chosen.
    """
    where = "pl.trace"
    condition = choose(result, perturbation, group, where=where, reads=["trajectory"])
    steps = rows_of(result, "trajectory", where=where, condition=condition).sort_values("step", kind="stable")
    n_steps = steps["step"].nunique()
    window = max(1, n_steps // 20) if window is None else check_count(window, "window", where=where, low=1)
    options = {"show": show, "save": save, "return_fig": return_fig}
    axes = begin_panels(ax, (3, 1), figsize=(6.8, 6.2), options=options, sharex=True)
    for arm, panel in zip(_ARMS, axes, strict=False):
        _draw_density(panel, steps[steps["arm"] == arm], arm)
    _draw_acceptance(axes[2], steps, window)
    burn_in = steps[steps["burn_in"].astype(bool)]
    for i, panel in enumerate(axes):
        if len(burn_in):
            # Steps are points in time: burn-in ends halfway to the first step that counts.
            limits = (burn_in["step"].min() - 0.5, burn_in["step"].max() + 0.5)
            panel.axvspan(*limits, color="#ECECEC", linewidth=0, label=None if i else "burn-in", zorder=0)
        panel.set_xlim(steps["step"].min() - 0.5, steps["step"].max() + 0.5)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[2].set_xlabel("step")
    head(axes[0], condition, title, lines=[_sizes(condition)])
    return finish(
        np.array(axes, dtype=object), figure=axes[0].figure.figure, show=show, save=save, return_fig=return_fig
    )


def trajectory(
    result: Any,
    perturbation: str | None = None,
    *,
    group: str | None = None,
    n_arrows: int = 150,
    title: str | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool = False,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure:
    """Draw an arrow from each start cell to where its chains took it, and beside it where the null chains took it.

    The plane is that of the first two principal components of the start cells' vectors; both panels have the same axes and scale.
    A move out of that plane cannot be seen: each panel says which share of the moves' squared lengths lies within it. Only what
    the perturbed cells do beyond the null is an effect.

    Parameters
    ----------
    result
        What ``model.perturb`` returns.
    perturbation, group
        Which condition. Default: the only one.
    n_arrows
        Largest number of cells with an arrow; of more, some are drawn by lot, always the same and the same in both panels. The
        thick arrow is the mean over all cells.
    title
        Above the panels, over the condition and whether it converged; not drawn on Axes that are given.
    ax, show, save, return_fig
        Two Axes to draw on; open a window; file to write; return the Figure.

    Returns
    -------
    numpy.ndarray
        Two Axes in a flat array (perturbed, null), or the Figure with ``return_fig=True``.

    Raises
    ------
    PlotError
        If this is no result of a perturbation, a name is unknown or must be chosen, or there are fewer than three cells.
    """
    where = "pl.trajectory"
    n_arrows = check_count(n_arrows, "n_arrows", where=where, low=0)
    condition = choose(result, perturbation, group, where=where, reads=["latent"])
    latent = _latent(result, condition)
    center, axes_of_plane, shares = _plane(latent["start"], where)
    flat = {arm: (vectors - center) @ axes_of_plane.T for arm, vectors in latent.items()}
    low, high = _limits(np.concatenate(list(flat.values())))
    ratio = (high[1] - low[1]) / (high[0] - low[0])
    options = {"show": show, "save": save, "return_fig": return_fig}
    axes = begin_panels(ax, (1, 2), figsize=(9.6, 1.5 + 4.4 * ratio), options=options)
    cells = np.sort(np.random.default_rng(0).permutation(len(flat["start"]))[:n_arrows])
    for arm, panel in zip(_ARMS, axes, strict=True):
        _draw_arrows(panel, flat["start"], flat[arm], cells, _ARMS[arm])
        panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
        panel.spines[:].set_color("#C0C0C0")
        panel.set_xlabel(f"PC 1 ({shares[0]:.0%} of the start cells' variance)", color="#606060", fontsize=9)
        panel.set_ylabel(f"PC 2 ({shares[1]:.0%})", color="#606060", fontsize=9)
        move, seen = latent[arm] - latent["start"], flat[arm] - flat["start"]
        length = np.linalg.norm(move.mean(axis=0))
        words = arm if ax is None else f"{condition.name}, {arm}" + ("" if condition.converged else ", not converged")
        lines = [f"mean move {length:.3g}; this plane holds {_share(seen, move)} of the moves"]
        heading(panel, words, lines, alarm=ax is not None and not condition.converged)
    figure = axes[0].figure.figure
    if ax is None:
        color = "#000000" if condition.converged else "#B00000"
        lines = [title or "", f"{condition.name}: {condition.verdict}", condition.caption]
        figure.suptitle("\n".join(x for x in lines if x), x=0.01, ha="left", fontsize=11, color=color)
    return finish(np.array(axes, dtype=object), figure=figure, show=show, save=save, return_fig=return_fig)


def _draw_density(ax: Axes, steps: pd.DataFrame, arm: str) -> None:
    chains = list(steps.groupby("chain", sort=True))
    for i, (_, chain) in enumerate(chains):
        label = f"{arm}, {len(chains)} chains" if i == 0 else None
        ax.plot(chain["step"], chain["log_density"], color=_ARMS[arm], linewidth=0.8, alpha=0.7, label=label)
    ax.set_ylabel("log density")


def _draw_acceptance(ax: Axes, steps: pd.DataFrame, window: int) -> None:
    """Running mean of each chain, thin, and of all chains of an arm, thick."""
    for arm, color in _ARMS.items():
        wide = steps[steps["arm"] == arm].pivot(index="step", columns="chain", values="acceptance")
        if not wide.notna().to_numpy().any():
            continue
        running = wide.rolling(window, min_periods=1).mean()
        for chain in running.columns:
            ax.plot(running.index, running[chain], color=color, linewidth=0.6, alpha=0.3)
        ax.plot(running.index, running.mean(axis=1), color=color, linewidth=1.6, label=f"{arm}, mean")
    ax.set(ylabel=f"acceptance\n(mean of {window} steps)" if window > 1 else "acceptance", ylim=(-0.02, 1.02))


def _sizes(condition: Condition) -> str:
    """Effective sample sizes and acceptance after burn-in, those that are recorded."""
    words = {"ess_bulk": "bulk ESS {:,.0f}", "ess_tail": "tail ESS {:,.0f}", "acceptance": "acceptance {:.2f}"}
    values = {key: float(condition.facts[key]) for key in words if key in condition.facts}
    return ", ".join(words[key].format(value) for key, value in values.items() if np.isfinite(value))


def _latent(result: Any, condition: Condition) -> dict[str, np.ndarray]:
    """Vectors (n_cells, width) at the start and at the end of both arms."""
    latent = rows_of(result, "latent", where=condition.where)
    pair = (condition.perturbation, condition.group)
    found = latent.get(pair, {}) if hasattr(latent, "get") else {}
    arrays = {name: np.asarray(found[name], dtype=np.float64) for name in ("start", *_ARMS) if name in found}
    shapes = {name: array.shape for name, array in arrays.items()}
    if not arrays:
        wrong = f"no cell vectors of {pair}"
    elif len(arrays) < 3 or len(set(shapes.values())) > 1 or arrays["start"].ndim != 2:
        wrong = f"cell vectors of shapes {shapes}"
    elif not all(np.isfinite(array).all() for array in arrays.values()):
        wrong = "cell vectors that are not finite"
    else:
        return arrays
    raise PlotError(condition.where, found=wrong, fix="give the result of model.perturb as it is")


def _plane(start: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, first two principal axes (2, width) and their shares of the variance."""
    if len(start) < 3 or start.shape[1] < 2:
        raise PlotError(where, found=f"start cells of shape {start.shape}", fix="perturb at least three cells")
    center = start.mean(axis=0)
    _, size, axes = np.linalg.svd(start - center, full_matrices=False)
    # The sign of a component is arbitrary: its largest entry is made positive, so that every run draws the same picture.
    sign = np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])
    total = (size**2).sum()
    return center, axes[:2] * sign[:, None], size[:2] ** 2 / total if total > 0 else np.zeros(2)


def _limits(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower left and upper right corner, with a margin; no side is shorter than 0.6 times the other."""
    low, high = points.min(axis=0), points.max(axis=0)
    longest = (high - low).max() or 1.0
    half = np.maximum(high - low, 0.6 * longest) / 2 + 0.05 * longest
    return (low + high) / 2 - half, (low + high) / 2 + half


def _draw_arrows(ax: Axes, start: np.ndarray, end: np.ndarray, cells: np.ndarray, color: str) -> None:
    ax.scatter(*start.T, s=10, color="#C8C8C8", linewidths=0, zorder=1, rasterized=len(start) > 5000)
    scale = {"angles": "xy", "scale_units": "xy", "scale": 1}
    if len(cells):
        ax.quiver(*start[cells].T, *(end - start)[cells].T, color=color, alpha=0.7, width=0.0035, zorder=2, **scale)
    middle, move = start.mean(axis=0), (end - start).mean(axis=0)
    ax.quiver(*middle, *move, color="black", width=0.011, zorder=3, edgecolor="white", linewidth=0.6, **scale)


def _share(seen: np.ndarray, move: np.ndarray) -> str:
    total = (move**2).sum()
    return f"{(seen**2).sum() / total:.0%}" if total > 0 else "none"
