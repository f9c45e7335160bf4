from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from cellxpert import pl
from cellxpert.errors import PlotError
from cellxpert.pl.perturbation import begin_panels, check_count, check_names, choose, heading, name_of, rows_of

ONE = (pl.volcano, pl.trace, pl.trajectory, pl.top_genes)
ALL = (*ONE, pl.similarity)


def _in_groups(result, groups=("ery", "mono")):
    """The same rows for every group, with effects that differ."""
    frames = {}
    for name in ("table", "conditions", "baselines", "trajectory"):
        frame = getattr(result, name)
        parts = [frame.assign(group=group) for group in groups]
        if "effect" in frame:
            parts = [part.assign(effect=part["effect"] * (i + 1)) for i, part in enumerate(parts)]
        frames[name] = pd.concat(parts, ignore_index=True)
    latent = {(name, group): value for (name, _), value in result.latent.items() for group in groups}
    return replace(result, **frames, latent=latent)


@pytest.mark.parametrize("plot", ALL)
@pytest.mark.parametrize("other", [None, "GATA1", pd.DataFrame({"a": [1]}), {"table": 1}])
def test_other_objects_are_refused(plot, other):
    with pytest.raises(PlotError, match=rf"pl.{plot.__name__}: {type(other).__name__} without"):
        plot(other)


@pytest.mark.parametrize("plot", ONE)
def test_unknown_names_are_refused_with_the_closest(plot, perturbed):
    with pytest.raises(PlotError, match=r"(?s)'gata' is not there.*did you mean 'GATA1'\?"):
        plot(perturbed, "gata")
    with pytest.raises(PlotError, match=r"(?s)'XYZ' is not there; there are \['GATA1', .*give a perturbation"):
        plot(perturbed, "XYZ")
    with pytest.raises(PlotError, match=r"(?s)group=\): 'al' is not there.*did you mean 'all'\?"):
        plot(perturbed, "GATA1", group="al")


@pytest.mark.parametrize("plot", ONE)
def test_one_of_several_must_be_chosen(plot, perturbed):
    with pytest.raises(PlotError, match=r"(?s)3 perturbations: \['GATA1', .*give perturbation='GATA1'"):
        plot(perturbed)
    with pytest.raises(PlotError, match=r"(?s)2 groups: \['ery', 'mono'\].*give group='ery'"):
        plot(_in_groups(perturbed), "GATA1")
    alone = replace(perturbed, conditions=perturbed.conditions.iloc[[0]])
    plot(alone)


def test_the_group_that_is_drawn_is_the_one_asked_for(perturbed):
    result = _in_groups(perturbed)
    small, large = (pl.top_genes(result, "GATA1", group=group) for group in ("ery", "mono"))
    widths = [[bar.get_width() for bar in ax.patches] for ax in (small, large)]
    assert np.allclose(np.multiply(widths[0], 2), widths[1])
    assert large.get_title(loc="left") == "GATA1, mono: R-hat 1.003"
    heat = [pl.similarity(result, group=group).get_title(loc="left") for group in ("ery", "mono")]
    assert heat == ["Similarity of effects, ery", "Similarity of effects, mono"]
    with pytest.raises(PlotError, match="2 groups"):
        pl.similarity(result)
    # A perturbation that was not run in a group is not found there, though both names exist.
    part = replace(result, conditions=result.conditions.iloc[1:])
    with pytest.raises(PlotError, match=r"'ery' is not there; there are \['mono'\]"):
        pl.volcano(part, "GATA1", group="ery")


@pytest.mark.parametrize(("name", "column"), [("table", "effect"), ("conditions", "r_hat"), ("baselines", "baseline")])
def test_tables_of_another_form_are_refused(name, column, perturbed):
    broken = replace(perturbed, **{name: getattr(perturbed, name).drop(columns=column)})
    with pytest.raises(PlotError, match=rf"\.{name}: columns \['{column}'\] missing"):
        pl.top_genes(broken, "GATA1")
    with pytest.raises(PlotError, match=rf"\.{name}: dict"):
        pl.top_genes(replace(perturbed, **{name: {}}), "GATA1")


def test_conditions_without_rows_are_refused(perturbed):
    table = perturbed.table[perturbed.table["perturbation"] != "GATA1"]
    with pytest.raises(PlotError, match=r"\.table has no rows for 'GATA1'"):
        pl.volcano(replace(perturbed, table=table), "GATA1")
    with pytest.raises(PlotError, match=r"\.conditions has no rows"):
        pl.volcano(replace(perturbed, conditions=perturbed.conditions.iloc[:0]), "GATA1")


@pytest.mark.parametrize(
    ("r_hat", "flag", "converged", "verdict"),
    [
        (1.01, True, True, "R-hat 1.010"),
        (1.0101, True, False, "not converged (R-hat 1.010)"),
        (1.0, False, False, "not converged (R-hat 1.000)"),
        (np.nan, True, False, "not converged (R-hat unknown)"),
    ],
)
def test_converged_is_what_both_the_flag_and_the_number_say(r_hat, flag, converged, verdict, perturbed):
    conditions = perturbed.conditions.assign(r_hat=r_hat, converged=flag)
    condition = choose(replace(perturbed, conditions=conditions), "GATA1", None, where="pl.x", reads=["table"])
    assert condition.converged is converged
    assert condition.verdict == verdict


def test_what_is_said_of_a_condition(perturbed):
    condition = choose(perturbed, "SPI1", None, where="pl.x", reads=())
    assert condition.caption == "1,200 cells, 3 chains, zero-shot target, perturbed gene silent in these cells"
    few = replace(perturbed, conditions=perturbed.conditions[["perturbation", "group", "r_hat", "converged"]])
    assert choose(few, "SPI1", None, where="pl.x", reads=()).caption == ""


@pytest.mark.parametrize("plot", ONE)
def test_the_title_says_whether_the_chains_converged_whatever_it_is(plot, perturbed):
    def written(name, title):
        figure = plot(perturbed, name, title=title, return_fig=True)
        ax = figure.axes[0]
        above = figure.get_suptitle() or ax.get_title(loc="left")
        return above, "\n".join([above, *(t.get_text() for t in ax.texts)])

    assert written("GATA1", None)[0].startswith("GATA1: R-hat 1.003")
    assert written("SPI1", None)[0].startswith("SPI1: not converged (R-hat 1.071)")
    above, everything = written("SPI1", "mine")
    assert above.startswith("mine")
    assert "SPI1: not converged (R-hat 1.071)" in everything


def test_names_and_counts():
    assert name_of(["a"], None, what="x", where="f") == "a"
    assert check_names("b", ["a", "b"], what="x", where="f") == ["b"]
    assert check_names(["b", "a", "b"], ["a", "b"], what="x", where="f") == ["b", "a"]
    with pytest.raises(PlotError, match="7 xs: .* and 2 more"):
        name_of("abcdefg", None, what="x", where="f")
    assert check_count(np.int64(3), "n", where="f", low=1) == 3
    for bad in (0, 1.5, "2", True, None):
        with pytest.raises(PlotError, match=r"f\(n=\)"):
            check_count(bad, "n", where="f", low=1)


def test_rows_of_one_condition(perturbed):
    condition = choose(perturbed, "GATA1", None, where="pl.x", reads=())
    rows = rows_of(perturbed, "table", where="pl.x", condition=condition)
    assert set(rows["perturbation"]) == {"GATA1"}
    assert len(rows) == 9
    assert rows_of(perturbed, "latent", where="pl.x") is perturbed.latent


@pytest.mark.parametrize(("plot", "n_panels"), [(pl.trace, 3), (pl.trajectory, 2)])
def test_panels_are_drawn_on_given_axes(plot, n_panels, perturbed, tmp_path):
    figure, given = pyplot.subplots(1, n_panels)
    drawn = plot(perturbed, "SPI1", ax=given)
    assert list(drawn) == list(given)
    assert "not converged" in given[0].get_title(loc="left")
    assert plot(perturbed, "GATA1", ax=list(given), return_fig=True, save=tmp_path / "x.png") is figure
    assert (tmp_path / "x.png").stat().st_size > 5000
    for bad in (given[0], given[:1], np.append(given, given)):
        with pytest.raises(PlotError, match=rf"give {n_panels}: plt.subplots"):
            plot(perturbed, "GATA1", ax=bad)
    with pytest.raises(PlotError, match="one Axes"):
        plot(perturbed, "GATA1", ax=[1] * n_panels)


@pytest.mark.parametrize("plot", ALL)
def test_files_and_figures_are_not_kept_open(plot, perturbed, tmp_path):
    named = () if plot is pl.similarity else ("GATA1",)
    plot(perturbed, *named, save=tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
    figure = plot(perturbed, *named, return_fig=True)
    assert figure.axes
    assert not pyplot.get_fignums()
    plot(perturbed, *named)
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize("plot", [pl.volcano, pl.top_genes, pl.similarity])
def test_one_panel_is_drawn_on_the_given_axes(plot, perturbed):
    own = pyplot.subplots()[1]
    named = () if plot is pl.similarity else ("GATA1",)
    assert plot(perturbed, *named, ax=own) is own


def test_new_panels_share_what_they_should():
    options = {"show": False, "save": None, "return_fig": True}
    axes = begin_panels(None, (3, 1), figsize=(2, 3), options=options, sharex=True)
    axes[0].set_xlim(4, 5)
    assert [ax.get_xlim() for ax in axes] == [(4, 5)] * 3


@pytest.mark.parametrize("lines", [(), ("one",), ("one", "", "two", "three")])
def test_the_lines_of_a_heading_do_not_meet(lines):
    ax = pyplot.figure(layout="constrained").subplots()
    heading(ax, "Title gjpq", lines, alarm=True)
    ax.figure.draw_without_rendering()
    title = ax._left_title  # matplotlib has no public name for a title at the left
    assert title.get_text() == "Title gjpq"
    assert title.get_window_extent().y1 <= ax.figure.bbox.y1
    assert [t.get_text() for t in ax.texts] == (["\n".join(x for x in lines if x)] if lines else [])
    for text in ax.texts:
        box = text.get_window_extent()
        assert box.y1 <= title.get_window_extent().y0
        assert box.y0 >= ax.bbox.y1
