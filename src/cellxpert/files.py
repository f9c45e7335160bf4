"""Folders of JSON and safetensors: written whole or not at all, and checked in full when they are read. No pickles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from safetensors import SafetensorError

from cellxpert.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    ConfigError,
    OutputExistsError,
)

__all__ = [
    "CALIBRATION",
    "CONFIG",
    "INTEGRATION",
    "check_file",
    "check_format",
    "folder_of",
    "history_table",
    "history_values",
    "label_names",
    "read_arrays",
    "read_json",
    "read_tensors",
    "sha256",
    "staged_folder",
    "write_arrays",
    "write_json",
]

CONFIG = "config.json"
"""The file that says what a folder is."""
CALIBRATION = "calibration.safetensors"
"""What labels can be trusted with."""
INTEGRATION = "integration.safetensors"
"""Where integrated cells stand."""


def folder_of(dir_path: object, call: str) -> Path:
    """Return the path of a folder.

    Raises
    ------
    ConfigError
        If it is no path.
    """
    if not isinstance(dir_path, str | os.PathLike):
        raise ConfigError(f"{call}(dir_path=)", found=repr(dir_path), fix="give the path of a folder")
    return Path(dir_path)


@contextlib.contextmanager
def staged_folder(target: Path, *, overwrite: bool, marker: str, what: str) -> Iterator[Path]:
    """Give a folder to write into, which takes its place when all is written: a failure leaves what was there.

    Parameters
    ----------
    target
        The place.
    overwrite
        Replace what is there, if it is such a folder.
    marker
        Name of a file that every such folder has.
    what
        What such a folder is, for messages.

    Raises
    ------
    OutputExistsError
        If the folder is there and ``overwrite`` is False, or if what is there is something else.
    """
    if target.exists():
        if not overwrite:
            raise OutputExistsError(str(target), found="it exists", fix="pass overwrite=True or another folder")
        if not (target.is_dir() and (target / marker).exists()):
            raise OutputExistsError(str(target), found=f"it is no {what}", fix="name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
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


def check_format(folder: Path, config: dict[str, Any], *, model: str, version: int, oldest: int = 1) -> None:
    """Refuse a folder of another kind, of a newer format, or of one from before ``oldest``.

    Raises
    ------
    CheckpointVersionError
        If it is one.
    """
    kind, found = config.get("model"), config.get("format_version")
    if kind != model:
        raise CheckpointVersionError(str(folder), found=f"a model of class {kind!r}", fix="load it with its own class")
    if type(found) is not int or found < 1:  # True is an int too
        raise CheckpointVersionError(str(folder), found=f"format_version {found!r}", fix="copy config.json again")
    if found > version:
        text = f"format_version {found}; this version reads up to {version}"
        raise CheckpointVersionError(str(folder), found=text, fix="upgrade cellxpert")
    if found < oldest:
        text = f"format_version {found}, of another network; this version reads {oldest} to {version}"
        raise CheckpointVersionError(
            str(folder), found=text, fix="train the model again with this version, then save it"
        )


def read_tensors(file: Path, expected: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Read tensors: finite, and, where it is said what is expected, all of it and no others, of their shapes and types.

    Raises
    ------
    CheckpointError
        If the file is damaged, or its tensors are not those.
    """
    try:
        tensors = safetensors.torch.load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(str(file), found=f"{_describe(file)}; {error}", fix="copy the file again") from error
    expected = tensors if expected is None else expected
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
    return tensors


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as float32."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in arrays.items()}
    safetensors.torch.save_file(tensors, file)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read arrays.

    Raises
    ------
    CheckpointNotFoundError
        If the file is missing.
    CheckpointError
        As :func:`read_tensors`.
    """
    _require_file(file)
    return {name: tensor.numpy() for name, tensor in read_tensors(file).items()}


def sha256(file: Path) -> str:
    """Return the hash of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_file(file: Path, expected: object) -> None:
    """Compare a file with its recorded hash.

    Raises
    ------
    CheckpointNotFoundError
        If it is missing.
    CheckpointError
        If it is another.
    """
    _require_file(file)
    if sha256(file) != expected:
        raise CheckpointError(
            str(file), found=f"its sha256 is not the recorded one; {_describe(file)}", fix="copy the file again"
        )


def _require_file(file: Path) -> None:
    if not file.is_file():
        found, fix = f"no file {file.name!r} there", "copy the whole folder again"
        raise CheckpointNotFoundError(str(file.parent), found=found, fix=fix)


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


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write settings."""
    file.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read settings.

    Raises
    ------
    CheckpointError
        If the file holds none.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(str(file), found=f"{_describe(file)}; {error}", fix="copy the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(str(file), found=f"a {type(data).__name__}, not settings", fix="copy the file again")
    return data


def label_names(labels: object) -> tuple[str, ...]:
    """Labels of a config.json; one name twice would be two columns of probabilities for one label."""
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise TypeError("labels are no list of names")
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"labels occur twice: {repeated[:5]}")
    return tuple(labels)


def history_values(history: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table of metrics as plain values."""
    return {
        name: [None if np.isnan(x) else x for x in column.tolist()] for name, column in history.reset_index().items()
    }


def history_table(values: Any) -> pd.DataFrame:
    """Return what :func:`history_values` was made of."""
    return pd.DataFrame(values).set_index("epoch").astype(float)
