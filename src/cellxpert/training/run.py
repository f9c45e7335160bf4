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
from cellxpert.errors import CellxPertWarning, ConfigError
from cellxpert.nn.network import Network
from cellxpert.training.fit import RunConfig, fit
from cellxpert.training.integration import integrate_cells
from cellxpert.training.label_task import LabelTask, uncalibrated
from cellxpert.training.objectives import LabelObjective
from cellxpert.training.refit import refit_responses, refit_usual
from cellxpert.training.split import (
    batch_codes,
    batches_of,
    classes_of,
    perturbations_of,
    split_cells,
    unlearned,
    unseen_batches,
)
from cellxpert.training.start import make_network, start_from_data, start_interventions, start_label_head

__all__ = [
    "Learned",
    "TrainArguments",
    "learn",
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
    steered: bool = False
    """Whether labels trained what is below the label head, in this run or an earlier one."""


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
        If validation or test cells have labels or batches that no training cell has, or labels were learned of too few cells to calibrate.
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
            steered=previous.steered,
        )
    split = split_cells(cells, labels, train_size=arguments.train_size, split_key=arguments.split_key, seed=seed)
    train_rows = np.flatnonzero(split.to_numpy() == "train")
    vocabulary = Vocabulary.fit(cells, config.tokens, train_rows=train_rows)
    classes = classes_of(labels, train_rows, cells.setup.unlabeled_category)
    for text in (unlearned(labels, classes, cells.setup.unlabeled_category), unseen_batches(cells, train_rows)):
        if text:
            warnings.warn(text, CellxPertWarning, stacklevel=3)  # the caller of CellxPert.train
    names = classes_of(cells.tissues(), train_rows, cells.setup.unlabeled_category)
    tissues = Tissues(names=names) if names else None
    perturbations = perturbations_of(cells, train_rows, config)
    batches = batches_of(cells, train_rows) if config.network.batches else ()
    network = make_network(
        config, vocabulary, labels=classes, perturbations=perturbations, tissues=tissues, batches=batches, seed=seed
    )
    learned = learn(
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
        tissues=tissues,
        batches=batches,
    )
    if text := uncalibrated(classes, learned.calibration):
        warnings.warn(text, CellxPertWarning, stacklevel=3)
    return learned


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
    steered: bool = False,
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
    steered
        Whether labels trained what is below the label head before: then training cells are not new to it.
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
    task = LabelTask.of(cells, classes, train_rows=rows["train"], components=components)
    steered = steered or (task is not None and task.steers(rows["train"], config.network.label_gradient))
    names = () if tissues is None or adapter is not None else tissues.names
    told, calibration, tissue_calibration = _run(
        network,
        tokens,
        rows=rows,
        task=task,
        tissue_task=LabelTask.of(cells, names, train_rows=rows["train"], tissues=True),
        assigned=assigned,
        batch_N=batch_codes(cells, batches),
        config=config,
        settings=settings,
        arguments=arguments,
        fingerprint=_fingerprint(config, settings, vocabulary, classes, split, arguments) | _said_of(adapter),
        fit_labels=fit_labels or config.network.label_gradient == 0,
        steered=steered,
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
        tissues=_calibrated(tissues, tissue_calibration),
        batches=batches,
        integration=integration,
        steered=steered,
    )


def _calibrated(tissues: Tissues | None, calibration: Calibration | None) -> Tissues | None:
    if tissues is None or calibration is None:
        return tissues
    return replace(tissues, temperature=calibration.temperature)


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
    steered: bool,
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
        blank=settings.share_blank(perturbed=assigned is not None),
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
    found: list[Calibration | None] = []
    for told, head in ((task, network.labels), (tissue_task, network.tissues)):
        calibration = None
        if told is not None and head is not None:
            of_labels = head is network.labels
            calibration = told.finish(
                network,
                collator,
                rows,
                head=head,
                settings=settings,
                seed=arguments.seed,
                fit_labels=fit_labels or not of_labels,  # tissues steer nothing
                steered=steered and of_labels,
            )
        found.append(calibration)
    if fit_responses:
        refit_usual(network)
        if assigned is not None:
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
