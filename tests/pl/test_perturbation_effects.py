from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex

from cellxpert import pl
from cellxpert.errors import PlotError

TARGETS = {"GATA1": {"GATA1"}, "GATA1+KLF1": {"GATA1", "KLF1"}, "SPI1": {"SPI1"}}
HIGHER, LOWER, REST = "#d55e00", "#0072b2", "#b8b8b8"


def _rows(result, name):
    rows = result.table[result.table["perturbation"] == name].set_index("variable")
    return rows.drop(index=[*TARGETS[name]])


def _change(result, name, values):
    """The result with some cells of its table set: {(variable, column): value}."""
    table = result.table.copy()
    for (variable, column), value in values.items():
        table.loc[(table["perturbation"] == name) & (table["variable"] == variable), column] = value
    return replace(result, table=table)


def _points(ax):
    """(x, y) to colour and marker: triangles have other paths than circles."""
    found = {}
    for points in ax.collections:
        kind = "triangle" if len(points.get_paths()[0].vertices) < 6 else "circle"
        for x, y in points.get_offsets():
            found[round(float(x), 6), round(float(y), 6)] = (to_hex(points.get_facecolors()[0]), kind)
    return found


def _labels(ax):
    return [t.get_text() for t in ax.texts if hasattr(t, "xyann") and t.get_fontsize() == 8.5 and t.zorder == 5]


def _small(ax):
    return next(t.get_text() for t in ax.texts if t.zorder != 5)


def _legend(ax):
    return [] if ax.get_legend() is None else [t.get_text() for t in ax.get_legend().texts]


def test_every_gene_lies_at_its_effect_and_p_value(perturbed):
    ax = pl.volcano(perturbed, "GATA1")
    rows = _rows(perturbed, "GATA1").drop(index="MT-CO1")
    color = {"HBB": LOWER, "AHSP": LOWER, "HBG1": HIGHER}
    expected = {
        (round(r.effect, 6), round(-np.log10(r.adj_p_value), 6)): (color.get(gene, REST), "circle")
        for gene, r in rows.iterrows()
    }
    assert len(expected) == 7
    assert _points(ax) == expected
    assert _legend(ax) == ["not significant (4)", "higher (1)", "lower (2)", "adjusted p = 0.05"]
    assert ax.get_title(loc="left") == "GATA1: R-hat 1.003"
    assert (
        _small(ax)
        == "1,200 cells, 3 chains, anchored target\nleft out: GATA1 (perturbed), 1 that cannot move or have no value"
    )
    heights = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert heights == [pytest.approx(-np.log10(0.05))]
    low, high = ax.get_xlim()
    assert low == -high
    assert high > 1.0


def test_the_highest_genes_are_named_among_equals_the_largest_effect(perturbed):
    assert _labels(pl.volcano(perturbed, "GATA1", n_labels=3)) == ["HBB", "HBG1", "AHSP"]
    assert _labels(pl.volcano(perturbed, "GATA1", n_labels=0)) == []
    assert len(_labels(pl.volcano(perturbed, "GATA1", n_labels=100))) == 7
    # HBB and AHSP are both at zero, so at the floor, which is HBG1's.
    assert _labels(pl.volcano(perturbed, "GATA1+KLF1", n_labels=3)) == ["HBB", "HBG1", "AHSP"]
    ax = pl.volcano(perturbed, "GATA1", genes=["CD3E", "AHSP"])
    assert _labels(ax) == ["CD3E", "AHSP"]
    named = {t.get_text(): tuple(t.xy) for t in ax.texts if t.zorder == 5}
    rows = _rows(perturbed, "GATA1")
    for gene, place in named.items():
        assert place == pytest.approx((rows.loc[gene, "effect"], -np.log10(rows.loc[gene, "adj_p_value"])))


def test_unknown_genes_and_targets_cannot_be_named(perturbed):
    with pytest.raises(PlotError, match=r"(?s)'hgb1' is not there.*did you mean 'HBG1'"):
        pl.volcano(perturbed, "GATA1", genes=["hgb1"])
    with pytest.raises(PlotError, match="'GATA1' is not there"):
        pl.volcano(perturbed, "GATA1", genes="GATA1")


def test_p_values_of_zero_are_drawn_at_the_smallest_that_is_not(perturbed):
    ax = pl.volcano(perturbed, "GATA1+KLF1")
    at_floor = {place: kind for place, kind in _points(ax).items() if kind[1] == "triangle"}
    assert at_floor == {
        (-2.0, 8.0): (LOWER, "triangle"),
        (1.6, 8.0): (HIGHER, "triangle"),
        (-1.0, 8.0): (LOWER, "triangle"),
    }
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [8.0]
    assert _legend(ax)[-1] == "floor: adjusted p ≤ 1e-08"
    assert np.isfinite(ax.get_ylim()).all()


def test_where_no_p_value_is_above_zero_the_floor_is_the_smallest_number(perturbed):
    genes = ("KLF1", "SPI1", "HBB", "HBG1", "AHSP", "LYZ", "CD3E")
    result = _change(perturbed, "GATA1", {(gene, c): 0.0 for gene in genes for c in ("p_value", "adj_p_value")})
    points = _points(pl.volcano(result, "GATA1"))
    assert {y for _, y in points} == {round(-np.log10(np.finfo(float).tiny), 6)}


def test_a_smallest_p_value_that_genes_share_is_a_floor(perturbed):
    shared = {(gene, "p_value"): 0.002 for gene in ("HBB", "HBG1")}
    shared |= {(gene, "adj_p_value"): 0.007 for gene in ("HBB", "HBG1")}
    ax = pl.volcano(_change(perturbed, "GATA1", shared), "GATA1")
    assert {x for (x, _), kind in _points(ax).items() if kind[1] == "triangle"} == {-1.0, 0.8}
    assert _legend(ax)[-1] == "floor: adjusted p ≤ 0.007"
    # Equal adjusted values alone are what the adjustment does.
    adjusted = {(gene, "adj_p_value"): 1e-6 for gene in ("HBB", "HBG1")}
    assert "floor" not in _legend(pl.volcano(_change(perturbed, "GATA1", adjusted), "GATA1"))[-1]


def test_a_floor_that_is_given(perturbed):
    ax = pl.volcano(perturbed, "GATA1", p_floor=1e-3, alpha=0.2)
    assert {x for (x, y), kind in _points(ax).items() if kind[1] == "triangle" and y == 3.0} == {-1.0, 0.8}
    assert _legend(ax) == [
        "not significant (3)",
        "higher (2)",
        "lower (2)",
        "adjusted p = 0.2",
        "floor: adjusted p ≤ 0.001",
    ]
    for name in ("p_floor", "alpha"):
        with pytest.raises(PlotError, match=rf"pl.volcano\({name}=\)"):
            pl.volcano(perturbed, "GATA1", **{name: 0.0})


def test_chains_that_disagree_get_no_p_values(perturbed):
    """Not even where a gene's adjusted p value is 1e-9."""
    ax = pl.volcano(perturbed, "SPI1", n_labels=2)
    rows = _rows(perturbed, "SPI1").drop(index="MT-CO1")
    height = rows["effect"].abs() / rows["se"]
    assert _points(ax) == {
        (round(x, 6), round(y, 6)): (REST, "circle") for x, y in zip(rows["effect"], height, strict=True)
    }
    assert ax.get_ylabel() == "|effect| / standard error"
    assert ax.get_title(loc="left") == "SPI1: not converged (R-hat 1.071)"
    assert "no p values: the chains disagree, and the heights of the 7 genes are no test" in _small(ax)
    assert not [line for line in ax.lines if line.get_linestyle() == "--"]
    assert _legend(ax) == []
    assert _labels(ax) == list(height.sort_values(ascending=False).index[:2])


def test_genes_on_which_all_chains_agree_lie_at_the_ceiling(perturbed):
    result = _change(perturbed, "SPI1", {("CD3E", "se"): 0.0, ("AHSP", "se"): 0.0, ("AHSP", "effect"): 0.0})
    points = _points(pl.volcano(result, "SPI1"))
    rows = _rows(perturbed, "SPI1").loc[["GATA1", "KLF1", "HBB", "HBG1", "LYZ"]]
    ceiling = round((rows["effect"].abs() / rows["se"]).max(), 6)
    assert points[0.5, ceiling] == (REST, "triangle")
    assert points[0.0, 0.0] == (REST, "circle")


def test_one_chain_has_neither(perturbed):
    result = replace(perturbed, conditions=perturbed.conditions.assign(r_hat=np.nan, n_chains=1))
    with pytest.raises(PlotError, match=r"(?s)no gene with a standard error.*more chains"):
        pl.volcano(replace(result, table=result.table.assign(se=np.nan)), "GATA1")
    with pytest.raises(PlotError, match="no gene with a p value"):
        pl.volcano(replace(perturbed, table=perturbed.table.assign(adj_p_value=np.nan)), "GATA1")
    ax = pl.top_genes(replace(result, table=result.table.assign(se=np.nan)), "GATA1")
    assert len(ax.patches) == 8


def _bars(ax):
    names = [t.get_text() for t in ax.get_yticklabels()]
    return {name: bar.get_width() for name, bar in zip(names, ax.patches, strict=True)}


def test_bars_are_the_largest_effects_in_order(perturbed):
    ax = pl.top_genes(perturbed, "GATA1", n=4)
    assert list(_bars(ax).items()) == [("HBG1", 0.8), ("KLF1", -0.1), ("AHSP", -0.5), ("HBB", -1.0)]
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == [HIGHER, LOWER, LOWER, LOWER]
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == pytest.approx([0, 1, 2, 3])
    top, bottom = ax.get_ylim()[::-1]
    assert top < bottom  # the first gene is on top
    everything = pl.top_genes(perturbed, "GATA1+KLF1", n=100)
    assert set(_bars(everything)) == set(_rows(perturbed, "GATA1+KLF1").index)
    assert "left out: GATA1, KLF1 (perturbed)" in _small(everything)


def test_whiskers_are_one_standard_error(perturbed):
    ax = pl.top_genes(perturbed, "GATA1", n=4)
    rows = _rows(perturbed, "GATA1")
    (whiskers,) = (c for c in ax.collections if hasattr(c, "get_segments"))
    for (name, effect), segment, place in zip(_bars(ax).items(), whiskers.get_segments(), range(4), strict=True):
        se = rows.loc[name, "se"]
        assert np.asarray(segment) == pytest.approx(np.array([[effect - se, place], [effect + se, place]]))


def test_baselines_are_marked_beside_their_bar(perturbed):
    ax = pl.top_genes(perturbed, "GATA1", n=4)
    assert _legend(ax) == ["no change", "perturbed mean", "additive", "standard error"]
    markers = {c.get_label(): c for c in ax.collections if not hasattr(c, "get_segments")}
    assert set(markers) == {"perturbed mean", "additive"}
    for label, share in (("perturbed mean", 0.5), ("additive", 0.9)):
        x, y = np.asarray(markers[label].get_offsets()).T
        assert x == pytest.approx(share * np.array(list(_bars(ax).values())))
        assert np.abs(y - np.arange(4)).max() < 0.38  # within the bar
    only = pl.top_genes(perturbed, "GATA1", baselines=["additive"])
    assert _legend(only) == ["additive", "standard error"]
    assert len(_legend(pl.top_genes(perturbed, "GATA1", baselines=[]))) == 1
    with pytest.raises(PlotError, match=r"(?s)'aditive' is not there.*'additive'"):
        pl.top_genes(perturbed, "GATA1", baselines=["aditive"])


def test_a_baseline_that_lacks_genes_or_conditions(perturbed):
    some = perturbed.baselines[perturbed.baselines["variable"] != "HBB"]
    ax = pl.top_genes(replace(perturbed, baselines=some), "GATA1", n=4)
    (marks,) = (c for c in ax.collections if c.get_label() == "additive")
    assert np.ma.getmaskarray(np.ma.masked_invalid(marks.get_offsets())).any(axis=1).tolist() == [
        False,
        False,
        False,
        True,
    ]
    none = perturbed.baselines[perturbed.baselines["perturbation"] != "GATA1"]
    assert _legend(pl.top_genes(replace(perturbed, baselines=none), "GATA1")) == ["standard error"]


def test_no_gene_to_draw(perturbed):
    with pytest.raises(PlotError, match="no gene with an effect"):
        pl.top_genes(replace(perturbed, table=perturbed.table.assign(is_target=True)), "GATA1")
    with pytest.raises(PlotError, match=r"pl.top_genes\(n=\)"):
        pl.top_genes(perturbed, "GATA1", n=0)


def test_the_result_stays_as_it_is(perturbed):
    before = {name: getattr(perturbed, name).copy() for name in ("table", "conditions", "baselines")}
    pl.volcano(perturbed, "GATA1+KLF1")
    pl.top_genes(perturbed, "SPI1")
    for name, frame in before.items():
        pd.testing.assert_frame_equal(getattr(perturbed, name), frame)


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("plot", [pl.volcano, pl.top_genes])
def test_nothing_is_cut_off_or_written_over(plot, name, perturbed):
    figure = plot(perturbed, name, return_fig=True)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    box = ax.get_tightbbox()
    assert box.x0 >= -1
    assert box.x1 <= figure.bbox.x1 + 1
    assert box.y1 <= figure.bbox.y1 + 1
    ticks = [t.get_window_extent() for t in ax.get_yticklabels() if t.get_text()]
    assert not any(a.overlaps(b) for a, b in zip(ticks, ticks[1:], strict=False))
    if ax.get_legend() is not None:
        assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1
    pyplot.close("all")
