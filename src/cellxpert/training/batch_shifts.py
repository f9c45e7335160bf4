"""Finds what batches add to cells: soft clusters that all batches share, and what each adds to the cells of each cluster.

Shape suffixes: N cells, R coordinates, C clusters, B batches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellxpert.data.integration import CLUSTER_WIDTH, BatchShifts, unit_rows

__all__ = ["fit_shifts"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CELLS_PER_CLUSTER, MAX_CLUSTERS = 30, 100
DIVERSITY = 2.0
"""How much a cluster is kept from holding one batch more than another."""
RIDGE = 1.0
ROUNDS, ASSIGNMENTS, N_BLOCKS = 10, 10, 20
"""Rounds of taking batches out, of assigning cells before each, and parts of the cells that are assigned at once."""


def fit_shifts(point_NR: Floats, code_N: Ints, *, names: tuple[str, ...], seed: int) -> BatchShifts:
    """Find soft clusters that all batches share, and what each batch adds to the cells of each (Korsunsky et al. 2019).

    Parameters
    ----------
    point_NR
        Coordinates of cells.
    code_N
        Batch of each cell.
    names
        Batches.
    seed
        Seed of the clusters' start and of the order in which cells are assigned.
    """
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    n_cells, n_batches = len(point_NR), len(names)
    unit_NR = unit_rows(point_NR)
    n_clusters = int(np.clip(round(n_cells / CELLS_PER_CLUSTER), 2, MAX_CLUSTERS))
    n_clusters = min(
        n_clusters, len(np.unique(unit_NR.round(4), axis=0))
    )  # with one coordinate there are two directions
    member_NB = np.eye(n_batches)[code_N]
    left_NR = point_NR
    kmeans = KMeans(n_clusters, n_init=3, random_state=seed).fit(unit_NR)
    centre_CR = unit_rows(kmeans.cluster_centers_)
    share_NC = _softmax(2 * unit_NR @ centre_CR.T / CLUSTER_WIDTH)
    for _ in range(ROUNDS):
        for _ in range(ASSIGNMENTS):
            centre_CR = unit_rows(share_NC.T @ unit_rows(left_NR))
            before_NC = share_NC
            share_NC = _assigned(unit_rows(left_NR), share_NC, member_NB, centre_CR=centre_CR, rng=rng)
            if np.abs(share_NC - before_NC).mean() < 1e-4:
                break
        offset_BCR = _offsets(point_NR, share_NC, member_NB)
        left_NR = point_NR - np.einsum("nc,ncr->nr", share_NC, offset_BCR[code_N])
    size_C1 = np.maximum(share_NC.sum(axis=0), 1e-6)[:, None]
    return BatchShifts(names=names, centre_CR=centre_CR, mean_CR=share_NC.T @ left_NR / size_C1, offset_BCR=offset_BCR)


def _softmax(score_NC: Floats) -> Floats:
    share_NC = np.exp(score_NC - score_NC.max(axis=1, keepdims=True))
    return share_NC / share_NC.sum(axis=1, keepdims=True)


def _assigned(
    unit_NR: Floats, share_NC: Floats, member_NB: Floats, *, centre_CR: Floats, rng: np.random.Generator
) -> Floats:
    """Assign cells anew, some at a time, to near clusters that hold less of their batch than is expected."""
    share_NC = share_NC.copy()
    near_NC = np.exp(2 * (unit_NR @ centre_CR.T - 1) / CLUSTER_WIDTH) + 1e-12
    portion_B = member_NB.mean(axis=0)
    for rows in np.array_split(rng.permutation(len(unit_NR)), N_BLOCKS):
        others = np.ones(len(unit_NR), bool)
        others[rows] = False
        observed_BC = member_NB[others].T @ share_NC[others]
        expected_BC = np.outer(portion_B, observed_BC.sum(axis=0))
        favour_BC = ((expected_BC + 1) / (observed_BC + 1)) ** DIVERSITY
        new_NC = near_NC[rows] * (member_NB[rows] @ favour_BC)
        share_NC[rows] = new_NC / new_NC.sum(axis=1, keepdims=True)
    return share_NC


def _offsets(point_NR: Floats, share_NC: Floats, member_NB: Floats) -> Floats:
    """Ridge regression of coordinates on batches within each cluster: the batches' coefficients, (B, C, R)."""
    design_NX = np.concatenate([np.ones((len(point_NR), 1)), member_NB], axis=1)
    penalty_XX = RIDGE * np.diag([0.0, *np.ones(member_NB.shape[1])])
    offset_CBR = []
    for share_N in share_NC.T:
        weighted_XN = design_NX.T * share_N
        left_XX = weighted_XN @ design_NX + penalty_XX + 1e-9 * np.eye(len(penalty_XX))
        offset_CBR.append(np.linalg.solve(left_XX, weighted_XN @ point_NR)[1:])
    return np.stack(offset_CBR, axis=1)
