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


def test_bad_labels():
    with pytest.raises(PlotError, match="2 and 1"):
        pl.confusion_matrix(["a", "b"], ["a"])
    with pytest.raises(PlotError, match="0 and 0"):
        pl.confusion_matrix([], [])
    with pytest.raises(PlotError, match="missing"):
        pl.confusion_matrix(["a", None], ["a", "a"])
    with pytest.raises(PlotError, match=r"\['b'\] not listed"):
        pl.confusion_matrix(["a"], ["b"], labels=["a"])
