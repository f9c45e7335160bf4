"""Features need names of their own kind, one each; what is likely an accident is reported."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cellxpert.data.names import check_names
from cellxpert.errors import DuplicateNamesError, FeatureNameError, TransposedError


def anndata(cells, features):
    cells = [f"cell{i}" for i in range(cells)] if isinstance(cells, int) else cells
    adata = ad.AnnData(np.ones((len(cells), len(features)), dtype="float32"))
    adata.obs_names, adata.var_names = pd.Index(cells, dtype=object), pd.Index(features, dtype=object)
    return adata


HUMAN = ["ENSG00000198851.9", "ENSG00000075624"]
BARCODES = ["AAACCTGAGCAATCTC-1", "AAACCTGAGCAATCTG-1", "run1#TTTCCTGAGCAATCTC"]
ENSEMBL = ["ENSG00000198851.9", "ENSMUSG00000032093", "ENSG00000075624"]
PEAKS = ["chr1:100-200", "chrX_5000_6000", "1:10000-10500"]


@pytest.mark.parametrize(
    ("cells", "features"),
    [
        (["x", "y", "z"], BARCODES),
        (ENSEMBL, ["a", "b"]),
        (PEAKS, ["a", "b"]),
        (["Actb", "Gapdh", "B2m", "Foo"], ["a", "b"]),
    ],
)
def test_exchanged_cells_and_features(cells, features):
    adata = anndata(cells, features)
    with pytest.raises(TransposedError, match=r"adata\.T"):
        check_names(adata, "rna", where="adata")
    check_names(adata.T, "rna", where="adata")


@pytest.mark.parametrize(
    ("cells", "features"),
    [
        (BARCODES, HUMAN),
        (BARCODES, ["A1CF", "chr22-38_28785274-29006793.1"]),
        (BARCODES, ["ACGTACGTACGTACG", "ACGTACGTACGTACC"]),  # k-mers
        (HUMAN, HUMAN),  # one profile per perturbed gene
        (["ACTB", "GAPDH", "B2M"], ["ACTB", "GAPDH", "B2M"]),
        (["20220520_TsH_th152_001_1", "20220520_TsH_th152_001_2"], ["MPO", "SMA"]),
    ],
)
def test_unusual_names_that_are_fine(cells, features):
    assert check_names(anndata(cells, features), "rna", where="adata") == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["0", "1", "2"], r"3 of 3 names are numbers, e\.g\. \['0', '1', '2'\]"),
        (["0", "1", "g", "h"], r"2 of 4 names are numbers"),
        (["1.0", "2.0", "nan"], r"e\.g\. \['1\.0', '2\.0'\]"),
    ],
)
def test_numbers_are_no_names(features, message):
    with pytest.raises(FeatureNameError, match=message):
        check_names(anndata(2, features), "rna", where="adata")


@pytest.mark.parametrize("features", [["a", "nan"], ["a", np.nan], ["a", ""], ["a", " "], ["a", "<NA>"]])
def test_missing_names_are_refused(features):
    for role in ("rna", "atac", "protein"):
        with pytest.raises(FeatureNameError, match="1 names are missing"):
            check_names(anndata(2, features), role, where="adata")


def test_a_few_numbers_and_a_gene_of_the_fly_are_names():
    assert check_names(anndata(2, ["0", "1", "a", "b", "c"]), "rna", where="adata") == []
    assert check_names(anndata(2, ["nan", "CG12345", "wg"]), "rna", where="adata") == []


def test_one_gene_in_two_versions_is_refused():
    names = ["ENSG00000000001.1", "ENSG00000000002.7", "ENSG00000000001.2"]
    for role in ("rna", "protein"):
        with pytest.raises(DuplicateNamesError, match=r"'ENSG00000000001\.1', 'ENSG00000000001\.2'\]"):
            check_names(anndata(2, names), role, where="adata")
    adata = anndata(2, names)
    adata.var["gene_ids"] = [f"ENSG0000000010{i}" for i in range(3)]
    with pytest.raises(DuplicateNamesError, match="1 Ensembl ids"):
        check_names(adata, "rna", where="adata")


def test_one_id_of_two_features_is_reported():
    adata = anndata(2, ["a", "b", "c", "d"])
    adata.var["gene_ids"] = ["ENSG00000000001", "ENSG00000000001.3", "", ""]
    (note,) = check_names(adata, "rna", where="adata")
    assert "var['gene_ids']: 1 Ensembl ids stand for several features" in note
    assert "('ENSG00000000001', 'b')" in note
    adata.var["gene_ids"] = ["ENSG00000000001", "ENSG00000000002", "", ""]
    assert check_names(adata, "rna", where="adata") == []
    many = anndata(2, [f"gene{i}" for i in range(200)])
    many.var["gene_ids"] = [f"ENSG00000000{max(i, 1):03d}" for i in range(200)]
    assert check_names(many, "rna", where="adata") == []  # one pair among 200


def test_antibodies_in_the_rna_matrix_are_reported():
    mixed = anndata(2, ["CD3E", "CD3_TotalSeqB", "ADT_CD4"])
    (note,) = check_names(mixed, "rna", where="adata")
    assert "2 of 3 features" in note
    assert check_names(mixed, "protein", where="adata") == []
    typed = anndata(2, ["CD3E", "CD3"])
    typed.var["feature_types"] = pd.Categorical(["Gene Expression", "Antibody Capture"])
    (note,) = check_names(typed, "rna", where="adata")
    assert "['CD3']" in note


@pytest.mark.parametrize("types", ["Antibody Capture", "Peaks", "CRISPR Guide Capture"])
def test_a_matrix_without_any_gene_is_reported(types):
    adata = anndata(2, ["CD3", "CD4"])
    adata.var["feature_types"] = types
    (note,) = check_names(adata, "rna", where="adata")
    assert "2 of 2 features of the RNA matrix are no genes" in note
    adata.var["feature_types"] = "protein_coding"  # words of other tools
    assert check_names(adata, "rna", where="adata") == []


@pytest.mark.parametrize("features", [["CD3_TotalSeqB", "CD4_TotalSeqB"], PEAKS, ["chr1:1-5", "A1CF"]])
def test_antibodies_and_peaks_are_known_by_name(features):
    (note,) = check_names(anndata(2, features), "rna", where="adata")
    assert "are no genes" in note


SYMBOLS = [f"gene{i}" for i in range(19)]
MOUSE = ["ENSMUSG00000032093", "ENSMUSG00000032094"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([*SYMBOLS, HUMAN[0]], "1 of 20 names are Ensembl ids and the others are not"),
        ([*HUMAN, *MOUSE], "Ensembl ids of 2 organisms, e.g. ['ENSG00000198851', 'ENSMUSG00000032093']"),
        (
            [f"GRCh38_{s}" for s in SYMBOLS] + ["mm10___Actb"],
            "20 of 20 names begin with a genome, e.g. ['GRCh38_gene0', 'mm10",
        ),
    ],
)
def test_names_of_several_kinds_are_reported(features, message):
    (note,) = check_names(anndata(2, features), "rna", where="adata")
    assert message in note
    assert check_names(anndata(2, features), "protein", where="adata") == []


def test_ids_that_tell_what_mixed_names_are():
    adata = anndata(2, [*SYMBOLS, HUMAN[0]])
    adata.var["gene_ids"] = [f"ENSG000000000{i:02d}" for i in range(20)]
    assert check_names(adata, "rna", where="adata") == []
    adata.var["gene_ids"] = [f"ENSMUSG000000000{i:02d}" for i in range(10)] + [
        f"ENSG000000000{i:02d}" for i in range(10)
    ]
    (note,) = check_names(adata, "rna", where="adata")
    assert "2 organisms" in note


def test_a_few_names_of_another_kind_are_fine():
    assert check_names(anndata(2, [*SYMBOLS, "x", HUMAN[0]]), "rna", where="adata") == []
    human = [f"ENSG000000000{i:02d}" for i in range(20)]
    assert check_names(anndata(2, [*human, MOUSE[0]]), "rna", where="adata") == []


@pytest.mark.parametrize(
    "features",
    [
        ["chr1:100-200", "GL000194.1:1-50"],
        ["chr1-100-200", "chr1-300-400"],
        ["chr1_KI270706v1_random_100_200", "1_1_2"],
        ["chrUn_KI270742v1-10-200", "KI270728.1_20_300", "chr1:1-5", "chr1-7-9"],  # spelling does not matter
        ["AAAA", "AAAC"],  # k-mers
    ],
)
def test_peaks_with_places(features):
    assert check_names(anndata(2, features), "atac", where="adata") == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["CD3E", "HLA-DRB1"], "2 of 2 peaks are not named chr:start-end"),
        (
            ["peak_0", "chr1:1-5"],
            "1 of 2 peaks are not named chr:start-end, chr-start-end or chr_start_end, e.g. ['peak_0']",
        ),
        (
            ["chr1:5-5", "chr1:9-7", "chr1:1-5"],
            "e.g. ['chr1:5-5', 'chr1:9-7']; those of other objects are matched by place",
        ),
        (["chr1:1_5", "chr1:1-5"], "e.g. ['chr1:1_5']"),
    ],
)
def test_peaks_without_places_are_reported(features, message):
    (note,) = check_names(anndata(2, features), "atac", where="adata")
    assert message in note


def test_one_place_in_two_spellings_is_refused():
    names = ["chr1:10-20", "chr1:30-40", "chr1_10_20", "1-30-40"]
    with pytest.raises(
        DuplicateNamesError, match=r"2 places have several peaks, e\.g\. \['chr1:10-20', 'chr1_10_20'\]"
    ):
        check_names(anndata(2, names), "atac", where="adata")
    assert check_names(anndata(2, ["peak", "Peak"]), "atac", where="adata")  # no places: not compared


@pytest.mark.parametrize("proteins", [["CD3", "CD45RA", "HLA-DR"], ["Cd11b", "CD16", "IgM", "CD127"]])
def test_usual_names_of_antibodies_are_no_genes(proteins):
    (note,) = check_names(anndata(2, ["CD3E", "CD4", "CD8A", "CD19", *proteins]), "rna", where="adata")
    assert f"{len(proteins)} of {4 + len(proteins)} features of the RNA matrix are no genes, e.g. {proteins}" in note


@pytest.mark.parametrize(
    "genes", [["CD3", "CD16", "CD3E"], ["CD4", "CD19", "CD14", "CD8A", "HLA-DRA", "CD300A", "CD160", "IGHM", "CD3EAP"]]
)
def test_genes_named_like_antibodies_are_genes(genes):
    assert check_names(anndata(2, genes), "rna", where="adata") == []
