"""Rivals that read RNA and protein, and protein alone.

RNA is log1p of counts scaled to 10,000; protein is centred log-ratio: log1p of counts, minus its mean over the cell's proteins.
Where both are read, they stand side by side.
"""

from __future__ import annotations

import mudata
import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.methods.baselines import Baseline, log_normalised

__all__ = [
    "centred_log_ratio",
    "logistic_regression_protein",
    "logistic_regression_rna_protein",
    "nearest_centroid_protein",
    "nearest_centroid_rna_protein",
    "svd_logistic_regression_rna_protein",
]


def centred_log_ratio(cells: mudata.MuData) -> sp.csr_matrix:
    """Return log1p of the protein counts, minus its mean over the proteins of each cell."""
    logs = np.log1p(sp.csr_matrix(cells["prot"].X, dtype=np.float64).toarray())
    return sp.csr_matrix(logs - logs.mean(axis=1, keepdims=True))


def _both(cells: mudata.MuData) -> sp.csr_matrix:
    return sp.hstack([log_normalised(cells["rna"]), centred_log_ratio(cells)], format="csr")


def logistic_regression_rna_protein(*, seed: int, quick: bool) -> Baseline:
    """C = 0.1, on RNA and protein side by side."""
    return Baseline(LogisticRegression(C=0.1, max_iter=3000), _both)


def svd_logistic_regression_rna_protein(*, seed: int, quick: bool) -> Baseline:
    """C = 1, on 50 singular vectors of RNA and protein side by side, standardised."""
    svd = TruncatedSVD(50, random_state=seed)
    return Baseline(make_pipeline(svd, StandardScaler(), LogisticRegression(max_iter=3000)), _both)


def nearest_centroid_rna_protein(*, seed: int, quick: bool) -> Baseline:
    """Nearest class mean on 50 singular vectors of RNA and protein side by side."""
    return Baseline(make_pipeline(TruncatedSVD(50, random_state=seed), NearestCentroid()), _both)


def logistic_regression_protein(*, seed: int, quick: bool) -> Baseline:
    """C = 0.1, on protein alone."""
    return Baseline(LogisticRegression(C=0.1, max_iter=3000), centred_log_ratio)


def nearest_centroid_protein(*, seed: int, quick: bool) -> Baseline:
    """Nearest class mean on protein alone."""
    return Baseline(NearestCentroid(), centred_log_ratio)
