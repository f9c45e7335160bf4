"""Niches change where a neighbour changed, by as much as it did, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellxpert.tasks.propagate import Around, changed_niches

N_CELLS, N_FEATURES = 12, 3
EVERYONE = np.ones(N_CELLS, bool)


@pytest.fixture
def around() -> Around:
    """Cells in a row; the niche of each is what the cells left and right of it have."""
    rng = np.random.default_rng(0)
    joined = np.eye(N_CELLS, k=1) + np.eye(N_CELLS, k=-1)
    graph = joined / joined.sum(axis=1, keepdims=True)
    own = rng.uniform(1, 3, (N_CELLS, N_FEATURES))
    return Around(graph_NN=sparse.csr_array(graph), level_NV=(graph @ own).astype(np.float32))


def test_equals_niches_of_the_changed_cells(around):
    start, shift = np.array([2, 8]), np.array([[0.5, -0.25, 0.0], [-1.0, 0.0, 2.0]])
    rows, level, share = changed_niches(around, start, shift, asked_N=EVERYONE)
    assert rows.tolist() == [1, 3, 7, 9]
    assert share.tolist() == [0.5] * 4
    for row, niche in zip(rows, level, strict=True):
        expected = around.level_NV[row].astype(float).copy()
        for cell, change in zip(start, shift, strict=True):
            if abs(row - cell) == 1:
                expected += 0.5 * change
        np.testing.assert_allclose(niche, expected, rtol=1e-6)


def test_perturbed_cells_are_not_among_those_that_only_respond(around):
    rows, level, _ = changed_niches(around, np.array([4, 5]), np.zeros((2, N_FEATURES)), asked_N=EVERYONE)
    assert rows.tolist() == [3, 6]
    np.testing.assert_array_equal(level, around.level_NV[rows])  # nothing changed, nothing changes


def test_magnitudes_stay_magnitudes(around):
    _, level, _ = changed_niches(around, np.array([0]), np.full((1, N_FEATURES), -100.0), asked_N=EVERYONE)
    assert (level == 0).all()


def test_cells_without_neighbours_reach_nobody(around):
    alone = Around(graph_NN=sparse.csr_array((N_CELLS, N_CELLS)), level_NV=around.level_NV)
    rows, level, _ = changed_niches(alone, np.array([3]), np.ones((1, N_FEATURES)), asked_N=EVERYONE)
    assert len(rows) == 0
    assert level.shape == (0, N_FEATURES)


def test_only_cells_that_are_asked_are_reached(around):
    asked = EVERYONE.copy()
    asked[3] = False
    rows, _, _ = changed_niches(around, np.array([2]), np.ones((1, N_FEATURES)), asked_N=asked)
    assert rows.tolist() == [1]
