"""One training run through Lightning: devices, precision, resuming, and leaving the caller's world as it was."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar

from cellxpert.config import TrainingConfig
from cellxpert.data.loaders import CellDataModule
from cellxpert.errors import DeviceError, ResumeError, TrainingDivergedError
from cellxpert.nn.network import Network
from cellxpert.training.callbacks import AveragedWeights, History, SaveState
from cellxpert.training.objectives import LabelObjective
from cellxpert.training.plan import TrainingPlan

__all__ = ["RunConfig", "fit", "resolve_accelerator"]

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
STATE = "state.ckpt"
FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how one run happens; nothing here changes what is learned but ``early_stopping`` and ``seed``.

    ``resume`` names a folder that holds the state of the run: written after every epoch, continued from if it is there.
    ``fingerprint`` says what the run depends on; a folder with another fingerprint is refused.
    """

    max_epochs: int
    seed: int
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    precision: str | None = None
    early_stopping: bool = False
    resume: str | os.PathLike[str] | None = None
    fingerprint: dict[str, Any] | None = None
    progress_bar: bool = True


def resolve_accelerator(accelerator: str) -> str:
    """``"auto"`` is CUDA where there is one, else the CPU; Apple's MPS only on request (it has returned NaN to others).

    Raises
    ------
    DeviceError
        If the device is not there.
    """
    if accelerator not in ACCELERATORS:
        raise DeviceError(f"accelerator={accelerator!r}", found="no such kind", fix=f"use one of {list(ACCELERATORS)}")
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator in {"gpu", "cuda"} and not torch.cuda.is_available():
        raise DeviceError(f"accelerator={accelerator!r}", found="no CUDA device", fix="use accelerator='cpu'")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"accelerator={accelerator!r}", found="no MPS device", fix="use accelerator='cpu'")
    return accelerator


def fit(
    network: Network, data: CellDataModule, config: TrainingConfig, *, labels: LabelObjective, run: RunConfig
) -> pd.DataFrame:
    """Train a network in place.

    Parameters
    ----------
    network
        The network; it ends in evaluation mode on the CPU.
    data
        Training and validation batches.
    config
        Objectives and optimiser.
    labels
        How labels count.
    run
        Device, precision, seed, resuming.

    Returns
    -------
    Mean of every metric by epoch.

    Raises
    ------
    DeviceError
        If the accelerator is not there or runs out of memory.
    ResumeError
        If the folder to resume from belongs to another run.
    TrainingDivergedError
        If a loss is not finite; the network then keeps the weights of the last whole epoch.
    """
    accelerator = resolve_accelerator(run.accelerator)
    monitor = "validation_loss" if len(data.validation_rows) else None
    history = History()
    weights = AveragedWeights(decay=config.ema_decay, monitor=monitor if run.early_stopping else None)
    callbacks: list[pl.Callback] = [history, weights]
    if run.early_stopping:
        callbacks.append(EarlyStopping("validation_loss", patience=config.patience, check_finite=False))
    if run.progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=1))
    checkpoint = None if run.resume is None else _open_state(Path(run.resume), run.fingerprint or {})
    if run.resume is not None:
        callbacks.append(SaveState(Path(run.resume) / STATE))
    plan = TrainingPlan(network, config, labels=labels, n_steps=data.n_steps(run.max_epochs), seed=run.seed)
    network.train()
    with _caller_untouched():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1 if run.devices == "auto" else run.devices,
            precision=run.precision or ("bf16-mixed" if accelerator == "cuda" else "32-true"),
            max_epochs=run.max_epochs,
            callbacks=callbacks,
            gradient_clip_val=config.gradient_clip,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if monitor else 0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=run.progress_bar,
        )
        try:
            trainer.fit(plan, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except TrainingDivergedError:
            _settle(network, weights)
            raise
        except torch.OutOfMemoryError as error:
            _settle(network, weights)
            size = data.batch_size
            raise DeviceError(
                f"accelerator={accelerator!r}",
                found=f"out of memory with batch_size={size}",
                fix=f"pass batch_size={max(1, size // 2)}",
            ) from error
    _settle(network, weights)
    return pd.DataFrame(history.rows).set_index("epoch")


def _settle(network: Network, weights: AveragedWeights) -> None:
    """Leave the network with the weights that were kept, on the CPU."""
    network.to("cpu")
    if weights.kept is not None:
        network.load_state_dict(weights.kept)
    network.eval()


def _open_state(folder: Path, fingerprint: dict[str, Any]) -> Path | None:
    """Check or write the fingerprint of a state folder; return the state to continue from, if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    file, state = folder / FINGERPRINT, folder / STATE
    text = json.dumps(fingerprint, indent=1, sort_keys=True)
    if not state.exists():
        file.write_text(text)
        return None
    found = json.loads(file.read_text()) if file.exists() else {}
    expected = json.loads(text)
    differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if differing:
        raise ResumeError(
            f"resume={str(folder)!r}",
            found=f"it holds another run: {', '.join(differing)} differ",
            fix="train with the settings and cells of that run, or name an empty folder",
        )
    return state


@contextlib.contextmanager
def _caller_untouched() -> Iterator[None]:
    """Give the caller's random state, log levels and warning filters back, whatever Lightning does with them."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    # lightning 2.6 asks torch 2.13 for a class that torch deprecates: no concern of whoever trains
    unannounced = warnings.catch_warnings(action="ignore", category=FutureWarning)
    with torch.random.fork_rng(devices=cuda), unannounced:
        logger.setLevel(logging.WARNING)  # devices and tips are announced at INFO
        try:
            yield
        finally:
            logger.setLevel(level)
