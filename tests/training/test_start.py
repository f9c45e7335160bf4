from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

import cellxpert as cx
from cellxpert.batch import Intervention
from cellxpert.data.cells import Cells
from cellxpert.data.perturbations import Assigned, without_targets
from cellxpert.data.tokens import Tokens, tokenize
from cellxpert.training.start import condition_effects, start_from_data, tilts


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


def test_a_tilt_moves_the_mean_by_what_was_asked():
    rng = np.random.default_rng(0)
    p_VK = softmax(rng.normal(size=(6, 5)), axis=1)
    level_VK = np.sort(rng.random((6, 5)), axis=1) * 3
    mean_V = (p_VK * level_VK).sum(axis=1)
    shift_PV = rng.uniform(-0.2, 0.2, (4, 6))
    for exponent_V, shift_V in zip(tilts(np.log(p_VK), level_VK, shift_PV), shift_PV, strict=True):
        tilted_VK = p_VK * np.exp(exponent_V[:, None] * level_VK)
        tilted_VK /= tilted_VK.sum(axis=1, keepdims=True)
        np.testing.assert_allclose((tilted_VK * level_VK).sum(axis=1) - mean_V, shift_V, atol=1e-8)


def test_no_shift_needs_no_tilt_and_an_impossible_one_the_largest():
    log_p, level = np.log(np.full((1, 3), 1 / 3)), np.array([[0.0, 1.0, 2.0]])
    assert tilts(log_p, level, np.zeros((1, 1)))[0, 0] == pytest.approx(0, abs=1e-9)
    assert tilts(log_p, level, np.full((1, 1), 5.0))[0, 0] == pytest.approx(20)


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
    usual_V, own_PV, error_PV, member_PG = condition_effects(
        _cells(dense), np.arange(3 * n), assigned, level_VK=level_VK, n_targets=2
    )
    np.testing.assert_allclose(usual_V, effect_GV.mean(axis=0), atol=0.2)
    np.testing.assert_allclose(own_PV, effect_GV - effect_GV.mean(axis=0), atol=0.2)
    np.testing.assert_array_equal(member_PG, np.eye(2))
    control = dense[:n]
    expected = np.sqrt(dense[n : 2 * n].var(axis=0) / n + control.var(axis=0) / n)
    np.testing.assert_allclose(error_PV[0], expected, rtol=1e-6)


def test_what_is_noise_is_shrunk_away():
    rng = np.random.default_rng(2)
    n = 50
    dense, target_N = rng.poisson(10, (5 * n, 30)), np.repeat([-1, 0, 1, 2, 3], n)
    assigned = Assigned(
        np.full((5 * n, 1), -1), target_N[:, None], np.where(target_N >= 0, -1.0, 0.0)[:, None].astype(np.float32)
    )
    level_VK = np.tile(np.arange(60.0), (30, 1))
    _, own_PV, error_PV, _ = condition_effects(
        _cells(dense), np.arange(5 * n), assigned, level_VK=level_VK, n_targets=4
    )
    assert np.abs(own_PV).mean() < 0.5 * error_PV.mean()


def test_the_network_begins_at_the_observed_effects():
    mdata = cx.datasets.synthetic(
        n_cells=1500, n_genes=40, n_peaks=0, n_proteins=0, n_types=1, spatial_dims=0, n_perturbations=4, seed=1
    )
    adata = mdata["rna"].copy()
    adata.obs["perturbation"] = mdata.obs["perturbation"].astype(str)
    cx.CellxPert.setup_anndata(adata, perturbation_key="perturbation")
    model = cx.CellxPert(adata, preset="nano", seed=0)
    model.train(max_epochs=1, train_size=1.0, progress_bar=False)
    state = model._trained()
    network, vocabulary, perturbations = state.network, state.vocabulary, state.perturbations
    tokens = tokenize(Cells.open(adata, state.setup), vocabulary, state.config.tokens)
    assigned = perturbations.assign(adata.obs["perturbation"], vocabulary)
    tokens = without_targets(tokens, assigned)
    with torch.no_grad():
        network.bins.linear.weight.zero_()
    start_from_data(network, vocabulary, tokens, rows=np.arange(adata.n_obs), assigned=assigned, seed=0)
    level_VK = vocabulary.decode(np.arange(vocabulary.n_features)[:, None], np.arange(vocabulary.n_bins))
    usual_V, own_PV, _, member_PG = condition_effects(
        tokens, np.arange(adata.n_obs), assigned, level_VK=level_VK, n_targets=4
    )
    plain_V = network.blank_means(None).numpy()
    for g in range(4):
        (row,) = np.flatnonzero(member_PG[:, g])
        feature = vocabulary.names.index(perturbations.targets[g])
        told = Intervention(
            feature_BI=torch.tensor([[feature]]),
            target_BI=torch.tensor([[g]]),
            dose_BI=torch.tensor([[-1.0]]),
            before=True,
        )
        found_V = network.blank_means(told).numpy() - plain_V
        assert np.corrcoef(found_V, usual_V + own_PV[row])[0, 1] > 0.99
        np.testing.assert_allclose(found_V, usual_V + own_PV[row], atol=0.1)
