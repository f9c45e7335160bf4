"""A trained model as a folder: ``config.json``, ``vocabulary.json``, ``weights.safetensors``, and its adapters. Nothing in it is a pickle.

The folder is written beside its place and renamed, so that an interrupted save leaves the old one whole. Reading checks
every file's sha256, the format version, and that all weights are there, finite, of their shapes and types, and those saved.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch

from cellxpert.adapters import Adapter, read_adapter, require_name, write_adapter
from cellxpert.config import ModelConfig
from cellxpert.data.calibration import Calibration, Tissues
from cellxpert.data.cell_types import Components
from cellxpert.data.integration import Integration
from cellxpert.data.perturbations import Perturbations
from cellxpert.data.record import Setup
from cellxpert.data.splits import TrainedOn
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    NotSetUpError,
    VocabularyError,
)
from cellxpert.files import (
    CALIBRATION,
    INTEGRATION,
    check_file,
    check_format,
    folder_of,
    history_table,
    history_values,
    label_names,
    read_arrays,
    read_json,
    read_tensors,
    sha256,
    staged_folder,
    write_arrays,
    write_json,
)
from cellxpert.nn.network import Network

__all__ = [
    "FORMAT_VERSION",
    "TrainedState",
    "components_of",
    "load_adapters",
    "load_state",
    "save_state",
    "weights_hash",
]

FORMAT_VERSION = 5
"""Version of the folder's layout and of the network's weights; readers refuse others, as weights of another network mean nothing here."""
_CONFIG, _VOCABULARY, _WEIGHTS = "config.json", "vocabulary.json", "weights.safetensors"
_ADAPTERS = "adapters"


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
    calibration: Calibration | None = None
    """What labels can be trusted with; None: not measured."""
    tissues: Tissues | None = None
    """Tissues that it tells apart."""
    batches: tuple[str, ...] = ()
    """Batches that its decoder can be told of."""
    integration: Integration | None = None
    """Where integrated cells stand; None: no space was fitted."""
    steered: bool = False
    """Whether labels trained what is below the label head."""
    trained_on: TrainedOn | None = None
    """Which cells of its object it was trained on; None: not known."""


def _tensors(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def weights_hash(network: Network) -> str:
    """Return the sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(network).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save_state(
    state: TrainedState,
    dir_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    adapters: Sequence[Adapter] = (),
    active: str | None = None,
) -> Path:
    """Write a model.

    Parameters
    ----------
    state
        The model.
    dir_path
        Folder to make.
    overwrite
        Replace the folder if it is there.
    adapters, active
        Its adapters, and the name of the one in use.

    Returns
    -------
    The folder.

    Raises
    ------
    OutputExistsError
        If the folder is there and ``overwrite`` is False, or if it is there and is no saved model.
    """
    from importlib.metadata import version

    target = folder_of(dir_path, "save")
    with staged_folder(target, overwrite=overwrite, marker=_WEIGHTS, what="saved model") as staging:
        safetensors.torch.save_file(_tensors(state.network), staging / _WEIGHTS)
        write_json(staging / _VOCABULARY, state.vocabulary.to_dict())
        files = [_VOCABULARY, _WEIGHTS]
        if state.calibration is not None:
            write_arrays(staging / CALIBRATION, state.calibration.to_arrays())
            files.append(CALIBRATION)
        if state.integration is not None:
            write_arrays(staging / INTEGRATION, state.integration.to_arrays())
            files.append(INTEGRATION)
        config = {
            "format_version": FORMAT_VERSION,
            "model": "CellxPert",
            "cellxpert_version": version("cellxpert"),
            "config": state.config.to_dict(),
            "setup": state.setup.to_dict(),
            "labels": list(state.labels),
            "steered": state.steered,
            "trained_on": None if state.trained_on is None else state.trained_on.to_dict(),
            "seed": state.seed,
            "perturbations": None if state.perturbations is None else state.perturbations.to_dict(),
            "calibration": None if state.calibration is None else state.calibration.to_dict(),
            "tissues": None if state.tissues is None else asdict(state.tissues),
            "batches": list(state.batches),
            "integration": None if state.integration is None else state.integration.to_dict(),
            "vocabulary_hash": state.vocabulary.hash(),
            "weights_hash": weights_hash(state.network),
            "history": history_values(state.history),
            "sha256": {name: sha256(staging / name) for name in files},
        }
        if adapters:
            config["adapters"] = {"names": [adapter.name for adapter in adapters], "active": active}
        for adapter in adapters:
            folder = staging / _ADAPTERS / adapter.name
            folder.mkdir(parents=True)
            write_adapter(adapter, folder, components=components_of(state))
        write_json(staging / _CONFIG, config)
    return target


def load_adapters(
    dir_path: str | os.PathLike[str], *, components: Components | None
) -> tuple[tuple[Adapter, ...], str | None]:
    """Read the adapters of a model that :func:`save_state` wrote, and which of them was in use.

    Raises
    ------
    CheckpointError
        If one is missing or damaged, or is none of this model.
    """
    folder = folder_of(dir_path, "load")
    config = read_json(folder / _CONFIG)
    found = config.get("adapters", {"names": [], "active": None})
    try:
        names, active = label_names(found["names"]), found["active"]
        if active is not None and active not in names:
            raise ValueError(f"{active!r} is in use, of {list(names)}")
    except (KeyError, TypeError, ValueError) as error:
        found = f"adapters: {error!r}"
        raise CheckpointError(str(folder / _CONFIG), found=found, fix="save the model again") from error
    adapters = []
    for name in names:
        adapter = read_adapter(folder / _ADAPTERS / require_name(name), components=components)
        if (adapter.name, adapter.base_hash) != (name, config["weights_hash"]):
            found = f"adapter {adapter.name!r} of weights {adapter.base_hash[:12]}"
            raise CheckpointError(str(folder / _ADAPTERS / name), found=found, fix="copy the whole folder again")
        adapters.append(adapter)
    return tuple(adapters), active


def load_state(dir_path: str | os.PathLike[str]) -> TrainedState:
    """Read a model that :func:`save_state` wrote.

    Raises
    ------
    ConfigError
        If ``dir_path`` is no path.
    CheckpointNotFoundError
        If the folder or one of its files is missing.
    CheckpointVersionError
        If the format is not the one that this version reads, or the folder holds another kind of model.
    CheckpointError
        If a file is damaged, or weights are missing, unexpected, of another shape or type, not finite, or not those
        that were saved.
    """
    folder = folder_of(dir_path, "load")
    for name in (_CONFIG, _VOCABULARY, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointNotFoundError(
                str(folder), found=f"no file {name!r} there", fix="give the folder that model.save() wrote"
            )
    config = read_json(folder / _CONFIG)
    check_format(folder, config, model="CellxPert", version=FORMAT_VERSION, oldest=FORMAT_VERSION)
    _check_files(folder, config.get("sha256", {}))
    try:
        settings = ModelConfig.from_dict(config["config"])
        setup = Setup.from_dict(config["setup"])
        vocabulary = Vocabulary.from_dict(read_json(folder / _VOCABULARY))
        labels, seed = label_names(config["labels"]), int(config["seed"])
        steered = bool(config["steered"])
        hashes = config["vocabulary_hash"], config["weights_hash"]
        seen = config["perturbations"]
        perturbations = None if seen is None else Perturbations.from_dict(seen)
        calibration = None
        if (measured := config["calibration"]) is not None:
            calibration = Calibration.of(measured, read_arrays(folder / CALIBRATION))
        integration = None
        if (placed := config["integration"]) is not None:
            integration = Integration.of(placed, read_arrays(folder / INTEGRATION))
            if (n_read := len(integration.reading.usual_V)) != vocabulary.n_features:
                raise ValueError(f"an integration of {n_read} features, of {vocabulary.n_features}")
        seen_cells = config["trained_on"]
        trained_on = None if seen_cells is None else TrainedOn.from_dict(seen_cells)
        tissues = None
        if (told := config["tissues"]) is not None:
            tissues = Tissues(names=label_names(told["names"]), temperature=float(told["temperature"]))
        batches = label_names(config["batches"])
        history = history_table(config["history"])
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
        n_tissues=0 if tissues is None else len(tissues.names),
        n_batches=len(batches),
        seed=seed,
    )
    network.load_state_dict(read_tensors(folder / _WEIGHTS, network.state_dict()))
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
        calibration=calibration,
        tissues=tissues,
        batches=batches,
        integration=integration,
        steered=steered,
        trained_on=trained_on,
    )


def components_of(state: TrainedState) -> Components | None:
    """Return the components that a model tells labels in, which its adapters share."""
    return None if state.calibration is None else state.calibration.types.components


def _check_files(folder: Path, sha256: object) -> None:
    if not (isinstance(sha256, dict) and sha256.keys() <= {_VOCABULARY, _WEIGHTS, CALIBRATION, INTEGRATION}):
        found = f"sha256 of {sorted(sha256)[:5]}" if isinstance(sha256, dict) else f"sha256 is {sha256!r:.50}"
        raise CheckpointError(str(folder / _CONFIG), found=found, fix="copy config.json again")
    for name, expected in sha256.items():
        check_file(folder / name, expected)
