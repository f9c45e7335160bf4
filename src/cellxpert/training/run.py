"""From cells and settings to a trained network: split, vocabulary, tokens, labels, and one run of Lightning.

Shape suffixes: C labels, V features, K bins.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from cellxpert.config import AdapterConfig, ModelConfig, TrainingConfig
from cellxpert.data.calibration import Calibration, Tissues
from cellxpert.data.cell_types import Components
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.integration import Integration
from cellxpert.data.loaders import CellDataModule
from cellxpert.data.perturbations import Assigned, Perturbations, without_targets
from cellxpert.data.splits import PARTS
from cellxpert.data.tokens import Tokens, tokenize
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import CellxPertWarning, ConfigError, ControlError
from cellxpert.nn.network import Network
from cellxpert.training.fit import RunConfig, fit
from cellxpert.training.integration import integrate_cells
from cellxpert.training.label_task import LabelTask
from cellxpert.training.objectives import LabelObjective
from cellxpert.training.refit import refit_responses
from cellxpert.training.split import batch_codes, batches_of, classes_of, split_cells, unlearned
from cellxpert.training.start import start_from_data, start_interventions, start_label_head

__all__ = [
    "Learned",
    "TrainArguments",
    "learn",
    "perturbations_of",
    "train_network",
]

MIN_EPOCHS = 3
"""Fewest epochs of a run that is not told their number."""
CLONES = 4
"""Copies of a cell in an epoch, each with an order of its own, where positions are learned (arXiv:2605.00930)."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Arguments of :meth:`cellxpert.CellxPert.train`."""

    max_epochs: int | None = None
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    precision: str | None = None
    batch_size: int | None = None
    train_size: float = 0.9
    split_key: str | None = None
    early_stopping: bool = False
    seed: int = 0
    resume: str | os.PathLike[str] | None = None
    progress_bar: bool = True

    def settings(self, config: TrainingConfig, *, n_train: int) -> TrainingConfig:
        """The preset's settings with what was asked for in their place, and the number of epochs decided."""
        config = config if self.batch_size is None else replace(config, batch_size=self.batch_size)
        epochs = self.max_epochs
        if epochs is None:
            epochs = round(config.n_steps * config.batch_size / n_train)
            epochs = min(max(epochs, MIN_EPOCHS), config.max_epochs)
        return replace(config, max_epochs=epochs)


@dataclass(frozen=True, eq=False, kw_only=True)
class Learned:
    """What a run leaves behind. ``split`` says for each cell of the object which of ``PARTS`` it was in, ``tensors`` what an adapter is."""

    network: Network
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    history: pd.DataFrame
    split: pd.Series
    perturbations: Perturbations | None = None
    tensors: Mapping[str, Tensor] | None = None
    calibration: Calibration | None = None
    tissues: Tissues | None = None
    batches: tuple[str, ...] = ()
    integration: Integration | None = None


def train_network(
    cells: Cells, config: ModelConfig, arguments: TrainArguments, *, previous: Learned | None, seed: int
) -> Learned:
    """Train on an object.

    Parameters
    ----------
    cells
        Cells of the object.
    config
        Settings.
    arguments
        What the caller asked for.
    previous
        An earlier run on the same object, whose features, labels, split and weights are kept.
    seed
        Seed of the initial weights and of the split.

    Warns
    -----
    CellxPertWarning
        If validation or test cells have labels that no training cell has.
    """
    labels = cells.labels()
    if previous is not None:
        return learn(
            cells,
            config,
            arguments,
            network=previous.network,
            vocabulary=previous.vocabulary,
            classes=previous.labels,
            perturbations=previous.perturbations,
            split=previous.split,
            seed=seed,
            fresh=False,
            learned_targets=() if previous.perturbations is None else previous.perturbations.targets,
            history=previous.history,
            components=None if previous.calibration is None else previous.calibration.types.components,
            tissues=previous.tissues,
            batches=previous.batches,
            integration=previous.integration,
        )
    split = split_cells(cells, labels, train_size=arguments.train_size, split_key=arguments.split_key, seed=seed)
    train_rows = np.flatnonzero(split.to_numpy() == "train")
    vocabulary = Vocabulary.fit(cells, config.tokens, train_rows=train_rows)
    classes = classes_of(labels, train_rows, cells.setup.unlabeled_category)
    if text := unlearned(labels, classes, cells.setup.unlabeled_category):
        warnings.warn(text, CellxPertWarning, stacklevel=3)  # the caller of CellxPert.train
    tissues = classes_of(cells.tissues(), train_rows, cells.setup.unlabeled_category)
    perturbations = perturbations_of(cells, train_rows, config)
    batches = batches_of(cells, train_rows) if config.network.batches else ()
    network = Network.from_config(
        config,
        feature_modality=vocabulary.role_of_feature.tolist(),
        place=vocabulary.place,
        n_image=vocabulary.n_image,
        n_labels=len(classes),
        n_targets=0 if perturbations is None else len(perturbations.targets),
        n_tissues=len(tissues),
        n_batches=len(batches),
        seed=seed,
    )
    return learn(
        cells,
        config,
        arguments,
        network=network,
        vocabulary=vocabulary,
        classes=classes,
        perturbations=perturbations,
        split=split,
        seed=seed,
        fresh=True,
        tissues=Tissues(names=tissues) if tissues else None,
        batches=batches,
    )


def learn(
    cells: Cells,
    config: ModelConfig,
    arguments: TrainArguments,
    *,
    network: Network,
    vocabulary: Vocabulary,
    classes: tuple[str, ...],
    perturbations: Perturbations | None,
    split: pd.Series,
    seed: int,
    fresh: bool,
    learned_targets: tuple[str, ...] = (),
    history: pd.DataFrame | None = None,
    fit_labels: bool = False,
    adapter: AdapterConfig | None = None,
    components: Components | None = None,
    tissues: Tissues | None = None,
    batches: tuple[str, ...] = (),
    integration: Integration | None = None,
) -> Learned:
    """Train a network on the training cells of a split.

    Parameters
    ----------
    cells, config, arguments
        As in :func:`train_network`.
    network
        The network, trained in place.
    vocabulary, classes, perturbations
        Its features, labels, and what it can learn of perturbed cells.
    split
        Which of ``PARTS`` each cell is in.
    seed
        Seed of what a fresh network starts from.
    fresh
        Whether the network starts from the training cells' frequencies, components and factors.
    learned_targets
        Perturbed genes that it knows; what the others do starts at their observed effects.
    history
        Metrics of earlier epochs.
    fit_labels
        Fit the label head to its optimum afterwards, also where labels steer what is below it.
    adapter
        The adapter that trains, with the label head, where nothing else of the network does; what is fitted after training stays too.
    components
        Components that labels were told in before; found anew if None.
    tissues
        Tissues that the network tells apart.
    batches
        Batches that its decoder can be told of.
    integration
        Where cells were integrated before.
    """
    if network.labels is not None:
        network.labels.gradient = config.network.label_gradient
    rows = {part: np.flatnonzero(split.to_numpy() == part) for part in PARTS}
    if arguments.early_stopping and not len(rows["validation"]):
        raise ConfigError("train(early_stopping=True)", found="no validation cells", fix="pass train_size=0.9")
    whole, assigned = tokenize(cells, vocabulary, config.tokens), None
    tokens, conditions = whole, cells.conditions()
    if perturbations is not None and conditions is not None:
        assigned = perturbations.assign(conditions, vocabulary)
        tokens = without_targets(tokens, assigned)
    if fresh:
        start_from_data(network, vocabulary, tokens, rows=rows["train"], assigned=assigned, seed=seed)
    for head in (network.labels, network.tissues):
        if head is not None:
            start_label_head(head, vocabulary, tokens, rows=rows["train"])
    if perturbations is not None and assigned is not None:
        kept_G = np.array([gene in learned_targets for gene in perturbations.targets], bool)
        start_interventions(network, tokens, rows=rows["train"], assigned=assigned, kept_G=kept_G)
    settings = arguments.settings(config.training, n_train=len(rows["train"]))
    tissue_task = None
    if tissues is not None and adapter is None:
        tissue_task = LabelTask.of(cells, tissues.names, tissues=True)
    told, calibration, tissue_calibration = _run(
        network,
        tokens,
        rows=rows,
        task=LabelTask.of(cells, classes, components=components),
        tissue_task=tissue_task,
        assigned=assigned,
        batch_N=batch_codes(cells, batches),
        config=config,
        settings=settings,
        arguments=arguments,
        fingerprint=_fingerprint(config, settings, vocabulary, classes, split, arguments) | _said_of(adapter),
        fit_labels=fit_labels,
        fit_responses=adapter is None,
    )
    if adapter is None:
        integration = integrate_cells(cells, vocabulary, whole, rows=rows["train"], seed=seed, before=integration)
    if history is not None:
        told.index = told.index + len(history)
        told = pd.concat([history, told])
    return Learned(
        network=network,
        vocabulary=vocabulary,
        labels=classes,
        history=told,
        split=split,
        perturbations=perturbations,
        calibration=calibration,
        tissues=tissues
        if tissues is None or tissue_calibration is None
        else replace(tissues, temperature=tissue_calibration.temperature),
        batches=batches,
        integration=integration,
    )


def perturbations_of(cells: Cells, train_rows: npt.NDArray[np.int64], config: ModelConfig) -> Perturbations | None:
    """Conditions of the training cells, if the setup names a column and some are perturbed."""
    conditions, setup = cells.conditions(), cells.setup
    if conditions is None:
        return None
    seen = conditions.iloc[train_rows]
    if not (seen == setup.control_category).any():
        raise ControlError(
            f"obs[{setup.perturbation_key!r}]",
            found=f"no training cell is {setup.control_category!r}",
            fix="leave control cells among the training cells",
        )
    if (seen == setup.control_category).all():
        return None
    if not config.network.n_factors:
        found = "0, and perturbed cells to learn from"
        raise ConfigError("NetworkConfig.n_factors", found=found, fix="pass config=preset(...).replace(n_factors=64)")
    return Perturbations.fit(list(seen), control=setup.control_category, kind=setup.perturbation_type)


def _run(
    network: Network,
    tokens: Tokens,
    *,
    rows: dict[str, npt.NDArray[np.int64]],
    task: LabelTask | None,
    tissue_task: LabelTask | None,
    assigned: Assigned | None,
    batch_N: npt.NDArray[np.int64] | None,
    config: ModelConfig,
    settings: TrainingConfig,
    arguments: TrainArguments,
    fingerprint: dict[str, object],
    fit_labels: bool,
    fit_responses: bool,
) -> tuple[pd.DataFrame, Calibration | None, Calibration | None]:
    collator = Collator(
        tokens,
        n_features=network.n_features,
        n_bins=network.n_bins,
        mask_ratio=settings.mask_ratio,
        n_queries=settings.n_queries,
        n_cell_queries=settings.n_cell_queries,
        zeros=config.tokens.zeros,
        shuffle_positions=config.network.position,
        whole=settings.cell_weight > 0,
        assigned=assigned,
        blank=0.0 if assigned is None else settings.blank,
        batches=batch_N,
        modality_V=network.embedding.feature_modality[:-1].numpy(),
        modality_dropout=settings.modality_dropout,
    )
    data = CellDataModule(
        collator,
        train_rows=rows["train"],
        validation_rows=rows["validation"],
        labels=None if task is None else task.code_N,
        batch_size=settings.batch_size,
        clones=CLONES if config.network.position else 1,
        seed=arguments.seed,
    )
    run = RunConfig(
        max_epochs=settings.max_epochs,
        seed=arguments.seed,
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        precision=arguments.precision,
        early_stopping=arguments.early_stopping,
        resume=arguments.resume,
        fingerprint=fingerprint,
        progress_bar=arguments.progress_bar,
    )
    objective = LabelObjective() if task is None else task.objective(rows["train"], settings)
    history = fit(network, data, settings, labels=objective, run=run)
    gradient = config.network.label_gradient
    found: list[Calibration | None] = []
    for told, head, steered in ((task, network.labels, gradient > 0), (tissue_task, network.tissues, False)):
        calibration = None
        if told is not None and head is not None:
            calibration = told.finish(
                network,
                collator,
                rows,
                head=head,
                settings=settings,
                seed=arguments.seed,
                fit_labels=fit_labels or not steered,
                steered=steered,
            )
        found.append(calibration)
    if assigned is not None and fit_responses:
        refit_responses(network, tokens, rows=rows["train"], assigned=assigned)
    return history, found[0], found[1]


def _fingerprint(
    config: ModelConfig,
    settings: TrainingConfig,
    vocabulary: Vocabulary,
    classes: tuple[str, ...],
    split: pd.Series,
    arguments: TrainArguments,
) -> dict[str, object]:
    """What a resumed run must share with the one that was interrupted."""
    cells = hashlib.sha256("\n".join(f"{name}\t{part}" for name, part in split.items()).encode()).hexdigest()
    return {
        "config": replace(config, training=settings).to_dict(),
        "vocabulary": vocabulary.hash(),
        "labels": list(classes),
        "cells": cells,
        "seed": arguments.seed,
        "early_stopping": arguments.early_stopping,
    }


def _said_of(adapter: AdapterConfig | None) -> dict[str, object]:
    return {} if adapter is None else {"adapter": adapter.to_dict()}
