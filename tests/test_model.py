"""The model class on real counts: what is written, and that the same cell always gives the same answer."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData, read_h5mu, set_options
from scipy import sparse

import cellxpert as cx
from cellxpert.errors import (
    CellxPertWarning,
    FeatureOverlapError,
    MuDataError,
    NegativeValueError,
    NoLabelsError,
    NotCountsError,
    NotSetUpError,
    NotTrainedError,
    ViewError,
)

LABELS = "bulk_labels"


@pytest.fixture
def query(pbmc: MuData) -> ad.AnnData:
    """60 cells as a plain AnnData, without labels."""
    adata = pbmc["rna"][5:65].copy()
    del adata.obs[LABELS]
    return adata


def _latent(model: cx.CellxPert, data: ad.AnnData | MuData) -> np.ndarray:
    vectors = model.get_latent(data, inplace=False)
    assert vectors is not None
    return vectors


# --- what is written ---


def test_results_are_written_where_scanpy_looks(trained: cx.CellxPert, pbmc: MuData, tmp_path) -> None:
    trained.get_latent(pbmc)
    trained.annotate(pbmc)
    for part in (pbmc, pbmc["rna"]):
        assert part.obsm["X_cellxpert"].dtype == np.float32
        assert part.obsm["X_cellxpert"].shape == (700, 64)
        label = part.obs["cellxpert_label"]
        assert isinstance(label.dtype, pd.CategoricalDtype)
        assert set(label.cat.categories) == set(label.unique())
        assert part.obs["cellxpert_confidence"].between(0, 1).all()
        proba = part.obsm["cellxpert_proba"]
        assert proba.shape == (700, len(trained.labels))
        assert np.allclose(proba.sum(axis=1), 1, atol=1e-6)
        named = (part.obs["cellxpert_reason"] == "labelled").to_numpy()
        assert 0.7 < named.mean() < 1
        assert np.allclose(proba.max(axis=1)[named], part.obs["cellxpert_confidence"][named])
        assert (part.obs["cellxpert_confidence"][~named] == 0).all()
        assert (part.obs["cellxpert_label"][~named] == "Unknown").all()
        assert (part.obs["cellxpert_ood"] >= 0).all()
        assert part.obs["cellxpert_uncertainty"].between(0, 1).all()
    entry = pbmc.uns["cellxpert_info"]["annotate"]["cellxpert_label"]
    classes = np.asarray(entry["classes"])
    named = (pbmc.obs["cellxpert_reason"] == "labelled").to_numpy()
    assert (classes[pbmc.obsm["cellxpert_proba"].argmax(axis=1)] == pbmc.obs["cellxpert_label"])[named].all()
    with set_options(pull_on_update=False):
        pbmc.write_h5mu(tmp_path / "x.h5mu")
        again = read_h5mu(tmp_path / "x.h5mu")
    assert np.array_equal(again.obsm["X_cellxpert"], pbmc.obsm["X_cellxpert"])
    assert (again["rna"].obs["cellxpert_label"] == pbmc["rna"].obs["cellxpert_label"]).all()
    assert again.uns["cellxpert_info"]["annotate"]["cellxpert_label"]["weights_hash"] == entry["weights_hash"]


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")  # anndata announces its next default
def test_anndata_results_write_to_h5ad_and_zarr(trained: cx.CellxPert, query: ad.AnnData, tmp_path) -> None:
    trained.get_latent(query, key_added="X_other")
    trained.annotate(query, key_added="type")
    assert {"type", "type_confidence", "type_reason", "type_ood", "type_uncertainty"} <= set(query.obs)
    query.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert np.array_equal(again.obsm["X_other"], query.obsm["X_other"])
    query.write_zarr(tmp_path / "x.zarr")
    assert (ad.read_zarr(tmp_path / "x.zarr").obs["type"] == query.obs["type"]).all()


def test_stale_colours_are_removed(trained: cx.CellxPert, query: ad.AnnData) -> None:
    query.uns["cellxpert_label_colors"] = ["#000000"]
    trained.annotate(query)
    assert "cellxpert_label_colors" not in query.uns


def test_inplace_false_writes_nothing(trained: cx.CellxPert, query: ad.AnnData) -> None:
    before = query.copy()
    vectors = trained.get_latent(query, inplace=False)
    table = trained.annotate(query, inplace=False)
    proba = trained.annotate(query, inplace=False, return_proba=True)
    assert list(table.columns) == ["label", "confidence", "reason", "ood", "uncertainty"]
    assert table.index.equals(query.obs_names)
    assert tuple(proba.columns) == trained.labels
    assert vectors.shape[0] == query.n_obs
    assert query.obs.equals(before.obs)
    assert not query.obsm.keys() - before.obsm.keys()
    assert "cellxpert_info" not in query.uns


def test_latent_under_scvi_tools_name(trained: cx.CellxPert, query: ad.AnnData) -> None:
    assert np.array_equal(trained.get_latent_representation(query), _latent(trained, query))


# --- the same cell gives the same answer ---


@pytest.mark.parametrize("form", ["csr", "csc", "csr_array", "dense", "float64", "int32", "backed"])
def test_matrix_form_changes_no_bit(trained: cx.CellxPert, query: ad.AnnData, form: str, tmp_path) -> None:
    expected = _latent(trained, query)
    x = query.X
    other = query.copy()
    if form == "backed":
        other.write_h5ad(tmp_path / "x.h5ad")
        other = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    else:
        other.X = {
            "csr": x.tocsr,
            "csc": x.tocsc,
            "csr_array": lambda: sparse.csr_array(x),
            "dense": x.toarray,
            "float64": lambda: x.astype(np.float64),
            "int32": lambda: x.astype(np.int32),
        }[form]()
    assert np.array_equal(_latent(trained, other), expected)


def test_permuted_genes_change_no_bit(trained: cx.CellxPert, query: ad.AnnData) -> None:
    order = np.random.default_rng(0).permutation(query.n_vars)
    assert np.array_equal(_latent(trained, query[:, order].copy()), _latent(trained, query))


def test_training_on_permuted_genes_changes_no_bit(pbmc: MuData) -> None:
    common = pbmc.obs[LABELS].isin(pbmc.obs[LABELS].value_counts().index[:3]).to_numpy()
    adata = pbmc["rna"][np.flatnonzero(common)[::6]].copy()
    order = np.random.default_rng(1).permutation(adata.n_vars)
    vectors = []
    for data in (adata, adata[:, order].copy()):
        cx.CellxPert.setup_anndata(data, labels_key=LABELS)
        model = cx.CellxPert(data, config=cx.config.preset("nano").replace(n_genes=150, n_queries=16))
        model.train(max_epochs=1, progress_bar=False)
        vectors.append(model.get_latent_representation())
    assert np.array_equal(*vectors)


def test_view_and_copy_agree(trained: cx.CellxPert, query: ad.AnnData) -> None:
    view = query[10:40]
    assert np.array_equal(_latent(trained, view), _latent(trained, view.copy()))
    with pytest.raises(ViewError, match="copy"):
        trained.get_latent(view)


def test_a_cell_alone_in_any_batch_and_in_any_order(trained: cx.CellxPert, query: ad.AnnData) -> None:
    together = _latent(trained, query)
    for batch_size in (1, 7):
        other = trained.get_latent(query, inplace=False, batch_size=batch_size)
        assert np.abs(other - together).max() <= 1e-5
    alone = np.concatenate([_latent(trained, query[i : i + 1].copy()) for i in range(3)])
    assert np.abs(alone - together[:3]).max() <= 1e-5
    order = np.random.default_rng(2).permutation(query.n_obs)
    assert np.abs(_latent(trained, query[order].copy()) - together[order]).max() <= 1e-5


def test_duplicated_cell_gets_a_duplicated_vector(trained: cx.CellxPert, query: ad.AnnData) -> None:
    twice = ad.concat([query[:5], query[:5]], index_unique="-")
    vectors = _latent(trained, twice)
    assert np.abs(vectors[:5] - vectors[5:]).max() <= 1e-5


def test_mudata_and_its_modality_agree(trained: cx.CellxPert, pbmc: MuData) -> None:
    assert np.array_equal(_latent(trained, pbmc), _latent(trained, pbmc["rna"].copy()))


def test_genes_by_name_some_missing_and_some_new(trained: cx.CellxPert, query: ad.AnnData) -> None:
    """A gene that the model does not know changes only the total; an all-zero one changes nothing."""
    silent = ad.AnnData(
        sparse.csr_matrix((query.n_obs, 2), dtype=np.float32), obs=query.obs, var=pd.DataFrame(index=["NEW1", "NEW2"])
    )
    wider = ad.concat([silent, query], axis=1)
    assert np.array_equal(_latent(trained, wider), _latent(trained, query))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewer = query[:, : int(0.9 * query.n_vars)].copy()
        vectors = _latent(trained, fewer)
    assert np.isfinite(vectors).all()
    assert not np.array_equal(vectors, _latent(trained, query))
    with pytest.raises(FeatureOverlapError):
        _latent(trained, query[:, :50].copy())


# --- several modalities, any of them absent ---


@pytest.fixture(scope="module")
def multi() -> cx.CellxPert:
    """A model of RNA, ATAC and protein, some cells without some of them."""
    mdata = cx.datasets.synthetic(n_cells=120, missing={"atac": 0.3, "protein": 0.2}, seed=1)
    cx.CellxPert.setup_mudata(
        mdata, rna="rna", atac="atac", protein="protein", labels_key="cell_type", batch_key="batch"
    )
    model = cx.CellxPert(mdata, config=cx.config.preset("nano").replace(n_queries=16), seed=0)
    model.train(max_epochs=1, progress_bar=False)
    return model


def test_mosaic_equals_tokens_dropped(multi: cx.CellxPert) -> None:
    mdata = multi._data
    vectors = multi.get_latent_representation()
    only_rna = _latent(multi, MuData({"rna": mdata["rna"].copy()}))
    has = {m: mdata.obsmap[m].ravel() > 0 for m in ("rna", "atac", "protein")}
    rna_alone = has["rna"] & ~has["atac"] & ~has["protein"]
    assert rna_alone.sum() >= 3
    position = pd.Series(np.arange(mdata["rna"].n_obs), index=mdata["rna"].obs_names)
    same = only_rna[position[mdata.obs_names[rna_alone]].to_numpy()]
    assert np.abs(same - vectors[rna_alone]).max() <= 1e-5
    both = has["rna"] & has["atac"]
    assert not np.allclose(only_rna[position[mdata.obs_names[both]].to_numpy()], vectors[both])


def test_reordered_modality_changes_nothing(multi: cx.CellxPert) -> None:
    mdata = multi._data
    rng = np.random.default_rng(3)
    parts = {name: adata[rng.permutation(adata.n_obs)].copy() for name, adata in mdata.mod.items()}
    other = MuData({name: parts[name] for name in ("protein", "rna", "atac")})
    cx.CellxPert.setup_mudata(other, rna="rna", atac="atac", protein="protein")
    vectors = pd.DataFrame(multi.get_latent_representation(), index=mdata.obs_names)
    again = pd.DataFrame(_latent(multi, other), index=other.obs_names).loc[mdata.obs_names]
    assert np.abs(again.to_numpy() - vectors.to_numpy()).max() <= 1e-5


def test_results_are_mirrored_row_by_row(multi: cx.CellxPert) -> None:
    mdata = multi._data
    multi.get_latent()
    whole = pd.DataFrame(mdata.obsm["X_cellxpert"], index=mdata.obs_names)
    for adata in mdata.mod.values():
        assert np.array_equal(adata.obsm["X_cellxpert"], whole.loc[adata.obs_names].to_numpy())


def test_view_setup_counts_cells_per_modality_and_batch(multi: cx.CellxPert) -> None:
    text = multi.view_setup()
    mdata = multi._data
    for name in ("rna", "atac", "protein"):
        assert name in text
    assert str(mdata["atac"].n_obs) in text
    assert "cell_type" in text


# --- refusals ---


def test_setup_comes_first(query: ad.AnnData) -> None:
    with pytest.raises(NotSetUpError, match="setup_anndata"):
        cx.CellxPert(query)


def test_untrained_model_refuses(query: ad.AnnData) -> None:
    cx.CellxPert.setup_anndata(query)
    model = cx.CellxPert(query, preset="nano")
    assert not model.is_trained
    assert "not trained" in repr(model)
    for call in (model.get_latent, model.annotate, lambda: model.history):
        with pytest.raises(NotTrainedError):
            call()


def test_query_values_are_checked(trained: cx.CellxPert, query: ad.AnnData) -> None:
    logs = query.copy()
    logs.X = sparse.csr_matrix(np.log1p(query.X.toarray() / 7))
    with pytest.raises(NotCountsError):
        trained.annotate(logs, inplace=False)
    scaled = query.copy()
    scaled.X = query.X.toarray() - 1
    with pytest.raises(NegativeValueError):
        trained.annotate(scaled, inplace=False)


@pytest.mark.parametrize("call", ["get_latent", "annotate"])
def test_a_stale_modality_without_a_role_stops_before_anything_is_done(
    trained: cx.CellxPert, query: ad.AnnData, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adt = ad.AnnData(np.ones((query.n_obs, 2), np.float32), obs=pd.DataFrame(index=query.obs_names))
    adt.var_names = ["adt_1", "adt_2"]
    mdata = MuData({"rna": query, "adt": adt})
    mdata.mod["adt"] = adt[:10].copy()
    cx.CellxPert.setup_mudata(mdata, rna="rna")
    before = [(set(part.obsm), list(part.obs), set(part.uns)) for part in (mdata, *mdata.mod.values())]
    assert getattr(trained, call)(mdata, inplace=False) is not None  # it is read without that modality
    monkeypatch.setattr(cx.CellxPert, "_embed", lambda *_: pytest.fail("computed"))
    with pytest.raises(MuDataError, match="'adt'"):
        getattr(trained, call)(mdata)
    assert [(set(part.obsm), list(part.obs), set(part.uns)) for part in (mdata, *mdata.mod.values())] == before


def test_values_changed_after_setup_are_noticed(query: ad.AnnData) -> None:
    cx.CellxPert.setup_anndata(query)
    model = cx.CellxPert(query, preset="nano")
    query.X = query.X * 0.5
    with pytest.raises(NotCountsError):
        model.train(max_epochs=1, progress_bar=False)


def test_annotation_needs_labels_at_training(query: ad.AnnData) -> None:
    cx.CellxPert.setup_anndata(query)
    model = cx.CellxPert(query, config=cx.config.preset("nano").replace(n_genes=50, n_queries=8))
    model.train(max_epochs=1, progress_bar=False)
    with pytest.raises(NoLabelsError):
        model.annotate()
    assert model.get_latent_representation().shape == (query.n_obs, 64)


def test_annotation_needs_a_label_at_training(query: ad.AnnData) -> None:
    query.obs["type"] = pd.Categorical(["Unknown"] * query.n_obs)
    with warnings.catch_warnings(action="ignore", category=CellxPertWarning):
        cx.CellxPert.setup_anndata(query, labels_key="type")
    model = cx.CellxPert(query, config=cx.config.preset("nano").replace(n_genes=50, n_queries=8))
    model.train(max_epochs=1, progress_bar=False)
    with pytest.raises(NoLabelsError, match=r"'Unknown' in obs\['type'\]"):
        model.annotate()


def test_empty_cells_are_unknown(trained: cx.CellxPert, query: ad.AnnData) -> None:
    counts = query.X.toarray()
    counts[3] = 0
    query.X = sparse.csr_matrix(counts)
    with pytest.warns(CellxPertWarning):
        table = trained.annotate(query, inplace=False)
    assert table["label"].iloc[3] == "Unknown"
    assert table["confidence"].iloc[3] == 0
    assert table["reason"].iloc[3] == "few_genes"
    assert (table["reason"] == "few_genes").sum() == 1
    with pytest.warns(CellxPertWarning):
        forced = trained.annotate(query, inplace=False, unknown=False)
    assert set(forced["label"]) <= set(trained.labels)


@pytest.mark.filterwarnings("ignore:the 2 labels are not calibrated")
def test_unlabelled_cells_train_and_get_labels(pbmc: MuData) -> None:
    common = pbmc.obs[LABELS].isin(["Dendritic", "CD19+ B"]).to_numpy()
    adata = pbmc["rna"][np.flatnonzero(common)[::4]].copy()
    text = adata.obs[LABELS].astype(str).to_numpy(dtype=object)
    text[::2] = "Unknown"
    adata.obs["partly"] = pd.Categorical(text.astype(str))
    cx.CellxPert.setup_anndata(adata, labels_key="partly")
    model = cx.CellxPert(adata, config=cx.config.preset("nano").replace(n_genes=100, n_queries=8))
    model.train(max_epochs=1, progress_bar=False)
    assert model.labels == ("CD19+ B", "Dendritic")
    assert set(model.annotate(inplace=False, unknown=False)["label"]) == set(model.labels)
