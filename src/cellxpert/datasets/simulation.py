"""What is true of a synthetic data set: which gene acts on which, what a type, a batch, a neighbour and a knock-out do.

Letters: N cells, G genes, C cell types, S batches. All effects are on the natural logarithm of a gene's rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["World", "make_world", "place_cells"]


@dataclass(frozen=True, kw_only=True)
class World:
    """The truth behind synthetic cells, as plain arrays."""

    base_G: np.ndarray
    """Log-rate of each gene in no type, batch or neighbourhood in particular."""
    weight_GG: np.ndarray
    """``weight_GG[i, j]``: what one unit of gene j's log-rate, above its base, adds to gene i's. Zero unless j < i."""
    total_GG: np.ndarray
    """The same along all paths: the inverse of 1 - ``weight_GG``."""
    programme_CG: np.ndarray
    """Own (not inherited) shift of each gene in each cell type."""
    batch_SG: np.ndarray
    """Shift of each gene's counts in each batch; technical, so nothing downstream follows it."""
    niche_G: np.ndarray
    """Own shift of each gene at a neighbourhood made of sender cells only."""
    sender: int
    """The cell type whose neighbourhood acts."""
    target_P: np.ndarray
    """Genes that are knocked out."""
    strength: float
    """A knocked-out gene's log-rate is held this much below its base."""

    def deviation(self, own_NG: np.ndarray, knocked_N: np.ndarray) -> np.ndarray:
        """Log-rates above base: own shifts handed down the network, with gene ``knocked_N`` (-1: none) held in each cell."""
        deviation_NG = own_NG @ self.total_GG.T
        for gene in np.unique(knocked_N[knocked_N >= 0]):
            rows = knocked_N == gene
            # Holding a gene removes what reaches it; its descendants follow the change along all paths.
            change_n = -self.strength - deviation_NG[rows, gene]
            deviation_NG[rows] += change_n[:, None] * self.total_GG[:, gene]
        return deviation_NG

    def effect(self, mean_G: np.ndarray) -> np.ndarray:
        """Mean change of every gene's log-rate under each knock-out (P, G), for cells whose mean deviation is ``mean_G``."""
        change_P = -self.strength - mean_G[self.target_P]
        return change_P[:, None] * self.total_GG[:, self.target_P].T

    def direct(self) -> np.ndarray:
        """Which genes each knocked-out gene acts on itself (P, G)."""
        return self.weight_GG[:, self.target_P].T != 0

    def indirect(self) -> np.ndarray:
        """Which genes each knock-out reaches only through others (P, G)."""
        reach_GG = np.linalg.matrix_power((self.weight_GG != 0).astype(float) + np.eye(len(self.base_G)), _LEVELS) > 0
        reached = reach_GG[:, self.target_P].T & ~self.direct()
        reached[np.arange(len(self.target_P)), self.target_P] = False
        return reached


_LEVELS = 3
"""Genes stand on this many levels: masters, regulators, and the rest."""


def _network(n_genes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a sparse network without cycles, and the order of level of its genes."""
    n_masters = max(1, n_genes // 20)
    n_regulators = max(1, n_genes // 8)
    level = np.full(n_genes, 2)
    level[:n_masters], level[n_masters : n_masters + n_regulators] = 0, 1
    weight = np.zeros((n_genes, n_genes))
    for gene in range(n_masters, n_genes):
        above = np.flatnonzero(level == level[gene] - 1)
        # A fifth of the lowest genes answer to nobody: a knock-out must leave them alone.
        n_parents = rng.integers(1, min(2, len(above)) + 1) if level[gene] == 1 or rng.random() > 0.2 else 0
        parents = rng.choice(above, size=n_parents, replace=False)
        weight[gene, parents] = rng.uniform(0.3, 0.7, n_parents) * rng.choice([-1.0, 1.0], n_parents, p=[0.35, 0.65])
    return weight, level


def make_world(
    *,
    n_genes: int,
    n_types: int,
    n_batches: int,
    n_perturbations: int,
    type_effect: float,
    batch_effect: float,
    niche_effect: float,
    knockout_effect: float,
    rng: np.random.Generator,
) -> World:
    """Draw the truth of a synthetic data set."""
    weight, level = _network(n_genes, rng)
    programme = np.zeros((n_types, n_genes))
    n_markers = max(1, n_genes // (2 * n_types))
    free = rng.permutation(n_genes)
    for kind in range(n_types):
        own = free[kind * n_markers : (kind + 1) * n_markers] if n_types > 1 else free[:0]
        programme[kind, own] = type_effect * rng.uniform(0.7, 1.3, len(own))
    niche = np.zeros(n_genes)
    niche[rng.choice(n_genes, size=max(1, n_genes // 10), replace=False)] = niche_effect
    n_children = (weight != 0).sum(axis=0)
    # Masters act directly and through regulators, so they are knocked out first; then whoever acts on most genes.
    ranked = np.lexsort((-n_children, level))
    return World(
        base_G=rng.normal(-0.5, 0.8, n_genes),
        weight_GG=weight,
        total_GG=np.linalg.inv(np.eye(n_genes) - weight),
        programme_CG=programme,
        batch_SG=rng.normal(0, batch_effect, (n_batches, n_genes)) if n_batches > 1 else np.zeros((1, n_genes)),
        niche_G=niche,
        sender=0,
        target_P=ranked[n_children[ranked] > 0][:n_perturbations],
        strength=knockout_effect,
    )


def place_cells(
    type_N: np.ndarray, section_N: np.ndarray, *, dims: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Place cells so that those of one type lie together.

    Each section has three patches per type. A cell lies around a patch of its type, in micrometres.

    Returns
    -------
    tuple
        Coordinates (N, dims), and for each cell the share of sender cells (type 0) among its eight nearest neighbours.
    """
    from scipy.spatial import cKDTree

    n_cells = len(type_N)
    place = np.zeros((n_cells, dims))
    share = np.zeros(n_cells)
    n_types = int(type_N.max()) + 1
    for section in np.unique(section_N):
        rows = np.flatnonzero(section_N == section)
        side = 20.0 * len(rows) ** (1 / dims)
        centre = rng.uniform(0, side, (n_types, 3, dims))
        patch = rng.integers(0, 3, len(rows))
        place[rows] = centre[type_N[rows], patch] + rng.normal(0, side / 8, (len(rows), dims))
        k = min(9, len(rows))
        if k > 1:
            near = cKDTree(place[rows]).query(place[rows], k=k)[1]
            # The first neighbour is the cell itself, unless two cells lie on one spot.
            others = near[:, 1:]
            share[rows] = (type_N[rows][others] == 0).mean(axis=1)
    return place, share
