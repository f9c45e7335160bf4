"""The label head at its optimum.

With the network fixed, the label head is a multinomial logistic regression on a cell's binned magnitudes and its vector: a
convex problem, so that a solver finds what a few hundred steps of gradient descent do not.

Shape suffixes: N cells, D width, V features, C labels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cellxpert.data.collate import Collator
from cellxpert.data.loaders import inference_batches
from cellxpert.nn.network import Network

__all__ = ["refit_label_head"]

INVERSE_PENALTY = 0.1
"""scikit-learn's C, as in the baseline that the benchmarks compare with."""


@torch.no_grad()
def refit_label_head(
    network: Network,
    collator: Collator,
    *,
    rows: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
    label_loss: Literal["plain", "weighted", "balanced"],
) -> None:
    """Fit the label head of a trained network, in place.

    Parameters
    ----------
    network
        The network, in evaluation mode on the CPU; all but its label head stays.
    collator
        Tokens of the cells.
    rows
        Training cells; those without a label are left out.
    codes
        Label code of every cell, negative without a label. With fewer than two labels nothing is done.
    label_loss
        ``"plain"`` weighs cells alike, the others weigh labels alike.
    """
    from sklearn.linear_model import LogisticRegression

    rows = rows[codes[rows] >= 0]
    head = network.labels
    if head is None or len(np.unique(codes[rows])) < 2:
        return
    vector_ND = np.zeros((collator.tokens.n_cells, network.config.width))
    for chosen, batch in inference_batches(collator, rows):
        vector_ND[chosen] = network.encode(batch).cell_BD.numpy()
    tokens = collator.tokens
    scale_K = head.scale_K.numpy().astype(np.float64)
    shape = (tokens.n_cells, network.n_features)
    magnitude_NV = sparse.csr_matrix((scale_K[tokens.bin], tokens.feature, tokens.start), shape=shape)
    inputs = sparse.hstack([magnitude_NV[rows], sparse.csr_matrix(vector_ND[rows])], format="csr")
    weight = None if label_loss == "plain" else "balanced"
    fitted = LogisticRegression(C=INVERSE_PENALTY, class_weight=weight, max_iter=5000).fit(inputs, codes[rows])
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(coefficients) == 1:  # two labels: scikit-learn gives the difference of their logits
        coefficients, intercepts = np.stack([-0.5, 0.5])[:, None] * coefficients, np.array([-0.5, 0.5]) * intercepts
    weight_CX = torch.from_numpy(coefficients).float()
    seen_C = torch.from_numpy(fitted.classes_)
    head.magnitude.weight[: network.n_features, seen_C] = weight_CX[:, : network.n_features].T
    head.cell.weight[seen_C] = weight_CX[:, network.n_features :]
    head.cell.bias[seen_C] = torch.from_numpy(intercepts).float()
