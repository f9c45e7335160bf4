"""Which genes are set in which cell, and tokens without them, against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.binning import ragged
from cellxpert.data.perturbations import Assigned, Perturbations, gene_ids, without_targets
from cellxpert.data.tokens import Tokens
from cellxpert.data.vocabulary import FeatureBlock, Vocabulary
from cellxpert.errors import VocabularyError

GENES = ["AA", "BB", "CC", "DD", "EE"]
IDS = ["ENSG01", "", "ENSG03", "ENSG04", "AA"]  # one id is another gene's name: the name counts
PEAKS = ["BB", "chr1:1-5"]


def block(role, names, ids=None):
    return FeatureBlock(
        role=role,
        names=tuple(names),
        ids=None if ids is None else tuple(ids),
        edges=np.array([1.0]),
        bin_means=np.array([0.0, 0.5, 2.0]),
        counts=np.ones(len(names)),
        transform="log",
    )


VOCABULARY = Vocabulary((block("rna", GENES, IDS), block("atac", PEAKS)), 3, "global")


def test_genes_are_found_by_name_then_by_id_and_only_among_the_genes():
    names = {"AA", "BB", "ENSG03", "ENSG04", "chr1:1-5", "ZZ", ""}
    assert gene_ids(VOCABULARY, names) == {"AA": 0, "BB": 1, "ENSG03": 2, "ENSG04": 3}
    without_ids = Vocabulary((block("rna", GENES),), 3, "global")
    assert gene_ids(without_ids, names) == {"AA": 0, "BB": 1}
    assert gene_ids(Vocabulary((block("atac", PEAKS),), 3, "global"), names) == {}


def test_ids_are_those_of_the_whole_vocabulary():
    """Peaks come after genes, so that a gene's place is its id; were there features before, they would count."""
    for gene, feature in gene_ids(VOCABULARY, set(GENES)).items():
        assert VOCABULARY.names[feature] == gene


def test_what_was_seen_is_sorted_and_said_once():
    seen = ["ctl", "BB+ZZ", "ZZ", "BB+ZZ", "AA+ctrl", "ctl"]
    found = Perturbations.fit(seen, control="ctl", kind="knockdown")
    assert found.conditions == ("AA+ctrl", "BB+ZZ", "ZZ")
    assert found.targets == ("AA", "BB", "ZZ")
    assert (found.control, found.kind) == ("ctl", "knockdown")


CONDITIONS = st.lists(
    st.one_of(
        st.just("control"),
        st.lists(st.sampled_from([*GENES, "ZZ", "YY", "ctrl"]), min_size=1, max_size=3, unique=True).map("+".join),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(seen=CONDITIONS, asked=CONDITIONS, kind=st.sampled_from(["knockout", "knockdown", "overexpression"]))
def test_every_cell_gets_the_genes_of_its_condition(seen, asked, kind):
    perturbations = Perturbations.fit(seen, control="control", kind=kind)
    assigned = perturbations.assign(pd.Series(asked, dtype="category"), VOCABULARY)
    assert assigned.feature_NI.shape == assigned.target_NI.shape == assigned.dose_NI.shape
    dose = 1.0 if kind == "overexpression" else -1.0
    known = {g for name in seen for g in name.split("+")} - {"control", "ctrl"}
    for row, name in enumerate(asked):
        genes = sorted(set(name.split("+")) - {"control", "ctrl"})
        assert assigned.intervened[row] == bool(genes)
        for column in range(assigned.dose_NI.shape[1]):
            feature, target = assigned.feature_NI[row, column], assigned.target_NI[row, column]
            if column >= len(genes):  # padding comes last
                assert (feature, target, assigned.dose_NI[row, column]) == (-1, -1, 0)
                continue
            gene = genes[column]
            assert assigned.dose_NI[row, column] == dose
            assert feature == (GENES.index(gene) if gene in GENES else -1)
            assert (target >= 0) == (gene in known)
            assert target < 0 or perturbations.targets[target] == gene


def test_doses_of_ones_own():
    perturbations = Perturbations.fit(["control", "AA", "BB"], control="control", kind="knockout")
    found = perturbations.assign_genes([["CC", "AA"], [], ["BB"]], [[-0.7, 2.0], [], [0.5]], VOCABULARY)
    np.testing.assert_array_equal(found.feature_NI, [[2, 0], [-1, -1], [1, -1]])
    np.testing.assert_array_equal(found.target_NI, [[-1, 0], [-1, -1], [1, -1]])
    np.testing.assert_array_equal(found.dose_NI, np.float32([[-0.7, 2.0], [0, 0], [0.5, 0]]))
    assert found.intervened.tolist() == [True, False, True]
    nothing = perturbations.assign_genes([[], []], [[], []], VOCABULARY)
    assert nothing.feature_NI.shape == (2, 1)
    assert not nothing.intervened.any()


def test_it_travels_as_json():
    found = Perturbations.fit(["control", "AA+ZZ", "ZZ"], control="control", kind="overexpression")
    assert Perturbations.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("targets"),
        lambda d: d.pop("conditions"),
        lambda d: d.pop("control"),
        lambda d: d.pop("kind"),
        lambda d: d.update(kind="deletion"),
        lambda d: d.update(kind=["knockout"]),
        lambda d: d.update(targets=None),
        lambda d: d.update(targets="ABC"),
        lambda d: d.update(conditions="AA"),
        lambda d: d["targets"].reverse(),
        lambda d: d["targets"].append(d["targets"][-1]),
    ],
)
def test_damage_is_refused(damage):
    data = Perturbations.fit(["control", "AA+BB", "ZZ"], control="control", kind="knockout").to_dict()
    damage(data)
    with pytest.raises(VocabularyError):
        Perturbations.from_dict(data)


# --- tokens ------------------------------------------------------------------------------------------------------------

V, N = 9, 14


@st.composite
def setting(draw):
    """Tokens of cells with two patterns, and what is set in each."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    measured = np.ones((2, V), bool)
    measured[1, rng.choice(V, 3, replace=False)] = False
    pattern = rng.integers(0, 2, N).astype(np.int32)
    keep = draw(st.booleans())
    shown = []
    for p in pattern:
        here = np.flatnonzero(measured[p])
        shown.append(here if keep else np.sort(rng.choice(here, rng.integers(0, len(here) + 1), replace=False)))
    tokens = Tokens(
        feature=np.concatenate(shown).astype(np.int32),
        bin=rng.integers(0 if keep else 1, 5, sum(map(len, shown))).astype(np.uint8),
        start=ragged([len(s) for s in shown]),
        rows=rng.permutation(100)[:N],
        pattern=pattern,
        measured_features=measured,
    )
    width = draw(st.integers(1, 3))
    feature_NI = np.stack([rng.permutation(V)[:width] for _ in range(N)])
    feature_NI[rng.random((N, width)) < 0.4] = -1
    dose_NI = np.where(rng.random((N, width)) < 0.3, 0.0, -1.0).astype(np.float32)
    return tokens, Assigned(feature_NI, np.full((N, width), -1), dose_NI)


@settings(deadline=None, max_examples=80)
@given(setting())
def test_genes_that_are_set_are_neither_there_nor_measured(given_):
    tokens, assigned = given_
    before = (tokens.feature.copy(), tokens.measured_features.copy(), tokens.pattern.copy())
    found = without_targets(tokens, assigned)
    for i in range(N):
        gone = {int(f) for f, d in zip(assigned.feature_NI[i], assigned.dose_NI[i], strict=True) if d and f >= 0}
        a, b = tokens.start[i : i + 2]
        expected = [(f, v) for f, v in zip(tokens.feature[a:b], tokens.bin[a:b], strict=True) if int(f) not in gone]
        a, b = found.start[i : i + 2]
        assert list(zip(found.feature[a:b], found.bin[a:b], strict=True)) == expected
        measured = set(np.flatnonzero(tokens.measured_features[tokens.pattern[i]])) - gone
        assert set(np.flatnonzero(found.measured_features[found.pattern[i]])) == measured
    assert found.start[-1] == len(found.feature) == len(found.bin)
    assert found.rows is tokens.rows
    for name in ("feature", "bin", "start", "pattern", "measured_features"):
        assert getattr(found, name).dtype == getattr(tokens, name).dtype, name
    for now, then in zip((tokens.feature, tokens.measured_features, tokens.pattern), before, strict=True):
        np.testing.assert_array_equal(now, then)  # the tokens given are not written to


def test_cells_of_one_kind_share_a_pattern():
    """Patterns are few: one per kind of cell and set of genes, in whatever order these are named."""
    tokens = Tokens(
        feature=np.zeros(0, np.int32),
        bin=np.zeros(0, np.uint8),
        start=np.zeros(6, np.int64),
        rows=np.arange(5),
        pattern=np.array([0, 0, 0, 1, 0], np.int32),
        measured_features=np.ones((2, V), bool),
    )
    feature = np.array([[1, 2], [2, 1], [-1, -1], [1, 2], [3, -1]])
    found = without_targets(tokens, Assigned(feature, feature, np.where(feature < 0, 0, -1).astype(np.float32)))
    assert len(found.measured_features) == 4
    assert found.pattern[0] == found.pattern[1]
    assert len(set(found.pattern.tolist())) == 4
