"""Cells by single modalities, against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.batch import Batch
from cellxpert.data.roles import MODALITIES, NICHE
from cellxpert.training.views import views

MODALITY_W = torch.tensor([0] * 6 + [1] * 4 + [2] * 5 + [MODALITIES.index(NICHE)] * 3 + [4])
N_FEATURES = len(MODALITY_W) - 1


def make(cells: list[list[int]], *, pad: bool) -> Batch:
    """Cells of some features each, in one of the two layouts; a token's bin says which it is."""
    lengths = [1 + len(cell) for cell in cells]
    pad_length = max(lengths) + 2 if pad else None
    feature, bins, position = [], [], []
    for cell in cells:
        empty = 0 if pad_length is None else pad_length - 1 - len(cell)
        feature += [N_FEATURES, *cell, *[-1] * empty]
        bins += [0, *[1 + f for f in cell], *[0] * empty]
        position += [*range(1 + len(cell)), *[0] * empty]
    return Batch(
        feature_T=torch.tensor(feature),
        bin_T=torch.tensor(bins),
        position_T=torch.tensor(position),
        lengths_B=torch.tensor(lengths),
        pad_length=pad_length,
        place_BX=torch.zeros(len(cells), 3),
        image_BF=torch.zeros(len(cells), 2),
    )


def cells_of(view: Batch) -> list[list[int]]:
    assert view.pad_length is None
    out, begin = [], 0
    for n in view.lengths_B.tolist():
        feature = view.feature_T[begin : begin + n].tolist()
        assert feature[0] == N_FEATURES
        assert view.bin_T[begin : begin + n].tolist() == [0, *[1 + f for f in feature[1:]]]
        out.append(feature[1:])
        begin += n
    assert begin == len(view.feature_T)
    return out


CELLS = st.lists(st.sets(st.integers(0, N_FEATURES - 1)).map(sorted), min_size=1, max_size=7)


@settings(deadline=None)
@given(cells=CELLS, pad=st.booleans(), seed=st.integers(0, 99))
def test_each_view_is_one_modality_of_the_cells_that_have_two(cells: list[list[int]], pad: bool, seed: int) -> None:
    batch = make(cells, pad=pad)
    pair = views(batch, MODALITY_W, generator=torch.Generator().manual_seed(seed))
    parts = [[[f for f in cell if MODALITY_W[f] == m] for m in range(3)] for cell in cells]
    several = [part for part in parts if sum(map(bool, part)) > 1]
    if len(several) < 2:
        assert pair is None
        return
    one, other = (cells_of(view) for view in pair)
    assert len(one) == len(other) == len(several)
    for first, second, part in zip(one, other, several, strict=True):
        assert first
        assert second
        assert part.index(first) < part.index(second)
    for view in pair:  # what both would share is in neither
        assert view.place_BX is None
        assert view.image_BF is None
    starts = [c for c, part in zip(cells, parts, strict=True) if sum(map(bool, part)) > 1]
    places = [1 + cell.index(f) for cell, found in zip(starts, one, strict=True) for f in found]
    assert [p for p in pair[0].position_T.tolist() if p] == places


def test_of_three_modalities_every_pair_is_as_likely() -> None:
    batch, generator = make([[0, 7, 11]] * 300, pad=False), torch.Generator().manual_seed(0)
    one, other = (cells_of(view) for view in views(batch, MODALITY_W, generator=generator))
    pairs = list(zip((c[0] for c in one), (c[0] for c in other), strict=True))
    assert set(pairs) == {(0, 7), (0, 11), (7, 11)}
    for pair in set(pairs):
        assert pairs.count(pair) / 300 == pytest.approx(1 / 3, abs=0.09)
