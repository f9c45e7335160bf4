"""How the cells of each label look: a Gaussian per label in principal components of magnitudes, all of one covariance.

It says how far a cell is from all labels.

Shape suffixes: N cells, V features, M modalities, K bins, P components, C labels, G groups of cells with the same features measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import svds

from cellxpert.data.components import deviations, scaled_magnitudes
from cellxpert.data.tokens import Tokens

__all__ = ["Components", "TypeModel", "find_components", "n_replicated"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
N_COMPONENTS = 50
"""Components looked for."""
LEAST_COMPONENTS = 2
PRIOR_CELLS = 20
"""Cells of the usual spread that every label is taken to have besides its own."""
LEAST_VARIANCE = 1e-8
"""Variance of a feature up to which it is the same in all cells."""
LEAST_REPLICATED = 0.5
"""Share of its variance that a component must have in cells that it was not found in: along the others the cells that it was found in lie
far from all labels, and those alone."""


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of magnitudes."""

    usual_V: Floats
    """Mean magnitude of each feature in the cells where it was measured."""
    direct_VP: Floats
    """Orthonormal directions."""

    def project(self, tokens: Tokens, rows: Ints, *, scale_MK: Floats, modality_V: Ints) -> Floats:
        """Return coordinates of cells (N, P); a feature that was not measured in a cell deviates by nothing there."""
        level_NV = scaled_magnitudes(tokens, rows, scale_MK=scale_MK, modality_V=modality_V)
        pattern_G, group_N = np.unique(tokens.pattern[rows], return_inverse=True)
        usual_GV = tokens.measured_features[pattern_G] * self.usual_V
        return np.asarray(level_NV @ self.direct_VP) - (usual_GV @ self.direct_VP)[group_N.reshape(-1)]

    def equals(self, other: Components) -> bool:
        """Whether the other components are the same, number by number."""
        return np.array_equal(self.usual_V, other.usual_V) and np.array_equal(self.direct_VP, other.direct_VP)

    def first(self, n_components: int) -> Components:
        """Return the first components."""
        return Components(usual_V=self.usual_V, direct_VP=self.direct_VP[:, :n_components])


def n_replicated(found_FP: Floats, new_FP: Floats) -> int:
    """Count the components whose variance is found again.

    Parameters
    ----------
    found_FP, new_FP
        Variance along each component of the cells that it was found in and of others, one row per fold.
    """
    ratio_P = (new_FP / np.maximum(found_FP, 1e-12)).mean(axis=0)
    lost = np.flatnonzero(ratio_P < LEAST_REPLICATED)
    return min(max(int(lost[0]) if len(lost) else len(ratio_P), LEAST_COMPONENTS), len(ratio_P))


def find_components(tokens: Tokens, rows: Ints, *, scale_MK: Floats, modality_V: Ints, seed: int) -> Components:
    """Find the principal components of cells, at most ``N_COMPONENTS``; any one direction where cells do not differ."""
    level_NV = sparse.csr_array(scaled_magnitudes(tokens, rows, scale_MK=scale_MK, modality_V=modality_V))
    pattern_G, group_N = np.unique(tokens.pattern[rows], return_inverse=True)
    member_NG = sparse.csr_array((np.ones(len(rows)), (np.arange(len(rows)), group_N.reshape(-1))))
    measured_GV = tokens.measured_features[pattern_G].astype(np.float64)
    n_measured_V = np.maximum(np.asarray(member_NG.sum(axis=0)).ravel() @ measured_GV, 1)
    usual_V = np.asarray(level_NV.sum(axis=0)).ravel() / n_measured_V
    operator = deviations(level_NV, member_NG, measured_GV * usual_V)
    n_components = min(N_COMPONENTS, min(operator.shape) - 1)
    variance_V = np.asarray(level_NV.power(2).sum(axis=0)).ravel() / n_measured_V - usual_V**2
    if n_components < 1 or not (variance_V > LEAST_VARIANCE).any():  # nothing that the solver could find
        return Components(usual_V=usual_V, direct_VP=np.eye(len(usual_V), 1))
    start = np.random.default_rng(seed).standard_normal(min(operator.shape))
    _, size_P, direct_PV = svds(operator, k=n_components, v0=start)
    return Components(usual_V=usual_V, direct_VP=direct_PV[np.argsort(-size_P)].T.copy())


@dataclass(frozen=True, eq=False)
class TypeModel:
    """Labels as Gaussians of one covariance."""

    components: Components
    mean_CP: Floats
    """Mean of each label's cells; 0 for a label without any."""
    root_PP: Floats
    """Lower triangular root of the inverse of the covariance about these means, which is shrunken (Ledoit & Wolf 2004)."""
    n_C: Floats
    """How many cells each label has."""
    spread_C: Floats
    """Mean squared distance of each label's cells to their mean, relative to that of all labels', to which labels of few cells are drawn."""

    @classmethod
    def fit(cls, components: Components, point_NP: Floats, code_N: Ints, *, n_labels: int) -> TypeModel:
        """Fit to the coordinates of cells and the codes of their labels."""
        from sklearn.covariance import ledoit_wolf

        n_C = np.bincount(code_N, minlength=n_labels)
        sum_CP = np.zeros((n_labels, point_NP.shape[1]))
        np.add.at(sum_CP, code_N, point_NP)
        mean_CP = sum_CP / np.maximum(n_C, 1)[:, None]
        covariance_PP, _ = ledoit_wolf(point_NP - mean_CP[code_N], assume_centered=True)
        floor = 1e-6 * max(float(np.trace(covariance_PP)) / len(covariance_PP), 1e-12)
        precision_PP = np.linalg.inv(covariance_PP + floor * np.eye(len(covariance_PP)))
        root_PP = np.linalg.cholesky(precision_PP)
        own_N = (((point_NP - mean_CP[code_N]) @ root_PP) ** 2).sum(axis=1)
        own_C = np.bincount(code_N, weights=own_N, minlength=n_labels) / max(float(own_N.mean()), 1e-12)
        spread_C = (own_C + PRIOR_CELLS) / (n_C + PRIOR_CELLS)
        return cls(components, mean_CP, root_PP, n_C.astype(np.float64), spread_C)

    def distances(self, tokens: Tokens, *, scale_MK: Floats, modality_V: Ints) -> Floats:
        """Return the :meth:`distance` of all cells of an object."""
        rows = np.arange(tokens.n_cells)
        return self.distance(self.components.project(tokens, rows, scale_MK=scale_MK, modality_V=modality_V))

    def distance(self, point_NP: Floats) -> Floats:
        """Return squared Mahalanobis distances, relative to the root of the label's spread, to the nearest label's mean (N,).

        Relative to the spread itself, one wide label would be near to all that lies about it, new types too; relative to nothing,
        wide labels would lose their own cells. The root lies between.
        """
        mean_CP = self.mean_CP[self.n_C > 0]
        white_NP, white_CP = point_NP @ self.root_PP, mean_CP @ self.root_PP
        squared_NC = (white_NP**2).sum(axis=1)[:, None] - 2 * white_NP @ white_CP.T + (white_CP**2).sum(axis=1)
        return (np.maximum(squared_NC, 0.0) / np.sqrt(self.spread_C[self.n_C > 0])).min(axis=1)
