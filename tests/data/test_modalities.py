"""Which modality is hidden, and the scopes of what is left."""

from __future__ import annotations

import numpy as np
import pytest

from cellxpert.data.modalities import HiddenModalities
from cellxpert.data.roles import MODALITIES, NICHE

MODALITY_V = np.array([0, 0, 0, 1, 1, 2, 2, MODALITIES.index(NICHE)])
MEASURED_PV = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 0, 1],
        [1, 1, 0, 0, 0, 0, 0, 1],  # RNA and a niche: one modality
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=bool,
)
PRESENT = [{0, 1, 2}, {0, 2}, {0}, set()]


def test_cells_with_two_modalities_or_more_lose_one_of_them_at_random() -> None:
    hiding = HiddenModalities(MEASURED_PV, modality_V=MODALITY_V, share=0.3)
    rng, n = np.random.default_rng(0), 20_000
    pattern_B = np.repeat(np.arange(4), n)
    gone = hiding.choose(pattern_B, rng).reshape(4, n)
    for found, present in zip(gone, PRESENT, strict=True):
        if len(present) < 2:
            assert (found == -1).all()
            continue
        assert set(found) == {-1, *present}
        assert (found >= 0).mean() == pytest.approx(0.3, abs=0.02)
        for modality in present:
            assert (found == modality).mean() == pytest.approx(0.3 / len(present), abs=0.01)


def test_nothing_is_drawn_or_made_where_nothing_is_hidden() -> None:
    rng = np.random.default_rng(0)
    none = HiddenModalities(MEASURED_PV, modality_V=None, share=0.0)
    assert (none.choose(np.zeros(5, np.int64), rng) == -1).all()
    assert rng.random() == np.random.default_rng(0).random()
    assert none.scope_SV is MEASURED_PV
    single = HiddenModalities(MEASURED_PV[2:], modality_V=MODALITY_V, share=0.5)
    assert single.scope_SV.shape == (2, 8)
    assert (single.choose(np.array([0, 1, 0]), rng) == -1).all()


def test_scopes_are_a_modality_alone_and_all_others() -> None:
    scopes = HiddenModalities(MEASURED_PV, modality_V=MODALITY_V, share=0.3).scope_SV
    n = len(MEASURED_PV)
    assert scopes.shape == (7 * n, 8)
    for p in range(n):
        assert scopes[p].tolist() == MEASURED_PV[p].tolist()
        for m in range(3):
            alone, without = scopes[p + n * (1 + m)], scopes[p + n * (4 + m)]
            assert alone.tolist() == [bool(x) and k == m for x, k in zip(MEASURED_PV[p], MODALITY_V, strict=True)]
            assert without.tolist() == [bool(x) and k != m for x, k in zip(MEASURED_PV[p], MODALITY_V, strict=True)]
