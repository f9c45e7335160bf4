"""Rivals that need nothing but scikit-learn. All read log1p of counts scaled to 10,000 per cell, all genes."""

from __future__ import annotations

from collections.abc import Callable

import anndata
import mudata
import numpy as np
import scipy.sparse as sp
from sklearn.base import ClassifierMixin
from sklearn.decomposition import TruncatedSVD
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.methods import Prediction

__all__ = [
    "Baseline",
    "knn",
    "log_normalised",
    "logistic_regression",
    "majority",
    "nearest_centroid",
    "svd_logistic_regression",
    "svd_logistic_regression_unscaled",
]


def log_normalised(adata: anndata.AnnData) -> sp.csr_matrix:
    """Return log1p of counts scaled to 10,000 per cell; a cell without counts stays zero."""
    counts = sp.csr_matrix(adata.X, dtype=np.float64)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return (sp.diags_array(1e4 / np.maximum(totals, 1.0)) @ counts).log1p().tocsr()


class Baseline:
    """A scikit-learn classifier on what ``read`` makes of the cells: log-normalised counts, unless said otherwise."""

    def __init__(self, classifier: ClassifierMixin, read: Callable[..., sp.csr_matrix] = log_normalised) -> None:
        self.classifier, self.read = classifier, read

    def fit(self, cells: anndata.AnnData | mudata.MuData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        self.classifier.fit(self.read(cells), labels)

    def predict(self, cells: anndata.AnnData | mudata.MuData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        proba = self.classifier.predict_proba(self.read(cells))
        return Prediction(self.classifier.classes_[proba.argmax(axis=1)], proba.max(axis=1))


def logistic_regression(*, seed: int, quick: bool) -> Baseline:
    """Multinomial, ridge penalty, C = 0.1."""
    return Baseline(LogisticRegression(C=0.1, max_iter=1000))


def _svd(seed: int) -> TruncatedSVD:
    return TruncatedSVD(50, random_state=seed)


def svd_logistic_regression(*, seed: int, quick: bool) -> Baseline:
    """Logistic regression (C = 1) on 50 singular vectors, standardised."""
    return Baseline(make_pipeline(_svd(seed), StandardScaler(), LogisticRegression(max_iter=1000)))


def svd_logistic_regression_unscaled(*, seed: int, quick: bool) -> Baseline:
    """The same on singular vectors as they are: the large ones weigh more, which carries over better to other protocols."""
    return Baseline(make_pipeline(_svd(seed), LogisticRegression(max_iter=3000)))


def knn(*, seed: int, quick: bool) -> Baseline:
    """15 nearest neighbours on 50 singular vectors; confidence is the share of their votes."""
    return Baseline(make_pipeline(_svd(seed), KNeighborsClassifier(15)))


def nearest_centroid(*, seed: int, quick: bool) -> Baseline:
    """Nearest class mean on 50 singular vectors."""
    return Baseline(make_pipeline(_svd(seed), NearestCentroid()))


def majority(*, seed: int, quick: bool) -> Baseline:
    """The commonest label, with its share as confidence."""
    return Baseline(DummyClassifier(strategy="prior"))
