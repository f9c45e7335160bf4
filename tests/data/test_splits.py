"""Splits: every cell once, nobody on both sides, shares as asked."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.splits import (
    PARTS,
    TrainedOn,
    column_split,
    folds_of,
    group_split,
    names_parts,
    random_split,
    stratified_split,
)
from cellxpert.errors import SplitError


def rng(seed=0):
    return np.random.default_rng(seed)


def check_partition(train, held, n):
    assert sorted([*train, *held]) == list(range(n))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert len(train) > 0
    assert len(held) > 0
    assert train.dtype == held.dtype == np.int64


@settings(deadline=None)
@given(n=st.integers(2, 200), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_random(n, share, seed):
    train, held = random_split(n, held_out=share, rng=rng(seed))
    check_partition(train, held, n)
    assert abs(len(held) - share * n) <= 1
    np.testing.assert_array_equal(held, random_split(n, held_out=share, rng=rng(seed))[1])


def test_sizes_are_those_of_scikit_learn():
    from sklearn.model_selection import train_test_split

    for n in range(5, 120):
        for share in (0.1, 0.2, 0.25, 0.3):
            assert len(random_split(n, held_out=share, rng=rng())[1]) == len(
                train_test_split(range(n), test_size=share)[1]
            )


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), share=st.floats(0.02, 0.9), seed=st.integers(0, 5))
def test_stratified(sizes, share, seed):
    labels = rng(1).permutation(np.repeat([f"type {i}" for i in range(len(sizes))], sizes))
    if max(sizes) == 1:
        with pytest.raises(SplitError):
            stratified_split(labels, held_out=share, rng=rng(seed))
        return
    train, held = stratified_split(labels, held_out=share, rng=rng(seed))
    check_partition(train, held, len(labels))
    total, out = Counter(labels), Counter(labels[held])
    for label, n in total.items():
        assert out[label] == 0 if n == 1 else 1 <= out[label] <= n - 1
    aim = np.ceil(round(share * len(labels), 9))
    low, high = sum(n > 1 for n in sizes), sum(n - 1 for n in sizes)
    assert len(held) == np.clip(aim, low, high)


def test_stratified_agrees_with_scikit_learn():
    from sklearn.model_selection import train_test_split

    labels = np.repeat(["a", "b", "c", "d"], [400, 233, 57, 11])
    for seed in range(5):
        _, held = stratified_split(labels, held_out=0.2, rng=rng(seed))
        _, theirs = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
        ours, theirs = Counter(labels[held]), Counter(labels[theirs])
        assert ours.total() == theirs.total()
        assert all(abs(ours[k] - theirs[k]) <= 1 for k in theirs)


def test_stratified_treats_cells_of_a_class_alike_and_takes_missing_labels():
    labels = pd.Series(["a"] * 8 + [None] * 4 + ["b"], dtype="category")
    out = np.zeros(13)
    for seed in range(2000):
        _, held = stratified_split(labels, held_out=0.25, rng=rng(seed))
        out[held] += 1
    assert out[12] == 0
    for alike in (out[:8], out[8:12]):  # 4 of 13 are held out: 2 and 1, and one more of either class
        np.testing.assert_allclose(alike / 2000, alike.mean() / 2000, atol=0.04)
    np.testing.assert_allclose([out[:8].sum() / 2000, out[8:12].sum() / 2000], [2.5, 1.5], atol=0.05)


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=9), share=st.floats(0.02, 0.98), seed=st.integers(0, 5))
def test_groups_are_on_one_side(sizes, share, seed):
    groups = rng(2).permutation(np.repeat([f"donor {i}" for i in range(len(sizes))], sizes))
    train, held = group_split(groups, held_out=share, rng=rng(seed))
    check_partition(train, held, len(groups))
    assert not set(groups[train]) & set(groups[held])


def test_equal_groups_meet_the_share_and_all_are_drawn():
    groups = np.repeat(np.arange(10), 20)
    drawn = set()
    for seed in range(40):
        _, held = group_split(groups, held_out=0.2, rng=rng(seed))
        assert len(held) == 40
        drawn |= set(groups[held])
    assert drawn == set(range(10))


def test_groups_that_cannot_be_split():
    with pytest.raises(SplitError, match="one group"):
        group_split(["a"] * 5, held_out=0.2, rng=rng())
    with pytest.raises(SplitError, match="1 cells without"):
        group_split(["a", None, "b"], held_out=0.2, rng=rng())
    train, held = group_split(["a"] * 50 + ["b"] * 40, held_out=0.1, rng=rng())
    assert (len(train), len(held)) == (50, 40)  # both are far too large: the smaller one


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), n_folds=st.integers(2, 5), seed=st.integers(0, 5))
def test_folds_have_the_cells_of_each_class_evenly(sizes, n_folds, seed):
    codes = rng(seed).permutation(np.repeat(3 * np.arange(len(sizes)), sizes))
    folds = folds_of(codes, n_folds=n_folds, seed=seed)
    assert folds.dtype == np.int64
    for kind in (codes == code for code in np.unique(codes)):
        counts = np.bincount(folds[kind], minlength=n_folds)
        assert len(counts) == n_folds
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(folds, minlength=n_folds)  # small classes do not all go to the first
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(folds, folds_of(codes, n_folds=n_folds, seed=seed))


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9), n_folds=st.integers(2, 5), seed=st.integers(0, 5))
def test_folds_of_whole_groups_where_there_are_enough(sizes, n_folds, seed):
    groups = rng(seed).permutation(np.repeat([f"batch {i}" for i in range(len(sizes))], sizes))
    codes = rng(seed + 1).integers(0, 3, len(groups))
    folds = folds_of(codes, groups=groups, n_folds=n_folds, seed=seed)
    if len(sizes) < n_folds:
        assert np.array_equal(folds, folds_of(codes, n_folds=n_folds, seed=seed))
        return
    assert set(folds) == set(range(n_folds))
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    filled = np.bincount(folds)
    # the last group of the fullest fold went where there were fewest cells
    smallest = min(np.sum(groups == group) for group in set(groups[folds == filled.argmax()]))
    assert filled.max() - smallest <= filled.min()
    # classes do not matter
    assert np.array_equal(folds, folds_of(np.zeros_like(codes), groups=groups, n_folds=n_folds, seed=seed))


def test_folds_are_drawn():
    codes, groups = np.repeat([0, 1], 30), np.tile(np.arange(6), 10)
    for said in (None, groups):
        drawn = {tuple(folds_of(codes, groups=said, n_folds=3, seed=seed)) for seed in range(5)}
        assert len(drawn) > 1


@pytest.mark.parametrize("share", [0, 1, -0.1, 2, float("nan")])
def test_shares_outside_0_1_are_refused(share):
    for split in (
        lambda: random_split(9, held_out=share, rng=rng()),
        lambda: stratified_split(list("aabb"), held_out=share, rng=rng()),
    ):
        with pytest.raises(SplitError, match="share between 0 and 1"):
            split()
    with pytest.raises(SplitError, match="at least two"):
        random_split(1, held_out=0.5, rng=rng())


def test_column():
    values = pd.Series(["train", "Test", "val", "train", "holdout", " validation "], dtype="category")
    parts = column_split(values, where="split")
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [0, 3], "validation": [2, 5], "test": [1, 4]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "other"], "unknown values.*other"),
        (["train", None], "1 cells without"),
        (["train", "train"], "only"),
        (["test", "test"], "only"),
        ([True, False], "unknown values"),
    ],
)
def test_columns_that_give_no_split(values, message):
    with pytest.raises(SplitError, match=message):
        column_split(values, where="obs['split']")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["val", "Test "], True),
        (["VALID", "testing"], True),
        (["train", "other"], True),
        ([" Training", None], True),
        (["test", None], True),
        (["test", "donor 1"], False),
        (["a", "b"], False),
        ([1, 2], False),
    ],
)
def test_names_of_parts_are_told_from_groups(values, expected):
    for dtype in (object, "category"):
        assert names_parts(pd.Series(values, dtype=dtype)) is expected


@pytest.mark.parametrize(
    ("values", "fix"), [(["val", "Test"], "training cells 'train'"), (["train"] * 2, "'validation'")]
)
def test_a_lacking_part_is_named(values, fix):
    with pytest.raises(SplitError, match=fix):
        column_split(values, where="obs['split']")


@given(st.lists(st.tuples(st.text(min_size=1, max_size=4), st.sampled_from(PARTS)), unique_by=lambda x: x[0]))
def test_an_object_is_known_again_in_any_order(cells):
    split = pd.Series(
        [part for _, part in cells], index=pd.Index([name for name, _ in cells], dtype=object), dtype=object
    )
    trained_on = TrainedOn.from_dict(json.loads(json.dumps(TrainedOn.of(split).to_dict())))
    turned = split.iloc[::-1]
    assert trained_on.known(turned.index).tolist() == [part == "train" for part in turned]
    assert trained_on.known(turned.index.append(pd.Index(["another one"]))) is None
    if len(split):
        assert trained_on.known(pd.Index(["another one", *split.index[1:]])) is None


def test_damaged_records_of_cells_are_refused():
    whole = TrainedOn.of(pd.Series(["train"] * 20, index=[f"c{i}" for i in range(20)])).to_dict()
    for wrong in ({"n_cells": 99}, {"train": "!"}, {"train": None}):
        with pytest.raises((TypeError, ValueError)):
            TrainedOn.from_dict(whole | wrong)
