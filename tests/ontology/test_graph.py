from __future__ import annotations

import math
import sys
from itertools import product

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.errors import OntologyError, OntologyMissingError
from cellxpert.ontology import CellOntology


def ontology_of(parents: dict[str, list[str]]) -> CellOntology:
    return CellOntology.from_terms({term: (f"type {term}", up, []) for term, up in parents.items()})


def upward(parents: dict[str, list[str]]) -> nx.DiGraph:
    graph = nx.DiGraph([(term, up) for term, ups in parents.items() for up in ups])
    graph.add_nodes_from(parents)
    return graph


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_relations_equal_those_of_networkx(random_graphs, data):
    parents = data.draw(random_graphs)
    ontology, graph = ontology_of(parents), upward(parents)
    roots = [term for term, up in parents.items() if not up]
    ways = dict(nx.all_pairs_shortest_path_length(graph))
    for term in parents:
        assert ontology.ancestors(term) == nx.descendants(graph, term)  # edges go up
        assert ontology.descendants(term) == nx.ancestors(graph, term)
        assert ontology.parents(term) == tuple(parents[term])
        longest = (
            max(len(way) - 1 for root in roots for way in nx.all_simple_paths(graph, term, root) or [[0]])
            if parents[term]
            else 0
        )
        assert ontology.depth(term) == longest
    for a, b in product(parents, repeat=2):
        assert ontology.is_a(a, b) == (b in ways[a])
        both = [ways[a][c] + ways[b][c] for c in parents if c in ways[a] and c in ways[b]]
        assert ontology.distance(a, b) == min(both, default=math.inf)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_common_ancestor_is_the_deepest_that_all_are(random_graphs, data):
    parents = data.draw(random_graphs)
    ontology = ontology_of(parents)
    terms = data.draw(st.lists(st.sampled_from(sorted(parents)), min_size=1, max_size=3))
    shared = [c for c in parents if all(ontology.is_a(term, c) for term in terms)]
    if not shared:
        with pytest.raises(OntologyError, match="nothing that"):
            ontology.common_ancestor(terms)
        return
    found = ontology.common_ancestor(terms)
    assert found in shared
    assert ontology.depth(found) == max(ontology.depth(c) for c in shared)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_order_has_each_term_once_and_depends_on_no_order(random_graphs, data):
    parents = data.draw(random_graphs)
    ontology = ontology_of(parents)
    terms = data.draw(st.lists(st.sampled_from(sorted(parents)), max_size=9))
    ordered = ontology.order(terms)
    assert sorted(ordered) == sorted(set(terms))
    assert ontology.order(terms[::-1]) == ordered
    if all(len(up) < 2 for up in parents.values()):  # a tree: types before their kinds, and branches in one piece
        for term in terms:
            branch = [i for i, other in enumerate(ordered) if ontology.is_a(other, term)]
            assert branch == list(range(ordered.index(term), ordered.index(term) + len(branch)))


def test_order_puts_relatives_side_by_side(blood):
    terms = ["X:mono", "X:CD8", "X:neuron", "X:nCD4", "X:B", "X:T", "X:CD4"]
    assert blood.order(terms) == ["X:B", "X:T", "X:CD4", "X:nCD4", "X:CD8", "X:mono", "X:neuron"]


def test_distance_takes_no_way_through_a_common_kind(blood):
    assert blood.distance("X:CD4", "X:naive") == 2  # up to T; their kind nCD4 would be as near
    two = ontology_of({"X:a": [], "X:b": [], "X:both": ["X:a", "X:b"]})
    assert two.distance("X:a", "X:b") == math.inf
    assert two.distance("X:both", "X:a") == 1


def test_a_way_with_a_shortcut_is_as_deep_as_its_longest():
    ontology = ontology_of({"X:root": [], "X:mid": ["X:root"], "X:leaf": ["X:root", "X:mid"]})
    assert ontology.depth("X:leaf") == 2
    assert ontology.distance("X:leaf", "X:root") == 1


def test_unknown_and_obsolete_terms_are_refused(blood):
    with pytest.raises(OntologyError, match=r"Cell Ontology v1: no term 'lymphocytes'\n.*\n.*X:lymph \(lymphocyte\)"):
        blood.name("lymphocytes")
    with pytest.raises(OntologyError, match=r"X:TT.*\n.*\n.*X:T \(T cell\)"):
        blood.ancestors("X:TT")
    with pytest.raises(OntologyError, match=r"X:old is obsolete\n.*\n.*X:T \(T cell\)"):
        blood.descendants("X:old")
    with pytest.raises(OntologyError, match=r"X:gone is obsolete\n.*\n.*look up what replaces it"):
        blood.depth("X:gone")
    for call in (lambda t: blood.is_a("X:T", t), lambda t: blood.distance(t, "X:T"), lambda t: blood.order(["X:T", t])):
        with pytest.raises(OntologyError, match="no term 'X:none'"):
            call("X:none")
    with pytest.raises(OntologyError, match="0 terms share"):
        blood.common_ancestor([])


def test_graphs_that_are_none_are_refused():
    with pytest.raises(OntologyError, match="X:a is a kind of X:none"):
        ontology_of({"X:a": ["X:none"]})
    with pytest.raises(OntologyError, match="circle.*X:b"):
        ontology_of({"X:a": [], "X:b": ["X:a", "X:c"], "X:c": ["X:b"]})


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_ontology_guide.supported_versions", None)
    with pytest.raises(OntologyMissingError, match=r'pip install "cellxpert\[ontology\]"') as caught:
        CellOntology()
    assert isinstance(caught.value, ImportError)


def test_the_real_ontology_says_what_the_guide_says(real):
    from cellxgene_ontology_guide.ontology_parser import OntologyParser

    guide = OntologyParser()
    assert real.version == guide.cxg_schema.supported_ontologies["CL"]["version"]
    assert len(real) > 3000
    assert real.terms[0] in real
    assert [term for term in real.terms if not real.parents(term)] == ["CL:0000000"]
    for term in real.terms[::37]:
        assert real.name(term) == guide.get_term_label(term)
        assert real.ancestors(term) == set(guide.get_term_ancestors(term))
        # nuclei and cytoplasms are in the guide, and are no cells
        assert real.descendants(term) == set(guide.get_term_descendants(term)).intersection(real.terms)
        assert (
            real.distance(term, "CL:0000000")
            == guide.get_term_ancestors_with_distances(term, include_self=True)["CL:0000000"]
        )


def test_the_real_ontology_knows_its_cells(real):
    assert real.name("CL:0000084") == "T cell"
    assert real.is_a("CL:0000624", "CL:0000084")
    assert not real.is_a("CL:0000236", "CL:0000084")
    assert real.name(real.common_ancestor(["CL:0000624", "CL:0000625"])) == "mature alpha-beta T cell"
    with pytest.raises(OntologyError, match="CL:0000003 is obsolete"):
        real.name("CL:0000003")
