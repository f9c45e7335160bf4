from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver

from cellxpert import pl
from cellxpert.errors import PlotError
from cellxpert.pl.perturbation_chains import _plane

ORANGE, BLUE = "#d55e00", "#0072b2"


def _of(result, name, arm, chain):
    rows = result.trajectory
    rows = rows[(rows["perturbation"] == name) & (rows["arm"] == arm) & (rows["chain"] == chain)]
    return rows.sort_values("step")


def test_every_chain_is_a_line(perturbed):
    axes = pl.trace(perturbed, "GATA1")
    for ax, arm, color in zip(axes, ("perturbed", "null"), (ORANGE, BLUE), strict=False):
        assert len(ax.lines) == 3
        for chain, line in enumerate(ax.lines):
            rows = _of(perturbed, "GATA1", arm, chain)
            assert list(line.get_xdata()) == list(range(20))
            assert list(line.get_ydata()) == list(rows["log_density"])
            assert to_hex(line.get_color()) == color
    assert [t.get_text() for t in axes[0].get_legend().texts] == ["perturbed, 3 chains", "burn-in"]
    assert [t.get_text() for t in axes[1].get_legend().texts] == ["null, 3 chains"]
    assert axes[0].get_title(loc="left") == "GATA1: R-hat 1.003"
    assert axes[0].texts[0].get_text() == "1,200 cells, 3 chains, anchored target\nbulk ESS 900, acceptance 0.30"


def test_rows_in_any_order_give_the_same_lines(perturbed):
    mixed = replace(perturbed, trajectory=perturbed.trajectory.sample(frac=1, random_state=0))
    for first, second in zip(pl.trace(perturbed, "SPI1"), pl.trace(mixed, "SPI1"), strict=True):
        for a, b in zip(first.lines, second.lines, strict=True):
            assert np.array_equal(a.get_xydata(), b.get_xydata())


def _running(values, window):
    return [np.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_acceptance_is_a_running_mean(window, perturbed):
    ax = pl.trace(perturbed, "GATA1", window=window)[2]
    width = window or 1  # a twentieth of 20 steps
    lines = iter(ax.lines)
    for arm, color in (("perturbed", ORANGE), ("null", BLUE)):
        chains = [_running(_of(perturbed, "GATA1", arm, c)["acceptance"].to_numpy(), width) for c in range(3)]
        for expected in [*chains, np.mean(chains, axis=0)]:
            line = next(lines)
            assert to_hex(line.get_color()) == color
            assert line.get_ydata() == pytest.approx(expected)
    assert next(lines, None) is None
    assert [t.get_text() for t in ax.get_legend().texts] == ["perturbed, mean", "null, mean"]
    assert ax.get_ylabel() == ("acceptance" if width == 1 else f"acceptance\n(mean of {width} steps)")


def test_the_default_window_is_a_twentieth(perturbed):
    rows = perturbed.trajectory
    long = replace(perturbed, trajectory=rows.assign(step=rows["step"] * 7, n=rows["step"]))
    assert pl.trace(long, "GATA1")[2].get_ylabel() == "acceptance"  # 20 steps, whatever their numbers
    with pytest.raises(PlotError, match=r"pl.trace\(window=\)"):
        pl.trace(perturbed, "GATA1", window=0)


def test_burn_in_is_shaded_in_every_panel(perturbed):
    for ax in pl.trace(perturbed, "GATA1"):
        (shade,) = ax.patches
        assert (shade.get_x(), shade.get_x() + shade.get_width()) == (-0.5, 7.5)
        assert ax.get_xlim() == (-0.5, 19.5)
    none = replace(perturbed, trajectory=perturbed.trajectory.assign(burn_in=False))
    assert not any(ax.patches for ax in pl.trace(none, "GATA1"))


def test_an_arm_without_acceptance_has_no_line(perturbed):
    rows = perturbed.trajectory
    gone = replace(perturbed, trajectory=rows.assign(acceptance=rows["acceptance"].where(rows["arm"] != "null")))
    ax = pl.trace(gone, "GATA1")[2]
    assert [t.get_text() for t in ax.get_legend().texts] == ["perturbed, mean"]
    assert len(ax.lines) == 4
    only = replace(perturbed, trajectory=rows[rows["arm"] == "perturbed"])
    assert [len(ax.lines) for ax in pl.trace(only, "GATA1")] == [3, 0, 4]


def _arrows(ax):
    """Start and end of every cell's arrow, then of the mean's."""
    return [
        (q.XY, q.XY + np.stack([q.U, q.V], axis=1), to_hex(q.get_facecolors()[0]))
        for q in ax.collections
        if isinstance(q, Quiver)
    ]


def _reference(vectors):
    """First two principal components by the covariance's eigenvectors, largest entry positive."""
    start = vectors["start"].astype(np.float64)
    value, vector = np.linalg.eigh(np.cov(start.T))
    axes = vector[:, np.argsort(value)[::-1][:2]].T
    axes *= np.sign([a[np.abs(a).argmax()] for a in axes])[:, None]
    share = np.sort(value)[::-1][:2] / value.sum()
    return {k: (v.astype(np.float64) - start.mean(axis=0)) @ axes.T for k, v in vectors.items()}, share


def test_arrows_lead_from_start_to_end_in_both_panels(perturbed):
    axes = pl.trajectory(perturbed, "GATA1")
    flat, share = _reference(perturbed.latent["GATA1", "all"])
    for ax, arm, color in zip(axes, ("perturbed", "null"), (ORANGE, BLUE), strict=True):
        dots = ax.collections[0].get_offsets()
        assert np.asarray(dots) == pytest.approx(flat["start"], abs=1e-5)
        (start, end, shown), (middle, mean_end, mean_color) = _arrows(ax)
        assert shown == color
        assert start == pytest.approx(flat["start"], abs=1e-5)
        assert end == pytest.approx(flat[arm], abs=1e-5)
        assert mean_color == "#000000"
        assert middle[0] == pytest.approx(flat["start"].mean(axis=0), abs=1e-5)
        assert mean_end[0] == pytest.approx(flat[arm].mean(axis=0), abs=1e-5)
        assert ax.get_title(loc="left") == arm
        assert ax.get_xlabel() == f"PC 1 ({share[0]:.0%} of the start cells' variance)"
        assert ax.get_ylabel() == f"PC 2 ({share[1]:.0%})"
        # Lengths of arrows are lengths in the plane.
        assert all(
            (q.angles, q.scale_units, q.scale) == ("xy", "xy", 1) for q in ax.collections if isinstance(q, Quiver)
        )


def test_both_panels_have_the_same_axes_and_hold_every_point(perturbed):
    figure = pl.trajectory(perturbed, "GATA1", return_fig=True)
    figure.draw_without_rendering()
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert first.get_aspect() == second.get_aspect() == 1.0
    assert first.get_window_extent().size == pytest.approx(second.get_window_extent().size)
    flat, _ = _reference(perturbed.latent["GATA1", "all"])
    every = np.concatenate(list(flat.values()))
    for i, limits in enumerate((first.get_xlim(), first.get_ylim())):
        assert limits[0] < every[:, i].min()
        assert every[:, i].max() < limits[1]
    assert figure.get_suptitle() == "GATA1: R-hat 1.003\n1,200 cells, 3 chains, anchored target"


def test_each_panel_says_how_far_and_how_much_of_it_is_seen(perturbed):
    start = np.zeros((4, 3), dtype=np.float32)
    start[:, 0], start[:, 1] = [-2, 2, -2, 2], [-1, -1, 1, 1]
    vectors = {"start": start, "perturbed": start + np.float32([3, 0, 4]), "null": start.copy()}
    axes = pl.trajectory(replace(perturbed, latent={("GATA1", "all"): vectors}), "GATA1")
    texts = [ax.texts[0].get_text() for ax in axes]
    # Of a move of 5, 3 lie in the plane: 9 / 25.
    assert texts == [
        "mean move 5; this plane holds 36% of the moves",
        "mean move 0; this plane holds none of the moves",
    ]
    assert axes[0].get_xlabel() == "PC 1 (80% of the start cells' variance)"


def test_of_many_cells_some_have_arrows_the_same_in_both_panels(perturbed):
    axes = pl.trajectory(perturbed, "GATA1", n_arrows=7)
    flat, _ = _reference(perturbed.latent["GATA1", "all"])
    starts = []
    for ax, arm in zip(axes, ("perturbed", "null"), strict=True):
        assert len(ax.collections[0].get_offsets()) == 30
        (start, end, _), (middle, mean_end, _) = _arrows(ax)
        starts.append(start)
        cells = [int(np.abs(flat["start"] - s).sum(axis=1).argmin()) for s in start]
        assert len(set(cells)) == 7
        assert end == pytest.approx(flat[arm][cells], abs=1e-5)
        assert mean_end[0] == pytest.approx(flat[arm].mean(axis=0), abs=1e-5)  # over all cells
    assert np.array_equal(*starts)
    assert len(_arrows(pl.trajectory(perturbed, "GATA1", n_arrows=0)[0])) == 1
    with pytest.raises(PlotError, match=r"pl.trajectory\(n_arrows=\)"):
        pl.trajectory(perturbed, "GATA1", n_arrows=-1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(3, 12), st.integers(2, 15))
def test_the_plane_is_that_of_largest_variance(seed, n_cells, width):
    start = np.random.default_rng(seed).normal(size=(n_cells, width)) * np.arange(1, width + 1)
    center, axes, shares = _plane(start, "pl.x")
    assert axes @ axes.T == pytest.approx(np.eye(2), abs=1e-9)
    variance = ((start - center) @ axes.T).var(axis=0)
    value = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(start.T, bias=True))))[::-1]
    assert variance == pytest.approx(value[:2], rel=1e-6)
    assert shares == pytest.approx(value[:2] / value.sum(), rel=1e-6)
    # Cells turned by their mean: the components turn with them, and their signs do not depend on it.
    assert _plane(2 * center - start, "pl.x")[1] == pytest.approx(axes, abs=1e-6)


def test_cells_that_are_all_alike_do_not_fail(perturbed):
    same = {name: np.ones((5, 4), dtype=np.float32) for name in ("start", "perturbed", "null")}
    axes = pl.trajectory(replace(perturbed, latent={("GATA1", "all"): same}), "GATA1")
    assert axes[0].get_xlabel().startswith("PC 1 (0%")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {}, r"no cell vectors of \('GATA1', 'all'\)"),
        (lambda v: {"start": v["start"], "null": v["null"]}, "cell vectors"),
        (lambda v: v | {"null": v["null"][:-1]}, r"cell vectors .*\(29, 5\)"),
        (lambda v: v | {"null": v["null"] * np.nan}, "that are not finite"),
        (lambda v: {k: x[:2] for k, x in v.items()}, r"start cells of shape \(2, 5\)"),
        (lambda v: {k: x[:, :1] for k, x in v.items()}, r"start cells of shape \(30, 1\)"),
        (lambda v: {k: x[:, 0] for k, x in v.items()}, r"cell vectors"),
    ],
)
def test_vectors_that_cannot_be_drawn(change, message, perturbed):
    vectors = perturbed.latent["GATA1", "all"]
    with pytest.raises(PlotError, match=message):
        pl.trajectory(replace(perturbed, latent={("GATA1", "all"): change(vectors)}), "GATA1")


def test_another_condition_s_vectors_are_not_taken(perturbed):
    with pytest.raises(PlotError, match="no cell vectors of"):
        pl.trajectory(replace(perturbed, latent={("SPI1", "all"): perturbed.latent["SPI1", "all"]}), "GATA1")


@pytest.mark.parametrize("plot", [pl.trace, pl.trajectory])
def test_nothing_is_cut_off_or_written_over(plot, perturbed):
    figure = plot(perturbed, "SPI1", return_fig=True)
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for i, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert not any(
            box.x0 < b.x1 - 2 and b.x0 < box.x1 - 2 and box.y0 < b.y1 - 2 and b.y0 < box.y1 - 2 for b in boxes[i + 1 :]
        )
