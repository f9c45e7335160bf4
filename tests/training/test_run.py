"""Which cells train, and what is learned from them alone."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import cellxpert as cx
from cellxpert.data.cells import Cells
from cellxpert.data.setup import read_setup
from cellxpert.errors import CellxPertWarning, ConfigError, SplitError
from cellxpert.training.run import TrainArguments, split_cells

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
    split = split_cells(cells, labels, TrainArguments(train_size=0.8), seed=1)
    share = (split == "train").groupby(labels.to_numpy()).mean()
    assert share.between(0.7, 0.9).all()
    assert split.equals(split_cells(cells, labels, TrainArguments(train_size=0.8), seed=1))
    assert not split.equals(split_cells(cells, labels, TrainArguments(train_size=0.8), seed=2))


def test_all_cells_train_at_size_one(cells: Cells) -> None:
    assert (split_cells(cells, cells.labels(), TrainArguments(train_size=1.0), seed=0) == "train").all()


def test_donors_stay_whole(cells: Cells) -> None:
    split = split_cells(cells, None, TrainArguments(train_size=0.7, split_key="donor"), seed=0)
    assert split.groupby(cells.obs("donor").to_numpy()).nunique().eq(1).all()
    assert set(split) == {"train", "validation"}


def test_a_given_split_is_followed(cells: Cells) -> None:
    split = split_cells(cells, None, TrainArguments(split_key="part"), seed=0)
    assert split.str.slice(0, 3).tolist() == cells.obs("part").astype(str).str.slice(0, 3).tolist()


@pytest.mark.parametrize("names", [["val", "test"], ["Validation", " TESTING"], ["valid"]])
def test_parts_without_training_cells_are_no_donors(cells: Cells, names: list[str]) -> None:
    adata = cells.adata("rna")
    adata.obs["half"] = pd.Categorical(np.resize(names, adata.n_obs))
    with pytest.raises(SplitError, match=r"obs\['half'\]: only [\s\S]*training cells 'train'"):
        split_cells(cells, None, TrainArguments(split_key="half"), seed=0)


def test_no_donor_can_be_held_out_at_size_one(cells: Cells) -> None:
    with pytest.raises(SplitError, match="train_size"):
        split_cells(cells, None, TrainArguments(train_size=1, split_key="donor"), seed=0)


@pytest.mark.parametrize("size", [0, -0.5, 1.5])
def test_impossible_sizes(cells: Cells, size: float) -> None:
    with pytest.raises((ConfigError, SplitError)):
        split_cells(cells, None, TrainArguments(train_size=size), seed=0)


def test_features_bins_and_labels_come_from_training_cells_only(cells: Cells) -> None:
    """Held-out cells may hold anything: what is learned does not change."""
    adata = cells.adata("rna")
    adata.obs["split"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 3 == 0, "test", "train"))
    learned = []
    for change in (False, True):
        data = adata.copy()
        if change:
            counts = data.X.toarray()
            counts[::3] = np.random.default_rng(1).poisson(5, counts[::3].shape)
            data.X = counts
            label = data.obs[LABELS].astype(str).to_numpy(dtype=object)
            label[::3] = "made up"
            data.obs[LABELS] = pd.Categorical(label.astype(str))
        cx.CellxPert.setup_anndata(data, labels_key=LABELS)
        model = cx.CellxPert(data, config=cx.config.preset("nano").replace(n_genes=100, n_queries=8))
        told = pytest.warns(CellxPertWarning, match=r"'made up' \(\d+ cells\)") if change else nullcontext()
        with told:
            model.train(max_epochs=1, split_key="split", progress_bar=False)
        learned.append(model)
    assert learned[0]._state.vocabulary.hash() == learned[1]._state.vocabulary.hash()
    assert learned[0].labels == learned[1].labels
    first, second = (m._state.network.state_dict() for m in learned)
    assert all(first[k].equal(second[k]) for k in first)


def test_labels_that_no_training_cell_has_are_told(pbmc: MuData) -> None:
    adata = pbmc["rna"][pbmc["rna"].obs[LABELS].isin(["Dendritic", "CD19+ B", "CD56+ NK"]).to_numpy()][::4].copy()
    label = adata.obs[LABELS].astype(str)
    first = np.flatnonzero(label == "CD19+ B")[:2]
    adata.obs["part"] = np.where(label == "CD56+ NK", "val", "train")
    adata.obs.iloc[first, adata.obs.columns.get_loc("part")] = "test"
    cx.CellxPert.setup_anndata(adata, labels_key=LABELS)
    model = cx.CellxPert(adata, config=cx.config.preset("nano").replace(n_genes=50, n_queries=8))
    n = int((label == "CD56+ NK").sum())
    with pytest.warns(CellxPertWarning, match=rf"no training cell has the labels 'CD56\+ NK' \({n} cells\):") as record:
        model.train(max_epochs=1, split_key="part", progress_bar=False)
    assert record[0].filename == __file__
    assert model.labels == ("CD19+ B", "Dendritic")
    model.train(max_epochs=1, progress_bar=False)  # known by now


@pytest.mark.parametrize(("n_train", "epochs"), [(10, 30), (640, 30), (3200, 6), (10**6, 3)])
def test_epochs_follow_from_the_number_of_cells(n_train: int, epochs: int) -> None:
    config = cx.config.TrainingConfig(n_steps=600, batch_size=32, max_epochs=30)
    assert TrainArguments().settings(config, n_train=n_train).max_epochs == epochs
    assert TrainArguments(max_epochs=7, batch_size=5).settings(config, n_train=n_train).max_epochs == 7


def test_training_again_goes_on(cells: Cells) -> None:
    adata = cells.adata("rna")
    model = cx.CellxPert(adata, config=cx.config.preset("nano").replace(n_genes=60, n_queries=8))
    model.train(max_epochs=1, progress_bar=False)
    vocabulary, split = model._state.vocabulary, model._learned.split
    model.train(max_epochs=2, progress_bar=False)
    assert model._state.vocabulary is vocabulary
    assert model._learned.split is split
    assert model.history["train_loss"].index.tolist() == [0, 1, 2]
