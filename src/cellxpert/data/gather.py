"""The values of chosen features, row by row, in the vocabulary's order, straight from sparse rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellxpert.data.binning import Transform, ragged, row_scales

__all__ = ["Gathered", "gather", "scales"]


@dataclass(frozen=True)
class Gathered:
    """Ragged rows of the features found: row i is ``[start[i]:start[i + 1]]``, features ascending."""

    feature: npt.NDArray[np.int32]
    value: npt.NDArray[np.float64]
    start: npt.NDArray[np.int64]
    n_measured: int
    """Features measured, zeros included."""


@functools.cache
def _kernel() -> Any:
    """Compile the loop; numba is imported at first use only."""
    import numba

    def loop(data, indices, indptr, position, wanted, feature, value, start):  # type: ignore[no-untyped-def]
        # One dense row sorts the features. The loops are free of branches, which would be mispredicted: columns without a
        # feature write to a last place that is never read, and a token that does not count is overwritten by the next.
        # Unsigned indices spare numba its care for negative ones. Together: half the time.
        row = np.zeros(len(wanted) + 1, np.float64)
        n = np.uintp(0)
        for i in range(len(indptr) - 1):
            for j in range(indptr[i], indptr[i + 1]):
                row[position[indices[j]]] = data[j]
            for at in range(len(wanted)):
                x = row[at]
                feature[n] = at
                value[n] = x
                n += np.uintp((x != 0.0) | wanted[at])
                row[at] = 0.0
            start[i + 1] = n
        return n

    return numba.njit(loop, cache=False, nogil=True)


def gather(
    matrix: sp.csr_matrix, *, position: npt.NDArray[np.int64], n_features: int, keep_zeros: bool = False
) -> Gathered:
    """Pick features from the rows of a CSR matrix, in the order of the features whatever that of the columns.

    Parameters
    ----------
    matrix
        Rows of values. Column order, stored zeros and unsorted or repeated indices do not matter.
    position
        For each column its feature (0 ... n_features - 1), or -1. No two columns share a feature.
    n_features
        Number of features.
    keep_zeros
        Return the zeros of measured features too.
    """
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    measured = np.zeros(n_features, np.bool_)
    measured[position[position >= 0]] = True
    n_rows, n_measured = matrix.shape[0], int(measured.sum())
    # at most this many: every measured feature of every row, or every stored value; and one that does not count
    most = 1 + (n_rows * n_measured if keep_zeros else min(matrix.nnz, n_rows * n_measured))
    feature, value, start = np.empty(most, np.int32), np.empty(most), ragged(np.zeros(n_rows, np.int64))
    n = _kernel()(
        np.ascontiguousarray(matrix.data, dtype=np.float64),
        matrix.indices.view(f"u{matrix.indices.itemsize}"),
        matrix.indptr,
        np.where(position >= 0, position, n_features).astype(np.uint32),
        measured & keep_zeros,
        feature,
        value,
        start,
    )
    return Gathered(feature[:n], value[:n], start, n_measured)


def scales(matrix: sp.csr_matrix, picked: Gathered, *, transform: Transform) -> npt.NDArray[np.float64]:
    """Return one factor per row for :func:`~cellxpert.data.binning.magnitudes`.

    The total of ``"log"`` is over all the columns of the matrix, the mean of ``"clr"`` over the features picked.
    """
    if transform == "log":
        return row_scales(matrix.data, matrix.indptr, transform=transform, n_features=matrix.shape[1])
    return row_scales(picked.value, picked.start, transform=transform, n_features=picked.n_measured)
