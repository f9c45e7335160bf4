"""An adapter and its folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from cellxpert.adapters import Adapter, AdapterSummary, read_adapter, require_name, write_adapter
from cellxpert.config import AdapterConfig
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.errors import (
    AdapterError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    ConfigError,
)


@pytest.fixture
def adapter() -> Adapter:
    """Return a small adapter."""
    return Adapter(
        name="lab",
        config=AdapterConfig(rank=2, alpha=3.0, targets=("qkv",)),
        tensors={"a.lora_A": torch.randn(2, 3), "labels.cell.bias": torch.ones(2)},
        labels=("B", "A"),
        setup=Setup(modalities=(ModalitySetup(role="rna", name="rna"),), labels_key="kind"),
        history=pd.DataFrame({"train_loss": [2.0, float("nan")]}, index=pd.Index([0, 1], name="epoch")),
        base_hash="b" * 64,
        vocabulary_hash="v" * 64,
    )


@pytest.fixture
def folder(adapter: Adapter, tmp_path: Path) -> Path:
    """It, written."""
    write_adapter(adapter, tmp_path)
    return tmp_path


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_adapter_survives_its_folder(adapter, folder):
    found = read_adapter(folder)
    for field in dataclasses.fields(Adapter):
        if field.name not in {"tensors", "history"}:
            assert getattr(found, field.name) == getattr(adapter, field.name), field.name
    assert found.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(found.tensors[name], x) for name, x in adapter.tensors.items())
    pd.testing.assert_frame_equal(found.history, adapter.history)
    assert sorted(f.name for f in folder.iterdir()) == ["adapter.safetensors", "config.json"]


@pytest.mark.parametrize("name", ["config.json", "adapter.safetensors"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointNotFoundError, match=name):
        read_adapter(folder)


def test_a_damaged_file_is_refused(folder):
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"format_version": 2}, CheckpointVersionError, "reads up to 1"),
        ({"model": "CellxPert"}, CheckpointVersionError, "class 'CellxPert'"),
        ({"sha256": {}}, CheckpointError, "KeyError"),
        ({"sha256": None}, CheckpointError, "TypeError"),
        ({"labels": ["a", "a"]}, CheckpointError, "twice"),
        ({"setup": {}}, CheckpointError, "setup"),
        ({"history": 3}, CheckpointError, "DataFrame"),
        ({"adapter": {"rang": 3}}, CheckpointError, "rang"),
        ({"adapter": {"rank": 0, "targets": ["qkv"]}}, ConfigError, "rank"),
        ({"name": "../model"}, AdapterError, "name of an adapter"),
    ],
)
def test_impossible_settings_are_refused(folder, changes, kind, message):
    _edit(folder, **changes)
    with pytest.raises(kind, match=message):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["a", "lab_2", "T-cells.v1", "_"])
def test_names_that_are_folders(name):
    assert require_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", " a", "ä", "a" * 101, None, 3, "a\n"])
def test_names_that_are_none(name):
    with pytest.raises(AdapterError, match="name of an adapter"):
        require_name(name)


def test_a_summary_says_how_much_trains():
    summary = AdapterSummary("x", 12_345, 2_345_678)
    assert repr(summary) == "adapter 'x': 12,345 of 2,345,678 parameters train (0.53 %)"
    assert summary.share == pytest.approx(12_345 / 2_345_678)
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.name = "y"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ia3"}, "method"),
        ({"rank": 0}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"targets": ()}, "targets"),
        ({"targets": (1,)}, "targets"),
        ({"method": "prompts"}, "n_prompts"),
        ({"method": "prompts", "n_prompts": 3}, "targets"),
    ],
)
def test_settings_of_adapters_are_checked(settings, message):
    with pytest.raises(ConfigError, match=f"AdapterConfig.{message}"):
        AdapterConfig(**{"targets": ("qkv",)} | settings)
