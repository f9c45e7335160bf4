"""Peaks are places, however they are spelt; what is no place is told by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellxpert.genome.peaks import are_kmers, bare, parse_peaks, place_keys

CONTIGS = [
    "chr1",
    "1",
    "X",
    "chrM",
    "GL000194.1",
    "KI270728.1",
    "chrUn_KI270742v1",
    "chr1_KI270706v1_random",
    "HLA-A*01:01",
    "2L",
]


@given(
    chrom=st.sampled_from(CONTIGS),
    start=st.integers(0, 10**9),
    length=st.integers(1, 10**6),
    spelling=st.sampled_from(["{}:{}-{}", "{}-{}-{}", "{}_{}_{}"]),
)
def test_every_spelling_of_every_contig_is_read_back(chrom, start, length, spelling):
    name = spelling.format(chrom, start, start + length)
    table = parse_peaks([name])
    assert table.index.tolist() == [name]
    assert table.iloc[0].tolist() == [chrom, start, start + length]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("GL000194.1:1-200", ("GL000194.1", 1, 200)),
        ("chrUn_KI270742v1-10-200", ("chrUn_KI270742v1", 10, 200)),
        ("KI270728.1_20_300", ("KI270728.1", 20, 300)),
        ("1_1_2", ("1", 1, 2)),
        ("chr1:0010-0020", ("chr1", 10, 20)),
    ],
)
def test_places(name, place):
    assert tuple(parse_peaks([name]).iloc[0]) == place


@pytest.mark.parametrize(
    "name",
    ["peak_1", "CD3E", "", "chr1", "chr1:10", "chr1:5-5", "chr1:9-7", "chr1:1_5", "chr1-1:5", "chr1:1-5-", ":1-5", "chr1:-1-5x",
     "chr1:1-9999999999999999", "chr1:1,000-2,000"],
)  # fmt: skip
def test_what_is_no_place_is_told_by_name(name):
    table = parse_peaks(["chr1:1-5", name])
    assert table.index[table["chrom"] == ""].tolist() == [name]
    assert table.iloc[1].tolist() == ["", -1, -1]


def test_tables_keep_the_order_and_may_be_empty():
    table = parse_peaks(["chr2:5-9", "x", "chr1:1-2"])
    assert table["chrom"].tolist() == ["chr2", "", "chr1"]
    assert table["start"].tolist() == [5, -1, 1]
    assert table["end"].dtype == "int64"
    assert parse_peaks([]).shape == (0, 3)


def test_one_place_has_one_key():
    names = ["chr1:10-20", "chr1_10_20", "chr1-10-20", "1:10-20", "1_10_20", "Chr1:10-20"]
    assert set(place_keys(names)) == {"1:10-20"}
    assert place_keys(["chrM:1-2", "MT_1_2", "M-1-2"]).tolist() == ["MT:1-2"] * 3
    assert place_keys(["chr1:10-20", "chr1:10-21", "chr2:10-20", "chrX:1-2", "peak"]).tolist() == [
        "1:10-20", "1:10-21", "2:10-20", "X:1-2", "",
    ]  # fmt: skip
    assert place_keys([]).shape == (0,)


def test_chromosomes_without_prefix():
    assert [bare(c) for c in ["chr", "chrchr1", "CHR7", "chromosome1"]] == ["chr", "chr1", "7", "omosome1"]


@pytest.mark.parametrize(
    ("names", "k"),
    [
        (["AAAA", "AAAC"], 4),
        (["ACGTAC"], 6),
        (["AAAA", "AAAAC"], 0),
        (["AAAA", "AAAN"], 0),
        (["acgt"], 0),
        ([], 0),
        ([""], 0),
    ],
)
def test_kmers_are_known_by_their_names(names, k):
    assert are_kmers(names) == k
