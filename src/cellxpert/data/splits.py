"""Training and held-out cells: at random, by label, by group (donor), or as a column says.

Every function returns sorted int64 positions. The same generator state gives the same split.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.errors import SplitError

__all__ = [
    "PARTS",
    "TrainedOn",
    "column_split",
    "folds_of",
    "group_split",
    "names_parts",
    "random_split",
    "stratified_split",
]

PARTS = ("train", "validation", "test")
"""Parts that a split column may name."""
_ALIASES = {
    **{part: part for part in PARTS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "holdout": "test",
    "held_out": "test",
    "heldout": "test",
    "testing": "test",
}
Split = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """Which cells of an object a model was trained on, so that the object is known again; names of cells are not kept."""

    cells: str
    """Hash of the names of all cells of the object."""
    train_N: npt.NDArray[np.bool_]
    """Whether each was trained on, in the order of their names."""

    @classmethod
    def of(cls, split: pd.Series) -> TrainedOn:
        """Read it off a split, whose index are the names of the cells."""
        split = split.set_axis(split.index.astype(str)).sort_index()
        return cls(_hash(split.index), (split == "train").to_numpy())

    def known(self, names: pd.Index) -> npt.NDArray[np.bool_] | None:
        """Say which cells were trained on, if these are the object's, in any order; None if they are others."""
        place = np.argsort(names.astype(str), kind="stable")
        if len(names) != len(self.train_N) or _hash(names.astype(str)[place]) != self.cells:
            return None
        known_N = np.empty(len(names), bool)
        known_N[place] = self.train_N
        return known_N

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        packed = base64.b64encode(np.packbits(self.train_N).tobytes()).decode()
        return {"cells": self.cells, "n_cells": len(self.train_N), "train": packed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainedOn:
        """Rebuild from :meth:`to_dict`; ``KeyError``, ``TypeError`` or ``ValueError`` if something is missing or does not fit."""
        bits = np.frombuffer(base64.b64decode(values["train"], validate=True), np.uint8)
        n_cells = int(values["n_cells"])
        if len(bits) != -(-n_cells // 8):
            raise ValueError(f"{len(bits)} bytes for {n_cells} cells")
        return cls(str(values["cells"]), np.unpackbits(bits, count=n_cells).astype(bool))


def _hash(names: pd.Index) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def _n_held_out(n: int, held_out: float) -> int:
    """Number of cells to hold out: rounded up, as scikit-learn does, and at least one on each side."""
    if not 0 < held_out < 1:
        raise SplitError("held_out", found=repr(held_out), fix="give a share between 0 and 1")
    if n < 2:
        raise SplitError("cells", found=f"{n} to split", fix="give at least two")
    return int(np.clip(np.ceil(round(held_out * n, 9)), 1, n - 1))


def random_split(n: int, *, held_out: float, rng: np.random.Generator) -> Split:
    """Split n cells at random.

    Parameters
    ----------
    n
        Number of cells.
    held_out
        Share held out; the number is rounded up.
    rng
        Source of randomness.

    Returns
    -------
    Training positions, held-out positions.

    Raises
    ------
    SplitError
        If the share is not between 0 and 1, or there are fewer than two cells.
    """
    order = rng.permutation(n)
    k = _n_held_out(n, held_out)
    return np.sort(order[k:]), np.sort(order[:k])


def stratified_split(labels: Sequence[object] | npt.ArrayLike, *, held_out: float, rng: np.random.Generator) -> Split:
    """Split cells so that every label has the same share held out, as nearly as whole cells allow.

    A label with two cells or more is on both sides, a label with one cell is in the training part; missing labels are a
    class of their own.

    Parameters
    ----------
    labels
        One per cell.
    held_out
        Share held out; the total number is rounded up, unless small classes forbid it.
    rng
        Source of randomness.

    Returns
    -------
    Training positions, held-out positions.

    Raises
    ------
    SplitError
        As :func:`random_split`, and if every label has one cell only.
    """
    codes, _ = pd.factorize(pd.Series(labels), sort=True, use_na_sentinel=False)
    size = np.bincount(codes)
    low, high = np.where(size > 1, 1, 0), np.maximum(size - 1, 0)
    if not high.any():
        raise SplitError("labels", found=f"{len(size)} labels of one cell each", fix="merge labels, or split at random")
    total = int(np.clip(_n_held_out(len(codes), held_out), low.sum(), high.sum()))
    share = size * held_out
    take = np.clip(np.floor(share).astype(np.int64), low, high)
    tie = rng.permutation(len(size))
    while (missing := total - int(take.sum())) != 0:
        # the class furthest from its share gives or gets a cell; ties at random
        step = 1 if missing > 0 else -1
        able = (take < high) if step > 0 else (take > low)
        short = np.where(able, step * (share - take), -np.inf)
        take[np.lexsort((tie, -short))[0]] += step
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(size) - size, size)
    out = rank < np.repeat(take, size)
    return np.sort(order[~out]), np.sort(order[out])


def group_split(groups: Sequence[object] | npt.ArrayLike, *, held_out: float, rng: np.random.Generator) -> Split:
    """Split cells so that no group (donor, section, ...) is on both sides.

    Groups are visited in random order and held out while that brings the share of cells closer to the one asked for.

    Parameters
    ----------
    groups
        One per cell.
    held_out
        Share of cells to hold out, met as closely as whole groups allow.
    rng
        Source of randomness.

    Returns
    -------
    Training positions, held-out positions.

    Raises
    ------
    SplitError
        As :func:`random_split`, and if there are fewer than two groups or a cell has none.
    """
    codes, names = pd.factorize(pd.Series(groups), sort=True)
    aim = _n_held_out(len(codes), held_out)
    if (codes < 0).any():
        raise SplitError(
            "groups", found=f"{int((codes < 0).sum())} cells without a group", fix="give every cell a group"
        )
    if len(names) < 2:
        raise SplitError("groups", found=f"one group, {names[0]!r}", fix="split at random or by label")
    size = np.bincount(codes)
    order = rng.permutation(len(names))
    out: list[int] = []
    n = 0
    for group in order:
        if abs(n + size[group] - aim) < abs(n - aim) and len(out) < len(names) - 1:
            out.append(int(group))
            n += int(size[group])
    if not out:  # every group is larger than twice what was asked for
        out = [int(order[np.argmin(size[order])])]
    held = np.isin(codes, out)
    return np.flatnonzero(~held), np.flatnonzero(held)


def folds_of(
    codes: npt.NDArray[np.int64], *, n_folds: int, seed: int, groups: npt.ArrayLike | None = None
) -> npt.NDArray[np.int64]:
    """Give every cell a fold: the cells of each class evenly, or whole groups where there are enough.

    Parameters
    ----------
    codes
        Class of each cell, as small integers.
    n_folds
        Number of folds.
    seed
        Seed of the order of cells and groups.
    groups
        One per cell (batches, donors). With fewer than ``n_folds`` of them, cells are dealt out by class.

    Returns
    -------
    The fold of each cell, from 0.
    """
    rng = np.random.default_rng([seed, 3])
    fold_N = np.zeros(len(codes), np.int64)
    group_N, names = (None, ()) if groups is None else pd.factorize(pd.Series(groups), sort=True)
    if group_N is not None and len(names) >= n_folds:
        size, filled = np.bincount(group_N), np.zeros(n_folds)
        for group in np.lexsort((rng.permutation(len(names)), -size)):  # the largest first, into the emptiest fold
            fold = int(np.argmin(filled))
            fold_N[group_N == group] = fold
            filled[fold] += size[group]
        return fold_N
    at = 0  # goes on from class to class, so that small classes do not all fall into the first folds
    for code in np.unique(codes):
        members = rng.permutation(np.flatnonzero(codes == code))
        fold_N[members] = (at + np.arange(len(members))) % n_folds
        at += len(members)
    return fold_N


def names_parts(values: pd.Series) -> bool:
    """Whether a column names parts of a split rather than groups: one value is "train", or all are names of parts."""
    names = set(_plain(values.dropna()))
    return any(_ALIASES.get(name) == "train" for name in names) or names <= _ALIASES.keys()


def _plain(values: pd.Series) -> pd.Series:
    return values.astype(str).str.strip().str.lower()


def column_split(values: Sequence[object] | npt.ArrayLike, *, where: str) -> dict[str, npt.NDArray[np.int64]]:
    """Read a split that a column gives: "train", "validation"/"val" or "test"/"holdout" for every cell.

    Parameters
    ----------
    values
        One per cell; upper and lower case do not matter.
    where
        Name of the column, for messages.

    Returns
    -------
    Positions of each of :data:`PARTS`, empty where the column does not use it.

    Raises
    ------
    SplitError
        If a value is missing or unknown, or if there is no training cell or nothing held out.
    """
    column = pd.Series(values).astype(object)
    fix = f"use {', '.join(map(repr, PARTS))}"
    if column.isna().any():
        raise SplitError(where, found=f"{int(column.isna().sum())} cells without a value", fix=fix)
    parts = _plain(column).map(_ALIASES)
    if parts.isna().any():
        raise SplitError(where, found=f"unknown values {sorted(set(column[parts.isna()].astype(str)))[:5]}", fix=fix)
    found = {part: np.flatnonzero((parts == part).to_numpy()) for part in PARTS}
    if not len(found["train"]) or len(found["train"]) == len(parts):
        lacking = "some other cells 'validation'" if len(found["train"]) else "the training cells 'train'"
        raise SplitError(where, found=f"only {sorted(set(column.astype(str)))}", fix=f"call {lacking}")
    return found
