"""A trained model as a folder: ``config.json``, ``vocabulary.json``, ``weights.safetensors``. Nothing in it is a pickle.

The folder is written beside its place and renamed, so that an interrupted save leaves the old one whole. Reading checks
every file's sha256, the format version, and that all weights are there, finite, of their shapes and types, and those saved.
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
from cellxpert.data.perturbations import Perturbations
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
    perturbations: Perturbations | None = None


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

    target = _folder(dir_path, "save")
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
            "perturbations": None if state.perturbations is None else state.perturbations.to_dict(),
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
    ConfigError
        If ``dir_path`` is no path.
    CheckpointNotFoundError
        If the folder or one of its files is missing.
    CheckpointVersionError
        If the format is newer than this version reads, or the folder holds another kind of model.
    CheckpointError
        If a file is damaged, or weights are missing, unexpected, of another shape or type, not finite, or not those
        that were saved.
    """
    folder = _folder(dir_path, "load")
    for name in (_CONFIG, _VOCABULARY, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointNotFoundError(
                str(folder), found=f"no file {name!r} there", fix="give the folder that model.save() wrote"
            )
    config = _read_json(folder / _CONFIG)
    _check_format(folder, config)
    _check_files(folder, config.get("sha256", {}))
    try:
        settings = ModelConfig.from_dict(config["config"])
        setup = Setup.from_dict(config["setup"])
        vocabulary = Vocabulary.from_dict(_read_json(folder / _VOCABULARY))
        labels, seed = _labels(config["labels"]), int(config["seed"])
        hashes = config["vocabulary_hash"], config["weights_hash"]
        seen = config.get("perturbations")
        perturbations = None if seen is None else Perturbations.from_dict(seen)
        history = pd.DataFrame(config["history"]).set_index("epoch").astype(float)
    except (AttributeError, KeyError, TypeError, ValueError, NotSetUpError) as error:
        if isinstance(error, ConfigError | VocabularyError | CheckpointError):
            raise
        found = f"{error.where}: {error.found}" if isinstance(error, NotSetUpError) else repr(error)
        raise CheckpointError(str(folder / _CONFIG), found=found, fix="save the model again") from error
    if vocabulary.hash() != hashes[0]:
        raise CheckpointError(str(folder / _VOCABULARY), found="another vocabulary", fix="copy the whole folder again")
    if not set(vocabulary.roles) & set(
        setup.roles
    ):  # some may be missing: a model can be fine-tuned on cells that lack them
        found = f"a setup of {list(setup.roles)}, and features of {list(vocabulary.roles)}"
        raise CheckpointError(str(folder / _CONFIG), found=found, fix="copy the whole folder again")
    network = Network.from_config(
        settings,
        feature_modality=vocabulary.role_of_feature.tolist(),
        place=vocabulary.place,
        n_image=vocabulary.n_image,
        n_labels=len(labels),
        n_targets=0 if perturbations is None else len(perturbations.targets),
        seed=seed,
    )
    _load_weights(network, folder / _WEIGHTS)
    if weights_hash(network) != hashes[1]:
        found = "other weights than those that were saved"
        raise CheckpointError(str(folder / _WEIGHTS), found=found, fix="copy the whole folder again")
    return TrainedState(
        config=settings,
        setup=setup,
        vocabulary=vocabulary,
        labels=labels,
        network=network.eval(),
        history=history,
        seed=seed,
        perturbations=perturbations,
    )


def _folder(dir_path: object, call: str) -> Path:
    if not isinstance(dir_path, str | os.PathLike):
        raise ConfigError(f"{call}(dir_path=)", found=repr(dir_path), fix="give the path of a folder")
    return Path(dir_path)


def _check_format(folder: Path, config: dict[str, Any]) -> None:
    model, version = config.get("model"), config.get("format_version")
    if model != "CellxPert":
        raise CheckpointVersionError(str(folder), found=f"a model of class {model!r}", fix="load it with its own class")
    if type(version) is not int or version < 1:  # True is an int too
        raise CheckpointVersionError(str(folder), found=f"format_version {version!r}", fix="copy config.json again")
    if version > FORMAT_VERSION:
        found = f"format_version {version}; this version reads up to {FORMAT_VERSION}"
        raise CheckpointVersionError(str(folder), found=found, fix="upgrade cellxpert")


def _check_files(folder: Path, sha256: object) -> None:
    if not (isinstance(sha256, dict) and sha256.keys() <= {_VOCABULARY, _WEIGHTS}):
        found = f"sha256 of {sorted(sha256)[:5]}" if isinstance(sha256, dict) else f"sha256 is {sha256!r:.50}"
        raise CheckpointError(str(folder / _CONFIG), found=found, fix="copy config.json again")
    for name, expected in sha256.items():
        _check_file(folder / name, expected)


def _labels(labels: object) -> tuple[str, ...]:
    """Labels of a config.json; one name twice would be two columns of probabilities for one label."""
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise TypeError("labels are no list of names")
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"labels occur twice: {repeated[:5]}")
    return tuple(labels)


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
        elif expected[name].dtype != tensors[name].dtype:
            problems.append(f"{name} is {tensors[name].dtype}, not {expected[name].dtype}")
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
