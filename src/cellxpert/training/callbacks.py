"""What happens between epochs: history, averaged weights, the state to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

__all__ = ["AveragedWeights", "History", "SaveState"]


class History(Callback):
    """Collects the mean of every metric by epoch; survives a resumed run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row. Runs after validation, whose metrics belong to the same epoch."""
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train_", "validation_"))}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch, **metrics, "learning_rate": float(rate)})

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of an interrupted run."""
        self.rows = [dict(row) for row in state_dict["rows"]]


class AveragedWeights(Callback):
    """Exponential moving average of the weights: what is validated, and what a run ends with.

    Few labelled cells make the last steps of a run noisy; the average of the last ~1 / (1 - decay) steps is less so. The
    decay rises with the number of steps n as (1 + n) / (10 + n) up to its value, so that short runs forget where they began.

    Parameters
    ----------
    decay
        Weight of the past; 0 keeps no average.
    monitor
        Metric whose lowest epoch is kept; None keeps the last whole epoch.
    """

    def __init__(self, *, decay: float, monitor: str | None) -> None:
        self.decay, self.monitor = decay, monitor
        self.n_updates = 0
        self.best = float("inf")
        self.average: dict[str, torch.Tensor] = {}
        self.kept: dict[str, torch.Tensor] | None = None
        self._current: dict[str, torch.Tensor] | None = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average towards the weights."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        for name, weight in pl_module.network.state_dict().items():
            if name in self.average and weight.is_floating_point():
                self.average[name] = self.average[name].to(weight.device).lerp_(weight, 1 - decay)
            else:
                self.average[name] = weight.clone()
        self.n_updates += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Validate the average."""
        self._current = {name: weight.clone() for name, weight in pl_module.network.state_dict().items()}
        pl_module.network.load_state_dict(self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Train on from the weights themselves."""
        assert self._current is not None
        pl_module.network.load_state_dict(self._current)
        self._current = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the average if it is the best so far."""
        value = float("-inf") if self.monitor is None else float(trainer.callback_metrics[self.monitor])
        if self.monitor is None or value < self.best:
            self.best = value
            self.kept = {name: weight.cpu().clone() for name, weight in self.average.items()}

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run."""
        return {"n_updates": self.n_updates, "best": self.best, "average": self.average, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an interrupted run."""
        self.n_updates, self.best = state_dict["n_updates"], state_dict["best"]
        self.average, self.kept = state_dict["average"], state_dict["kept"]


class SaveState(Callback):
    """Writes the state of the run after every epoch, whole or not at all. Must be the last callback.

    Lightning's ``ModelCheckpoint`` warns about a folder that is not empty, which a folder to resume from never is.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, then rename."""
        partial = self.file.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.file)
