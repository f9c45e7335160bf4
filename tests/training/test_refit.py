"""The fitted label head against scikit-learn on the same inputs, densified by a loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import cellxpert as cx
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import tokenize
from cellxpert.nn.network import Network
from cellxpert.tasks.embed import embed
from cellxpert.training.refit import refit_label_head


@pytest.mark.parametrize("n_labels", [2, 3])
@pytest.mark.parametrize("label_loss", ["plain", "balanced"])
def test_probabilities_are_those_of_logistic_regression(trained: cx.CellxPert, n_labels: int, label_loss: str) -> None:
    state = trained._state
    cells = Cells.open(trained._data, read_setup(trained._data))
    tokens = tokenize(cells, state.vocabulary, state.config.tokens)
    collator = Collator(tokens, n_features=state.vocabulary.n_features, n_bins=50)
    truth = cells.labels()
    codes = (
        truth.map({name: i for i, name in enumerate(sorted(set(truth))[:n_labels])}).fillna(-100).astype(int).to_numpy()
    )
    network = Network.from_config(
        state.config, feature_modality=[0] * state.vocabulary.n_features, n_labels=n_labels, seed=1
    ).eval()
    rows = np.arange(0, cells.n_cells, 2)
    refit_label_head(network, collator, rows=rows, codes=codes, label_loss=label_loss)
    vectors, logits = embed(network, collator)

    magnitudes = np.zeros((cells.n_cells, state.vocabulary.n_features))
    for i in range(cells.n_cells):
        for k in range(tokens.start[i], tokens.start[i + 1]):
            magnitudes[i, tokens.feature[k]] = 2 + 2 * (tokens.bin[k] - 1) / 48
    inputs = np.concatenate([magnitudes, vectors.astype(float)], axis=1)
    known = rows[codes[rows] >= 0]
    weight = None if label_loss == "plain" else "balanced"
    expected = LogisticRegression(C=0.1, class_weight=weight, max_iter=5000).fit(inputs[known], codes[known])
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, expected.predict_proba(inputs), atol=5e-3)


def test_one_label_changes_nothing(trained: cx.CellxPert) -> None:
    state = trained._state
    cells = Cells.open(trained._data, read_setup(trained._data))
    collator = Collator(
        tokenize(cells, state.vocabulary, state.config.tokens), n_features=state.vocabulary.n_features, n_bins=50
    )
    before = {k: v.clone() for k, v in state.network.state_dict().items()}
    codes = np.full(cells.n_cells, 3)
    refit_label_head(state.network, collator, rows=np.arange(20), codes=codes, label_loss="plain")
    assert all(v.equal(before[k]) for k, v in state.network.state_dict().items())
