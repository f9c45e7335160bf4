"""Labels of cells, with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cellxpert.nn.network import Network

__all__ = ["Annotation", "annotate"]


@dataclass(frozen=True, eq=False)
class Annotation:
    """Labels of cells; ``labels[i]`` has the confidence ``confidence[i]``, the largest of ``probabilities[i]``."""

    labels: npt.NDArray[np.str_]
    confidence: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]


@torch.inference_mode()
def annotate(
    network: Network,
    vectors_ND: npt.NDArray[np.float32],
    *,
    classes: Sequence[str],
    unknown: npt.NDArray[np.bool_],
    unlabeled_category: str,
    device: str = "cpu",
) -> Annotation:
    """Name the most probable label of each cell.

    Parameters
    ----------
    network
        A network with a label head, on ``device``.
    vectors_ND
        Cell vectors of shape (n_cells, width).
    classes
        Names of the labels, in the order of the network's.
    unknown
        Cells that must not get a label (nothing of the vocabulary was seen in them): they become
        ``unlabeled_category`` with confidence 0.
    unlabeled_category
        Name for those.
    device
        Where to compute.

    Returns
    -------
    Labels, confidence, float32 probabilities of shape (n_cells, n_classes) whose rows sum to 1.
    """
    logits_NC = network.classify(torch.from_numpy(np.ascontiguousarray(vectors_ND)).to(device))
    probabilities = logits_NC.double().softmax(-1).float().cpu().numpy()
    best = probabilities.argmax(axis=1)
    labels = np.asarray(classes, dtype=object)[best]
    confidence = probabilities.max(axis=1)
    labels[unknown], confidence[unknown] = unlabeled_category, 0.0
    return Annotation(labels=labels, confidence=confidence, probabilities=probabilities, classes=tuple(classes))
