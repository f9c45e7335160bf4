"""Magnitudes of values, and the bins that stand for them.

A value becomes a magnitude (:data:`TRANSFORMS`), a magnitude becomes one of ``n_bins`` bins. Bin 0 is an exact zero; the
others are quantile bins over non-zero magnitudes, fitted once per modality (``"global"``) or taken within each cell
(``"per_cell"``). Every transform maps zero to zero and grows with the value, so bins keep the order of the values.

Rows are ragged: row i of ``values`` is ``values[start[i]:start[i + 1]]``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "TRANSFORMS",
    "Transform",
    "bin_means",
    "digitize",
    "fit_edges",
    "magnitudes",
    "quantile_bins",
    "ragged",
    "row_scales",
    "transform_of",
]

Transform = Literal["log", "counts", "clr", "arcsinh", "none"]
TRANSFORMS: tuple[Transform, ...] = ("log", "counts", "clr", "arcsinh", "none")
"""How values become magnitudes.

``"log"``: log1p(1e4 * x / total of the cell); ``"counts"``: x; ``"clr"``: the centred log-ratio that keeps zeros, log1p(x / g)
with g = exp(mean of log1p over the cell's proteins) (as in Seurat); ``"arcsinh"``: arcsinh(x / 5) (imaging intensities);
``"none"``: x, which is a magnitude already (means over neighbours).
"""

_COUNTING_LIMIT = 8192
"""Integers below this are ranked by counting them, larger ones by sorting."""
_MEMO = 256
"""Integers below this are transformed once per cell."""


def transform_of(role: str, counts: str, *, kmers: bool = False) -> Transform:
    """Return the transform of a modality: by its values when these are intensities, else by its role and features."""
    if counts == "intensity":
        return "arcsinh"
    if kmers and role == "atac":
        return "log"  # sums over all open peaks of a cell: as they are, they tell its depth before anything else
    by_role: dict[str, Transform] = {"rna": "log", "atac": "counts", "protein": "clr", "niche": "none"}
    return by_role[role]


def _compiler() -> Callable[..., Any]:
    import numba  # at first use only

    return functools.partial(numba.njit, cache=False, nogil=True, error_model="numpy")


@functools.cache
def _kernels() -> SimpleNamespace:
    """Compile the loops over magnitudes."""
    compiled = _compiler()

    @compiled
    def magnitude(value, scale, transform):  # type: ignore[no-untyped-def]
        if transform == 1 or transform == 4:
            return value
        if transform == 3:
            return np.arcsinh(value / 5.0)
        return np.log1p(value * scale)

    @compiled
    def row_totals(values, start, out):  # type: ignore[no-untyped-def]
        for i in range(len(start) - 1):
            whole, parts = np.int64(0), np.int64(0)
            for j in range(start[i], start[i + 1]):
                floor = np.floor(values[j])
                whole += np.int64(floor)
                parts += np.int64(np.rint((values[j] - floor) * 4294967296.0))
            out[i] = whole + parts / 4294967296.0

    @compiled
    def row_logs(values, start, out):  # type: ignore[no-untyped-def]
        for i in range(len(start) - 1):
            total = np.int64(0)
            for j in range(start[i], start[i + 1]):
                total += np.int64(np.rint(np.log1p(values[j]) * 1099511627776.0))
            out[i] = total / 1099511627776.0

    @compiled
    def to_magnitudes(values, start, scale, transform, out):  # type: ignore[no-untyped-def]
        for i in range(len(start) - 1):
            for j in range(start[i], start[i + 1]):
                out[j] = magnitude(values[j], scale[i], transform)

    @compiled
    def find(edges, value):  # type: ignore[no-untyped-def]
        low, high = 0, len(edges)  # number of edges <= value
        while low < high:
            middle = (low + high) >> 1
            if edges[middle] <= value:
                low = middle + 1
            else:
                high = middle
        return low + 1

    @compiled
    def to_bins(values, start, scale, transform, edges, out):  # type: ignore[no-untyped-def]
        memo = np.zeros(_MEMO, np.uint8)
        for i in range(len(start) - 1):
            memo[:] = 0
            for j in range(start[i], start[i + 1]):
                value = values[j]
                if value == 0.0:
                    out[j] = 0
                    continue
                small = value < _MEMO and value == np.floor(value)
                if small and memo[np.int64(value)] > 0:
                    out[j] = memo[np.int64(value)]
                    continue
                out[j] = find(edges, magnitude(value, scale[i], transform))
                if small:
                    memo[np.int64(value)] = out[j]

    return SimpleNamespace(row_totals=row_totals, row_logs=row_logs, to_magnitudes=to_magnitudes, to_bins=to_bins)


@functools.cache
def _quantile_kernel() -> Callable[..., None]:
    """Compile the loop over quantiles within rows."""

    @_compiler()
    def to_quantiles(values, start, n_bins, limit, out):  # type: ignore[no-untyped-def]
        seen = np.zeros(limit, np.int64)
        for i in range(len(start) - 1):
            n, highest, integers = 0, 0.0, True
            for j in range(start[i], start[i + 1]):
                value = values[j]
                if value != 0.0:
                    n += 1
                    highest = max(highest, value)
                    integers = integers and value == np.floor(value)
            if n == 0:
                out[start[i] : start[i + 1]] = 0
                continue
            steps, last = n_bins - 2, max(n - 1, 1)
            if integers and highest < limit:
                top = np.int64(highest) + 1
                for j in range(start[i], start[i + 1]):
                    seen[np.int64(values[j])] += 1
                seen[0] = 0
                below = np.int64(0)
                for k in range(1, top):
                    below += seen[k]
                    seen[k] = 1 + ((below - 1) * steps) // last if n > 1 else n_bins - 1
                for j in range(start[i], start[i + 1]):
                    out[j] = seen[np.int64(values[j])]
                seen[:top] = 0
            else:
                ordered = np.sort(values[start[i] : start[i + 1]])
                ordered = ordered[len(ordered) - n :]
                for j in range(start[i], start[i + 1]):
                    if values[j] == 0.0:
                        out[j] = 0
                    elif n == 1:
                        out[j] = n_bins - 1
                    else:
                        rank = np.searchsorted(ordered, values[j], side="right") - 1
                        out[j] = 1 + (rank * steps) // last

    return to_quantiles


def _floats(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype=np.float64)


def _offsets(start: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(start, dtype=np.int64)


def row_scales(
    values: npt.ArrayLike, start: npt.ArrayLike, *, transform: Transform, n_features: int
) -> npt.NDArray[np.float64]:
    """Return the factor by which each row's values are multiplied before log1p.

    Sums are taken in integers, so that they do not depend on the order of the columns: counts exactly, fractions to 2**-32,
    logarithms to 2**-40.

    Parameters
    ----------
    values, start
        Ragged rows, of all measured features for ``"log"`` and of the vocabulary's for ``"clr"``.
    transform
        How values become magnitudes.
    n_features
        Number of features measured (zeros included), over which ``"clr"`` takes its mean.

    Returns
    -------
    One factor per row: 1e4 / total (``"log"``), 1 / g (``"clr"``), else 1. An empty row has 1.
    """
    values, start = _floats(values), _offsets(start)
    sums = np.zeros(len(start) - 1)
    if transform == "log":
        _kernels().row_totals(values, start, sums)
        # values so small that they vanish in the sum must not divide by zero
        return np.where(start[1:] > start[:-1], 1e4 / np.maximum(sums, 2.0**-32), 1.0)
    if transform == "clr":
        _kernels().row_logs(values, start, sums)
        return np.exp(-sums / max(n_features, 1))
    return np.ones(len(sums))


def magnitudes(
    values: npt.ArrayLike, start: npt.ArrayLike, scale: npt.ArrayLike, *, transform: Transform
) -> npt.NDArray[np.float64]:
    """Return the magnitudes of ragged rows; ``scale`` is one factor per row, from :func:`row_scales`."""
    values = _floats(values)
    out = np.empty_like(values)
    _kernels().to_magnitudes(values, _offsets(start), _floats(scale), TRANSFORMS.index(transform), out)
    return out


def digitize(
    values: npt.ArrayLike, start: npt.ArrayLike, scale: npt.ArrayLike, *, transform: Transform, edges: npt.ArrayLike
) -> npt.NDArray[np.uint8]:
    """Return the bins of ragged rows of values (not magnitudes): 0 for zero, else 1 + number of edges <= magnitude."""
    values = _floats(values)
    out = np.empty(len(values), np.uint8)
    _kernels().to_bins(values, _offsets(start), _floats(scale), TRANSFORMS.index(transform), _floats(edges), out)
    return out


def quantile_bins(values: npt.ArrayLike, start: npt.ArrayLike, *, n_bins: int) -> npt.NDArray[np.uint8]:
    """Return the bins of ragged rows by quantiles within each row.

    The bin of x is 1 + floor(r (n_bins - 2) / (n - 1)), where n is the number of non-zero values and r of them (besides one)
    are <= x: the number of the n_bins - 1 quantiles 0, 1/(n_bins - 2), ..., 1 that are <= x, as scGPT takes them, in exact
    arithmetic and without random ties. Integers are counted in O(n), others sorted; both give the same bins. Any scaling
    that grows with the value leaves them unchanged.
    """
    values = _floats(values)
    out = np.empty(len(values), np.uint8)
    _quantile_kernel()(values, _offsets(start), n_bins, _COUNTING_LIMIT, out)
    return out


def fit_edges(magnitude: npt.ArrayLike, *, n_bins: int) -> npt.NDArray[np.float64]:
    """Return the ``n_bins - 2`` edges between the ``n_bins - 1`` bins of non-zero magnitudes.

    Bins hold equal shares of the values as far as ties allow. Equal values are never parted: a value as frequent as several
    bins gets one, and what is left is shared among the remaining values, so rare high counts keep bins of their own. With
    fewer distinct values than bins the last bins stay empty (edges of infinity). Values that are equal to 1e-9 count as
    equal: 2 of 200 counts and 1 of 100 must not fall into two bins because of rounding.
    """
    value, count = np.unique(np.round(np.asarray(magnitude, dtype=np.float64), 9), return_counts=True)
    edges = np.full(n_bins - 2, np.inf)
    if len(value) <= n_bins - 1:
        cuts = np.arange(1, len(value))
    else:
        below = np.concatenate([[0], np.cumsum(count)])  # values before each distinct one
        cuts, first = np.empty(n_bins - 2, np.int64), 0
        for i in range(n_bins - 2):
            left = n_bins - 1 - i
            aim = below[first] + (below[-1] - below[first]) / left
            cut = int(np.searchsorted(below, aim))
            if cut > first + 1 and aim - below[cut - 1] <= below[cut] - aim:
                cut -= 1
            first = min(max(cut, first + 1), len(value) - left + 1)
            cuts[i] = first
    low, high = value[cuts - 1] if len(cuts) else value[:0], value[cuts] if len(cuts) else value[:0]
    edges[: len(cuts)] = low + (high - low) / 2
    return edges


def bin_means(magnitude: npt.ArrayLike, bins: npt.ArrayLike, *, n_bins: int) -> npt.NDArray[np.float64]:
    """Return the magnitude that each bin decodes to, of shape (n_bins,): its mean over the values given.

    Bin 0 decodes to 0. Means never fall from a bin to the next (bins taken within cells may need this isotonic step), and
    a bin without values lies between its neighbours.
    """
    magnitude, bins = np.asarray(magnitude, dtype=np.float64), np.asarray(bins)
    order = np.lexsort((magnitude, bins))  # sorted: the sums do not depend on the order of the input
    magnitude, bins = magnitude[order], bins[order]
    magnitude, bins = magnitude[bins > 0], bins[bins > 0]
    used, first, count = np.unique(bins, return_index=True, return_counts=True)
    means = np.zeros(n_bins)
    if len(used):
        means[1:] = np.interp(np.arange(1, n_bins), used, _isotonic(np.add.reduceat(magnitude, first) / count, count))
    return means


def _isotonic(means: npt.NDArray[np.float64], weight: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Closest non-decreasing sequence (pool adjacent violators)."""
    blocks: list[tuple[float, int, int]] = []  # mean, weight, bins
    for mean, n in zip(means.tolist(), weight.tolist(), strict=True):
        blocks.append((mean, n, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (m2, n2, k2), (m1, n1, k1) = blocks.pop(), blocks.pop()
            blocks.append(((m1 * n1 + m2 * n2) / (n1 + n2), n1 + n2, k1 + k2))
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


def ragged(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the offsets of ragged rows of these lengths: 0 first, the total last."""
    lengths = np.asarray(lengths, dtype=np.int64)
    start = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=start[1:])
    return start
