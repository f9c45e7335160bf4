"""Labels from vectors."""

from __future__ import annotations

import numpy as np
import torch

import cellxpert as cx
from cellxpert.tasks.annotate import annotate


def test_labels_are_the_most_probable_and_unknown_stays_unknown(trained: cx.CellxPert) -> None:
    network, classes = trained._state.network, trained.labels
    vectors = np.random.default_rng(0).normal(size=(9, network.config.width)).astype(np.float32)
    unknown = np.zeros(9, bool)
    unknown[4] = True
    result = annotate(network, vectors, classes=classes, unknown=unknown, unlabeled_category="?")
    weight, bias = network.labels.linear.weight.detach().numpy(), network.labels.linear.bias.detach().numpy()
    logits = (vectors @ weight.T + bias).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(result.probabilities, expected, atol=1e-5)
    assert result.probabilities.dtype == np.float32
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-6)
    assert [result.labels[i] == classes[expected[i].argmax()] for i in range(9) if i != 4] == [True] * 8
    assert (result.labels[4], result.confidence[4]) == ("?", 0)


def test_probabilities_do_not_overflow(trained: cx.CellxPert) -> None:
    network = trained._state.network
    vectors = np.full((1, network.config.width), 1e4, np.float32)
    result = annotate(network, vectors, classes=trained.labels, unknown=np.zeros(1, bool), unlabeled_category="?")
    assert np.isfinite(result.probabilities).all()
    assert torch.is_grad_enabled()
