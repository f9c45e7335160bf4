"""CellTypist as its documentation says, with its default settings: trained on the training cells, without majority voting."""

from __future__ import annotations

import logging

import anndata
import numpy as np
import scipy.sparse as sp
from celltypist import annotate, train
from celltypist.logger import logger

from benchmarks.methods import Prediction
from benchmarks.methods.baselines import log_normalised

__all__ = ["CellTypist", "celltypist"]


def _normalised(adata: anndata.AnnData) -> anndata.AnnData:
    """What it demands: log1p of counts scaled to 10,000, all genes, and a sparse matrix, as it knows no sparse array."""
    values = sp.csr_matrix(log_normalised(adata), dtype=np.float32)
    return anndata.AnnData(values, obs=adata.obs[[]], var=adata.var[[]])


class CellTypist:
    """Logistic regression on standardised genes, C = 1; confidence is the sigmoid of the best type's score."""

    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        logger.setLevel(logging.ERROR)
        self.model = train(_normalised(cells), labels=labels, check_expression=False)

    def predict(self, cells: anndata.AnnData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        found = annotate(_normalised(cells), model=self.model, majority_voting=False)
        labels = found.predicted_labels["predicted_labels"].to_numpy(dtype=str)
        return Prediction(labels, found.probability_matrix.to_numpy().max(axis=1))


def celltypist(*, seed: int, quick: bool) -> CellTypist:
    """CellTypist; it has no seed."""
    return CellTypist()
