"""Models of tissue as users make them: what space adds is read, written, saved, and absent without harm."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from mudata import MuData, set_options

import cellxpert as cx
from cellxpert.errors import CellxPertWarning, SpatialError

KEYS = {"spatial_key": "spatial", "library_key": "section"}


@pytest.fixture(scope="module")
def _tissue() -> MuData:
    mdata = cx.datasets.synthetic(
        n_cells=240,
        n_genes=30,
        n_peaks=0,
        n_proteins=5,
        n_types=3,
        n_batches=1,
        n_sections=2,
        n_perturbations=3,
        control_fraction=0.7,
        missing={"rna": 0.05},
        seed=1,
    )
    for part in (mdata, *mdata.mod.values()):
        part.obsm["image"] = np.random.default_rng(0).normal(size=(part.n_obs, 2))
    del mdata["protein"].obsm["image"], mdata.obsm["image"]
    return mdata


@pytest.fixture
def tissue(_tissue) -> MuData:
    with set_options(pull_on_update=False):
        return _tissue.copy()


@pytest.fixture(scope="module")
def model(_tissue) -> cx.CellxPert:
    with set_options(pull_on_update=False):
        mdata = _tissue.copy()
    cx.CellxPert.setup_mudata(
        mdata,
        rna="rna",
        protein="protein",
        labels_key="cell_type",
        perturbation_key="perturbation",
        image_key="image",
        **KEYS,
    )
    found = cx.CellxPert(mdata, config=cx.config.preset("nano").replace(n_niche=20), seed=0)
    found.train(max_epochs=2, progress_bar=False)
    return found


def state(model):
    return model._state  # the vocabulary has no public name yet


def test_niches_places_and_images_are_features_of_the_model(model):
    vocabulary = state(model).vocabulary
    assert vocabulary.roles == ("rna", "protein", "niche")
    assert len(vocabulary.block("niche").names) == 20
    assert vocabulary.place
    assert vocabulary.n_image == 2
    assert "2 sections" in model.view_setup()
    assert "niches of rna" in model.view_setup()


def test_turned_and_scaled_sections_give_the_same_vectors(model, tissue):
    before = model.get_latent(inplace=False)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    for part in (tissue, *tissue.mod.values()):
        part.obsm["spatial"] = 1e-3 * (part.obsm["spatial"] @ turn.T)
        part.obsm["spatial"] = np.column_stack([part.obsm["spatial"], np.full(part.n_obs, 4.0)])
    after = model.get_latent(tissue, inplace=False)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_other_neighbours_give_other_vectors(model, tissue):
    before = model.get_latent(inplace=False)
    order = np.random.default_rng(0).permutation(tissue.n_obs)
    shuffled = pd.DataFrame(tissue.obsm["spatial"][order], index=tissue.obs_names)
    for part in (tissue, *tissue.mod.values()):
        part.obsm["spatial"] = shuffled.loc[part.obs_names].to_numpy()
    assert np.abs(model.get_latent(tissue, inplace=False) - before).max() > 0.05


def test_an_object_without_space_is_read_with_a_warning(model, tissue):
    for part in (tissue, *tissue.mod.values()):
        del part.obsm["spatial"]
    with pytest.warns(
        CellxPertWarning, match="niches, coordinates, which the object does not have: cells are read without"
    ):
        table = model.annotate(tissue, inplace=False)
    assert np.isfinite(table["confidence"]).all()


def test_cells_of_which_nothing_was_measured_are_unknown_whatever_is_around_them(model, tissue):
    adata = tissue["rna"].copy()
    counts = adata.X.tolil()
    counts[[0, 7]] = 0
    adata.X = counts.tocsr()
    with pytest.warns(CellxPertWarning) as told:
        table = model.annotate(adata, inplace=False)
    assert any("2 of" in str(w.message) and "no counts" in str(w.message) for w in told)
    assert table["label"].iloc[[0, 7]].tolist() == ["Unknown"] * 2
    assert table["confidence"].iloc[[0, 7]].tolist() == [0, 0]
    assert np.flatnonzero(table["reason"] == "few_genes").tolist() == [0, 7]


def test_neighbours_chosen_otherwise_are_told(model, tissue):
    adata = tissue["rna"].copy()
    del adata.obs["section"]
    with pytest.warns(CellxPertWarning, match=r"trained with sections \(obs\['section'\]\)"):
        model.get_latent(adata, inplace=False)
    adata = tissue["rna"].copy()
    cx.CellxPert.setup_anndata(adata, n_neighbors=4, image_key="image", **KEYS)
    with pytest.warns(CellxPertWarning, match="niches are of 4 neighbours here, of 10 where the model was trained"):
        model.get_latent(adata, inplace=False)


def test_niches_of_another_modality_are_not_taken_for_those_of_the_model(model, tissue):
    tissue["protein"].obsm["spatial"] = tissue["protein"].obsm["spatial"].copy()
    del tissue["rna"].obsm["spatial"], tissue.obsm["spatial"]
    with pytest.warns(CellxPertWarning, match="niches are of protein here and of rna in the vocabulary"):
        model.get_latent(tissue, inplace=False)


def test_a_model_attached_to_cells_without_space_reads_others_with_it(model, tissue, tmp_path):
    model.save(tmp_path / "model")
    bare = tissue["rna"].copy()
    del bare.obsm["spatial"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = cx.CellxPert.load(tmp_path / "model", bare)
        found = loaded.get_latent(tissue, inplace=False)
    np.testing.assert_array_equal(found, model.get_latent(inplace=False))


def test_a_model_finetuned_without_space_is_saved_and_loaded(model, tissue, tmp_path):
    adata = tissue["rna"].copy()
    cx.CellxPert.setup_anndata(adata, labels_key="section")
    other = cx.CellxPert.__new__(cx.CellxPert)
    other.__dict__.update(model.__dict__)
    with pytest.warns(CellxPertWarning, match="cells are read without"):
        other.finetune(adata, max_epochs=1, progress_bar=False)
    other.save(tmp_path / "tuned")
    with pytest.warns(CellxPertWarning, match="cells are read without"):
        found = cx.CellxPert.load(tmp_path / "tuned", adata).get_latent(inplace=False)
    assert np.isfinite(found).all()


def test_image_features_of_another_width_are_refused(model, tissue):
    tissue["rna"].obsm["image"] = np.ones((tissue["rna"].n_obs, 3))
    with pytest.raises(SpatialError, match="3 image features, the model reads 2"):
        model.get_latent(tissue, inplace=False)


def test_saved_and_loaded_models_agree(model, tissue, tmp_path):
    model.save(tmp_path / "model")
    loaded = cx.CellxPert.load(tmp_path / "model", tissue)
    np.testing.assert_array_equal(loaded.get_latent(inplace=False), model.get_latent(inplace=False))


@pytest.mark.parametrize(
    ("off", "roles", "place", "n_image"),
    [
        ({"n_niche": 0}, ("rna",), True, 2),
        ({"place": False}, ("rna", "niche"), False, 2),
        ({"image": False}, None, True, 0),
    ],
)
def test_each_part_can_be_switched_off(tissue, off, roles, place, n_image):
    adata = tissue["rna"].copy()
    cx.CellxPert.setup_anndata(adata, image_key="image", **KEYS)
    model = cx.CellxPert(adata, config=cx.config.preset("nano").replace(**off))
    model.train(max_epochs=1, progress_bar=False)
    vocabulary = state(model).vocabulary
    assert roles in (None, vocabulary.roles)
    assert (vocabulary.place, vocabulary.n_image) == (place, n_image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.get_latent()


def test_finetuning_goes_on_with_niches(model, tissue):
    adata = tissue["rna"].copy()
    cx.CellxPert.setup_anndata(adata, labels_key="section", image_key="image", **KEYS)
    other = cx.CellxPert.__new__(cx.CellxPert)
    other.__dict__.update(model.__dict__)
    other.finetune(adata, max_epochs=1, progress_bar=False)
    assert len(other.labels) == 2
    assert state(other).vocabulary is state(model).vocabulary


# --- perturbed neighbours ----------------------------------------------------------------------------------------------

SMALL = cx.config.SteeringConfig(n_cells=10, n_movable=8, min_cells=5)


def perturb(model, **more):
    return model.perturb("gene_00", 20, n_chains=2, steering=SMALL, progress_bar=False, **more)


def test_neighbours_of_perturbed_cells_respond_and_others_do_not(model, tissue):
    result = perturb(model, mdata=tissue, propagate=True)
    plain = perturb(model, inplace=False)
    pd.testing.assert_frame_equal(result.table, plain.table)  # the perturbed cells themselves do what they did
    assert plain.surroundings is None
    assert plain.reached == {}
    key = ("gene_00", "all")
    started, reached = set(result.cells[key]), result.reached[key]
    space = tissue.obsm["spatial"]
    named = {name: i for i, name in enumerate(tissue.obs_names)}
    section = tissue.obs["section"].astype(str).to_numpy()
    has_rna = set(tissue["rna"].obs_names)
    control = set(tissue.obs_names[tissue.obs["perturbation"] == "control"]) & has_rna
    expected = set()
    for name, i in named.items():
        others = [j for other, j in named.items() if other in has_rna and j != i and section[j] == section[i]]
        near = sorted(others, key=lambda j: np.linalg.norm(space[j] - space[i]))[:10]
        if name in control - started and started & {tissue.obs_names[j] for j in near}:
            expected.add(name)
    assert set(reached["cells"]) == expected
    assert (reached["share"] > 0).all()
    assert (reached["share"] <= 1).all()
    written = tissue["rna"].layers["cellxpert_perturbed"]
    rows = np.isin(tissue["rna"].obs_names, [*started, *reached["cells"]])
    assert np.isnan(written[~rows]).all()
    assert np.isfinite(written[rows]).any(axis=1).all()
    assert np.isnan(tissue.obsm["X_cellxpert_perturbed"]).all(axis=1).sum() == tissue.n_obs - len(started) - len(
        expected
    )
    table = tissue.uns["cellxpert_info"]["perturb"]["cellxpert_perturbed"]["surroundings"]
    assert np.abs(table["effect"].to_numpy(float)).max() > 0
    assert list(result.surroundings.columns) == list(result.table.columns)


def test_start_cells_of_one_group_next_to_another_keep_what_was_predicted_of_them(model, tissue):
    result = perturb(model, mdata=tissue, groupby="cell_type", propagate=True)
    index = {name: i for i, name in enumerate(tissue.obs_names)}
    written, seen = tissue.obsm["X_cellxpert_perturbed"], set()
    for key, cells in result.cells.items():
        rows = [index[name] for name in cells]
        np.testing.assert_array_equal(written[rows], result.latent[key]["perturbed"])
        seen |= set(cells)
    everywhere = [name for found in result.reached.values() for name in found["cells"]]
    for found in result.reached.values():
        for name, vector in zip(found["cells"], found["latent"], strict=True):
            if name not in seen:
                expected = vector if everywhere.count(name) == 1 else np.full_like(vector, np.nan)
                np.testing.assert_array_equal(written[index[name]], expected)
    assert any(name in seen for name in everywhere)


def test_nobody_next_to_them_is_told(model, tissue):
    adata = tissue["rna"].copy()
    adata.obs["section"] = [f"alone {i}" for i in range(adata.n_obs)]
    with pytest.warns(CellxPertWarning) as told:
        result = perturb(model, mdata=adata, propagate=True)
    assert any("next to a start cell" in str(w.message) for w in told)
    assert result.surroundings.empty
    assert result.reached == {}


def test_propagation_needs_niches(model, tissue):
    for part in (tissue, *tissue.mod.values()):
        del part.obsm["spatial"]
    with pytest.warns(CellxPertWarning), pytest.raises(SpatialError, match="an object without neighbours"):
        perturb(model, mdata=tissue, propagate=True)


def test_propagation_needs_a_model_of_niches(screened):
    with pytest.raises(SpatialError, match="a model that reads no niches(.|\n)*spatial_key="):
        screened.perturb("gene_00", 20, steering=SMALL, propagate=True, progress_bar=False)


# --- squidpy and SpatialData -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:.*set_bad function will be deprecated:PendingDeprecationWarning"
)  # matplotlib, of squidpy
@pytest.mark.filterwarnings("ignore:No data for colormapping provided:UserWarning")  # squidpy.pl.spatial_scatter
def test_squidpy_takes_the_results_as_they_are(model, tissue, tmp_path):
    """No warning but the two named: none that a function or argument that we use is deprecated."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # of a library that squidpy imports
        squidpy = pytest.importorskip("squidpy")
    adata = tissue["rna"].copy()
    model.annotate(adata)
    model.get_latent(adata)
    labels = adata.obs["cellxpert_label"]
    assert labels.notna().all()
    assert set(labels.cat.categories) == set(labels)
    assert "cellxpert_label_colors" not in adata.uns
    squidpy.gr.spatial_neighbors_knn(adata, n_neighs=6, library_key="section")
    squidpy.gr.nhood_enrichment(adata, cluster_key="cellxpert_label", seed=0, show_progress_bar=False)
    squidpy.gr.co_occurrence(adata, cluster_key="cellxpert_label")
    squidpy.pl.spatial_scatter(adata, color="cellxpert_label", shape=None, library_key="section")
    squidpy.pl.nhood_enrichment(adata, cluster_key="cellxpert_label")
    cx.pl.tissue(adata, "cellxpert_label", basis="X_cellxpert", library_key="section")
    cx.pl.neighborhood_enrichment(adata, "cellxpert_label")
    matplotlib.pyplot.close("all")
    adata.write_h5ad(tmp_path / "tissue.h5ad")


def test_a_table_of_a_spatialdata_is_read_and_written(model, tissue):
    with warnings.catch_warnings(action="ignore"):  # of libraries that spatialdata imports
        spatialdata = pytest.importorskip("spatialdata")
        from spatialdata.models import ShapesModel, TableModel
    plain = tissue["rna"].copy()
    table = plain.copy()
    table.obs["cell_id"] = np.arange(table.n_obs)
    regions = {name: np.flatnonzero(table.obs["section"].astype(str) == name) for name in ("section_0", "section_1")}
    assert all(len(rows) for rows in regions.values())
    shapes = {
        n: ShapesModel.parse(table.obsm["spatial"][r], geometry=0, radius=5.0, index=r) for n, r in regions.items()
    }
    table.obs["section"] = pd.Categorical(table.obs["section"].astype(str))
    table = TableModel.parse(table, region=list(regions), region_key="section", instance_key="cell_id")
    sdata = spatialdata.SpatialData(shapes=shapes, tables={"cells": table})
    attrs, names = dict(table.uns["spatialdata_attrs"]), list(table.obs_names)
    cx.CellxPert.setup_spatialdata(sdata, table_key="cells", image_key="image")
    model.annotate(sdata)
    model.get_latent(sdata)
    model.get_latent(plain)
    np.testing.assert_array_equal(table.obsm["X_cellxpert"], plain.obsm["X_cellxpert"])
    assert (dict(table.uns["spatialdata_attrs"]), list(table.obs_names)) == (attrs, names)
    TableModel().validate(table)
    again = cx.CellxPert(sdata, preset="nano")
    again.train(max_epochs=1, progress_bar=False)
    again.get_latent(key_added="X_again")
    assert "X_again" in sdata.tables["cells"].obsm
