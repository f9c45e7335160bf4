from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from mudata import MuData

from cellxpert import pl
from cellxpert.errors import PlotError
from cellxpert.pl.colors import MISSING_COLOR


@pytest.fixture
def tissue_data(adata):
    """The 60 cells of three types in three sections; 20, 28 and 12 cells in them."""
    rng = np.random.default_rng(1)
    adata.obsm["spatial"] = rng.random((60, 3)) * [400, 100, 10]
    section = np.repeat(["s2", "s1", "s3"], [20, 28, 12])
    adata.obs["section"] = pd.Categorical(section, categories=["s1", "s2", "s3", "unused"])
    return adata


def _drawn(ax):
    """Position -> colour of every point."""
    return {
        tuple(map(float, place)): to_hex(color).upper()
        for points in ax.collections
        for place, color in zip(points.get_offsets(), points.get_facecolors(), strict=True)
    }


def _expected(places, labels, colors):
    return {
        tuple(map(float, place)): colors.get(label, MISSING_COLOR)
        for place, label in zip(places[:, :2], labels, strict=True)
    }


def test_a_label_has_one_colour_in_the_embedding_the_tissue_and_the_legend(tissue_data):
    before = tissue_data.copy()
    axes = pl.tissue(tissue_data, "kind")
    assert axes.shape == (1, 2)
    left, right = axes[0]
    labels, colors = tissue_data.obs["kind"], pl.label_colors(tissue_data.obs["kind"])
    assert _drawn(left) == _expected(tissue_data.obsm["X_umap"], labels, colors)
    assert _drawn(right) == _expected(tissue_data.obsm["spatial"], labels, colors)
    (legend,) = left.figure.legends
    shown = {
        t.get_text(): to_hex(h.get_color()).upper() for t, h in zip(legend.texts, legend.legend_handles, strict=True)
    }
    assert shown == colors
    assert list(shown) == ["T", "B", "NK"]
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("kind", "tissue")
    assert (left.get_xlabel(), right.get_xlabel()) == ("UMAP 1", "spatial 1")
    assert right.get_aspect() == 1
    assert dict(tissue_data.uns) == dict(before.uns)
    assert tissue_data.obs.equals(before.obs)
    assert list(tissue_data.obsm) == list(before.obsm)


def test_several_columns_are_rows_that_share_colours(tissue_data):
    columns = ["kind", "cellxpert_label"]
    axes = pl.tissue(tissue_data, columns, title="60 cells")
    assert axes.shape == (2, 2)
    colors = pl.label_colors(*(tissue_data.obs[c] for c in columns))
    for row, name in zip(axes, columns, strict=True):
        assert row[0].get_title(loc="left") == name
        for ax, key in zip(row, ("X_umap", "spatial"), strict=True):
            assert _drawn(ax) == _expected(tissue_data.obsm[key], tissue_data.obs[name], colors)
    figure = axes[0, 0].figure
    assert [t.get_text() for t in figure.legends[0].texts] == ["B", "NK", "T", "Unknown"]
    assert len(figure.legends) == 1
    assert figure.get_suptitle() == "60 cells"


def test_sections_have_a_panel_each_at_the_same_scale(tissue_data):
    axes = pl.tissue(tissue_data, "kind", library_key="section")
    assert axes.shape == (1, 4)
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["kind", "section s1", "section s2", "section s3"]
    colors = pl.label_colors(tissue_data.obs["kind"])
    widths = set()
    for ax, name in zip(axes[0, 1:], ("s1", "s2", "s3"), strict=True):
        cells = (tissue_data.obs["section"] == name).to_numpy()
        places = tissue_data.obsm["spatial"][cells]
        assert _drawn(ax) == _expected(places, tissue_data.obs["kind"][cells], colors)
        assert ax.get_aspect() == 1
        (x_low, x_high), (y_low, y_high) = ax.get_xlim(), ax.get_ylim()
        assert (places[:, :2].min(axis=0) > [x_low, y_low]).all()
        assert (places[:, :2].max(axis=0) < [x_high, y_high]).all()
        widths.add((round(x_high - x_low, 6), round(y_high - y_low, 6)))
    assert len(widths) == 1
    assert len(_drawn(axes[0, 0])) == 60
    assert not axes[0, 0].figure.get_supxlabel()


def test_more_than_six_sections_are_cut_and_it_is_said(tissue_data):
    tissue_data.obs["many"] = np.arange(60) % 8
    axes = pl.tissue(tissue_data, "kind", library_key="many")
    assert axes.shape == (1, 7)
    assert [ax.get_title(loc="left") for ax in axes[0, 1:]] == [f"many {i}" for i in range(6)]
    assert axes[0, 0].figure.get_supxlabel() == "6 of 8 sections of many are drawn"


def test_missing_labels_are_grey_and_missing_positions_are_not_drawn(tissue_data):
    tissue_data.obs.loc["c0", "kind"] = np.nan
    tissue_data.obsm["spatial"][1] = np.nan
    tissue_data.obs.loc["c2", "section"] = np.nan
    left, *right = pl.tissue(tissue_data, "kind", library_key="section")[0]
    drawn = {place: color for ax in right for place, color in _drawn(ax).items()}
    assert len(_drawn(left)) == 60
    assert len(drawn) == 58
    assert drawn[tuple(map(float, tissue_data.obsm["spatial"][0, :2]))] == MISSING_COLOR


def test_palette_size_and_other_names(tissue_data):
    tissue_data.obsm["X_pca"], tissue_data.obsm["place"] = tissue_data.obsm["X_umap"], tissue_data.obsm["spatial"]
    axes = pl.tissue(tissue_data, "kind", basis="pca", spatial_key="place", palette={"T": "#123456"}, size=3)
    assert axes[0, 0].get_xlabel() == "PC 1"
    assert axes[0, 1].get_xlabel() == "place 1"
    assert axes[0, 1].get_aspect() == 1
    assert all("#123456" in _drawn(ax).values() for ax in axes[0])
    assert all(set(ax.collections[0].get_sizes()) == {3} for ax in axes[0])


def test_cells_in_one_place_and_integer_labels(tissue_data):
    tissue_data.obsm["spatial"] = np.ones((60, 2))
    tissue_data.obs["cluster"] = np.arange(60) % 3
    axes = pl.tissue(tissue_data, "cluster")
    axes[0, 0].figure.canvas.draw()
    assert [t.get_text() for t in axes[0, 0].figure.legends[0].texts] == ["0", "1", "2"]


def test_modalities_of_a_mudata(tissue_data):
    """Positions and columns are the first modality's that has them; of the cells that it lacks nothing is drawn."""
    protein = tissue_data[20:, :0].copy()
    for key in list(protein.obsm):
        del protein.obsm[key]
    mdata = MuData({"rna": tissue_data[:40].copy(), "protein": protein})
    mdata.obs["kind"] = tissue_data.obs["kind"].reindex(mdata.obs_names)
    colors = pl.label_colors(tissue_data.obs["kind"])
    for ax, key in zip(pl.tissue(mdata, "kind")[0], ("X_umap", "spatial"), strict=True):
        assert _drawn(ax) == _expected(tissue_data.obsm[key][:40], tissue_data.obs["kind"][:40], colors)


def test_file_and_figure(tissue_data, tmp_path):
    figure = pl.tissue(tissue_data, ["kind"], save=tmp_path / "tissue.png", return_fig=True)
    assert (tmp_path / "tissue.png").stat().st_size > 10_000
    assert len(figure.axes) == 2
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color": "nothing"}, r"obs\['nothing'\]"),
        ({"color": "depth"}, "numbers, not labels"),
        ({"color": []}, "names of columns"),
        ({"color": [1, 2]}, "names of columns"),
        ({"basis": "X_tsne"}, "X_tsne"),
        ({"spatial_key": "place"}, "place.*(.|\n)*spatial_key="),
        ({"library_key": "nothing"}, r"obs\['nothing'\]"),
        ({"library_key": "none"}, "no cell with a section"),
        ({"spatial_key": "nowhere"}, "no finite coordinates"),
        ({"basis": "nowhere"}, "no finite coordinates"),
    ],
)
def test_what_is_missing_is_named(tissue_data, arguments, message):
    tissue_data.obs["none"] = None
    tissue_data.obsm["nowhere"] = np.full((60, 2), np.nan)
    with pytest.raises(PlotError, match=message):
        pl.tissue(tissue_data, **({"color": "kind"} | arguments))
    assert not pyplot.get_fignums()


def test_a_plain_array_is_refused(tissue_data):
    with pytest.raises(PlotError, match="no object"):
        pl.tissue(tissue_data.obsm["spatial"], "kind")
