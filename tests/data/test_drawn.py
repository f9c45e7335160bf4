"""Some of the tokens of a batch, against plain lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellxpert.data.binning import ragged
from cellxpert.data.drawn import Drawn


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 999))
def test_some_tokens_keep_their_order(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, cell_N = ragged(lengths), np.repeat(np.arange(len(lengths)), lengths)
    n = int(start[-1])
    order = [rng.permutation(np.flatnonzero(cell_N == b)) for b in range(len(lengths))]
    drawn = Drawn(
        feature_N=rng.integers(0, 50, n),
        bin_N=rng.integers(0, 9, n),
        cell_N=cell_N,
        start=start,
        order_N=np.concatenate(order).astype(np.int64),
        rank_N=np.arange(n) - start[cell_N],
        pattern_B=rng.integers(0, 3, len(lengths)),
    )
    kept_N = rng.random(n) < 0.6
    part = drawn.only(kept_N)
    assert part.lengths_B.tolist() == [int(kept_N[cell_N == b].sum()) for b in range(len(lengths))]
    assert part.pattern_B is drawn.pattern_B
    for name in ("feature_N", "bin_N", "cell_N"):
        assert getattr(part, name).tolist() == getattr(drawn, name)[kept_N].tolist()
    for b in range(len(lengths)):
        expected = [int(drawn.feature_N[i]) for i in order[b] if kept_N[i]]
        mine = slice(part.start[b], part.start[b + 1])
        assert part.feature_N[part.order_N[mine]].tolist() == expected
        assert part.rank_N[mine].tolist() == list(range(len(expected)))
    assert drawn.only(kept_N, pattern_B=np.full(len(lengths), 7)).pattern_B.tolist() == [7] * len(lengths)
