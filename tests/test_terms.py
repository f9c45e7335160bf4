"""What the labels of an object mean, as its setup records it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import cellxpert as cx
from cellxpert.data.record import LabelTerm
from cellxpert.data.setup import read_setup
from cellxpert.errors import CellxPertWarning, ConfigError, ObsKeyError, OntologyError
from cellxpert.ontology import match_labels

pytest.importorskip("cellxgene_ontology_guide", reason='needs pip install "cellxpert[ontology]"')

T, CD8, B = "CL:0000084", "CL:0000625", "CL:0000236"
Labelled = Callable[..., ad.AnnData]


@pytest.fixture
def labelled() -> Labelled:
    """Make three cells with each of these labels."""

    def make(*names: str) -> ad.AnnData:
        labels = [name for name in names for _ in range(3)]
        x = np.random.default_rng(0).poisson(1.0, (len(labels), 5)).astype(np.float32) + 1
        obs = pd.DataFrame({"type": pd.Categorical(labels)}, index=[f"c{i}" for i in range(len(labels))])
        return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(5)]))

    return make


def setup(adata: ad.AnnData, terms: object, **more: object) -> tuple[LabelTerm, ...]:
    cx.CellxPert.setup_anndata(adata, labels_key="type", label_terms=terms, **more)
    return read_setup(adata).label_terms


def test_names_are_found(labelled: Labelled) -> None:
    found = setup(labelled("T cell", "B cells", "CD8 T", "T cell"), "auto")
    assert found == (
        LabelTerm(label="B cells", term=B),
        LabelTerm(label="CD8 T", term=CD8),
        LabelTerm(label="T cell", term=T),
    )


def test_terms_are_given(labelled: Labelled) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = setup(labelled("T/NK", "é"), {"T/NK": T, "é": B, "not here": CD8})
    assert found == (LabelTerm(label="T/NK", term=T), LabelTerm(label="é", term=B))


def test_a_table_is_what_match_labels_returns_with_what_is_finer_than_its_term(labelled: Labelled) -> None:
    labels = ("T cell", "CD8 T CD57+")
    table = match_labels(labels)
    assert dict(table["how"])["CD8 T CD57+"] == "general"  # else the test says nothing
    expected = (LabelTerm(label="CD8 T CD57+", term=CD8, exact=False), LabelTerm(label="T cell", term=T))
    for terms in (table, "auto"):
        with pytest.warns(CellxPertWarning, match=r"finer than the nearest term: 'CD8 T CD57\+' \(CD8-positive"):
            assert setup(labelled(*labels), terms) == expected


def test_labels_without_a_term_are_told_to_the_caller(labelled: Labelled) -> None:
    with pytest.warns(CellxPertWarning) as caught:
        found = setup(labelled("T cell", "blorb 1", "blorb/2"), "auto")
    assert [str(w.message) for w in caught] == [
        "labels without a term of the Cell Ontology: 'blorb 1', 'blorb/2'; each stands for itself alone. "
        "Give their terms: label_terms={label: term}"
    ]
    assert {w.filename for w in caught} == {__file__}
    assert [t.label for t in found] == ["T cell"]
    many = labelled(*(f"blorb {i:02}" for i in range(25)))
    with pytest.warns(CellxPertWarning, match=r"'blorb 19' and 5 more;"):
        assert setup(many, "auto") == ()


def test_unlabelled_cells_need_no_term(labelled: Labelled) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = setup(labelled("T cell", "B cell", "blorb"), "auto", unlabeled_category="blorb")
    assert [t.label for t in found] == ["B cell", "T cell"]


def test_without_terms_labels_are_names(labelled: Labelled) -> None:
    adata = labelled("T cell", "B cell")
    assert setup(adata, None) == ()
    assert "label_terms" not in adata.uns["cellxpert_info"]["setup"]


@pytest.mark.parametrize(
    ("terms", "kind", "message"),
    [
        ("automatic", ConfigError, r"label_terms=[\s\S]*'automatic'"),
        (3, ConfigError, "label_terms="),
        (["CL:0000084"], ConfigError, "label_terms="),
        (pd.DataFrame({"label": ["T cell"]}), ConfigError, r"columns \['label'\]"),
        ({"T cell": "CL:9999999"}, OntologyError, "CL:9999999"),
        ({"T cell": "T cell"}, OntologyError, "T cell"),
        ({"T cell": None}, OntologyError, "None"),
    ],
)
def test_what_cannot_be_recorded_changes_nothing(
    labelled: Labelled, terms: object, kind: type[Exception], message: str
) -> None:
    adata = labelled("T cell", "B cell")
    adata.uns["cellxpert_info"] = {"annotate": {"x": {"seed": 1}}}
    for _ in range(2):  # without an earlier setup, and with one
        before = copy.deepcopy(adata.uns["cellxpert_info"])
        with pytest.raises(kind, match=message):
            setup(adata, terms)
        assert adata.uns["cellxpert_info"] == before
        cx.CellxPert.setup_anndata(adata, labels_key="type", label_terms={"T cell": T, "B cell": B})


def test_terms_without_labels_are_refused(labelled: Labelled) -> None:
    adata = labelled("T cell", "B cell")
    with pytest.raises(ConfigError, match=r"label_terms=[\s\S]*labels_key="):
        cx.CellxPert.setup_anndata(adata, label_terms="auto")
    assert "setup" not in adata.uns.get("cellxpert_info", {})
    with pytest.raises(ObsKeyError):
        cx.CellxPert.setup_anndata(adata, labels_key="typ", label_terms="auto")


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_but_the_record_is_written(labelled: Labelled, *, whole: bool) -> None:
    adata = labelled("T cell", "B cell")
    before = adata.copy()
    if whole:
        mdata = MuData({"rna": adata})
        mdata.obs["type"] = adata.obs["type"].to_numpy()
        obs = mdata.obs.copy()
        cx.CellxPert.setup_mudata(mdata, rna="rna", labels_key="type", label_terms="auto")
        pd.testing.assert_frame_equal(mdata.obs, obs)
        assert set(mdata.uns) == {"cellxpert_info"}
        assert "cellxpert_info" not in adata.uns
        adata = mdata["rna"]
    else:
        setup(adata, "auto")
        assert set(adata.uns) == {"cellxpert_info"}
        assert set(adata.uns["cellxpert_info"]) == {"setup"}
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert np.array_equal(adata.X, before.X)


def test_a_setup_without_terms_forgets_those_of_before(labelled: Labelled) -> None:
    adata = labelled("T cell", "B cell")
    assert setup(adata, "auto")
    assert setup(adata, None) == ()
