"""Which cells train, and which validate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import cellxpert as cx
from cellxpert.batch import IGNORE
from cellxpert.data.cells import Cells
from cellxpert.data.setup import read_setup
from cellxpert.errors import ConfigError, SplitError
from cellxpert.training.split import batch_codes, batches_of, classes_of, split_cells, unlearned, unseen_batches

LABELS = "bulk_labels"


@pytest.fixture
def cells(pbmc: MuData) -> Cells:
    common = pbmc.obs[LABELS].value_counts().index[:8]
    adata = pbmc["rna"][pbmc["rna"].obs[LABELS].isin(common).to_numpy()].copy()
    rng = np.random.default_rng(0)
    adata.obs["donor"] = pd.Categorical(rng.choice([f"d{i}" for i in range(6)], adata.n_obs))
    adata.obs["part"] = pd.Categorical(rng.choice(["train", "val", "test"], adata.n_obs))
    cx.CellxPert.setup_anndata(adata, labels_key=LABELS)
    return Cells.open(adata, read_setup(adata))


def test_split_is_stratified_and_reproducible(cells: Cells) -> None:
    labels = cells.labels()
    split = split_cells(cells, labels, train_size=0.8, split_key=None, seed=1)
    share = (split == "train").groupby(labels.to_numpy()).mean()
    assert share.between(0.7, 0.9).all()
    assert split.equals(split_cells(cells, labels, train_size=0.8, split_key=None, seed=1))
    assert not split.equals(split_cells(cells, labels, train_size=0.8, split_key=None, seed=2))


def test_all_cells_train_at_size_one(cells: Cells) -> None:
    assert (split_cells(cells, cells.labels(), train_size=1.0, split_key=None, seed=0) == "train").all()


def test_donors_stay_whole(cells: Cells) -> None:
    split = split_cells(cells, None, train_size=0.7, split_key="donor", seed=0)
    assert split.groupby(cells.obs("donor").to_numpy()).nunique().eq(1).all()
    assert set(split) == {"train", "validation"}


def test_a_given_split_is_followed(cells: Cells) -> None:
    split = split_cells(cells, None, train_size=0.9, split_key="part", seed=0)
    assert split.str.slice(0, 3).tolist() == cells.obs("part").astype(str).str.slice(0, 3).tolist()


@pytest.mark.parametrize("names", [["val", "test"], ["Validation", " TESTING"], ["valid"]])
def test_parts_without_training_cells_are_no_donors(cells: Cells, names: list[str]) -> None:
    adata = cells.adata("rna")
    adata.obs["half"] = pd.Categorical(np.resize(names, adata.n_obs))
    with pytest.raises(SplitError, match=r"obs\['half'\]: only [\s\S]*training cells 'train'"):
        split_cells(cells, None, train_size=0.9, split_key="half", seed=0)


def test_no_donor_can_be_held_out_at_size_one(cells: Cells) -> None:
    with pytest.raises(SplitError, match="train_size"):
        split_cells(cells, None, train_size=1, split_key="donor", seed=0)


@pytest.mark.parametrize("size", [0, -0.5, 1.5])
def test_impossible_sizes(cells: Cells, size: float) -> None:
    with pytest.raises((ConfigError, SplitError)):
        split_cells(cells, None, train_size=size, split_key=None, seed=0)


def test_labels_that_training_cells_lack_are_told_by_name() -> None:
    labels = pd.Series(["B", "A", "C", "C", "Unknown"])
    classes = classes_of(labels, np.array([0, 1, 4]), "Unknown")
    assert classes == ("A", "B")
    assert "'C' (2 cells)" in unlearned(labels, classes, "Unknown")
    assert unlearned(labels, ("A", "B", "C"), "Unknown") == ""
    assert classes_of(None, np.array([0]), "Unknown") == ()


# --- batches -----------------------------------------------------------------------------------------------------------


def _with_batches(cells: Cells) -> Cells:
    adata = cells.adata("rna")
    cx.CellxPert.setup_anndata(adata, batch_key="donor")
    return Cells.open(adata, read_setup(adata))


def test_batches_are_those_of_the_training_cells(cells: Cells) -> None:
    donors = cells.obs("donor").astype(str).to_numpy()
    told = _with_batches(cells)
    some = np.flatnonzero(np.isin(donors, ["d4", "d1", "d3"]))
    assert batches_of(told, some) == ("d1", "d3", "d4")
    assert batches_of(told, some, before=("x", "d4")) == ("x", "d4", "d1", "d3")
    assert batches_of(told, np.flatnonzero(donors == "d2")) == ()
    assert batches_of(told, np.flatnonzero(donors == "d2"), before=("x", "y")) == ("x", "y", "d2")
    assert batches_of(cells, some) == ()
    assert batches_of(cells, some, before=("x", "y")) == ("x", "y")


def test_batches_that_training_cells_lack_are_told_by_name(cells: Cells) -> None:
    donors = cells.obs("donor").astype(str).to_numpy()
    told = _with_batches(cells)
    some = np.flatnonzero(~np.isin(donors, ["d4", "d1"]))
    assert "batches 'd1', 'd4': " in unseen_batches(told, some)
    assert not unseen_batches(told, np.arange(len(donors)))
    assert not unseen_batches(cells, some)


def test_codes_follow_the_names(cells: Cells) -> None:
    donors = cells.obs("donor").astype(str)
    told, names = _with_batches(cells), ("d5", "x", "d0")
    expected = [{"d5": 0, "d0": 2}.get(donor, IGNORE) for donor in donors]
    assert batch_codes(told, names).tolist() == expected
    assert batch_codes(told, ()) is None
    assert batch_codes(cells, names) is None
