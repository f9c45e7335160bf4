"""Checks of all values of a matrix, in one pass and without chance; and advice on which layer looks like counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from cellxpert.data.matrix import Block, RowReader, blocks, choose_matrix, file_errors, is_backed, storage
from cellxpert.errors import (
    CellxPertError,
    MatrixTypeError,
    NegativeValueError,
    NonFiniteError,
    NotCountsError,
    SparseStructureError,
)

__all__ = ["ValueScan", "advise_layer", "check_structure", "check_values", "describe", "scan_values"]

_FLOAT16_EXACT = 2048
_LOG_MAX = 20.0
"""Larger values are no logarithms of counts: exp(20) is 5e8."""
_ROWS_LOOKED_AT = 256
"""Cells read to put a name on values that were already refused."""


@dataclass(frozen=True, kw_only=True)
class ValueScan:
    """What all values of a matrix are, together."""

    dtype: np.dtype
    n_nonzero: int
    n_nan: int
    n_inf: int
    n_negative: int
    n_fractional: int
    low: float
    high: float
    totals: np.ndarray
    """Sum of each row, float64 of shape (n_cells,)."""

    @property
    def is_counts(self) -> bool:
        """Whether all values are finite, whole and not negative."""
        return not (self.n_nan or self.n_inf or self.n_negative or self.n_fractional)


def check_structure(matrix: Any, *, where: str) -> None:
    """Check the pointers of a sparse matrix; what is unsorted or duplicated is fine, and put right while reading.

    Raises
    ------
    SparseStructureError
        If pointers decrease (an int32 overflow does that), or do not fit the number of values.
    """
    kind = storage(matrix)
    if kind == "dense":
        return
    parts = matrix.group if is_backed(matrix) else {k: getattr(matrix, k) for k in ("indptr", "indices", "data")}
    indptr = np.asarray(parts["indptr"][:]).astype(np.int64)  # int32 differences could overflow
    n_major = matrix.shape[0 if kind == "csr" else 1]
    n_values = min(parts["indices"].shape[0], parts["data"].shape[0])
    fix = "build the matrix again from its source, with 64-bit indices if it has more than 2**31 values"
    if len(indptr) != n_major + 1 or indptr[0] != 0 or indptr[-1] > n_values:
        found = f"{len(indptr)} pointers from {indptr[:1]} to {indptr[-1:]}, for {n_major} rows and {n_values} values"
        raise SparseStructureError(where, found=found, fix=fix)
    falling = np.flatnonzero(np.diff(indptr) < 0)
    if len(falling):
        raise SparseStructureError(where, found=f"indptr decreases at {falling[:5].tolist()}", fix=fix)


def scan_values(matrix: Any, *, where: str) -> ValueScan:
    """Look at every value once.

    Parameters
    ----------
    matrix
        As :func:`~cellxpert.data.matrix.choose_matrix` returns it.
    where
        How messages call it.

    Raises
    ------
    SparseStructureError
        If the matrix is sparse and contradicts itself.
    BackedFileError
        If the file behind a backed matrix cannot be read.
    """
    with file_errors(matrix, where):
        return _scan(matrix, where)


def _scan(matrix: Any, where: str) -> ValueScan:
    check_structure(matrix, where=where)
    kind = storage(matrix)
    totals = np.zeros(matrix.shape[0])
    counts = np.zeros(5, dtype=np.int64)
    low, high = 0.0, 0.0
    n_minor = matrix.shape[1 if kind == "csr" else 0]
    for block in blocks(matrix):
        values = block.values.reshape(-1)
        if not values.size:
            continue
        if kind != "dense" and (block.indices.min() < 0 or block.indices.max() >= n_minor):
            fix = "build the matrix again from its source"
            raise SparseStructureError(where, found="an index outside of the matrix", fix=fix)
        with np.errstate(invalid="ignore", over="ignore"):
            least, most = float(np.fmin.reduce(values)), float(np.fmax.reduce(values))
            finite = np.isfinite(_add_totals(totals, block, kind))  # one NaN or infinite value makes its total so
        counts += _tally(values, negative=least < 0, broken=not finite)
        low, high = min(low, least), max(high, most)
    n_nonzero, n_nan, n_inf, n_negative, n_fractional = map(int, counts)
    return ValueScan(
        dtype=matrix.dtype,
        n_nonzero=n_nonzero,
        n_nan=n_nan,
        n_inf=n_inf,
        n_negative=n_negative,
        n_fractional=n_fractional,
        low=low,
        high=high,
        totals=totals,
    )


def _tally(values: np.ndarray, *, negative: bool, broken: bool) -> np.ndarray:
    """Count non-zero, NaN, infinite, negative and fractional values."""
    out = np.zeros(5, dtype=np.int64)
    out[0] = np.count_nonzero(values)
    if broken:
        out[1], out[2] = np.count_nonzero(np.isnan(values)), np.count_nonzero(np.isinf(values))
    if negative:
        out[3] = np.count_nonzero(values < 0)
    if values.dtype.kind == "f":
        out[4] = np.count_nonzero(values != np.rint(values)) - out[1]
    return out


def _add_totals(totals: np.ndarray, block: Block, kind: str | None) -> float:
    """Add a block to the sums of the rows; returns the sum of the sums that it touched."""
    if kind == "csc":
        totals += np.bincount(block.indices, weights=block.values, minlength=len(totals))
        return float(totals.sum())
    if kind == "dense":
        rows, sums = slice(block.first, block.first + len(block.values)), block.values.sum(axis=1, dtype=np.float64)
    else:
        rows = block.first + np.flatnonzero(np.diff(block.indptr))
        sums = np.add.reduceat(block.values.astype(np.float64, copy=False), block.indptr[rows - block.first])
    totals[rows] = sums
    return float(sums.sum())


def check_values(adata: AnnData, layer: str | None, *, counts: str, role: str, where: str) -> list[str]:
    """Check that the values of a modality are what the setup says.

    Parameters
    ----------
    adata, layer, where
        As in :func:`~cellxpert.data.matrix.choose_matrix`.
    counts
        ``"integer"``, ``"fractional"`` or ``"intensity"``.
    role
        ``"rna"``, ``"atac"`` or ``"protein"``.

    Returns
    -------
    Findings that are worth a warning: cells without a count, totals like those of TPM, fractional counts.

    Raises
    ------
    LayerError, MatrixTypeError, BackedFileError, SparseStructureError, NonFiniteError, NegativeValueError,
    NotCountsError
    """
    matrix = choose_matrix(adata, layer, where=where)
    place = f"{where}.X" if layer is None else f"{where}.layers[{layer!r}]"
    scan = scan_values(matrix, where=place)
    _require_finite(adata, matrix, scan, place)
    if scan.n_negative:
        examples = _examples(adata, matrix, lambda v: v < 0)
        found = f"{_share(scan.n_negative, scan)} negative, the lowest {scan.low:.4g}, e.g. {examples}"
        if counts == "intensity":
            fix = "clip the background-subtracted values: numpy.clip(X, 0, None)"
        else:
            fix = _fix(adata, layer, role, where, otherwise="load the counts; scaled values cannot be undone")
        raise NegativeValueError(place, found=found, fix=fix)
    notes = []
    if counts != "intensity" and scan.n_fractional:
        found, certain = describe(adata, layer, scan, where=where)
        if counts == "integer" or certain:
            raise NotCountsError(
                place, found=found, fix=_fix(adata, layer, role, where, otherwise=_otherwise(role, certain))
            )
        notes.append(f"{place} was accepted as fractional counts: {found}")
    elif counts != "intensity" and _equal(scan.totals, 1e-2) and _near_power(np.median(scan.totals)):
        notes.append(
            f"{place}: every cell sums to about {np.median(scan.totals):.0f}, like TPM or scaled counts, not raw ones"
        )
    empty = np.flatnonzero(scan.totals == 0)
    if len(empty):
        names = [str(n) for n in adata.obs_names[empty[:5]]]
        notes.append(
            f"{place}: {len(empty)} of {adata.n_obs} cells have no value above zero, e.g. {names}; they are read as "
            "measured and empty, so remove them if they were not measured"
        )
    return notes


def _require_finite(adata: AnnData, matrix: Any, scan: ValueScan, place: str) -> None:
    half = scan.dtype == np.float16
    if scan.n_nan or scan.n_inf:
        examples = _examples(adata, matrix, lambda v: ~np.isfinite(v))
        found = f"{scan.n_nan} NaN and {scan.n_inf} infinite values, e.g. {examples}"
        fix = "replace them if they stand for zero (numpy.nan_to_num), or remove these cells or features"
        if half and scan.n_inf:
            fix = "float16 overflows above 65,504: load the values as float32"
        raise NonFiniteError(place, found=found, fix=fix)
    if half and scan.high >= _FLOAT16_EXACT:
        found = f"float16 with values up to {scan.high:.0f}; whole numbers above {_FLOAT16_EXACT} are rounded in it"
        raise MatrixTypeError(place, found=found, fix="load the values as float32")


def _share(n: int, scan: ValueScan) -> str:
    return f"{n} values ({100 * n / max(1, scan.n_nonzero):.3g} % of the non-zero ones)"


def _examples(adata: AnnData, matrix: Any, bad: Callable[[np.ndarray], np.ndarray]) -> str:
    """First five bad values, by name."""
    out: list[str] = []
    kind = storage(matrix)
    for block in blocks(matrix):
        if kind == "dense":
            rows, cols = np.nonzero(bad(block.values))
            rows, values = rows + block.first, block.values[rows, cols]
        else:
            at = np.flatnonzero(bad(block.values))
            values = block.values[at]
            major = np.searchsorted(block.indptr, at, side="right") - 1 + block.first
            rows, cols = (major, block.indices[at]) if kind == "csr" else (block.indices[at], major)
        for i, j, v in zip(rows[:5], cols[:5], values[:5], strict=True):
            out.append(f"[{adata.obs_names[i]!r}, {adata.var_names[j]!r}] = {v:.4g}")
        if len(out) >= 5:
            break
    return ", ".join(out[:5])


def describe(adata: AnnData, layer: str | None, scan: ValueScan, *, where: str) -> tuple[str, bool]:
    """Say what values that are not whole look like.

    Returns
    -------
    The description, and whether it is certain that they are normalised or logarithms.
    """
    nonempty = np.flatnonzero(scan.totals > 0)
    rows = RowReader(adata, layer, where=where)(nonempty[:_ROWS_LOOKED_AT])
    text = f"{_share(scan.n_fractional, scan)} not whole, the highest {scan.high:.4g}"
    if _equal(scan.totals, 1e-3):
        return f"{text}; every cell sums to {np.median(scan.totals[nonempty]):.6g}: normalised", True
    if scan.high <= _LOG_MAX:
        back = rows.copy()
        back.data = np.expm1(back.data)
        if _equal(np.asarray(back.sum(axis=1)).ravel(), 1e-2) or _multiples(back):
            return f"{text}; log1p of normalised counts", True
        if 2 * scan.n_fractional > scan.n_nonzero:
            return f"{text}; looks log1p-transformed", False
    if _multiples(rows):
        return f"{text}; multiples of one number in each cell: normalised counts", True
    return f"{text}; fractional", False


def _equal(totals: np.ndarray, tolerance: float) -> bool:
    totals = totals[totals > 0]
    return len(totals) >= 5 and float(np.ptp(totals)) <= tolerance * float(np.median(totals))


def _near_power(total: float) -> bool:
    return any(abs(total - target) <= 0.05 * target for target in (1e4, 1e6))


def _multiples(rows: sparse.csr_matrix) -> bool:
    """Whether the values of a cell are whole multiples of its smallest, another number in each cell: scaled counts."""
    lengths = np.diff(rows.indptr)
    if (lengths > 1).sum() < 5:
        return False
    start, lengths = rows.indptr[:-1][lengths > 0], lengths[lengths > 0]
    lowest = np.minimum.reduceat(rows.data, start)
    ratio = rows.data / np.repeat(lowest, lengths)
    off = np.add.reduceat(np.abs(ratio - np.rint(ratio)) > 1e-3 * ratio, start)
    own_scale = len(np.unique(np.round(np.log(lowest), 4))) > len(lowest) / 4
    return own_scale and bool(np.mean(off[lengths > 1] == 0) >= 0.9)


def advise_layer(adata: AnnData, layer: str | None) -> str | None:
    """Find values that do look like counts.

    Parameters
    ----------
    adata
        One modality.
    layer
        Layer that was refused.

    Returns
    -------
    ``"X"``, ``"raw"`` or a layer's name; None if nothing looks like counts.
    """
    names = sorted(adata.layers, key=lambda n: ("count" not in n.lower() and "raw" not in n.lower(), n))
    places: list[tuple[str, AnnData, str | None]] = [(n, adata, n) for n in names if n != layer]
    places += [("X", adata, None)] if layer is not None else []
    places += [("raw", adata.raw.to_adata(), None)] if adata.raw is not None else []
    for name, owner, key in places:
        try:
            scan = scan_values(choose_matrix(owner, key, where=name), where=name)
        except CellxPertError:
            continue
        if scan.is_counts and scan.high > 1:  # zeros and ones only are a mask more often than counts
            return name
    return None


def _fix(adata: AnnData, layer: str | None, role: str, where: str, *, otherwise: str) -> str:
    name = advise_layer(adata, layer)
    if name is None:
        return otherwise
    if name == "raw":
        source = f"{where}.raw[:, {where}.var_names].X"
        return f"{where}.raw looks like counts: {where}.layers['counts'] = {source}, then pass that layer"
    text = "None" if name == "X" else repr(name)
    argument = f"layer={text}" if where == "adata" else f"layers={{{role!r}: {text}}}"
    return f"{name if name == 'X' else f'layers[{name!r}]'} looks like counts: pass {argument}"


def _otherwise(role: str, certain: bool) -> str:  # noqa: FBT001
    if certain:
        return "load the raw counts"
    kinds = ["'fractional' if these are corrected counts (CellBender, decontX)"]
    kinds += ["'intensity' if these are intensities (imaging)"] if role == "protein" else []
    return "load the raw counts, or pass counts=" + ", or ".join(kinds)
