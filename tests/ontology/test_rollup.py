from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.errors import ConfigError, OntologyError
from cellxpert.ontology import CellOntology, back_off, label_targets, roll_up
from cellxpert.ontology.rollup import QUALITIES


@st.composite
def cases(draw, graphs):
    """An ontology, the terms of some labels, and probabilities in sixteenths: sums are exact."""
    parents = draw(graphs)
    ontology = CellOntology.from_terms({term: (term, up, []) for term, up in parents.items()})
    terms = draw(st.lists(st.sampled_from(["", *parents]), min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**16))
    return (
        ontology,
        terms,
        np.random.default_rng(seed).multinomial(16, np.full(len(terms), 1 / len(terms)), size=4) / 16,
    )


def chance(ontology, terms, row, what):
    """Probability of a term, as a loop over the labels."""
    return sum(p for p, term in zip(row, terms, strict=True) if term and ontology.is_a(term, what))


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_type_is_as_probable_as_its_labels_together(random_graphs, data):
    ontology, terms, proba = data.draw(cases(random_graphs))
    rolled, types = roll_up(proba, terms, ontology)
    above = {t for term in terms if term for t in ontology.ancestors(term) | {term}}
    assert set(types) == above
    assert len(types) == len(above)
    assert [ontology.depth(t) for t in types] == sorted(ontology.depth(t) for t in types)
    assert rolled.shape == (len(proba), len(types))
    for i, row in enumerate(proba):
        for j, what in enumerate(types):
            assert rolled[i, j] == chance(ontology, terms, row, what)


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 16), st.sampled_from([0.3, 0.6, 1.0]))
def test_answers_are_the_most_specific_that_are_probable_enough(random_graphs, data, sixteenths, floor):
    ontology, terms, proba = data.draw(cases(random_graphs))
    threshold = sixteenths / 16
    answer = back_off(proba, terms, threshold=threshold, ontology=ontology, floor=floor)
    types = sorted({t for term in terms if term for t in ontology.ancestors(term) | {term}})
    for i, row in enumerate(proba):
        size = {t: 1 + len(ontology.descendants(t)) for t in types}
        told = [t for t in types if t in terms or size[t] <= floor * len(ontology)]
        told = [t for t in told if chance(ontology, terms, row, t) >= threshold]
        finest = [t for t in told if not any(other != t and ontology.is_a(other, t) for other in told)]
        alone = [j for j, term in enumerate(terms) if not term and row[j] >= threshold]
        best = max([chance(ontology, terms, row, t) for t in finest] + [row[j] for j in alone], default=0)
        assert answer.proba[i] == best
        label, term = answer.labels[i], answer.terms[i]
        if not (finest or alone):
            assert (term, label) == ("", -1)
        elif term:
            equals = [t for t in finest if chance(ontology, terms, row, t) == best]
            assert term in equals
            assert size[term] == min(size[t] for t in equals)
            own = [j for j, other in enumerate(terms) if other == term]
            assert label == (max(own, key=lambda j: row[j]) if own else -1)
        else:
            assert label in alone
            assert row[label] == best


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_targets_are_reflexive_transitive_and_those_of_a_loop(random_graphs, data):
    ontology, terms, _ = data.draw(cases(random_graphs))
    exact = data.draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=len(terms), max_size=len(terms))))
    targets = label_targets(terms, ontology, exact=exact)
    assert targets.dtype == bool
    n = len(terms)
    for i in range(n):
        for j in range(n):
            kind = bool(terms[i] and terms[j]) and ontology.is_a(terms[j], terms[i])
            assert targets[i, j] == (i == j or (kind and (exact is None or exact[i])))
    assert targets.diagonal().all()
    assert not ((targets.astype(int) @ targets.astype(int) > 0) & ~targets).any()


def test_a_cell_between_two_types_is_of_what_they_share(blood):
    terms = ["X:CD4", "X:CD8", "X:B", "X:neuron", ""]
    proba = np.array(
        [
            [0.9, 0.1, 0, 0, 0],
            [0.5, 0.4, 0.1, 0, 0],
            [0.3, 0.3, 0.4, 0, 0],
            [0.5, 0, 0, 0.5, 0],
            [0.1, 0, 0, 0, 0.9],
            [0.3, 0.2, 0, 0, 0.5],
        ]
    )
    answer = back_off(proba, terms, threshold=0.8, ontology=blood, floor=0.7)
    assert answer.terms.tolist() == ["X:CD4", "X:T", "X:lymph", "", "", ""]
    assert answer.labels.tolist() == [0, -1, -1, -1, 4, -1]
    assert answer.proba.tolist() == pytest.approx([0.9, 0.9, 1, 0, 0.9, 0])
    # with any floor, a label's own term is an answer
    assert back_off(proba[:1], terms, threshold=0.8, ontology=blood, floor=0.01).terms.tolist() == ["X:CD4"]
    assert back_off(proba[3:4], terms, threshold=0.8, ontology=blood, floor=1.0).terms.tolist() == ["X:cell"]


def test_sums_of_single_precision_reach_one(blood):
    proba = np.full((1, 3), 1 / 3, dtype=np.float32)
    assert back_off(proba, ["X:CD4", "X:CD8", "X:naive"], threshold=1.0, ontology=blood, floor=1.0).terms[0] == "X:T"


def test_coarse_labels_stand_for_fine_ones(blood):
    terms = ["X:T", "X:CD4", "X:CD4", "X:B", ""]
    expected = np.array(
        [[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=bool
    )
    np.testing.assert_array_equal(label_targets(terms, blood), expected)
    # the second label means some CD4 T cells only: coarser ones stand for it, and it for none
    expected[1, 2] = False
    np.testing.assert_array_equal(label_targets(terms, blood, exact=[True, False, True, True, True]), expected)


def test_the_real_roots_are_no_answer(real):
    def between(*terms):
        answer = back_off(np.full((1, len(terms)), 1 / len(terms)), terms, threshold=0.9, ontology=real)
        return answer.terms[0] and real.name(answer.terms[0])

    assert between("CL:0000624", "CL:0000625") == "mature alpha-beta T cell"
    assert between("CL:0000084", "CL:0000236") == "lymphocyte"
    assert between("CL:0000679", "CL:0000617") == "neuron"
    assert between("CL:0000084", "CL:0000765") == "hematopoietic cell"  # not "nucleate cell"
    assert between("CL:0000084", "CL:0000540") == ""
    assert {real.name(term) for term in QUALITIES} >= {"motile cell", "eukaryotic cell", "progenitor cell"}


def test_what_does_not_fit_is_refused(blood):
    proba = np.full((2, 2), 0.5)
    for terms in (["X:T"], ["X:T", "X:B", ""]):
        with pytest.raises(OntologyError, match="terms for probabilities of shape"):
            roll_up(proba, terms, blood)
    with pytest.raises(OntologyError, match="no labels"):
        label_targets([], blood)
    with pytest.raises(OntologyError, match="no term 'X:none'"):
        label_targets(["X:T", "X:none"], blood)
    with pytest.raises(OntologyError, match="one boolean per label"):
        label_targets(["X:T", "X:B"], blood, exact=[True])
    for bad in (np.nan, -0.1):
        with pytest.raises(OntologyError, match="negative or not finite"):
            roll_up(np.array([[bad, 1.0]]), ["X:T", "X:B"], blood)
    for threshold, floor in ((0, 0.5), (1.1, 0.5), (np.nan, 0.5), (0.5, 0), (0.5, 2)):
        with pytest.raises(ConfigError, match="back_off"):
            back_off(proba, ["X:T", "X:B"], threshold=threshold, floor=floor, ontology=blood)


def test_labels_without_terms_are_left_alone(blood):
    rolled, types = roll_up(np.eye(2), ["", ""], blood)
    assert rolled.shape == (2, 0)
    assert types == []
    answer = back_off(np.eye(2), ["", ""], threshold=0.5, ontology=blood)
    assert answer.labels.tolist() == [0, 1]
    assert answer.terms.tolist() == ["", ""]
