"""Bin frequencies against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from cellxpert.data.frequencies import log_bin_frequencies
from cellxpert.data.tokens import Tokens


@pytest.mark.parametrize("keep_zeros", [False, True])
def test_frequencies_equal_a_loop(keep_zeros: bool) -> None:
    rng = np.random.default_rng(0)
    n_cells, n_features, n_bins = 12, 5, 4
    measured = np.array([[True] * 5, [True, True, True, False, False]])
    pattern = rng.integers(0, 2, n_cells).astype(np.int32)
    bins = rng.integers(0, n_bins, (n_cells, n_features)) * (rng.random((n_cells, n_features)) < 0.5)
    feature, bin_, lengths = [], [], []
    for i in range(n_cells):
        shown = [f for f in range(n_features) if measured[pattern[i], f] and (keep_zeros or bins[i, f])]
        feature += shown
        bin_ += [bins[i, f] for f in shown]
        lengths.append(len(shown))
    tokens = Tokens(
        feature=np.array(feature, np.int32),
        bin=np.array(bin_, np.uint8),
        start=np.r_[0, np.cumsum(lengths)],
        rows=np.arange(n_cells),
        pattern=pattern,
        measured_features=measured,
    )
    rows = np.array([0, 2, 3, 7, 9])
    counts = np.zeros((n_features, n_bins))
    for i in rows:
        for f in range(n_features):
            if measured[pattern[i], f]:
                counts[f, bins[i, f]] += 1
    mean = (counts.sum(axis=0) + 1) / (counts.sum() + n_bins)
    expected = np.log((counts + 2 * mean) / (counts.sum(axis=1, keepdims=True) + 2))
    found = log_bin_frequencies(tokens, rows, n_bins=n_bins)
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
