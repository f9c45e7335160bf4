"""Which cells train, and which labels, batches and perturbations they can teach.

Shape suffix: N cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.batch import IGNORE
from cellxpert.config import ModelConfig
from cellxpert.data.cells import Cells
from cellxpert.data.perturbations import Perturbations
from cellxpert.data.splits import column_split, group_split, names_parts, random_split, stratified_split
from cellxpert.errors import ConfigError, ControlError, SplitError

__all__ = ["batch_codes", "batches_of", "classes_of", "perturbations_of", "split_cells", "unlearned", "unseen_batches"]

_MAX_SHOWN = 20


def split_cells(
    cells: Cells, labels: pd.Series | None, *, train_size: float, split_key: str | None, seed: int
) -> pd.Series:
    """Say for each cell whether it trains, validates, or is left alone: one of ``PARTS``."""
    rng = np.random.default_rng([seed, 1])
    split = pd.Series("train", index=cells.obs_names, dtype=object)
    held_out = 1 - train_size
    if not 0 < train_size <= 1:
        raise ConfigError("train(train_size=)", found=repr(train_size), fix="give a share in (0, 1]")
    if split_key is not None:
        values = cells.obs(split_key)
        if names_parts(values):
            parts = column_split(values, where=f"obs[{split_key!r}]")
            for part, positions in parts.items():
                split.iloc[positions] = part
            return split
        if held_out == 0:
            found = f"1, and split_key={split_key!r} names groups to hold out"
            raise SplitError("train(train_size=)", found=found, fix="give train_size=0.9, or no split_key")
        held = group_split(values, held_out=held_out, rng=rng)[1]
    elif held_out == 0:
        return split
    elif labels is not None:
        held = stratified_split(labels, held_out=held_out, rng=rng)[1]
    else:
        held = random_split(cells.n_cells, held_out=held_out, rng=rng)[1]
    split.iloc[held] = "validation"
    return split


def classes_of(labels: pd.Series | None, train_rows: npt.NDArray[np.int64], unlabeled_category: str) -> tuple[str, ...]:
    """Labels that occur among the training cells, sorted."""
    if labels is None:
        return ()
    return tuple(sorted(set(labels.iloc[train_rows]) - {unlabeled_category}))


def batches_of(cells: Cells, train_rows: npt.NDArray[np.int64], *, before: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Batches that a decoder can be told of: those before, then the training cells' others, sorted; none if only one is left."""
    batches = cells.batches()
    if batches is None:
        return before
    names = (*before, *sorted(set(batches.iloc[train_rows]) - {*before}))
    return names if len(names) > 1 else ()


def perturbations_of(cells: Cells, train_rows: npt.NDArray[np.int64], config: ModelConfig) -> Perturbations | None:
    """Conditions of the training cells, if the setup names a column and some are perturbed."""
    conditions, setup = cells.conditions(), cells.setup
    if conditions is None:
        return None
    seen = conditions.iloc[train_rows]
    if not (seen == setup.control_category).any():
        raise ControlError(
            f"obs[{setup.perturbation_key!r}]",
            found=f"no training cell is {setup.control_category!r}",
            fix="leave control cells among the training cells",
        )
    if (seen == setup.control_category).all():
        return None
    if not config.network.n_factors:
        found = "0, and perturbed cells to learn from"
        raise ConfigError("NetworkConfig.n_factors", found=found, fix="pass config=preset(...).replace(n_factors=64)")
    return Perturbations.fit(list(seen), control=setup.control_category, kind=setup.perturbation_type)


def batch_codes(cells: Cells, names: tuple[str, ...]) -> npt.NDArray[np.int64] | None:
    """Code of each cell's batch among ``names``, ``IGNORE`` for another; None where no batches are named."""
    batches = cells.batches() if names else None
    if batches is None:
        return None
    code_N = pd.Index(names).get_indexer(pd.Index(batches))
    return np.where(code_N < 0, IGNORE, code_N)


def unseen_batches(cells: Cells, train_rows: npt.NDArray[np.int64]) -> str:
    """What to say of batches that no training cell is of; empty if there are none."""
    batches = cells.batches()
    if batches is None or not (unseen := sorted(set(batches) - set(batches.iloc[train_rows]))):
        return ""
    shown = ", ".join(repr(name) for name in unseen[:_MAX_SHOWN]) + (" and more" if len(unseen) > _MAX_SHOWN else "")
    return f'no training cell is of the batches {shown}: integrate() knows nothing of them, so call it with new_batches="fit" or "ignore"'


def unlearned(labels: pd.Series | None, classes: tuple[str, ...], unlabeled_category: str) -> str:
    """What to say of labels that no training cell has; empty if there are none."""
    if labels is None:
        return ""
    counts = labels[~labels.isin([*classes, unlabeled_category])].astype(str).value_counts().sort_index()
    if counts.empty:
        return ""
    shown = ", ".join(f"{label!r} ({n} cells)" for label, n in counts.head(_MAX_SHOWN).items())
    if len(counts) > _MAX_SHOWN:
        shown += f" and {len(counts) - _MAX_SHOWN} more"
    return f"no training cell has the labels {shown}: they are not learned, and not in the validation metrics of labels"
