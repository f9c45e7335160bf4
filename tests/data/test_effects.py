from __future__ import annotations

import dataclasses

import numpy as np

from cellxpert.data.effects import condition_effects
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens


def _cells(dense_NV: np.ndarray) -> Tokens:
    """Cells whose bins are given, all features measured."""
    cell, feature = np.nonzero(dense_NV)
    start = np.concatenate([[0], np.cumsum((dense_NV > 0).sum(axis=1))])
    return Tokens(
        feature=feature.astype(np.int32),
        bin=dense_NV[cell, feature].astype(np.uint8),
        start=start,
        rows=np.arange(len(dense_NV)),
        pattern=np.zeros(len(dense_NV), np.int32),
        measured_features=np.ones((1, dense_NV.shape[1]), bool),
    )


def test_effects_are_differences_of_means_from_control():
    rng = np.random.default_rng(1)
    n, effect_GV = 4000, np.array([[0.0, 6, 0, 0, 6], [0, 0, 6, 0, 6]])
    target_N = np.repeat([-1, 0, 1], n)
    mean_NV = 10 + np.where(target_N[:, None] >= 0, effect_GV[target_N], 0)
    dense = np.clip(rng.poisson(mean_NV), 0, 40)
    assigned = Assigned(
        np.full((3 * n, 1), -1), target_N[:, None], np.where(target_N >= 0, -1.0, 0.0)[:, None].astype(np.float32)
    )
    level_VK = np.tile(np.arange(41.0), (5, 1))
    effects = condition_effects(_cells(dense), np.arange(3 * n), assigned, level_VK=level_VK, n_targets=2)
    np.testing.assert_allclose(effects.usual_V, effect_GV.mean(axis=0), atol=0.2)
    np.testing.assert_allclose(effects.own_PV, effect_GV - effect_GV.mean(axis=0), atol=0.2)
    np.testing.assert_array_equal(effects.member_PG, np.eye(2))
    # what is told of each condition is its effect less the share that the noise of two means has of its size
    control = dense[:n]
    for row, cells in enumerate((dense[n : 2 * n], dense[2 * n :])):
        effect, noise = cells.mean(axis=0) - control.mean(axis=0), cells.var(axis=0) / n + control.var(axis=0) / n
        share = 1 - (noise / control.var(axis=0)).sum() / (effect**2 / control.var(axis=0)).sum()
        np.testing.assert_allclose(effects.usual_V + effects.own_PV[row], share * effect, atol=1e-9)


def test_what_is_noise_is_shrunk_away():
    rng = np.random.default_rng(2)
    n = 50
    dense, target_N = rng.poisson(10, (5 * n, 30)), np.repeat([-1, 0, 1, 2, 3], n)
    assigned = Assigned(
        np.full((5 * n, 1), -1), target_N[:, None], np.where(target_N >= 0, -1.0, 0.0)[:, None].astype(np.float32)
    )
    level_VK = np.tile(np.arange(60.0), (30, 1))
    effects = condition_effects(_cells(dense), np.arange(5 * n), assigned, level_VK=level_VK, n_targets=4)
    told_PV = effects.usual_V + effects.own_PV
    assert np.abs(told_PV).mean() < 0.5 * np.abs(effects.observed_PV).mean()


def test_what_strong_perturbations_share_is_not_said_of_the_others():
    rng = np.random.default_rng(4)
    n, target_N = 300, np.repeat([-1, 0, 1, 2, 3], 300)
    dense = rng.poisson(10 + 6.0 * np.isin(target_N, [0, 1])[:, None], (5 * n, 30))
    assigned = Assigned(np.full((5 * n, 1), -1), target_N[:, None], -(target_N >= 0)[:, None].astype(np.float32))
    level_VK = np.tile(np.arange(60.0), (30, 1))
    effects = condition_effects(_cells(dense), np.arange(5 * n), assigned, level_VK=level_VK, n_targets=4)
    np.testing.assert_allclose(effects.usual_V, 3, atol=0.5)
    told_PV = effects.usual_V + effects.own_PV
    np.testing.assert_allclose(told_PV[:2], effects.observed_PV[:2], rtol=0.02)
    assert np.abs(told_PV[2:]).mean() < 0.1


def test_cells_that_did_not_measure_a_feature_do_not_count():
    rng = np.random.default_rng(3)
    n = 400
    dense, target_N = rng.poisson(10, (2 * n, 3)), np.repeat([-1, 0], n)
    lacks = np.arange(2 * n) % 2 == 1
    dense[lacks, 2] = 0
    tokens = dataclasses.replace(
        _cells(dense), pattern=lacks.astype(np.int32), measured_features=np.array([[True] * 3, [True, True, False]])
    )
    assigned = Assigned(np.full((2 * n, 1), -1), target_N[:, None], -(target_N >= 0)[:, None].astype(np.float32))
    level_VK = np.tile(np.arange(60.0), (3, 1))
    effects = condition_effects(tokens, np.arange(2 * n), assigned, level_VK=level_VK, n_targets=1)
    expected = dense[n:][~lacks[n:], 2].mean() - dense[:n][~lacks[:n], 2].mean()
    np.testing.assert_allclose(effects.observed_PV[0, 2], expected)
    assert effects.measured_PV.all()
    nobody = dataclasses.replace(tokens, measured_features=np.array([[True, True, False]] * 2))
    effects = condition_effects(nobody, np.arange(2 * n), assigned, level_VK=level_VK, n_targets=1)
    assert effects.observed_PV[0, 2] == effects.own_PV[0, 2] == 0
    assert effects.measured_PV.tolist() == [[True, True, False]]


def test_the_gene_of_a_condition_is_told_where_it_is_one():
    feature = np.array([[-1, -1], [4, -1], [2, 4], [-1, -1]])
    dose = np.array([[0, 0], [-1, 0], [-1, 0.5], [1, 0]], np.float32)
    target = np.array([[-1, -1], [1, -1], [0, 1], [2, -1]])
    effects = condition_effects(
        _cells(np.ones((4, 5), int)),
        np.arange(4),
        Assigned(feature, target, dose),
        level_VK=np.tile(np.arange(3.0), (5, 1)),
        n_targets=3,
    )
    found = {tuple(member): gene for member, gene in zip(effects.member_PG.tolist(), effects.gene_P, strict=True)}
    assert found == {(0, 1, 0): 4, (1, -0.5, 0): -1, (0, 0, -1): -1}
