"""Rivals that say how strange a cell is by its distance to the training cells."""

from __future__ import annotations

import anndata
import numpy as np
from scipy.special import softmax
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.methods import Prediction
from benchmarks.methods.baselines import log_normalised

__all__ = ["KnnDistance", "Mahalanobis", "knn_distance", "mahalanobis"]

N_COMPONENTS = 50


class KnnDistance:
    """Labels by the vote of the 15 nearest training cells on 50 singular vectors, novelty by their mean distance."""

    def __init__(self, seed: int) -> None:
        self.svd, self.knn = TruncatedSVD(N_COMPONENTS, random_state=seed), KNeighborsClassifier(15)

    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        self.knn.fit(self.svd.fit_transform(log_normalised(cells)), labels)

    def predict(self, cells: anndata.AnnData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        scores = self.svd.transform(log_normalised(cells))
        proba, (distances, _) = self.knn.predict_proba(scores), self.knn.kneighbors(scores)
        return Prediction(self.knn.classes_[proba.argmax(axis=1)], proba.max(axis=1), distances.mean(axis=1))


class Mahalanobis:
    """Distance to the nearest class mean on 50 singular vectors, one covariance within all classes (Ledoit-Wolf)."""

    def __init__(self, seed: int) -> None:
        self.svd = TruncatedSVD(N_COMPONENTS, random_state=seed)

    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        scores = self.svd.fit_transform(log_normalised(cells))
        self.classes, codes = np.unique(labels, return_inverse=True)
        self.means = np.stack([scores[codes == code].mean(axis=0) for code in range(len(self.classes))])
        self.precision = LedoitWolf(assume_centered=True).fit(scores - self.means[codes]).precision_

    def predict(self, cells: anndata.AnnData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        scores = self.svd.transform(log_normalised(cells))
        apart = scores[:, None, :] - self.means[None, :, :]
        squared = np.einsum("ckd,de,cke->ck", apart, self.precision, apart, optimize=True)
        proba = softmax(-squared / 2, axis=1)
        return Prediction(self.classes[squared.argmin(axis=1)], proba.max(axis=1), squared.min(axis=1))


def knn_distance(*, seed: int, quick: bool) -> KnnDistance:
    """Mean distance to the 15 nearest training cells."""
    return KnnDistance(seed)


def mahalanobis(*, seed: int, quick: bool) -> Mahalanobis:
    """Mahalanobis distance to the nearest class mean."""
    return Mahalanobis(seed)
