"""Coordinates that are no places are refused, with the line that mends them; what is doubtful is said."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellxpert as cx
from cellxpert.data.coordinates import check_coordinates, overlaid, read_graph, read_obsm
from cellxpert.errors import CellxPertWarning, ConfigError, MissingValuesError, ObsKeyError, SpatialError

N_CELLS = 200


@pytest.fixture
def tissue() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (N_CELLS, 6)).astype("float32") + 1),
        obs={"slide": pd.Categorical(np.repeat(["a", "b"], N_CELLS // 2)), "depth": rng.uniform(size=N_CELLS)},
        obsm={"spatial": rng.uniform(0, 100, (N_CELLS, 2)), "image": rng.normal(size=(N_CELLS, 3))},
    )
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(N_CELLS)], [f"gene{i}" for i in range(6)]
    return adata


def refused(adata, match, error=SpatialError, **keys):
    before = adata.copy()
    with pytest.raises(error, match=match) as caught:
        cx.CellxPert.setup_anndata(adata, **{"spatial_key": "spatial"} | keys)
    assert "cellxpert_info" not in adata.uns
    for key in before.obsm:
        np.testing.assert_array_equal(adata.obsm[key], before.obsm[key])
    return caught.value


def told(adata, match, **keys):
    with pytest.warns(CellxPertWarning, match=match):
        cx.CellxPert.setup_anndata(adata, **{"spatial_key": "spatial"} | keys)


def test_clean_sections_say_nothing(tissue):
    cx.CellxPert.setup_anndata(tissue, spatial_key="spatial", library_key="slide", image_key="image")
    assert tissue.uns["cellxpert_info"]["setup"]["spatial"]["library_key"] == "slide"


def test_absent_arrays_name_what_is_there(tissue):  # 54
    assert "did you mean 'spatial'?" in str(refused(tissue, r"obsm\['Spatial'\]", spatial_key="Spatial"))
    del tissue.obsm["spatial"], tissue.obsm["image"]
    assert "adata.obsm['spatial'] = ..." in str(refused(tissue, "no such array"))
    refused(tissue, r"obsm\['image'\]", spatial_key=None, image_key="image")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cells_without_finite_coordinates_are_named(tissue, bad):  # 55
    tissue.obsm["spatial"][[3, 9], 1] = bad
    error = refused(tissue, r"2 of 200 cells .* e.g. \['c3', 'c9'\]")
    assert "adata[numpy.isfinite(adata.obsm['spatial']).all(axis=1)].copy()" in error.fix
    kept = eval(error.fix.split("adata = ")[1], {"adata": tissue, "numpy": np})
    cx.CellxPert.setup_anndata(kept, spatial_key="spatial", library_key="slide")


@pytest.mark.parametrize("width", [1, 4])
def test_one_or_four_columns_are_no_coordinates(tissue, width):  # 56
    tissue.obsm["spatial"] = np.random.default_rng(0).uniform(size=(N_CELLS, width))
    refused(tissue, f"{width} columns")


@pytest.mark.parametrize("array", [np.full((N_CELLS, 2), "a"), pd.DataFrame({"x": ["a"] * N_CELLS})])
def test_text_is_no_coordinate(tissue, array):
    if isinstance(array, pd.DataFrame):
        array.index = tissue.obs_names
    tissue.obsm["spatial"] = array
    refused(tissue, "of type object and shape|of type <U1 and shape|of type str")


def test_sections_without_height_among_others_are_named(tissue):  # 57
    xyz = np.column_stack([tissue.obsm["spatial"], np.ones(N_CELLS)])
    xyz[N_CELLS // 2 :, 2] = np.nan
    tissue.obsm["spatial"] = xyz
    error = refused(tissue, r"100 of 200 cells have x and y but no finite z, e.g. \['c100'", library_key="slide")
    assert "give every section a z" in error.fix


def test_sections_on_one_grid_need_their_column(tissue):  # 58
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 2)
    tissue.obsm["spatial"] = np.concatenate([grid, grid])
    refused(tissue, "100 of 200 cells lie exactly where another cell(.|\n)*library_key='...'")
    cx.CellxPert.setup_anndata(tissue, spatial_key="spatial", library_key="slide")
    tissue.obs["half"] = pd.Categorical(np.tile(["x", "y"], N_CELLS // 2))
    del tissue.uns["cellxpert_info"]
    tissue.obsm["spatial"][N_CELLS // 2 :] = tissue.obsm["spatial"][: N_CELLS // 2]
    refused(tissue, r"name a finer column than this one, whose sections are \['x', 'y'\]", library_key="half")


def test_sections_over_one_another_are_told(tissue):  # 58, where no place is repeated
    told(tissue, r"obs\['slide'\] lie over one another .* pass library_key='slide'")
    tissue.obsm["spatial"][N_CELLS // 2 :, 0] += 200
    cx.CellxPert.setup_anndata(tissue, spatial_key="spatial")
    assert overlaid(tissue, tissue.obsm["spatial"]) is None


def test_two_cells_at_one_place_are_told(tissue):  # 59
    tissue.obsm["spatial"][1] = tissue.obsm["spatial"][0]
    told(tissue, "1 cells lie exactly where another cell", library_key="slide")


def test_scales_that_differ_are_told(tissue):  # 60
    tissue.obsm["spatial"][N_CELLS // 2 :] *= 50
    told(tissue, r"apart in section 'a' and .* in 'b'", library_key="slide")


def test_sections_need_a_column_of_names(tissue):
    refused(tissue, "no column 'slides'", ObsKeyError, library_key="slides")
    refused(tissue, "not whole", cx.errors.CategoryError, library_key="depth")
    tissue.obs["slide"] = tissue.obs["slide"].cat.remove_categories("b")
    refused(tissue, "100 cells without a value", MissingValuesError, library_key="slide")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_neighbors": True}, "n_neighbors"),
        ({"spatial_key": 3}, "spatial_key"),
        ({"spatial_key": None, "library_key": "slide"}, "library_key"),
        ({"image_key": ""}, "image_key"),
    ],
)
def test_arguments_that_mean_nothing(tissue, keys, match):
    refused(tissue, match, ConfigError, **keys)


def test_graphs(tissue):
    assert "squidpy.gr.spatial_neighbors" in refused(tissue, "no such graph", neighbors_key="spatial").fix
    across = sparse.lil_matrix((N_CELLS, N_CELLS))
    across[0, 199] = across[0, 1] = 1
    tissue.obsp["spatial_connectivities"] = across.tocsr()
    refused(tissue, "1 of 2 edges join two sections, e.g. 'a' and 'b'", neighbors_key="spatial", library_key="slide")
    tissue.obsp["spatial_connectivities"] = -across.tocsr()
    refused(tissue, "negative or infinite weights", neighbors_key="spatial")
    tissue.obsp["spatial_distances"] = across.tocsr()
    assert "'spatial_connectivities'" in refused(tissue, "farthest", neighbors_key="spatial_distances").fix


def test_read_graph_leaves_out_the_cell_itself(tissue):
    tissue.obsp["g"] = sparse.csr_matrix(np.eye(N_CELLS) + np.eye(N_CELLS, k=1))
    graph = read_graph(tissue, "g", rows={None: np.arange(N_CELLS)})
    np.testing.assert_array_equal(graph.toarray(), np.eye(N_CELLS, k=1))


def test_modalities_that_disagree(tissue):
    other = tissue[::-1].copy()
    other.var_names = [f"p{i}" for i in range(6)]
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({"rna": tissue, "protein": other})
    rows = {m: np.asarray(mdata.obsmap[m]).astype(int).ravel() - 1 for m in ("rna", "protein")}
    values, holders = read_obsm(mdata, "spatial", rows=rows, what="coordinates")
    assert holders == ["rna", "protein"]
    np.testing.assert_array_equal(values, tissue[mdata.obs_names].obsm["spatial"])
    mdata["protein"].obsm["spatial"][4] += 1
    with pytest.raises(SpatialError, match="1 cells have other coordinates in another modality"):
        read_obsm(mdata, "spatial", rows=rows, what="coordinates")
    mdata["protein"].obsm["spatial"] = np.ones((N_CELLS, 3))
    with pytest.raises(SpatialError, match="3 columns here, 2 in another modality"):
        read_obsm(mdata, "spatial", rows=rows, what="coordinates")


def test_nobody_placed():
    with pytest.raises(SpatialError, match="no cell with coordinates"):
        check_coordinates(np.full((3, 2), np.nan), np.zeros(3, int), where="obsm['spatial']", sections=[])


def test_a_cell_without_neighbours_is_told(tissue):
    tissue.obs["slide"] = pd.Categorical(["alone", *["rest"] * (N_CELLS - 1)])
    told(tissue, "1 cells have no neighbours, and so no niche", library_key="slide")


def test_cells_of_the_whole_may_have_no_place(tissue):
    other = tissue.copy()
    other.obs_names, other.var_names = [f"d{i}" for i in range(N_CELLS)], [f"p{i}" for i in range(6)]
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({"rna": tissue, "protein": other})
    place = pd.DataFrame(tissue.obsm["spatial"], index=tissue.obs_names).reindex(mdata.obs_names).to_numpy()
    mdata.obs["slide"] = tissue.obs["slide"].reindex(mdata.obs_names)
    for part in mdata.mod.values():
        del part.obsm["spatial"], part.obs["slide"]
    mdata.obsm["spatial"] = place
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein", spatial_key="spatial", library_key="slide")
    del mdata.obsm["spatial"]
    with pytest.raises(SpatialError, match="no such array") as caught:
        cx.CellxPert.setup_mudata(mdata, rna="rna", spatial_key="spatial")
    assert caught.value.fix == "use one of ['image']"  # not mudata's own masks


def test_columns_of_sections_are_found_among_placed_cells_only(tissue):
    xy = tissue.obsm["spatial"].copy()
    xy[:40] = np.nan
    assert overlaid(tissue, xy) == "slide"
