"""Folders appear whole or not at all, and what is read from them is checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from cellxpert import files
from cellxpert.errors import CheckpointError, CheckpointVersionError, ConfigError, OutputExistsError


def _write(target: Path, text: str, *, overwrite: bool = False) -> None:
    with files.staged_folder(target, overwrite=overwrite, marker="a.txt", what="letter") as folder:
        assert folder.parent == target.parent  # renaming within one file system is atomic
        (folder / "a.txt").write_text(text)


def test_a_folder_is_replaced_only_if_told_and_only_by_its_kind(tmp_path):
    target = tmp_path / "deep" / "letter"
    _write(target, "one")
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        _write(target, "two")
    assert (target / "a.txt").read_text() == "one"
    _write(target, "two", overwrite=True)
    assert (target / "a.txt").read_text() == "two"
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.txt").touch()
    with pytest.raises(OutputExistsError, match="it is no letter"):
        _write(other, "three", overwrite=True)
    assert [f.name for f in other.iterdir()] == ["b.txt"]
    assert sorted(f.name for f in target.parent.iterdir()) == ["letter"]


def test_a_failure_leaves_what_was_there_and_no_debris(tmp_path):
    target = tmp_path / "letter"
    _write(target, "one")
    with pytest.raises(UnicodeEncodeError):
        _write(target, "half \ud800", overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["letter"]
    assert (target / "a.txt").read_text() == "one"


def test_a_path_is_a_path(tmp_path):
    assert files.folder_of(str(tmp_path), "load") == tmp_path
    with pytest.raises(ConfigError, match=r"load\(dir_path=\)"):
        files.folder_of(3, "load")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "class None"),
        ({"model": "Other", "format_version": 1}, "'Other'"),
        ({"model": "Mine"}, "format_version None"),
        ({"model": "Mine", "format_version": True}, "format_version True"),
        ({"model": "Mine", "format_version": 4}, "reads up to 3"),
        ({"model": "Mine", "format_version": 1}, r"reads 2 to 3[\s\S]*train the model again"),
    ],
)
def test_other_formats_are_refused(tmp_path, config, message):
    files.check_format(tmp_path, {"model": "Mine", "format_version": 2}, model="Mine", version=3, oldest=2)
    files.check_format(tmp_path, {"model": "Mine", "format_version": 1}, model="Mine", version=3)
    with pytest.raises(CheckpointVersionError, match=message):
        files.check_format(tmp_path, config, model="Mine", version=3, oldest=2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "missing x"),
        ({"x": torch.zeros(2), "y": torch.zeros(1)}, "unexpected y"),
        ({"x": torch.zeros(3)}, r"\(3,\), not \(2,\)"),
        ({"x": torch.zeros(2, dtype=torch.int32)}, "int32, not"),
        ({"x": torch.tensor([1.0, float("inf")])}, "NaN or infinity"),
    ],
)
def test_tensors_are_those_that_are_expected(tmp_path, found, message):
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file(found, file)
    with pytest.raises(CheckpointError, match=message):
        files.read_tensors(file, {"x": torch.zeros(2)})


def test_tensors_without_expectations_are_read_but_must_be_finite(tmp_path):
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.tensor([1.0, 2.0])}, file)
    assert files.read_tensors(file)["x"].tolist() == [1.0, 2.0]
    safetensors.torch.save_file({"x": torch.tensor([float("nan")])}, file)
    with pytest.raises(CheckpointError, match="NaN"):
        files.read_tensors(file)
    file.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError, match="looks like a pickle"):
        files.read_tensors(file)


def test_hashes_tell_files_apart(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert files.sha256(file) == known
    files.check_file(file, known)
    file.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="looks like an HTML page"):
        files.check_file(file, known)


def test_settings_are_objects(tmp_path):
    file = tmp_path / "a.json"
    files.write_json(file, {"a": [1, None]})
    assert files.read_json(file) == {"a": [1, None]}
    for text in ("[1]", "{", ""):
        file.write_text(text)
        with pytest.raises(CheckpointError):
            files.read_json(file)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(file, {"a": float("nan")})


def test_labels_are_names_that_occur_once():
    assert files.label_names(["b", "a"]) == ("b", "a")
    for wrong in ("ab", [1], None):
        with pytest.raises(TypeError, match="list of names"):
            files.label_names(wrong)
    with pytest.raises(ValueError, match="twice"):
        files.label_names(["a", "b", "a"])


@pytest.mark.parametrize("rows", [0, 2])
def test_histories_survive_json(rows):
    table = pd.DataFrame({"epoch": [0, 1], "loss": [1.5, np.nan]}).set_index("epoch").iloc[:rows]
    pd.testing.assert_frame_equal(files.history_table(files.history_values(table)), table, check_index_type=False)
