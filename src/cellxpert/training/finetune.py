"""Training that goes on with a trained network on other cells: other labels, perturbed cells that it has never seen.

Shape suffixes: as in :mod:`cellxpert.nn.network`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cellxpert.config import AdapterConfig, ModelConfig
from cellxpert.data.calibration import Calibration, Tissues
from cellxpert.data.cell_types import Components
from cellxpert.data.cells import Cells
from cellxpert.data.integration import Integration
from cellxpert.data.perturbations import Perturbations
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import AdapterError, CellxPertWarning
from cellxpert.nn.network import Network
from cellxpert.training.adapters import HEAD, inject, merged, require_same_answers, tensors_of
from cellxpert.training.label_task import uncalibrated
from cellxpert.training.run import Learned, TrainArguments, learn
from cellxpert.training.split import (
    batches_of,
    classes_of,
    perturbations_of,
    split_cells,
    unlearned,
    unseen_batches,
)
from cellxpert.training.start import make_network

__all__ = ["finetune_network"]

_CODES = "factors.intervention.code.weight"
_OF_BATCHES = "batches."


def finetune_network(
    cells: Cells,
    config: ModelConfig,
    arguments: TrainArguments,
    *,
    network: Network,
    vocabulary: Vocabulary,
    labels: tuple[str, ...],
    perturbations: Perturbations | None,
    seed: int,
    adapter: AdapterConfig | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    components: Components | None = None,
    tissues: Tissues | None = None,
    batches: tuple[str, ...] = (),
    integration: Integration | None = None,
    calibration: Calibration | None = None,
    steered: bool = False,
) -> Learned:
    """Train on an object with the features, bins and weights of a trained network.

    All weights learn, or an adapter and the label head alone. Labels, perturbed genes and batches that the network knows keep theirs; what perturbing other genes does begins at the
    observed effects, what other batches have at nothing; with other labels than before the label head is made anew.

    Parameters
    ----------
    cells
        Cells of the object.
    config
        Settings of the network, and of this training.
    arguments
        What the caller asked for.
    network, vocabulary, labels, perturbations
        What was learned before. The network is copied, not changed.
    seed
        Seed of new weights and of the split.
    adapter, tensors
        An adapter of the network, and what it was before; ``labels`` are its labels.
    components
        Components that the network's labels were told in.
    tissues
        Tissues that the network tells apart.
    batches
        Batches that its decoder can be told of; an adapter adds none.
    integration
        Where cells were integrated before.
    calibration
        What the labels could be trusted with before; it stays where no training cell has a label.
    steered
        Whether labels trained what is below the label head before.

    Returns
    -------
    What was learned; with an adapter its tensors, and as network the base with the adapter merged into it.

    Raises
    ------
    AdapterError
        If an adapter is to learn of perturbed genes that the network has not seen.

    Warns
    -----
    CellxPertWarning
        If validation or test cells have labels or batches that no training cell has, no training cell has a label that the network knows, or
        labels were learned of too few cells to calibrate.
    """
    column, before = cells.labels(), () if tissues is None else tissues.names
    split = split_cells(cells, column, train_size=arguments.train_size, split_key=arguments.split_key, seed=seed)
    train_rows = np.flatnonzero(split.to_numpy() == "train")
    unlabeled = cells.setup.unlabeled_category
    classes = _classes(column, train_rows, labels, unlabeled=unlabeled)
    names = classes_of(cells.tissues(), train_rows, unlabeled)
    if adapter is None and not set(names) <= set(before):
        tissues = Tissues(names=names)
    here = perturbations_of(cells, train_rows, config)
    if adapter is not None:
        _require_known(here, perturbations)
        here = None
    elif config.network.batches:
        batches = batches_of(cells, train_rows, before=batches)
    if adapter is None and (text := unseen_batches(cells, train_rows)):
        warnings.warn(text, CellxPertWarning, stacklevel=3)  # the caller of CellxPert.finetune
    known = _together(perturbations, here)
    tuned = make_network(
        config, vocabulary, labels=classes, perturbations=known, tissues=tissues, batches=batches, seed=seed
    )
    anew = set() if adapter is None and classes == labels else {"labels."}
    if tissues is not None and tissues.names != before:
        anew.add("tissues.")
    _take_over(tuned, network, anew=tuple(anew), before=perturbations, now=known)
    base = tuned
    if adapter is not None and tensors is not None:
        same_head = classes == labels
        tensors = {name: x for name, x in tensors.items() if same_head or not name.startswith(HEAD)}
        tuned = inject(base, adapter, tensors)
    learned = learn(
        cells,
        config,
        arguments,
        network=tuned,
        vocabulary=vocabulary,
        classes=classes,
        perturbations=known,
        split=split,
        seed=seed,
        fresh=False,
        learned_targets=() if perturbations is None else perturbations.targets,
        fit_labels=True,  # a few epochs leave a new head far from its optimum
        adapter=adapter,
        components=components,
        tissues=tissues,
        batches=batches,
        integration=integration,
        steered=steered,
    )
    if not classes_of(column, train_rows, unlabeled):
        learned = replace(learned, calibration=calibration)
    elif text := uncalibrated(classes, learned.calibration):
        warnings.warn(text, CellxPertWarning, stacklevel=3)  # the caller of CellxPert.finetune
    if adapter is None:
        return learned
    require_same_answers(tuned, base, adapter)
    found = tensors_of(tuned)
    return replace(learned, network=merged(base, adapter, found), tensors=found)


def _classes(
    column: pd.Series | None, train_rows: npt.NDArray[np.int64], labels: tuple[str, ...], *, unlabeled: str
) -> tuple[str, ...]:
    """Labels that are learned: those before, if they are all that the training cells have. Warns of what is not learned."""
    found = classes_of(column, train_rows, unlabeled)
    classes = labels if set(found) <= set(labels) else found
    # labels that are others altogether were meant to be; of those that overlap some may have been thought to stay
    lost = sorted(set(labels) - set(found)) if set(labels) & set(found) and len(found) > 1 else []
    forgotten = (
        f"no training cell has the labels {lost[:20]}: the label head is fitted to these cells and no longer names them"
    )
    for text in (unlearned(column, classes, unlabeled), forgotten if lost else ""):
        if text:
            warnings.warn(text, CellxPertWarning, stacklevel=4)  # the caller of CellxPert.finetune
    return classes


def _require_known(here: Perturbations | None, before: Perturbations | None) -> None:
    """An adapter changes no table of perturbed genes."""
    if here is None:
        return
    new = sorted({*here.targets} - {*(() if before is None else before.targets)})
    if new:
        raise AdapterError(
            "finetune(adapter=)",
            found=f"perturbations of {len(new)} genes that the base has not seen: {new[:5]}",
            fix="fine-tune all weights on these cells, model.finetune(mdata), and add the adapter then; or set up no perturbation_key",
        )


def _together(before: Perturbations | None, now: Perturbations | None) -> Perturbations | None:
    if before is None or now is None:
        return now if before is None else before
    return Perturbations(
        conditions=tuple(sorted({*before.conditions, *now.conditions})),
        targets=tuple(sorted({*before.targets, *now.targets})),
        control=now.control,
        kind=now.kind,
    )


@torch.no_grad()
def _take_over(
    tuned: Network,
    network: Network,
    *,
    anew: tuple[str, ...],
    before: Perturbations | None,
    now: Perturbations | None,
) -> None:
    """Copy weights by name; tables of perturbed genes by gene, of batches by batch, of which those before come first."""
    mine, theirs = tuned.state_dict(), network.state_dict()
    for name, weight in mine.items():
        if name not in theirs or name.startswith(anew):
            continue
        if name == _CODES:
            assert before is not None
            assert now is not None
            weight[[now.targets.index(gene) for gene in before.targets]] = theirs[name]
        elif name.startswith(_OF_BATCHES):
            weight[: len(theirs[name])] = theirs[name]
        else:
            weight.copy_(theirs[name])
