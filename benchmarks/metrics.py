"""Scores of an annotation, computed by scikit-learn: the judge is not the package under test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

__all__ = ["annotation_scores", "expected_calibration_error", "novelty_scores", "refused"]


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


def refused(keep: float) -> str:
    """Name of the metric: ``refused_90`` where 90 % of the other cells keep their label."""
    return f"refused_{round(100 * keep)}"


def novelty_scores(novelty: np.ndarray, new: np.ndarray, *, keep: Sequence[float]) -> dict[str, float]:
    """Score how a novelty score tells cells of a new type from the others.

    Parameters
    ----------
    novelty
        Higher for stranger cells.
    new
        Which cells are of the new type.
    keep
        Shares of the other cells that must keep their label, at least.

    Returns
    -------
    dict
        ``auroc``, and for each share the new cells above the lowest threshold that so many of the others do not pass (``refused_90``).
    """
    thresholds = np.quantile(novelty[~new], keep, method="inverted_cdf")
    return {"auroc": float(roc_auc_score(new, novelty))} | {
        refused(share): float((novelty[new] > threshold).mean())
        for share, threshold in zip(keep, thresholds, strict=True)
    }
