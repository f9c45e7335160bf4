"""Between object and labels: what they are decided from, what is written where, and what is recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cellxpert import exchange, labelling
from cellxpert.data.record import LabelTerm
from cellxpert.errors import ConfigError, NoLabelsError, ObsKeyError
from cellxpert.ontology import CellOntology
from cellxpert.tasks.annotate import Annotation, LabelOptions


def read(model, data):
    return exchange.read(model._state, data, setup=model._setup, call="test", inplace=False, own=False)


def test_labels_are_needed(screened, trained):
    with pytest.raises(NoLabelsError, match="labels_key"):
        labelling.require_labels(screened._state)
    labelling.require_labels(trained._state)


def gathered(model, data, *, state=None, clusters_key=None):
    tokens = read(model, data)
    logits = np.zeros((tokens.n_cells, len(model.labels)), np.float32)
    state = model._state if state is None else state
    return labelling.evidence(state, data, tokens, logits_NC=logits, clusters_key=clusters_key)


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
            (point - mean) @ types.root_PP @ types.root_PP.T @ (point - mean) / spread**0.5
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
    adata.obs["leiden"] = adata.obs["leiden"].astype(str)  # "nan" is no cluster: its cells have nothing in common
    assert np.array_equal(gathered(trained, adata, clusters_key="leiden").cluster_N < 0, cluster < 0)
    with pytest.raises(ObsKeyError, match="Leiden"):
        gathered(trained, adata, clusters_key="Leiden")


def test_terms_are_in_the_order_of_the_labels(trained):
    state = trained._state
    assert labelling.terms_of(state) is None
    with pytest.raises(ConfigError, match=r"back_off=[\s\S]*label_terms="):
        labelling.terms_of(state, needed=True)
    known = (LabelTerm(label="not learned", term="CL:1"), LabelTerm(label=state.labels[2], term="CL:2"))
    told = replace(state, setup=replace(state.setup, label_terms=known))
    expected = tuple("CL:2" if i == 2 else "" for i in range(len(state.labels)))
    assert labelling.terms_of(told) == labelling.terms_of(told, needed=True) == expected
    other = replace(state, setup=replace(state.setup, label_terms=known[:1]))
    assert labelling.terms_of(other) is None


@pytest.mark.parametrize("fewer", [False, True])
def test_inputs_of_the_label_head_give_its_logits(trained, pbmc, fewer):
    """Of cells that measured fewer genes than the others too: what they lack stands at its usual value."""
    state, adata = trained._state, pbmc["rna"][:40].copy()
    tokens = read(trained, adata)
    if fewer:
        shown = np.unique(tokens.feature[tokens.start[20] :])
        absent = np.setdiff1d(np.arange(len(state.vocabulary.names)), shown)[:60]
        measured = np.repeat(tokens.measured_features, 2, axis=0)
        measured[1, absent] = False
        tokens = replace(tokens, measured_features=measured, pattern=(np.arange(40) >= 20).astype(np.int32))
    vectors, logits, _ = trained._embed(state, tokens, None)
    found = labelling.head_inputs(state, tokens, vectors)
    head = state.network.labels
    weight = np.vstack([head.magnitude.weight[:-1].detach(), head.cell.weight.detach().T])
    evidence = labelling.evidence(state, adata, tokens, logits_NC=logits)
    assert np.allclose(found @ weight + head.cell.bias.detach().numpy(), evidence.logits_NC, atol=1e-3)


def test_what_was_asked_of_labels_is_recorded(trained):
    state, options = trained._state, LabelOptions(coverage=0.8)
    known = state.calibration
    found = labelling.describe_labels(state, options, calibration=known, columns={"clusters_key": None}, ontology=None)
    assert found == {
        "unknown": True,
        "coverage": 0.8,
        "calibrated_on": "out-of-fold",
        "temperature": known.temperature,
        "n_calibrated": known.n_cells,
    }
    blood = CellOntology.from_terms({"X:1": ("cell", [], [])}, version="v7")
    full = labelling.describe_labels(
        state,
        LabelOptions(back_off=0.5, set_coverage=0.9),
        calibration=None,
        columns={"clusters_key": "leiden", "calibration_key": "by_hand"},
        ontology=blood,
    )
    assert full == {
        "unknown": True,
        "coverage": 0.9,
        "back_off": 0.5,
        "set_coverage": 0.9,
        "calibrated_on": "nothing",
        "clusters_key": "leiden",
        "calibration_key": "by_hand",
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
        uncertainty=rng.random(n, dtype=np.float32),
        terms=rng.choice(np.array(["CL:1", "unknown"], dtype=object), n) if full else None,
        sets_NC=rng.random((n, 2)) < 0.5 if full else None,
    )


@pytest.mark.parametrize("full", [False, True])
def test_an_annotation_as_a_table(full):
    found = annotated(9, full=full)
    table = labelling.annotation_table(found, pd.Index([f"c{i}" for i in range(9)]))
    expected = ["label", "confidence", "reason", "ood", "uncertainty"]
    expected += ["ontology_term_id", "set_size"] if full else []
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
        labelling.write_annotation(mdata, found, key="kind_label", entry={"x": 1})
        obs = {"kind_label", "kind_confidence", "kind_reason", "kind_ood", "kind_uncertainty"}
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
            assert np.array_equal(part.obs["kind_uncertainty"], found.uncertainty[rows])
            assert np.array_equal(part.obs["kind_confidence"], found.confidence[rows])
            assert np.array_equal(part.obsm["kind_proba"], found.probabilities[rows])
            if full:
                assert part.obs["kind_label_ontology_term_id"].tolist() == found.terms[rows].tolist()
                assert np.array_equal(part.obsm["kind_sets"], found.sets_NC[rows])
                assert part.obsm["kind_sets"].dtype == bool
    assert mdata.uns["cellxpert_info"]["annotate"]["kind_label"] == {"x": 1, "classes": ["a/b", "é"]}
