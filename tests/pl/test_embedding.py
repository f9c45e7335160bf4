from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba

from cellxpert import pl
from cellxpert.errors import PlotError
from cellxpert.pl.colors import MISSING_COLOR


def _drawn(ax):
    """Position -> colour of every point."""
    found = {}
    for points in ax.collections:
        colors = points.get_facecolors()
        for (x, y), color in zip(
            points.get_offsets(), np.broadcast_to(colors, (len(points.get_offsets()), 4)), strict=True
        ):
            found[float(x), float(y)] = to_hex(color).upper()
    return found


def _legend(ax):
    legend = ax.get_legend()
    return {
        t.get_text(): to_hex(h.get_color()).upper() for t, h in zip(legend.texts, legend.legend_handles, strict=True)
    }


def test_every_cell_is_drawn_in_the_colour_of_its_label(adata):
    before = adata.copy()
    ax = pl.embedding(adata, "kind")
    colors = pl.label_colors(adata.obs["kind"])
    drawn = _drawn(ax)
    assert len(drawn) == 60
    for point, label in zip(adata.obsm["X_umap"], adata.obs["kind"], strict=True):
        assert drawn[float(point[0]), float(point[1])] == colors[label]
    assert _legend(ax) == colors
    assert list(_legend(ax)) == ["T", "B", "NK"]
    assert ax.get_title(loc="left") == "kind"
    assert ax.get_xlabel() == "UMAP 1"
    assert dict(adata.uns) == dict(before.uns)
    assert list(adata.obs.columns) == list(before.obs.columns)


def test_two_columns_share_the_colours_of_their_labels(adata):
    first, second = _legend(pl.embedding(adata, "kind")), _legend(pl.embedding(adata, "cellxpert_label"))
    assert first == {label: color for label, color in second.items() if label != "Unknown"}
    assert second["Unknown"] == MISSING_COLOR


def test_stored_colours_are_used_if_there_is_one_per_category(adata):
    adata.uns["kind_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    assert _legend(pl.embedding(adata, "kind")) == {"T": "#FF0000", "B": "#00FF00", "NK": "#0000FF"}
    given = {"T": "#123456"}
    assert _legend(pl.embedding(adata, "kind", palette=given))["T"] == "#123456"
    adata.uns["kind_colors"] = ["#ff0000"]
    assert _legend(pl.embedding(adata, "kind")) == pl.label_colors(adata.obs["kind"])


def test_missing_labels_are_grey_and_cells_without_place_left_out(adata):
    adata.obs["kind"] = adata.obs["kind"].where(np.arange(60) > 4)
    adata.obsm["X_umap"][10] = np.nan
    ax = pl.embedding(adata, "kind")
    assert len(_drawn(ax)) == 59
    assert sum(color == MISSING_COLOR for color in _drawn(ax).values()) == 5
    adata.obsm["X_umap"][:] = np.nan
    with pytest.raises(PlotError, match="no finite"):
        pl.embedding(adata, "kind")


def test_numbers_get_a_scale(adata):
    ax = pl.embedding(adata, "depth", title="how deep")
    points = ax.collections[0]
    assert points.get_clim() == (adata.obs["depth"].min(), adata.obs["depth"].max())
    assert sorted(points.get_array()) == sorted(adata.obs["depth"])
    assert len(ax.figure.axes) == 2
    assert ax.get_title(loc="left") == "how deep"
    assert len(pl.embedding(adata, "depth", legend=False).figure.axes) == 1
    pl.embedding(adata, np.full(60, np.nan))
    pl.embedding(adata, "depth", emphasis="held_out")


def test_emphasis_draws_the_others_pale_beneath(adata):
    ax = pl.embedding(adata, "kind", emphasis="held_out")
    weak, strong = ax.collections
    assert len(weak.get_offsets()) == len(strong.get_offsets()) == 30
    held = {tuple(p) for p in adata.obsm["X_umap"][adata.obs["held_out"]]}
    assert {tuple(p) for p in strong.get_offsets()} == held
    assert weak.get_alpha() < 0.5
    assert strong.get_alpha() is None
    assert weak.zorder < strong.zorder
    assert weak.get_sizes()[0] < strong.get_sizes()[0]


def test_points_are_in_mixed_and_repeatable_order(adata):
    first, again = (pl.embedding(adata, "kind").collections[0].get_facecolors() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    red = to_rgba(pl.label_colors(adata.obs["kind"])["T"])
    place = np.flatnonzero((np.abs(first - red) < 1e-6).all(axis=1))
    assert len(place) == 20
    assert place.min() < 10 < 50 < place.max()  # the type comes first and last


def test_arrays_without_colour_and_other_bases():
    ax = pl.embedding(np.random.default_rng(0).normal(size=(30, 5)), basis="spatial")
    assert len(ax.collections[0].get_offsets()) == 30
    assert ax.get_legend() is None
    assert ax.get_aspect() == 1  # lengths mean something in a tissue
    assert ax.get_xlabel() == "spatial 1"
    many = pl.embedding(np.random.default_rng(0).normal(size=(50, 2)), pd.Series([f"t{i}" for i in range(50)]))
    assert len(many.get_legend().texts) == 50
    assert many.get_legend()._ncols == 3
