"""A cell as one vector, and what can be asked of that vector.

Shape suffixes: B cells, T tokens of all cells end to end, M modalities, Q queries, D width, K bins, V features,
N components.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.nn.attention import Layout
from cellxpert.nn.block import norm

__all__ = ["CellHead", "CellQueries", "magnitude_scale"]


def magnitude_scale(n_bins: int) -> Tensor:
    """How much a bin weighs in a linear reading, (K,): a zero nothing, the others 1/2 to 1, linearly."""
    return torch.cat([torch.zeros(1), torch.linspace(0.5, 1.0, n_bins - 1)])


class CellHead(nn.Module):
    """A cell's vector, by one of two poolings.

    ``"cls"``: [CLS] alone, as published. ``"mean"``: a linear reading of the cell's magnitudes, and what the encoder adds to it
    ([CLS], and a projection of the mean of the other tokens) through a gate that starts small. The reading sums
    (share - usual share) * vector(feature), where the share of a feature is its part of the cell's magnitudes in that modality;
    it can start at the training cells' principal components (:meth:`start_from`), so that training begins where PCA ends.
    """

    usual_V: Tensor
    modality_V: Tensor
    scale_K: Tensor

    def __init__(self, width: int, *, modality_V: Tensor, n_bins: int, pooling: Literal["mean", "cls"]) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = norm(width)
        if pooling == "mean":
            self.n_modalities = int(modality_V.max()) + 1
            self.pool = nn.Linear(width, width, bias=False)
            self.feature = nn.Embedding(len(modality_V), width)
            self.gate = nn.Parameter(torch.empty(width))
            self.reading_norm = norm(width)
            self.register_buffer("usual_V", torch.zeros(len(modality_V)))
            self.register_buffer("modality_V", modality_V, persistent=False)
            self.register_buffer("scale_K", magnitude_scale(n_bins), persistent=False)

    @torch.no_grad()
    def start_from(self, usual_V: Tensor, vector_VN: Tensor) -> None:
        """Set, for pooling ``"mean"``, the usual shares and the first N coordinates of the features' vectors (the others become 0)."""
        self.usual_V.copy_(usual_V)
        self.feature.weight.zero_()[:, : vector_VN.shape[1]] = vector_VN.to(self.feature.weight)

    def reading(self, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
        """Return the linear reading, (B, D); a modality that a cell lacks adds nothing."""
        n_cells, n_modalities = len(layout.start_B), self.n_modalities
        scale_T = self.scale_K[bin_T]  # 0 at [CLS], whose bin is 0
        feature_T = feature_T.clamp(max=len(self.modality_V) - 1)
        at_T = layout.cell_T * n_modalities + self.modality_V[feature_T]
        total = scale_T.new_zeros(n_cells * n_modalities).index_add_(0, at_T, scale_T)
        share_T = scale_T / total.clamp(min=0.1)[at_T]  # a single magnitude is at least 1/2
        read_BD = F.embedding_bag(
            feature_T, self.feature.weight, layout.start_B, mode="sum", per_sample_weights=share_T
        )
        usual_MD = (F.one_hot(self.modality_V, n_modalities).T * self.usual_V) @ self.feature.weight
        present_BM = (total > 0).view(n_cells, n_modalities)
        return read_BD - present_BM.to(usual_MD.dtype) @ usual_MD

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
            read_BD = self.reading(layout, feature_T=feature_T, bin_T=bin_T)
            return self.norm(self.reading_norm(read_BD) + self.gate * (cls_BD + self.pool(mean_BD)))


class CellQueries(nn.Module):
    """Queries that carry the cell: query * (1 + gain(cell)) + depth(lowest bin of each modality).

    A magnitude is relative to its cell's total, so that a single count falls into another bin in a cell read deeply than in
    one read shallowly. The lowest bin of the cell says which; given apart, it need not be a part of the cell's vector (as
    size factors are given to count models' decoders, Lopez et al. 2018).
    """

    def __init__(self, width: int, *, modality_V: Tensor, n_bins: int) -> None:
        super().__init__()
        self.n_bins, self.n_modalities = n_bins, int(modality_V.max()) + 1
        self.gain = nn.Linear(width, width, bias=False)
        self.depth = nn.Embedding(self.n_modalities * n_bins, width)
        self.modality_V: Tensor
        self.register_buffer("modality_V", modality_V, persistent=False)

    def lowest(self, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Tensor:
        """Return the lowest non-zero bin of each cell and modality, (B, M); 0 where there is none."""
        n_cells = len(layout.start_B)
        modality_T = self.modality_V[feature_T.clamp(max=len(self.modality_V) - 1)]
        at_T = layout.cell_T * self.n_modalities + modality_T
        lowest = bin_T.new_full((n_cells * self.n_modalities,), self.n_bins)
        lowest.scatter_reduce_(0, at_T, torch.where(bin_T > 0, bin_T, self.n_bins), "amin")
        return (lowest % self.n_bins).view(n_cells, self.n_modalities)

    def forward(self, query_BQD: Tensor, cell_BD: Tensor, lowest_BM: Tensor) -> Tensor:
        """Return the queries."""
        row_BM = lowest_BM + torch.arange(self.n_modalities, device=lowest_BM.device) * self.n_bins
        depth_BD = self.depth(row_BM).sum(1)
        return query_BQD * (1 + self.gain(cell_BD))[:, None] + depth_BD[:, None]
