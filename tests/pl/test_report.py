from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex

from cellxpert import pl
from cellxpert.errors import PlotError


def _points(collection):
    return {tuple(p) for p in collection.get_offsets()}


def test_three_panels_show_what_they_say(adata):
    before = adata.copy()
    axes = pl.annotation_report(adata, "kind", held_out="held_out")
    true_ax, pred_ax, matrix_ax = axes
    place, held = adata.obsm["X_umap"], adata.obs["held_out"].to_numpy()
    assert len(_points(true_ax.collections[0])) == 60
    weak, strong, *crosses = pred_ax.collections
    assert _points(strong) == {tuple(p) for p in place[held]}
    assert _points(weak) == {tuple(p) for p in place[~held]}
    # Cells 0, 1 and 25 are wrong; of these only cell 0 is held out.
    assert all(_points(cross) == {tuple(place[0])} for cross in crosses)
    assert len(crosses) == 2
    numbers = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in matrix_ax.texts}
    assert sum(numbers.values()) == 30
    assert [t.get_text() for t in matrix_ax.get_yticklabels()] == ["B (10)", "NK (10)", "T (10)"]
    assert numbers == {(0, 0): 10, (1, 1): 10, (2, 2): 9, (2, 0): 1}
    assert "30 held-out" in pred_ax.get_title(loc="left")
    assert "accuracy 0.967" in matrix_ax.get_title(loc="right")
    assert list(adata.uns) == list(before.uns)
    assert adata.obs.equals(before.obs)


def test_a_label_has_one_colour_in_both_panels_and_the_legend(adata):
    true_ax, pred_ax, _ = pl.annotation_report(adata, "kind", held_out="held_out")
    colors = pl.label_colors(adata.obs["kind"], adata.obs["cellxpert_label"])
    (legend,) = true_ax.get_figure().legends
    shown = [t.get_text() for t in legend.texts]
    assert shown == ["B", "NK", "T", "Unknown", "wrong label"]
    for text, handle in zip(shown[:-1], legend.legend_handles[:-1], strict=True):
        assert to_hex(handle.get_color()).upper() == colors[text]
    for ax, column in ((true_ax, "kind"), (pred_ax, "cellxpert_label")):
        for points in ax.collections[: 2 if ax is pred_ax else 1]:
            for (x, _), color in zip(points.get_offsets(), points.get_facecolors(), strict=True):
                cell = int(np.flatnonzero(adata.obsm["X_umap"][:, 0] == x)[0])
                assert to_hex(color).upper() == colors[adata.obs[column].iloc[cell]]


def test_scores_title_file_and_figure(adata, tmp_path):
    scores = {"accuracy": 0.5, "macro_f1": 0.25}
    figure = pl.annotation_report(
        adata, "kind", scores=scores, title="PBMC", save=tmp_path / "report.png", return_fig=True
    )
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert figure.get_suptitle() == "PBMC"
    assert "All cells: accuracy 0.500, macro F1 0.250" in [ax.get_title(loc="right") for ax in figure.axes]
    assert not pyplot.get_fignums()


def test_nothing_overlaps_or_is_cut_off(adata):
    long = {
        "T": "CD8+/CD45RA+ Naive Cytotoxic",
        "B": "CD4+/CD45RA+/CD25- Naive T",
        "NK": "CD56+ NK",
        "Unknown": "Unknown",
    }
    true, pred = (adata.obs[c].astype(str).map(long) for c in ("kind", "cellxpert_label"))
    scores = {"accuracy": 0.871, "macro_f1": 0.737}
    figure = pl.annotation_report(adata, true, pred, held_out="held_out", scores=scores, return_fig=True)
    figure.draw_without_rendering()
    panels = [ax.get_tightbbox() for ax in figure.axes]
    legend = figure.subfigs[0].legends[0].get_window_extent()
    boxes = [*panels, legend]
    for i, first in enumerate(boxes):
        assert first.x0 >= -1
        assert first.x1 <= figure.bbox.x1 + 1
        for second in boxes[i + 1 :]:
            assert not (
                first.x0 < second.x1 - 2
                and second.x0 < first.x1 - 2
                and first.y0 < second.y1 - 2
                and second.y0 < first.y1 - 2
            )


def test_cells_without_labels_are_not_judged(adata):
    adata.obs["kind"] = adata.obs["kind"].where(adata.obs["kind"] != "NK")
    *_, matrix_ax = pl.annotation_report(adata, "kind")
    assert sum(int(t.get_text()) for t in matrix_ax.texts) == 40
    with pytest.raises(PlotError, match="no held-out cell"):
        pl.annotation_report(adata, "kind", held_out=np.zeros(60, dtype=bool))
    with pytest.raises(PlotError, match="typo"):
        pl.annotation_report(adata, "typo")
