"""Saved models: whole or not at all, checked when read."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import cellxpert as cx
from cellxpert.checkpoint import FORMAT_VERSION, TrainedState, load_state, save_state, weights_hash
from cellxpert.data.perturbations import Perturbations
from cellxpert.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    ConfigError,
    NotTrainedError,
    OutputExistsError,
    VocabularyError,
)
from cellxpert.nn.network import Network


@pytest.fixture(scope="module")
def saved(trained: cx.CellxPert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; tests change copies of it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    trained.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def _edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / "weights.safetensors")
    _edit_config(folder, sha256={})


def test_save_then_load_is_bit_equal(trained: cx.CellxPert, saved: Path) -> None:
    loaded = cx.CellxPert.load(saved, trained._data)
    assert weights_hash(loaded._state.network) == weights_hash(trained._state.network)
    assert np.array_equal(loaded.get_latent(inplace=False), trained.get_latent(inplace=False))
    assert loaded.annotate(inplace=False).equals(trained.annotate(inplace=False))
    assert loaded.labels == trained.labels
    assert loaded.history.keys() == trained.history.keys()
    for name, table in trained.history.items():
        assert np.allclose(loaded.history[name], table, rtol=1e-12, atol=0)


def test_folder_holds_no_pickle(saved: Path) -> None:
    names = [
        "calibration.safetensors",
        "config.json",
        "integration.safetensors",
        "vocabulary.json",
        "weights.safetensors",
    ]
    assert sorted(f.name for f in saved.iterdir()) == names


def test_existing_folder_is_kept_unless_told_otherwise(trained: cx.CellxPert, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        trained.save(copy)
    trained.save(copy, overwrite=True)
    assert cx.CellxPert.load(copy).is_trained
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").touch()
    with pytest.raises(OutputExistsError, match="no saved model"):
        trained.save(other, overwrite=True)
    assert (other / "cat.jpg").exists()


def test_failed_save_leaves_the_old_model_and_no_debris(
    trained: cx.CellxPert, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        trained.save(copy, overwrite=True)
    assert cx.CellxPert.load(copy).is_trained
    assert [f.name for f in copy.parent.iterdir()] == [copy.name]


def test_untrained_model_is_not_saved(pbmc, tmp_path: Path) -> None:
    cx.CellxPert.setup_mudata(pbmc, rna="rna")
    with pytest.raises(NotTrainedError, match=r"model\.train\(\)"):
        cx.CellxPert(pbmc, preset="nano").save(tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    ["config.json", "vocabulary.json", "weights.safetensors", "calibration.safetensors", "integration.safetensors"],
)
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    for _ in range(2):
        with pytest.raises(CheckpointNotFoundError, match=name):
            cx.CellxPert.load(copy)
        if name == "config.json":
            return
        _edit_config(copy, sha256={})  # nor without hashes


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cx.CellxPert.load(tmp_path / "nowhere")


@pytest.mark.parametrize("dir_path", [None, 3, b"model"])
def test_no_path(trained: cx.CellxPert, dir_path: object) -> None:
    with pytest.raises(ConfigError, match=r"load\(dir_path=\)"):
        cx.CellxPert.load(dir_path)
    with pytest.raises(ConfigError, match=r"save\(dir_path=\)"):
        trained.save(dir_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x80\x04\x95abc", "pickle"),
        (b"PK\x03\x04abc", "pickle"),
    ],
    ids=["html", "pickle", "zip"],
)
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "vocabulary.json", "calibration.safetensors", "integration.safetensors"]
)
def test_other_things_in_a_file_are_named(copy: Path, name: str, content: bytes, message: str) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        cx.CellxPert.load(copy)
    _edit_config(copy, sha256={})  # without hashes the content itself is refused
    with pytest.raises(CheckpointError, match=message):
        cx.CellxPert.load(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x80\x04\x95abc", "pickle"),
        (b"PK\x03\x04abc", "pickle"),
        (b'{"format_version": 1, "mod', "truncated"),
        (b"", "0 bytes"),
        (b"\xff\xfe{", "truncated"),
        (b"[1, 2]", "a list"),
        (b"{}", "class None"),
        (b'{"model": "CellxPert"}', "format_version None"),
    ],
    ids=["html", "pickle", "zip", "truncated", "empty", "not utf-8", "list", "no entries", "one entry"],
)
def test_damaged_config(copy: Path, content: bytes, message: str) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        cx.CellxPert.load(copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.safetensors"])
def test_truncated_tensors(copy: Path, name: str) -> None:
    file = copy / name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{name}[\s\S]*sha256"):
        cx.CellxPert.load(copy)
    _edit_config(copy, sha256={})
    with pytest.raises(CheckpointError, match=rf"{name}[\s\S]*truncated"):
        cx.CellxPert.load(copy)


def test_other_formats_and_other_class(copy: Path) -> None:
    _edit_config(copy, format_version=FORMAT_VERSION + 1)
    with pytest.raises(CheckpointVersionError, match="upgrade"):
        cx.CellxPert.load(copy)
    _edit_config(copy, format_version=FORMAT_VERSION - 1)
    with pytest.raises(CheckpointVersionError, match="train the model again"):
        cx.CellxPert.load(copy)
    _edit_config(copy, format_version=FORMAT_VERSION, model="Other")
    with pytest.raises(CheckpointVersionError, match="Other"):
        cx.CellxPert.load(copy)


@pytest.mark.parametrize("version", [True, 0, -1, 1.0, "1", None])
def test_a_format_version_that_is_none(copy: Path, version: object) -> None:
    _edit_config(copy, format_version=version)
    with pytest.raises(CheckpointVersionError, match=re.escape(f"format_version {version!r}")):
        cx.CellxPert.load(copy)


@pytest.mark.parametrize(
    "entry",
    ["config", "setup", "labels", "seed", "vocabulary_hash", "weights_hash", "history"],
)
def test_config_without_an_entry(copy: Path, entry: str) -> None:
    file = copy / "config.json"
    config = json.loads(file.read_text())
    del config[entry]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"KeyError\('{entry}'\)"):
        cx.CellxPert.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": []}, "sha256"),
        ({"sha256": None}, "sha256"),
        ({"sha256": {"absent.safetensors": "0"}}, "absent"),
        ({"sha256": {"../other": "0"}}, "other"),
        ({"sha256": {"vocabulary.json": None}}, "sha256"),
        ({"config": []}, "items"),
        ({"setup": {"modalities": {}}}, r"setup of \[\], and features of .'rna'."),
        ({"setup": {"modalities": 3}}, "the stored setup: TypeError"),
        ({"labels": "abcdef"}, "list of names"),
        ({"labels": [1, 2, 3, 4, 5, 6]}, "list of names"),
        ({"seed": "x"}, "invalid literal"),
        ({"history": 3}, "DataFrame"),
    ],
)
def test_config_with_an_impossible_entry(copy: Path, changes: dict[str, object], message: str) -> None:
    _edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        cx.CellxPert.load(copy)


def test_repeated_labels_are_refused(copy: Path) -> None:
    labels = json.loads((copy / "config.json").read_text())["labels"]
    _edit_config(copy, labels=[labels[0], *labels[:-1]])
    with pytest.raises(CheckpointError, match="twice"):
        cx.CellxPert.load(copy)


def test_altered_weights_are_refused_without_file_hashes(copy: Path) -> None:
    tensors = safetensors.torch.load_file(copy / "weights.safetensors")
    name = next(k for k, v in sorted(tensors.items()) if v.is_floating_point())
    _replace_weights(copy, tensors | {name: tensors[name] + 0.5})
    with pytest.raises(CheckpointError, match="other weights"):
        cx.CellxPert.load(copy)
    _replace_weights(copy, tensors)
    assert cx.CellxPert.load(copy).is_trained


def test_weights_of_another_type_are_refused(copy: Path) -> None:
    tensors = safetensors.torch.load_file(copy / "weights.safetensors")
    name = next(k for k, v in sorted(tensors.items()) if v.is_floating_point())
    _replace_weights(copy, tensors | {name: tensors[name].to(torch.int32)})
    with pytest.raises(CheckpointError, match=f"{name} is torch.int32, not torch.float32"):
        cx.CellxPert.load(copy)


def test_weights_missing_unexpected_misshapen_or_not_finite(copy: Path) -> None:
    tensors = safetensors.torch.load_file(copy / "weights.safetensors")
    name, other = sorted(tensors)[:2]
    _replace_weights(copy, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        cx.CellxPert.load(copy)
    _replace_weights(copy, tensors | {"extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="unexpected extra"):
        cx.CellxPert.load(copy)
    _replace_weights(copy, tensors | {name: torch.zeros(1, 1, 1)})
    with pytest.raises(CheckpointError, match="not \\("):
        cx.CellxPert.load(copy)
    _replace_weights(copy, tensors | {other: torch.full_like(tensors[other], float("nan"))})
    with pytest.raises(CheckpointError, match="NaN"):
        cx.CellxPert.load(copy)


# --- calibration -------------------------------------------------------------------------------------------------------


def test_what_labels_can_be_trusted_with_survives_bit_for_bit(trained: cx.CellxPert, saved: Path) -> None:
    own, loaded = trained._state.calibration, load_state(saved).calibration
    assert loaded.to_dict() == own.to_dict()
    arrays = loaded.to_arrays()
    assert arrays.keys() == own.to_arrays().keys()
    assert all(np.array_equal(arrays[name], x) for name, x in own.to_arrays().items())


def test_models_that_are_not_calibrated_are_loaded(copy: Path, trained: cx.CellxPert) -> None:
    """Probabilities are taken at their word, no cell is strange."""
    (copy / "calibration.safetensors").unlink()
    file = copy / "config.json"
    config = json.loads(file.read_text()) | {"calibration": None}
    del config["sha256"]["calibration.safetensors"]
    file.write_text(json.dumps(config))
    loaded = cx.CellxPert.load(copy, trained._data)
    assert loaded._state.calibration is None
    table = loaded.annotate(inplace=False)
    assert set(table["reason"]) == {"labelled"}
    assert table["ood"].isna().all()
    proba = loaded.annotate(inplace=False, return_proba=True)
    assert (proba.columns[proba.to_numpy().argmax(axis=1)] == table["label"]).all()
    assert np.array_equal(loaded.get_latent(inplace=False), trained.get_latent(inplace=False))
    with pytest.raises(ConfigError, match="not calibrated"):
        loaded.annotate(inplace=False, set_coverage=0.9)
    loaded.save(copy, overwrite=True)
    assert not (copy / "calibration.safetensors").exists()
    assert cx.CellxPert.load(copy, trained._data).annotate(inplace=False).equals(table)


@pytest.mark.parametrize("value", [3, [], {"source": "out-of-fold"}, {"temperature": "hot"}])
def test_impossible_calibrations_are_refused(copy: Path, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    if value == {"temperature": "hot"}:
        value = config["calibration"] | value
    _edit_config(copy, calibration=value)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        cx.CellxPert.load(copy)


def test_calibrations_without_an_array_or_with_nan_are_refused(copy: Path) -> None:
    file = copy / "calibration.safetensors"
    tensors = safetensors.torch.load_file(file)
    _edit_config(copy, sha256={})
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != "mean_CP"}, file)
    with pytest.raises(CheckpointError, match="mean_CP"):
        cx.CellxPert.load(copy)
    safetensors.torch.save_file(tensors | {"root_PP": torch.full_like(tensors["root_PP"], float("nan"))}, file)
    with pytest.raises(CheckpointError, match="root_PP holds NaN"):
        cx.CellxPert.load(copy)


def test_other_vocabulary_is_refused(copy: Path) -> None:
    file = copy / "vocabulary.json"
    data = json.loads(file.read_text())
    data["blocks"][0]["counts"][0] += 1
    file.write_text(json.dumps(data))
    _edit_config(copy, sha256={})
    with pytest.raises(CheckpointError, match="another vocabulary"):
        cx.CellxPert.load(copy)


def test_unknown_setting_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())["config"]
    config["network"]["flux"] = 3
    _edit_config(copy, config=config)
    with pytest.raises(ValueError, match="flux"):
        cx.CellxPert.load(copy)


def test_a_loaded_model_is_not_trained_anew_in_silence(trained: cx.CellxPert, saved: Path) -> None:
    loaded = cx.CellxPert.load(saved, trained._data)
    before = weights_hash(loaded._state.network)
    with pytest.raises(ConfigError, match="loaded"):
        loaded.train(max_epochs=1, progress_bar=False)
    assert weights_hash(loaded._state.network) == before


# --- perturbations -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perturbed(trained: cx.CellxPert) -> TrainedState:
    """A state that has seen three perturbed genes; its weights are random."""
    state = trained._state
    seen = Perturbations.fit(["NT", "A1", "B2+C3", "A1+C3"], control="NT", kind="knockdown")
    network = Network.from_config(
        state.config,
        feature_modality=state.vocabulary.role_of_feature.tolist(),
        n_labels=len(state.labels),
        n_targets=len(seen.targets),
        seed=7,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.startswith("factors."):  # learned tables and fitted buffers alike
                tensor.uniform_(0.5, 1.5, generator=generator)
    setup = dataclasses.replace(
        state.setup, perturbation_key="guide", control_category="NT", perturbation_type="knockdown"
    )
    return dataclasses.replace(state, perturbations=seen, network=network.eval(), setup=setup)


@pytest.fixture
def perturbed_copy(perturbed: TrainedState, tmp_path: Path) -> Path:
    """It, saved."""
    return save_state(perturbed, tmp_path / "perturbed")


def test_what_was_seen_of_perturbed_cells_travels_with_the_model(perturbed: TrainedState, perturbed_copy: Path) -> None:
    loaded = load_state(perturbed_copy)
    assert loaded.perturbations == perturbed.perturbations
    assert loaded.setup == perturbed.setup
    weights, expected = loaded.network.state_dict(), perturbed.network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert weights["factors.intervention.code.weight"].shape[0] == 3
    assert "factors.intervention.response_V" in weights


@pytest.mark.parametrize(
    "part", ["perturbations", "calibration", "integration", "tissues", "batches", "steered", "trained_on"]
)
def test_what_a_model_does_not_have_is_said_too(saved: Path, copy: Path, part: str) -> None:
    """A part that is left out is damage, not absence."""
    config = json.loads((copy / "config.json").read_text())
    assert load_state(saved).perturbations is config["perturbations"] is None
    del config[part]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=part):
        load_state(copy)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"targets": ["A1", "B2"]}, CheckpointError, r"code\.weight is \(3, \d+\), not \(2, "),
        ({"targets": ["B2", "A1", "C3"]}, VocabularyError, "perturbations"),
        ({"targets": "A1"}, VocabularyError, "lists of names"),
        ({"kind": "deletion"}, VocabularyError, "deletion"),
        ({"kind": ["knockdown"]}, VocabularyError, "knockdown"),
    ],
)
def test_damaged_perturbations_are_refused(
    perturbed_copy: Path, change: dict[str, object], kind: type[Exception], message: str
) -> None:
    config = json.loads((perturbed_copy / "config.json").read_text())
    _edit_config(perturbed_copy, perturbations=config["perturbations"] | change)
    with pytest.raises(kind, match=message):
        load_state(perturbed_copy)


@pytest.mark.parametrize("value", [None, 3, [], {}])
def test_weights_of_perturbed_genes_without_their_names_are_refused(perturbed_copy: Path, value: object) -> None:
    _edit_config(perturbed_copy, perturbations=value)
    with pytest.raises((CheckpointError, VocabularyError), match="perturbations|unexpected factors"):
        load_state(perturbed_copy)


# --- batches -----------------------------------------------------------------------------------------------------------


def test_batches_travel_with_the_model(trained: cx.CellxPert, tmp_path: Path) -> None:
    state = trained._state
    network = Network.from_config(
        state.config,
        feature_modality=state.vocabulary.role_of_feature.tolist(),
        n_labels=len(state.labels),
        n_batches=2,
        seed=7,
    )
    with torch.no_grad():
        network.batches.tilt.weight.normal_(generator=torch.Generator().manual_seed(0))
    told = dataclasses.replace(state, network=network.eval(), batches=("b", "a"))
    folder = save_state(told, tmp_path / "told")
    loaded = load_state(folder)
    assert loaded.batches == ("b", "a")
    assert weights_hash(loaded.network) == weights_hash(network)
    _edit_config(folder, batches=["b", "a", "c"])
    with pytest.raises(CheckpointError, match=r"batches\..* is \(2, \d+\), not \(3, "):
        load_state(folder)
    _edit_config(folder, batches=["b", "b"])
    with pytest.raises(CheckpointError, match="twice"):
        load_state(folder)
