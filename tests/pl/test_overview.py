from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex

from cellxpert import pl
from cellxpert.datasets import synthetic
from cellxpert.errors import PlotError

REASONS = ["labelled", "low_confidence", "out_of_distribution", "few_genes"]


@pytest.fixture
def annotated(adata):
    rng = np.random.default_rng(0)
    adata.obs["cellxpert_confidence"] = rng.uniform(0.3, 0.9, 60).astype(np.float32)
    reason = np.full(60, "labelled", dtype=object)
    reason[:6] = "low_confidence"
    reason[6:10] = "out_of_distribution"
    adata.obs["cellxpert_reason"] = pd.Categorical(reason, categories=REASONS)
    return adata


def _drawn(ax):
    """Position -> colour of every point."""
    ax.figure.draw_without_rendering()
    found = {}
    for points in ax.collections:
        colors = np.broadcast_to(points.get_facecolors(), (len(points.get_offsets()), 4))
        for (x, y), color in zip(points.get_offsets(), colors, strict=True):
            found[float(x), float(y)] = to_hex(color)
    return found


def _legend(ax):
    handles, texts = ax.get_legend().legend_handles, ax.get_legend().texts
    return {t.get_text(): to_hex(h.get_color()) for t, h in zip(texts, handles, strict=True)}


def test_every_cell_is_in_three_panels_in_the_colours_of_the_legends(annotated):
    before = annotated.copy()
    label_ax, confidence_ax, reason_ax = pl.annotation_overview(annotated)
    points = [tuple(map(float, p)) for p in annotated.obsm["X_umap"]]
    labels = pl.label_colors(annotated.obs["cellxpert_label"])
    assert _drawn(label_ax) == {
        p: labels[x].lower() for p, x in zip(points, annotated.obs["cellxpert_label"], strict=True)
    }
    assert _legend(label_ax) == {x: c.lower() for x, c in labels.items()}
    (numbers,) = confidence_ax.collections
    shown = dict(zip(map(tuple, numbers.get_offsets()), numbers.get_array(), strict=True))
    assert shown == dict(zip(points, annotated.obs["cellxpert_confidence"].astype(float), strict=True))
    assert numbers.get_clim() == (0, 1)
    reasons = _legend(reason_ax)
    assert list(reasons) == ["labelled (50)", "low confidence (6)", "out of distribution (4)"]
    assert len(set(reasons.values())) == 3
    by_reason = dict(zip(REASONS, reasons.values(), strict=False))
    assert _drawn(reason_ax) == {
        p: by_reason[x] for p, x in zip(points, annotated.obs["cellxpert_reason"], strict=True)
    }
    assert [ax.get_title(loc="left") for ax in (label_ax, confidence_ax, reason_ax)] == [
        "label",
        "confidence",
        "reason",
    ]
    assert list(annotated.uns) == list(before.uns)
    assert list(annotated.obsm) == list(before.obsm)
    pd.testing.assert_frame_equal(annotated.obs, before.obs)


def test_refused_cells_stand_out(annotated):
    weak, strong = pl.annotation_overview(annotated)[2].collections
    assert (len(weak.get_offsets()), len(strong.get_offsets())) == (50, 10)
    assert weak.get_sizes()[0] < strong.get_sizes()[0]
    annotated.obs["cellxpert_reason"] = pd.Categorical(["labelled"] * 60, categories=REASONS)
    (points,) = pl.annotation_overview(annotated)[2].collections
    assert len(points.get_offsets()) == 60


def test_a_coarser_label_is_a_label(annotated):
    reason = annotated.obs["cellxpert_reason"].astype(str)
    reason.iloc[6:10] = "coarser"
    annotated.obs["cellxpert_reason"] = reason
    weak, strong = pl.annotation_overview(annotated)[2].collections
    assert (len(weak.get_offsets()), len(strong.get_offsets())) == (54, 6)


def test_a_reason_keeps_its_colour_whichever_others_occur(annotated):
    before = _legend(pl.annotation_overview(annotated)[2])["low confidence (6)"]
    reason = annotated.obs["cellxpert_reason"].astype(str).replace("out_of_distribution", "another reason")
    annotated.obs["cellxpert_reason"] = reason
    after = _legend(pl.annotation_overview(annotated)[2])
    assert list(after) == ["labelled (50)", "low confidence (6)", "another reason (4)"]
    assert after["low confidence (6)"] == before
    assert len(set(after.values())) == 3


def test_names_follow_from_the_key_and_title_palette_and_basis_are_the_caller_s(annotated):
    annotated.obs = annotated.obs.rename(columns=lambda name: name.replace("cellxpert_", "mine_"))
    annotated.obsm["X_pca"] = annotated.obsm.pop("X_umap")
    palette = {"T": "#123456"}
    figure = pl.annotation_overview(
        annotated, key="mine_label", basis="pca", palette=palette, size=7.0, title="all of it", return_fig=True
    )
    assert _legend(figure.axes[0])["T"] == "#123456"
    assert figure.axes[0].get_xlabel() == "PC 1"
    assert figure.axes[0].collections[0].get_sizes() == [7.0]
    assert figure.get_suptitle() == "all of it"
    assert not pyplot.get_fignums()


def test_cells_that_a_modality_lacks_are_left_out():
    mdata = synthetic(n_cells=40, n_genes=20, n_peaks=5, n_proteins=3, missing={"rna": 0.5})
    rna = mdata["rna"]
    rna.obsm["X_umap"] = np.arange(rna.n_obs * 2, dtype=float).reshape(-1, 2)
    rna.obs["cellxpert_label"] = "T"
    rna.obs["cellxpert_confidence"] = 0.5
    rna.obs["cellxpert_reason"] = "labelled"
    for ax in pl.annotation_overview(mdata):
        assert sum(len(c.get_offsets()) for c in ax.collections) == rna.n_obs < 40


def test_forty_labels_with_long_names_are_neither_cut_off_nor_over_a_panel(annotated):
    annotated.obs["cellxpert_label"] = pd.Categorical([f"CD{i % 40}+/CD45RA+ quite a long name" for i in range(60)])
    figure = pl.annotation_overview(annotated, return_fig=True)
    for _ in range(2):
        figure.draw_without_rendering()
    boxes = [ax.get_legend().get_window_extent() for ax in (figure.axes[0], figure.axes[2])]
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 and b.y0 >= 0 for b in boxes)
    assert not any(box.overlaps(ax.get_window_extent()) for box in boxes for ax in figure.axes)
    assert len(figure.axes[0].get_legend().texts) == 40


def test_what_is_missing_is_told(annotated):
    with pytest.raises(PlotError, match=r"(?s)obsm\['X_umap2'\]"):
        pl.annotation_overview(annotated, basis="X_umap2")
    for name in ("cellxpert_label", "cellxpert_confidence", "cellxpert_reason"):
        with pytest.raises(PlotError, match=rf"(?s)obs\['{name}'\].*model\.annotate"):
            _without(annotated, name)
    with pytest.raises(PlotError, match="ndarray"):
        pl.annotation_overview(annotated.obsm["X_umap"])


def _without(adata, name):
    found = adata.copy()
    del found.obs[name]
    return pl.annotation_overview(found)
