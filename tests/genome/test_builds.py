"""Builds are told apart by what objects say of them and by where chromosomes end."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cellxpert.errors import GenomeError
from cellxpert.genome.builds import (
    BUILDS,
    build_of_lengths,
    genome_of,
    known_build,
    possible_builds,
    require_same_genome,
)

# sums over 1, 2, ..., X, Y: one wrong digit shows
TOTALS = {"hg38": 3088269832, "hg19": 3095677412, "mm39": 2723414844, "mm10": 2725521370, "mm9": 2654895218}


def peaks(names, **var):
    table = pd.DataFrame(var, index=pd.Index(names, dtype=object))
    return ad.AnnData(np.ones((2, len(names)), dtype="float32"), var=table)


def last_peaks(build, prefix="chr"):
    """A peak at the end of every chromosome."""
    return [f"{prefix}{c}:{n - 500}-{n}" for c, n in BUILDS[build].items()]


def test_lengths_add_up():
    assert {build: sum(lengths.values()) for build, lengths in BUILDS.items()} == TOTALS
    assert {build: len(lengths) for build, lengths in BUILDS.items()} == {
        "hg38": 24, "hg19": 24, "mm39": 21, "mm10": 21, "mm9": 21,
    }  # fmt: skip
    for one, other in itertools.combinations(BUILDS.values(), 2):
        assert not set(one.values()) & set(other.values())


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("prefix", ["chr", ""])
def test_peaks_at_the_ends_are_of_one_build(build, prefix):
    assert possible_builds(last_peaks(build, prefix)) == (build,)


@pytest.mark.parametrize("build", BUILDS)
def test_possible_builds_are_those_of_a_plain_loop(build):
    rng = np.random.default_rng(3)
    for _ in range(40):
        chroms = rng.choice(list(BUILDS[build]), 3)
        starts = [int(rng.integers(0.97 * BUILDS[build][c], BUILDS[build][c])) for c in chroms]
        expected = tuple(
            other
            for other in BUILDS
            if all(c in BUILDS[other] and s < BUILDS[other][c] for c, s in zip(chroms, starts, strict=True))
        )
        assert possible_builds([f"chr{c}-{s}-{s + 100}" for c, s in zip(chroms, starts, strict=True)]) == expected
        assert build in expected


def test_what_tells_nothing_excludes_nothing():
    assert possible_builds([]) == tuple(BUILDS)
    assert possible_builds(["peak1", "chrM:1-20000", "GL000194.1:1-999999999", "chr1:1-200"]) == tuple(BUILDS)
    n = BUILDS["hg38"]["22"]
    assert "hg38" in possible_builds([f"chr22:{n - 100}-{n + 150}"])  # widened over the end
    assert "hg38" not in possible_builds([f"chr22:{n}-{n + 150}"])
    assert possible_builds(["chr23:1-5"]) == ()  # a fish
    assert possible_builds(["chr20:1-5"]) == ("hg38", "hg19")


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("hg38", "hg38"), ("GRCh38", "hg38"), ("GRCh38-2020-A", "hg38"), ("refdata-cellranger-arc-GRCh38-2020-A-2.0.0", "hg38"),
        ("GRCh38.p13", "hg38"), ("hg19", "hg19"), ("GRCh37", "hg19"), ("b37", "hg19"), ("hs37d5", "hg19"), ("mm10", "mm10"),
        ("GRCm38", "mm10"), ("mm10-2020-A_arc_v2.0.0", "mm10"), ("GRCm39", "mm39"), ("mm39", "mm39"), ("mm9", "mm9"), ("NCBIM37", "mm9"),
        ("GRCh38_and_mm10", None), ("GRCz11", None), ("", None), ("rn6", None), (None, None),
    ],
)  # fmt: skip
def test_names_of_builds(text, build):
    assert known_build(text) == build


def test_lengths_tell_the_build():
    for build, lengths in BUILDS.items():
        assert build_of_lengths(lengths.items()) == build
        assert build_of_lengths([(f"chr{c}", n) for c, n in lengths.items()] + [("chrUn_x", 5)]) == build
    assert build_of_lengths([("chr1", BUILDS["hg38"]["1"])]) == "hg38"
    assert build_of_lengths([("chr1", BUILDS["hg38"]["1"]), ("chr2", 7)]) is None
    assert build_of_lengths([("chr1", 1000)]) is None
    assert build_of_lengths([]) is None
    assert build_of_lengths([("scaffold1", 1000)]) is None


def test_what_an_object_says_counts_before_what_its_peaks_allow():
    anywhere = ["chr1:100-200"]
    assert genome_of(peaks(anywhere)) is None
    assert genome_of(peaks(last_peaks("mm9"))) == "mm9"
    said = peaks(anywhere)
    said.uns["genome"] = "GRCm39"
    assert genome_of(said) == "mm39"
    said.uns["genome"] = "GRCz11"
    assert genome_of(said) == "GRCz11"
    assert genome_of(peaks(anywhere, genome="GRCh38")) == "hg38"  # 10x Genomics, as scanpy and muon read it
    assert genome_of(peaks([*anywhere, "chr2:1-5"], genome=["GRCh38", "mm10"])) is None
    assert genome_of(peaks([*anywhere, "chr2:1-5"], genome=["GRCh38", ""])) == "hg38"
    lengths = peaks(anywhere)
    lengths.uns["reference_sequences"] = pd.DataFrame(
        {
            "reference_seq_name": [f"chr{c}" for c in BUILDS["hg19"]],
            "reference_seq_length": list(BUILDS["hg19"].values()),
        }
    )
    assert genome_of(lengths) == "hg19"
    lengths.uns["reference_sequences"] = pd.DataFrame({"reference_seq_name": ["x"], "reference_seq_length": [1]})
    assert genome_of(lengths) is None


def test_the_name_of_a_genome_file_counts_where_it_names_a_build():
    adata = peaks(["chr1:100-200"])
    for path, build in {
        "/data/mm10/hg38.fa": "hg38",
        "C:\\genomes\\GRCm38.fa": "mm10",
        "/mm10/genome.fa": None,
    }.items():
        adata.uns["files"] = {"genome": path}
        assert genome_of(adata) == build
    adata.uns["files"] = {"fragments": "hg19.tsv.gz"}
    assert genome_of(adata) is None


def test_kmers_are_of_no_genome():
    kmers = peaks(["AAAA", "AAAC"])
    kmers.uns["genome"] = "hg38"
    assert genome_of(kmers) is None


def test_a_build_that_the_peaks_contradict_is_refused():
    adata = peaks(last_peaks("hg38"), genome="hg19")
    with pytest.raises(
        GenomeError, match=r"mdata\['a'\]\.var\['genome'\]: 'hg19', but peaks lie beyond .*chr3:.*could be of hg38"
    ):
        genome_of(adata, where="mdata['a']")
    adata = peaks(["chr23:1-5"])
    adata.uns["genome"] = "hg38"
    with pytest.raises(GenomeError, match=r"\['chr23:1-5'\]; they are of no build that is known here"):
        genome_of(adata)


def compare(here, there, names=("chr1:1-2",), known=("chr1:1-2",)):
    return require_same_genome(here, there, names=names, known=known)


def test_other_builds_are_refused():
    with pytest.raises(GenomeError, match="peaks of hg19 here, of hg38 in the model"):
        compare("hg19", "hg38")
    with pytest.raises(GenomeError, match="peaks of mm10 here, of hg38 in the model"):
        compare(None, "hg38", names=last_peaks("mm10"))  # bins along chromosomes, say: the names would match
    with pytest.raises(GenomeError, match="peaks of hg38 or hg19 here, of mm9 in the model"):
        compare(None, None, names=["chr21:5-9"], known=last_peaks("mm9"))


def test_what_may_be_one_build_passes():
    assert compare(None, None) is None
    assert compare("hg38", "hg38") is None
    assert compare("hg38", None) is None
    assert compare(None, "mm10") is None
    assert compare("GRCz11", "grcz11") is None
    assert compare("GRCz11", None) is None
    assert "'danRer11' here, of 'GRCz11' in the model" in compare("danRer11", "GRCz11")
    assert "'GRCz11' here, of 'hg38' in the model" in compare("GRCz11", "hg38")
