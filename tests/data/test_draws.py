"""Random choices: valid always, and uniform."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.binning import ragged
from cellxpert.data.draws import distinct, ragged_permutation


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_rows_are_permuted_within_themselves(lengths, seed):
    start = ragged(lengths)
    order = ragged_permutation(start, rng=np.random.default_rng(seed))
    for a, b in zip(start[:-1], start[1:], strict=True):
        assert sorted(order[a:b]) == list(range(a, b))
    np.testing.assert_array_equal(order, ragged_permutation(start, rng=np.random.default_rng(seed)))


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_distinct_numbers_below_their_size(rows, seed):
    size = np.array([r[0] for r in rows])
    take = np.minimum(size, [r[1] for r in rows])
    drawn = distinct(size, take, width=12, rng=np.random.default_rng(seed))
    assert drawn.shape == (len(rows), 12)
    for row, n, k in zip(drawn, size, take, strict=True):
        assert len(set(row[:k])) == k
        assert ((row[:k] >= 0) & (row[:k] < max(n, 1))).all()


def chi2(counter, outcomes, n):
    expected = n / len(outcomes)
    return sum((counter[o] - expected) ** 2 / expected for o in outcomes)


def test_every_order_is_equally_likely():
    n = 24_000
    order = (
        ragged_permutation(ragged(np.full(n, 4)), rng=np.random.default_rng(0)).reshape(n, 4)
        - 4 * np.arange(n)[:, None]
    )
    found = Counter(map(tuple, order.tolist()))
    assert chi2(found, list(permutations(range(4))), n) < 49.7  # 99.9 % of chi2 with 23 degrees of freedom
    n = 20_000
    drawn = distinct(np.full(n, 5), np.full(n, 2), width=2, rng=np.random.default_rng(1))
    found = Counter(map(tuple, drawn.tolist()))
    assert chi2(found, list(permutations(range(5), 2)), n) < 43.8  # 19 degrees of freedom
