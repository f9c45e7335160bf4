"""Values of chosen features against a dense loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellxpert.data.gather import gather, scales


@settings(deadline=None, max_examples=60)
@given(data=st.data(), keep=st.booleans())
def test_gather_equals_a_loop(data, keep):
    n_rows, n_columns = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 8))
    n_features = data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dense = rng.poisson(0.7, size=(n_rows, n_columns)).astype(float)
    position = np.full(n_columns, -1)
    n = min(n_columns, n_features)
    position[rng.permutation(n_columns)[:n]] = rng.permutation(n_features)[:n]
    position[rng.random(n_columns) < 0.2] = -1
    picked = gather(sparse.csr_matrix(dense), position=position, n_features=n_features, keep_zeros=keep)
    assert picked.n_measured == (position >= 0).sum()
    assert len(picked.start) == n_rows + 1
    for i in range(n_rows):
        truth = sorted(
            (position[j], dense[i, j]) for j in range(n_columns) if position[j] >= 0 and (keep or dense[i, j])
        )
        row = slice(picked.start[i], picked.start[i + 1])
        assert list(zip(picked.feature[row], picked.value[row], strict=True)) == truth


def test_stored_zeros_and_repeated_or_unsorted_indices_do_not_matter():
    messy = sparse.csr_matrix(
        (np.array([1.0, 0.0, 2.0, 3.0]), np.array([2, 1, 0, 2]), np.array([0, 3, 4])), shape=(2, 3)
    )
    doubled = sparse.csr_matrix(
        (np.array([2.0, 0.5, 0.5, 3.0]), np.array([0, 2, 2, 2]), np.array([0, 3, 4])), shape=(2, 3)
    )
    before = messy.indices.copy()
    for matrix in (messy, doubled):
        picked = gather(matrix, position=np.array([1, -1, 0]), n_features=2)
        assert picked.feature.tolist() == [0, 1, 0]
        assert picked.value.tolist() == [1, 2, 3]
        assert picked.start.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(messy.indices, before)  # the input is not changed


def test_totals_run_over_all_columns_and_log_ratios_over_the_features():
    matrix = sparse.csr_matrix(np.array([[1.0, 2, 0, 5], [0, 0, 0, 4]]))
    picked = gather(matrix, position=np.array([0, 1, 2, -1]), n_features=3)
    np.testing.assert_allclose(scales(matrix, picked, transform="log"), [1e4 / 8, 1e4 / 4])
    logs = (np.log1p(1) + np.log1p(2)) / 3
    np.testing.assert_allclose(scales(matrix, picked, transform="clr"), [np.exp(-logs), 1])
