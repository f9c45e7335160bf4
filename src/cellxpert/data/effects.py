"""Mean effects of the conditions of perturbed cells, as they were observed.

Letters: N cells, V features, K bins, P conditions, G targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens

__all__ = ["ConditionEffects", "condition_effects", "conditions_of", "signal_share"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEAST_VARIANCE = 1e-8


@dataclass(frozen=True, eq=False, kw_only=True)
class ConditionEffects:
    """Differences of mean magnitudes from control cells. A feature that was not measured in a condition has the effect 0."""

    observed_PV: Floats
    measured_PV: npt.NDArray[np.bool_]
    usual_V: Floats
    """The mean over conditions, each counting once."""
    own_PV: Floats
    """What each condition has beside it, once its effect is shrunk by the share that sampling noise has of its size.

    Towards no effect, not towards the usual one: most perturbations of a screen do little, and what the strong ones share must
    not be said of all.
    """
    member_PG: Floats
    """Dose of each target in each condition, a knock-out counting 1."""
    gene_P: Ints
    """The feature that is set, where it is the only one; else -1."""


def conditions_of(assigned: Assigned) -> Ints:
    """Return a number for each set of genes that are set together, per cell."""
    said = np.sort(np.where(assigned.dose_NI != 0, assigned.target_NI, -1), axis=1)
    return np.unique(said, axis=0, return_inverse=True)[1].reshape(-1)


def signal_share(effect_PV: Floats, noise_PV: Floats, spread_V: Floats) -> Floats:
    """Share of each condition's effects that is no sampling noise (P,): James-Stein's positive-part estimate of many means at once.

    ``noise_PV`` are the variances of the effects, ``spread_V`` those of cells, which features are weighed by.
    """
    size_P = (effect_PV**2 / spread_V).sum(axis=1)
    return np.clip(1 - (noise_PV / spread_V).sum(axis=1) / np.maximum(size_P, 1e-12), 0.0, 1.0)


def condition_effects(
    tokens: Tokens, rows: Ints, assigned: Assigned, *, level_VK: Floats, n_targets: int
) -> ConditionEffects:
    """Compare the training cells of each condition with the control cells among them.

    Parameters
    ----------
    tokens
        Tokens of all cells, without the genes that were set.
    rows
        Training cells; some control cells and some perturbed ones.
    assigned
        Genes that were set in each cell.
    level_VK
        Magnitude that each bin of each feature stands for, 0 for bin 0.
    n_targets
        Number of targets.
    """
    value = level_VK[tokens.feature, tokens.bin]
    level_NV = sparse.csr_array((value, tokens.feature, tokens.start), shape=(tokens.n_cells, len(level_VK)))
    n_patterns = len(tokens.measured_features)

    def moments(chosen: Ints) -> tuple[Floats, Floats, Floats]:
        """Means, variances and numbers of the cells that measured each feature."""
        n_V = np.bincount(tokens.pattern[chosen], minlength=n_patterns) @ tokens.measured_features.astype(np.float64)
        n_1V = np.maximum(n_V, 1)
        mean_V = np.asarray(level_NV[chosen].sum(axis=0)).ravel() / n_1V
        square_V = np.asarray(level_NV[chosen].power(2).sum(axis=0)).ravel() / n_1V
        return mean_V, np.maximum(square_V - mean_V**2, LEAST_VARIANCE), n_V

    condition_N, intervened = conditions_of(assigned), assigned.intervened[rows]
    control_V, spread_V, n_control_V = moments(rows[~intervened])
    effects, noise, measured, members, genes = [], [], [], [], []
    for code in np.unique(condition_N[rows[intervened]]):
        chosen = rows[condition_N[rows] == code]
        mean_V, variance_V, n_V = moments(chosen)
        both_V = (n_V > 0) & (n_control_V > 0)
        effects.append(np.where(both_V, mean_V - control_V, 0.0))
        noise.append(variance_V / np.maximum(n_V, 1) + spread_V / np.maximum(n_control_V, 1))
        measured.append(both_V)
        dose, target = assigned.dose_NI[chosen[0]], assigned.target_NI[chosen[0]]
        member_G = np.zeros(n_targets)
        member_G[target[target >= 0]] = -dose[target >= 0]
        members.append(member_G)
        genes.append(assigned.feature_NI[chosen[0]][dose != 0][0] if (dose != 0).sum() == 1 else -1)
    observed_PV, noise_PV, measured_PV = np.stack(effects), np.stack(noise), np.stack(measured)
    usual_V = observed_PV.sum(axis=0) / np.maximum(measured_PV.sum(axis=0), 1)
    share_P = signal_share(observed_PV, noise_PV * measured_PV, spread_V)
    return ConditionEffects(
        observed_PV=observed_PV,
        measured_PV=measured_PV,
        usual_V=usual_V,
        own_PV=(share_P[:, None] * observed_PV - usual_V) * measured_PV,
        member_PG=np.stack(members),
        gene_P=np.array(genes, np.int64),
    )
