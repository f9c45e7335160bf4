"""From vectors to answers: the label of a cell, and bins of features.

Shape suffixes: B cells, T tokens of all cells end to end, Q queries, D width, C labels, K bins, V features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.nn.attention import Layout
from cellxpert.nn.cell import magnitude_scale

__all__ = ["BinHead", "LabelHead"]


class LabelHead(nn.Module):
    """Logits over labels: a linear map of the cell vector, and one of the binned magnitudes.

    The second is zero until the head is fitted to its optimum after training (see :mod:`cellxpert.training.refit`); it makes
    the head a logistic regression on magnitudes and cell vector, the baseline that is hard to beat where labelled cells are few.
    ``gradient`` is the share of the label loss's gradient that reaches what is below the cell vector.
    """

    scale_K: Tensor

    def __init__(
        self, width: int, n_labels: int, *, n_features: int, n_bins: int, dropout: float, gradient: float
    ) -> None:
        super().__init__()
        self.gradient = gradient
        self.dropout = nn.Dropout(dropout)
        self.cell = nn.Linear(width, n_labels)
        self.magnitude = nn.Embedding(n_features + 1, n_labels)
        self.magnitude.weight.requires_grad_(requires_grad=False)
        # on the scale of log1p of counts per 10,000
        self.register_buffer("scale_K", 4 * magnitude_scale(n_bins), persistent=False)

    def forward(self, cell_BD: Tensor, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
        """Return logits in fp32 (or fp64)."""
        with torch.autocast(cell_BD.device.type, enabled=False):
            magnitude_BC = F.embedding_bag(
                feature_T, self.magnitude.weight, layout.start_B, mode="sum", per_sample_weights=self.scale_K[bin_T]
            )
            cell_BD = cell_BD.to(self.cell.weight.dtype)
            cell_BD = torch.lerp(cell_BD.detach(), cell_BD, self.gradient)
            return magnitude_BC + self.cell(self.dropout(cell_BD))


class BinHead(nn.Module):
    """Logits over bins: a projection of the answer plus what is usual for the feature, whatever the cell."""

    def __init__(self, width: int, *, n_features: int, n_bins: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_bins, bias=False)
        self.prior = nn.Embedding(n_features + 1, n_bins)

    def forward(self, answer_BQD: Tensor, feature_BQ: Tensor) -> Tensor:
        """Return logits in fp32 (or fp64)."""
        with torch.autocast(answer_BQD.device.type, enabled=False):
            logits_BQK = F.linear(answer_BQD.to(self.linear.weight.dtype), self.linear.weight)
            return logits_BQK + self.prior(feature_BQ.clamp(min=0))
