from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from mudata import MuData

from cellxpert import metrics, pl
from cellxpert.errors import PlotError


def _symmetric(n, seed):
    scores = np.random.default_rng(seed).normal(0, 5, size=(n, n))
    return scores + scores.T


@pytest.fixture
def scored(adata):
    """z-scores of ``kind`` (T, B, NK) and ``cellxpert_label`` (B, NK, T, Unknown)."""
    adata.uns["kind_nhood_enrichment"] = {"zscore": _symmetric(3, 0), "count": np.ones((3, 3))}
    adata.uns["cellxpert_label_nhood_enrichment"] = {"zscore": _symmetric(4, 1), "count": np.ones((4, 4))}
    return adata


def _shown(ax):
    (image,) = ax.images
    return np.ma.filled(image.get_array().astype(float), np.nan)


def _names(labels):
    return [t.get_text() for t in labels]


def test_one_map_has_the_z_scores_in_the_order_of_the_categories(scored):
    before = scored.copy()
    ax = pl.neighborhood_enrichment(scored, "kind")
    np.testing.assert_array_equal(_shown(ax), scored.uns["kind_nhood_enrichment"]["zscore"])
    assert _names(ax.get_yticklabels()) == _names(ax.get_xticklabels()) == ["T", "B", "NK"]
    assert ax.get_title(loc="left") == "kind"
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax
    assert list(scored.uns) == list(before.uns)
    np.testing.assert_array_equal(
        scored.uns["kind_nhood_enrichment"]["zscore"], before.uns["kind_nhood_enrichment"]["zscore"]
    )
    assert scored.obs.equals(before.obs)


def test_two_maps_share_labels_order_and_colours(scored):
    left, right = pl.neighborhood_enrichment(scored, ["kind", "cellxpert_label"], title="Neighbours")
    truth, predicted = (scored.uns[f"{k}_nhood_enrichment"]["zscore"] for k in ("kind", "cellxpert_label"))
    assert _names(left.get_yticklabels()) == ["T", "B", "NK", "Unknown"]
    assert _names(left.get_xticklabels()) == _names(right.get_xticklabels()) == ["T", "B", "NK", "Unknown"]
    np.testing.assert_array_equal(_shown(left)[:3, :3], truth)
    assert np.isnan(_shown(left)[3]).all()
    assert np.isnan(_shown(left)[:, 3]).all()
    place = [2, 0, 1, 3]  # T, B, NK, Unknown among the categories of the prediction
    np.testing.assert_array_equal(_shown(right), predicted[np.ix_(place, place)])
    norms = [ax.images[0].norm for ax in (left, right)]
    assert norms[0].vmax == norms[1].vmax == -norms[0].vmin == -norms[1].vmin
    tables = [
        pd.DataFrame(z, index=names, columns=names)
        for z, names in ((truth, ["T", "B", "NK"]), (predicted, ["B", "NK", "T", "Unknown"]))
    ]
    assert left.get_title(loc="left") == "kind"
    expected = f"cellxpert_label (correlation {metrics.neighborhood_correlation(*tables):.3f})"
    assert right.get_title(loc="left") == expected
    assert left.figure.get_suptitle() == "Neighbours"


def test_one_large_score_leaves_the_others_their_colours(scored):
    names = [f"t{i}" for i in range(8)]
    scored.obs["many"] = pd.Categorical(np.resize(names, 60))
    scores = _symmetric(8, 2)
    scores[3, 3] = 1000
    scored.uns["many_nhood_enrichment"] = {"zscore": scores}
    ax = pl.neighborhood_enrichment(scored, "many")
    assert ax.images[0].norm.vmax == pytest.approx(np.quantile(np.abs(scores), 0.95))
    assert ax.images[0].norm.vmax < 30
    assert ax.images[0].colorbar.extend == "both"
    whole = pl.neighborhood_enrichment(scored, "many", vmax=1000)
    assert whole.images[0].norm.vmax == 1000
    assert whole.images[0].colorbar.extend == "neither"


def test_labels_without_cells_are_left_out_and_single_missing_scores_are_empty(scored):
    scored.obs["kind"] = scored.obs["kind"].cat.add_categories(["gone"])
    scores = np.full((4, 4), np.nan)
    scores[:3, :3] = _symmetric(3, 0)
    scores[1, 1] = np.inf
    scored.uns["kind_nhood_enrichment"] = {"zscore": scores}
    ax = pl.neighborhood_enrichment(scored, "kind", title="mine")
    assert _names(ax.get_yticklabels()) == ["T", "B", "NK"]
    assert np.isnan(_shown(ax)).sum() == 1
    assert ax.get_title(loc="left") == "mine"


def test_a_correlation_that_does_not_exist_is_not_invented(scored):
    scored.obs["other"] = pd.Categorical(np.resize(["x", "y"], 60))
    scored.uns["other_nhood_enrichment"] = {"zscore": np.eye(2)}
    _, right = pl.neighborhood_enrichment(scored, ("kind", "other"))
    assert right.get_title(loc="left") == "other (correlation undefined)"
    scored.uns["kind_nhood_enrichment"] = {"zscore": np.zeros((3, 3))}
    left, right = pl.neighborhood_enrichment(scored, ("kind", "kind"))
    assert right.get_title(loc="left") == "kind (correlation undefined)"
    assert left.images[0].norm.vmax == 1


def test_given_axes_file_and_figure(scored, tmp_path):
    _, ax = pyplot.subplots()
    assert pl.neighborhood_enrichment(scored, "kind", ax=ax) is ax
    pyplot.close("all")
    figure = pl.neighborhood_enrichment(
        scored, ["kind", "cellxpert_label"], save=tmp_path / "maps.png", return_fig=True
    )
    assert (tmp_path / "maps.png").stat().st_size > 5_000
    assert len([a for a in figure.axes if a.images]) == 2
    assert not pyplot.get_fignums()
    with pytest.raises(PlotError, match="2 columns and one Axes"):
        pl.neighborhood_enrichment(scored, ["kind", "cellxpert_label"], ax=ax)


def test_scores_in_a_modality_of_a_mudata(scored):
    mdata = MuData({"rna": scored})
    mdata.obs["kind"] = scored.obs["kind"]
    np.testing.assert_array_equal(
        _shown(pl.neighborhood_enrichment(mdata, "kind")), scored.uns["kind_nhood_enrichment"]["zscore"]
    )


def test_what_is_missing_is_named(scored):
    del scored.uns["cellxpert_label_nhood_enrichment"]
    line = r"squidpy\.gr\.nhood_enrichment\(adata, cluster_key='cellxpert_label'\)"
    with pytest.raises(PlotError, match=line):
        pl.neighborhood_enrichment(scored, ["kind", "cellxpert_label"])
    with pytest.raises(PlotError, match=r"obs\['nothing'\]"):
        pl.neighborhood_enrichment(scored, "nothing")
    for keys in ([], ["kind"] * 3):
        with pytest.raises(PlotError, match=f"{len(keys)} columns"):
            pl.neighborhood_enrichment(scored, keys)
    for vmax in (0, -1, np.nan):
        with pytest.raises(PlotError, match="above 0"):
            pl.neighborhood_enrichment(scored, "kind", vmax=vmax)
    scored.uns["kind_nhood_enrichment"] = {"zscore": np.ones((2, 2))}
    with pytest.raises(PlotError, match=r"shape \(2, 2\) for 3 categories"):
        pl.neighborhood_enrichment(scored, "kind")
    scored.uns["kind_nhood_enrichment"] = {"zscore": np.full((3, 3), np.nan)}
    with pytest.raises(PlotError, match="no finite z-score"):
        pl.neighborhood_enrichment(scored, "kind")
    scored.obs["kind"] = scored.obs["kind"].astype(object)
    with pytest.raises(PlotError, match="no categories"):
        pl.neighborhood_enrichment(scored, "kind")
    assert not pyplot.get_fignums()


def test_what_squidpy_computes_is_drawn(adata):
    with warnings.catch_warnings():
        # squidpy 1.8.2: spatial_neighbors is deprecated for functions that 1.6.5 does not have;
        # and it divides 0 by 0 for a label of one cell, which is never beside itself
        warnings.filterwarnings("ignore", "Calling `spatial_neighbors` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "invalid value encountered in divide", RuntimeWarning)
        squidpy = pytest.importorskip("squidpy")
        adata.obsm["spatial"] = adata.obsm["X_umap"]
        squidpy.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=4)
        for key in ("kind", "cellxpert_label"):
            squidpy.gr.nhood_enrichment(adata, key, n_perms=50, seed=0, n_jobs=1, show_progress_bar=False)
    left, right = pl.neighborhood_enrichment(adata, ["kind", "cellxpert_label"])
    scores = [adata.uns[f"{k}_nhood_enrichment"]["zscore"] for k in ("kind", "cellxpert_label")]
    np.testing.assert_array_equal(_shown(left)[:3, :3], scores[0])
    # the types lie apart, so each is its own neighbour
    assert (np.diag(_shown(left))[:3] > 2).all()
    tables = [
        pd.DataFrame(z, index=adata.obs[k].cat.categories, columns=adata.obs[k].cat.categories)
        for z, k in zip(scores, ("kind", "cellxpert_label"), strict=True)
    ]
    assert f"{metrics.neighborhood_correlation(*tables):.3f}" in right.get_title(loc="left")


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    places = rng.random((200, 2)) * 100
    return metrics.variogram(places[:, 0] + rng.normal(size=200), places)


def test_points_are_the_bins(table):
    ax = pl.variogram(table)
    line, curve = ax.lines
    assert set(line.get_ydata()) == {1}
    np.testing.assert_allclose(curve.get_xydata(), table[["distance", "variance_ratio"]])
    assert ax.get_xscale() == "log"
    assert ax.get_legend() is None
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("distance", "semivariance / variance")
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > table["variance_ratio"].max()
    ax.figure.canvas.draw()
    shown = [t.get_text() for t in ax.get_xticklabels() if t.get_text()]
    assert "10" in shown
    assert not any("$" in text for text in shown)


def test_several_tables_have_a_legend_and_empty_bins_are_left_out(table):
    holes = table.copy()
    holes.loc[2, ["semivariance", "variance_ratio"]] = np.nan
    ax = pl.variogram({"truth": table, "predicted": holes}, title="two")
    _, first, second = ax.lines
    assert len(first.get_xdata()) == len(table)
    np.testing.assert_allclose(second.get_xdata(), table["distance"].drop(2))
    assert first.get_color() != second.get_color()
    assert [t.get_text() for t in ax.get_legend().texts] == ["truth", "predicted"]
    assert ax.get_title(loc="left") == "two"


def test_axes_and_file_of_a_variogram(table, tmp_path):
    _, ax = pyplot.subplots()
    assert pl.variogram(table, ax=ax) is ax
    pyplot.close("all")
    figure = pl.variogram({"a": table}, save=tmp_path / "variogram.png", return_fig=True)
    assert (tmp_path / "variogram.png").stat().st_size > 5_000
    assert len(figure.axes) == 1
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    "bad",
    [
        pd.DataFrame({"distance": [1.0]}),
        pd.DataFrame({"distance": [1.0], "variance_ratio": [np.nan]}),
        pd.DataFrame(columns=["distance", "variance_ratio"]),
        [1.0, 2.0],
        {},
        {"truth": 3},
    ],
)
def test_other_tables(bad):
    with pytest.raises(PlotError, match=r"cx\.metrics\.variogram"):
        pl.variogram(bad)
    assert not pyplot.get_fignums()
