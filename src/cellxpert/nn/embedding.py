"""Tokens, movable values and queries as vectors.

A token is e_feature + e_bin + e_modality (+ e_position where the network has learned positions); a movable value is the
same sum without position, a function of (feature, bin) alone; a query is e_query(feature) + e_modality, from a table of its
own, and carries no magnitude.

Shape suffixes: N any number of axes (ids of tokens, values or queries), V features, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Embedding"]


class Embedding(nn.Module):
    """Embedding tables, shared by the encoder's tokens and the decoder's values; queries have a table of their own.

    Parameters
    ----------
    feature_modality
        Modality of each of the V features, as small integers. [CLS] gets the id V and a modality of its own.
    n_bins
        Number of magnitude bins.
    width
        Width of a vector.
    n_positions
        Number of learned positions; 0 for none.
    """

    def __init__(
        self, feature_modality: Sequence[int] | Tensor, *, n_bins: int, width: int, n_positions: int = 0
    ) -> None:
        super().__init__()
        modality_V = torch.as_tensor(feature_modality, dtype=torch.int64, device="cpu")
        self.n_features = len(modality_V)
        n_modalities = int(modality_V.max()) + 1
        self.feature = nn.Embedding(self.n_features + 1, width)
        self.bin = nn.Embedding(n_bins, width)
        self.modality = nn.Embedding(n_modalities + 1, width)
        self.position = nn.Embedding(n_positions, width) if n_positions else None
        self.query = nn.Embedding(self.n_features, width)
        cls = torch.tensor([n_modalities], device="cpu")
        self.register_buffer("feature_modality", torch.cat([modality_V, cls]), persistent=False)

    def identity(self, feature_N: Tensor) -> Tensor:
        """Return e_feature + e_modality; ids of -1 (padding) get some finite vector that the caller masks."""
        feature_N = feature_N.clamp(min=0)
        return self.feature(feature_N) + self.modality(self.feature_modality[feature_N])

    def tokens(self, feature_N: Tensor, bin_N: Tensor, position_N: Tensor | None = None) -> Tensor:
        """Return the vectors of tokens, or, without positions, of movable values."""
        tokens_ND = self.identity(feature_N) + self.bin(bin_N.clamp(min=0))
        if self.position is not None and position_N is not None:
            tokens_ND = tokens_ND + self.position(position_N.clamp(min=0))
        return tokens_ND

    def queries(self, feature_N: Tensor) -> Tensor:
        """Return the vectors of queries: which feature is asked for, from a table of their own."""
        feature_N = feature_N.clamp(min=0)
        return self.query(feature_N) + self.modality(self.feature_modality[feature_N])
