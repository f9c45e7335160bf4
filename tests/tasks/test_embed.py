"""Cell vectors against the network called by hand."""

from __future__ import annotations

import numpy as np
import torch

import cellxpert as cx
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import tokenize
from cellxpert.tasks.embed import embed


def test_vectors_are_those_of_the_network_padded_or_packed(trained: cx.CellxPert) -> None:
    state = trained._state
    cells = Cells.open(trained._data, read_setup(trained._data))
    tokens = tokenize(cells, state.vocabulary, state.config.tokens, rows=np.arange(20))
    vectors = {}
    for layout in ("packed", "padded"):
        collator = Collator(tokens, n_features=state.vocabulary.n_features, n_bins=50, layout=layout)
        vectors[layout], logits, tissues = embed(state.network, collator, batch_size=6)
        assert logits.shape == (20, len(state.labels))
        assert tissues.shape == (20, 0)
        with torch.inference_mode():
            by_hand = [state.network.encode(collator([i])).cell_BD[0].numpy() for i in range(20)]
        assert np.abs(vectors[layout] - np.stack(by_hand)).max() <= 1e-5
    assert np.abs(vectors["packed"] - vectors["padded"]).max() <= 1e-5
