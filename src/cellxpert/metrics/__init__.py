"""Scores as pure functions of arrays: how right predicted labels are, and how far their confidence can be trusted."""

from __future__ import annotations

from cellxpert.metrics.annotation import (
    accuracy,
    annotation_scores,
    confusion,
    kappa,
    macro_f1,
    median_f1,
    per_class,
    weighted_f1,
)
from cellxpert.metrics.calibration import aurc, brier, ece, nll, reliability, risk_coverage, unseen_auroc

__all__ = [
    "accuracy",
    "annotation_scores",
    "aurc",
    "brier",
    "confusion",
    "ece",
    "kappa",
    "macro_f1",
    "median_f1",
    "nll",
    "per_class",
    "reliability",
    "risk_coverage",
    "unseen_auroc",
    "weighted_f1",
]
