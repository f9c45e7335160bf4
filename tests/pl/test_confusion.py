from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot

from cellxpert import pl
from cellxpert.errors import PlotError

labels = st.sampled_from(["B", "T", "NK"])


def _ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(labels, st.one_of(labels, st.just("Unknown"))), min_size=1, max_size=30))
def test_colours_are_shares_of_rows_and_numbers_are_counts(cells):
    true, pred = [c[0] for c in cells], [c[1] for c in cells]
    ax = pl.confusion_matrix(true, pred, return_fig=True).axes[0]
    columns = _ticks(ax.xaxis)
    rows = [text.rpartition(" (")[0] for text in _ticks(ax.yaxis)]
    assert columns == sorted(set(true) | set(pred))
    assert rows == sorted(set(true))
    assert _ticks(ax.yaxis) == [f"{row} ({true.count(row)})" for row in rows]
    shares = ax.images[0].get_array()
    written = {tuple(map(int, t.get_position())): int(t.get_text()) for t in ax.texts}
    for i, t in enumerate(rows):
        for j, p in enumerate(columns):
            assert shares[i, j] == pytest.approx(cells.count((t, p)) / true.count(t))
            assert written.get((j, i), 0) == cells.count((t, p))
    assert ax.images[0].get_clim() == (0, 1)


def test_order_of_labels():
    true = pd.Categorical(["b", "a", "c"], categories=["c", "b", "a"])
    assert _ticks(pl.confusion_matrix(true, true).xaxis) == ["c", "b", "a"]
    ax = pl.confusion_matrix(["a", "b"], ["b", "b"], labels=["b", "absent", "a"], title="mine", colorbar=False)
    assert _ticks(ax.xaxis) == ["b", "a"]
    assert ax.get_title(loc="left") == "mine"
    assert len(ax.figure.axes) == 1


def test_many_labels_get_no_numbers():
    true = np.repeat([f"t{i}" for i in range(40)], 2)
    ax = pl.confusion_matrix(true, true)
    assert not ax.texts
    assert len(_ticks(ax.xaxis)) == 40


def test_labels_do_not_overlap():
    names = [f"CD{i}+/CD45RA+ quite a long name" for i in range(12)]
    figure = pl.confusion_matrix(names, names, return_fig=True)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    boxes = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
    assert min(box.x0 for box in boxes) >= 0  # nothing is cut off
    pyplot.close("all")


GROUPS = {"CD4": "T cell", "CD8": "T cell", "B": "B cell", "absent": "nothing"}


def _brackets(ax):
    """Branch -> columns beneath its bracket; the lines that part columns and rows."""
    ax.figure.draw_without_rendering()
    names = [t.get_text() for t in ax.child_axes[0].get_xticklabels()]
    flat = [line.get_xdata() for line in ax.lines if line.get_transform() not in (ax.transData,) and _is_bracket(line)]
    columns = _ticks(ax.xaxis)
    below = {n: [c for i, c in enumerate(columns) if x[0] < i < x[1]] for n, x in zip(names, flat, strict=True)}
    parted = [float(x.get_xdata()[0]) for x in ax.lines if not _is_bracket(x) and len(set(x.get_xdata())) == 1]
    return below, parted, [float(x.get_ydata()[0]) for x in ax.lines if len(set(x.get_ydata())) == 1][: -len(names)]


def _is_bracket(line):
    return not line.get_clip_on()


def test_branches_are_brought_together_named_and_parted():
    true = ["CD4", "B", "CD8", "NK", "B", "CD4"]
    pred = ["CD8", "B", "CD8", "NK", "mono", "CD4"]
    ax = pl.confusion_matrix(true, pred, groups=GROUPS, title="mine")
    assert _ticks(ax.xaxis) == ["B", "CD4", "CD8", "NK", "mono"]  # the last two have no branch
    assert _ticks(ax.yaxis) == ["B (2)", "CD4 (2)", "CD8 (1)", "NK (1)"]
    assert np.asarray(ax.images[0].get_array())[1] == pytest.approx([0, 0.5, 0.5, 0, 0])
    below, columns, rows = _brackets(ax)
    assert below == {"B cell": ["B"], "T cell": ["CD4", "CD8"]}
    assert columns == [0.5, 2.5]
    assert rows == [0.5, 2.5]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 4.5), (3.5, -0.5))


def test_branches_keep_the_given_order_of_labels():
    labels = ["CD8", "NK", "B", "CD4"]
    ax = pl.confusion_matrix(labels, labels, labels=labels, groups=GROUPS)
    assert _ticks(ax.xaxis) == ["CD8", "CD4", "B", "NK"]
    assert _brackets(ax)[0] == {"T cell": ["CD8", "CD4"], "B cell": ["B"]}
    plain = pl.confusion_matrix(labels, labels, groups={})
    assert not plain.lines
    assert not plain.child_axes
    none = pl.confusion_matrix(labels, labels, groups={"absent": "nothing"})
    assert _ticks(none.xaxis) == sorted(labels)


def test_names_of_branches_overlap_neither_one_another_nor_the_title():
    names = [f"type {i}" for i in range(12)]
    groups = {name: f"a branch with a long name {i // 2}" for i, name in enumerate(names)}
    figure = pl.confusion_matrix(names, names, groups=groups, title="mine", return_fig=True)
    for _ in range(2):
        figure.draw_without_rendering()
    ax = figure.axes[0]
    written = ax.child_axes[0].get_xticklabels()
    assert {t.get_rotation() for t in written} == {45.0}
    title = next(t for t in ax.get_children() if getattr(t, "get_text", str)() == "mine").get_window_extent()
    assert title.y0 >= max(t.get_window_extent().y1 for t in written) - 1
    assert title.y1 <= figure.bbox.y1 + 1
    flat = pl.confusion_matrix(names, names, groups=dict.fromkeys(names, "all"))
    assert {t.get_rotation() for t in flat.child_axes[0].get_xticklabels()} == {0.0}


def test_bad_labels():
    with pytest.raises(PlotError, match="2 and 1"):
        pl.confusion_matrix(["a", "b"], ["a"])
    with pytest.raises(PlotError, match="0 and 0"):
        pl.confusion_matrix([], [])
    with pytest.raises(PlotError, match="missing"):
        pl.confusion_matrix(["a", None], ["a", "a"])
    with pytest.raises(PlotError, match=r"\['b'\] not listed"):
        pl.confusion_matrix(["a"], ["b"], labels=["a"])
