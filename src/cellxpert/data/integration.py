"""Where integrated cells stand: a factor model that any subset of the modalities is read with, and what batches add to it.

Shape suffixes: N cells, V features (F of one modality), M modalities, K bins, R coordinates, C clusters, B batches, G groups of cells with
the same features measured, Q levels of quantiles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellxpert.data.components import scaled_magnitudes
from cellxpert.data.roles import MEASURED, MODALITIES
from cellxpert.data.tokens import Tokens

__all__ = ["LEVELS", "NO_BATCH", "BatchShifts", "FactorReading", "Integration", "read_magnitudes", "unit_rows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NO_BATCH = -1
"""Code of a cell to which no batch adds anything."""
CLUSTER_WIDTH = 0.1
"""Width of a cluster, in squared distance of unit vectors (the default of Korsunsky et al. 2019)."""
NEW_BATCH_PRIOR = 1.0
"""Cells at no distance that every cluster of a new batch is taken to have."""
NEW_BATCH_ROUNDS = 10
MAX_ROUNDS, LEAST_MOVE = 50, 1e-3
"""Rounds of taking out of a cell what its batch adds, and the move of a coordinate below which it has arrived."""
LEVELS = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995])
"""Levels at which quantiles of errors are kept."""
_ARRAYS = ("level_MK", "share_M", "usual_V", "loading_VR", "unique_V", "stretch_RR")
_ERRORS = "error_QV"
_SHIFTS = ("centre_CR", "mean_CR", "offset_BCR")


def read_magnitudes(
    tokens: Tokens, rows: Ints, *, level_MK: Floats, share_M: Floats, modality_V: Ints
) -> sparse.csr_array:
    """Return the magnitudes of cells (N, V), 0 for a feature without a token; counts as log1p of their share in 1,000 of the cell's tokens.

    Cells of many fragments show more of all peaks: as shares they are comparable (as in latent semantic indexing).
    """
    level_NV = sparse.csr_array(scaled_magnitudes(tokens, rows, scale_MK=level_MK, modality_V=modality_V))
    modality_T = modality_V[level_NV.indices]
    for modality in np.flatnonzero(share_M):
        mine_T = modality_T == modality
        cell_T = np.repeat(np.arange(len(rows)), np.diff(level_NV.indptr))
        total_N = np.bincount(cell_T, weights=level_NV.data * mine_T, minlength=len(rows))
        share_T = 1e3 * level_NV.data / np.where(total_N > 0, total_N, 1.0)[cell_T]
        level_NV.data = np.where(mine_T, np.log1p(share_T), level_NV.data)
    return level_NV


def unit_rows(point_NR: Floats) -> Floats:
    """Return rows of length 1; those of length 0 stay."""
    return point_NR / np.maximum(np.linalg.norm(point_NR, axis=-1, keepdims=True), 1e-12)


@dataclass(frozen=True, eq=False, kw_only=True)
class FactorReading:
    """Magnitudes as ``usual + loading @ z + noise`` with z standard normal: cells are read as E[z | what was measured]."""

    level_MK: Floats
    """Magnitude of each bin of each modality."""
    share_M: Floats
    """1 for modalities whose magnitudes are counts, which are read as shares of the cell's; 0 for others."""
    usual_V: Floats
    loading_VR: Floats
    unique_V: Floats
    """Variance of each feature's noise."""
    stretch_RR: Floats
    """From E[z] to coordinates."""

    def magnitudes(self, tokens: Tokens, rows: Ints, *, modality_V: Ints) -> sparse.csr_array:
        """Return the magnitudes of cells (N, V) as they are read here; see :func:`read_magnitudes`."""
        return read_magnitudes(tokens, rows, level_MK=self.level_MK, share_M=self.share_M, modality_V=modality_V)

    def factors(
        self, tokens: Tokens, rows: Ints | None = None, *, modality_V: Ints, roles: Collection[str] | None = None
    ) -> Floats:
        """Return E[z | measured features] of cells (N, R), NaN for a cell without any; niches are not read.

        Parameters
        ----------
        tokens
            Tokens of an object.
        rows
            Cells, as positions in ``tokens``; all if None.
        modality_V
            Modality of each feature.
        roles
            Modalities to read; all that are measured in the cell itself if None.
        """
        read_V = np.isin(modality_V, [MODALITIES.index(role) for role in (MEASURED if roles is None else roles)])
        rows = np.arange(tokens.n_cells) if rows is None else rows
        z_NR = np.full((len(rows), self.loading_VR.shape[1]), np.nan)
        for group, measured_V in enumerate(tokens.measured_features & read_V):
            mine_N = tokens.pattern[rows] == group
            if measured_V.any() and mine_N.any():
                level_NV = self.magnitudes(tokens, rows[mine_N], modality_V=modality_V)
                z_NR[mine_N] = self.posterior(level_NV, measured_V)[0]
        return z_NR

    def posterior(self, level_NV: sparse.csr_array, measured_V: Bools) -> tuple[Floats, Floats]:
        """Return mean (N, R) and covariance (R, R) of z in cells of which the same features were measured."""
        weight_VR = np.where(measured_V[:, None], self.loading_VR / self.unique_V[:, None], 0.0)
        spread_RR = np.linalg.inv(np.eye(weight_VR.shape[1]) + self.loading_VR.T @ weight_VR)
        return (level_NV @ weight_VR - self.usual_V @ weight_VR) @ spread_RR, spread_RR

    def expected(self, z_NR: Floats, chosen_V: Bools) -> Floats:
        """Return the expected magnitudes (N, F) of some features, none below 0."""
        return np.maximum(self.usual_V[chosen_V] + z_NR @ self.loading_VR[chosen_V].T, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchShifts:
    """What each batch adds to the cells of each soft cluster (Korsunsky et al. 2019; Kang et al. 2021 for new batches)."""

    names: tuple[str, ...]
    centre_CR: Floats
    """Directions of the clusters: unit vectors."""
    mean_CR: Floats
    """Means of the clusters, batches taken out."""
    offset_BCR: Floats
    """What batches add to the cells of each cluster."""

    def codes(self, batch_N: npt.NDArray[np.object_]) -> Ints:
        """Return the place of each cell's batch; ``NO_BATCH`` for one that is not known."""
        place = {name: code for code, name in enumerate(self.names)}
        return np.array([place.get(name, NO_BATCH) for name in batch_N], dtype=np.int64)

    def memberships(self, point_NR: Floats) -> Floats:
        """Return the share of each cluster in cells (N, C)."""
        score_NC = 2 * unit_rows(point_NR) @ self.centre_CR.T / CLUSTER_WIDTH
        share_NC = np.exp(score_NC - score_NC.max(axis=1, keepdims=True))
        return share_NC / share_NC.sum(axis=1, keepdims=True)

    def correct(self, point_NR: Floats, code_N: Ints) -> Floats:
        """Return the coordinates without what the batch adds: what it adds depends on the clusters, and these on what is left.

        Every cell is moved until it has arrived, whatever others do.
        """
        known_N = (code_N != NO_BATCH) & np.isfinite(point_NR).all(axis=1)
        corrected_NR = point_NR.copy()
        for code in np.unique(code_N[known_N]):
            rows = known_N & (code_N == code)
            moving = np.flatnonzero(rows)
            for _ in range(MAX_ROUNDS):
                if not len(moving):
                    break
                left_NR = point_NR[moving] - self.memberships(corrected_NR[moving]) @ self.offset_BCR[code]
                move_N = np.abs(left_NR - corrected_NR[moving]).max(axis=1)
                corrected_NR[moving] = left_NR
                moving = moving[move_N > LEAST_MOVE]
        return corrected_NR

    def with_batch(self, name: str, point_NR: Floats) -> BatchShifts:
        """Return these and a new batch's, such that its cells come to the means of their clusters; nothing else changes."""
        point_NR = point_NR[np.isfinite(point_NR).all(axis=1)]
        offset_CR = np.zeros_like(self.mean_CR)
        for _ in range(NEW_BATCH_ROUNDS if len(point_NR) else 0):
            share_NC = self.memberships(point_NR - self.memberships(point_NR) @ offset_CR)
            size_C = share_NC.sum(axis=0)
            distance_CR = share_NC.T @ point_NR - size_C[:, None] * self.mean_CR
            offset_CR = distance_CR / (size_C + NEW_BATCH_PRIOR)[:, None]
        return replace(self, names=(*self.names, name), offset_BCR=np.concatenate([self.offset_BCR, offset_CR[None]]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Integration:
    """The space that :meth:`cellxpert.CellxPert.integrate` reads cells into, fitted to training cells after training."""

    reading: FactorReading
    shifts: BatchShifts | None = None
    """None: trained on one batch."""
    told: tuple[str, ...] = ()
    """Modalities that training cells had beside another, so that it is known how well the others tell them."""
    n_told: tuple[int, ...] = ()
    """How many cells that is known from; empty in models of before it was kept."""
    error_QV: Floats | None = None
    """Quantiles of each feature's magnitude minus what the other modalities expect; 0 for modalities that are not told."""

    def coordinates(
        self, tokens: Tokens, rows: Ints | None = None, *, modality_V: Ints, roles: Collection[str] | None = None
    ) -> Floats:
        """Return coordinates of cells (N, R) before batches are taken out; see :meth:`FactorReading.factors`."""
        return self.reading.factors(tokens, rows, modality_V=modality_V, roles=roles) @ self.reading.stretch_RR

    def errors(self, level: float) -> Floats:
        """Return the quantile of each feature's error at a level (V,), interpolated between those that are kept."""
        assert self.error_QV is not None, "no modality is told"
        return np.array([np.interp(level, LEVELS, error_Q) for error_Q in self.error_QV.T])

    def to_arrays(self) -> dict[str, Floats]:
        """Return all arrays by name."""
        arrays = {name: getattr(self.reading, name) for name in _ARRAYS}
        if self.error_QV is not None:
            arrays[_ERRORS] = self.error_QV
        return arrays if self.shifts is None else arrays | {name: getattr(self.shifts, name) for name in _SHIFTS}

    def to_dict(self) -> dict[str, Any]:
        """Return all that is no array."""
        batches = [] if self.shifts is None else list(self.shifts.names)
        return {"batches": batches, "told": list(self.told), "n_told": list(self.n_told)}

    @classmethod
    def of(cls, settings: Mapping[str, Any], arrays: Mapping[str, npt.ArrayLike]) -> Integration:
        """Rebuild from :meth:`to_dict` and :meth:`to_arrays`; ``KeyError`` or ``ValueError`` if one is missing or does not fit."""
        arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        n_features, n = arrays["loading_VR"].shape
        shapes = {"usual_V": (n_features,), "unique_V": (n_features,), "stretch_RR": (n, n)}
        shapes |= {_ERRORS: (len(LEVELS), n_features)} if settings["told"] else {}
        if wrong := [name for name, shape in shapes.items() if arrays[name].shape != shape]:
            raise ValueError(f"shapes of {wrong} do not fit {n_features} features and {n} factors")
        names, shifts = tuple(str(name) for name in settings["batches"]), None
        if names:
            shifts = BatchShifts(names=names, **{name: arrays[name] for name in _SHIFTS})
            if len(shifts.offset_BCR) != len(names):
                raise ValueError(f"{len(shifts.offset_BCR)} shifts of {len(names)} batches")
        return cls(
            reading=FactorReading(**{name: arrays[name] for name in _ARRAYS}),
            shifts=shifts,
            told=tuple(str(role) for role in settings["told"]),
            n_told=tuple(int(n) for n in settings.get("n_told", ())),
            error_QV=arrays.get(_ERRORS),
        )

    def rounded(self) -> Integration:
        """Return it as it is after it went through a file, where arrays are float32: saving must change no answer."""
        return Integration.of(self.to_dict(), {k: v.astype(np.float32) for k, v in self.to_arrays().items()})
