"""K-mers of peaks equal those of a plain loop, and let a model read data with other peaks."""

from __future__ import annotations

import builtins
import gzip
import itertools
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import cellxpert as cx
from cellxpert.data.binning import transform_of
from cellxpert.errors import (
    ConfigError,
    EmptyDataError,
    FeatureNameError,
    FeatureOverlapError,
    GenomeError,
    GenomeMissingError,
    LayerError,
    NegativeValueError,
    NonFiniteError,
    NotCountsError,
    ObjectTypeError,
)
from cellxpert.genome import kmers as module
from cellxpert.genome.builds import BUILDS
from cellxpert.genome.kmers import canonical_kmers, count_kmers, peaks_to_kmers

PARTNER = {"A": "T", "C": "G", "G": "C", "T": "A"}


def canonical(word):
    return min(word, "".join(PARTNER[b] for b in reversed(word)))


def slow(sequence, k):
    """Occurrences of each canonical k-mer, one window after the other."""
    found = {}
    for i in range(len(sequence) - k + 1):
        word = sequence[i : i + k].upper()
        if set(word) <= set(PARTNER):
            found[canonical(word)] = found.get(canonical(word), 0) + 1
    return found


def as_row(found, k):
    return [found.get(word, 0) for word in canonical_kmers(k)]


GENOME = {
    name: "".join(
        np.random.default_rng(i).choice(list("ACGTacgtN"), n, p=[0.2, 0.2, 0.2, 0.2, 0.04, 0.05, 0.05, 0.04, 0.02])
    )
    for i, (name, n) in enumerate({"chr1": 900, "chr2": 500, "GL000194.1": 300}.items())
}


def write(path, genome=GENOME, width=60):
    lines = [
        f">{name} of a test\n" + "\n".join(seq[i : i + width] for i in range(0, len(seq), width))
        for name, seq in genome.items()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    return write(tmp_path_factory.mktemp("genome") / "small.fa")


PEAKS = ["chr1:0-100", "chr1_80_300", "chr1-899-900", "chr2:100-450", "GL000194.1:250-300", "chr2:0-3", "chr1:400-900"]
PLACES = [("chr1", 0, 100), ("chr1", 80, 300), ("chr1", 899, 900), ("chr2", 100, 450), ("GL000194.1", 250, 300), ("chr2", 0, 3),
          ("chr1", 400, 900)]  # fmt: skip


def cells(names=PEAKS, n=5, seed=0, form=sparse.csr_matrix, dtype="int32"):
    values = np.random.default_rng(seed).poisson(1.5, (n, len(names))).astype(dtype)
    obs = pd.DataFrame({"type": list("abcdefgh")[:n]}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(form(values), obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))


# --- words ---


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_canonical_kmers_are_all_words_but_reverse_complements(k):
    assert canonical_kmers(k) == sorted({canonical("".join(word)) for word in itertools.product("ACGT", repeat=k)})


def test_numbers_of_canonical_kmers():
    assert [len(canonical_kmers(k)) for k in (4, 5, 6, 7, 8)] == [136, 512, 2080, 8192, 32896]


@settings(deadline=None)
@given(sequences=st.lists(st.text(alphabet="ACGTacgtNnR-", max_size=30), max_size=6), k=st.integers(1, 5))
def test_counting_equals_a_plain_loop(sequences, k):
    found = count_kmers(sequences, k)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(
        found.toarray(),
        np.reshape([as_row(slow(s, k), k) for s in sequences], (len(sequences), len(canonical_kmers(k)))),
    )


@settings(deadline=None)
@given(sequence=st.text(alphabet="ACGTacgtN", max_size=60), k=st.integers(1, 6))
def test_a_strand_counts_like_the_other(sequence, k):
    other = "".join(PARTNER.get(b, "N") for b in reversed(sequence.upper()))
    np.testing.assert_array_equal(count_kmers([sequence], k).toarray(), count_kmers([other], k).toarray())


# --- cells ---


@pytest.mark.parametrize("k", [4, 5, 6])
def test_cells_equal_a_plain_loop(fasta, k):
    adata = cells()
    found = peaks_to_kmers(adata, fasta, k=k)
    expected = np.zeros((adata.n_obs, len(canonical_kmers(k))), np.int64)
    for i in range(adata.n_obs):
        for j, (chrom, start, end) in enumerate(PLACES):
            expected[i] += int(adata.X[i, j]) * np.array(as_row(slow(GENOME[chrom][start:end], k), k))
    assert sparse.isspmatrix_csr(found.X)
    assert found.X.dtype == np.int32
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert found.var_names.tolist() == canonical_kmers(k)
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    assert found.obs is not adata.obs
    assert found.uns["kmers"] == {
        "k": k,
        "fasta": "small.fa",
        "genome": "",
        "n_peaks": 7,
        "n_dropped": 0,
        "dropped": [],
        "renamed": [],
    }


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray])
@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "uint8", "int64"])
def test_the_matrix_may_have_any_form(fasta, form, dtype):
    expected = peaks_to_kmers(cells(), fasta, k=4).X.toarray()
    np.testing.assert_array_equal(peaks_to_kmers(cells(form=form, dtype=dtype), fasta, k=4).X.toarray(), expected)


def test_layers_views_and_files(fasta, tmp_path):
    adata = cells()
    expected = peaks_to_kmers(adata, fasta, k=4).X.toarray()
    layered = adata.copy()
    layered.layers["counts"], layered.X = adata.X.copy(), None
    np.testing.assert_array_equal(peaks_to_kmers(layered, fasta, k=4, layer="counts").X.toarray(), expected)
    np.testing.assert_array_equal(peaks_to_kmers(adata[[3, 1]], fasta, k=4).X.toarray(), expected[[3, 1]])
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(peaks_to_kmers(backed, fasta, k=4).X.toarray(), expected)
    backed.file.close()
    binary = ad.AnnData(adata.X > 0, var=adata.var)
    whole = ad.AnnData((adata.X > 0).astype("int32"), var=adata.var)
    np.testing.assert_array_equal(
        peaks_to_kmers(binary, fasta, k=4).X.toarray(), peaks_to_kmers(whole, fasta, k=4).X.toarray()
    )


def test_the_result_survives_files_and_chunks_do_not_matter(fasta, tmp_path, monkeypatch):
    expected = peaks_to_kmers(cells(), fasta, k=5)
    expected.write_h5ad(tmp_path / "k.h5ad")
    again = ad.read_h5ad(tmp_path / "k.h5ad")
    np.testing.assert_array_equal(again.X.toarray(), expected.X.toarray())
    assert again.uns["kmers"]["k"] == 5
    monkeypatch.setattr(module, "_CHUNK_CELLS", 2)
    monkeypatch.setattr(module, "_CHUNK_BASES", 90)
    np.testing.assert_array_equal(peaks_to_kmers(cells(), fasta, k=5).X.toarray(), expected.X.toarray())


def test_large_sums_do_not_overflow(tmp_path):
    path = write(tmp_path / "a.fa", {"chr1": "A" * 1000})
    adata = cells(["chr1:0-1000"], n=1)
    adata.X = sparse.csr_matrix(np.array([[2**31 - 1]]))
    found = peaks_to_kmers(adata, path, k=4)
    assert found.X.dtype == np.int64
    assert found["cell0", "AAAA"].X[0, 0] == 997 * (2**31 - 1)


def test_nothing_of_the_object_changes(fasta):
    adata = cells()
    before = adata.X.copy()
    peaks_to_kmers(adata, fasta, k=4)
    assert (before != adata.X).nnz == 0
    assert not adata.uns


# --- chromosomes ---


def test_chromosomes_with_and_without_prefix(fasta, tmp_path):
    expected = peaks_to_kmers(cells(), fasta, k=4)
    bare = cells([name.removeprefix("chr") for name in PEAKS])
    found = peaks_to_kmers(bare, fasta, k=4)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.uns["kmers"]["renamed"] == ["1", "2"]
    plain = write(tmp_path / "ensembl.fa", {name.removeprefix("chr"): seq for name, seq in GENOME.items()})
    found = peaks_to_kmers(cells(), plain, k=4)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.uns["kmers"]["renamed"] == ["chr1", "chr2"]
    found.write_h5ad(tmp_path / "k.h5ad")
    both = write(tmp_path / "both.fa", {**GENOME, "1": "A" * 900})  # the exact name counts
    np.testing.assert_array_equal(peaks_to_kmers(cells(), both, k=4).X.toarray(), expected.X.toarray())


def test_chromosomes_that_are_not_there(fasta):
    adata = cells([*PEAKS, "chr9:1-50", "chr9:60-90"])
    with pytest.raises(
        GenomeError, match=r"1 of the peaks' 4 chromosomes, with 2 of 9 peaks, .*\['chr9'\].*[\s\S]*missing='drop'"
    ):
        peaks_to_kmers(adata, fasta)
    found = peaks_to_kmers(adata, fasta, k=4, missing="drop")
    expected = peaks_to_kmers(adata[:, :7], fasta, k=4)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    record = found.uns["kmers"]
    assert (record["n_peaks"], record["n_dropped"], record["dropped"]) == (7, 2, ["chr9"])
    with pytest.raises(GenomeError, match="2 of 2 peaks"):
        peaks_to_kmers(adata[:, 7:], fasta, missing="drop")


def test_peaks_beyond_the_end_are_counted(fasta):
    adata = cells([*PEAKS, "chr2:450-501", "chr1:5000-5100"])
    with pytest.raises(GenomeError, match=r"2 of 9 peaks lie beyond .*\['chr2:450-501', 'chr1:5000-5100'\]"):
        peaks_to_kmers(adata, fasta)


def test_another_build_than_the_file(fasta, monkeypatch):
    monkeypatch.setattr(module, "build_of_lengths", lambda lengths: "hg38")  # a file of 3 GB otherwise
    adata = cells()
    adata.uns["genome"] = "GRCh37"
    with pytest.raises(GenomeError, match=r"small\.fa: peaks of hg19, but a genome with the chromosomes of hg38"):
        peaks_to_kmers(adata, fasta)
    adata.uns["genome"] = "T2T-CHM13v2"  # not a build that is known, and not this one
    with pytest.raises(GenomeError, match=r"peaks of T2T-CHM13v2, but[\s\S]*uns\['genome'\] = 'hg38'"):
        peaks_to_kmers(adata, fasta)
    adata.uns["genome"] = "hg38"
    assert peaks_to_kmers(adata, fasta, k=4).uns["kmers"]["genome"] == "hg38"
    assert BUILDS["hg38"]["1"] > 900


# --- what cannot be ---


def test_arguments(fasta):
    for k in (3, 9, 5.5, "6", None, True):
        with pytest.raises(ConfigError, match="use 4 to 8"):
            peaks_to_kmers(cells(), fasta, k=k)
    with pytest.raises(ConfigError, match="'error' or 'drop'"):
        peaks_to_kmers(cells(), fasta, missing="skip")
    with pytest.raises(ObjectTypeError, match=r"give one modality: mdata\['atac'\]"):
        peaks_to_kmers({"atac": cells()}, fasta)
    with pytest.raises(EmptyDataError):
        peaks_to_kmers(cells()[:0], fasta)
    with pytest.raises(LayerError, match="no layer 'counts'"):
        peaks_to_kmers(cells(), fasta, layer="counts")
    empty = cells()
    empty.X = None
    with pytest.raises(LayerError, match="X is None"):
        peaks_to_kmers(empty, fasta)
    with pytest.raises(FeatureNameError, match=r"1 of 8 peaks .*\['peak_9'\]"):
        peaks_to_kmers(cells([*PEAKS, "peak_9"]), fasta)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.nan, NonFiniteError), (np.inf, NonFiniteError), (-1, NegativeValueError), (0.5, NotCountsError)],
)
def test_values_must_be_counts(fasta, value, kind):
    adata = cells(dtype="float32")
    adata.X = sparse.csr_matrix(np.full(adata.shape, value, "float32"))
    with pytest.raises(kind):
        peaks_to_kmers(adata, fasta, k=4)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(GenomeError, match="no such file"):
        peaks_to_kmers(cells(), tmp_path / "none.fa")
    (tmp_path / "empty.fa").write_text("")
    with pytest.raises(GenomeError, match="an empty file"):
        peaks_to_kmers(cells(), tmp_path / "empty.fa")
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(b">chr1\nACGT\n"))
    with pytest.raises(GenomeError, match="cannot be read[\\s\\S]*give an uncompressed FASTA file"):
        peaks_to_kmers(cells(), tmp_path / "a.fa.gz")
    (tmp_path / "twice.fa").write_text(">chr1\nACGT\n>chr1\nACGT\n")
    with pytest.raises(GenomeError, match="cannot be read"):
        peaks_to_kmers(cells(), tmp_path / "twice.fa")


def test_without_pyfaidx_the_extra_is_named(fasta, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pyfaidx":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "pyfaidx", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(GenomeMissingError, match=r'pip install "cellxpert\[atac\]"'):
        peaks_to_kmers(cells(), fasta)


# --- models ---


def types_by_motif(peaks, path, n, seed):
    """Cells of two types, in which peaks with one of two motifs are open."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 2
    motif = np.array([int(name.split(":")[1].split("-")[0]) // 100 % 2 for name in peaks])
    values = rng.poisson(np.where(kind[:, None] == motif, 3.0, 0.3))
    obs = pd.DataFrame({"type": np.array(["even", "odd"])[kind]}, index=[f"c{i}" for i in range(n)])
    adata = ad.AnnData(sparse.csr_matrix(values.astype("int32")), obs=obs, var=pd.DataFrame(index=peaks))
    return adata, peaks_to_kmers(adata, path, k=4)


@pytest.mark.slow
def test_a_model_reads_data_with_other_peaks(tmp_path):
    rng = np.random.default_rng(5)
    words = ("GATAAG", "CACGTG")
    blocks = [
        "".join(rng.choice(list("ACGT"), 40)) + words[i % 2] * 5 + "".join(rng.choice(list("ACGT"), 30))
        for i in range(60)
    ]
    path = write(tmp_path / "g.fa", {"chr1": "".join(blocks)})
    # two peak calls: other regions, other widths
    called, recalled = (
        [f"chr1:{100 * i + 20}-{100 * i + 90}" for i in range(40)],
        [f"chr1:{100 * i + 30}-{100 * i + 80}" for i in range(25, 60)],
    )
    peaks, train = types_by_motif(called, path, 120, seed=0)
    other_peaks, query = types_by_motif(recalled, path, 60, seed=1)
    assert not set(called) & set(recalled)
    assert train.var_names.equals(query.var_names)

    cx.CellxPert.setup_anndata(train, modality="atac", labels_key="type")
    assert train.uns["cellxpert_info"]["setup"]["modalities"]["atac"] == {"counts": "integer"}
    model = cx.CellxPert(train, preset="nano", seed=0)
    model.train(max_epochs=2, progress_bar=False)
    model.annotate(query, unknown=False)
    assert (query.obs["cellxpert_label"].astype(str) == query.obs["type"]).mean() > 0.95

    with pytest.raises(
        FeatureOverlapError, match=r"peaks here, k-mers of 4 bases in the model[\s\S]*peaks_to_kmers\(\.\.\., k=4\)"
    ):
        model.annotate(other_peaks, unknown=False)
    with pytest.raises(FeatureOverlapError, match="k-mers of 5 bases here, k-mers of 4 bases in the model"):
        model.annotate(peaks_to_kmers(other_peaks, path, k=5), unknown=False)

    cx.CellxPert.setup_anndata(peaks, modality="atac", labels_key="type")
    of_peaks = cx.CellxPert(peaks, preset="nano", seed=0)
    of_peaks.train(max_epochs=1, progress_bar=False)
    with pytest.raises(FeatureOverlapError, match="another peak call[\\s\\S]*cellxpert.peaks_to_kmers"):
        of_peaks.annotate(other_peaks, unknown=False)
    with pytest.raises(FeatureOverlapError, match="k-mers of 4 bases here, peaks in the model"):
        of_peaks.annotate(query, unknown=False)
    respelt = peaks.copy()
    respelt.var_names = [name.replace(":", "_").replace("-", "_").removeprefix("chr") for name in respelt.var_names]
    del respelt.uns["cellxpert_info"]
    np.testing.assert_array_equal(of_peaks.get_latent(respelt, inplace=False), of_peaks.get_latent(inplace=False))


def test_kmers_are_read_as_logs_of_shares():
    assert transform_of("atac", "integer", kmers=True) == "log"
    assert transform_of("atac", "integer") == "counts"
    assert transform_of("rna", "intensity", kmers=True) == "arcsinh"
