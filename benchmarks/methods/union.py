"""CellxPert on many data sets at once: the set of each training cell is its batch; labels are names, or terms of an ontology."""

from __future__ import annotations

import anndata
import lightning.pytorch  # noqa: F401 - its import takes seconds, which are not training
import numpy as np
import pandas as pd
import scanpy  # noqa: F401 - as above

import cellxpert as cx
from benchmarks.methods import Prediction

__all__ = ["Ours", "nano_names", "nano_terms"]

LABEL, SET = "label", "set"
BACK_OFF = 0.5
"""Least probability of an answer that may be coarser than the labels."""


class Ours:
    """Preset ``nano``. With ``terms``, a cell with a coarse label may be of any finer label in training."""

    def __init__(self, *, terms: bool, seed: int, quick: bool) -> None:
        self.terms, self.seed, self.quick = terms, seed, quick

    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`; ``obs["set"]`` says where cells are from."""
        cells = cells.copy()
        cells.obs[LABEL] = labels
        terms = None
        if self.terms:
            from cellxpert.ontology import match_labels

            terms = match_labels(np.unique(labels))
        cx.CellxPert.setup_anndata(cells, labels_key=LABEL, batch_key=SET, label_terms=terms)
        self.model = cx.CellxPert(cells, preset="nano", seed=self.seed)
        self.model.train(max_epochs=1 if self.quick else None, train_size=1.0, progress_bar=False)

    def predict(self, cells: anndata.AnnData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        return _prediction(self.model.annotate(cells, inplace=False, unknown=False))

    def predict_coarser(self, cells: anndata.AnnData) -> Prediction | None:
        """Name a coarser type where no label is probable; None where labels are mere names."""
        if not self.terms:
            return None
        return _prediction(self.model.annotate(cells, inplace=False, unknown=False, back_off=BACK_OFF))


def _prediction(table: pd.DataFrame) -> Prediction:
    return Prediction(table["label"].to_numpy(dtype=str), table["confidence"].to_numpy())


def nano_names(*, seed: int, quick: bool) -> Ours:
    """Labels are names that exclude one another."""
    return Ours(terms=False, seed=seed, quick=quick)


def nano_terms(*, seed: int, quick: bool) -> Ours:
    """Labels are terms, found by their names."""
    return Ours(terms=True, seed=seed, quick=quick)
