"""What is held out when perturbations are predicted: conditions, replicates, cell types, and always half of the control cells.

The truth's effect and the predicted one are differences to different control cells. With the same ones their noise would
correlate with itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import anndata
import numpy as np

__all__ = [
    "CONTROL",
    "Fold",
    "Held",
    "held_out_half",
    "held_out_replicate",
    "leave_pairs_out",
    "leave_targets_out",
    "leave_types_out",
]

CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class Held:
    """A condition that is asked for. All fields but the name are rows of the object.

    Parameters
    ----------
    truth
        Its cells, which no method sees.
    truth_control
        Control cells that no method sees: what the truth's effect is a difference to.
    base
        Control cells of the training set: what a predicted profile is a difference to.
    level
        Control cells to whose mean predictions are moved (another batch); None: ``base``, and nothing is moved.
    """

    condition: str
    truth: np.ndarray
    truth_control: np.ndarray
    base: np.ndarray
    level: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Rows that a method is fitted on, and what it is asked for then."""

    train: np.ndarray
    held: tuple[Held, ...]


def _halves(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shuffled = rng.permutation(rows)
    return np.sort(shuffled[: len(rows) // 2]), np.sort(shuffled[len(rows) // 2 :])


def _rows(adata: anndata.AnnData) -> dict[str, np.ndarray]:
    labels = adata.obs["condition"].to_numpy()
    return {condition: np.flatnonzero(labels == condition) for condition in sorted(set(labels))}


def leave_targets_out(adata: anndata.AnnData, rng: np.random.Generator, *, n_folds: int) -> list[Fold]:
    """Single targets in folds; half of the control cells belong to the truth."""
    rows = _rows(adata)
    base, truth_control = _halves(rows.pop(CONTROL), rng)
    singles = [condition for condition in rows if "+" not in condition]
    folds = []
    for asked in np.array_split(rng.permutation(singles), n_folds):
        train = np.concatenate([base, *[rows[condition] for condition in singles if condition not in asked]])
        held = [
            Held(condition=str(condition), truth=rows[condition], truth_control=truth_control, base=base)
            for condition in asked
        ]
        folds.append(Fold(train=train, held=tuple(held)))
    return folds


def leave_pairs_out(adata: anndata.AnnData, rng: np.random.Generator, *, n_folds: int | None = None) -> list[Fold]:
    """Pairs in folds (each in its own if None); the single targets and all other pairs can be learnt from."""
    rows = _rows(adata)
    base, truth_control = _halves(rows.pop(CONTROL), rng)
    folds = []
    pairs = [condition for condition in rows if "+" in condition]
    for asked in np.array_split(pairs, len(pairs) if n_folds is None else n_folds):
        train = np.concatenate([base, *[cells for condition, cells in rows.items() if condition not in asked]])
        held = [Held(condition=str(pair), truth=rows[pair], truth_control=truth_control, base=base) for pair in asked]
        folds.append(Fold(train=train, held=tuple(held)))
    return folds


def held_out_replicate(adata: anndata.AnnData, rng: np.random.Generator, *, replicate: str) -> list[Fold]:
    """Every condition is learnt from the other replicates.

    Replicates differ in level: half of the control cells of the one held out say by how much, the other half are the truth's.
    """
    rows, out = _rows(adata), np.flatnonzero(adata.obs["replicate"].to_numpy() == replicate)
    level, truth_control = _halves(np.intersect1d(rows[CONTROL], out), rng)
    base = np.setdiff1d(rows.pop(CONTROL), out)
    held = [
        Held(condition=condition, truth=np.intersect1d(cells, out), truth_control=truth_control, base=base, level=level)
        for condition, cells in rows.items()
        if "+" not in condition
    ]
    train = np.concatenate([base, *[np.setdiff1d(rows[one.condition], out) for one in held]])
    return [Fold(train=train, held=tuple(held))]


def held_out_half(adata: anndata.AnnData, rng: np.random.Generator) -> list[Fold]:
    """Single targets are learnt from half of their cells."""
    rows = _rows(adata)
    base, truth_control = _halves(rows.pop(CONTROL), rng)
    train, held = [base], []
    for condition, cells in rows.items():
        if "+" in condition:
            continue
        seen, truth = _halves(cells, rng)
        train.append(seen)
        held.append(Held(condition=condition, truth=truth, truth_control=truth_control, base=base))
    return [Fold(train=np.concatenate(train), held=tuple(held))]


def leave_types_out(adata: anndata.AnnData, rng: np.random.Generator) -> list[Fold]:
    """One cell type at a time: of it, methods see half of the control cells."""
    rows, types = _rows(adata), adata.obs["cell_type"].to_numpy()
    control = rows.pop(CONTROL)
    folds = []
    for cell_type in rows:
        base, truth_control = _halves(control[types[control] == cell_type], rng)
        others = [cells for name, cells in rows.items() if name != cell_type]
        train = np.concatenate([base, control[types[control] != cell_type], *others])
        held = Held(condition=cell_type, truth=rows[cell_type], truth_control=truth_control, base=base)
        folds.append(Fold(train=train, held=(held,)))
    return folds
