"""What a run is told of labels: which cells have which, what each may mean, and how they count.

Shape suffixes: N cells, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellxpert.batch import IGNORE
from cellxpert.config import TrainingConfig
from cellxpert.data.calibration import Calibration
from cellxpert.data.cell_types import Components
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.record import LabelTerm
from cellxpert.nn.heads import LabelHead
from cellxpert.nn.network import Network
from cellxpert.ontology import CellOntology, label_targets
from cellxpert.training.label_head import LEAST_CALIBRATED, Labelled, calibrate_label_head, fit_label_head
from cellxpert.training.objectives import LabelObjective, class_margins, class_weights

__all__ = ["LabelTask", "allowed_labels", "uncalibrated"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelTask:
    """Labels of all cells of an object."""

    code_N: Ints
    """Code of each cell's label, ``IGNORE`` without one."""
    allowed_CC: npt.NDArray[np.bool_]
    """What a cell with a label may be: its row."""
    batch_N: npt.NDArray[np.object_] | None = None
    components: Components | None = None
    """Components that labels were told in before; found anew if None."""

    @classmethod
    def of(
        cls,
        cells: Cells,
        classes: tuple[str, ...],
        *,
        train_rows: Ints,
        components: Components | None = None,
        tissues: bool = False,
    ) -> LabelTask | None:
        """Read the labels of an object, or its tissues; None if there are none to learn.

        A label of ``classes`` that no training cell has counts as none: a head that knew it unlearns it, which no validation cell can judge.
        """
        values, batches = cells.tissues() if tissues else cells.labels(), cells.batches()
        if values is None or not classes:
            return None
        code_N = pd.Categorical(values, categories=list(classes)).codes.astype(np.int64)
        return cls(
            code_N=np.where(np.isin(code_N, code_N[train_rows]) & (code_N >= 0), code_N, IGNORE),
            allowed_CC=allowed_labels(classes, () if tissues else cells.setup.label_terms),
            batch_N=None if batches is None else batches.to_numpy(),
            components=components,
        )

    def steers(self, rows: Ints, gradient: float) -> bool:
        """Say whether labels train what is below the head, where some of these cells train and this share of the gradient passes."""
        return gradient > 0 and bool((self.code_N[rows] != IGNORE).any())

    def objective(self, rows: Ints, settings: TrainingConfig) -> LabelObjective:
        """How labels count while a network trains on some of the cells."""
        code_N = self.code_N[rows]
        count_C = np.bincount(code_N[code_N >= 0], minlength=len(self.allowed_CC)).tolist()
        exact = (self.allowed_CC.sum(axis=1) == 1).all()
        return LabelObjective(
            weight_C=class_weights(count_C, settings.label_loss),
            margin_C=class_margins(count_C) if settings.label_loss == "ldam" else None,
            allowed_CC=None if exact else torch.from_numpy(self.allowed_CC),
            smoothing=settings.label_smoothing,
        )

    def finish(
        self,
        network: Network,
        collator: Collator,
        rows: Mapping[str, Ints],
        *,
        settings: TrainingConfig,
        seed: int,
        fit_labels: bool,
        steered: bool,
        head: LabelHead | None = None,
    ) -> Calibration | None:
        """Fit a head of a trained network, and calibrate it.

        Parameters
        ----------
        network, collator
            The network, in evaluation mode on the CPU, and the tokens of the cells.
        rows
            Training and validation cells.
        settings, seed
            Settings and seed of the run.
        fit_labels
            Fit the head to its optimum.
        steered
            Whether labels trained what is below the head: only validation cells are then new to it.
        head
            Its head for these labels; its label head if None.
        """
        labelled = {}
        for part in ("train", "validation"):
            known = rows[part][self.code_N[rows[part]] >= 0]
            labelled[part] = Labelled(
                rows=known,
                code_N=self.code_N[known],
                allowed_CC=self.allowed_CC,
                batch_N=None if self.batch_N is None else self.batch_N[known],
                label_loss=settings.label_loss,
                seed=seed,
            )
        calibration = None
        if fit_labels:
            calibration = fit_label_head(network, collator, labelled["train"], head=head, components=self.components)
        if steered:
            calibration = calibrate_label_head(
                network, collator, labelled["train"], validation=labelled["validation"], components=self.components
            )
        return calibration


def allowed_labels(classes: tuple[str, ...], label_terms: tuple[LabelTerm, ...]) -> npt.NDArray[np.bool_]:
    """Say for each label (row) which labels a cell with it may have: itself, and those that are kinds of it."""
    known = {term.label: term for term in label_terms}
    terms = [known[name].term if name in known else "" for name in classes]
    if not any(terms):
        return np.eye(len(classes), dtype=bool)
    exact = [name not in known or known[name].exact for name in classes]
    return label_targets(terms, CellOntology(), exact=exact)


def uncalibrated(classes: tuple[str, ...], calibration: Calibration | None) -> str:
    """What to say of labels whose confidence could not be measured; empty if it was, or there are none."""
    if not classes or calibration is not None:
        return ""
    return (
        f"the {len(classes)} labels are not calibrated: that takes two labels or more, and {LEAST_CALIBRATED} labelled cells "
        "that their head has not seen. annotate() will take probabilities at their word and refuse no cell; "
        "label more cells, or read no confidence into these labels"
    )
