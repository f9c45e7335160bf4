"""The moving average of weights against the formula, and what it keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cellxpert.training.callbacks import AveragedWeights, History


def _module(value: float) -> SimpleNamespace:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return SimpleNamespace(network=network)


def _set(module: SimpleNamespace, value: float) -> None:
    nn.init.constant_(module.network.weight, value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_follows_the_formula(decay: float) -> None:
    callback, module = AveragedWeights(decay=decay, monitor=None), _module(0)
    expected = None
    for n, value in enumerate([1.0, 3.0, -2.0, 5.0, 4.0]):
        _set(module, value)
        callback.on_train_batch_end(None, module, None, None, n)
        d = min(decay, (1 + n) / (10 + n))
        expected = value if expected is None else d * expected + (1 - d) * value
    assert callback.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_validation_sees_the_average_and_training_goes_on_from_the_weights() -> None:
    callback, module = AveragedWeights(decay=0.9, monitor=None), _module(1)
    callback.on_train_batch_end(None, module, None, None, 0)
    _set(module, 7)
    callback.on_validation_start(None, module)
    assert module.network.weight.item() == 1
    callback.on_validation_end(None, module)
    assert module.network.weight.item() == 7


def test_the_best_epoch_is_kept_through_a_restart() -> None:
    callback, module = AveragedWeights(decay=0.0, monitor="validation_loss"), _module(0)
    for value, loss in ((1.0, 0.5), (2.0, 0.2), (3.0, 0.4)):
        _set(module, value)
        callback.on_train_batch_end(None, module, None, None, 0)
        callback.on_train_epoch_end(SimpleNamespace(callback_metrics={"validation_loss": torch.tensor(loss)}), module)
    assert callback.kept["weight"].item() == 2
    again = AveragedWeights(decay=0.0, monitor="validation_loss")
    again.load_state_dict(callback.state_dict())
    assert (again.best, again.kept["weight"].item(), again.n_updates) == (pytest.approx(0.2), 2, 3)


def test_history_has_a_row_per_epoch() -> None:
    callback = History()
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    for epoch in range(2):
        metrics = {"train_loss": torch.tensor(1.0 + epoch), "loss": torch.tensor(9.0)}
        trainer = SimpleNamespace(callback_metrics=metrics, optimizers=[optimizer], current_epoch=epoch)
        callback.on_train_epoch_end(trainer, None)
    assert callback.rows == [
        {"epoch": 0, "train_loss": 1.0, "learning_rate": 0.1},
        {"epoch": 1, "train_loss": 2.0, "learning_rate": 0.1},
    ]
    again = History()
    again.load_state_dict(callback.state_dict())
    assert again.rows == callback.rows
