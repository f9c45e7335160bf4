"""Which cells train, and what is learned from them alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

import cellxpert as cx
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.setup import read_setup
from cellxpert.errors import CellxPertWarning, ConfigError, ControlError
from cellxpert.training import run
from cellxpert.training.plan import TrainingPlan
from cellxpert.training.run import TrainArguments
from cellxpert.training.split import perturbations_of

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


# --- perturbed cells ---------------------------------------------------------------------------------------------------


def _weights(model: cx.CellxPert) -> dict[str, torch.Tensor]:
    return model._state.network.state_dict()


def test_a_model_of_perturbed_cells_knows_their_genes(screen: ad.AnnData, screen_config: cx.config.ModelConfig) -> None:
    model = cx.CellxPert(screen, config=screen_config)
    model.train(max_epochs=1, progress_bar=False)
    seen = model._state.perturbations
    assert seen.targets == ("g00", "g01", "g02", "g03", "outside")
    assert seen.conditions == ("g00", "g00+g01", "g01", "g02", "g02+ctrl", "g03", "outside")
    assert {"g00", "g01", "g02", "g03"} <= set(model._state.vocabulary.names)  # of 24, 12 are read
    assert model._state.vocabulary.n_features == 12
    tables = {name: w for name, w in _weights(model).items() if ".intervention." in name}
    assert tables["factors.intervention.code.weight"].shape[0] == 5
    assert all(w.isfinite().all() for w in tables.values())
    # cells without a condition teach nothing of it
    plain = screen.copy()
    cx.CellxPert.setup_anndata(plain)
    other = cx.CellxPert(plain, config=screen_config)
    other.train(max_epochs=1, progress_bar=False)
    assert other._state.perturbations is None
    assert not [name for name in _weights(other) if ".intervention." in name]


def test_genes_that_are_set_are_hidden_from_training_and_said_instead(
    screen: ad.AnnData, screen_config: cx.config.ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Spy(Collator):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(run, "Collator", Spy)
    counts = screen.X.toarray()
    counts[:, :2] = 5  # what is left of a gene that was cut out
    screen.X = counts
    model = cx.CellxPert(screen, config=screen_config.replace(blank=0.25))
    model.train(max_epochs=1, progress_bar=False)
    (collator,) = made
    assert collator.blank == 0.25
    names, targets = model._state.vocabulary.names, model._state.perturbations.targets
    tokens, assigned = collator.tokens, collator.assigned
    for i, condition in enumerate(screen.obs["guide"]):
        own = set(condition.split("+")) - {"control", "ctrl"}
        shown = {names[f] for f in tokens.feature[tokens.start[i] : tokens.start[i + 1]]}
        measured = {names[f] for f in np.flatnonzero(tokens.measured_features[tokens.pattern[i]])}
        assert measured == set(names) - own
        assert shown <= measured
        assert {"g00", "g01"} - own <= shown
        said = {targets[t]: (f, d) for f, t, d in zip(*(x[i] for x in vars(assigned).values()), strict=True) if d}
        assert said == {g: (names.index(g) if g in names else -1, -1.0) for g in own}


@pytest.mark.parametrize("change", ["validation", "training"])
def test_conditions_and_counts_of_held_out_cells_teach_nothing(
    screen: ad.AnnData, screen_config: cx.config.ModelConfig, change: str
) -> None:
    other = screen.copy()
    rows = np.flatnonzero(screen.obs["part"] == "val")
    if change == "training":
        rows = np.flatnonzero((screen.obs["part"] == "train") & (screen.obs["guide"] == "control"))[:1]
    counts = screen.X.toarray()
    counts[rows] = np.random.default_rng(1).poisson(9, (len(rows), 24))
    other.X = counts
    if change == "validation":
        guide = screen.obs["guide"].astype(str).to_numpy()
        guide[rows] = "g23"
        other.obs["guide"] = pd.Categorical(guide)
    weights = []
    for data in (screen, other):
        model = cx.CellxPert(data, config=screen_config)
        model.train(max_epochs=1, split_key="part", progress_bar=False)
        weights.append(_weights(model))
    first, second = weights
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first) == (change == "validation")


class _KilledError(Exception):
    pass


def test_a_resumed_run_on_perturbed_cells_equals_an_uninterrupted_one(
    screen: ad.AnnData, screen_config: cx.config.ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed, resumed = (cx.CellxPert(screen, config=screen_config, seed=3) for _ in range(3))
    whole.train(max_epochs=3, progress_bar=False)
    step = TrainingPlan.training_step

    def stop(self: TrainingPlan, batch: object, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 2:
            raise _KilledError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingPlan, "training_step", stop)
    with pytest.raises(_KilledError):
        killed.train(max_epochs=3, resume=tmp_path, progress_bar=False)
    monkeypatch.setattr(TrainingPlan, "training_step", step)
    resumed.train(max_epochs=3, resume=tmp_path, progress_bar=False)
    one, two = _weights(whole), _weights(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    # and trained again, it still knows the same genes
    resumed.train(max_epochs=1, progress_bar=False)
    assert resumed._state.perturbations == whole._state.perturbations


def test_perturbed_cells_need_factors_to_act_on(screen: ad.AnnData, screen_config: cx.config.ModelConfig) -> None:
    model = cx.CellxPert(screen, config=screen_config.replace(n_factors=0))
    with pytest.raises(ConfigError, match=r"NetworkConfig\.n_factors: 0, and perturbed cells[\s\S]*n_factors=64"):
        model.train(max_epochs=1, progress_bar=False)
    # without perturbed cells there is no need
    screen.obs["guide"] = pd.Categorical(["control"] * screen.n_obs)
    with pytest.warns(CellxPertWarning, match="every cell is 'control'"):
        cx.CellxPert.setup_anndata(screen, perturbation_key="guide")
    model = cx.CellxPert(screen, config=screen_config.replace(n_factors=0))
    model.train(max_epochs=1, progress_bar=False)
    assert model._state.perturbations is None


def test_control_cells_must_be_among_the_training_cells(
    screen: ad.AnnData, screen_config: cx.config.ModelConfig
) -> None:
    control = screen.obs["guide"] == "control"
    screen.obs["part"] = np.where(control, "test", "train")
    with pytest.raises(ControlError, match=r"obs\['guide'\]: no training cell is 'control'"):
        cx.CellxPert(screen, config=screen_config).train(max_epochs=1, split_key="part", progress_bar=False)
    cells = Cells.open(screen, read_setup(screen))
    assert perturbations_of(cells, np.flatnonzero(control), screen_config) is None
    assert perturbations_of(cells, np.arange(7), screen_config).targets == ("g00", "g01")


# --- several modalities and batches ------------------------------------------------------------------------------------


def test_all_objectives_are_named_in_the_history_and_repeat() -> None:
    mdata = cx.datasets.synthetic(
        n_cells=120, n_genes=24, n_peaks=0, n_proteins=8, n_types=2, n_batches=2, spatial_dims=0, seed=2
    )
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein", batch_key="batch")
    config = cx.config.preset("nano").replace(modality_dropout=0.3, contrast_weight=0.2, adversary_weight=0.5)
    models = []
    for _ in range(2):
        model = cx.CellxPert(mdata, config=config, seed=0)
        model.train(max_epochs=2, progress_bar=False)
        models.append(model)
    named = {name for name in models[0].history if name.startswith("train_")}
    assert named >= {"train_bins", "train_cell", "train_contrast", "train_adversary"}
    assert "validation_contrast" in models[0].history
    assert "validation_adversary" not in models[0].history
    assert all(np.isfinite(table.to_numpy()).all() for table in models[0].history.values())
    first, second = (model._trained().network.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
