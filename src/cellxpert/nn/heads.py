"""From tokens to answers: the cell's vector, its label, and bins of features.

Shape suffixes: B cells, T tokens of all cells end to end, Q queries, D width, C labels, K bins, V features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.nn.attention import Layout
from cellxpert.nn.block import Dropout, norm

__all__ = ["BinHead", "CellHead", "LabelHead"]


class CellHead(nn.Module):
    """A cell's vector, by one of two poolings.

    ``"cls"``: [CLS] alone, as published.

    ``"mean"``: a linear reading of the cell's magnitudes, corrected by what the encoder made of them. The linear part is the
    sum over tokens of scale(bin) * vector(feature), at unit norm: with the label head on top it is multinomial regression of
    low rank, the baseline that is hard to beat where labelled cells are few. The encoder's part ([CLS], and a projection of
    the mean of the other tokens) comes in through a gate that starts small.
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
            counts_T = (layout.offset_T > 0).to(tokens_TD.dtype)  # [CLS] has no magnitude
            bag_BD = F.embedding_bag(
                feature_T,
                self.feature.weight,
                layout.start_B,
                mode="sum",
                per_sample_weights=self.scale[bin_T] * counts_T,
            )
            return self.norm(self.bag_norm(bag_BD) + self.gate * (cls_BD + self.pool(mean_BD)))


class LabelHead(nn.Module):
    """Logits over labels."""

    def __init__(self, width: int, n_labels: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(width, n_labels)

    def forward(self, cell_BD: Tensor) -> Tensor:
        """Read cell vectors."""
        with torch.autocast(cell_BD.device.type, enabled=False):
            return self.linear(self.dropout(cell_BD.to(self.linear.weight.dtype)))


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
