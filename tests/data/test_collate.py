"""Batches carry the tokens of their cells, and questions whose answers are true."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.batch import IGNORE
from cellxpert.data.binning import ragged
from cellxpert.data.collate import Collator
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens

V, K = 30, 12


def tokens_of(n=40, zeros="drop", n_features=V, seed=0, most=None):
    """Random tokens: three patterns of measured features, some cells empty, some full."""
    rng = np.random.default_rng(seed)
    measured = np.ones((3, n_features), bool)
    measured[1, n_features // 2 :] = False
    measured[2, ::3] = False
    pattern = rng.integers(0, 3, n).astype(np.int32)
    features, bins = [], []
    for i in range(n):
        here = np.flatnonzero(measured[pattern[i]])
        k = [0, len(here), 1][i] if i < 3 else rng.integers(0, len(here) + 1)
        expressed = np.sort(rng.choice(here, min(k, most or k), replace=False))
        if zeros == "keep":
            features.append(here)
            bins.append(np.where(np.isin(here, expressed), rng.integers(1, K, len(here)), 0))
        else:
            features.append(expressed)
            bins.append(rng.integers(1, K, len(expressed)))
    return Tokens(
        feature=np.concatenate(features).astype(np.int32),
        bin=np.concatenate(bins).astype(np.uint8),
        start=ragged([len(f) for f in features]),
        rows=rng.permutation(1000)[:n],
        pattern=pattern,
        measured_features=measured,
    )


def collator(tokens, **kwargs):
    return Collator(tokens, n_features=tokens.measured_features.shape[1], n_bins=K, **{"n_queries": 8, **kwargs})


def cell(tokens, i):
    a, b = tokens.start[i : i + 2]
    return dict(zip(tokens.feature[a:b].tolist(), tokens.bin[a:b].tolist(), strict=True))


def measured(tokens, i):
    return set(np.flatnonzero(tokens.measured_features[tokens.pattern[i]]).tolist())


def contexts(batch, n_features=V):
    """(feature, bin, position) of each cell's tokens behind [CLS]."""
    out = []
    begin = 0
    for b, length in enumerate(batch.lengths_B.tolist()):
        if batch.pad_length is not None:
            begin = b * batch.pad_length
            assert (batch.feature_T[begin + length : begin + batch.pad_length] == -1).all()
            assert (batch.bin_T[begin + length : begin + batch.pad_length] == 0).all()
        assert (batch.feature_T[begin], batch.bin_T[begin]) == (n_features, 0)
        part = slice(begin + 1, begin + length)
        position = None if batch.position_T is None else batch.position_T[part].tolist()
        out.append((batch.feature_T[part].tolist(), batch.bin_T[part].tolist(), position))
        begin += length
    return out


LAYOUT = st.sampled_from(["packed", "padded"])
ZEROS = st.sampled_from(["drop", "keep"])
ROWS = st.lists(st.integers(0, 39), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, layout=LAYOUT, zeros=ZEROS)
def test_inference_shows_every_token_in_order(rows, layout, zeros):
    tokens = tokens_of(zeros=zeros)
    batch = collator(tokens, layout=layout, zeros=zeros)(rows)
    assert batch.masked is None
    assert batch.whole is None
    assert batch.position_T is None
    assert batch.label_B is None
    assert batch.row_B.tolist() == tokens.rows[rows].tolist()
    for i, (features, bins, _) in zip(rows, contexts(batch), strict=True):
        assert list(zip(features, bins, strict=True)) == list(cell(tokens, i).items())
        assert features == sorted(features)
    if layout == "padded":
        assert batch.pad_length % 8 == 0
        assert batch.pad_length - 8 < max(batch.lengths_B) <= batch.pad_length
        assert len(batch.feature_T) == len(rows) * batch.pad_length
    else:
        assert batch.pad_length is None
        assert len(batch.feature_T) == batch.lengths_B.sum()
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        kind = torch.bool if field.name == "measured_PV" else torch.int64
        assert not isinstance(value, torch.Tensor) or value.dtype == kind, field.name


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, zeros=ZEROS, seed=st.integers(0, 99), shuffle=st.booleans())
def test_both_layouts_carry_the_same(rows, zeros, seed, shuffle):
    tokens = tokens_of(zeros=zeros)
    packed, padded = (
        collator(tokens, layout=layout, zeros=zeros, shuffle_positions=shuffle)(rows, rng=np.random.default_rng(seed))
        for layout in ("packed", "padded")
    )
    assert contexts(packed) == contexts(padded)
    for part in ("masked", "whole"):
        for field in ("query_BQ", "target_BQ"):
            assert torch.equal(getattr(getattr(packed, part), field), getattr(getattr(padded, part), field))


@settings(deadline=None, max_examples=80)
@given(rows=ROWS, layout=LAYOUT, zeros=ZEROS, seed=st.integers(0, 99), n_queries=st.sampled_from([1, 7, 8, 64]))
def test_hidden_tokens_are_removed_and_asked_for(rows, layout, zeros, seed, n_queries):
    tokens = tokens_of(zeros=zeros)
    make = collator(tokens, layout=layout, zeros=zeros, n_queries=n_queries, mask_ratio=(0.2, 0.5))
    batch = make(rows, rng=np.random.default_rng(seed))
    width = min(n_queries, V)
    questions = batch.masked
    assert questions.query_BQ.shape == questions.target_BQ.shape == (len(rows), width)
    for b, (i, (features, bins, _)) in enumerate(zip(rows, contexts(batch), strict=True)):
        truth = cell(tokens, i)
        n = len(truth)
        hidden = set(truth) - set(features)
        assert {f: truth[f] for f in features} == dict(zip(features, bins, strict=True))
        assert features == sorted(features)
        assert len(hidden) == 0 if n < 2 else max(1, np.floor(0.2 * n)) <= len(hidden) <= np.ceil(0.5 * n)
        query, target = questions.query_BQ[b].tolist(), questions.target_BQ[b].tolist()
        real = [q for q in query if q >= 0]
        assert len(set(real)) == len(real)
        assert query == real + [-1] * (width - len(real))  # padding comes last
        assert target == [truth.get(q, 0) for q in real] + [IGNORE] * (width - len(real))
        asked_hidden = set(real) & hidden
        if zeros == "keep":
            assert set(real) <= hidden
            assert len(real) == min(len(hidden), width)
        else:
            silent = measured(tokens, i) - set(truth)
            assert set(real) <= hidden | silent
            assert len(real) == min(width, len(hidden) + len(silent))
            assert len(asked_hidden) >= min(len(hidden), width // 2)
            if len(asked_hidden) > width // 2:
                assert silent <= set(real)  # more than half only where there are too few others
        value_feature, value_bin = questions.value_feature_BM[b].tolist(), questions.value_bin_BM[b].tolist()
        assert value_feature == query
        assert value_bin == [t if q >= 0 else 0 for q, t in zip(query, target, strict=True)]


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, zeros=ZEROS, seed=st.integers(0, 99), n_queries=st.sampled_from([1, 8, 64]))
def test_whole_cell_questions(rows, zeros, seed, n_queries):
    tokens = tokens_of(zeros=zeros)
    batch = collator(tokens, zeros=zeros, n_queries=2, n_cell_queries=n_queries)(rows, rng=np.random.default_rng(seed))
    width = min(n_queries, V)
    assert batch.whole.visible_BQM is None
    for b, i in enumerate(rows):
        query, target = batch.whole.query_BQ[b].tolist(), batch.whole.target_BQ[b].tolist()
        truth = {f: v for f, v in cell(tokens, i).items() if v}
        silent = measured(tokens, i) - set(truth)
        real = [q for q in query if q >= 0]
        assert len(set(real)) == len(real) == min(width, len(truth) + len(silent))
        assert query == real + [-1] * (width - len(real))
        assert target == [truth.get(q, 0) for q in real] + [IGNORE] * (width - len(real))
        expressed = sum(q in truth for q in real)
        assert expressed == min(len(truth), max(width // 2, width - len(silent)))


def test_visibility_is_one_of_three_kinds_and_never_shows_a_query_itself():
    tokens = tokens_of(n=400, seed=3)
    batch = collator(tokens, n_queries=16)(np.arange(400), rng=np.random.default_rng(0))
    visible = batch.masked.visible_BQM.numpy()
    assert visible.dtype == bool
    kinds = {"none": 0, "causal": 0, "one out": 0}
    for b in range(400):
        real = batch.masked.query_BQ[b].numpy() >= 0
        seen = visible[b]
        n = int(real.sum())
        assert not seen.diagonal().any()
        assert not seen[~real].any()
        assert not seen[:, ~real].any()
        if n < 8:
            continue
        columns = seen[real][:, real]
        if not columns.any():
            kinds["none"] += 1
        elif sorted(columns.sum(axis=1)) == list(range(n)):  # a total order: 0, 1, ..., n - 1 predecessors
            order = np.argsort(columns.sum(axis=1))
            np.testing.assert_array_equal(columns[np.ix_(order, order)], np.tril(np.ones((n, n), bool), -1))
            kinds["causal"] += 1
        else:
            shown = columns.any(axis=0)
            np.testing.assert_array_equal(columns, shown & ~np.eye(n, dtype=bool))
            assert 16 // 2 - (16 - n) <= shown.sum() <= 16 // 2
            kinds["one out"] += 1
    total = sum(kinds.values())
    assert total > 250
    np.testing.assert_allclose([kinds[k] / total for k in kinds], [0.4, 0.3, 0.3], atol=0.08)


def test_choices_are_uniform():
    """Every token is hidden, every feature is asked for equally often; what is asked of the whole cell does not depend on the mask."""
    tokens = tokens_of(n=3, seed=1)
    start = np.array([0, 10])
    tokens = Tokens(
        np.arange(0, 20, 2, dtype=np.int32),
        np.arange(1, 11, dtype=np.uint8),
        start,
        np.array([7]),
        np.zeros(1, np.int32),
        tokens.measured_features,
    )
    make = collator(tokens, n_queries=6, n_cell_queries=3, mask_ratio=(0.3, 0.3))
    rng = np.random.default_rng(0)
    n = 2000
    hidden, masked, whole, both = (np.zeros(V) for _ in range(4))
    for _ in range(n // 50):
        batch = make(np.zeros(50, int), rng=rng)
        for b, (features, _, _) in enumerate(contexts(batch)):
            gone = np.setdiff1d(np.arange(0, 20, 2), features)
            assert len(gone) == 3
            hidden[gone] += 1
            masked[batch.masked.query_BQ[b]] += 1
            asked = batch.whole.query_BQ[b].numpy()
            whole[asked] += 1
            both[np.intersect1d(asked, gone)] += 1
    expressed, silent = np.arange(0, 20, 2), np.setdiff1d(np.arange(V), np.arange(0, 20, 2))
    np.testing.assert_allclose(hidden[expressed] / n, 0.3, atol=0.05)
    np.testing.assert_allclose(masked[expressed] / n, 0.3, atol=0.05)
    np.testing.assert_allclose(masked[silent] / n, 3 / 20, atol=0.04)
    np.testing.assert_allclose(whole[expressed] / n, 1 / 10, atol=0.04)
    np.testing.assert_allclose(whole[silent] / n, 2 / 20, atol=0.04)
    np.testing.assert_allclose(both[expressed].sum() / n, 0.3, atol=0.06)  # 10 tokens x 0.1 x 0.3


def test_the_generator_decides_everything():
    tokens = tokens_of()
    make = collator(tokens, shuffle_positions=True)
    rows = np.arange(20)
    one, two, other = (make(rows, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert contexts(one) == contexts(two) != contexts(other)
    assert torch.equal(one.masked.query_BQ, two.masked.query_BQ)
    assert torch.equal(one.masked.visible_BQM, two.masked.visible_BQM)
    assert not torch.equal(one.masked.query_BQ, other.masked.query_BQ)


def test_shuffled_positions():
    tokens = tokens_of()
    make = collator(tokens, shuffle_positions=True, seed=3)
    rows = [1, 5, 9, 0]
    orders = set()
    for seed in range(3):
        batch = make(rows, rng=np.random.default_rng(seed))
        assert (batch.position_T[batch.feature_T == V] == 0).all()
        for i, (features, bins, position) in zip(rows, contexts(batch), strict=True):
            assert position == list(range(1, len(features) + 1))
            assert {f: cell(tokens, i)[f] for f in features} == dict(zip(features, bins, strict=True))
        orders.add(tuple(contexts(batch)[0][0]))
    assert len(orders) == 3
    # inference: one order of the vocabulary, whatever the batch
    features, bins, position = contexts(make(rows))[1]
    assert contexts(make([5]))[0] == (features, bins, position)
    assert sorted(features) == sorted(cell(tokens, 5))
    assert features != sorted(features)
    assert dict(zip(features, bins, strict=True)) == cell(tokens, 5)
    longest = contexts(make([1]))[0][0]
    assert [f for f in longest if f in features] == [f for f in features if f in longest]
    assert contexts(collator(tokens, shuffle_positions=True, seed=4)(rows))[1][0] != features


def test_labels_are_those_of_the_rows():
    labels = np.arange(40) % 5 - 1  # -1: unlabelled
    batch = collator(tokens_of())([6, 0, 5, 39], labels=labels)
    assert batch.label_B.tolist() == [0, IGNORE, IGNORE, 3]


def test_empty_cells_are_a_cls_token():
    batch = collator(tokens_of(), layout="padded")([0], rng=np.random.default_rng(0))
    assert batch.lengths_B.tolist() == [1]
    assert batch.feature_T.tolist() == [V] + [-1] * 7
    assert (batch.masked.target_BQ == 0).all()


def test_whole_can_be_left_out():
    assert collator(tokens_of(), whole=False)([1], rng=np.random.default_rng(0)).whole is None


def test_a_batch_of_64_cells_takes_milliseconds():
    tokens = tokens_of(n=64, n_features=2000, most=300)
    make = collator(tokens, n_queries=64)
    rng = np.random.default_rng(0)
    make(np.arange(64), rng=rng)
    seconds = []
    for _ in range(30):
        begin = time.process_time()
        make(np.arange(64), rng=rng)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.01  # 1.5 ms when measured: far below a training step


@given(
    rows=ROWS, seed=st.integers(0, 99), n_queries=st.sampled_from([2, 8, 64]), blank=st.sampled_from([0.0, 0.0, 0.9])
)
@settings(deadline=None, max_examples=30)
def test_rates_are_the_shares_of_zeros_and_of_others_that_are_asked(rows, seed, n_queries, blank):
    tokens = tokens_of(zeros="drop")
    batch = collator(tokens, zeros="drop", n_queries=n_queries, blank=blank)(rows, rng=np.random.default_rng(seed))
    for questions in (batch.masked, batch.whole):
        for b, i in enumerate(rows):
            truth = {f for f, v in cell(tokens, i).items() if v}
            zero = measured(tokens, i) - truth
            asked = {int(q) for q in questions.query_BQ[b] if q >= 0}
            for column, features in enumerate((zero, truth)):
                n = len(asked & features)
                expected = n / len(features) if n else 1
                assert abs(questions.rate_B2[b, column].item() - expected) < 1e-6


# --- what a batch says that it shows -----------------------------------------------------------------------------------

LABELS = np.arange(40) % 4 - 1  # -1: unlabelled


def hidden_of(batch, b):
    return batch.hidden_feature_H[batch.hidden_cell_H == b].tolist()


def shown_zeros_and_others(batch, b):
    """Features that a batch says are known in a cell."""
    return set(torch.nonzero(batch.measured_PV[batch.pattern_B[b]])[:, 0].tolist()) - set(hidden_of(batch, b))


@settings(deadline=None, max_examples=80)
@given(
    rows=ROWS,
    layout=LAYOUT,
    seed=st.integers(0, 99),
    n_queries=st.sampled_from([1, 8, 64]),
    blank=st.sampled_from([0.0, 0.5]),
)
def test_what_is_hidden_is_all_that_is_not_shown(rows, layout, seed, n_queries, blank):
    """Hidden: tokens that are not in the context, asked or not, and zeros that are asked. Known: all else that was measured."""
    tokens = tokens_of()
    batch = collator(tokens, layout=layout, n_queries=n_queries, blank=blank)(rows, rng=np.random.default_rng(seed))
    assert batch.measured_PV.shape[0] == len(set(tokens.pattern[rows]))
    for b, (i, (features, _, _)) in enumerate(zip(rows, contexts(batch), strict=True)):
        truth = cell(tokens, i)
        asked = {int(q) for q in batch.masked.query_BQ[b] if q >= 0}
        gone = (set(truth) - set(features)) | (asked - set(truth))
        hidden = hidden_of(batch, b)
        assert sorted(hidden) == sorted(gone)  # each of them once
        assert asked <= set(hidden)
        assert shown_zeros_and_others(batch, b) == measured(tokens, i) - gone
        assert set(features) <= shown_zeros_and_others(batch, b)


@settings(deadline=None, max_examples=20)
@given(rows=ROWS)
def test_inference_hides_nothing(rows):
    tokens = tokens_of()
    batch = collator(tokens, blank=0.9)(rows, labels=LABELS)
    assert len(batch.hidden_feature_H) == len(batch.hidden_cell_H) == 0
    assert batch.blank_B is None
    assert batch.intervention is None
    for b, i in enumerate(rows):
        assert shown_zeros_and_others(batch, b) == measured(tokens, i)


def test_where_zeros_are_tokens_nothing_more_is_said():
    batch = collator(tokens_of(zeros="keep"), zeros="keep")(np.arange(9), rng=np.random.default_rng(0))
    assert batch.measured_PV is None
    assert batch.pattern_B is None
    assert batch.hidden_feature_H is None


# --- blank cells -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, layout=LAYOUT, zeros=ZEROS, seed=st.integers(0, 99), n_queries=st.sampled_from([2, 8, 64]))
def test_of_blank_cells_nothing_is_shown_and_only_true_things_are_asked(rows, layout, zeros, seed, n_queries):
    tokens = tokens_of(zeros=zeros)
    make = collator(tokens, layout=layout, zeros=zeros, n_queries=n_queries, blank=0.5)
    batch = make(rows, rng=np.random.default_rng(seed), labels=LABELS)
    for b, (i, (features, _, _)) in enumerate(zip(rows, contexts(batch), strict=True)):
        truth = cell(tokens, i)
        query, target = batch.masked.query_BQ[b].tolist(), batch.masked.target_BQ[b].tolist()
        asked = {q: t for q, t in zip(query, target, strict=True) if q >= 0}
        assert asked == {q: truth.get(q, 0) for q in asked}
        if batch.blank_B[b]:
            assert features == []
            assert batch.lengths_B[b] == 1
            assert batch.label_B[b] == IGNORE
            assert (batch.whole.target_BQ[b] == IGNORE).all()
            assert set(asked) <= measured(tokens, i)
            assert len(asked) == min(n_queries, V, len(measured(tokens, i)))
        else:
            assert len(features) > 0 or len(truth) == 0
            assert batch.label_B[b] == (LABELS[i] if LABELS[i] >= 0 else IGNORE)
            real = batch.whole.query_BQ[b] >= 0
            assert batch.whole.target_BQ[b][real].tolist() == [
                truth.get(int(q), 0) for q in batch.whole.query_BQ[b][real]
            ]


def test_as_many_are_blank_as_was_asked_for():
    make = collator(tokens_of(), blank=0.3)
    rng = np.random.default_rng(0)
    share = np.mean([make(np.arange(40), rng=rng).blank_B.double().mean() for _ in range(50)])
    assert abs(share - 0.3) < 0.04
    assert collator(tokens_of())(np.arange(40), rng=rng).blank_B is None


# --- a context without some features -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, layout=LAYOUT, zeros=ZEROS, hidden=st.sets(st.integers(0, V - 1)))
def test_a_context_is_the_cell_without_some_features(rows, layout, zeros, hidden):
    tokens = tokens_of(zeros=zeros)
    hidden_V = np.isin(np.arange(V), list(hidden))
    batch = collator(tokens, layout=layout, zeros=zeros).context(rows, hidden_V)
    assert batch.masked is None
    assert batch.whole is None
    assert batch.label_B is None
    assert batch.row_B.tolist() == tokens.rows[rows].tolist()
    for b, (i, (features, bins, position)) in enumerate(zip(rows, contexts(batch), strict=True)):
        kept = {f: v for f, v in cell(tokens, i).items() if f not in hidden}
        assert list(zip(features, bins, strict=True)) == list(kept.items())
        assert position is None
        if zeros == "drop":
            assert batch.hidden_feature_H is None
            known = torch.nonzero(batch.measured_PV[batch.pattern_B[b]])[:, 0].tolist()
            assert set(known) == measured(tokens, i) - hidden
        else:
            assert batch.measured_PV is None


def test_a_context_that_hides_nothing_is_the_inference_batch():
    make = collator(tokens_of(), layout="padded")
    rows = [4, 1, 0, 7]
    one, two = make(rows), make.context(rows, np.zeros(V, bool))
    for name in ("feature_T", "bin_T", "lengths_B", "measured_PV", "pattern_B"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.pad_length == two.pad_length


def test_tokens_of_a_context_come_in_the_order_of_inference():
    """With learned positions the order is part of the input; what is left keeps its order, and places have no gaps."""
    make = collator(tokens_of(), shuffle_positions=True, seed=3)
    hidden_V = np.arange(V) % 3 == 0
    rows = [1, 5, 9, 0, 6]
    shuffled = 0
    for whole, part in zip(contexts(make(rows)), contexts(make.context(rows, hidden_V)), strict=True):
        left = [(f, v) for f, v in zip(whole[0], whole[1], strict=True) if f % 3]
        assert list(zip(part[0], part[1], strict=True)) == left
        assert part[2] == list(range(1, len(left) + 1))
        shuffled += part[0] != sorted(part[0])
    assert shuffled >= 2


# --- interventions -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, training=st.booleans(), zeros=ZEROS, blank=st.sampled_from([0.0, 0.5]))
def test_cells_carry_the_genes_that_are_set_in_them(rows, training, zeros, blank):
    rng = np.random.default_rng(0)
    assigned = Assigned(
        rng.integers(-1, V, (40, 2)), rng.integers(-1, 5, (40, 2)), rng.choice([-1.0, 0.0, 0.5], (40, 2)).astype("f4")
    )
    make = collator(tokens_of(zeros=zeros), zeros=zeros, assigned=assigned, blank=blank)
    given_ = make(rows, rng=np.random.default_rng(1) if training else None).intervention
    np.testing.assert_array_equal(given_.feature_BI, assigned.feature_NI[rows])
    np.testing.assert_array_equal(given_.target_BI, assigned.target_NI[rows])
    np.testing.assert_array_equal(given_.dose_BI, assigned.dose_NI[rows])
    assert given_.dose_BI.dtype == torch.float32
    assert not given_.before  # these cells were read after it


# --- batches -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, zeros=ZEROS, seed=st.integers(0, 99))
def test_codes_of_batches_change_nothing_else(rows, zeros, seed):
    codes = np.arange(40) % 5 - 1  # -1: unknown
    expected = np.where(codes[rows] < 0, IGNORE, codes[rows])
    plain, told = (collator(tokens_of(zeros=zeros), zeros=zeros, batches=given_) for given_ in (None, codes))
    for rng in (None, np.random.default_rng(seed)):
        one = plain(rows, rng=None if rng is None else np.random.default_rng(seed))
        two = told(rows, rng=rng)
        assert one.batch_B is None
        if rng is None:
            assert two.batch_B.tolist() == expected.tolist()
        else:
            assert all(code in (IGNORE, truth) for code, truth in zip(two.batch_B.tolist(), expected, strict=True))
        assert contexts(one) == contexts(two)
        if rng is not None:
            for part in ("masked", "whole"):
                for field in dataclasses.fields(one.masked):
                    first, second = (getattr(getattr(x, part), field.name) for x in (one, two))
                    assert first is second or torch.equal(first, second), field.name
    assert told.context(rows, np.zeros(V, bool)).batch_B.tolist() == expected.tolist()


def test_the_batch_of_a_tenth_of_training_cells_is_withheld():
    make = collator(tokens_of(), batches=np.zeros(40, np.int64))
    rng = np.random.default_rng(0)
    share = np.mean([(make(np.arange(40), rng=rng).batch_B == IGNORE).double().mean() for _ in range(100)])
    assert abs(share - 0.1) < 0.015
