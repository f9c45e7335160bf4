"""Integration and imputation by a small model, start to end: what is written, what changes nothing, and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData, read_h5mu, read_zarr, set_options
from sklearn.neighbors import NearestNeighbors

import cellxpert as cx
from cellxpert.data.cells import Cells
from cellxpert.data.setup import setup_mudata
from cellxpert.errors import (
    CategoryError,
    CellxPertWarning,
    ConfigError,
    FeatureOverlapError,
    FewCellsError,
    MissingValuesError,
    ModalityError,
    MuDataError,
    NotTrainedError,
    QueryError,
)
from cellxpert.files import write_arrays

ROLES = {"rna": "rna", "atac": "atac", "protein": "protein"}
KEY = "X_cellxpert_integrated"
N_CELLS = 240


def _copy(mdata: MuData) -> MuData:
    with set_options(pull_on_update=False):
        return mdata.copy()


def _made_of(parts: dict[str, ad.AnnData], batch: pd.Series | None = None) -> MuData:
    """A MuData with the batch in its own ``obs`` only."""
    for part in parts.values():
        part.obs = part.obs[[]].copy()
    with set_options(pull_on_update=False):
        mdata = MuData(parts)
    if batch is not None:
        mdata.obs["batch"] = batch.loc[mdata.obs_names].astype(str).to_numpy()
    return mdata


@pytest.fixture(scope="module")
def source() -> MuData:
    """Three types in two batches; cells lack RNA, peaks or proteins."""
    return cx.datasets.synthetic(
        n_cells=N_CELLS,
        n_genes=60,
        n_peaks=40,
        n_proteins=10,
        n_types=3,
        n_batches=2,
        spatial_dims=0,
        batch_effect=0.5,
        missing={"rna": 0.15, "atac": 0.3, "protein": 0.3},
        seed=0,
    )


@pytest.fixture(scope="module")
def model(source: MuData) -> cx.CellxPert:
    """After one epoch; tests must not write into its object or train it."""
    mdata = _copy(source)
    cx.CellxPert.setup_mudata(mdata, **ROLES, batch_key="batch", labels_key="cell_type")
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    model.train(max_epochs=1, progress_bar=False)
    return model


@pytest.fixture(scope="module")
def saved(model: cx.CellxPert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrating") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def places(model: cx.CellxPert) -> np.ndarray:
    return model.integrate(inplace=False)


@pytest.fixture
def query(source: MuData) -> MuData:
    """The same cells as an object that was never set up."""
    return _copy(source)


def _renamed(mdata: MuData, rename: Callable[[str], object]) -> MuData:
    """The object with other batches."""
    for part in (mdata, *mdata.mod.values()):
        part.obs["batch"] = [rename(name) for name in part.obs["batch"].astype(str)]
    return mdata


def _written(data: MuData) -> dict[str, set[str]]:
    parts = {"": data, **data.mod}
    return {
        f"{name}/{slot}": {*getattr(part, slot)} for name, part in parts.items() for slot in ("obsm", "uns", "obs")
    } | {f"{name}/layers": {*part.layers} for name, part in data.mod.items()}


# --- what is written ---


def test_places_are_written_to_the_object_and_its_modalities(
    model: cx.CellxPert, query: MuData, places: np.ndarray
) -> None:
    model.integrate(query, per_modality=True)
    arrays = model.integrate(query, per_modality=True, inplace=False)
    assert list(arrays) == [KEY, f"{KEY}_rna", f"{KEY}_atac", f"{KEY}_protein"]
    assert np.array_equal(arrays[KEY], places)
    for key, array in arrays.items():
        assert array.dtype == query.obsm[key].dtype == np.float32
        assert array.shape == (N_CELLS, 20)
        assert np.array_equal(query.obsm[key], array, equal_nan=True)
        for part in query.mod.values():
            rows = query.obs_names.get_indexer(part.obs_names)
            assert np.array_equal(part.obsm[key], array[rows], equal_nan=True)
    for role in ROLES:
        lacking = ~query.obs_names.isin(query[role].obs_names)
        assert lacking.any()
        assert np.array_equal(np.isnan(arrays[f"{KEY}_{role}"]).all(axis=1), lacking)
        assert np.array_equal(np.isnan(arrays[f"{KEY}_{role}"]).any(axis=1), lacking)
    assert np.isfinite(places).all()
    entry = query.uns["cellxpert_info"]["integrate"][KEY]
    assert entry["modalities"] == ["rna", "atac", "protein"]
    assert (entry["new_batches"], entry["unknown_batches"], entry["feature_overlap"]) == ("error", [], 1.0)
    assert {"version", "weights_hash", "vocabulary_hash", "seed", "seconds", "device"} <= set(entry)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")  # anndata announces its next default
def test_what_is_written_comes_back_from_files(model: cx.CellxPert, query: MuData, tmp_path: Path) -> None:
    model.integrate(query, per_modality=True, key_added="X_all")
    model.impute("protein", query)
    with set_options(pull_on_update=False):
        query.write_h5mu(tmp_path / "x.h5mu")
        query.write_zarr(tmp_path / "x.zarr")
        again = [read_h5mu(tmp_path / "x.h5mu"), read_zarr(tmp_path / "x.zarr")]
    for other in again:
        for key in ("X_all", "X_all_protein", "cellxpert_imputed_protein"):
            assert np.array_equal(other.obsm[key], query.obsm[key], equal_nan=True)
        for key in ("cellxpert_imputed", "cellxpert_imputed_lower", "cellxpert_imputed_upper"):
            assert np.array_equal(other["protein"].layers[key], query["protein"].layers[key], equal_nan=True)
        info = other.uns["cellxpert_info"]
        assert list(info["integrate"]["X_all"]["modalities"]) == ["rna", "atac", "protein"]
        assert list(info["impute"]["cellxpert_imputed_protein"]["features"]) == list(query["protein"].var_names)


def test_inplace_false_writes_nothing(model: cx.CellxPert, query: MuData) -> None:
    before = _written(query)
    model.integrate(query, inplace=False, per_modality=True)
    model.integrate(_renamed(query, "new {}".format), inplace=False, new_batches="fit")
    model.impute("protein", query, inplace=False)
    assert _written(query) == before


def test_an_anndata_is_one_modality(model: cx.CellxPert, query: MuData, places: np.ndarray) -> None:
    adata = query["rna"].copy()
    model.integrate(adata)
    alone = model.integrate(query, modalities="rna", inplace=False)
    assert np.array_equal(adata.obsm[KEY], alone[query.obs_names.get_indexer(adata.obs_names)])
    assert adata.uns["cellxpert_info"]["integrate"][KEY]["modalities"] == ["rna"]


# --- which modalities are read ---


@pytest.mark.parametrize("roles", [["rna"], ["protein", "atac"], ("atac", "rna")])
def test_not_reading_modalities_is_not_having_them(
    model: cx.CellxPert, query: MuData, roles: list[str], places: np.ndarray
) -> None:
    chosen = model.integrate(query, modalities=roles, inplace=False)
    batch = query.obs["batch"]
    with set_options(pull_on_update=False):
        less = _made_of({role: query[role].copy() for role in roles}, batch)
    lacking = pd.DataFrame(model.integrate(less, inplace=False), index=less.obs_names).reindex(query.obs_names)
    np.testing.assert_allclose(chosen, lacking.to_numpy(), rtol=1e-6, atol=1e-6)
    complete = np.all([query.obs_names.isin(query[role].obs_names) for role in ROLES], axis=0)
    assert np.abs(chosen - places)[complete].max() > 0.1


def test_the_order_of_modalities_genes_and_cells_changes_no_bit(
    model: cx.CellxPert, query: MuData, places: np.ndarray
) -> None:
    batch, rng = query.obs["batch"], np.random.default_rng(0)
    parts = {}
    for role in ("protein", "rna", "atac"):
        part = query[role]
        parts[role] = part[rng.permutation(part.n_obs)][:, rng.permutation(part.n_vars)].copy()
    other = _made_of(parts, batch)
    assert list(other.obs_names) != list(query.obs_names)
    found = pd.DataFrame(model.integrate(other, inplace=False), index=other.obs_names).loc[query.obs_names].to_numpy()
    # sums over cells of one batch are not taken, so that only the library's products may differ in their last bit
    np.testing.assert_allclose(found, places, rtol=1e-6, atol=1e-6)
    expected = model.impute("protein", query, inplace=False).expected
    assert model.impute("protein", other, inplace=False).expected.columns.equals(expected.columns)


def test_a_cell_alone_is_placed_as_in_company(model: cx.CellxPert, query: MuData, places: np.ndarray) -> None:
    for i in (0, 17, 101):
        with set_options(pull_on_update=False):
            one = query[[i]].copy()
        parts = {name: part for name, part in one.mod.items() if part.n_obs}
        one = _made_of(parts, query.obs["batch"])
        np.testing.assert_allclose(model.integrate(one, inplace=False)[0], places[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("asked", [["dna"], ["rna", "cells"], [], ()])
def test_modalities_that_are_not_there_are_named(model: cx.CellxPert, query: MuData, asked: list[str]) -> None:
    with pytest.raises(ModalityError, match=r"\['rna', 'atac', 'protein'\]"):
        model.integrate(query, modalities=asked, inplace=False)
    batch = query.obs["batch"]
    with pytest.raises(ModalityError, match=r"\['protein'\] asked for; model and object share \['rna', 'atac'\]"):
        model.integrate(_made_of({r: query[r].copy() for r in ("rna", "atac")}, batch), modalities=["protein"])


def test_modalities_that_are_not_read_cannot_forbid_anything(model: cx.CellxPert, query: MuData) -> None:
    """Proteins of another panel: next to none is known."""
    expected = model.integrate(query, modalities=["rna"], inplace=False)
    other = query["protein"].copy()
    other.var_names = [f"other {i}" for i in range(other.n_vars)]
    parts = {"rna": query["rna"].copy(), "atac": query["atac"].copy(), "protein": other}
    odd = _made_of(parts, query.obs["batch"])
    with pytest.raises(FeatureOverlapError):
        model.integrate(odd, inplace=False)
    found = pd.DataFrame(model.integrate(odd, modalities="rna", inplace=False), index=odd.obs_names)
    np.testing.assert_array_equal(found.loc[query.obs_names].to_numpy(), expected)


# --- batches ---


def test_batches_that_the_model_does_not_know(model: cx.CellxPert, query: MuData, places: np.ndarray) -> None:
    known = (query.obs["batch"] == "batch_0").to_numpy()
    other = _renamed(query, lambda name: "donor 7" if name == "batch_1" else name)
    with pytest.raises(QueryError, match=r"\['donor 7'\]; it knows \['batch_0', 'batch_1'\]"):
        model.integrate(other)
    assert KEY not in other.obsm
    fitted = model.integrate(other, new_batches="fit", inplace=False)
    ignored = model.integrate(other, new_batches="ignore", inplace=False)
    for found in (fitted, ignored):
        assert np.array_equal(found[known], places[known])
    # the same cells under a new name come nearer to where they were than without any correction
    apart = [np.linalg.norm(found[~known].mean(axis=0) - places[~known].mean(axis=0)) for found in (fitted, ignored)]
    assert apart[0] < 0.6 * apart[1]
    model.integrate(other, new_batches="fit")
    assert other.uns["cellxpert_info"]["integrate"][KEY]["unknown_batches"] == ["donor 7"]


def test_few_cells_of_a_new_batch_are_refused(model: cx.CellxPert, query: MuData) -> None:
    names = set(query.obs_names[:19])
    for part in (query, *query.mod.values()):
        part.obs["batch"] = ["few" if c in names else str(b) for c, b in part.obs["batch"].items()]
    with pytest.raises(FewCellsError, match="new batch 'few': 19 cells"):
        model.integrate(query, new_batches="fit")
    assert np.isfinite(model.integrate(query, new_batches="ignore", inplace=False)).all()


def test_that_one_batch_says_nothing_of_another_is_told(source: MuData) -> None:
    """A reference of one batch takes nothing out of a query, which may be why they stay apart."""
    first = (source.obs["batch"] == "batch_0").to_numpy()
    with set_options(pull_on_update=False):
        one, other = source[first].copy(), source[~first].copy()
    cx.CellxPert.setup_mudata(one, **ROLES)
    reference = cx.CellxPert(one, preset="nano", seed=0)
    reference.train(max_epochs=1, progress_bar=False)
    with pytest.warns(CellxPertWarning, match="trained on one batch, so that nothing is taken out"):
        cx.CellxPert.map_query(reference, other)
    assert KEY in other.obsm
    cx.CellxPert.map_query(reference, other, new_batches="ignore")


def test_a_batch_that_no_training_cell_is_of_is_told_when_training_ends(source: MuData) -> None:
    mdata = _copy(source)
    cx.CellxPert.setup_mudata(mdata, **ROLES, batch_key="batch")
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    with pytest.warns(CellxPertWarning, match=r"batches 'batch_\d': integrate\(\) knows nothing of them") as told:
        model.train(max_epochs=1, split_key="batch", train_size=0.5, progress_bar=False)
    assert told[0].filename == __file__


@pytest.mark.parametrize("mode", ["Fit", None, "all"])
def test_an_unknown_mode_is_refused(model: cx.CellxPert, query: MuData, mode: object) -> None:
    with pytest.raises(ConfigError, match=r"use one of \['error', 'fit', 'ignore'\]"):
        model.integrate(query, new_batches=mode)


def test_an_object_without_batches_has_to_say_what_is_meant(model: cx.CellxPert, query: MuData) -> None:
    bare = _made_of({role: query[role].copy() for role in ROLES})
    with pytest.raises(QueryError, match=r"no batches in an object; .*obs\['batch'\]"):
        model.integrate(bare)
    raw = model.integrate(bare, new_batches="ignore", inplace=False)
    moved = model.integrate(bare, new_batches="fit", inplace=False)
    assert np.abs(raw - moved).max() > 0.01
    model.integrate(bare, new_batches="fit")
    assert bare.uns["cellxpert_info"]["integrate"][KEY]["unknown_batches"] == ["(query)"]


def test_a_batch_column_that_the_querys_setup_does_not_name_is_read_all_the_same(
    model: cx.CellxPert, query: MuData, places: np.ndarray
) -> None:
    cx.CellxPert.setup_mudata(query, **ROLES)
    model.integrate(query)
    assert np.array_equal(query.obsm[KEY], places, equal_nan=True)
    done = query.uns["cellxpert_info"]["integrate"][KEY]
    assert (list(done["known_batches"]), list(done["unknown_batches"])) == (["batch_0", "batch_1"], [])


def test_batches_that_are_numbers_are_the_same_as_their_text(source: MuData) -> None:
    found = []
    for kind in (int, float, str):
        mdata = _renamed(_copy(source), lambda name, kind=kind: kind(int(name[-1]) + 9))
        if kind is str:
            mdata = _renamed(mdata, lambda name: name)
        setup = setup_mudata(mdata, **ROLES, batch_key="batch")
        found.append(Cells.open(mdata, setup).batches().tolist())
    assert set(found[0]) == {"9", "10"}
    assert found[0] == found[1] == found[2]


def test_a_batch_that_is_missing_is_refused(model: cx.CellxPert, query: MuData) -> None:
    names = set(query.obs_names[:3])
    for part in (query, *query.mod.values()):
        part.obs["batch"] = [None if c in names else b for c, b in part.obs["batch"].astype(object).items()]
    with pytest.raises(MissingValuesError, match=r"obs\['batch'\].*3 cells"):
        model.integrate(query, new_batches="fit")
    with pytest.raises(MissingValuesError, match=r"obs\['batch'\].*3 cells"):
        cx.CellxPert.setup_mudata(query, **ROLES, batch_key="batch")


# --- imputing ---


def test_what_is_imputed_is_written_where_the_modality_is(model: cx.CellxPert, query: MuData) -> None:
    result = model.impute("protein", query, inplace=False)
    model.impute("protein", query, layer_added="guess")
    assert result.modality == "protein"
    assert result.scale == "centred log-ratio, zeros kept"
    assert result.expected.index.equals(query.obs_names)
    assert np.array_equal(result.measured, query.obs_names.isin(query["protein"].obs_names))
    assert np.array_equal(query.obsm["guess_protein"], result.expected, equal_nan=True)
    rows = query.obs_names.get_indexer(query["protein"].obs_names)
    for name, table in (("guess", result.expected), ("guess_lower", result.lower), ("guess_upper", result.upper)):
        layer = query["protein"].layers[name]
        assert layer.dtype == np.float32
        expected = table[list(query["protein"].var_names)].to_numpy()[rows]
        assert np.array_equal(layer, expected, equal_nan=True)
        assert name not in query["rna"].layers
    entry = query.uns["cellxpert_info"]["impute"]["guess_protein"]
    assert (entry["modality"], entry["coverage"], entry["scale"]) == ("protein", 0.9, result.scale)
    assert entry["features"] == list(result.expected.columns)
    nothing = ~query.obs_names.isin([*query["rna"].obs_names, *query["atac"].obs_names])
    assert nothing.any()
    for table in (result.expected, result.lower, result.upper):
        assert np.array_equal(table.isna().all(axis=1), nothing)
    kept = result.expected[~nothing]
    assert (result.lower[~nothing] <= result.upper[~nothing]).all(axis=None)
    assert (kept >= 0).all(axis=None)


def test_what_was_measured_is_not_looked_at(model: cx.CellxPert, query: MuData) -> None:
    before = model.impute("protein", query, inplace=False)
    values = query["protein"].X.toarray()
    query["protein"].X = np.random.default_rng(0).permutation(values)
    after = model.impute("protein", query, inplace=False)
    assert after.expected.equals(before.expected)


def test_a_modality_that_the_object_lacks_is_imputed_all_the_same(model: cx.CellxPert, query: MuData) -> None:
    less = _made_of({role: query[role].copy() for role in ("rna", "atac")}, query.obs["batch"])
    full = model.impute("protein", query, inplace=False)
    result = model.impute("protein", less, inplace=False)
    assert not result.measured.any()
    np.testing.assert_allclose(result.expected, full.expected.loc[less.obs_names], rtol=1e-6, atol=1e-6)
    model.impute("protein", less)
    assert np.array_equal(less.obsm["cellxpert_imputed_protein"], result.expected)
    assert not any(part.layers for part in less.mod.values())
    adata = query["rna"].copy()
    model.impute("protein", adata)
    assert adata.obsm["cellxpert_imputed_protein"].shape == (adata.n_obs, 10)
    assert not adata.layers


def test_a_modality_is_found_by_its_name_too(source: MuData, model: cx.CellxPert, saved: Path, query: MuData) -> None:
    named = _made_of({"gex": query["rna"].copy(), "adt": query["protein"].copy()}, query.obs["batch"])
    cx.CellxPert.setup_mudata(named, rna="gex", protein="adt", batch_key="batch")
    other = cx.CellxPert.load(saved, named)
    by_name, by_role = (other.impute(name, inplace=False) for name in ("adt", "protein"))
    assert by_name.expected.equals(by_role.expected)
    assert model.impute("adt", named, inplace=False).expected.equals(by_role.expected)
    other.impute("adt")
    assert named["adt"].layers["cellxpert_imputed"].shape == named["adt"].shape


def test_what_cannot_be_imputed_is_named(model: cx.CellxPert, query: MuData) -> None:
    with pytest.raises(ModalityError, match=r"no modality 'adt' in the model.*\n.*\n.*\['rna', 'atac', 'protein'\]"):
        model.impute("adt", query)
    with pytest.raises(ModalityError, match="cells with nothing but protein"):
        model.impute("protein", _made_of({"protein": query["protein"].copy()}, query.obs["batch"]))
    for coverage in (0, 1, -0.5, 90, 0.995, float("nan")):
        with pytest.raises(ConfigError, match=r"impute\(coverage=\)"):
            model.impute("protein", query, coverage=coverage)
    with pytest.raises(ConfigError, match="training cells had protein beside another"):
        model.impute("protein", query, coverage=0.99)
    assert model.impute("protein", query, coverage=0.9, inplace=False).coverage == 0.9
    with pytest.raises(ConfigError, match=r"impute\(coverage=\)"):
        model.impute("protein", query, coverage="0.9")
    with pytest.raises(ModalityError, match=r"no modality \['protein'\]"):
        model.impute(["protein"], query)


def test_modalities_that_never_met_are_not_imputed(source: MuData) -> None:
    """A mosaic without a cell that has both: it is integrated, and nothing is claimed of one modality from the other."""
    batch = source.obs["batch"]
    rna = source["rna"][::2].copy()
    protein = source["protein"][~source["protein"].obs_names.isin(rna.obs_names)].copy()
    apart = _made_of({"rna": rna, "protein": protein}, batch)
    cx.CellxPert.setup_mudata(apart, rna="rna", protein="protein", batch_key="batch")
    model = cx.CellxPert(apart, preset="nano", seed=0)
    model.train(max_epochs=1, progress_bar=False)
    assert np.isfinite(model.integrate(inplace=False)).all()
    with pytest.raises(QueryError, match="too few training cells with protein beside another modality"):
        model.impute("protein")


# --- saved, queried, fine-tuned ---


def test_a_saved_model_gives_the_same_places(
    model: cx.CellxPert, saved: Path, query: MuData, places: np.ndarray
) -> None:
    loaded = cx.CellxPert.load(saved, query)
    assert np.array_equal(loaded.integrate(inplace=False), places)
    one, other = (m.impute("rna", query, inplace=False) for m in (model, loaded))
    for name in ("expected", "lower", "upper"):
        assert getattr(one, name).equals(getattr(other, name))


def test_a_model_saved_without_a_space_says_so(saved: Path, query: MuData, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for file in saved.iterdir():
        if file.name != "integration.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((saved / "config.json").read_text())
    del config["sha256"]["integration.safetensors"]
    (folder / "config.json").write_text(json.dumps(config | {"integration": None}))
    old = cx.CellxPert.load(folder, query)
    assert np.isfinite(old.get_latent(inplace=False)).all()
    for call in (old.integrate, lambda: old.impute("protein"), lambda: cx.CellxPert.map_query(folder, query)):
        with pytest.raises(NotTrainedError, match=r"(?s)saved without a space.*model\.finetune\(mdata\)"):
            call()
    cx.CellxPert.setup_mudata(query, **ROLES, batch_key="batch")
    old.finetune(query, max_epochs=1, progress_bar=False)
    assert np.isfinite(old.integrate(inplace=False)).all()


def test_arrays_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    arrays = cx.CellxPert.load(saved)._state.integration.to_arrays()
    for name in ("usual_V", "unique_V", "loading_VR"):
        arrays[name] = arrays[name][:-1]
    arrays["error_QV"] = arrays["error_QV"][:, :-1]
    write_arrays(folder / "integration.safetensors", arrays)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sha256": {}}))
    with pytest.raises(cx.errors.CheckpointError, match="an integration of 109 features, of 110"):
        cx.CellxPert.load(folder)


def test_an_untrained_model_has_no_space(source: MuData) -> None:
    mdata = _copy(source)
    cx.CellxPert.setup_mudata(mdata, **ROLES)
    for call in ("integrate", "impute"):
        with pytest.raises(NotTrainedError):
            getattr(cx.CellxPert(mdata, preset="nano"), call)(*(["protein"] if call == "impute" else []))


def test_a_query_is_mapped_with_a_model_or_its_folder(model: cx.CellxPert, saved: Path, query: MuData) -> None:
    other = _renamed(query, lambda _: "tomorrow")
    folder_query = _copy(other)
    own = model._data
    first = cx.CellxPert.map_query(model, other)
    second = cx.CellxPert.map_query(saved, folder_query)
    assert model._data is own
    assert KEY not in own.obsm
    assert np.array_equal(other.obsm[KEY], folder_query.obsm[KEY])
    assert np.array_equal(other.obsm[KEY], model.integrate(other, new_batches="fit", inplace=False))
    assert other.obs["cellxpert_label"].equals(folder_query.obs["cellxpert_label"])
    assert (other.obs["cellxpert_label"].astype(str) == other.obs["cell_type"].astype(str)).mean() > 0.5
    for mapped, data in ((first, other), (second, folder_query)):
        assert np.array_equal(mapped.get_latent(inplace=False), model.get_latent(data, inplace=False))
        assert mapped.impute("rna", inplace=False).expected.index.equals(data.obs_names)


def test_a_query_is_mapped_as_asked(model: cx.CellxPert, query: MuData, places: np.ndarray) -> None:
    mapped = cx.CellxPert.map_query(model, query, key_added="X_mine", new_batches="error", labels=False)
    assert np.array_equal(query.obsm["X_mine"], places)
    assert "cellxpert_label" not in query.obs
    assert mapped.is_trained
    with pytest.raises(ConfigError, match="a reference of type int"):
        cx.CellxPert.map_query(3, query)
    fresh = _copy(query)
    cx.CellxPert.setup_mudata(fresh, **ROLES)
    untrained = cx.CellxPert(fresh, preset="nano")
    with pytest.raises(NotTrainedError):
        cx.CellxPert.map_query(untrained, query)


def test_fine_tuning_keeps_the_space_where_features_are_lacking(saved: Path, query: MuData, places: np.ndarray) -> None:
    model = cx.CellxPert.load(saved)
    before = model._state.integration
    batch = _renamed(_copy(query), "site {}".format).obs["batch"]
    rna = _made_of({"rna": query["rna"].copy()}, batch)
    cx.CellxPert.setup_mudata(rna, rna="rna", batch_key="batch")
    model.finetune(rna, max_epochs=1, progress_bar=False)
    after = model._state.integration
    for name in ("usual_V", "loading_VR", "unique_V", "stretch_RR"):
        assert np.array_equal(getattr(after.reading, name), getattr(before.reading, name))
    assert after.told == before.told
    assert after.shifts.names == ("site batch_0", "site batch_1")
    assert np.isfinite(model.integrate(inplace=False)).all()
    assert np.isfinite(model.impute("protein", inplace=False).expected).all(axis=None)

    again = cx.CellxPert.load(saved)
    other = _copy(query)
    cx.CellxPert.setup_mudata(other, **ROLES, batch_key="batch")
    again.finetune(other, max_epochs=1, train_size=0.8, progress_bar=False)
    assert not np.array_equal(again._state.integration.reading.usual_V, before.reading.usual_V)


def test_an_adapter_in_use_changes_no_place(saved: Path, query: MuData, places: np.ndarray, tmp_path: Path) -> None:
    model = cx.CellxPert.load(saved)
    model.add_adapter("ours", rank=2)
    cx.CellxPert.setup_mudata(query, **ROLES, batch_key="batch")
    model.finetune(query, adapter="ours", max_epochs=1, progress_bar=False)
    assert model.active_adapter == "ours"
    assert np.array_equal(model.integrate(inplace=False), places)
    model.integrate()
    assert query.uns["cellxpert_info"]["integrate"][KEY]["adapter"] == "ours"
    model.save(tmp_path / "adapted")
    again = cx.CellxPert.load(tmp_path / "adapted", query)
    assert again.active_adapter == "ours"
    assert np.array_equal(again.integrate(inplace=False), places)


# --- perturbed cells, and too few ---


def test_perturbed_cells_have_places(screened: cx.CellxPert, knockouts: MuData) -> None:
    found = screened.integrate(knockouts, inplace=False)
    assert np.isfinite(found).all()
    result = screened.impute("protein", knockouts, inplace=False)
    # a cell without RNA has nothing that tells its proteins
    assert np.array_equal(result.expected.notna().all(axis=1), knockouts.obs_names.isin(knockouts["rna"].obs_names))


def test_eight_cells_train_to_a_space_without_coordinates(source: MuData, tmp_path: Path) -> None:
    """No feature is seen in enough of them: nothing is found, rather than chance."""
    adata = source["rna"][:8].copy()
    with warnings.catch_warnings(action="ignore", category=CellxPertWarning):  # so few cells are told of elsewhere
        cx.CellxPert.setup_anndata(adata, batch_key="batch")
        model = cx.CellxPert(adata, preset="nano", seed=0)
        model.train(max_epochs=1, train_size=1.0, progress_bar=False)
        model.save(tmp_path / "model")
        model.integrate()
        loaded = cx.CellxPert.load(tmp_path / "model", adata)
    assert np.array_equal(loaded.integrate(inplace=False), adata.obsm[KEY])
    assert not adata.obsm[KEY].any()
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert ad.read_h5ad(tmp_path / "x.h5ad").obsm[KEY].shape == adata.obsm[KEY].shape


# --- objects that mislead ---


def test_rows_that_are_mapped_to_other_cells_are_refused(model: cx.CellxPert, query: MuData) -> None:
    names = query["rna"].obs_names.to_numpy().copy()
    names[[0, 1]] = names[[1, 0]]
    query["rna"].obs_names = names
    for call in (model.integrate, lambda data: model.impute("protein", data)):
        with pytest.raises(MuDataError, match="2 cells are mapped to the row of another cell"):
            call(query)


@pytest.mark.parametrize("with_what", ["type", "modality"])
def test_a_batch_that_is_a_type_or_a_modality_is_told_at_setup(source: MuData, with_what: str) -> None:
    mdata = _copy(source)
    if with_what == "type":
        for part in (mdata, *mdata.mod.values()):
            part.obs["site"] = part.obs["cell_type"].astype(str)
        told = "no label occurs in two batches"
    else:
        batch = pd.Series(np.where(mdata.obs_names.isin(mdata["rna"].obs_names), "a", "b"), index=mdata.obs_names)
        cells = mdata["protein"].obs_names.isin(mdata["rna"].obs_names)
        mdata = _made_of({"rna": mdata["rna"].copy(), "protein": mdata["protein"][~cells].copy()}, batch)
        mdata.obs["site"] = mdata.obs["batch"]
        told = "share no modality"
    roles = {role: role for role in mdata.mod}
    labels = "cell_type" if with_what == "type" else None
    with pytest.warns(CellxPertWarning, match=told):
        cx.CellxPert.setup_mudata(mdata, **roles, batch_key="site", labels_key=labels)
    assert any(told in note for note in mdata.uns["cellxpert_info"]["setup"]["notes"])


def test_a_batch_column_that_is_constant_is_told_and_a_continuous_one_refused(source: MuData) -> None:
    mdata = _copy(source)
    mdata.obs["same"], mdata.obs["depth"] = "one", np.random.default_rng(0).normal(size=N_CELLS)
    with pytest.warns(CellxPertWarning, match=r"obs\['same'\] has one batch only"):
        cx.CellxPert.setup_mudata(mdata, **ROLES, batch_key="same")
    assert any("one batch only" in note for note in mdata.uns["cellxpert_info"]["setup"]["notes"])
    with pytest.raises(CategoryError, match=r"(?s)obs\['depth'\].*not whole.*another column than 'depth'"):
        cx.CellxPert.setup_mudata(mdata, **ROLES, batch_key="depth")


# --- real cells ---


@pytest.fixture(scope="module")
def marrow(real_data: Path) -> tuple[MuData, MuData, cx.CellxPert]:
    """600 bone-marrow cells of two batches; a model of a mosaic of which 30 % lost RNA and another 30 % proteins."""
    with set_options(pull_on_update=False), warnings.catch_warnings(action="ignore", category=UserWarning):
        whole = read_h5mu(real_data / "bmmc_cite_neurips2021_set1.h5mu")  # mudata tells of proteins named like genes
        rna, protein = list(whole.mod)
        whole[protein].var_names = "adt_" + whole[protein].var_names
        batch = whole[rna].obs["batch"].astype(str)
        lost = np.random.default_rng(0).random(whole.n_obs)
        names = whole.obs_names
        kept = {rna: names[lost >= 0.3], protein: names[(lost < 0.3) | (lost >= 0.6)]}
        mosaic = _made_of({name: whole[name][cells].copy() for name, cells in kept.items()}, batch)
        whole = _made_of({name: whole[name].copy() for name in (rna, protein)}, batch)
        for data in (mosaic, whole):
            cx.CellxPert.setup_mudata(data, rna=rna, protein=protein, batch_key="batch")
        model = cx.CellxPert(mosaic, config=cx.config.preset("nano").replace(n_genes=400, n_queries=8), seed=0)
        model.train(max_epochs=1, progress_bar=False)  # places read nothing of the network
    return whole, mosaic, model


def test_lost_proteins_of_real_cells_are_told_by_their_genes(marrow: tuple[MuData, MuData, cx.CellxPert]) -> None:
    """Pearson over cells, a mean over proteins; the mean of a feature, which is the same for all cells, has 0."""
    whole, mosaic, model = marrow
    protein = list(whole.mod)[1]
    result = model.impute("protein", inplace=False)
    lost = mosaic.obs_names[~result.measured]
    counts = whole[protein][lost].X.toarray()
    level = np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))
    truth = pd.DataFrame(level, index=lost, columns=whole[protein].var_names)[list(result.expected.columns)]
    tables = [table.loc[lost] for table in (result.expected, result.lower, result.upper)]
    found = cx.metrics.imputation_scores(truth, tables[0], lower=tables[1], upper=tables[2])
    assert found["pearson"] > 0.4
    assert 0.8 < found["coverage"] < 0.97


def test_real_cells_stand_in_one_place_by_either_modality(marrow: tuple[MuData, MuData, cx.CellxPert]) -> None:
    whole, mosaic, model = marrow
    places = [model.integrate(whole, modalities=[role], inplace=False) for role in ("rna", "protein")]
    assert cx.metrics.foscttm(*places) < 0.2  # chance is 0.5
    single = whole.obs_names.isin(mosaic.obs_names[~model.impute("protein", inplace=False).measured])
    assert cx.metrics.foscttm(places[0][single], places[1][single]) < 0.2


def test_batches_of_real_cells_mix_when_they_are_taken_out(marrow: tuple[MuData, MuData, cx.CellxPert]) -> None:
    whole, _, model = marrow
    batch = whole.obs["batch"].to_numpy()
    with warnings.catch_warnings(action="ignore", category=CellxPertWarning):
        bare = _made_of({name: part.copy() for name, part in whole.mod.items()})
        del bare.uns
        raw = model.integrate(bare, new_batches="ignore", inplace=False)

    def mixed(places: np.ndarray) -> float:
        near = NearestNeighbors(n_neighbors=16).fit(places).kneighbors(places, return_distance=False)[:, 1:]
        return float((batch[near] != batch[:, None]).mean())

    portion = pd.Series(batch).value_counts(normalize=True).to_numpy()
    before, after = mixed(raw), mixed(model.integrate(whole, inplace=False))
    assert before + 0.05 < after < 1.1 * (1 - (portion**2).sum())
