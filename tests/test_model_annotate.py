"""Labels of a trained model: what they rest on, what is written, and that files change no answer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData, read_h5mu, read_zarr, set_options
from scipy import sparse

import cellxpert as cx
from cellxpert.errors import CellxPertWarning, ConfigError, ObsKeyError

LABELS = "bulk_labels"
TERMS = {"CD4 T": "CL:0000624", "CD8 T": "CL:0000625", "B": "CL:0000236", "mono": "CL:0000576", "T": "CL:0000084"}


def quick(data: ad.AnnData, *, seed: int = 0, **settings: object) -> cx.CellxPert:
    """A small model after one epoch."""
    config = cx.config.preset("nano").replace(n_queries=8, **settings)
    model = cx.CellxPert(data, config=config, seed=seed)
    model.train(max_epochs=1, progress_bar=False)
    return model


def simulated(label: Sequence[str], *, kind: np.ndarray, n_genes: int = 60, seed: int = 0) -> ad.AnnData:
    """Counts of cells of these kinds, each with five genes of its own; ``obs["label"]`` is what is said of them."""
    rng = np.random.default_rng(seed)
    rate = np.full((kind.max() + 1, n_genes), 0.5)
    for k in range(len(rate)):
        rate[k, [(5 * k + i) % n_genes for i in range(5)]] += 1.2
    x = rng.poisson(rate[kind]).astype(np.float32)
    x[:, -1] += 1  # no cell is empty
    obs = pd.DataFrame({"label": pd.Categorical(list(label))}, index=[f"c{i}" for i in range(len(kind))])
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


@pytest.fixture(scope="module")
def termed() -> cx.CellxPert:
    """A model of four types that have terms, 100 cells each."""
    kind = np.repeat(np.arange(4), 100)
    adata = simulated(np.array(["CD4 T", "CD8 T", "B", "mono"])[kind], kind=kind)
    cx.CellxPert.setup_anndata(adata, labels_key="label", label_terms=TERMS)
    return quick(adata)


@pytest.fixture
def query() -> ad.AnnData:
    """Other cells of the same types, without any column."""
    adata = simulated(["?"] * 120, kind=np.repeat(np.arange(4), 30), seed=1)
    del adata.obs["label"]
    return adata


# --- what is read ------------------------------------------------------------------------------------------------------


def test_a_query_needs_no_label_column(termed: cx.CellxPert, query: ad.AnnData) -> None:
    assert query.obs.shape[1] == 0
    table = termed.annotate(query, inplace=False)
    truth = np.repeat(["CD4 T", "CD8 T", "B", "mono"], 30)
    named = table["reason"] == "labelled"
    assert named.mean() > 0.7
    assert (table["label"] == truth)[named].mean() > 0.6
    cx.CellxPert.setup_anndata(query)  # nor does one that was set up without
    assert termed.annotate(query, inplace=False).equals(table)


def test_an_odd_label_column_of_a_query_is_not_read(termed: cx.CellxPert, query: ad.AnnData) -> None:
    expected = termed.annotate(query, inplace=False)
    for values in (np.arange(120), [None] * 120, [f"new {i}" for i in range(120)]):
        query.obs["label"] = values
        assert termed.annotate(query, inplace=False).equals(expected)


def test_genes_in_any_order_and_some_missing(termed: cx.CellxPert, query: ad.AnnData) -> None:
    expected = termed.annotate(query, inplace=False)
    order = np.random.default_rng(0).permutation(query.n_vars)
    other = termed.annotate(query[:, order].copy(), inplace=False)
    assert other[["label", "reason", "ontology_term_id"]].equals(expected[["label", "reason", "ontology_term_id"]])
    assert np.allclose(other[["confidence", "ood"]], expected[["confidence", "ood"]], atol=1e-5)
    fewer = query[:, [name not in {"g0", "g7", "g30", "g41"} for name in query.var_names]].copy()
    found = termed.annotate(fewer, inplace=False)
    assert (found["label"] == expected["label"]).mean() > 0.7
    # what was not measured makes no cell strange
    assert (found["reason"] == "out_of_distribution").mean() < 0.15


def test_cells_of_another_kind_are_out_of_distribution(termed: cx.CellxPert, query: ad.AnnData) -> None:
    strange = query.copy()
    counts = strange.X.toarray()
    counts[:60, :20] = np.random.default_rng(0).poisson(9, (60, 20))  # genes of all types at once
    counts[:60, 20:] = counts[:60, 20:] > 2
    strange.X = sparse.csr_matrix(counts)
    table = termed.annotate(strange, inplace=False)
    assert (table["reason"].iloc[:60] == "out_of_distribution").mean() > 0.6
    assert (table["reason"].iloc[60:] == "out_of_distribution").mean() < 0.2
    assert table["ood"].iloc[:60].median() > 1


def test_clusters_get_one_label(termed: cx.CellxPert, query: ad.AnnData) -> None:
    query.obs["leiden"] = np.repeat(["a/1", "b", "c", "d"], 30)
    table = termed.annotate(query, inplace=False, clusters_key="leiden")
    assert table.groupby(query.obs["leiden"])["label"].nunique().tolist() == [1, 1, 1, 1]
    assert table["label"].iloc[[0, 30, 60, 90]].tolist() == ["CD4 T", "CD8 T", "B", "mono"]
    with pytest.raises(ObsKeyError, match="leiden"):
        termed.annotate(query, inplace=False, clusters_key="Leiden")


# --- calibrated on some of the cells ------------------------------------------------------------------------------------


def shifted(n: int = 480) -> ad.AnnData:
    """Cells of which seven in ten are B cells; every third was labelled by hand."""
    kind = np.random.default_rng(2).choice(4, n, p=[0.1, 0.05, 0.7, 0.15])
    adata = simulated(np.array(["CD4 T", "CD8 T", "B", "mono"])[kind], kind=kind, seed=2)
    adata.obs["truth"] = adata.obs.pop("label").astype(str)
    adata.obs["by_hand"] = adata.obs["truth"].where(np.arange(n) % 3 == 0)
    return adata


def test_labels_follow_cells_that_were_labelled_by_hand(termed: cx.CellxPert) -> None:
    adata = shifted()
    others = adata.obs["by_hand"].isna().to_numpy()
    before = termed.annotate(adata, inplace=False, unknown=False)
    plain = termed.annotate(adata, inplace=False)
    after = termed.annotate(adata, inplace=False, unknown=False, calibration_key="by_hand")
    right = {name: (t["label"] == adata.obs["truth"])[others].mean() for name, t in (("b", before), ("a", after))}
    assert right["a"] > right["b"]
    assert (after["label"] == "B").sum() > (before["label"] == "B").sum()
    termed.annotate(adata, calibration_key="by_hand", set_coverage=0.9)
    entry = adata.uns["cellxpert_info"]["annotate"]["cellxpert_label"]
    assert (entry["calibrated_on"], entry["calibration_key"]) == ("labelled cells", "by_hand")
    assert entry["n_calibrated"] == 160
    kept = (adata.obs["cellxpert_reason"] == "labelled")[~others].mean()
    assert abs(kept - 0.9) < 0.07
    classes = np.asarray(entry["classes"])
    truth = np.array([np.flatnonzero(classes == t)[0] for t in adata.obs["truth"]])
    held = adata.obsm["cellxpert_sets"][np.arange(480), truth]
    assert held[others].mean() > 0.8
    assert termed.annotate(adata, inplace=False).equals(plain)  # the model is what it was


def test_words_and_gaps_of_labels_by_hand_do_not_matter(termed: cx.CellxPert) -> None:
    adata = shifted()
    expected = termed.annotate(adata, inplace=False, calibration_key="by_hand")
    by_hand = adata.obs["by_hand"].copy()
    for gap in ("Unknown", "", "nan", None):
        adata.obs["by_hand"] = pd.Categorical(by_hand.astype(object).where(by_hand.notna(), gap))
        assert termed.annotate(adata, inplace=False, calibration_key="by_hand").equals(expected)
    with set_options(pull_on_update=False):
        mdata = MuData({"rna": adata})
    assert termed.annotate(mdata, inplace=False, calibration_key="by_hand").equals(expected)


def test_types_by_hand_that_were_not_learned_leave_less_for_labels(
    termed: cx.CellxPert, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = shifted()
    none = termed.annotate(adata, inplace=False, return_proba=True, calibration_key="by_hand").sum(axis=1)
    assert np.allclose(none, 1)
    new = (adata.obs["truth"] == "mono").to_numpy()
    adata.obs["by_hand"] = adata.obs["by_hand"].replace({"mono": "platelet"})
    with pytest.warns(CellxPertWarning, match=r"21 of 160 labelled cells are of types that .* e\.g\. \['platelet'\]"):
        proba = termed.annotate(adata, inplace=False, return_proba=True, calibration_key="by_hand").sum(axis=1)
    assert proba[new].mean() < 0.5 < 0.9 < proba[~new].mean()
    monkeypatch.setattr("cellxpert.labelling.MAX_LABELLED", 100)
    with pytest.warns(CellxPertWarning, match="of 100 labelled cells"):
        termed.annotate(adata, calibration_key="by_hand")
    assert 80 < adata.uns["cellxpert_info"]["annotate"]["cellxpert_label"]["n_calibrated"] < 95


def test_words_of_the_ontology_stand_for_labels(termed: cx.CellxPert) -> None:
    adata = shifted()
    adata.obs["synonyms"] = adata.obs["by_hand"].replace(
        {"CD4 T": "CD4-positive, alpha-beta T cell", "B": "B lymphocyte", "mono": "CL:0000576"}
    )
    expected = termed.annotate(adata, inplace=False, calibration_key="by_hand")
    assert termed.annotate(adata, inplace=False, calibration_key="synonyms").equals(expected)
    adata.obs["finer"] = adata.obs["by_hand"].replace({"B": "naive B cell", "mono": "classical monocyte"})
    assert termed.annotate(adata, inplace=False, calibration_key="finer").equals(expected)
    adata.obs["coarser"] = adata.obs["by_hand"].replace({"CD4 T": "T cell", "CD8 T": "T cell"})
    table = termed.annotate(adata, inplace=False, unknown=False, calibration_key="coarser")
    t_cell = adata.obs["truth"].isin(["CD4 T", "CD8 T"])
    assert (table["label"].isin(["CD4 T", "CD8 T"]) == t_cell).mean() > 0.8


def test_too_few_cells_labelled_by_hand_are_refused_and_nothing_is_written(termed: cx.CellxPert) -> None:
    adata = shifted()
    adata.obs["few"] = adata.obs["by_hand"].where(np.arange(480) < 140)
    adata.obs["other words"] = "my " + adata.obs["truth"]
    adata.obs["none"] = np.nan
    columns = list(adata.obs)
    for key, match in (
        ("few", r"(?s)47 labelled cells, of which 0 trained the model; 47 of 47 others .*label 50 cells"),
        ("other words", r"(?s)480 labelled cells, .*rename \['my B', 'my CD4 T'"),
        ("none", "0 labelled cells"),
    ):
        with pytest.raises(ConfigError, match=match):
            termed.annotate(adata, calibration_key=key)
    with pytest.raises(ObsKeyError, match="by_hand"):
        termed.annotate(adata, calibration_key="by hand")
    assert list(adata.obs) == columns
    assert not adata.uns
    termed.annotate(adata, key_added="mine")
    with pytest.raises(ConfigError, match="it would confirm itself"):
        termed.annotate(adata, key_added="again", calibration_key="mine")
    assert "again" not in adata.obs


def test_cells_that_trained_the_model_calibrate_nothing() -> None:
    kind = np.repeat(np.arange(2), 200)
    adata = simulated(np.array(["x", "y"])[kind], kind=kind)
    cx.CellxPert.setup_anndata(adata, labels_key="label")
    model = quick(adata)
    with pytest.raises(ConfigError, match="400 labelled cells, of which 360 trained the model; 40 of 40 others"):
        model.annotate(calibration_key="label")
    more = cx.CellxPert(adata, config=cx.config.preset("nano").replace(n_queries=8), seed=0)
    more.train(max_epochs=1, train_size=0.8, progress_bar=False)
    more.annotate(calibration_key="label")
    assert adata.uns["cellxpert_info"]["annotate"]["cellxpert_label"]["n_calibrated"] == 80


# --- what is returned and written --------------------------------------------------------------------------------------


def test_columns_follow_from_what_is_asked(termed: cx.CellxPert, query: ad.AnnData) -> None:
    first = ["label", "confidence", "reason", "ood", "uncertainty", "ontology_term_id"]
    assert list(termed.annotate(query, inplace=False).columns) == first
    table = termed.annotate(query, inplace=False, set_coverage=0.9, back_off=0.8)
    assert list(table.columns) == [*first, "set_size"]
    assert table["set_size"].between(1, 4).all()
    coarser = table["reason"] == "coarser"
    assert coarser.any()
    assert (table["confidence"][coarser] >= 0.8 - 1e-5).all()
    own = table[table["reason"] == "labelled"]
    assert (own["ontology_term_id"] == own["label"].map(TERMS)).all()
    refused = ~table["reason"].isin(["labelled", "coarser"])
    assert (table["ontology_term_id"][refused] == "unknown").all()
    proba = termed.annotate(query, inplace=False, return_proba=True)
    assert list(proba.columns) == list(termed.labels)
    assert np.allclose(proba.sum(axis=1), 1, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")  # anndata announces its next default
@pytest.mark.parametrize("kind", ["h5mu", "zarr"])
def test_what_is_written_survives_files(termed: cx.CellxPert, query: ad.AnnData, tmp_path, kind: str) -> None:
    with set_options(pull_on_update=False):
        mdata = MuData({"rna": query})
        mdata.obs["leiden"] = np.repeat(["a", "b"], 60)
        termed.annotate(mdata, set_coverage=0.9, back_off=0.8, clusters_key="leiden")
        if kind == "h5mu":
            mdata.write_h5mu(tmp_path / "x.h5mu")
            again = read_h5mu(tmp_path / "x.h5mu")
        else:
            mdata.write_zarr(tmp_path / "x.zarr")
            again = read_zarr(tmp_path / "x.zarr")
    names = ["label", "confidence", "reason", "ood", "uncertainty", "label_ontology_term_id", "set_size"]
    for part, other in ((mdata, again), (mdata["rna"], again["rna"])):
        for name in (f"cellxpert_{name}" for name in names):
            assert part.obs[name].tolist() == other.obs[name].tolist()
            assert part.obs[name].dtype == other.obs[name].dtype
        for name in ("cellxpert_proba", "cellxpert_sets"):
            assert np.array_equal(part.obsm[name], other.obsm[name])
            assert part.obsm[name].dtype == other.obsm[name].dtype
    entry = again.uns["cellxpert_info"]["annotate"]["cellxpert_label"]
    assert list(entry["classes"]) == list(termed.labels)
    assert (entry["coverage"], entry["back_off"], entry["set_coverage"]) == (0.9, 0.8, 0.9)
    assert (entry["clusters_key"], entry["calibrated_on"]) == ("leiden", "out-of-fold")
    assert entry["ontology_version"]


def test_a_second_call_leaves_nothing_of_the_first(termed: cx.CellxPert, query: ad.AnnData) -> None:
    termed.annotate(query, set_coverage=0.9)
    assert "cellxpert_set_size" in query.obs
    termed.annotate(query)
    assert "cellxpert_set_size" not in query.obs
    assert "cellxpert_sets" not in query.obsm
    assert "set_coverage" not in query.uns["cellxpert_info"]["annotate"]["cellxpert_label"]


def test_a_reloaded_model_gives_the_same_answers_bit_for_bit(termed: cx.CellxPert, query: ad.AnnData, tmp_path) -> None:
    termed.save(tmp_path / "model")
    loaded = cx.CellxPert.load(tmp_path / "model")
    query.obs["leiden"] = np.arange(120) % 7
    for asked in (
        {},
        {"coverage": 0.6, "set_coverage": 0.8},
        {"back_off": 0.9, "clusters_key": "leiden"},
        {"unknown": False},
        {"return_proba": True},
    ):
        expected = termed.annotate(query, inplace=False, **asked)
        pd.testing.assert_frame_equal(loaded.annotate(query, inplace=False, **asked), expected, check_exact=True)


# --- what cannot be asked ----------------------------------------------------------------------------------------------


def test_labels_without_terms_do_not_back_off(trained: cx.CellxPert, pbmc: MuData) -> None:
    with pytest.raises(ConfigError, match=r"back_off=[\s\S]*label_terms='auto'"):
        trained.annotate(pbmc, back_off=0.8)
    assert "cellxpert_label" not in pbmc.obs


@pytest.mark.parametrize("asked", [{"coverage": 0.3}, {"coverage": 90}, {"back_off": 0}, {"set_coverage": "0.9"}])
def test_shares_are_refused_before_anything_is_computed(
    trained: cx.CellxPert, pbmc: MuData, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cx.CellxPert, "_embed", lambda *_: pytest.fail("computed"))
    with pytest.raises(ConfigError, match=next(iter(asked))):
        trained.annotate(pbmc, **asked)


def test_too_few_labelled_cells_leave_a_model_that_labels_but_promises_nothing() -> None:
    kind = np.repeat(np.arange(2), 20)
    adata = simulated(np.array(["x", "y"])[kind], kind=kind)
    cx.CellxPert.setup_anndata(adata, labels_key="label")
    with pytest.warns(CellxPertWarning, match="the 2 labels are not calibrated: .* 50 labelled cells"):
        model = quick(adata)
    assert model._state.calibration is None
    model.annotate()
    assert set(adata.obs["cellxpert_reason"]) == {"labelled"}
    assert adata.obs["cellxpert_ood"].isna().all()
    assert adata.uns["cellxpert_info"]["annotate"]["cellxpert_label"]["calibrated_on"] == "nothing"
    with pytest.raises(ConfigError, match=r"calibration_key='label'.*not calibrated"):
        model.annotate(calibration_key="label")
    with pytest.raises(ConfigError, match="not calibrated"):
        model.annotate(set_coverage=0.9)


# --- names -------------------------------------------------------------------------------------------------------------


def test_columns_of_the_user_are_neither_replaced_nor_removed(termed: cx.CellxPert) -> None:
    query = simulated(["?"] * 40, kind=np.repeat(np.arange(4), 10), seed=5)
    for column in ("mine", "cell_type_ontology_term_id", "type_confidence"):  # the second is CELLxGENE's
        query.obs[column] = "x"
    before = query.copy()
    for key in ("mine", "cell_type", "type_label"):
        with pytest.raises(ConfigError, match=r"that annotate\(\) did not write"):
            termed.annotate(query, key_added=key)
    pd.testing.assert_frame_equal(query.obs, before.obs)
    assert "cellxpert_info" not in query.uns
    termed.annotate(query, key_added="called")
    termed.annotate(query, key_added="called", set_coverage=0.8)  # its own are written again
    termed.annotate(query, key_added="called")
    assert "called_set_size" not in query.obs
    pd.testing.assert_frame_equal(query.obs[before.obs.columns], before.obs)


def test_the_column_that_was_learned_from_is_not_replaced(trained: cx.CellxPert, pbmc: MuData) -> None:
    pbmc["rna"].obs[LABELS] = pbmc.obs[LABELS]
    for key in (LABELS, ""):
        with pytest.raises(ConfigError, match="key_added"):
            trained.annotate(pbmc, key_added=key)


# --- coarse labels -----------------------------------------------------------------------------------------------------


def test_coarse_labels_do_not_contradict_fine_ones() -> None:
    """Two thirds of the T cells are called just that; what they are is known here.

    As a name, "T" is one more class that takes them from their types. With terms a cell called "T" may be of any T type.
    """
    kind = np.repeat(np.arange(3), 150)
    fine = np.array(["CD4 T", "CD8 T", "B"])[kind]
    rng = np.random.default_rng(3)
    coarse = (rng.random(450) < 0.67) & (kind < 2)
    said = np.where(coarse, "T", fine)
    right = {}
    for terms in (None, TERMS):
        adata = simulated(said, kind=kind)
        cx.CellxPert.setup_anndata(adata, labels_key="label", label_terms=terms)
        model = quick(adata)
        table = model.annotate(adata, inplace=False, unknown=False)
        right[terms is not None] = (table["label"].to_numpy() == fine)[coarse].mean()
        if terms is not None:
            new = simulated(["?"] * 90, kind=np.repeat(np.arange(3), 30), seed=7)
            found = model.annotate(new, inplace=False, unknown=False)["label"].to_numpy()
            assert (found == np.repeat(["CD4 T", "CD8 T", "B"], 30)).mean() > 0.75
    assert right[True] > 0.75
    assert right[True] > right[False] + 0.4


def test_two_words_for_one_type_do_not_lose_to_a_third_label() -> None:
    """Half of the cells that are hard to tell from B cells are called "T", the other half "T lymphocyte"."""
    kind = np.repeat([0, 1], [200, 120])
    said = np.where(kind == 1, "B", np.where(np.arange(320) % 2, "T", "T lymphocyte"))
    terms = {"T": "CL:0000084", "T lymphocyte": "CL:0000084", "B": "CL:0000236"}
    found = {}
    for given in (None, terms):
        adata = simulated(said, kind=kind)
        cx.CellxPert.setup_anndata(adata, labels_key="label", label_terms=given)
        model = quick(adata)
        new = simulated(["?"] * 400, kind=np.repeat([0, 1], 200), seed=5)
        table = model.annotate(new, inplace=False, unknown=False)
        proba = model.annotate(new, inplace=False, return_proba=True)
        found[given is not None] = table, proba
    table, proba = found[True]
    one_type = proba[["T", "T lymphocyte"]].sum(axis=1)
    is_t = table["label"].isin(["T", "T lymphocyte"])
    assert (is_t == (one_type > proba["B"])).all()
    np.testing.assert_allclose(table["confidence"], np.maximum(one_type, proba["B"]), rtol=1e-5)
    assert (proba.loc[is_t].idxmax(axis=1) == "B").any()  # the most probable single word, and yet not the answer
    assert (table.loc[is_t, "label"] == proba.loc[is_t, ["T", "T lymphocyte"]].idxmax(axis=1)).all()
    plain, proba = found[False]
    np.testing.assert_allclose(plain["confidence"], proba.max(axis=1), rtol=1e-5)
    kept = model.annotate(new, inplace=False)["reason"] == "labelled"
    assert kept.mean() > 0.8  # what was measured on training cells are sums too


# --- labels of all kinds -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
def test_odd_names_and_a_class_of_one_cell_survive(tmp_path) -> None:
    kind = np.repeat(np.arange(5), 30)
    names = np.array(["T/NK", "γδ T 日本 \U0001f9ec", "x" * 2000, " spaced ", "T-NK"])
    label = names[kind].astype(object)
    label[0] = "once"
    adata = simulated(label, kind=kind)
    with pytest.warns(CellxPertWarning, match="fewer than 3 cells"):
        cx.CellxPert.setup_anndata(adata, labels_key="label")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CellxPertWarning)  # where the one cell is not trained on
        model = quick(adata)
    assert set(model.labels) <= {*names, "once"}
    assert set(names) <= set(model.labels)
    model.annotate(unknown=False, key_added="my_label")
    assert set(adata.obs["my_label"]) <= set(model.labels)
    adata.write_h5ad(tmp_path / "x.h5ad")
    adata.write_zarr(tmp_path / "x.zarr")
    for again in (ad.read_h5ad(tmp_path / "x.h5ad"), ad.read_zarr(tmp_path / "x.zarr")):
        assert again.obs["my_label"].tolist() == adata.obs["my_label"].tolist()
        assert list(again.uns["cellxpert_info"]["annotate"]["my_label"]["classes"]) == list(model.labels)
    model.save(tmp_path / "model")
    loaded = cx.CellxPert.load(tmp_path / "model", adata)
    assert loaded.labels == model.labels
    assert loaded.annotate(inplace=False).equals(model.annotate(inplace=False))


def test_five_hundred_classes(tmp_path) -> None:
    label = np.repeat([f"type {i:03}" for i in range(500)], 3)
    adata = simulated(label, kind=np.repeat(np.arange(500) % 12, 3))
    cx.CellxPert.setup_anndata(adata, labels_key="label")
    model = quick(adata, n_genes=40)
    assert model.labels == tuple(sorted(set(label)))
    model.annotate(unknown=False)
    assert adata.obsm["cellxpert_proba"].shape == (1500, 500)
    assert np.allclose(adata.obsm["cellxpert_proba"].sum(axis=1), 1, atol=1e-5)
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert again.obs["cellxpert_label"].tolist() == adata.obs["cellxpert_label"].tolist()


def test_classes_without_a_cell_are_not_learned(pbmc: MuData) -> None:
    """Unused categories would be labels that nothing speaks for."""
    adata = pbmc["rna"][:80].copy()
    adata.obs["type"] = pd.Categorical(np.arange(80) % 2).rename_categories({0: "x", 1: "y"}).add_categories(["unused"])
    cx.CellxPert.setup_anndata(adata, labels_key="type")
    model = quick(adata, n_genes=50)
    assert model.labels == ("x", "y")
    assert set(model.annotate(inplace=False, unknown=False)["label"]) <= {"x", "y"}


def test_cells_without_a_label_are_unlabelled_and_get_one(termed: cx.CellxPert) -> None:
    """NaN is the unlabeled category, never a class; of labels that are absent from it nothing is lost."""
    kind = np.repeat(np.arange(2), 60)
    adata = simulated(np.array(["x", "y"])[kind], kind=kind)
    adata.obs["label"] = adata.obs["label"].astype(object).where(np.arange(120) % 4 > 0, None)
    cx.CellxPert.setup_anndata(adata, labels_key="label", unlabeled_category="not there")
    model = quick(adata)
    assert model.labels == ("x", "y")
    model.annotate()
    assert set(adata.obs["cellxpert_label"]) <= {"x", "y", "not there"}


def test_batches_that_were_never_seen_are_annotated(query: ad.AnnData) -> None:
    kind = np.repeat(np.arange(4), 60)
    adata = simulated(np.array(["a", "b", "c", "d"])[kind], kind=kind)
    adata.obs["donor"] = np.array(["d1", "d2", "d3"])[np.arange(240) % 3]
    cx.CellxPert.setup_anndata(adata, labels_key="label", batch_key="donor")
    model = quick(adata)
    assert model._state.calibration.source == "left-out batches"
    expected = model.annotate(query, inplace=False)
    query.obs["donor"] = "never seen"
    assert model.annotate(query, inplace=False).equals(expected)


def test_cells_of_one_name_are_refused(termed: cx.CellxPert, query: ad.AnnData) -> None:
    query.obs_names = ["same"] * 120
    with pytest.raises(cx.errors.CellxPertError, match="same"):
        termed.annotate(query)
