"""Between object and model: what is read, what is written where, and what is recorded."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData, set_options

import cellxpert as cx
from cellxpert import exchange
from cellxpert.data.cells import Cells
from cellxpert.data.record import LabelTerm
from cellxpert.errors import CellxPertWarning, ConfigError, NoLabelsError, ObsKeyError, ViewError
from cellxpert.ontology import CellOntology
from cellxpert.tasks.annotate import Annotation, LabelOptions
from cellxpert.tasks.checks import make_screen
from cellxpert.tasks.perturb import screen
from cellxpert.tasks.screens import Asked

GENE, PAIR = "gene_00", "gene_01+gene_06"


def read(model, data, **more):
    given = {"setup": model._setup, "call": "test", "inplace": False, "own": False} | more
    return exchange.read(model._state, data, **given)


# --- reading -----------------------------------------------------------------------------------------------------------


def test_tokens_are_in_the_order_of_the_cells(screened, knockouts):
    tokens = read(screened, knockouts)
    assert tokens.n_cells == knockouts.n_obs
    order = np.random.default_rng(0).permutation(knockouts.n_obs)
    with set_options(pull_on_update=False):
        other = read(screened, knockouts[order].copy())
    assert other.lengths.tolist() == tokens.lengths[order].tolist()


def test_views_are_read_but_not_written_to(screened, knockouts):
    view = knockouts["rna"][:40]
    assert read(screened, view).n_cells == 40
    with pytest.raises(ViewError, match="test"):
        read(screened, view, inplace=True)


def test_what_the_checks_find_is_told_of_other_objects(screened, knockouts):
    counts = knockouts["rna"].copy()
    counts.X = counts.X.multiply(np.arange(counts.n_obs)[:, None] >= 3).tocsr()
    with pytest.warns(CellxPertWarning) as caught:
        screened.get_latent(counts, inplace=False)
    first, second = (str(w.message) for w in caught)
    assert "3 of 470 cells have no value above zero" in first
    assert "3 of 470 cells have no counts in the model's features" in second
    assert {w.filename for w in caught} == {__file__}  # whoever called the method


def test_subjects(screened, knockouts):
    state = screened._state
    cells = Cells.open(knockouts, screened._setup)
    tokens = read(screened, knockouts)
    split = pd.Series(np.where(np.arange(knockouts.n_obs) % 3, "train", "validation"))
    found = exchange.subjects_of(state, cells, tokens, groupby="cell_type", split=split)
    assert list(found.names) == knockouts.obs_names.tolist()
    assert list(found.condition) == knockouts.obs["perturbation"].tolist()
    assert list(found.group) == knockouts.obs["cell_type"].tolist()
    assert found.known.tolist() == [bool(i % 3) for i in range(knockouts.n_obs)]
    # genes that were set are not read where they were
    gene = state.vocabulary.names.index(GENE)
    knocked = np.flatnonzero(knockouts.obs["perturbation"] == GENE)
    seen = found.collator.tokens
    assert not any(gene in seen.feature[seen.start[i] : seen.start[i + 1]] for i in knocked)
    assert any(gene in tokens.feature[tokens.start[i] : tokens.start[i + 1]] for i in knocked)
    plain = exchange.subjects_of(
        state, Cells.open(knockouts, replace(screened._setup, perturbation_key=None)), tokens, groupby=None, split=None
    )
    assert (plain.condition, plain.known, plain.group) == (None, None, None)
    assert plain.collator.tokens is tokens


def test_networks_elsewhere_are_copied(screened):
    network = screened._state.network
    assert exchange.on_cpu(network) is network

    class Elsewhere(torch.nn.Linear):
        """Weights that say they are on another device."""

        def parameters(self, recurse=True):
            return (p.to("meta") for p in super().parameters(recurse))

    layer = Elsewhere(2, 2)
    copied = exchange.on_cpu(layer)
    assert copied is not layer
    assert torch.equal(copied.weight, layer.weight)


def test_progress_counts_and_stays_silent_where_not_asked_for(capsys):
    with exchange.progress("perturb", 3, show=False) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr().err == ""


def test_labels_are_needed(screened, trained):
    with pytest.raises(NoLabelsError, match="labels_key"):
        exchange.require_labels(screened._state)
    exchange.require_labels(trained._state)


def test_descriptions_are_plain_values(screened):
    tokens = read(screened, screened._data, own=True)
    found = exchange.describe(screened._state, tokens, started=0.0, device="cpu")
    assert set(found) == {
        "version", "weights_hash", "vocabulary_hash", "seed", "feature_overlap", "device", "seconds"
    }  # fmt: skip
    assert found["version"] == cx.__version__
    assert found["feature_overlap"] == 1
    assert all(isinstance(v, str | int | float) for v in found.values())


# --- writing -----------------------------------------------------------------------------------------------------------


def predicted(model, data, genes, *, groupby=None):
    """A result, and what is needed to write it."""
    state = model._state
    cells = Cells.open(
        data, model._setup if isinstance(data, MuData) else exchange.setups.query_setup(model._setup, data)
    )
    tokens = exchange.read(state, data, setup=model._setup, call="test", inplace=False, own=True)
    settings = cx.config.SteeringConfig(n_cells=12, n_movable=8, min_cells=5)
    asked = Asked(genes=genes, settings=settings, n_chains=2, n_steps=20)
    subjects = exchange.subjects_of(state, cells, tokens, groupby=groupby, split=None)
    job = make_screen(
        asked, subjects, network=state.network, vocabulary=state.vocabulary, perturbations=state.perturbations
    )
    return screen(job), {"cells": cells, "asked": asked, "state": state}


def write(model, data, genes, *, key="out", groupby=None):
    result, given = predicted(model, data, genes, groupby=groupby)
    cells = given.pop("cells")
    exchange.write_perturbation(data, cells, result, key=key, entry={"version": "0"}, **given)
    return result


def test_predicted_cells_are_written_by_name(screened, knockouts):
    """Genes in another order, one that the model does not know; cells of modalities in an order of their own."""
    rng = np.random.default_rng(0)
    rna = knockouts["rna"][rng.permutation(knockouts["rna"].n_obs)][:, rng.permutation(44)].copy()
    new = ad.AnnData(np.ones((rna.n_obs, 1), np.float32), obs=pd.DataFrame(index=rna.obs_names))
    new.var_names = ["unknown"]
    obs = rna.obs.copy()
    rna = ad.concat([new, rna], axis=1)
    rna.obs = obs
    mdata = MuData({"protein": knockouts["protein"].copy(), "rna": rna})
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein", perturbation_key="perturbation")
    result = write(screened, mdata, GENE)
    key = (GENE, "all")
    layer = pd.DataFrame(mdata["rna"].layers["out"], index=rna.obs_names, columns=rna.var_names)
    cells = list(result.cells[key])
    expected = pd.DataFrame(result.expression[key]["perturbed"], index=cells, columns=list(result.genes))
    assert np.array_equal(layer.loc[cells, list(result.genes)], expected)
    assert layer["unknown"].isna().all()
    assert layer.drop(index=cells).isna().all().all()
    assert layer.to_numpy().dtype == np.float32
    vectors = pd.DataFrame(mdata.obsm["X_out"], index=mdata.obs_names)
    assert np.array_equal(vectors.loc[cells], result.latent[key]["perturbed"])
    assert vectors.drop(index=cells).isna().all().all()
    for adata in mdata.mod.values():
        assert np.array_equal(adata.obsm["X_out"], vectors.loc[adata.obs_names], equal_nan=True)
    assert "out" not in mdata["protein"].layers


def test_groups_of_one_perturbation_are_written_together(screened, knockouts):
    adata = knockouts["rna"].copy()
    result = write(screened, adata, GENE, groupby="cell_type")
    layer = pd.DataFrame(adata.layers["out"], index=adata.obs_names, columns=adata.var_names)
    for key, cells in result.cells.items():
        assert np.array_equal(layer.loc[list(cells), list(result.genes)], result.expression[key]["perturbed"])
    assert layer.notna().any(axis=1).sum() == 24


def test_a_screen_writes_tables_and_removes_what_they_do_not_describe(screened, knockouts):
    adata = knockouts["rna"].copy()
    adata.layers["mine"] = adata.X.copy()
    write(screened, adata, GENE)
    write(screened, adata, GENE, key="kept")
    result = write(screened, adata, [GENE, PAIR])
    assert set(adata.layers) == {"mine", "kept"}
    assert set(adata.obsm) == {"X_kept"}
    entry = adata.uns["cellxpert_info"]["perturb"]["out"]
    assert entry["genes"] == [GENE, PAIR]
    pd.testing.assert_frame_equal(entry["table"].reset_index(drop=True), result.table)
    assert all(isinstance(name, str) for name in entry["table"].index)


def test_layers_of_others_are_not_removed(screened, knockouts):
    """Only what an earlier call wrote under this key."""
    adata = knockouts["rna"].copy()
    adata.layers["out"] = adata.X.copy()
    write(screened, adata, [GENE, PAIR])
    assert "out" in adata.layers


def test_records_say_what_was_asked(screened, knockouts):
    adata = knockouts["rna"].copy()
    write(screened, adata, {GENE: ("fold", 0.5)})
    entry = adata.uns["cellxpert_info"]["perturb"]["out"]
    assert entry["genes"] == [f"{GENE}(fold 0.5)"]
    assert (entry["n_steps"], entry["n_chains"], entry["seed"]) == (20, 2, 0)
    assert entry["steering"]["n_movable"] == 8
    assert "kappa" not in entry["steering"]  # HDF5 knows no None
    assert entry["version"] == "0"


# --- labels ------------------------------------------------------------------------------------------------------------


def gathered(model, data, *, state=None, clusters_key=None):
    tokens = read(model, data)
    logits = np.zeros((tokens.n_cells, len(model.labels)), np.float32)
    state = model._state if state is None else state
    return exchange.evidence(state, data, tokens, logits_NC=logits, clusters_key=clusters_key)


def test_evidence_is_what_was_seen_and_how_far_each_cell_is(trained, pbmc):
    adata = pbmc["rna"][:30].copy()
    found = gathered(trained, adata)
    known = adata[:, list(trained._state.vocabulary.names)].X.toarray()
    assert found.shown_N.tolist() == (known > 0).sum(axis=1).tolist()
    assert found.cluster_N is None
    types, head = trained._state.calibration.types, trained._state.network.labels
    # by hand, cell by cell: magnitudes to components, components to the nearest mean
    tokens, scale = read(trained, adata), head.scale_MK.double().numpy()
    for i in range(0, 30, 7):
        part = slice(tokens.start[i], tokens.start[i + 1])
        level = np.zeros(len(types.components.usual_V))
        level[tokens.feature[part]] = scale[0, tokens.bin[part]]
        point = (level - types.components.usual_V) @ types.components.direct_VP
        squared = [
            (point - mean) @ types.root_PP @ types.root_PP.T @ (point - mean) / spread
            for mean, n, spread in zip(types.mean_CP, types.n_C, types.spread_C, strict=True)
            if n
        ]
        assert found.distance_N[i] == pytest.approx(min(squared), rel=1e-6)
    assert gathered(trained, adata, state=replace(trained._state, calibration=None)).distance_N is None


def test_a_gene_that_is_not_measured_stands_at_what_is_usual(trained, pbmc):
    adata = pbmc["rna"][:20].copy()
    lacking = list(trained._state.vocabulary.names)[::9]
    found = gathered(trained, adata[:, ~adata.var_names.isin(lacking)].copy())
    usual = trained._state.calibration.types.components.usual_V
    weight = trained._state.network.labels.magnitude.weight.detach().numpy()
    expected = sum(usual[k] * weight[k] for k in range(0, len(usual), 9))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found.logits_NC, np.tile(expected, (20, 1)), rtol=1e-4, atol=1e-5)
    assert not gathered(trained, adata).logits_NC.any()  # nothing is lacking


def test_clusters_are_read_of_an_object_without_labels(trained, pbmc):
    adata = pbmc["rna"][:30].copy()
    names = np.array([None if i % 5 == 0 else f"c/{i % 3}" for i in range(30)], dtype=object)
    adata.obs = pd.DataFrame(
        {"leiden": pd.Categorical(names, categories=["c/2", "c/1", "unused", "c/0"])}, adata.obs_names
    )
    cluster = gathered(trained, adata, clusters_key="leiden").cluster_N
    for i in range(30):
        assert (cluster[i] < 0) == (names[i] is None)
        for j in range(i):
            if names[i] is not None:
                assert (cluster[i] == cluster[j]) == (names[i] == names[j])
    with pytest.raises(ObsKeyError, match="Leiden"):
        gathered(trained, adata, clusters_key="Leiden")


def test_terms_are_in_the_order_of_the_labels(trained):
    state = trained._state
    assert exchange.terms_of(state) is None
    with pytest.raises(ConfigError, match=r"back_off=[\s\S]*label_terms="):
        exchange.terms_of(state, needed=True)
    known = (LabelTerm(label="not learned", term="CL:1"), LabelTerm(label=state.labels[2], term="CL:2"))
    told = replace(state, setup=replace(state.setup, label_terms=known))
    expected = tuple("CL:2" if i == 2 else "" for i in range(len(state.labels)))
    assert exchange.terms_of(told) == exchange.terms_of(told, needed=True) == expected
    other = replace(state, setup=replace(state.setup, label_terms=known[:1]))
    assert exchange.terms_of(other) is None


def test_what_was_asked_of_labels_is_recorded(trained):
    state, options = trained._state, LabelOptions(coverage=0.8)
    found = exchange.describe_labels(state, options, clusters_key=None, ontology=None)
    assert found == {"unknown": True, "coverage": 0.8, "calibrated_on": "out-of-fold"}
    blood = CellOntology.from_terms({"X:1": ("cell", [], [])}, version="v7")
    full = exchange.describe_labels(
        replace(state, calibration=None),
        LabelOptions(back_off=0.5, set_coverage=0.9),
        clusters_key="leiden",
        ontology=blood,
    )
    assert full == {
        "unknown": True,
        "coverage": 0.9,
        "back_off": 0.5,
        "set_coverage": 0.9,
        "calibrated_on": "nothing",
        "clusters_key": "leiden",
        "ontology_version": "v7",
    }


def annotated(n, *, full):
    rng = np.random.default_rng(0)
    return Annotation(
        labels=rng.choice(np.array(["a/b", "é", "?"], dtype=object), n),
        confidence=rng.random(n, dtype=np.float32),
        probabilities=rng.random((n, 2), dtype=np.float32),
        classes=("a/b", "é"),
        reason=rng.choice(np.array(["labelled", "few_genes"], dtype=object), n),
        ood=rng.random(n, dtype=np.float32),
        terms=rng.choice(np.array(["CL:1", "unknown"], dtype=object), n) if full else None,
        sets_NC=rng.random((n, 2)) < 0.5 if full else None,
    )


@pytest.mark.parametrize("full", [False, True])
def test_an_annotation_as_a_table(full):
    found = annotated(9, full=full)
    table = exchange.annotation_table(found, pd.Index([f"c{i}" for i in range(9)]))
    expected = ["label", "confidence", "reason", "ood"] + (["ontology_term_id", "set_size"] if full else [])
    assert list(table.columns) == expected
    assert table.loc["c4", ["label", "reason"]].tolist() == [found.labels[4], found.reason[4]]
    assert table.index[0] == "c0"
    if full:
        assert table["set_size"].tolist() == [sum(row) for row in found.sets_NC.tolist()]


def test_annotations_are_written_and_what_only_an_earlier_call_wrote_goes(knockouts):
    mdata = knockouts
    mine = {part: (set(x.obs), set(x.obsm)) for part, x in [("", mdata), *mdata.mod.items()]}
    for full in (True, False):
        found = annotated(mdata.n_obs, full=full)
        exchange.write_annotation(mdata, found, key="kind_label", entry={"x": 1})
        obs = {"kind_label", "kind_confidence", "kind_reason", "kind_ood"}
        obs |= {"kind_label_ontology_term_id", "kind_set_size"} if full else set()
        obsm = {"kind_proba", "kind_sets"} if full else {"kind_proba"}
        place = {name: i for i, name in enumerate(mdata.obs_names)}
        for name, part in [("", mdata), *mdata.mod.items()]:
            assert set(part.obs) - mine[name][0] == obs
            assert set(part.obsm) - mine[name][1] == obsm
            rows = [place[cell] for cell in part.obs_names]
            assert part.obs["kind_label"].tolist() == found.labels[rows].tolist()
            assert part.obs["kind_reason"].tolist() == found.reason[rows].tolist()
            assert np.array_equal(part.obs["kind_ood"], found.ood[rows])
            assert np.array_equal(part.obs["kind_confidence"], found.confidence[rows])
            assert np.array_equal(part.obsm["kind_proba"], found.probabilities[rows])
            if full:
                assert part.obs["kind_label_ontology_term_id"].tolist() == found.terms[rows].tolist()
                assert np.array_equal(part.obsm["kind_sets"], found.sets_NC[rows])
                assert part.obsm["kind_sets"].dtype == bool
    assert mdata.uns["cellxpert_info"]["annotate"]["kind_label"] == {"x": 1, "classes": ["a/b", "é"]}
