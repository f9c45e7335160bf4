"""Runs: reproducible, resumable, and leaving the caller's world as it was."""

from __future__ import annotations

import logging
import random
import warnings

import numpy as np
import pytest
import torch
from mudata import MuData, set_options

import cellxpert as cx
from cellxpert.checkpoint import weights_hash
from cellxpert.errors import ConfigError, DeviceError, ResumeError, TrainingDivergedError
from cellxpert.training.fit import resolve_accelerator
from cellxpert.training.plan import TrainingPlan


@pytest.fixture
def few(pbmc: MuData) -> MuData:
    """112 cells of the four commonest types, set up."""
    with set_options(pull_on_update=False):
        common = pbmc.obs["bulk_labels"].isin(pbmc.obs["bulk_labels"].value_counts().index[:4]).to_numpy()
        mdata = pbmc[np.flatnonzero(common)[::5]].copy()
    cx.CellxPert.setup_mudata(mdata, rna="rna", labels_key="bulk_labels")
    return mdata


def _model(few: MuData, **changes: object) -> cx.CellxPert:
    return cx.CellxPert(few, config=cx.config.preset("nano").replace(n_genes=100, n_queries=16, **changes), seed=3)


def _hash(model: cx.CellxPert) -> str:
    return weights_hash(model._state.network)


def test_same_seed_same_weights_other_seed_others(few: MuData) -> None:
    first, second, third = _model(few), _model(few), _model(few)
    for model, seed in ((first, 5), (second, 5), (third, 6)):
        model.train(max_epochs=1, seed=seed, progress_bar=False)
    assert _hash(first) == _hash(second) != _hash(third)


class _KilledError(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one(few: MuData, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _model(few)
    whole.train(max_epochs=4, progress_bar=False)

    def killed(self: TrainingPlan, batch: object, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 2:
            raise _KilledError
        return step(self, batch, batch_idx)

    step = TrainingPlan.training_step
    monkeypatch.setattr(TrainingPlan, "training_step", killed)
    with pytest.raises(_KilledError):
        _model(few).train(max_epochs=4, resume=tmp_path, progress_bar=False)
    monkeypatch.setattr(TrainingPlan, "training_step", step)
    resumed = _model(few)
    resumed.train(max_epochs=4, resume=tmp_path, progress_bar=False)
    assert _hash(resumed) == _hash(whole)
    for name, table in whole.history.items():
        assert resumed.history[name].equals(table), name


def test_resuming_another_run_is_refused(few: MuData, tmp_path) -> None:
    _model(few).train(max_epochs=1, resume=tmp_path, progress_bar=False)
    with pytest.raises(ResumeError, match="seed"):
        _model(few).train(max_epochs=1, resume=tmp_path, seed=99, progress_bar=False)
    with pytest.raises(ResumeError, match="config"):
        _model(few, learning_rate=0.5).train(max_epochs=1, resume=tmp_path, progress_bar=False)


def test_training_leaves_random_states_filters_and_handlers_alone(few: MuData) -> None:
    import cellxpert.training.run  # noqa: F401  (libraries may set themselves up when first imported)

    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    filters, handlers = list(warnings.filters), list(logging.getLogger().handlers)
    level = logging.getLogger("lightning.pytorch.utilities.rank_zero").level
    _model(few).train(max_epochs=1, progress_bar=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert warnings.filters == filters
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("lightning.pytorch.utilities.rank_zero").level == level


def test_diverging_run_stops_and_keeps_the_last_good_weights(few: MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingPlan.training_step
    first: dict[str, torch.Tensor] = {}
    network = None

    def diverge(self: TrainingPlan, batch: object, batch_idx: int) -> torch.Tensor:
        nonlocal network
        first.update({} if first else {k: v.clone() for k, v in self.network.state_dict().items()})
        if self.current_epoch == 1 and batch_idx == 0:
            network = self.network
            with torch.no_grad():
                self.network.bins.linear.weight.fill_(float("nan"))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingPlan, "training_step", diverge)
    with pytest.raises(TrainingDivergedError, match=r"epoch 1.*loss is nan; rows \["):
        _model(few).train(max_epochs=2, progress_bar=False)
    weights = network.state_dict()
    assert all(torch.isfinite(v).all() for v in weights.values())
    assert not torch.equal(weights["bins.linear.weight"], first["bins.linear.weight"])  # those after epoch 0


def test_early_stopping_keeps_the_best_epoch(few: MuData) -> None:
    model = _model(few, patience=1, learning_rate=0.05, warmup_fraction=0.01)
    model.train(max_epochs=30, early_stopping=True, train_size=0.7, progress_bar=False)
    losses = model.history["validation_loss"]["validation_loss"]
    assert len(losses) < 30
    assert losses.iloc[-1] > losses.min()
    # a run that goes on to the end leaves other weights
    other = _model(few, patience=1, learning_rate=0.05, warmup_fraction=0.01)
    other.train(max_epochs=30, train_size=0.7, progress_bar=False)
    assert _hash(other) != _hash(model)


def test_early_stopping_needs_validation_cells(few: MuData) -> None:
    with pytest.raises(ConfigError, match="no validation cells"):
        _model(few).train(early_stopping=True, train_size=1.0, progress_bar=False)


def test_an_unknown_accelerator_is_refused(few: MuData) -> None:
    with pytest.raises(DeviceError, match="'tpu'.*no such kind"):
        _model(few).train(accelerator="tpu", progress_bar=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_accelerator(few: MuData) -> None:
    with pytest.raises(DeviceError, match="accelerator='cpu'"):
        _model(few).train(accelerator="cuda", progress_bar=False)
    assert resolve_accelerator("auto") == "cpu"


def test_progress_bar_is_drawn_only_on_request(few: MuData, capsys: pytest.CaptureFixture[str]) -> None:
    _model(few).train(max_epochs=1, progress_bar=False)
    silent = capsys.readouterr()
    _model(few).train(max_epochs=1, progress_bar=True)
    shown = capsys.readouterr()
    assert "Epoch" not in silent.out + silent.err
    assert "Epoch 0" in shown.out + shown.err


def test_loss_falls(few: MuData) -> None:
    model = _model(few)
    model.train(max_epochs=8, progress_bar=False)
    history = model.history
    for name in ("train_loss", "train_bins", "train_cell", "train_label"):
        assert history[name][name].iloc[-1] < history[name][name].iloc[0], name
