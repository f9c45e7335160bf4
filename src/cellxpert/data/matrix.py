"""One way to read a matrix, whatever holds it: CSR, CSC, sparse arrays, dense, ``np.matrix``, backed files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from cellxpert.errors import BackedFileError, CellxPertError, LayerError, MatrixTypeError

__all__ = ["BLOCK_VALUES", "Block", "RowReader", "blocks", "choose_matrix", "file_errors", "is_backed", "storage"]

BLOCK_VALUES = 1 << 20
"""Values looked at in one step: small enough for the cache, large enough for NumPy."""

_GAP = 16
"""Rows of a file that are read and thrown away rather than skipped."""
_FOREIGN = MappingProxyType(
    {
        "dask": "`.to_memory()`",
        "cupy": "`.get()`",
        "cupyx": "`.get()`",
        "awkward": "`.to_numpy()`",
        "xarray": "`.to_memory()`",
        "torch": "`.numpy()`",
        "jax": "`numpy.asarray`",
    }
)


def choose_matrix(adata: AnnData, layer: str | None, *, where: str) -> Any:
    """Return ``adata.X``, or the layer, after checking that its kind and dtype can be read.

    Parameters
    ----------
    adata
        One modality.
    layer
        Name in ``adata.layers``, or None for ``X``.
    where
        How messages call the modality, e.g. ``"mdata['rna']"``.

    Raises
    ------
    LayerError
        If there is no such layer, or ``X`` is None.
    MatrixTypeError
        If the container or the dtype is not read.
    BackedFileError
        If the file behind a backed object cannot be opened.
    """
    if layer is not None and layer not in adata.layers:
        have = sorted(adata.layers)
        fix = f"set it up with one of the layers {have}, or without one to read X"
        if not have:
            fix = "there are no layers; set it up without one to read X"
        raise LayerError(f"{where}.layers", found=f"no layer {layer!r}", fix=fix)
    place = f"{where}.X" if layer is None else f"{where}.layers[{layer!r}]"
    try:
        matrix = adata.X if layer is None else adata.layers[layer]
    except (OSError, KeyError, ValueError) as error:
        if not adata.isbacked:
            raise
        raise BackedFileError(
            place, found=str(error), fix=f"read it again: anndata.read_h5ad({str(adata.filename)!r})"
        ) from error
    if matrix is None:
        have = sorted(adata.layers)
        fix = f"pass layer={have[0]!r} (layers: {have})" if have else f"set {where}.X to the matrix of counts"
        raise LayerError(place, found="X is None", fix=fix)
    _check_kind(matrix, place)
    if tuple(matrix.shape) != tuple(adata.shape):
        raise LayerError(
            place, found=f"shape {tuple(matrix.shape)} instead of {tuple(adata.shape)}", fix="store it anew"
        )
    return matrix


def _check_kind(matrix: Any, place: str) -> None:
    package = type(matrix).__module__.split(".")[0]
    kind = f"{type(matrix).__module__}.{type(matrix).__qualname__}"
    if package in _FOREIGN:
        raise MatrixTypeError(place, found=kind, fix=f"bring it into memory with {_FOREIGN[package]}")
    if isinstance(matrix, np.ma.MaskedArray):
        raise MatrixTypeError(place, found="a masked array", fix="fill the masked values: matrix.filled(0)")
    if storage(matrix) is None:
        raise MatrixTypeError(place, found=kind, fix="use a NumPy array or a scipy CSR/CSC matrix")
    dtype = matrix.dtype
    if dtype.kind not in "iuf":
        fix = "convert it: .astype('int32')" if dtype.kind == "b" else "convert it to numbers: .astype('float32')"
        raise MatrixTypeError(place, found=f"dtype {dtype}", fix=fix)


def storage(matrix: Any) -> Literal["csr", "csc", "dense"] | None:
    """Say how a matrix is stored; None for what is not read."""
    if isinstance(matrix, CSRDataset):
        return "csr"
    if isinstance(matrix, CSCDataset):
        return "csc"
    if sparse.issparse(matrix):
        return matrix.format if matrix.format in {"csr", "csc"} else None
    if isinstance(matrix, np.ndarray) or is_backed(matrix):
        return "dense" if len(matrix.shape) == 2 else None
    return None


def is_backed(matrix: Any) -> bool:
    """Say whether the values are in a file."""
    return isinstance(matrix, CSRDataset | CSCDataset) or type(matrix).__module__.split(".")[0] in {"h5py", "zarr"}


@contextmanager
def file_errors(matrix: Any, where: str) -> Iterator[None]:
    """Say of a backed matrix that its file cannot be read, whatever the library of the file raises.

    Raises
    ------
    BackedFileError
        If reading fails inside of the block.
    """
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, CellxPertError) or not is_backed(matrix):
            raise
        fix = "open the file again and make the call anew; if that fails too, it is damaged: restore it from its source"
        raise BackedFileError(where, found=str(error), fix=fix) from error


class Block(NamedTuple):
    """Part of a matrix along its major axis, sharing its memory where that is possible."""

    first: int
    """First row, or first column of a CSC matrix."""
    values: np.ndarray
    """Stored values, or the rows of a dense matrix (2-D)."""
    indices: np.ndarray
    """Column, or row of a CSC matrix, of each stored value; empty for a dense matrix."""
    indptr: np.ndarray
    """Where each row, or column of a CSC matrix, begins in ``values``; empty for a dense matrix."""


def blocks(matrix: Any, *, size: int = BLOCK_VALUES) -> Iterator[Block]:
    """Walk over a matrix along its major axis, about ``size`` values at a time."""
    kind = storage(matrix)
    nothing = np.zeros(0, dtype=np.int64)
    if kind == "dense":
        step = max(1, size // max(1, matrix.shape[1]))
        for first in range(0, matrix.shape[0], step):
            yield Block(first, np.asarray(matrix[first : first + step]), nothing, nothing)
        return
    backed = is_backed(matrix)
    parts = matrix.group if backed else {k: getattr(matrix, k) for k in ("indptr", "indices", "data")}
    indptr = np.asarray(parts["indptr"][:])
    first, n_major = 0, len(indptr) - 1
    while first < n_major:
        last = int(np.searchsorted(indptr, int(indptr[first]) + size, side="right")) - 1
        last = min(max(last, first + 1), n_major)
        a, b = int(indptr[first]), int(indptr[last])
        yield Block(first, parts["data"][a:b], parts["indices"][a:b], indptr[first : last + 1] - a)
        first = last


class RowReader:
    """Rows of one matrix as canonical CSR: sorted indices, duplicates summed, zeros dropped, float64.

    A CSC matrix is converted once, at the first read (one that is backed is read into memory for it). The matrix itself
    is never changed.

    Parameters
    ----------
    adata, layer, where
        As in :func:`choose_matrix`.
    """

    def __init__(self, adata: AnnData, layer: str | None, *, where: str) -> None:
        self._adata, self._layer, self._where = adata, layer, where
        self._matrix: Any = None

    def __call__(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Read rows, in the order given; a row may be asked for several times.

        Parameters
        ----------
        rows
            Row numbers, int64 of shape (n,).

        Returns
        -------
        float64 CSR matrix of shape (n, n_features).
        """
        rows = np.asarray(rows, dtype=np.int64)
        matrix = self._open()
        if not is_backed(matrix):
            return _canonical(matrix[rows])
        unique, inverse = np.unique(rows, return_inverse=True)
        with file_errors(matrix, self._where):
            block = _canonical(_read_sorted(matrix, unique))
        in_order = len(unique) == len(rows) and bool((inverse[:-1] < inverse[1:]).all())
        return block if in_order else _canonical(block[inverse])

    def _open(self) -> Any:
        reopen = self._matrix is not None and is_backed(self._matrix) and not self._adata.file.is_open
        if self._matrix is None or reopen:
            matrix = choose_matrix(self._adata, self._layer, where=self._where)
            kind = storage(matrix)
            if kind == "csc" and is_backed(matrix):
                with file_errors(matrix, self._where):
                    matrix = matrix.to_memory()
            if kind != "dense" and not is_backed(matrix):
                # views, sparse arrays and their subclasses become the plain class, which shares their memory;
                # scipy stores float16 but does not compute with it
                data = matrix.data.astype(np.float32) if matrix.dtype == np.float16 else matrix.data
                plain = sparse.csr_matrix if kind == "csr" else sparse.csc_matrix
                matrix = plain((data, matrix.indices, matrix.indptr), shape=matrix.shape).tocsr()
            elif not is_backed(matrix):
                matrix = np.asarray(matrix)
            self._matrix = matrix
        return self._matrix


def _read_sorted(matrix: Any, rows: np.ndarray) -> Any:
    """Read rows (sorted, unique) of a backed matrix; rows near to one another in one go, with what lies between."""
    if not len(rows):
        return sparse.csr_matrix((0, matrix.shape[1]))
    first = np.flatnonzero(np.diff(rows, prepend=rows[0] - _GAP - 1) > _GAP)
    last = np.append(first[1:], len(rows)) - 1
    runs = [(int(a), int(b) + 1) for a, b in zip(rows[first], rows[last], strict=True)]
    spans = np.concatenate([np.arange(a, b) for a, b in runs])
    wanted = np.searchsorted(spans, rows)
    if not isinstance(matrix, CSRDataset):
        return np.concatenate([matrix[a:b] for a, b in runs])[wanted]
    # straight from the arrays: the class of anndata looks at all row pointers for every slice
    indptr = np.asarray(matrix.group["indptr"][:]).astype(np.int64)
    data, indices = (
        np.concatenate([matrix.group[name][indptr[a] : indptr[b]] for a, b in runs]) for name in ("data", "indices")
    )
    starts = np.concatenate([[0], np.cumsum(np.diff(indptr)[spans])])
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    return sparse.csr_matrix((data, indices, starts), shape=(len(spans), matrix.shape[1]))[wanted]


def _canonical(block: Any) -> sparse.csr_matrix:
    """Fresh canonical float64 CSR; float64 before summing, so that small integers cannot overflow."""
    out = sparse.csr_matrix(block, dtype=np.float64)
    out.sum_duplicates()
    out.eliminate_zeros()
    return out
