"""A small ontology made by hand, random ones, and the real one."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from cellxpert.ontology import CellOntology

BLOOD = {
    "X:cell": ("cell", [], []),
    "X:blood": ("blood cell", ["X:cell"], []),
    "X:motile": ("motile cell", ["X:cell"], []),
    "X:lymph": ("lymphocyte", ["X:blood", "X:motile"], []),
    "X:T": ("T cell", ["X:lymph"], ["T lymphocyte"]),
    "X:CD4": ("CD4-positive, alpha-beta T cell", ["X:T"], []),
    "X:CD8": ("CD8-positive, alpha-beta T cell", ["X:T"], []),
    "X:naive": ("naive T cell", ["X:T"], []),
    "X:nCD4": ("naive CD4-positive, alpha-beta T cell", ["X:CD4", "X:naive"], []),
    "X:B": ("B cell", ["X:lymph"], ["B lymphocyte"]),
    "X:mono": ("monocyte", ["X:blood", "X:motile"], []),
    "X:neuron": ("neuron", ["X:cell"], ["nerve cell"]),
}


@pytest.fixture(scope="session")
def blood() -> CellOntology:
    return CellOntology.from_terms(BLOOD, obsolete={"X:old": "X:T", "X:gone": ""}, version="v1")


@pytest.fixture(scope="session")
def real() -> CellOntology:
    """The Cell Ontology."""
    pytest.importorskip("cellxgene_ontology_guide", reason='needs pip install "cellxpert[ontology]"')
    return CellOntology()


@st.composite
def graphs(draw) -> dict[str, list[str]]:
    """Term -> parents, of up to nine terms; a parent always comes before its kinds."""
    terms = [f"X:{i}" for i in range(draw(st.integers(1, 9)))]
    return {
        term: draw(st.lists(st.sampled_from(terms[:i]), max_size=3, unique=True)) if i else []
        for i, term in enumerate(terms)
    }


@pytest.fixture(scope="session")
def random_graphs() -> st.SearchStrategy[dict[str, list[str]]]:
    return graphs()
