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

__all__ = ["BinHead", "CellHead", "LabelHead"]


LINEAR = 10.0
"""Step size of the linear reading in label logits: its input has unit norm spread over hundreds of tokens."""


class CellHead(nn.Module):
    """A cell's vector: [CLS] alone (``"cls"``, as published), or with a projection of the mean of the other tokens (``"mean"``)."""

    def __init__(self, width: int, *, pooling: Literal["mean", "cls"]) -> None:
        super().__init__()
        self.pool = nn.Linear(width, width, bias=False) if pooling == "mean" else None
        self.norm = norm(width)

    def forward(self, tokens_TD: Tensor, layout: Layout) -> Tensor:
        """Return one vector per cell, in fp32 (or fp64)."""
        with torch.autocast(tokens_TD.device.type, enabled=False):
            tokens_TD = tokens_TD.to(self.norm.weight.dtype)
            cell_BD = tokens_TD[layout.start_B]
            if self.pool is not None:
                lengths_B = (layout.cumulative[1:] - layout.cumulative[:-1]).long()
                sum_BD = torch.segment_reduce(tokens_TD, "sum", lengths=lengths_B, unsafe=True)
                cell_BD = cell_BD + self.pool((sum_BD - cell_BD) / (lengths_B - 1).clamp(min=1)[:, None])
            return self.norm(cell_BD)


class LabelHead(nn.Module):
    """Logits over labels: the sum of three readings of a cell.

    ``linear``: LINEAR * sum over tokens of scale(bin) * weight(feature) / norm of the scales, which is multinomial logistic
    regression on binned magnitudes, the baseline that is hard to beat where labelled cells are few. ``low_rank``: the same
    through ``width`` hidden units at unit norm. ``cell``: a linear map of the cell vector. ``gradient`` is the share of
    the label loss's gradient that reaches the encoder through the last: a few hundred labels are too few to shape it.
    """

    def __init__(
        self, width: int, n_labels: int, *, n_features: int, n_bins: int, dropout: float, gradient: float
    ) -> None:
        super().__init__()
        self.gradient = gradient
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.empty(n_bins))
        self.linear = nn.Embedding(n_features + 1, n_labels)
        self.low_rank = nn.Embedding(n_features + 1, width)
        self.norm = norm(width)
        self.out = nn.Linear(width, n_labels)
        self.cell = nn.Linear(width, n_labels, bias=False)

    def forward(self, cell_BD: Tensor, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
        """Return logits in fp32 (or fp64)."""
        with torch.autocast(cell_BD.device.type, enabled=False):
            scale_T = self.scale[bin_T] * (layout.offset_T > 0)  # [CLS] has no magnitude

            def read(table: nn.Embedding) -> Tensor:
                return F.embedding_bag(feature_T, table.weight, layout.start_B, mode="sum", per_sample_weights=scale_T)

            square_B = torch.zeros_like(cell_BD[:, 0]).index_add(0, layout.cell_T, scale_T.square())
            linear_BC = LINEAR * read(self.linear) / square_B.clamp(min=1e-12).sqrt()[:, None]
            low_rank_BC = self.out(self.dropout(self.norm(read(self.low_rank))))
            cell_BD = cell_BD.to(self.cell.weight.dtype)
            cell_BD = torch.lerp(cell_BD.detach(), cell_BD, self.gradient)
            return linear_BC + low_rank_BC + self.cell(self.dropout(cell_BD))


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
