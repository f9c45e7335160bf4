"""Checks that the modules of this folder share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from cellxpert.errors import MetricError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["finite_matrix", "kept_genes", "paired", "paired_labels", "same_shape", "unit_rows"]


def finite_matrix(name: str, matrix: Any) -> Any:
    """Return a matrix as float64, CSR if it was sparse, or raise :class:`MetricError`."""
    matrix = sp.csr_array(matrix).astype(np.float64) if sp.issparse(matrix) else np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise MetricError(name, found=f"shape {matrix.shape}", fix="give a matrix with rows and columns")
    if not np.isfinite(matrix.data if sp.issparse(matrix) else matrix).all():
        raise MetricError(name, found="values that are not finite", fix="leave them out")
    return matrix


def paired(one: Any, other: Any, names: str) -> tuple[Any, Any]:
    """Return two series in the order of the first, or raise if their indices name other things; anything else as it is."""
    import pandas as pd

    if not (isinstance(one, pd.Series) and isinstance(other, pd.Series)) or one.index.equals(other.index):
        return one, other
    if not (one.index.is_unique and other.index.is_unique and set(one.index) == set(other.index)):
        found = "two series whose indices do not name the same things, once each"
        raise MetricError(names, found=found, fix="take the same of both, or pass .to_numpy() of both")
    return one, other.loc[one.index]


def paired_labels(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays of one label per cell, of any type and none missing, or raise :class:`MetricError`.

    Two series are paired by their index, arrays by position.
    """
    import pandas as pd

    y_true, y_pred = paired(y_true, y_pred, "y_true, y_pred")
    true, pred = np.asarray(y_true, dtype=object), np.asarray(y_pred, dtype=object)
    if true.ndim != 1 or true.shape != pred.shape or not len(true):
        found = f"shapes {true.shape} and {pred.shape}"
        raise MetricError("y_true, y_pred", found=found, fix="give two arrays of one label per cell")
    for name, labels in (("y_true", true), ("y_pred", pred)):
        if n_missing := int(pd.isna(labels).sum()):
            raise MetricError(name, found=f"{n_missing} missing labels", fix="leave these cells out")
    one, other = set(true), set(pred)
    if not one & other and (same := {str(label) for label in one} & {str(label) for label in other}):
        found = f"no label in common, though {sorted(same)[:3]} are in both as text: one holds numbers, the other text"
        raise MetricError("y_true, y_pred", found=found, fix="pass .astype(str) of both")
    return true, pred


def same_shape(prediction: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return two matrices, conditions x genes, of one shape: two tables are paired by the names of rows and columns, arrays by position."""
    prediction = _as_in(truth, prediction)
    prediction, truth = finite_matrix("prediction", prediction), finite_matrix("truth", truth)
    if prediction.shape != truth.shape:
        found = f"shapes {prediction.shape} and {truth.shape}"
        raise MetricError("prediction, truth", found=found, fix="give the same conditions and genes, in the same order")
    return prediction, truth


def _as_in(truth: Any, prediction: Any) -> Any:
    """Return a table with its rows and columns in the order of another, or raise if they name other things."""
    import pandas as pd

    if not (isinstance(prediction, pd.DataFrame) and isinstance(truth, pd.DataFrame)):
        return prediction
    for axis in ("index", "columns"):
        own, wanted = getattr(prediction, axis), getattr(truth, axis)
        if own.equals(wanted):
            continue
        if not (own.is_unique and wanted.is_unique and set(own) == set(wanted)):
            found = f"two tables whose {axis} differ"
            fix = "take the conditions and genes of both, or pass .to_numpy() of both"
            raise MetricError("prediction, truth", found=found, fix=fix)
        prediction = prediction.reindex(**{axis: wanted})
    return prediction


def kept_genes(exclude: ArrayLike | None, shape: tuple[int, ...], *, at_least: int = 1) -> np.ndarray:
    """Return booleans, conditions x genes, of the genes that count; raise if fewer than ``at_least`` are left.

    One row if ``exclude`` is the same for all conditions.
    """
    left_out = np.zeros(shape[1], dtype=bool) if exclude is None else np.asarray(exclude)
    if left_out.dtype != bool or left_out.shape not in {shape[1:], shape}:
        found = f"{left_out.dtype}, shape {left_out.shape}"
        raise MetricError("exclude", found=found, fix=f"give booleans of shape {shape[1:]} or {shape}, True: left out")
    kept = np.atleast_2d(~left_out)
    if (fewest := int(kept.sum(axis=1).min())) < at_least:
        found = f"{fewest} of {shape[1]} genes are left"
        raise MetricError("exclude", found=found, fix=f"leave {at_least} or more")
    return kept


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1; rows of zeros stay so."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
