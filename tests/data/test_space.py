"""Neighbours, places and niches against plain loops; what may not change them does not."""

from __future__ import annotations

import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import cellxpert as cx
from cellxpert.config import TokenConfig
from cellxpert.data.cells import Cells
from cellxpert.data.record import ModalitySetup, Setup, SpatialSetup
from cellxpert.data.setup import read_setup
from cellxpert.data.space import Space
from cellxpert.data.tokens import tokenize
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import ConfigError, SpatialError

N_CELLS, N_GENES = 60, 7


def points(seed=0, dims=2, n_cells=N_CELLS):
    return np.random.default_rng(seed).uniform(0, 100, (n_cells, dims))


def tissue(xyz, *, sections=None, seed=0):
    counts = np.random.default_rng(seed).poisson(1.0, (len(xyz), N_GENES)).astype("float32")
    adata = ad.AnnData(sparse.csr_matrix(counts), obsm={"spatial": xyz})
    adata.obs_names = [f"c{i:03d}" for i in range(len(xyz))]
    if sections is not None:
        adata.obs["slide"] = pd.Categorical(np.asarray(sections, dtype=str))
    return adata


def setup_of(modalities=(ModalitySetup(role="rna"),), **spatial):
    return Setup(modalities=modalities, spatial=SpatialSetup(**{"spatial_key": "spatial", "n_neighbors": 5} | spatial))


def cells_of(adata, **spatial):
    return Cells.open(adata, setup_of(**spatial))


def space_of(adata, **spatial) -> Space:
    return cells_of(adata, **spatial).space


def loop_graph(xyz, sections, k):
    """Weights of the k nearest cells of the same section, and of all as far as the last of them."""
    graph = np.zeros((len(xyz), len(xyz)))
    for i in range(len(xyz)):
        distance = np.linalg.norm(xyz - xyz[i], axis=1)
        others = [j for j in range(len(xyz)) if j != i and sections[j] == sections[i]]
        if others:
            last = sorted(distance[others])[min(k, len(others)) - 1]
            near = [j for j in others if distance[j] <= last * (1 + 1e-6)]
            graph[i, near] = 1 / len(near)
    return graph


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("n_sections", [1, 3])
def test_neighbours_equal_a_loop(dims, n_sections):
    xyz, sections = points(1, dims), np.arange(N_CELLS) % n_sections
    space = space_of(tissue(xyz, sections=sections), library_key="slide")
    np.testing.assert_allclose(space.graph_NN.toarray(), loop_graph(xyz, sections, 5), atol=1e-12)
    for section in range(n_sections):
        here = xyz[sections == section]
        distance = np.linalg.norm(here[:, None] - here[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        assert space.scale_S[section] == pytest.approx(np.median(distance.min(axis=1)))


def test_on_a_grid_all_neighbours_of_a_ring_count():
    grid = np.stack(np.meshgrid(np.arange(7.0), np.arange(7.0)), axis=-1).reshape(-1, 2)
    graph = space_of(tissue(grid), n_neighbors=3).graph_NN.toarray()
    middle = 3 * 7 + 3
    assert set(np.flatnonzero(graph[middle])) == {middle - 1, middle + 1, middle - 7, middle + 7}
    np.testing.assert_allclose(graph, loop_graph(grid, np.zeros(49), 3))


def test_small_sections_have_the_neighbours_they_have():
    sections = np.array(["one"] + ["two"] * 2 + ["rest"] * (N_CELLS - 3))
    space = space_of(tissue(points(2), sections=sections), library_key="slide")
    assert np.diff(space.graph_NN.indptr)[:3].tolist() == [0, 1, 1]
    assert np.isfinite(space.place_NX).all()
    assert space.place_NX[0].tolist() == [0, 0, 0]  # a cell alone lies in the middle of its section
    assert list(space.has_neighbors[:3]) == [False, True, True]


@given(
    angle=st.floats(-np.pi, np.pi),
    unit=st.floats(1e-3, 1e3),
    shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
    dims=st.sampled_from([2, 3]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_a_rotation_about_z_a_shift_and_another_unit_change_nothing(angle, unit, shift, dims, seed):
    xyz, sections = points(seed, dims), np.arange(N_CELLS) % 2
    turn = np.eye(dims)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moved = unit * (xyz @ turn.T) + np.array(shift)[:dims]
    one, other = (space_of(tissue(x, sections=sections), library_key="slide") for x in (xyz, moved))
    np.testing.assert_allclose(one.place_NX, other.place_NX, atol=1e-4)
    np.testing.assert_allclose(one.graph_NN.toarray(), other.graph_NN.toarray(), atol=1e-12)
    np.testing.assert_allclose(other.scale_S, unit * one.scale_S, rtol=1e-6)


def test_a_flat_stack_is_the_two_dimensional_case():
    xy = points(3)
    flat = np.column_stack([xy, np.full(len(xy), 12.5)])
    one, other = space_of(tissue(xy)), space_of(tissue(flat))
    assert np.array_equal(one.place_NX, other.place_NX)
    assert (one.graph_NN != other.graph_NN).nnz == 0


def test_places_equal_their_definition():
    xyz = points(4, 3)
    space = space_of(tissue(xyz))
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    near, scale = np.sort(distance, axis=1)[:, :5], np.median(distance.min(axis=1))
    middle = (xyz - xyz.mean(axis=0)) / scale
    expected = np.stack([np.hypot(*middle[:, :2].T), middle[:, 2], np.log(near.mean(axis=1) / scale)], axis=1)
    np.testing.assert_allclose(space.place_NX, expected, rtol=1e-4, atol=1e-5)


def niche_by_loop(counts, graph):
    total = counts.sum(axis=1, keepdims=True)
    level = np.log1p(1e4 * counts / np.where(total > 0, total, 1))
    return np.array([sum(graph[i, j] * level[j] for j in np.flatnonzero(graph[i])) for i in range(len(counts))])


def test_niches_are_mean_magnitudes_of_the_neighbours():
    xy, sections = points(5), np.arange(N_CELLS) % 2
    adata = tissue(xy, sections=sections)
    cells = cells_of(adata, library_key="slide")
    assert cells.token_roles == ("rna", "niche")
    assert cells.roles == ("rna",)
    rows = np.array([7, 3, 59, 0])
    expected = niche_by_loop(adata.X.toarray().astype(float), loop_graph(xy, sections, 5))[rows]
    np.testing.assert_allclose(cells.matrix_rows("niche", rows).toarray(), expected, atol=1e-6)
    assert list(cells.feature_names("niche")) == list(adata.var_names)
    assert cells.present("niche").all()


def test_the_order_of_cells_and_genes_does_not_matter():
    xy = points(6)
    adata = tissue(xy)
    order, genes = np.random.default_rng(0).permutation(N_CELLS), np.random.default_rng(1).permutation(N_GENES)
    moved = adata[order][:, genes].copy()
    one = cells_of(adata).matrix_rows("niche", np.arange(N_CELLS)).toarray()
    other = cells_of(moved).matrix_rows("niche", np.arange(N_CELLS)).toarray()
    assert np.array_equal(one[order][:, genes], other)


def mosaic():
    """Sixty cells: RNA in the first fifty, proteins in the last fifty; coordinates in the RNA."""
    xy = points(7)
    rna, protein = tissue(xy)[:50].copy(), tissue(xy, seed=1)[10:].copy()
    protein.var_names = [f"p{i}" for i in range(N_GENES)]
    del protein.obsm["spatial"]
    with md.set_options(pull_on_update=False):
        return md.MuData({"rna": rna, "protein": protein}), xy


BOTH = (ModalitySetup(role="rna", name="rna"), ModalitySetup(role="protein", name="protein"))


def test_cells_without_coordinates_or_genes_are_no_neighbours():
    mdata, xy = mosaic()
    cells = Cells.open(mdata, setup_of(BOTH))
    space, rows = cells.space, cells.rows("rna")
    assert space.source == "rna"
    assert np.array_equal(cells.present("niche"), rows >= 0)
    assert np.isnan(space.place_NX[rows < 0]).all()
    mine = mdata.obs_names[rows >= 0]
    here = [int(name[1:]) for name in mine]
    graph = space.graph_NN.toarray()[np.ix_(rows >= 0, rows >= 0)]
    np.testing.assert_allclose(graph, loop_graph(xy[here], np.zeros(len(here)), 5))
    assert not space.graph_NN.toarray()[:, rows < 0].any()


def test_coordinates_of_the_whole_object_place_cells_of_all_modalities():
    mdata, xy = mosaic()
    del mdata["rna"].obsm["spatial"]
    mdata.obsm["spatial"] = np.stack([xy[int(name[1:])] for name in mdata.obs_names])
    space = Cells.open(mdata, setup_of(BOTH)).space
    assert np.isfinite(space.place_NX).all()
    assert space.source == "rna"
    lacks = Cells.open(mdata, setup_of(BOTH)).rows("rna") < 0
    assert not space.graph_NN.toarray()[:, lacks].any()  # they have no genes that a niche could hold
    assert space.has_neighbors[lacks].all()


def test_a_graph_of_squidpy_is_taken_as_it_is():
    squidpy = pytest.importorskip("squidpy")
    xy, sections = points(8), np.arange(N_CELLS) % 2
    adata = tissue(xy, sections=sections)
    with warnings.catch_warnings(action="ignore"):  # of libraries that squidpy calls
        squidpy.gr.spatial_neighbors_knn(adata, n_neighs=5, library_key="slide")
    given_graph = space_of(adata, neighbors_key="spatial", library_key="slide").graph_NN
    whole_name = space_of(adata, neighbors_key="spatial_connectivities", spatial_key=None, library_key="slide")
    assert (given_graph != whole_name.graph_NN).nnz == 0
    assert whole_name.place_NX is None
    joined = adata.obsp["spatial_connectivities"].toarray() > 0
    expected = joined / joined.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(given_graph.toarray(), expected)
    own = space_of(adata, library_key="slide").graph_NN.toarray() > 0
    assert (own <= joined).all()  # squidpy joins both ways what is near in one


def test_weights_of_a_graph_count():
    adata = tissue(points(9))
    weight = np.zeros((N_CELLS, N_CELLS))
    weight[0, [1, 2]], weight[0, 0] = [1.0, 3.0], 9.0
    adata.obsp["mine"] = sparse.csr_matrix(weight)
    space = space_of(adata, neighbors_key="mine")
    assert space.graph_NN[[0]].toarray()[0, :4].tolist() == [0, 0.25, 0.75, 0]
    assert space.has_neighbors.sum() == 1


def test_image_features_are_read_as_they_are():
    adata = tissue(points(10))
    adata.obsm["image"] = pd.DataFrame(points(11, 3), index=adata.obs_names, columns=["a", "b", "c"])
    space = space_of(adata, image_key="image", spatial_key=None)
    np.testing.assert_array_equal(space.image_NF, adata.obsm["image"].to_numpy())
    assert space.graph_NN is None
    assert cells_of(adata, image_key="image", spatial_key=None).token_roles == ("rna",)


def test_many_cells_at_one_place_do_not_depend_on_their_order():
    xy = points(12, n_cells=4000)
    xy[:30] = xy[0]
    order = np.random.default_rng(0).permutation(len(xy))
    one, other = (space_of(tissue(x)).graph_NN for x in (xy, xy[order]))
    assert (one[order][:, order] != other).nnz == 0


def test_graphs_of_two_modalities_are_taken_together():
    mdata, _ = mosaic()
    for adata in mdata.mod.values():
        adata.obsp["mine"] = sparse.csr_matrix(np.eye(50, k=1))
    graph = Cells.open(mdata, setup_of(BOTH, spatial_key=None, neighbors_key="mine")).space.graph_NN.tocoo()
    pairs = {(str(mdata.obs_names[i]), str(mdata.obs_names[j])) for i, j in zip(graph.row, graph.col, strict=True)}
    # neighbours have RNA: the first fifty cells
    assert pairs == {(f"c{i:03d}", f"c{i + 1:03d}") for i in range(49)}


def test_counts_of_proteins_do_not_depend_on_which_others_were_measured():
    adata = tissue(points(15))
    more = ad.AnnData(sparse.hstack([adata.X, np.ones((N_CELLS, 2), "float32")], format="csr"), obsm=dict(adata.obsm))
    more.var_names = [*adata.var_names, "x", "y"]
    setup = setup_of((ModalitySetup(role="protein"),))
    rows = np.arange(N_CELLS)
    one, other = (Cells.open(x, setup).matrix_rows("niche", rows).toarray() for x in (adata, more))
    np.testing.assert_array_equal(one, other[:, :N_GENES])


# --- real tissue --------------------------------------------------------------------------------------------------------

REAL = {
    "spatial_merfish_poa_6509": {"image_key": "seq_smfish"},
    "spatial_merfish_mop_7924": {"library_key": "slice"},
    "spatial_starmap_1549x1020": {},
    "spatial_cycif_3029x33": {"modality": "protein", "counts": "intensity"},
}


@pytest.mark.parametrize("name", REAL)
def test_real_tissue_becomes_tokens(name, real_data):
    keys = REAL[name]
    adata = ad.read_h5ad(real_data / f"{name}.h5ad")
    cx.CellxPert.setup_anndata(adata, spatial_key="spatial", **keys)
    cells, config = Cells.open(adata, read_setup(adata)), TokenConfig()
    rows = np.arange(0, adata.n_obs, 3)
    vocabulary = Vocabulary.fit(cells, config, train_rows=rows)
    tokens = tokenize(cells, vocabulary, config)
    assert vocabulary.roles == (keys.get("modality", "rna"), "niche")
    assert vocabulary.n_image == (21 if "image_key" in keys else 0)
    assert np.isfinite(tokens.place).all()
    assert cells.present("niche").all()
    if "library_key" in keys:
        assert len(cells.space.sections) == 4
        graph = cells.space.graph_NN.tocoo()
        section = adata.obs[keys["library_key"]].astype(str).to_numpy()
        assert (section[graph.row] == section[graph.col]).all()
    # what is zero is no token, what is not is one
    own = tokens.feature < len(vocabulary.blocks[0].names)
    columns = [adata.var_names.get_loc(n) for n in vocabulary.blocks[0].names]
    values = sparse.csr_matrix(adata.X)[:, columns]
    assert own.sum() == (values.data != 0).sum()
    assert (tokens.bin[own] > 0).all()


def test_intensities_without_places(real_data):
    adata = ad.read_h5ad(real_data / "imc_cisi_1000x43.h5ad")
    with pytest.raises(SpatialError, match="no such array"):
        cx.CellxPert.setup_anndata(adata, modality="protein", counts="intensity", spatial_key="spatial")
    cx.CellxPert.setup_anndata(adata, modality="protein", counts="intensity")
    cells, config = Cells.open(adata, read_setup(adata)), TokenConfig()
    vocabulary = Vocabulary.fit(cells, config, train_rows=np.arange(adata.n_obs))
    tokens = tokenize(cells, vocabulary, config)
    block = vocabulary.block("protein")
    assert block.transform == "arcsinh"
    dense = np.arcsinh(sparse.csr_matrix(adata.X).toarray()[:, [adata.var_names.get_loc(n) for n in block.names]] / 5)
    assert len(tokens.bin) == (dense != 0).sum()
    bins = np.zeros(dense.shape, int)
    bins[np.repeat(np.arange(len(dense)), tokens.lengths), tokens.feature] = tokens.bin
    np.testing.assert_array_equal(bins, np.where(dense == 0, 0, 1 + np.searchsorted(block.edges, dense, side="right")))


def test_sections_without_places_are_no_space(real_data):
    """147 sections, and no coordinates: cells of a section are not neighbours for that."""
    adata = ad.read_h5ad(real_data / "merfish_brain_1000x1122.h5ad")
    with pytest.raises(SpatialError, match="no such array"):
        cx.CellxPert.setup_anndata(adata, spatial_key="spatial", library_key="brain_section_label")
    with pytest.raises(ConfigError, match="neither coordinates nor a graph"):
        cx.CellxPert.setup_anndata(adata, library_key="brain_section_label")
    assert "cellxpert_info" not in adata.uns
