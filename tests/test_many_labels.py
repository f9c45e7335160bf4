"""Two hundred labels of which some are kinds of others, from the setup to a saved model."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import cellxpert as cx
from cellxpert.metrics import within_branch_accuracy
from cellxpert.ontology import CellOntology

N_LABELS, GENES_EACH = 200, 2


@pytest.fixture(scope="module")
def ontology() -> CellOntology:
    """The Cell Ontology."""
    pytest.importorskip("cellxgene_ontology_guide")
    return CellOntology()


@pytest.fixture(scope="module")
def terms(ontology: CellOntology) -> dict[str, str]:
    """Names of lymphocytes and their terms."""
    found = sorted(ontology.descendants("CL:0000542"), key=lambda term: (ontology.depth(term), term))[:N_LABELS]
    return {f"{ontology.name(term)} ({i})": term for i, term in enumerate(found)}


def _cells(terms: dict[str, str], ontology: CellOntology, *, per_label: int, seed: int) -> ad.AnnData:
    """Every type has genes of its own, and those of the types that it is a kind of."""
    place = {term: i for i, term in enumerate(terms.values())}
    has = np.array([[other in ontology.ancestors(term) | {term} for other in place] for term in place])
    rate = np.repeat(np.repeat(np.where(has, 8.0, 0.05), GENES_EACH, axis=1), per_label, axis=0)
    adata = ad.AnnData(sp.csr_matrix(np.random.default_rng(seed).poisson(rate).astype(np.int32)))
    adata.obs_names = [f"c{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    adata.obs["kind"] = np.repeat(list(terms), per_label)
    return adata


def test_two_hundred_overlapping_labels_are_learned_and_saved(terms, ontology, tmp_path: Path):
    cells = _cells(terms, ontology, per_label=3, seed=0)
    cx.CellxPert.setup_anndata(cells, labels_key="kind", label_terms=terms)
    model = cx.CellxPert(cells, preset="nano", seed=0)
    model.train(max_epochs=1, train_size=1.0, progress_bar=False)
    assert model.labels == tuple(sorted(terms))

    others = _cells(terms, ontology, per_label=1, seed=1)
    truth = np.array([terms[label] for label in others.obs["kind"]])
    table = model.annotate(others, inplace=False, unknown=False)
    proba = model.annotate(others, inplace=False, unknown=False, return_proba=True)
    assert list(proba.columns) == sorted(terms)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    said = table["ontology_term_id"].to_numpy(dtype=str)
    assert list(said) == [terms[label] for label in table["label"]]
    right = within_branch_accuracy(truth, said, ancestors=ontology.ancestors)
    assert right > 0.95
    assert (truth == said).mean() > 0.5  # a cell of a coarse label may be of a finer one

    model.save(tmp_path / "model")
    again = cx.CellxPert.load(tmp_path / "model").annotate(others, inplace=False, unknown=False, return_proba=True)
    assert again.equals(proba)
