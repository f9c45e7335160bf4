"""A trained model as a folder: ``config.json``, ``vocabulary.json``, ``weights.safetensors``. Nothing in it is a pickle.

The folder is written beside its place and renamed, so that an interrupted save leaves the old one whole. Reading checks
every file's sha256, the format version, that all weights are there with their shapes, and that they are finite.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from safetensors import SafetensorError

from cellxpert.config import ModelConfig
from cellxpert.data.record import Setup
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    ConfigError,
    NotSetUpError,
    OutputExistsError,
    VocabularyError,
)
from cellxpert.nn.network import Network

__all__ = ["FORMAT_VERSION", "TrainedState", "load_state", "save_state", "weights_hash"]

FORMAT_VERSION = 1
"""Version of the folder's layout; readers refuse newer ones."""
_CONFIG, _VOCABULARY, _WEIGHTS = "config.json", "vocabulary.json", "weights.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedState:
    """All that a trained model is."""

    config: ModelConfig
    setup: Setup
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    network: Network
    history: pd.DataFrame
    seed: int


def _tensors(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def weights_hash(network: Network) -> str:
    """Return the sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(network).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save_state(state: TrainedState, dir_path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a model.

    Parameters
    ----------
    state
        The model.
    dir_path
        Folder to make.
    overwrite
        Replace the folder if it is there.

    Returns
    -------
    The folder.

    Raises
    ------
    OutputExistsError
        If the folder is there and ``overwrite`` is False, or if it is there and is no saved model.
    """
    from importlib.metadata import version

    target = Path(dir_path)
    if target.exists():
        if not overwrite:
            raise OutputExistsError(str(target), found="it exists", fix="pass overwrite=True or another folder")
        if not (target.is_dir() and (target / _CONFIG).exists()):
            raise OutputExistsError(str(target), found="it is no saved model", fix="name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        safetensors.torch.save_file(_tensors(state.network), staging / _WEIGHTS)
        _write_json(staging / _VOCABULARY, state.vocabulary.to_dict())
        config = {
            "format_version": FORMAT_VERSION,
            "model": "CellxPert",
            "cellxpert_version": version("cellxpert"),
            "config": state.config.to_dict(),
            "setup": state.setup.to_dict(),
            "labels": list(state.labels),
            "seed": state.seed,
            "vocabulary_hash": state.vocabulary.hash(),
            "weights_hash": weights_hash(state.network),
            "history": {
                name: [None if np.isnan(x) else x for x in column.tolist()]
                for name, column in state.history.reset_index().items()
            },
            "sha256": {name: _sha256(staging / name) for name in (_VOCABULARY, _WEIGHTS)},
        }
        _write_json(staging / _CONFIG, config)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(old / target.name)
            staging.rename(target)
            shutil.rmtree(old)
        else:
            staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def load_state(dir_path: str | os.PathLike[str]) -> TrainedState:
    """Read a model that :func:`save_state` wrote.

    Raises
    ------
    CheckpointNotFoundError
        If the folder or one of its files is missing.
    CheckpointVersionError
        If the format is newer than this version reads, or the folder holds another kind of model.
    CheckpointError
        If a file is damaged, or weights are missing, unexpected, of another shape or not finite.
    """
    folder = Path(dir_path)
    for name in (_CONFIG, _VOCABULARY, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointNotFoundError(
                str(folder), found=f"no file {name!r} there", fix="give the folder that model.save() wrote"
            )
    config = _read_json(folder / _CONFIG)
    found = config.get("format_version"), config.get("model")
    if found[1] != "CellxPert" or not isinstance(found[0], int):
        raise CheckpointVersionError(
            str(folder), found=f"a model of class {found[1]!r}", fix="load it with its own class"
        )
    if found[0] > FORMAT_VERSION:
        raise CheckpointVersionError(
            str(folder), found=f"format {found[0]}; this version reads up to {FORMAT_VERSION}", fix="upgrade cellxpert"
        )
    for name, expected in config.get("sha256", {}).items():
        _check_file(folder / name, expected)
    try:
        settings = ModelConfig.from_dict(config["config"])
        setup = Setup.from_dict(config["setup"])
        vocabulary = Vocabulary.from_dict(_read_json(folder / _VOCABULARY))
        labels, seed = tuple(config["labels"]), int(config["seed"])
        history = pd.DataFrame(config["history"]).set_index("epoch").astype(float)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError | NotSetUpError | VocabularyError):
            raise
        raise CheckpointError(str(folder / _CONFIG), found=repr(error), fix="save the model again") from error
    if vocabulary.hash() != config["vocabulary_hash"]:
        raise CheckpointError(str(folder / _VOCABULARY), found="another vocabulary", fix="copy the whole folder again")
    network = Network.from_config(
        settings, feature_modality=vocabulary.role_of_feature.tolist(), n_labels=len(labels), seed=seed
    )
    _load_weights(network, folder / _WEIGHTS)
    return TrainedState(
        config=settings,
        setup=setup,
        vocabulary=vocabulary,
        labels=labels,
        network=network.eval(),
        history=history,
        seed=seed,
    )


def _load_weights(network: Network, file: Path) -> None:
    try:
        tensors = safetensors.torch.load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(str(file), found=f"{_describe(file)}; {error}", fix="copy the file again") from error
    expected = network.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        if expected[name].shape != tensors[name].shape:
            problems.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}")
        elif tensors[name].is_floating_point() and not bool(torch.isfinite(tensors[name]).all()):
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise CheckpointError(str(file), found=f"{len(problems)} problems: {shown}", fix="save the model again")
    network.load_state_dict(tensors)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_file(file: Path, expected: str) -> None:
    if _sha256(file) != expected:
        raise CheckpointError(
            str(file), found=f"its sha256 is not the recorded one; {_describe(file)}", fix="copy the file again"
        )


def _describe(file: Path) -> str:
    """What a damaged file looks like from its first bytes."""
    with file.open("rb") as handle:
        head = handle.read(512).lstrip()
    size = f"{file.stat().st_size} bytes"
    if head[:1] == b"<":
        return f"{size}, it looks like an HTML page"
    if head[:1] == b"\x80" or head[:2] == b"PK":
        return f"{size}, it looks like a pickle, which is never loaded"
    return f"{size}, it may be truncated"


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(str(file), found=f"{_describe(file)}; {error}", fix="copy the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(str(file), found=f"a {type(data).__name__}, not settings", fix="copy the file again")
    return data
