"""Every value counts: one bad value among many is found, wherever it is and however the matrix is stored."""

from __future__ import annotations

import re

import anndata as ad
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellxpert.data import check as check_module
from cellxpert.data.check import advise_layer, check_structure, check_values, scan_values
from cellxpert.data.matrix import blocks
from cellxpert.errors import (
    BackedFileError,
    LayerError,
    MatrixTypeError,
    NegativeValueError,
    NonFiniteError,
    NotCountsError,
    SparseStructureError,
)

FORMS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "dense": np.asarray,
}


def counts(n=40, d=15, seed=0):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 3, (n, 1))
    return rng.poisson(depth * rng.gamma(0.5, 4, (1, d))).astype("float32") + (np.arange(d) == 0)


def anndata(matrix, **layers):
    n, d = matrix.shape
    adata = ad.AnnData(matrix, layers=layers)
    adata.obs_names, adata.var_names = [f"cell{i}" for i in range(n)], [f"gene{i}" for i in range(d)]
    return adata


def normalised(matrix, total=1e4):
    return (matrix / matrix.sum(axis=1, keepdims=True) * total).astype("float32")


def values(adata, layer=None, *, counts="integer", role="rna", where="adata"):
    return check_values(adata, layer, counts=counts, role=role, where=where)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small matrices must be walked in many steps too."""
    monkeypatch.setattr(check_module, "blocks", lambda matrix: blocks(matrix, size=37))


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "int64"])
def test_counts_pass_in_every_form(form, dtype):
    assert values(anndata(FORMS[form](np.minimum(counts(), 200).astype(dtype)))) == []


@settings(deadline=None, max_examples=60)
@given(form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 10**6), data=st.data())
def test_the_scan_equals_a_plain_loop(form, seed, data):
    truth = counts(6, 5, seed=seed).astype("float64")
    odd = st.sampled_from([0.0, 0.5, -1.0, -0.25, np.nan, np.inf, 3.0, 1e300])
    for i, j, v in data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), odd), max_size=4)):
        truth[i, j] = v
    flat = truth.ravel().tolist()
    scan = scan_values(FORMS[form](truth), where="X")
    assert scan.n_nan == sum(v != v for v in flat)
    assert scan.n_inf == sum(abs(v) == float("inf") for v in flat)
    assert scan.n_negative == sum(v < 0 for v in flat)
    finite = [v for v in flat if v == v and abs(v) != float("inf")]
    assert scan.n_fractional == sum(v != int(v) for v in finite)
    assert scan.n_nonzero == sum(v != 0 for v in flat)
    if len(finite) == len(flat):
        assert scan.high == max(flat)
        assert scan.low == min(0, min(flat))
        np.testing.assert_allclose(scan.totals, [sum(row) for row in truth.tolist()])


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (np.nan, NonFiniteError, r"1 NaN and 0 infinite"),
        (np.inf, NonFiniteError, r"0 NaN and 1 infinite"),
        (-np.inf, NonFiniteError, r"0 NaN and 1 infinite"),
        (-1.0, NegativeValueError, r"1 values .* negative, the lowest -1"),
        (2.5, NotCountsError, r"1 values .* not whole"),
        (1.0019583, NotCountsError, r"1 values .* not whole"),
    ],
)
def test_one_bad_value_is_found_anywhere_and_named(form, bad, kind, message):
    for i, j in [(0, 0), (39, 14), (17, 6)]:
        matrix = counts()
        matrix[i, j] = bad
        with pytest.raises(kind, match=message) as caught:
            values(anndata(FORMS[form](matrix)))
        if kind is not NotCountsError:
            assert f"['cell{i}', 'gene{j}'] = {bad:.4g}" in str(caught.value)


def test_at_most_five_examples_are_named():
    with pytest.raises(NonFiniteError) as caught:
        values(anndata(np.full((20, 5), np.nan)))
    assert str(caught.value).count("] = nan") == 5


@pytest.mark.parametrize("form", sorted(FORMS))
def test_what_was_done_to_counts_is_recognised(form):
    raw = counts(d=60)
    scaled = normalised(raw)
    cases = {
        r"sums to 1e\+?0?4|sums to 10000": scaled,
        "log1p of normalised counts": np.log1p(scaled),
        r"multiples of one number": scaled[:, :30],  # a choice of genes: totals differ
        "log1p of": np.log1p(scaled[:, :30]),
        "looks log1p-transformed": np.log1p(raw),
        "fractional": raw * 1.37 + (raw > 0) * np.random.default_rng(1).uniform(0, 1, raw.shape) * raw,
    }
    for message, matrix in cases.items():
        with pytest.raises(NotCountsError, match=message):
            values(anndata(FORMS[form](matrix.astype("float32"))))


def test_scaled_values_are_negative():
    scaled = (counts() - counts().mean(0)) / (counts().std(0) + 1)
    with pytest.raises(NegativeValueError, match="look scaled"):
        values(anndata(scaled))


def test_fractional_counts_are_accepted_on_request_only_and_noted():
    corrected = counts() * np.random.default_rng(0).uniform(0.9, 1, (40, 15)).astype("float32") * 20
    with pytest.raises(NotCountsError, match=r"counts='fractional' if these are corrected"):
        values(anndata(corrected))
    (note,) = values(anndata(corrected), counts="fractional")
    assert "accepted as fractional counts" in note
    halves = counts() / 2  # reads shared by two genes
    assert "accepted" in values(anndata(halves), counts="fractional")[0]
    for done in (normalised(counts()), np.log1p(normalised(counts()))):
        with pytest.raises(NotCountsError):
            values(anndata(done), counts="fractional")
    assert values(anndata(counts()), counts="fractional") == []


def test_intensities_need_to_be_asked_for_and_may_be_anything_from_zero():
    intensities = np.random.default_rng(0).gamma(1, 5, (40, 15))
    with pytest.raises(NotCountsError, match="or 'intensity' if these are intensities"):
        values(anndata(intensities), role="protein")
    assert values(anndata(intensities), role="protein", counts="intensity") == []
    with pytest.raises(NegativeValueError, match="clip"):
        values(anndata(intensities - 1), role="protein", counts="intensity")


def test_the_layer_that_looks_like_counts_is_named():
    log = np.log1p(normalised(counts()))
    adata = anndata(log, scaled=log - 1, counts=counts(), mask=(counts() > 0).astype("int8"))
    with pytest.raises(NotCountsError, match=r"layers\['counts'\] looks like counts: pass layer='counts'"):
        values(adata)
    with pytest.raises(NotCountsError, match=r"pass layers=\{'rna': 'counts'\}"):
        values(adata, where="mdata['gex']")
    with pytest.raises(NegativeValueError, match="layers\\['counts'\\] looks like counts"):
        values(adata, "scaled")
    swapped = anndata(counts(), log=log)
    with pytest.raises(NotCountsError, match=r"X looks like counts: pass layer=None"):
        values(swapped, "log")
    with pytest.raises(NotCountsError, match="load the raw counts"):
        values(anndata(log))


def test_raw_is_advised_and_never_used():
    adata = anndata(counts())
    adata.raw = adata.copy()
    adata.X = np.log1p(normalised(counts()))
    with pytest.raises(NotCountsError, match=re.escape("adata.layers['counts'] = adata.raw[:, adata.var_names].X")):
        values(adata)
    assert advise_layer(adata, None) == "raw"
    assert advise_layer(anndata(np.log1p(counts())), None) is None


def test_advice_looks_at_layers_that_cannot_be_read_without_failing():
    text = np.full((40, 15), "a", dtype=object)
    assert advise_layer(anndata(np.log1p(counts()), a=text, b=counts()), None) == "b"


def test_float16_is_refused_where_it_loses_counts():
    assert values(anndata(counts().astype("float16"))) == []
    big = counts()
    big[3, 4] = 4000
    with pytest.raises(MatrixTypeError, match="values up to 4000; whole numbers above 2048"):
        values(anndata(big.astype("float16")))
    with np.errstate(over="ignore"):
        overflown = (big * 100).astype("float16")
    with pytest.raises(NonFiniteError, match=r"overflows above 65,504"):
        values(anndata(overflown))


def test_cells_without_a_value_are_listed():
    matrix = counts()
    matrix[[3, 17]] = 0
    for form in FORMS.values():
        (note,) = values(anndata(form(matrix)))
        assert "2 of 40 cells have no value above zero, e.g. ['cell3', 'cell17']" in note


def test_totals_like_tpm_are_reported():
    tpm = np.rint(normalised(counts(d=200), 1e6))
    (note,) = values(anndata(tpm))
    assert "like TPM" in note
    same_depth = np.random.default_rng(0).multinomial(3000, np.ones(15) / 15, size=40)
    assert values(anndata(same_depth)) == []


def broken(change):
    matrix = sparse.csr_matrix(counts())
    matrix.sort_indices()
    change(matrix)
    return matrix


def set_at(name, i, value):
    def change(matrix):
        getattr(matrix, name)[i] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("indptr", 5, 0), r"indptr decreases at \[4\]"),
        (set_at("indptr", 5, -(2**31)), r"indptr decreases at \[4\]"),
        (set_at("indptr", 0, 1), "pointers from"),
        (set_at("indptr", -1, 10**6), "pointers from"),
        (set_at("indices", 3, 99), "index outside"),
        (set_at("indices", 3, -1), "index outside"),
        (lambda m: setattr(m, "indptr", m.indptr[:-1]), "40 pointers"),
        (lambda m: setattr(m, "data", m.data[:-1]), "pointers from"),
    ],
)
def test_sparse_matrices_that_contradict_themselves(change, message):
    with pytest.raises(SparseStructureError, match=message):
        scan_values(broken(change), where="X")


def test_unsorted_and_duplicate_entries_are_no_error():
    matrix = sparse.csr_matrix((np.array([1, 2, 3.0]), np.array([2, 0, 0]), np.array([0, 2, 3])), shape=(2, 3))
    check_structure(matrix, where="X")
    assert scan_values(matrix, where="X").totals.tolist() == [3, 3]


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_backed_files_are_scanned_in_full(form, tmp_path):
    good, bad = counts(), counts()
    bad[39, 14] = -1
    for name, matrix in (("good", good), ("bad", bad)):
        anndata(FORMS[form](matrix)).write_h5ad(tmp_path / f"{name}.h5ad")
    adata = ad.read_h5ad(tmp_path / "good.h5ad", backed="r")
    assert values(adata) == []
    adata.file.close()
    adata = ad.read_h5ad(tmp_path / "bad.h5ad", backed="r")
    with pytest.raises(NegativeValueError, match=r"\['cell39', 'gene14'\] = -1"):
        values(adata)
    adata.file.close()


def test_errors_of_the_layer_come_first():
    with pytest.raises(LayerError, match="no layer 'x'"):
        values(anndata(counts()), "x")


@pytest.mark.parametrize(
    ("form", "part"), [("csr", "X/data"), ("csc", "X/indices"), ("csr", "X/indptr"), ("dense", "X")]
)
def test_a_damaged_file_is_an_error_of_its_own(form, part, tmp_path):
    anndata(FORMS[form](counts())).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(tmp_path / "a.h5ad") as file:
        chunk = file[part].id.get_chunk_info(0)
    with (tmp_path / "a.h5ad").open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(BackedFileError, match=r"adata\.X: [\s\S]*it is damaged") as caught:
        values(adata)
    assert caught.value.__cause__ is not None
    adata.file.close()


def test_a_file_that_can_be_read_but_contradicts_itself_is_not_called_damaged(tmp_path):
    anndata(FORMS["csr"](counts())).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["X/indptr"][3] = file["X/indptr"][5]
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(SparseStructureError, match="indptr decreases at"):
        values(adata)
    adata.file.close()
