"""Batches in which one modality of some cells is hidden whole, against plain loops over cells."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.batch import IGNORE, Batch
from cellxpert.data.binning import ragged
from cellxpert.data.collate import Collator
from cellxpert.data.tokens import Tokens

V, K, N_CELLS = 30, 12, 40
MODALITY_V = np.repeat([0, 1, 2, 3], [12, 8, 7, 3])
ROWS = st.lists(st.integers(0, N_CELLS - 1), min_size=1, max_size=12)
ALWAYS = 1 - 1e-12
"""Share of cells that lose a modality, where all shall that can."""
WIDTHS = st.sampled_from([2, 8, 64])
ZEROS = st.sampled_from(["drop", "keep"])


def tokens_of(zeros: str) -> Tokens:
    """Random tokens: all modalities, RNA and some proteins, RNA and a niche alone; some cells empty, some full."""
    rng = np.random.default_rng(0)
    measured = np.ones((3, V), bool)
    measured[1, MODALITY_V == 1] = False
    measured[1, 20:24] = False
    measured[2, (MODALITY_V == 1) | (MODALITY_V == 2)] = False
    pattern = rng.integers(0, 3, N_CELLS).astype(np.int32)
    features, bins = [], []
    for i in range(N_CELLS):
        here = np.flatnonzero(measured[pattern[i]])
        k = [0, len(here), 1][i] if i < 3 else rng.integers(0, len(here) + 1)
        expressed = np.sort(rng.choice(here, k, replace=False))
        own = here if zeros == "keep" else expressed
        features.append(own)
        bins.append(np.where(np.isin(own, expressed), rng.integers(1, K, len(own)), 0))
    return Tokens(
        feature=np.concatenate(features).astype(np.int32),
        bin=np.concatenate(bins).astype(np.uint8),
        start=ragged([len(f) for f in features]),
        rows=np.arange(N_CELLS),
        pattern=pattern,
        measured_features=measured,
    )


def collator(tokens: Tokens, **settings: object) -> Collator:
    return Collator(tokens, n_features=V, n_bins=K, **{"n_queries": 8, "modality_V": MODALITY_V, **settings})


def shown_features(batch: Batch) -> list[set[int]]:
    ends = batch.lengths_B.cumsum(0).tolist()
    return [
        set(batch.feature_T[end - n + 1 : end].tolist()) for n, end in zip(batch.lengths_B.tolist(), ends, strict=True)
    ]


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))
    return one == two


def hidden_modalities(batch: Batch, b: int, *, truth: set[int], measured: set[int], shown: set[int]) -> list[int]:
    """Modalities of which a batch shows nothing, though they were measured."""
    present = sorted({int(MODALITY_V[f]) for f in measured})
    if batch.measured_PV is not None:
        known = set(torch.nonzero(batch.measured_PV[batch.pattern_B[b]])[:, 0].tolist())
        return [m for m in present if not known & {f for f in measured if MODALITY_V[f] == m}]
    return [m for m in present if shown == {f for f in truth if MODALITY_V[f] != m}]


@settings(deadline=None, max_examples=100)
@given(
    rows=ROWS,
    zeros=ZEROS,
    seed=st.integers(0, 999),
    n_queries=WIDTHS,
    blank=st.sampled_from([0.0, 0.4]),
    share=st.sampled_from([0.4, ALWAYS]),
)
def test_a_hidden_modality_is_not_shown_and_all_that_is_asked(rows, zeros, seed, n_queries, blank, share):
    tokens, width = tokens_of(zeros), min(n_queries, V)
    make = collator(tokens, zeros=zeros, n_queries=n_queries, modality_dropout=share, blank=blank)
    batch = make(rows, rng=np.random.default_rng(seed))
    for b, (i, shown) in enumerate(zip(rows, shown_features(batch), strict=True)):
        begin, end = tokens.start[i : i + 2]
        truth = dict(zip(tokens.feature[begin:end].tolist(), tokens.bin[begin:end].tolist(), strict=True))
        measured = set(np.flatnonzero(tokens.measured_features[tokens.pattern[i]]).tolist())
        query, target = batch.masked.query_BQ[b].tolist(), batch.masked.target_BQ[b].tolist()
        asked = {q: t for q, t in zip(query, target, strict=True) if q >= 0}
        assert asked == {q: truth.get(q, 0) for q in asked}
        assert query == [*asked, *[-1] * (width - len(asked))]
        assert batch.masked.value_feature_BM[b].tolist() == query
        of_whole = {q for q in batch.whole.query_BQ[b].tolist() if q >= 0}  # drawn from all of the cell, as ever
        assert of_whole <= measured
        assert len(of_whole) == min(V, len(measured))
        is_blank = batch.blank_B is not None and bool(batch.blank_B[b])
        several = len({int(MODALITY_V[f]) for f in measured if MODALITY_V[f] < 3}) > 1
        gone = hidden_modalities(batch, b, truth=set(truth), measured=measured, shown=shown)
        hidden = None if zeros == "keep" else batch.hidden_feature_H[batch.hidden_cell_H == b].tolist()
        if share == ALWAYS and several and not is_blank:
            assert len(gone) == 1
        if zeros == "drop":
            assert len(gone) <= (several and not is_blank)
            if not gone:
                assert set(asked) <= set(hidden)
                continue
        elif (
            share < ALWAYS or not several or is_blank
        ):  # a modality may be hidden by chance, and others be asked for too
            continue
        assert gone[0] < 3  # never the niche
        of_it = {f for f in measured if MODALITY_V[f] == gone[0]}
        assert shown == set(truth) - of_it
        assert set(asked) <= of_it
        tokens_of_it, silent = of_it & set(truth), of_it - set(truth)
        if zeros == "keep":
            assert len(asked) == min(width, len(tokens_of_it))
            assert batch.masked.rate_B2 is None
            continue
        assert hidden == []
        assert len(asked) == min(width, len(of_it))
        assert len(set(asked) & tokens_of_it) == min(len(tokens_of_it), max(width // 2, width - len(silent)))
        for column, features in enumerate((silent, tokens_of_it)):
            n = len(set(asked) & features)
            assert abs(batch.masked.rate_B2[b, column].item() - (n / len(features) if n else 1)) < 1e-6


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, zeros=ZEROS, seed=st.integers(0, 99), blank=st.sampled_from([0.0, 0.4]))
def test_at_zero_nothing_changes(rows, zeros, seed, blank):
    tokens = tokens_of(zeros)
    one, two = (
        collator(tokens, zeros=zeros, blank=blank, **given_)(rows, rng=np.random.default_rng(seed))
        for given_ in ({"modality_V": None}, {"modality_dropout": 0.0})
    )
    assert same(one, two)


@settings(deadline=None, max_examples=20)
@given(rows=ROWS)
def test_inference_hides_no_modality(rows):
    tokens = tokens_of("drop")
    assert same(collator(tokens)(rows), collator(tokens, modality_dropout=0.9)(rows))


def test_every_feature_of_a_hidden_modality_is_asked_alike():
    """Expressed ones, and silent ones, each of them as often; and each modality is hidden as often."""
    tokens = tokens_of("drop")
    n_tokens = np.diff(tokens.start)
    row = int(np.flatnonzero((tokens.pattern == 0) & (n_tokens > 8) & (n_tokens < 22))[0])
    truth = set(tokens.feature[tokens.start[row] : tokens.start[row + 1]].tolist())
    make = collator(tokens, n_queries=4, modality_dropout=ALWAYS)
    rng, count, times, n = np.random.default_rng(0), np.zeros(V), np.zeros(4), 6000
    for _ in range(n // 100):
        batch = make(np.full(100, row), rng=rng)
        assert not (batch.masked.target_BQ == IGNORE).all(1).any()
        for query in batch.masked.query_BQ.numpy():
            asked = query[query >= 0]
            (modality,) = set(MODALITY_V[asked].tolist())
            times[modality] += 1
            count[asked] += 1
    np.testing.assert_allclose(times[:3] / n, 1 / 3, atol=0.03)
    assert times[3] == 0
    for modality in range(3):
        for wanted in (True, False):
            features = [f for f in range(V) if MODALITY_V[f] == modality and (f in truth) == wanted]
            expected = count[features].mean()
            np.testing.assert_allclose(count[features], expected, rtol=0.15)
