"""Methods of the task ``spatial``: a whole tissue goes in, labels of some of its cells are known, all cells are labelled."""

from __future__ import annotations

import anndata
import lightning.pytorch  # noqa: F401 - its import takes seconds, which are not training
import numpy as np
import pandas as pd
import scanpy  # noqa: F401 - as above
import scipy.sparse as sp
from scipy.spatial import cKDTree
from sklearn.base import ClassifierMixin
from sklearn.decomposition import TruncatedSVD
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline

import cellxpert as cx
from benchmarks.data_sets_spatial import Tissue
from benchmarks.methods import Prediction
from benchmarks.methods.baselines import log_normalised

__all__ = [
    "Classifier",
    "Ours",
    "knn",
    "logistic_regression",
    "logistic_regression_counts",
    "logistic_regression_niche",
    "majority",
    "mini",
    "nano",
    "nano_image",
    "nano_no_niche",
    "nano_no_place",
    "nano_no_space",
    "nano_plain",
    "nearest_centroid",
    "spatial_neighbors",
]

LABEL, PART = "label", "part"
N_NEIGHBORS = 10


class Ours:
    """CellxPert as its documentation says. Cells whose label is not known are neighbours of those that are trained on, no more."""

    def __init__(self, preset: str, *, seed: int, quick: bool, space: bool = True, image: bool = False, **off) -> None:
        self.seed, self.quick, self.space, self.image = seed, quick, space, image
        self.config = cx.config.preset(preset).replace(**off)

    def fit(self, adata: anndata.AnnData, labels: np.ndarray, tissue: Tissue) -> cx.CellxPert:
        """Train on the cells that have a label."""
        adata = adata.copy()
        adata.obs = pd.DataFrame(
            {LABEL: np.where(labels != "", labels, "Unknown"), PART: np.where(labels != "", "train", "test")},
            index=adata.obs_names,
        )
        cx.CellxPert.setup_anndata(
            adata,
            modality="protein" if tissue.counts == "intensity" else "rna",
            counts=tissue.counts,
            labels_key=LABEL,
            spatial_key="spatial" if self.space else None,
            n_neighbors=N_NEIGHBORS,
            image_key=tissue.image_key if self.image else None,
        )
        model = cx.CellxPert(adata, config=self.config, seed=self.seed)
        model.train(max_epochs=1 if self.quick else None, split_key=PART, progress_bar=False)
        return model

    def label(self, adata: anndata.AnnData, labels: np.ndarray, tissue: Tissue) -> Prediction:
        """Label all cells; ``labels`` is "" where the label is not known."""
        table = self.fit(adata, labels, tissue).annotate(inplace=False, unknown=False)
        return Prediction(table["label"].to_numpy(dtype=str), table["confidence"].to_numpy())


def nano(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``, niches and places read."""
    return Ours("nano", seed=seed, quick=quick)


def mini(*, seed: int, quick: bool) -> Ours:
    """Preset ``mini``, niches and places read."""
    return Ours("mini", seed=seed, quick=quick)


def nano_no_space(*, seed: int, quick: bool) -> Ours:
    """Neither niches nor places."""
    return Ours("nano", seed=seed, quick=quick, space=False)


def nano_no_niche(*, seed: int, quick: bool) -> Ours:
    """Places only."""
    return Ours("nano", seed=seed, quick=quick, n_niche=0)


def nano_no_place(*, seed: int, quick: bool) -> Ours:
    """Niches only."""
    return Ours("nano", seed=seed, quick=quick, place=False)


def nano_image(*, seed: int, quick: bool) -> Ours:
    """Niches, places and image features."""
    return Ours("nano", seed=seed, quick=quick, image=True)


def nano_plain(*, seed: int, quick: bool) -> Ours:
    """Niches and places; the label loss weighs cells alike, not labels."""
    return Ours("nano", seed=seed, quick=quick, label_loss="plain")


def _log_counts(adata: anndata.AnnData, tissue: Tissue) -> sp.csr_matrix:
    return sp.csr_matrix(adata.X, dtype=np.float64).log1p()


def _magnitudes(adata: anndata.AnnData, tissue: Tissue) -> sp.csr_matrix:
    if tissue.counts == "intensity":
        return sp.csr_matrix(np.arcsinh(sp.csr_matrix(adata.X, dtype=np.float64).toarray() / 5))
    return log_normalised(adata)


def _with_niche(adata: anndata.AnnData, tissue: Tissue) -> sp.csr_matrix:
    own, xy = _magnitudes(adata, tissue), adata.obsm["spatial"]
    near = cKDTree(xy).query(xy, k=N_NEIGHBORS + 1)[1][:, 1:]
    shares = sp.csr_matrix(
        (np.full(near.size, 1 / N_NEIGHBORS), near.ravel(), np.arange(0, near.size + 1, N_NEIGHBORS))
    )
    return sp.hstack([own, shares @ own], format="csr")


def _places(adata: anndata.AnnData, tissue: Tissue) -> np.ndarray:
    return np.asarray(adata.obsm["spatial"], float)


class Classifier:
    """A scikit-learn classifier on what ``read`` makes of the cells."""

    def __init__(self, classifier: ClassifierMixin, read) -> None:
        self.classifier, self.read = classifier, read

    def label(self, adata: anndata.AnnData, labels: np.ndarray, tissue: Tissue) -> Prediction:
        """See :meth:`Ours.label`."""
        values, known = self.read(adata, tissue), np.flatnonzero(labels != "")
        self.classifier.fit(values[known], labels[known])
        proba = self.classifier.predict_proba(values)
        return Prediction(self.classifier.classes_[proba.argmax(axis=1)], proba.max(axis=1))


def _regression() -> LogisticRegression:
    return LogisticRegression(C=0.1, max_iter=3000)


def logistic_regression(*, seed: int, quick: bool) -> Classifier:
    """C = 0.1, on log1p of counts per 10,000 (arcsinh of intensities): the bar."""
    return Classifier(_regression(), _magnitudes)


def logistic_regression_counts(*, seed: int, quick: bool) -> Classifier:
    """The same on log1p of raw counts: the stronger form where cells have few counts."""
    return Classifier(_regression(), _log_counts)


def logistic_regression_niche(*, seed: int, quick: bool) -> Classifier:
    """The same on counts per 10,000 and their mean over the ten nearest neighbours."""
    return Classifier(_regression(), _with_niche)


def knn(*, seed: int, quick: bool) -> Classifier:
    """15 nearest neighbours in 20 singular vectors of expression."""
    return Classifier(make_pipeline(TruncatedSVD(20, random_state=seed), KNeighborsClassifier(15)), _magnitudes)


def nearest_centroid(*, seed: int, quick: bool) -> Classifier:
    """Nearest class mean in 20 singular vectors of expression."""
    return Classifier(make_pipeline(TruncatedSVD(20, random_state=seed), NearestCentroid()), _magnitudes)


def spatial_neighbors(*, seed: int, quick: bool) -> Classifier:
    """The commonest label of the ten nearest training cells in the tissue: what place alone tells."""
    return Classifier(KNeighborsClassifier(N_NEIGHBORS), _places)


def majority(*, seed: int, quick: bool) -> Classifier:
    """The commonest label."""
    return Classifier(DummyClassifier(strategy="prior"), _magnitudes)
