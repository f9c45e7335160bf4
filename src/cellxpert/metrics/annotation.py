"""How right predicted labels are.

Classes are those present in ``y_true``. A cell predicted to be of another kind ("Unknown", say) counts as an error of its true
class, but that other kind is not averaged as a class of its own (scikit-learn's default would do so).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert.errors import MetricError
from cellxpert.metrics.checks import paired_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import ArrayLike

__all__ = [
    "accuracy",
    "annotation_scores",
    "confusion",
    "kappa",
    "macro_f1",
    "median_f1",
    "per_class",
    "weighted_f1",
]


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Share of cells whose predicted label is the true one.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.

    Raises
    ------
    MetricError
        If the arrays differ in length, are empty or have missing labels; so for every function of this module.
    """
    true, pred, _ = _codes(y_true, y_pred)
    return float((true == pred).mean())


def macro_f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Unweighted mean of the F1 of the classes present in ``y_true``.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.
    """
    return float(_f1(y_true, y_pred).mean())


def median_f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Median of the F1 of the classes present in ``y_true`` (Abdelaal et al. 2019).

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.
    """
    return float(np.median(_f1(y_true, y_pred)))


def weighted_f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean of the F1 of the classes, each weighted with its number of true cells.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.
    """
    true, _, _ = _codes(y_true, y_pred)
    return float(np.average(_f1(y_true, y_pred), weights=np.unique(true, return_counts=True)[1]))


def kappa(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Cohen's kappa: agreement beyond what the label frequencies give by chance.

    1.0 if both arrays hold one and the same label only, where the definition would divide by zero.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.
    """
    from sklearn.metrics import cohen_kappa_score

    true, pred, classes = _codes(y_true, y_pred)
    return 1.0 if len(classes) == 1 else float(cohen_kappa_score(true, pred))


def per_class(y_true: ArrayLike, y_pred: ArrayLike) -> pd.DataFrame:
    """Precision, recall and F1 of each class present in ``y_true``.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.

    Returns
    -------
    pandas.DataFrame
        One row per class, sorted by name: ``label``, ``n`` (true cells), ``precision`` (0 if never predicted), ``recall``, ``f1``.
    """
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    true, pred, classes = _codes(y_true, y_pred)
    present = np.unique(true)
    precision, recall, f1, n = precision_recall_fscore_support(true, pred, labels=present, zero_division=0)
    columns = {"label": classes[present], "n": n, "precision": precision, "recall": recall, "f1": f1}
    return pd.DataFrame(columns)


def confusion(y_true: ArrayLike, y_pred: ArrayLike, *, labels: Sequence[Any] | None = None) -> pd.DataFrame:
    """Count cells by true (rows) and predicted (columns) label.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.
    labels
        Labels in the order wanted; all labels that occur must be among them. Default: those that occur, sorted by name.

    Returns
    -------
    pandas.DataFrame
        Square, with the same labels in rows and columns.
    """
    import pandas as pd

    true, pred, classes = _codes(y_true, y_pred)
    order = list(classes) if labels is None else list(labels)
    if len(set(order)) < len(order) or (unlisted := sorted(set(classes) - set(order), key=str)):
        found = "a label twice" if len(set(order)) < len(order) else f"{unlisted[:5]} occur but are not listed"
        raise MetricError("metrics.confusion(labels=)", found=found, fix="list every label once")
    place = np.array([order.index(c) for c in classes])
    counts = np.bincount(place[true] * len(order) + place[pred], minlength=len(order) ** 2)
    names = pd.Index(order, dtype=object)
    return pd.DataFrame(counts.reshape(len(order), -1), index=names.rename("true"), columns=names.rename("predicted"))


def annotation_scores(y_true: ArrayLike, y_pred: ArrayLike) -> dict[str, float]:
    """All scores of predicted labels in one go.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell.

    Returns
    -------
    dict
        ``accuracy``, ``macro_f1``, ``weighted_f1``, ``median_f1``, ``kappa``.
    """
    functions = (accuracy, macro_f1, weighted_f1, median_f1, kappa)
    return {function.__name__: function(y_true, y_pred) for function in functions}


def _f1(y_true: ArrayLike, y_pred: ArrayLike) -> np.ndarray:
    from sklearn.metrics import f1_score

    true, pred, _ = _codes(y_true, y_pred)
    return f1_score(true, pred, labels=np.unique(true), average=None, zero_division=0)


def _codes(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as integers, and what they stand for; labels may be of any type, also mixed."""
    true, pred = paired_labels(y_true, y_pred)
    classes = np.array(sorted(set(true) | set(pred), key=str), dtype=object)
    code = {label: i for i, label in enumerate(classes)}
    return np.array([code[t] for t in true]), np.array([code[p] for p in pred]), classes
