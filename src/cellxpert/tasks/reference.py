"""What is known of perturbed cells without a chain: centroids of the training cells, anchors, and the trivial baselines.

Letters: N cells, V features, T training conditions, M sites, A anchors, D dimensions of an embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse

from cellxpert.config import SteeringConfig
from cellxpert.data.collate import Collator
from cellxpert.data.conditions import SEPARATOR, genes_of
from cellxpert.metrics import baselines
from cellxpert.steering import Anchors, medoids
from cellxpert.tasks.bins import bins_at, measured
from cellxpert.tasks.interventions import Request

__all__ = ["Observed", "medoid_anchors", "trivial_effects", "unseen_weights"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
RIDGES = tuple(float(r) for r in np.logspace(3, -2, 16))
CONSTANTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties, and kernels between any two genes, that are tried."""
MAX_ANCHOR_CELLS = 500
"""Perturbed cells among which medoids are sought, and whose distance to them is aimed at."""
MAX_T = 10.0
"""Where the weight of a site stops growing with its t statistic."""
START_KAPPA = 0.02
"""Strength of anchors from which the one that reaches the aim is sought."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Observed:
    """Cells whose condition is known and may be used: those of the training split.

    Conditions are named as :attr:`Request.condition` is, genes sorted and what stands for no gene left out: cells of
    ``"KLF1+GATA1+ctrl"`` are ``"GATA1+KLF1"``.
    """

    collator: Collator
    condition: Sequence[str]
    """Condition of every cell of the collator's tokens, as in the object."""
    rows: Ints
    """Cells that may be used."""
    control: str
    level_VK: Floats
    """Magnitude of each bin of each feature."""

    @functools.cached_property
    def _names(self) -> npt.NDArray[np.object_]:
        own = {c: SEPARATOR.join(genes_of(c, self.control)) or self.control for c in set(self.condition)}
        return np.array([own[c] for c in self.condition], dtype=object)

    @functools.cached_property
    def perturbed(self) -> tuple[str, ...]:
        """Names of the perturbed conditions, sorted."""
        return tuple(sorted(set(self._names[self.rows]) - {self.control}))

    def rows_of(self, name: str) -> Ints:
        """Cells of a condition."""
        return self.rows[self._names[self.rows] == name]

    def levels(self, rows: Ints) -> sparse.csr_array:
        """Magnitudes of cells, N x V."""
        return self._levels[rows]

    @functools.cached_property
    def _levels(self) -> sparse.csr_array:
        tokens = self.collator.tokens
        value = self.level_VK[tokens.feature, tokens.bin]
        return sparse.csr_array((value, tokens.feature, tokens.start), shape=(tokens.n_cells, len(self.level_VK)))

    @functools.cached_property
    def _means(self) -> dict[str, Floats]:
        found, tokens = {}, self.collator.tokens
        for name in (self.control, *self.perturbed):
            rows = self.rows_of(name)
            if len(rows):
                n_G = np.bincount(tokens.pattern[rows], minlength=len(tokens.measured_features))
                n_V = np.maximum(n_G @ tokens.measured_features, 1)
                found[name] = np.asarray(self.levels(rows).sum(axis=0)).ravel() / n_V
        return found

    def mean(self, name: str) -> Floats:
        """Mean magnitudes of a condition over the cells in which each feature was measured, (V,); 0 where in none.

        So is a gene that was set, which is not read.
        """
        return self._means[name]

    def delta(self, name: str) -> Floats:
        """Mean magnitudes of a condition minus those of control, (V,)."""
        return self._means[name] - self._means[self.control]

    def _complete(self, rows: Ints, feature_M: Ints) -> Ints:
        """Cells in which all of the features were measured: elsewhere 0 is no value. All cells where there are none."""
        whole_N = measured(self.collator, rows)[:, feature_M].all(axis=1)
        return rows[whole_N] if whole_N.any() else rows

    def bins(self, name: str, feature_M: Ints, *, seed: int) -> Ints:
        """Bins (N, M) of at most ``MAX_ANCHOR_CELLS`` cells of a condition."""
        rows = self._complete(self.rows_of(name), feature_M)
        if len(rows) > MAX_ANCHOR_CELLS:
            rows = np.sort(np.random.default_rng([seed, 11]).choice(rows, MAX_ANCHOR_CELLS, replace=False))
        return bins_at(self.collator, rows, feature_M)

    def anchors(self, name: str, feature_M: Ints, *, settings: SteeringConfig, seed: int) -> tuple[Anchors, float]:
        """Return medoids of a condition, weighted by how far each site differs from control, and what to aim at.

        Weights are absolute t statistics, at most ``MAX_T``, of mean 1.
        """
        bin_NM = self.bins(name, feature_M, seed=seed)
        control_NM = bins_at(self.collator, self._complete(self.rows_of(self.control), feature_M), feature_M)
        gap_M = bin_NM.mean(axis=0) - control_NM.mean(axis=0)
        error_M = np.sqrt(bin_NM.var(axis=0) / len(bin_NM) + control_NM.var(axis=0) / len(control_NM))
        return medoid_anchors(bin_NM, np.clip(np.abs(gap_M) / np.maximum(error_M, 1e-6), 0.0, MAX_T), settings=settings)


def medoid_anchors(bin_NM: Ints, weight_M: Floats, *, settings: SteeringConfig) -> tuple[Anchors, float]:
    """Return the most central of N cells as anchors, half of them at most, and how far the others are from the nearest, per site.

    Weights are scaled to a mean of 1; where all are 0, they are 1.
    """
    weight_M = weight_M / weight_M.mean() if weight_M.any() else np.ones_like(weight_M)
    state_NM, weights = torch.from_numpy(bin_NM), torch.from_numpy(weight_M)
    chosen = medoids(state_NM, min(settings.n_anchors, max(len(state_NM) // 2, 1)), weight_M=weights)
    anchors = Anchors(
        bin_AM=state_NM[chosen],
        kappa=START_KAPPA if settings.kappa is None else settings.kappa,
        weight_M=weights,
        distance=settings.distance,
    )
    other_N = torch.ones(len(state_NM), dtype=torch.bool)
    other_N[chosen] = False
    others = state_NM[other_N] if other_N.any() else state_NM
    return anchors, anchors.distances(others).amin(1).mean().item() / bin_NM.shape[1]


def trivial_effects(
    request: Request,
    *,
    observed: Observed | None,
    features: Mapping[str, int],
    control_NV: sparse.csr_array,
    held_V: Mapping[int, float],
) -> dict[str, Floats]:
    """Return effects (V,) of the trivial predictions that can be made.

    Parameters
    ----------
    request
        What is done.
    observed
        Cells of known conditions, if there are any.
    features
        Feature of every gene that is one.
    control_NV
        Magnitudes of the control cells.
    held_V
        Magnitude that each feature among the request's genes is set to.
    """
    found = {"no_change": np.zeros(control_NV.shape[1])}
    if held_V and control_NV.shape[0] > 1:
        held, value_V = np.zeros((1, control_NV.shape[1]), bool), np.zeros(control_NV.shape[1])
        held[0, list(held_V)] = True
        value_V[list(held_V)] = list(held_V.values())
        found["gauss_conditional"] = baselines.gauss_conditional(control_NV, clamped_QG=held, value=value_V)[0]
    if observed is None or not observed.perturbed or not len(observed.rows_of(observed.control)):
        return found
    delta = {name: observed.delta(name) for name in observed.perturbed}
    others = [name for name in delta if name != SEPARATOR.join(request.genes)]
    if others:
        found["perturbed_mean"] = np.mean([delta[name] for name in others], axis=0)
    if len(request.genes) > 1 and all(gene in delta for gene in request.genes):
        found["additive"] = np.sum([delta[gene] for gene in request.genes], axis=0)
    singles = [name for name in others if name in features]
    if len(request.genes) == 1 and request.genes[0] in features and len(singles) >= 3:
        control_V = observed.mean(observed.control)
        centroids = np.stack([control_V, *(control_V + delta[name] for name in others)])
        genes = baselines.principal_genes(centroids, n_components=min(10, *centroids.shape))
        found["linear"] = baselines.linear(
            np.stack([delta[name] for name in singles]),
            gene_embedding_GD=genes,
            target_embedding_TD=genes[[features[name] for name in singles]],
            query_embedding_QD=genes[[features[request.genes[0]]]],
        )[0]
    return found


def unseen_weights(
    embedding: pd.DataFrame | None, *, seen: Sequence[str], genes: Sequence[str], effect_GV: Floats
) -> Floats:
    """How what was learned of seen genes carries over to others that were never perturbed: kernel ridge regression weights.

    The kernel is the cosine of the embeddings' rows plus a constant, which carries over what all genes share. Constant and penalty
    are those with which each seen gene is predicted best from the others (in closed form), so that an embedding that tells
    nothing carries nothing over, and what only some genes do is not said of all.

    Parameters
    ----------
    embedding
        A row per gene; genes without a row are like no other.
    seen
        Genes that were perturbed.
    genes
        The genes asked for.
    effect_GV
        Effect of each seen gene.

    Returns
    -------
    A weight per gene asked for and seen gene.
    """
    row_XD = np.zeros((len(seen) + len(genes), 1))
    if embedding is not None:
        row_XD = embedding.reindex([*seen, *genes], fill_value=0.0).to_numpy(np.float64)
    row_XD = row_XD / np.maximum(np.linalg.norm(row_XD, axis=1, keepdims=True), 1e-12)
    cosine_GX = row_XD[: len(seen)] @ row_XD.T
    product_GG, best, weight_GQ = effect_GV @ effect_GV.T, np.inf, np.zeros((len(seen), len(genes)))
    for constant, ridge in product(CONSTANTS, RIDGES):
        kernel_GX = cosine_GX + constant
        inverse_GG = np.linalg.inv(kernel_GX[:, : len(seen)] + ridge * np.eye(len(seen)))
        missed = (
            np.einsum("gh,hi,gi->g", inverse_GG, product_GG, inverse_GG, optimize=True) / np.diag(inverse_GG) ** 2
        ).sum()
        if missed < best * (1 - 1e-9):  # of equally good ones the first, which carries least over
            best, weight_GQ = missed, inverse_GG @ kernel_GX[:, len(seen) :]
    return weight_GQ.T
