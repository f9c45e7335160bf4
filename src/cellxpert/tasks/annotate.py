"""Labels of cells, with their probabilities.

Shape suffixes: N cells, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

__all__ = ["Annotation", "annotate"]


@dataclass(frozen=True, eq=False)
class Annotation:
    """Labels of cells; ``labels[i]`` has the confidence ``confidence[i]``, the largest of ``probabilities[i]``."""

    labels: npt.NDArray[np.str_]
    confidence: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]


def annotate(
    logits_NC: npt.NDArray[np.float32],
    *,
    classes: Sequence[str],
    unknown: npt.NDArray[np.bool_],
    unlabeled_category: str,
) -> Annotation:
    """Name the most probable label of each cell.

    Parameters
    ----------
    logits_NC
        Logits of the label head, of shape (n_cells, n_classes).
    classes
        Names of the labels, in the order of the network's.
    unknown
        Cells that must not get a label (nothing of the vocabulary was seen in them): they become
        ``unlabeled_category`` with confidence 0.
    unlabeled_category
        Name for those.

    Returns
    -------
    Labels, confidence, float32 probabilities of shape (n_cells, n_classes) whose rows sum to 1.
    """
    probabilities = softmax(logits_NC.astype(np.float64), axis=1).astype(np.float32)
    labels = np.asarray(classes, dtype=object)[probabilities.argmax(axis=1)]
    confidence = probabilities.max(axis=1)
    labels[unknown], confidence[unknown] = unlabeled_category, 0.0
    return Annotation(labels=labels, confidence=confidence, probabilities=probabilities, classes=tuple(classes))
