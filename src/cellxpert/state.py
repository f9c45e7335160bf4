"""What a model knows of itself: what it reads, whether and how it was trained, where it computes, how it is saved."""

from __future__ import annotations

import os

import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData

from cellxpert.adapters import Adapter
from cellxpert.checkpoint import TrainedState, save_state
from cellxpert.config import ModelConfig
from cellxpert.data import setup as setups
from cellxpert.data.record import Setup
from cellxpert.errors import DeviceError, NotTrainedError

__all__ = ["StateMethods"]


class StateMethods:
    """The methods of a model that change nothing but where it computes."""

    _data: AnnData | MuData | None
    _setup: Setup
    _config: ModelConfig
    _state: TrainedState | None
    _device: str
    _adapters: tuple[Adapter, ...] = ()
    _active: str | None = None
    _base: TrainedState | None = None
    """What is adapted, where an adapter is in use."""

    def view_setup(self) -> str:
        """Return what the model reads: roles, layers, features, labels, and the cells of each modality in each batch."""
        if self._data is None:
            return f"no object attached; the setup was\n{self._setup.to_dict()}"
        return setups.summary(self._setup, self._data)

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained."""
        return self._state is not None

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metrics of training, one table by epoch for each; kept by :meth:`save`."""
        table = self._trained().history
        return {name: table[[name]].dropna() for name in table.columns}

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the model knows."""
        return self._trained().labels

    @property
    def device(self) -> str:
        """Where results are computed."""
        return self._device

    def to_device(self, device: str) -> None:
        """Compute results elsewhere.

        Parameters
        ----------
        device
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"``: CUDA where there is one.

        Raises
        ------
        DeviceError
            If the device is not there.
        """
        from cellxpert.training.fit import resolve_accelerator

        kind, colon, index = device.partition(":")
        resolved = resolve_accelerator(kind)
        resolved = "cuda" if resolved == "gpu" else resolved
        n_devices = torch.cuda.device_count() if resolved == "cuda" else 1
        if colon and not (index.isdecimal() and int(index) < n_devices):
            fix = f"count from 0, or use to_device({kind!r})"
            raise DeviceError(f"to_device({device!r})", found=f"{n_devices} of that kind", fix=fix)
        self._device = resolved + colon + index
        if self._state is not None:
            self._state.network.to(self._device)

    def save(self, dir_path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model and its adapters to a folder of JSON and safetensors; the data are not saved.

        Parameters
        ----------
        dir_path
            Folder to make. It appears whole or not at all.
        overwrite
            Replace a saved model that is there.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        OutputExistsError
            If the folder is there.
        """
        base = self._base_state()
        save_state(base, dir_path, overwrite=overwrite, adapters=self._adapters, active=self._active)

    def __repr__(self) -> str:
        network = self._config.network
        lines = [
            f"CellxPert: width {network.width}, {network.encoder_layers} encoder and {network.decoder_layers} decoder"
            f" layers, {network.n_experts} experts",
            f"modalities: {', '.join(self._setup.roles)}",
        ]
        if self._state is None:
            return "\n".join([*lines, "not trained: call train()"])
        state = self._state
        # of an adapter in use, the history is its own
        n_epochs = len(self._base_state().history)
        lines.append(f"trained {n_epochs} epochs: {state.network.n_parameters():,} parameters")
        lines.append(f"features: {state.vocabulary.n_features}; labels: {len(state.labels)}")
        if self._adapters:
            names = ", ".join(adapter.name for adapter in self._adapters)
            lines.append(f"adapters: {names}; in use: {self._active or 'none'}")
        return "\n".join(lines)

    def _base_state(self) -> TrainedState:
        """The model itself, whatever adapter is in use."""
        return self._trained() if self._base is None else self._base

    def _trained(self) -> TrainedState:
        if self._state is None:
            raise NotTrainedError("CellxPert", found="a model that was not trained", fix="call model.train() first")
        return self._state

    def _own_data(self) -> AnnData | MuData:
        if self._data is None:
            raise NotTrainedError("CellxPert", found="no object attached", fix="call CellxPert.load(dir_path, mdata)")
        return self._data
