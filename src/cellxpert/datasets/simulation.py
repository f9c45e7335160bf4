"""What is true of a synthetic data set: which gene acts on which, what a type, a batch, a neighbour and a knock-out do.

Letters: N cells, G genes, C cell types, S batches; K genes that are knocked out, Q pairs of them, P = K + Q perturbations
(the single genes first, then the pairs). All effects are on the natural logarithm of a gene's rate.
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
    target_K: np.ndarray
    """Genes that are knocked out."""
    strength: float
    """A knocked-out gene's log-rate is held this much below its base."""
    reach_GG: np.ndarray
    """``reach_GG[i, j]``: whether a path leads from gene j to gene i; a gene reaches itself."""
    pair_Q2: np.ndarray
    """Pairs that are knocked out together, as positions in ``target_K``; neither gene of a pair reaches the other."""
    extra_QG: np.ndarray
    """What the loss of both genes adds to the log-rates, beyond the sum of the two; not handed down."""
    stress_G: np.ndarray
    """What any perturbation adds to the log-rates, with what is handed down."""

    def knocked(self) -> list[list[int]]:
        """Genes that each perturbation holds (P lists)."""
        pairs = np.sort(self.target_K[self.pair_Q2], axis=1)
        return [[int(gene)] for gene in self.target_K] + pairs.tolist()

    def deviation(self, own_NG: np.ndarray, perturbation_N: np.ndarray) -> np.ndarray:
        """Log-rates above base: own shifts handed down the network, under each cell's perturbation (-1: none)."""
        deviation_NG = own_NG @ self.total_GG.T
        if self.stress_G.any():
            deviation_NG[perturbation_N >= 0] += self.stress_G
        knocked = self.knocked()
        for which in np.unique(perturbation_N[perturbation_N >= 0]):
            rows = perturbation_N == which
            for gene in knocked[which]:
                # Holding a gene removes what reaches it; its descendants follow the change along all paths.
                change_n = -self.strength - deviation_NG[rows, gene]
                deviation_NG[rows] += change_n[:, None] * self.total_GG[:, gene]
            if which >= len(self.target_K):
                deviation_NG[rows] += self.extra_QG[which - len(self.target_K)]
        return deviation_NG

    def effect(self, mean_G: np.ndarray, *, interaction: bool = True) -> np.ndarray:
        """Mean change of every gene's log-rate (P, G), for cells whose mean deviation is ``mean_G`` when left alone."""
        change_K = -self.strength - (mean_G + self.stress_G)[self.target_K]
        single_KG = change_K[:, None] * self.total_GG[:, self.target_K].T
        pair_QG = single_KG[self.pair_Q2].sum(axis=1)
        effect_PG = np.concatenate([single_KG, pair_QG + self.extra_QG if interaction else pair_QG])
        return effect_PG + self.stress_G if self.stress_G.any() else effect_PG

    def direct(self) -> np.ndarray:
        """Which genes each perturbation's genes act on themselves (P, G)."""
        return self._with_pairs(self.weight_GG[:, self.target_K].T != 0)

    def indirect(self) -> np.ndarray:
        """Which genes each perturbation reaches only through others (P, G)."""
        return self._with_pairs(self._others(self.reach_GG[:, self.target_K].T)) & ~self.direct()

    def ancestors(self) -> np.ndarray:
        """Which genes stand above a gene of each perturbation (P, G)."""
        return self._with_pairs(self._others(self.reach_GG[self.target_K]))

    def _others(self, found_KG: np.ndarray) -> np.ndarray:
        found_KG = found_KG.copy()
        found_KG[np.arange(len(self.target_K)), self.target_K] = False
        return found_KG

    def _with_pairs(self, found_KG: np.ndarray) -> np.ndarray:
        return np.concatenate([found_KG, found_KG[self.pair_Q2].any(axis=1)])


_LEVELS = 3
"""Genes stand on this many levels: masters, regulators, and the rest."""


def _network(n_genes: int, n_regulators: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a sparse network without cycles, and the order of level of its genes."""
    n_masters = max(1, n_genes // 20)
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


def _pairs(target_K: np.ndarray, reach_GG: np.ndarray, n_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``n_pairs`` pairs of genes of which neither reaches the other; those that act on a common gene come first."""
    order_KK = reach_GG[np.ix_(target_K, target_K)]
    apart_KK = ~(order_KK | order_KK.T)
    below_GK = reach_GG[:, target_K].astype(np.float32)
    common_KK = below_GK.T @ below_GK > 0
    pairs = rng.permutation(np.argwhere(np.triu(apart_KK, k=1)))
    ranked = np.argsort(~common_KK[pairs[:, 0], pairs[:, 1]], kind="stable")
    return pairs[ranked[:n_pairs]]


def make_world(
    *,
    n_genes: int,
    n_types: int,
    n_batches: int,
    n_perturbations: int,
    n_pairs: int = 0,
    n_regulators: int | None = None,
    type_effect: float,
    batch_effect: float,
    niche_effect: float,
    knockout_effect: float,
    interaction: float = 0.0,
    stress_effect: float = 0.0,
    rng: np.random.Generator,
) -> World:
    """Draw the truth of a synthetic data set."""
    # Streams of their own: what is drawn for them leaves the rest of the world as it is.
    pair_rng, stress_rng = rng.spawn(2)
    weight, level = _network(n_genes, max(1, n_genes // 8) if n_regulators is None else n_regulators, rng)
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
    target = ranked[n_children[ranked] > 0][:n_perturbations]
    total = np.linalg.inv(np.eye(n_genes) - weight)
    reach = np.linalg.matrix_power((weight != 0).astype(float) + np.eye(n_genes), _LEVELS) > 0
    pair = _pairs(target, reach, n_pairs, pair_rng)
    below_both = reach[:, target].T[pair].all(axis=1)
    stress = np.zeros(n_genes)
    stressed = stress_rng.choice(n_genes, size=max(1, n_genes // 5), replace=False)
    stress[stressed] = stress_effect * stress_rng.choice([-1.0, 1.0], len(stressed))
    return World(
        base_G=rng.normal(-0.5, 0.8, n_genes),
        weight_GG=weight,
        total_GG=total,
        programme_CG=programme,
        batch_SG=rng.normal(0, batch_effect, (n_batches, n_genes)) if n_batches > 1 else np.zeros((1, n_genes)),
        niche_G=niche,
        sender=0,
        target_K=target,
        strength=knockout_effect,
        reach_GG=reach,
        pair_Q2=pair,
        extra_QG=interaction * below_both * pair_rng.choice([-1.0, 1.0], below_both.shape),
        stress_G=total @ stress,
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
