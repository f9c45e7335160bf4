"""From tokens to answers: the cell's vector, its label, and bins of features.

Shape suffixes: B cells, T tokens of all cells end to end, Q queries, D width, C labels, K bins, V features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.nn.attention import Layout
from cellxpert.nn.block import norm

__all__ = ["BinHead", "CellHead", "LabelHead", "bag"]


def bag(table: nn.Embedding, scale_K: Tensor, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
    """Sum over each cell's tokens but [CLS], which has no magnitude, of scale(bin) * table(feature), of shape (B, N)."""
    scale_T = scale_K[bin_T] * (layout.offset_T > 0)
    return F.embedding_bag(feature_T, table.weight, layout.start_B, mode="sum", per_sample_weights=scale_T)


class CellHead(nn.Module):
    """A cell's vector, by one of two poolings.

    ``"cls"``: [CLS] alone, as published. ``"mean"``: a linear reading of the cell's magnitudes, the sum over tokens of
    scale(bin) * vector(feature) at unit norm, corrected by what the encoder made of them ([CLS], and a projection of the mean of the
    other tokens) through a gate that starts small: a linear autoencoder is what few cells can teach.
    """

    def __init__(self, width: int, *, n_features: int, n_bins: int, pooling: Literal["mean", "cls"]) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = norm(width)
        if pooling == "mean":
            self.pool = nn.Linear(width, width, bias=False)
            self.feature = nn.Embedding(n_features + 1, width)
            self.scale = nn.Parameter(torch.empty(n_bins))
            self.gate = nn.Parameter(torch.empty(width))
            self.bag_norm = norm(width)

    def forward(self, tokens_TD: Tensor, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
        """Return one vector per cell, in fp32 (or fp64)."""
        with torch.autocast(tokens_TD.device.type, enabled=False):
            tokens_TD = tokens_TD.to(self.norm.weight.dtype)
            cls_BD = tokens_TD[layout.start_B]
            if self.pooling == "cls":
                return self.norm(cls_BD)
            lengths_B = (layout.cumulative[1:] - layout.cumulative[:-1]).long()
            sum_BD = torch.segment_reduce(tokens_TD, "sum", lengths=lengths_B, unsafe=True)
            mean_BD = (sum_BD - cls_BD) / (lengths_B - 1).clamp(min=1)[:, None]
            bag_BD = bag(self.feature, self.scale, layout, feature_T=feature_T, bin_T=bin_T)
            return self.norm(self.bag_norm(bag_BD) + self.gate * (cls_BD + self.pool(mean_BD)))


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
        # zero is absent; then linear in the bin, on the scale of log1p of counts per 10,000
        scale_K = torch.cat([torch.zeros(1), torch.linspace(2.0, 4.0, n_bins - 1)])
        self.register_buffer("scale_K", scale_K, persistent=False)

    def forward(self, cell_BD: Tensor, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
        """Return logits in fp32 (or fp64)."""
        with torch.autocast(cell_BD.device.type, enabled=False):
            magnitude_BC = bag(self.magnitude, self.scale_K, layout, feature_T=feature_T, bin_T=bin_T)
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
