"""An adapter and its folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cellxpert.adapters import Adapter, AdapterSummary, read_adapter, require_name, write_adapter
from cellxpert.config import AdapterConfig
from cellxpert.data.calibration import Calibration
from cellxpert.data.cell_types import Components, TypeModel
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.errors import (
    AdapterError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    ConfigError,
)
from cellxpert.files import read_arrays


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
    write_adapter(adapter, tmp_path, components=None)
    return tmp_path


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_adapter_survives_its_folder(adapter, folder):
    found = read_adapter(folder, components=None)
    for field in dataclasses.fields(Adapter):
        if field.name not in {"tensors", "history"}:
            assert getattr(found, field.name) == getattr(adapter, field.name), field.name
    assert found.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(found.tensors[name], x) for name, x in adapter.tensors.items())
    pd.testing.assert_frame_equal(found.history, adapter.history)
    assert sorted(f.name for f in folder.iterdir()) == ["adapter.safetensors", "config.json"]


@pytest.fixture
def calibration() -> Calibration:
    """What two labels can be trusted with, as it is after training."""
    rng = np.random.default_rng(0)
    types = TypeModel(
        Components(rng.random(5), rng.normal(size=(5, 2))),
        rng.normal(size=(2, 2)),
        np.tril(rng.random((2, 2))),
        np.ones(2),
        np.ones(2),
    )
    return Calibration(
        source="validation",
        n_cells=70,
        temperature=1.3,
        confidence_Q=np.sort(rng.random(201)),
        surprise_Q=np.sort(rng.random(201)),
        distance_Q=np.sort(rng.random(201)),
        steady_V=np.array([1.0, 0, 1, 1, 0]),
        least_features=2,
        types=types,
    ).rounded()


@pytest.mark.parametrize("whose", ["base", "a copy of the base's", "own"])
def test_a_calibration_goes_with_it_and_the_bases_components_are_not_written_twice(
    adapter, calibration, tmp_path, whose
):
    own = calibration.types.components
    base = Components(own.usual_V.copy(), own.direct_VP.copy()) if whose.startswith("a copy") else own
    if whose == "own":
        base = Components(own.usual_V, own.direct_VP + 1)
    write_adapter(dataclasses.replace(adapter, calibration=calibration), tmp_path, components=base)
    stored = set(read_arrays(tmp_path / "calibration.safetensors"))
    assert ({"usual_V", "direct_VP"} <= stored) == (whose == "own")
    found = read_adapter(tmp_path, components=base).calibration
    assert found.to_dict() == calibration.to_dict()
    expected = calibration.to_arrays()
    assert found.to_arrays().keys() == expected.keys()
    assert all(np.array_equal(found.to_arrays()[name], x) for name, x in expected.items())
    assert (found.types.components is base) == (whose != "own")


def test_an_adapter_of_a_calibrated_model_needs_one(adapter, calibration, tmp_path):
    write_adapter(
        dataclasses.replace(adapter, calibration=calibration), tmp_path, components=calibration.types.components
    )
    with pytest.raises(AdapterError, match="calibrated, which this one's are not"):
        read_adapter(tmp_path, components=None)


def test_an_adapter_of_before_there_were_calibrations_is_read(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("calibration") is None
    file.write_text(json.dumps(config))
    assert read_adapter(folder, components=None).calibration is None


def test_a_missing_or_damaged_calibration_is_named(adapter, calibration, tmp_path):
    write_adapter(dataclasses.replace(adapter, calibration=calibration), tmp_path, components=None)
    file = tmp_path / "calibration.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"calibration\.safetensors[\s\S]*truncated"):
        read_adapter(tmp_path, components=None)
    file.unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"calibration\.safetensors"):
        read_adapter(tmp_path, components=None)
    file.write_bytes(whole)
    assert read_adapter(tmp_path, components=None).calibration is not None


@pytest.mark.parametrize("name", ["config.json", "adapter.safetensors"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointNotFoundError, match=name):
        read_adapter(folder, components=None)


def test_a_damaged_file_is_refused(folder):
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        read_adapter(folder, components=None)


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
        read_adapter(folder, components=None)


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
