from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot

from cellxpert import pl
from cellxpert.errors import PlotError


def _annotated(predicted, confidence):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(predicted))])
    obs["cellxpert_label"] = pd.Categorical(predicted)
    obs["cellxpert_confidence"] = np.asarray(confidence, dtype=np.float32)
    return AnnData(np.ones((len(predicted), 1), dtype=np.float32), obs=obs)


def _ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def _drawn(ax):
    """(reference, predicted) -> diameter and colour's number."""
    rows = dict(zip(ax.get_yticks(), (name.rpartition(" (")[0] for name in _ticks(ax.yaxis)), strict=True))
    columns = dict(zip(ax.get_xticks(), _ticks(ax.xaxis), strict=True))
    dots = ax.collections[0]
    assert dots.get_widths() == pytest.approx(dots.get_heights())
    return {
        (rows[y], columns[x]): (width, number)
        for (x, y), width, number in zip(dots.get_offsets(), dots.get_widths(), dots.get_array(), strict=True)
    }


def _shown(ax):
    """Reference labels from top to bottom."""
    return [name.rpartition(" (")[0] for _, name in sorted(zip(-ax.get_yticks(), _ticks(ax.yaxis), strict=True))]


references, predictions = st.sampled_from(["Bcell", "Tcell", "NKcell"]), st.sampled_from(["B", "CD4 T", "CD8 T"])


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(references, predictions, st.integers(0, 100)), min_size=1, max_size=30))
def test_areas_are_shares_of_the_reference_and_colours_mean_confidences(cells):
    reference, predicted = [c[0] for c in cells], [c[1] for c in cells]
    confidence = [c[2] / 100 for c in cells]
    ax = pl.label_dotplot(_annotated(predicted, confidence), reference, return_fig=True).axes[0]
    drawn = _drawn(ax)
    assert set(drawn) == set(zip(reference, predicted, strict=True))
    assert sorted(_ticks(ax.yaxis)) == sorted(f"{x} ({reference.count(x)})" for x in set(reference))
    assert _ticks(ax.xaxis) == sorted(set(predicted))
    for (true, pred), (width, number) in drawn.items():
        here = [s for t, p, s in zip(reference, predicted, confidence, strict=True) if (t, p) == (true, pred)]
        assert (width / 0.92) ** 2 == pytest.approx(len(here) / reference.count(true))
        assert number == pytest.approx(sum(here) / len(here))
    assert ax.collections[0].get_clim() == (0, 1)


def test_the_largest_dots_lie_along_the_diagonal():
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat(np.arange(8), 10))
    predicted = np.array([f"p{i}" for i in np.where(rng.random(80) < 0.8, kind, rng.integers(0, 8, 80))])
    names = np.array([f"r{i}" for i in rng.permutation(8)])  # sorted by name they are in no order
    ax = pl.label_dotplot(_annotated(predicted, np.full(80, 0.5)), names[kind])
    assert _shown(ax) == list(names)


def test_a_given_order_is_kept_and_may_leave_labels_out(adata):
    adata.obs["cellxpert_confidence"] = 0.5
    ax = pl.label_dotplot(adata, "kind", order=["NK", "T"], title="mine")
    assert _shown(ax) == ["NK", "T"]
    assert ax.get_title(loc="left") == "mine"
    assert (_drawn(ax)["T", "B"][0] / 0.92) ** 2 == pytest.approx(1 / 20)
    assert _ticks(ax.xaxis) == ["B", "NK", "T", "Unknown"]
    with pytest.raises(PlotError, match=r"(?s)\['typo'\] not among.*'T', 'B', 'NK'"):
        pl.label_dotplot(adata, "kind", order=["typo"])
    for bad in ([], ["T", "T"]):
        with pytest.raises(PlotError, match="no labels, or one of them twice"):
            pl.label_dotplot(adata, "kind", order=bad)


def test_cells_without_a_label_are_left_out_and_nothing_is_written(adata):
    adata.obs["cellxpert_confidence"] = np.linspace(0, 1, 60)
    adata.obs["kind"] = adata.obs["kind"].where(np.arange(60) > 4)
    adata.obs["cellxpert_label"] = adata.obs["cellxpert_label"].where(np.arange(60) != 59)
    before = adata.copy()
    ax = pl.label_dotplot(adata, "kind")
    assert set(_ticks(ax.yaxis)) == {"T (15)", "B (20)", "NK (19)"}
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.uns) == list(before.uns)


def test_another_confidence(adata):
    drawn = _drawn(pl.label_dotplot(adata, "kind", confidence="depth"))
    where = (adata.obs["kind"] == "NK") & (adata.obs["cellxpert_label"] == "NK")
    assert drawn["NK", "NK"][1] == pytest.approx(adata.obs["depth"][where].mean())
    assert _drawn(pl.label_dotplot(adata, "kind", confidence=np.full(60, 0.25)))["NK", "NK"][1] == 0.25


@pytest.mark.parametrize("figsize", [(4, 4), (12, 5)])
def test_the_legends_say_what_areas_and_colours_mean(adata, figsize):
    adata.obs["cellxpert_confidence"] = 0.5
    figure, ax = pyplot.subplots(figsize=figsize)
    pl.label_dotplot(adata, "kind", ax=ax)
    figure.draw_without_rendering()
    legend = ax.collections[-1]
    words = {t.get_position()[1]: t.get_text() for t in ax.texts if t.get_text().endswith(" %")}
    shares = [float(words[y].removesuffix(" %")) / 100 for _, y in legend.get_offsets()]
    assert (legend.get_widths() / 0.92) ** 2 == pytest.approx(shares)
    assert legend.get_offsets()[:, 0].min() > len(_ticks(ax.xaxis)) - 0.5  # beside the matrix
    assert ax.get_aspect() == 1  # circles
    (scale,) = ax.child_axes
    assert scale.get_ylim() == (0, 1)
    below = [t.get_window_extent().y1 for t in ax.get_xticklabels()]
    assert max(below) <= ax.transData.transform((0, -0.5))[1]  # names touch the matrix, not the foot of the legends
    assert max(below) > ax.transData.transform((0, -0.5))[1] - 20


@pytest.mark.parametrize("n", [2, 40])
def test_names_are_neither_cut_off_nor_written_over(n):
    names = [f"CD{i}+/CD45RA+ quite a long name" for i in range(n)]
    figure = pl.label_dotplot(_annotated(names, np.ones(n)), names, return_fig=True)
    for _ in range(2):
        figure.draw_without_rendering()
    ax = figure.axes[0]
    boxes = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    everything = ax.get_tightbbox()
    assert everything.x0 >= 0
    assert everything.x1 <= figure.bbox.x1
    assert everything.y0 >= -1
    assert everything.y1 <= figure.bbox.y1 + 1
    words = [t.get_window_extent() for t in ax.texts]
    words += [ax.child_axes[0].get_window_extent(), *boxes]
    assert not any(a.overlaps(b) for i, a in enumerate(words) for b in words[:i])


def test_what_cannot_be_drawn(adata):
    with pytest.raises(PlotError, match=r"obs\['cellxpert_confidence'\]"):
        pl.label_dotplot(adata, "kind")
    with pytest.raises(PlotError, match="one number per cell"):
        pl.label_dotplot(adata, "kind", confidence="kind")
    with pytest.raises(PlotError, match="missing values"):
        pl.label_dotplot(adata, "kind", confidence=np.full(60, np.nan))
    with pytest.raises(PlotError, match="no cell with both"):
        pl.label_dotplot(adata, [None] * 60, confidence="depth")
    with pytest.raises(PlotError, match="3 values for 60"):
        pl.label_dotplot(adata, ["a"] * 3, confidence="depth")
    with pytest.raises(PlotError, match="ndarray"):
        pl.label_dotplot(np.ones((3, 2)), ["a"] * 3)
