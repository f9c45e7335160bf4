"""Finished conditions of a screen on disk, so that one that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.errors import ResumeError

__all__ = ["Part", "open_folder", "read", "write"]

_TABLES, _ARRAYS = ("table", "baselines", "trajectory"), ("expression", "latent", "draws")
_FINGERPRINT = "screen.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """One condition of the result."""

    key: tuple[str, str]
    """Perturbation and group."""
    table: pd.DataFrame
    condition: dict[str, object]
    baselines: pd.DataFrame
    trajectory: pd.DataFrame
    expression: dict[str, npt.NDArray[np.float32]]
    latent: dict[str, npt.NDArray[np.float32]]
    cells: list[str]
    draws: dict[str, npt.NDArray[np.generic]]


def open_folder(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Make a folder for a screen, or check that the one there belongs to it.

    Raises
    ------
    ResumeError
        If it belongs to another.
    """
    if folder.exists() and not folder.is_dir():
        raise ResumeError(f"perturb(resume={str(folder)!r})", found="a file", fix="name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    file, expected = folder / _FINGERPRINT, json.loads(json.dumps(fingerprint))
    if not file.exists():
        _write_text(file, json.dumps(expected, indent=1, sort_keys=True))
        return
    try:
        found = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ResumeError(
            f"perturb(resume={str(folder)!r})",
            found=f"{_FINGERPRINT}, which says of which screen it is, is damaged",
            fix="name an empty folder",
        ) from error
    if differing := sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)):
        raise ResumeError(
            f"perturb(resume={str(folder)!r})",
            found=f"it holds another screen: {', '.join(differing)} differ",
            fix="ask for the same as before, or name an empty folder",
        )


def _file(folder: Path, place: tuple[int, int], suffix: str) -> Path:
    return folder / f"condition-{place[0]:05d}-{place[1]:03d}{suffix}"


def read(folder: Path | None, place: tuple[int, int]) -> Part | None:
    """Return a condition that was finished, by its number among the perturbations and among the groups; None to do it again.

    A file that a full disk or a crash left damaged counts as none.
    """
    if folder is None or not _file(folder, place, ".json").exists():
        return None
    try:
        said = json.loads(_file(folder, place, ".json").read_text())
        with _file(folder, place, ".npz").open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        return _part(said, stored)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _part(said: dict[str, Any], stored: dict[str, npt.NDArray[Any]]) -> Part:
    tables = {name: pd.DataFrame({c: _text(stored[f"{name}/{c}"]) for c in said["columns"][name]}) for name in _TABLES}
    nested: dict[str, dict[str, npt.NDArray[Any]]] = {
        part: {k.split("/")[1]: v for k, v in stored.items() if k.startswith(f"{part}/")} for part in _ARRAYS
    }
    return Part(key=tuple(said["key"]), condition=said["condition"], cells=said["cells"], **tables, **nested)


def _text(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(object) if values.dtype.kind == "U" else values


def _plain(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(str) if values.dtype.kind not in "biuf" else values


def write(folder: Path | None, place: tuple[int, int], part: Part) -> None:
    """Keep a condition: arrays first, then what names them, each file whole or not at all."""
    if folder is None:
        return
    stored: dict[str, npt.NDArray[Any]] = {}
    columns = {}
    for name in _TABLES:
        table = getattr(part, name)
        columns[name] = list(table.columns)
        stored |= {f"{name}/{c}": _plain(table[c].to_numpy()) for c in table.columns}
    for name in _ARRAYS:
        stored |= {f"{name}/{k}": v for k, v in getattr(part, name).items()}
    partial = _file(folder, place, ".partial.npz")
    np.savez(partial, **stored)
    partial.replace(_file(folder, place, ".npz"))
    said = {"key": part.key, "condition": part.condition, "cells": part.cells, "columns": columns}
    _write_text(_file(folder, place, ".json"), json.dumps(said))


def _write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_suffix(".partial.json")
    partial.write_text(text)
    partial.replace(file)
