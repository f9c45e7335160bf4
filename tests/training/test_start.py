from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

import cellxpert as cx
from cellxpert.batch import Batch, Intervention, Questions
from cellxpert.data.cells import Cells
from cellxpert.data.effects import condition_effects
from cellxpert.data.perturbations import without_targets
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import tokenize
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.nn import Network
from cellxpert.training.start import (
    PROTEIN_WEIGHT,
    _pairs,
    start_from_data,
    start_interventions,
    start_label_head,
    tilts,
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
    rows = np.arange(adata.n_obs)
    start_from_data(network, vocabulary, tokens, rows=rows, assigned=assigned, seed=0)
    start_interventions(network, tokens, rows=rows, assigned=assigned, kept_G=np.zeros(4, bool))
    # effects are told on the scale of counts in a usual cell: one count is log 2 where the smallest magnitude is the median one
    level_VK = vocabulary.decode(np.arange(vocabulary.n_features)[:, None], np.arange(vocabulary.n_bins))
    value, one = level_VK[tokens.feature, tokens.bin], []
    for i in rows:
        own = value[tokens.start[i] : tokens.start[i + 1]]
        one.append(own[own > 0].min())
    level_VK = np.log1p(np.expm1(level_VK) / np.expm1(np.median(one)))
    np.testing.assert_allclose(network.factors.level_MK[0], level_VK[0], rtol=1e-4)
    effects = condition_effects(tokens, rows, assigned, level_VK=level_VK, n_targets=4)
    _check_effects(network, vocabulary, perturbations, effects)
    # two of the genes were learned before: they stay, and the others are told beside them
    part = network.factors.intervention
    kept_G = np.array([True, False, True, False])
    with torch.no_grad():
        part.code.weight[~torch.from_numpy(kept_G)] = 0
    before = (part.code.weight @ part.direct.weight.T)[kept_G].clone(), part.usual.weight.clone()
    start_interventions(network, tokens, rows=rows, assigned=assigned, kept_G=kept_G)
    torch.testing.assert_close((part.code.weight @ part.direct.weight.T)[kept_G], before[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(part.usual.weight, before[1])
    _check_effects(network, vocabulary, perturbations, effects)


def _usual(network, told):
    """Mean counts, on their scale, in a cell of which nothing is known."""
    batch = Batch(
        feature_T=torch.tensor([network.n_features]),
        bin_T=torch.zeros(1, dtype=torch.int64),
        lengths_B=torch.tensor([1]),
        intervention=told,
    )
    query = torch.arange(network.n_features)[None]
    with torch.no_grad():
        logits = network.decode(Questions(query_BQ=query), network.memory(network.encode(batch)))[0]
    return (logits.softmax(-1) * network.factors.level_MK[0]).sum(-1).numpy()


def _check_effects(network, vocabulary, perturbations, effects):
    plain_V = _usual(network, None)
    for g in range(4):
        (row,) = np.flatnonzero(effects.member_PG[:, g])
        feature = vocabulary.names.index(perturbations.targets[g])
        told = Intervention(
            feature_BI=torch.tensor([[feature]]),
            target_BI=torch.tensor([[g]]),
            dose_BI=torch.tensor([[-1.0]]),
            before=True,
        )
        found_V = _usual(network, told) - plain_V
        assert np.corrcoef(found_V, effects.usual_V + effects.own_PV[row])[0, 1] > 0.99
        np.testing.assert_allclose(found_V, effects.usual_V + effects.own_PV[row], atol=0.1)


def test_a_label_head_reads_genes_as_counts_of_a_usual_cell_and_proteins_as_magnitudes_that_vary_more():
    mdata = cx.datasets.synthetic(n_cells=200, n_genes=20, n_peaks=0, n_proteins=6, n_types=2, seed=0)
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein", labels_key="cell_type", spatial_key="spatial")
    config = cx.config.preset("nano")
    cells, rows = Cells.open(mdata, read_setup(mdata)), np.arange(200)
    vocabulary = Vocabulary.fit(cells, config.tokens, train_rows=rows)
    tokens = tokenize(cells, vocabulary, config.tokens)
    network = Network.from_config(
        config, feature_modality=vocabulary.role_of_feature.tolist(), n_labels=2, place=True, seed=0
    )
    start_label_head(network.labels, vocabulary, tokens, rows=rows)
    scale_MK = network.labels.scale_MK.numpy()
    means = vocabulary.block("protein").bin_means
    np.testing.assert_allclose(scale_MK[2] / scale_MK[2, 1], means / means[1], rtol=1e-5)
    read = np.zeros((200, vocabulary.n_features))
    for i in range(200):
        for k in range(tokens.start[i], tokens.start[i + 1]):
            feature = tokens.feature[k]
            read[i, feature] = scale_MK[vocabulary.role_of_feature[feature], tokens.bin[k]]
    variance = read.var(axis=0)
    of_genes, of_proteins = (variance[vocabulary.role_of_feature == m].sum() for m in (0, 2))
    np.testing.assert_allclose(of_proteins, PROTEIN_WEIGHT * of_genes, rtol=1e-3)
    assert not scale_MK[3].any()  # niches are left to the cell vector
    # a count of one in a cell of usual depth is log1p(1), times 2; and magnitudes are those of counts
    total = np.asarray(mdata["rna"].X.sum(axis=1)).ravel()
    lowest = np.array([np.log1p(1e4 * row.data.min() / n) for row, n in zip(mdata["rna"].X, total, strict=True)])
    expected = 2 * np.log1p(np.expm1(vocabulary.block("rna").bin_means) / np.expm1(np.median(lowest)))
    np.testing.assert_allclose(scale_MK[0], expected, rtol=0.1)
    torch.nn.init.ones_(network.labels.magnitude.weight)
    network.labels.scale_MK.zero_()
    start_label_head(network.labels, vocabulary, tokens, rows=rows)
    assert not network.labels.scale_MK.any()  # a head that was fitted keeps what it reads


def test_factors_read_genes_as_counts_of_a_usual_cell_and_other_magnitudes_as_they_are():
    mdata = cx.datasets.synthetic(n_cells=150, n_genes=20, n_peaks=0, n_proteins=6, n_types=2, seed=0)
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein")
    config = cx.config.preset("nano")
    cells, rows = Cells.open(mdata, read_setup(mdata)), np.arange(150)
    vocabulary = Vocabulary.fit(cells, config.tokens, train_rows=rows)
    tokens = tokenize(cells, vocabulary, config.tokens)
    network = Network.from_config(
        config, feature_modality=vocabulary.role_of_feature.tolist(), n_labels=0, place=vocabulary.place, seed=0
    )
    start_from_data(network, vocabulary, tokens, rows=rows, assigned=None, seed=0)
    factors = network.factors
    total = np.asarray(mdata["rna"].X.sum(axis=1)).ravel()
    lowest = np.array([np.log1p(1e4 * row.data.min() / n) for row, n in zip(mdata["rna"].X, total, strict=True)])
    counts = np.log1p(np.expm1(vocabulary.block("rna").bin_means) / np.expm1(np.median(lowest)))
    np.testing.assert_allclose(factors.level_MK[0], counts, rtol=0.1)  # a bin stands for its mean
    np.testing.assert_allclose(factors.level_MK[2], vocabulary.block("protein").bin_means, rtol=1e-5)
    read = np.zeros((150, vocabulary.n_features))
    for i in range(150):
        for k in range(tokens.start[i], tokens.start[i + 1]):
            feature = tokens.feature[k]
            read[i, feature] = factors.level_MK[vocabulary.role_of_feature[feature], tokens.bin[k]]
    np.testing.assert_allclose(factors.centre_V, read.mean(axis=0), rtol=1e-4, atol=1e-5)
    caps = [x[x > 0].mean() + 2 * x[x > 0].std() for x in read.T]
    np.testing.assert_allclose(factors.cap_V, caps, rtol=1e-3)
    tilted = factors.tilted(torch.arange(vocabulary.n_features)).numpy()
    levels = factors.level_MK.numpy()[vocabulary.role_of_feature]
    np.testing.assert_allclose(tilted, np.minimum(levels, np.array(caps)[:, None]), rtol=1e-3)


def test_what_pairs_share_is_told_by_leaving_each_out():
    rng = np.random.default_rng(0)
    product, own = rng.normal(size=(12, 5)), rng.normal(size=(5, 30))
    for noise, low, high in ((0.1, 0.9, 1.0), (100.0, 0.0, 0.1)):
        left = product @ own + noise * rng.normal(size=(12, 30))
        pair_VS, gain = _pairs(product, left, penalty=0.5)
        others = []
        for i in range(12):
            kept = np.arange(12) != i
            x, y = product[kept], left[kept]
            others.append(product[i] @ np.linalg.solve(x.T @ x + 0.5 * np.eye(5), x.T @ y))
        others = np.array(others)
        assert gain == pytest.approx(np.clip((others * left).sum() / (others**2).sum(), 0, 1), abs=1e-9)
        assert low <= gain <= high
        expected = np.linalg.solve(product.T @ product + 0.5 * np.eye(5), product.T @ left).T
        np.testing.assert_allclose(pair_VS, expected, atol=1e-9)
    assert _pairs(product[:1], left[:1], penalty=0.5)[1] == 0.0  # one pair says nothing of another
