"""Places of cells in the integrated space, and what a modality that they lack is expected to be.

Shape suffixes: N cells, V features (F of one modality), R coordinates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.data.integration import NO_BATCH, BatchShifts, Integration
from cellxpert.data.roles import MEASURED, MODALITIES
from cellxpert.data.tokens import Tokens
from cellxpert.errors import ConfigError, FewCellsError, QueryError

__all__ = ["ImputeResult", "impute", "integrate", "place_batches"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
MIN_NEW_CELLS = 20
"""Fewest cells from which what a new batch adds is estimated."""


def place_batches(
    shifts: BatchShifts | None, point_NR: npt.NDArray[np.float64], batch_N: npt.NDArray[np.object_], *, new_batches: str
) -> tuple[BatchShifts | None, tuple[str, ...]]:
    """Find batches that the model does not know, and what they add.

    Parameters
    ----------
    shifts
        What is known of batches; None if the model was trained on one.
    point_NR
        Coordinates of the cells.
    batch_N
        Batch of each cell.
    new_batches
        ``"error"``, ``"fit"``: what they add is estimated from these cells, or ``"ignore"``: they are taken to add nothing.

    Returns
    -------
    What all batches add, and the names of the new ones.

    Raises
    ------
    QueryError
        If there are new batches, and ``new_batches`` is ``"error"``.
    FewCellsError
        If a new batch has too few cells to estimate from.
    """
    known = () if shifts is None else shifts.names
    new = tuple(sorted(set(batch_N) - set(known)))
    if shifts is None or not new:
        return shifts, ()
    if new_batches == "error":
        raise QueryError(
            "integrate",
            found=f"{len(new)} batches that the model was not trained on: {list(new[:5])}; it knows {list(known[:10])}",
            fix='pass new_batches="fit" to estimate from these cells what they add, or "ignore" to leave it in; of a batch whose cells were all '
            "held out of training (split_key=, train_size=) the model knows nothing either",
        )
    for name in new if new_batches == "fit" else ():
        mine_NR = point_NR[batch_N == name]
        if (n := int(np.isfinite(mine_NR).all(axis=1).sum())) < MIN_NEW_CELLS:
            fix = f'give at least {MIN_NEW_CELLS} cells, or pass new_batches="ignore"'
            raise FewCellsError(f"integrate: new batch {name!r}", found=f"{n} cells", fix=fix)
        shifts = shifts.with_batch(name, mine_NR)
    return shifts, new


def integrate(
    integration: Integration,
    tokens: Tokens,
    *,
    modality_V: Ints,
    batch_N: npt.NDArray[np.object_] | None,
    readings: Sequence[Collection[str] | None],
    new_batches: str,
) -> tuple[list[Floats], tuple[str, ...]]:
    """Read cells into the space, batches taken out.

    Parameters
    ----------
    integration
        The space.
    tokens
        Tokens of the cells.
    modality_V
        Modality of each feature.
    batch_N
        Batch of each cell; None where the model knows no batches.
    readings
        Modalities to read, once per array asked for; None: all. New batches are placed by the first.
    new_batches
        See :func:`place_batches`.

    Returns
    -------
    One float32 array (N, R) per reading, NaN in cells without any of its modalities, and the names of new batches.
    """
    points = [integration.coordinates(tokens, modality_V=modality_V, roles=roles) for roles in readings]
    if batch_N is None:
        return [point_NR.astype(np.float32) for point_NR in points], ()
    shifts, new = place_batches(integration.shifts, points[0], batch_N, new_batches=new_batches)
    if shifts is not None:
        code_N = shifts.codes(batch_N)
        assert new_batches != "error" or (code_N != NO_BATCH).all()
        points = [shifts.correct(point_NR, code_N) for point_NR in points]
    return [point_NR.astype(np.float32) for point_NR in points], new


@dataclass(frozen=True, eq=False, kw_only=True)
class ImputeResult:
    """What a modality is expected to be in every cell, told by the cell's other modalities alone.

    Tables have a row per cell, in the order of ``obs_names``, and a column per feature that the model reads; values are float32
    magnitudes. Rows of cells without any other modality are NaN.
    """

    modality: str
    """The role: ``"rna"``, ``"atac"`` or ``"protein"``."""
    scale: str
    """What magnitudes are."""
    coverage: float
    """Share of cells like the training cells whose value is between ``lower`` and ``upper``."""
    expected: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    measured: pd.Series
    """Whether the cell has the modality itself, which was not looked at."""

    def __repr__(self) -> str:
        n_cells, n_features = self.expected.shape
        return f"ImputeResult: {n_features} features of {self.modality} in {n_cells} cells, {int((~self.measured).sum())} of which lack it"


def impute(integration: Integration, tokens: Tokens, *, role: str, modality_V: Ints, coverage: float) -> list[Floats]:
    """Return expected magnitudes of a modality (N, F), and the limits between which they are in a share ``coverage`` of cells.

    The limits are the expected values plus quantiles of the errors that training cells had; ``ConfigError`` where these are too few to
    tell: of n errors the largest is exceeded by one new cell in n + 1.
    """
    n = dict(zip(integration.told, integration.n_told, strict=False)).get(role)
    if n is not None and coverage > (most := (n - 1) / (n + 1)):
        found = f"{coverage}, where {n} training cells had {role} beside another modality"
        fix = f"ask for at most {np.floor(100 * most) / 100:g}: they do not show how large rarer errors are"
        raise ConfigError("impute(coverage=)", found=found, fix=fix)
    reading = integration.reading
    others = [other for other in MEASURED if other != role]
    z_NR = reading.factors(tokens, modality_V=modality_V, roles=others)
    mine_V = modality_V == MODALITIES.index(role)
    expected_NF = reading.expected(z_NR, mine_V)
    outside = (1 - coverage) / 2
    limits = [np.maximum(expected_NF + integration.errors(level)[mine_V], 0.0) for level in (outside, 1 - outside)]
    return [x.astype(np.float32) for x in (expected_NF, *limits)]
