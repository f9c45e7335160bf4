"""An adapter: a small change to the weights of one model, with labels of its own; and the folder that keeps it.

The folder holds ``config.json`` and ``adapter.safetensors``, written and checked as a saved model is (:mod:`cellxpert.files`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import safetensors.torch
from torch import Tensor

from cellxpert.config import AdapterConfig
from cellxpert.data.calibration import Calibration
from cellxpert.data.cell_types import Components
from cellxpert.data.record import Setup
from cellxpert.errors import AdapterError, CheckpointError, CheckpointNotFoundError, ConfigError, NotSetUpError
from cellxpert.files import (
    CALIBRATION,
    CONFIG,
    check_file,
    check_format,
    history_table,
    history_values,
    label_names,
    read_arrays,
    read_json,
    read_tensors,
    sha256,
    write_arrays,
    write_json,
)

__all__ = [
    "FORMAT_VERSION",
    "Adapter",
    "AdapterSummary",
    "read_adapter",
    "require_name",
    "write_adapter",
]

FORMAT_VERSION = 1
"""Version of the folder's layout; readers refuse newer ones."""
_TENSORS = "adapter.safetensors"
_MODEL = "CellxPert adapter"


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """All that an adapter is."""

    name: str
    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    """What it adds to the base, and the whole label head (``labels.``), by name; on the CPU."""
    labels: tuple[str, ...]
    setup: Setup
    """Setup of the cells that it was trained on; the base's before."""
    history: pd.DataFrame
    """Metrics of its training; empty before."""
    base_hash: str
    """Hash of the base's weights."""
    vocabulary_hash: str
    calibration: Calibration | None = None
    """What its labels can be trusted with."""
    steered: bool = False
    """Whether labels trained what is below the label head."""


@dataclass(frozen=True)
class AdapterSummary:
    """How much of a model an adapter trains.

    Parameters
    ----------
    name
        The adapter.
    n_trainable
        Parameters that train: the adapter's, and those of the label head.
    n_parameters
        All parameters, the adapter's included.
    """

    name: str
    n_trainable: int
    n_parameters: int

    @property
    def share(self) -> float:
        """Share of the parameters that train."""
        return self.n_trainable / self.n_parameters

    def __repr__(self) -> str:
        return (
            f"adapter {self.name!r}: {self.n_trainable:,} of {self.n_parameters:,} parameters train "
            f"({100 * self.share:.2f} %)"
        )


def require_name(name: object) -> str:
    """Return a name, if it can be one: it is also the name of a folder.

    Raises
    ------
    AdapterError
        If it cannot.
    """
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        return name
    raise AdapterError("name of an adapter", found=repr(name), fix="use letters, digits, '_', '-' and '.'")


def write_adapter(adapter: Adapter, folder: Path, *, components: Components | None) -> None:
    """Write an adapter into a folder that exists; ``components`` are the base's, which are not written twice."""
    from importlib.metadata import version

    safetensors.torch.save_file(dict(adapter.tensors), folder / _TENSORS)
    files, calibration = [_TENSORS], adapter.calibration
    if calibration is not None:
        own = components is None or not calibration.types.components.equals(components)
        write_arrays(folder / CALIBRATION, calibration.to_arrays(components=own))
        files.append(CALIBRATION)
    config = {
        "format_version": FORMAT_VERSION,
        "model": _MODEL,
        "cellxpert_version": version("cellxpert"),
        "name": adapter.name,
        "adapter": adapter.config.to_dict(),
        "labels": list(adapter.labels),
        "steered": adapter.steered,
        "setup": adapter.setup.to_dict(),
        "base_hash": adapter.base_hash,
        "vocabulary_hash": adapter.vocabulary_hash,
        "history": history_values(adapter.history),
        "calibration": None if calibration is None else calibration.to_dict(),
        "sha256": {name: sha256(folder / name) for name in files},
    }
    write_json(folder / CONFIG, config)


def read_adapter(folder: Path, *, components: Components | None) -> Adapter:
    """Read an adapter that :func:`write_adapter` wrote, with the same ``components``.

    Raises
    ------
    CheckpointNotFoundError
        If the folder or one of its files is missing.
    CheckpointVersionError
        If the format is newer than this version reads, or the folder holds something else.
    CheckpointError
        If a file is damaged.
    AdapterError
        If it belongs to another model.
    """
    for name in (CONFIG, _TENSORS):
        if not (folder / name).is_file():
            fix = "give the folder that model.save_adapter() wrote"
            raise CheckpointNotFoundError(str(folder), found=f"no file {name!r} there", fix=fix)
    config = read_json(folder / CONFIG)
    check_format(folder, config, model=_MODEL, version=FORMAT_VERSION)
    try:
        measured, calibration = config.get("calibration"), None  # adapters of before have none
        check_file(folder / _TENSORS, config["sha256"][_TENSORS])
        if measured is not None:
            check_file(folder / CALIBRATION, config["sha256"][CALIBRATION])
            arrays = read_arrays(folder / CALIBRATION)
            if components is None and "direct_VP" not in arrays:
                found = "an adapter of a model whose labels are calibrated, which this one's are not"
                raise AdapterError(str(folder), found=found, fix="load it on the model that it was trained on")
            calibration = Calibration.of(measured, arrays, components=components)
        read = {
            "name": require_name(config["name"]),
            "config": AdapterConfig(**config["adapter"]),
            "labels": label_names(config["labels"]),
            "setup": Setup.from_dict(config["setup"]),
            "history": history_table(config["history"]),
            "base_hash": str(config["base_hash"]),
            "vocabulary_hash": str(config["vocabulary_hash"]),
            "calibration": calibration,
            "steered": bool(config.get("steered", False)),
        }
    except (AttributeError, KeyError, TypeError, ValueError, NotSetUpError) as error:
        if isinstance(error, AdapterError | CheckpointError | ConfigError):
            raise
        raise CheckpointError(str(folder / CONFIG), found=repr(error), fix="save the adapter again") from error
    return Adapter(tensors=read_tensors(folder / _TENSORS), **read)
