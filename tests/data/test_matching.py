"""Features are found by name or Ensembl id; what cannot be told is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.matching import match_features, overlap
from cellxpert.data.vocabulary import FeatureBlock
from cellxpert.errors import CellxPertWarning, DuplicateNamesError, FeatureOverlapError, GenomeError

NAMES = tuple(sorted(["CD3E", "CD19", "ACTB", "GATA1", "KLF1", "LYZ", "NKG7", "MS4A1", "CST3", "PPBP"]))
IDS = tuple(f"ENSG{i:011d}" for i in range(10))


def block(names=NAMES, ids=IDS, counts=None, role="rna"):
    counts = np.ones(len(names)) if counts is None else np.asarray(counts, float)
    return FeatureBlock(role, tuple(names), ids, np.full(48, np.inf), np.zeros(50), counts, "log")


def match(names, ids=None, of=None, **kwargs):
    return match_features(
        of or block(), names=np.array(names), ids=None if ids is None else np.array(ids), **kwargs
    ).tolist()


@settings(deadline=None)
@given(order=st.permutations(range(14)))
def test_names_in_any_order_with_others_between(order):
    columns = [*NAMES, "x1", "x2", "x3", "x4"]
    found = match([columns[j] for j in order])
    assert found == [j if j < 10 else -1 for j in order]


def test_ids_find_what_names_do_not():
    assert match([f"gene{i}" for i in range(10)], ids=IDS[::-1]) == list(range(10))[::-1]
    renamed = [*NAMES[:8], "new8", "new9"]
    assert match(renamed, ids=IDS) == list(range(10))
    assert match(IDS, ids=IDS) == list(range(10))  # the object's names are the ids
    mixed = [*NAMES[:5], *IDS[5:]]
    assert match(mixed, ids=[""] * 5 + list(IDS[5:])) == list(range(10))


def test_a_name_wins_over_an_id_and_repeated_ids_of_the_vocabulary_are_not_used():
    taken = match([*NAMES, "other"], ids=[*IDS, IDS[3]])
    assert taken == [*range(10), -1]
    twice = block(ids=(IDS[0], IDS[0], *IDS[2:]))
    assert match([*NAMES[2:], "new"], ids=[*IDS[2:], IDS[0]], of=twice) == [*range(2, 10), -1]


def test_two_columns_for_one_feature_are_refused():
    with pytest.raises(DuplicateNamesError, match="by name.*CD19"):
        match([*NAMES, "CD19"])
    with pytest.raises(DuplicateNamesError, match="by Ensembl id.*'a'"):  # versions ENSG1.1 and ENSG1.2, say
        match(["a", "b", *NAMES[1:]], ids=[IDS[0], IDS[0], *IDS[1:]])
    assert match([*NAMES, "unknown", "unknown"]) == [*range(10), -1, -1]  # repeated, but nobody reads them


@pytest.mark.parametrize(
    ("n", "outcome"), [(10, None), (8, None), (7, CellxPertWarning), (3, CellxPertWarning), (2, FeatureOverlapError)]
)
def test_gate_on_features(n, outcome):
    names = [*NAMES[:n], "x", "y"]
    if outcome is FeatureOverlapError:
        with pytest.raises(FeatureOverlapError, match="20.0% of the model's 10 features"):
            match(names)
    elif outcome is CellxPertWarning:
        with pytest.warns(CellxPertWarning, match="of the model's 10 features"):
            match(names)
    else:
        assert match(names) == [*range(n), -1, -1]


def test_gate_on_counts():
    heavy = block(counts=[900, *[10] * 9])  # one feature carries 91 % of the counts
    with pytest.raises(FeatureOverlapError, match="90.0% .* 9.1% of the training counts"):
        match(NAMES[1:], of=heavy)
    with pytest.warns(CellxPertWarning, match="9.1%"):
        assert match(NAMES[1:], of=heavy, min_overlap=0.05) == list(range(1, 10))
    assert overlap(heavy, np.array([0, -1])) == {"features": 0.1, "counts": 900 / 990}


def test_another_organism_is_named():
    mouse = [name.capitalize() for name in NAMES]
    with pytest.raises(FeatureOverlapError, match="upper and lower case: another organism"):
        match(mouse)
    with pytest.raises(FeatureOverlapError, match="ENSMUSG... here and ENSG... in the model"):
        match(mouse, ids=[f"ENSMUSG{i:011d}" for i in range(10)])
    with pytest.raises(FeatureOverlapError, match="10 of 10 names stand for another Ensembl id.*ENSMUSG"):
        match(NAMES, ids=[f"ENSMUSG{i:011d}" for i in range(10)])  # the same names, but other genes


def test_a_few_contradicting_ids_warn():
    with pytest.warns(CellxPertWarning, match="1 of 10 names stand for another Ensembl id"):
        assert match(NAMES, ids=[*IDS[:9], "ENSG00000999999"]) == list(range(10))


def test_no_ids_on_either_side():
    assert match(NAMES, of=block(ids=None), ids=IDS) == list(range(10))
    assert match(NAMES) == list(range(10))
    with pytest.raises(FeatureOverlapError, match="only 0.0%"):
        match([str(i) for i in range(10)], of=block(ids=None))


def test_the_advice_names_no_argument_that_no_method_takes():
    with pytest.raises(FeatureOverlapError, match=r"Fix: give the names or Ensembl ids the model knows$"):
        match(["x", "y"])


PLACES = [(i, i + 5) for i in range(10, 20)]
PEAKS = block(names=sorted(f"chr1:{a}-{b}" for a, b in PLACES), ids=None, role="atac")


def peaks(spelling):
    return [spelling.format(*name.removeprefix("chr1:").split("-")) for name in PEAKS.names]


@pytest.mark.parametrize("theirs", ["1:{}-{}", "chr1_{}_{}", "chr1-{}-{}", "1_{}_{}", "Chr1:0{}-{}", "chr1:{}-{}"])
def test_peaks_are_matched_by_place_however_they_are_spelt(theirs):
    assert match(peaks(theirs), of=PEAKS, peaks=True) == list(range(10))
    assert match(["peak1", "chr2:10-15", *peaks(theirs)[::-1], "chr1:10-16"], of=PEAKS, peaks=True) == [
        -1,
        -1,
        *range(10)[::-1],
        -1,
    ]


@settings(deadline=None)
@given(
    spellings=st.lists(st.sampled_from(["1:{}-{}", "chr1_{}_{}", "chr1-{}-{}", "chr1:{}-{}"]), min_size=10, max_size=10)
)
def test_spellings_may_be_mixed(spellings):
    names = [peaks(spelling)[i] for i, spelling in enumerate(spellings)]
    assert match(names, of=PEAKS, peaks=True) == list(range(10))


def test_a_place_in_two_columns_is_refused_and_a_name_wins():
    names = peaks("chr1_{}_{}")
    with pytest.raises(DuplicateNamesError, match="by place.*'chr1_10_15', '1-10-15'"):
        match([*names, "1-10-15"], of=PEAKS, peaks=True)
    assert match([*PEAKS.names[:9], "chr1_10_15", names[9]], of=PEAKS, peaks=True) == [*range(9), -1, 9]


def test_peaks_that_do_not_overlap_are_explained():
    with pytest.raises(FeatureOverlapError, match="peaks are matched by place: another peak call") as caught:
        match(peaks("chr1:5{}-5{}"), of=PEAKS, peaks=True)
    assert "count fragments in the model's peaks" in str(caught.value)
    assert "cellxpert.peaks_to_kmers" in str(caught.value)
    with pytest.raises(
        FeatureOverlapError, match=r"2 of 3 peaks are not named by their place[\s\S]*name them chr:start-end"
    ):
        match(["peak1", "peak2", "chr1:1-2"], of=PEAKS, peaks=True)


def test_peaks_of_another_build_are_refused_even_where_all_names_match():
    model = dataclasses.replace(PEAKS, genome="hg38")
    with pytest.raises(GenomeError, match="peaks of hg19 here, of hg38 in the model"):
        match(PEAKS.names, of=model, peaks=True, genome="hg19")
    tiles = [
        "chr17:83000000-83005000",
        *PEAKS.names,
    ]  # chromosome 17 ends before that in all builds but hg38 and those of mice
    with pytest.raises(GenomeError, match="peaks of hg38 or mm39 or mm10 or mm9 here, of hg19 in the model"):
        match(tiles, of=dataclasses.replace(PEAKS, genome="hg19"), peaks=True)
    assert match(PEAKS.names, of=model, peaks=True, genome="hg38") == list(range(10))
    assert match(PEAKS.names, of=model, peaks=True) == list(range(10))
    with pytest.warns(CellxPertWarning, match="'GRCz11' here, of 'danRer11' in the model"):
        match(PEAKS.names, of=dataclasses.replace(PEAKS, genome="danRer11"), peaks=True, genome="GRCz11")
