"""Scores of an annotation, computed by scikit-learn: the judge is not the package under test."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

__all__ = ["annotation_scores", "expected_calibration_error"]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, n_bins: int = 15) -> float:
    """Mean gap between accuracy and confidence over equal-width bins, weighted by the bins' cells.

    Parameters
    ----------
    confidence
        Largest class probability per cell, in [0, 1].
    correct
        Whether the predicted label is right.
    n_bins
        Number of bins; bin b holds confidences in (b / n_bins, (b + 1) / n_bins].
    """
    which = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.bincount(which, weights=correct.astype(float) - confidence, minlength=n_bins)
    return float(np.abs(gap).sum() / len(confidence))


def annotation_scores(truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> dict[str, float]:
    """Accuracy, macro-F1 over the classes that occur in ``truth``, and expected calibration error (15 bins)."""
    present = np.unique(truth)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0.0)),
        "ece": expected_calibration_error(confidence, predicted == truth),
    }
