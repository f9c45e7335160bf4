"""Whatever holds a matrix, the same rows come out."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellxpert.data.matrix import RowReader, blocks, choose_matrix, is_backed, storage
from cellxpert.errors import BackedFileError, LayerError, MatrixTypeError

FORMS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
    "fortran": np.asfortranarray,
}
DTYPES = ("float32", "float64", "int32", "int64", "uint8", "uint16")


def counts(n=30, d=11, seed=0, share=0.4):
    rng = np.random.default_rng(seed)
    return rng.poisson(3, (n, d)) * (rng.random((n, d)) < share)


def named(matrix):
    n, d = matrix.shape
    adata = ad.AnnData(shape=(n, d))
    adata.layers["m"] = matrix
    return adata


def check_canonical(block, truth):
    assert type(block) is sparse.csr_matrix
    assert block.dtype == np.float64
    np.testing.assert_array_equal(block.toarray(), truth)
    twin = sparse.csr_matrix(np.asarray(truth, dtype=np.float64))
    np.testing.assert_array_equal(block.indptr, twin.indptr)
    np.testing.assert_array_equal(block.indices, twin.indices)
    np.testing.assert_array_equal(block.data, twin.data)


@settings(deadline=None, max_examples=60)
@given(
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 12)),
    data=st.data(),
)
def test_rows_do_not_depend_on_the_form(form, dtype, seed, shape, data):
    truth = counts(*shape, seed=seed)
    rows = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=25)), dtype=np.int64)
    adata = named(FORMS[form](truth.astype(dtype)))
    check_canonical(RowReader(adata, "m", where="adata")(rows), truth[rows])


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("rows", [[], [4], [0, 1, 2], [7, 3, 7, 29, 0], list(range(30)), [5, 6, 7, 20, 21], [28, 1]])
def test_rows_of_a_backed_file(form, rows, tmp_path):
    truth = counts()
    ad.AnnData(FORMS[form](truth.astype("float32"))).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    reader = RowReader(adata, None, where="adata")
    check_canonical(reader(np.array(rows, dtype=np.int64)), truth[np.array(rows, dtype=np.int64)])
    adata.file.close()  # a closed file is opened again
    check_canonical(reader(np.array(rows, dtype=np.int64)), truth[np.array(rows, dtype=np.int64)])
    adata.file.close()


def test_a_file_that_is_gone_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "gone.h5ad"
    ad.AnnData(sparse.csr_matrix(counts().astype("float32"))).write_h5ad(path)
    adata = ad.read_h5ad(path, backed="r")
    adata.file.close()
    path.unlink()
    with pytest.raises(BackedFileError, match=r"gone\.h5ad"):
        choose_matrix(adata, None, where="adata")


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_unsorted_duplicated_and_zero_entries_are_put_right_in_a_copy(form):
    # two rows: row 0 holds column 3 twice (200 + 100 > 255) and column 1; row 1 a stored zero and column 0
    if form == "csr":
        matrix = sparse.csr_matrix(
            (np.array([200, 7, 100, 0, 5], "uint8"), np.array([3, 1, 3, 2, 0]), np.array([0, 3, 5])), shape=(2, 4)
        )
    else:
        matrix = sparse.csc_matrix(
            (np.array([5, 7, 0, 200, 100], "uint8"), np.array([1, 0, 1, 0, 0]), np.array([0, 1, 2, 3, 5])), shape=(2, 4)
        )
    adata = named(matrix)
    stored = adata.layers["m"]
    before = stored.data.copy(), stored.indices.copy(), stored.indptr.copy()
    truth = np.array([[0, 7, 0, 300], [5, 0, 0, 0]])
    check_canonical(RowReader(adata, "m", where="adata")(np.array([1, 0, 1])), truth[[1, 0, 1]])
    assert adata.layers["m"] is stored
    for old, new in zip(before, (stored.data, stored.indices, stored.indptr), strict=True):
        np.testing.assert_array_equal(old, new)


def test_float16_sparse_matrices_are_read():
    truth = counts()
    adata = named(sparse.csr_matrix(truth.astype("float32")))
    adata.layers["m"].data = adata.layers["m"].data.astype("float16")
    check_canonical(RowReader(adata, "m", where="adata")(np.array([3, 1])), truth[[3, 1]])


def refill(matrix, size):
    """Put the blocks together again, value by value."""
    kind = storage(matrix)
    seen = np.zeros(matrix.shape)
    for block in blocks(matrix, size=size):
        if kind == "dense":
            seen[block.first : block.first + len(block.values)] += block.values
            continue
        assert len(block.values) <= max(size, matrix.shape[1 if kind == "csr" else 0])
        for i, (a, b) in enumerate(zip(block.indptr[:-1], block.indptr[1:], strict=True), start=block.first):
            for j, v in zip(block.indices[a:b], block.values[a:b], strict=True):
                seen[(i, j) if kind == "csr" else (j, i)] += v
    return seen


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("size", [1, 7, 50, 10**6])
def test_blocks_cover_every_value_once(form, size):
    truth = counts()
    np.testing.assert_array_equal(refill(FORMS[form](truth), size), truth)


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_blocks_of_a_backed_file(form, tmp_path):
    truth = counts().astype("float32")
    ad.AnnData(FORMS[form](truth)).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    matrix = choose_matrix(adata, None, where="adata")
    assert is_backed(matrix)
    np.testing.assert_array_equal(refill(matrix, 13), truth)
    adata.file.close()


def test_blocks_share_the_memory_of_a_matrix():
    matrix = sparse.csr_matrix(counts())
    assert all(np.shares_memory(block.values, matrix.data) for block in blocks(matrix, size=20) if len(block.values))


def test_a_missing_layer_is_named_with_those_that_exist():
    adata = named(counts())
    with pytest.raises(LayerError, match=r"no layer 'counts'[\s\S]*set it up with one of the layers \['m'\]"):
        choose_matrix(adata, "counts", where="adata")
    with pytest.raises(LayerError, match="there are no layers; set it up without one to read X"):
        choose_matrix(ad.AnnData(counts()), "counts", where="adata")


def test_no_values_in_x_is_an_error_that_points_to_the_layers():
    with pytest.raises(LayerError, match=r"X is None[\s\S]*layer='m'"):
        choose_matrix(named(counts()), None, where="adata")
    with pytest.raises(LayerError, match=r"X is None[\s\S]*set adata\.X"):
        choose_matrix(ad.AnnData(shape=(3, 2)), None, where="adata")


class Foreign(np.ndarray):
    """Stands for an array of another library, which need not be installed."""


@pytest.mark.parametrize("package", ["dask", "cupy", "awkward"])
def test_foreign_arrays_are_refused_by_name(package, monkeypatch):
    monkeypatch.setattr(Foreign, "__module__", f"{package}.array")
    adata = ad.AnnData(shape=(3, 2))
    adata.layers["m"] = np.ones((3, 2)).view(Foreign)
    with pytest.raises(MatrixTypeError, match=rf"{package}\.array\.Foreign[\s\S]*into memory"):
        choose_matrix(adata, "m", where="adata")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([["1", "2"]]), "dtype <U1"),
        (np.array([[1, 2]], dtype=object), "dtype object"),
        (np.array([[True, False]]), r"dtype bool[\s\S]*int32"),
        (np.array([[1 + 1j, 2]]), "dtype complex128"),
        (sparse.csr_matrix(np.array([[True, False]])), "dtype bool"),
        (np.ma.masked_array([[1.0, 2.0]], mask=[[True, False]]), "masked"),
    ],
)
def test_dtypes_that_are_no_numbers_are_refused(values, message):
    adata = ad.AnnData(shape=(1, 2))
    adata.layers["m"] = values
    with pytest.raises(MatrixTypeError, match=message):
        choose_matrix(adata, "m", where="adata")


def test_a_matrix_of_another_shape_is_refused():
    adata = ad.AnnData(counts())
    adata._X = adata._X[:10]
    with pytest.raises(LayerError, match=r"adata\.X: shape \(10, \d+\) instead of \(\d+, \d+\)"):
        choose_matrix(adata, None, where="adata")
