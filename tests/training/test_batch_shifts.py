"""What batches add, against simulated batches."""

from __future__ import annotations

import numpy as np
import pytest

from cellxpert.training.batch_shifts import fit_shifts


def _clusters(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four kinds of which the first is in one batch only and the last in the other, both shifted by their own batch's offsets."""
    rng = np.random.default_rng(seed)
    centre = np.eye(5)[:4] * 6
    number = np.array([[160, 90, 50, 0], [0, 40, 110, 150]])
    kind = np.concatenate([np.repeat(np.arange(4), n) for n in number])
    batch = np.repeat([0, 1], number.sum(axis=1))
    offset = rng.normal(scale=0.5, size=(2, 1, 5)) + rng.normal(scale=0.4, size=(2, 4, 5))
    plain = centre[kind] + rng.normal(scale=0.4, size=(len(kind), 5))
    return plain, plain + offset[batch, kind], batch, kind


def _means(point: np.ndarray, batch: np.ndarray, kind: np.ndarray, b: int, k: int) -> np.ndarray:
    return point[(batch == b) & (kind == k)].mean(axis=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_are_taken_out_and_kinds_stay_apart(seed: int) -> None:
    _, point, batch, kind = _clusters(seed)
    shifts = fit_shifts(point, batch, names=("a", "b"), seed=0)
    found = shifts.correct(point, batch)
    for k in (1, 2):  # in both
        before, after = (
            np.linalg.norm(_means(x, batch, kind, 0, k) - _means(x, batch, kind, 1, k)) for x in (point, found)
        )
        assert after < 0.35 * before
    centres = [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3)]
    for i, (b, k) in enumerate(centres):
        for c, j in centres[i + 1 :]:
            if j == k:
                continue
            apart = [
                np.linalg.norm(_means(x, batch, kind, b, k) - _means(x, batch, kind, c, j)) for x in (point, found)
            ]
            assert 0.75 < apart[1] / apart[0] < 1.25
    within = [
        np.linalg.norm(x[kind == k] - x[kind == k].mean(axis=0), axis=1).mean() for x in (point, found) for k in (1, 2)
    ]
    assert within[2] < within[0]
    assert within[3] < within[1]


def test_without_an_offset_next_to_nothing_is_taken_out() -> None:
    plain, _, batch, kind = _clusters()
    found = fit_shifts(plain, batch, names=("a", "b"), seed=0).correct(plain, batch)
    moved = np.linalg.norm(found - plain, axis=1)
    assert moved.mean() < 0.5  # of clusters that are 8 apart
    assert all(moved[kind == k].mean() < 0.7 for k in range(4))


def test_the_seed_decides() -> None:
    _, point, batch, _ = _clusters()
    one, again, other = (fit_shifts(point, batch, names=("a", "b"), seed=seed) for seed in (0, 0, 1))
    for name in ("centre_CR", "mean_CR", "offset_BCR"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.centre_CR, other.centre_CR)
    assert one.names == ("a", "b")
    np.testing.assert_allclose(np.linalg.norm(one.centre_CR, axis=1), 1)


@pytest.mark.parametrize("n_cells", [2, 3, 12])
def test_fewer_cells_than_clusters(n_cells: int) -> None:
    point = np.random.default_rng(0).normal(size=(n_cells, 3))
    batch = np.arange(n_cells) % 2
    shifts = fit_shifts(point, batch, names=("a", "b"), seed=0)
    assert len(shifts.centre_CR) <= n_cells
    assert np.isfinite(shifts.correct(point, batch)).all()


@pytest.mark.parametrize("n_kinds", [1, 2])
def test_fewer_kinds_of_cells_than_clusters(n_kinds: int) -> None:
    """Cells that do not differ are one cluster, and one coordinate has two directions only."""
    batch = np.random.default_rng(0).permutation(200) % 2
    point = np.ones((200, 1)) * np.array([2.0, -3.0])[np.arange(200) % n_kinds][:, None]
    shifts = fit_shifts(point + 0.1 * batch[:, None], batch, names=("a", "b"), seed=0)
    assert len(shifts.centre_CR) == n_kinds
    found = shifts.correct(point + 0.1 * batch[:, None], batch)
    for k in range(n_kinds):
        of_kind = np.arange(200) % n_kinds == k
        gap = found[of_kind & (batch == 0)].mean() - found[of_kind & (batch == 1)].mean()
        assert abs(gap) < 0.02


def test_a_cell_is_moved_until_it_has_arrived() -> None:
    """Against a hundred rounds of all cells; alone as in company."""
    _, point, batch, kind = _clusters()
    point = point + 4.0 * batch[:, None] * np.eye(5)[kind % 5]  # batches differ as much as kinds do
    shifts = fit_shifts(point, batch, names=("a", "b"), seed=0)
    left = point
    for _ in range(100):
        added = np.stack([shifts.memberships(left) @ offset for offset in shifts.offset_BCR])
        left = point - added[batch, np.arange(len(point))]
    found = shifts.correct(point, batch)
    assert np.quantile(np.abs(found - left).max(axis=1), 0.995) < 0.02
    for i in (0, 333):
        np.testing.assert_allclose(shifts.correct(point[[i]], batch[[i]])[0], found[i], atol=1e-9)
