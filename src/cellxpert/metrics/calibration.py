"""How far the confidence of predicted labels can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cellxpert.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import ArrayLike

__all__ = ["aurc", "brier", "ece", "ece_floor", "nll", "reliability", "risk_coverage", "unseen_auroc"]


def reliability(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15, bins: Literal["width", "mass"] = "width"
) -> pd.DataFrame:
    """Compare confidence with accuracy, bin by bin.

    Parameters
    ----------
    confidence
        Confidence of each cell's label, in [0, 1].
    correct
        Whether the label is right.
    n_bins
        Number of bins. Each contains its upper end, not its lower one (the first contains 0).
    bins
        ``"width"``: equally wide. ``"mass"``: quantiles of the confidence; cells of equal confidence share a bin.

    Returns
    -------
    pandas.DataFrame
        One row per bin that has cells: ``low``, ``high``, ``n``, ``confidence`` and ``accuracy`` (means over its cells).

    Raises
    ------
    MetricError
        If the arrays differ in length, are empty or hold other values; so for every function of this module.
    """
    import pandas as pd

    confidence, correct = _confidence(confidence, correct)
    if n_bins < 1 or bins not in {"width", "mass"}:
        found = f"n_bins={n_bins!r}, bins={bins!r}"
        raise MetricError("metrics.reliability", found=found, fix="give n_bins >= 1 and bins='width' or 'mass'")
    levels = np.linspace(0, 1, n_bins + 1)
    if bins == "width":
        inner, ends = levels[1:-1], (0.0, 1.0)
    else:
        # Inverted quantiles are confidences that occur, so that rounding can put no cell on the wrong side of an edge.
        inner, ends = (
            np.unique(np.quantile(confidence, levels[1:-1], method="inverted_cdf")),
            (confidence.min(), confidence.max()),
        )
        inner = inner[
            inner < ends[1]
        ]  # a bin ends with its upper edge, so that the least value may be a bin of its own
    edges = np.array([ends[0], *inner, ends[1]])
    place = np.searchsorted(inner, confidence, side="left")
    n = np.bincount(place, minlength=len(inner) + 1)
    used = n > 0
    table = {
        "low": edges[: len(n)][used],
        "high": edges[-len(n) :][used],
        "n": n[used],
        "confidence": np.bincount(place, weights=confidence, minlength=len(n))[used] / n[used],
        "accuracy": np.bincount(place, weights=correct, minlength=len(n))[used] / n[used],
    }
    return pd.DataFrame(table)


def ece(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15, bins: Literal["width", "mass"] = "width"
) -> float:
    """Expected calibration error: how far accuracy and confidence of a bin differ, averaged over cells (Guo et al. 2017).

    Parameters
    ----------
    confidence, correct, n_bins, bins
        As for :func:`reliability`.
    """
    table = reliability(confidence, correct, n_bins=n_bins, bins=bins)
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["n"]))


def ece_floor(
    confidence: ArrayLike,
    *,
    n_bins: int = 15,
    bins: Literal["width", "mass"] = "width",
    n_draws: int = 200,
    seed: int | np.random.Generator = 0,
) -> float:
    """Expected calibration error that chance alone gives these confidences where each is exactly right.

    Few cells cannot show less: 100 cells of a confidence of 0.9 give 0.03, 100 of all confidences 0.12.

    Parameters
    ----------
    confidence, n_bins, bins
        As for :func:`ece`.
    n_draws
        How often which labels are right is drawn; the mean over draws is returned.
    seed
        Seed or generator of the draws.
    """
    confidence, rng = np.asarray(confidence, dtype=np.float64), np.random.default_rng(seed)
    drawn = (
        ece(confidence, rng.random(confidence.shape) < confidence, n_bins=n_bins, bins=bins) for _ in range(n_draws)
    )
    return float(np.mean(list(drawn)))


def nll(y_true: ArrayLike, proba: ArrayLike, *, classes: Sequence[Any]) -> float:
    """Mean negative logarithm of the probability given to the true label, in nats.

    Probabilities below the resolution of their type count as that resolution, as in scikit-learn.

    Parameters
    ----------
    y_true
        True label of each cell; all must be among ``classes``.
    proba
        Probabilities, cells x classes; rows sum to 1.
    classes
        Label of each column.
    """
    column, proba = _columns(y_true, proba, classes)
    of_true = proba[np.arange(len(column)), column]
    return float(-np.log(np.maximum(of_true, np.finfo(proba.dtype).eps)).mean())


def brier(y_true: ArrayLike, proba: ArrayLike, *, classes: Sequence[Any]) -> float:
    """Mean over cells of the squared distance between the probabilities and the true label; from 0 to 2.

    Parameters
    ----------
    y_true, proba, classes
        As for :func:`nll`.
    """
    column, proba = _columns(y_true, proba, classes)
    truth = np.zeros(proba.shape)
    truth[np.arange(len(column)), column] = 1
    return float(((proba - truth) ** 2).sum(axis=1).mean())


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> pd.DataFrame:
    """Share of wrong labels among the most confident cells, for every number of cells kept.

    Cells of equal confidence are interchangeable: the risk is the mean over their orders.

    Parameters
    ----------
    confidence, correct
        As for :func:`reliability`.

    Returns
    -------
    pandas.DataFrame
        ``coverage`` (share of cells kept, rising to 1) and ``risk``, one row per cell.
    """
    import pandas as pd

    confidence, correct = _confidence(confidence, correct)
    levels, place = np.unique(-confidence, return_inverse=True)
    n = np.bincount(place, minlength=len(levels))
    wrong = np.bincount(place, weights=1 - correct, minlength=len(levels))
    kept = np.arange(1, len(correct) + 1)
    risk = np.cumsum(np.repeat(wrong / n, n)) / kept
    return pd.DataFrame({"coverage": kept / len(correct), "risk": risk})


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve (mean of its risks): 0 is perfect, the error rate is what chance gives.

    Parameters
    ----------
    confidence, correct
        As for :func:`reliability`.
    """
    return float(risk_coverage(confidence, correct)["risk"].mean())


def unseen_auroc(confidence: ArrayLike, unseen: ArrayLike) -> float:
    """AUROC of telling cells of types never trained on from the others by 1 - confidence; 0.5 is chance.

    Parameters
    ----------
    confidence
        Confidence of each cell's label, in [0, 1].
    unseen
        Whether the cell's type was never trained on; both kinds must occur.
    """
    from sklearn.metrics import roc_auc_score

    confidence, unseen = _confidence(confidence, unseen, name="unseen")
    if unseen.min() == unseen.max():
        raise MetricError("unseen", found="one kind of cells only", fix="give seen and unseen cells")
    return float(roc_auc_score(unseen, 1 - confidence))


def _confidence(confidence: ArrayLike, flag: ArrayLike, *, name: str = "correct") -> tuple[np.ndarray, np.ndarray]:
    confidence, flag = np.asarray(confidence, dtype=np.float64), np.asarray(flag)
    if confidence.ndim != 1 or confidence.shape != flag.shape or not len(flag):
        found = f"shapes {confidence.shape} and {flag.shape}"
        raise MetricError(f"confidence, {name}", found=found, fix="give two arrays of one value per cell")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise MetricError("confidence", found="values outside [0, 1] or missing", fix="give probabilities")
    if not np.isin(flag, [0, 1]).all():
        raise MetricError(name, found="values other than True and False", fix="give one truth value per cell")
    return confidence, flag.astype(np.float64)


def _columns(y_true: ArrayLike, proba: ArrayLike, classes: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    labels, proba = np.asarray(y_true, dtype=object), np.asarray(proba)
    if proba.dtype not in (np.float32, np.float64):
        proba = proba.astype(np.float64)
    if not len(labels) or proba.shape != (len(labels), len(classes)) or len(set(classes)) != len(classes):
        found = f"{len(labels)} labels, {len(classes)} classes, probabilities of shape {proba.shape}"
        raise MetricError("y_true, proba, classes", found=found, fix="give cells x classes, each class once")
    if not ((proba >= 0).all() and np.allclose(proba.sum(axis=1), 1, atol=1e-3)):
        raise MetricError(
            "proba", found="rows that are no probabilities", fix="give rows that sum to 1, or divide each by its sum"
        )
    column = {label: i for i, label in enumerate(classes)}
    if unknown := sorted({label for label in labels if label not in column}, key=str):
        raise MetricError("y_true", found=f"{unknown[:5]} have no probability", fix="leave cells of unseen types out")
    return np.array([column[label] for label in labels]), proba
