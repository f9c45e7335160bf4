"""What is particular to a batch, told to the decoder alone.

The encoder reads every cell in the same way, whatever its batch. A batch shifts the queries, and tilts the answers:
logits += tilt(batch, feature) * magnitude of the bin. Both begin at 0. A cell of an unknown batch gets nothing, so that what a
batch gets is a deviation from what batches share; in training the batch of some cells is withheld (see
:mod:`cellxpert.data.collate`), which is where the rest of the network learns to answer without it.

Shape suffixes: B cells, Q queries, D width, K bins.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Batches"]


class Batches(nn.Module):
    """See the module.

    Parameters
    ----------
    width
        Width of a query.
    n_batches
        Number of batches.
    n_features
        Number of features.
    """

    def __init__(self, width: int, *, n_batches: int, n_features: int) -> None:
        super().__init__()
        self.shift = nn.Embedding(n_batches, width)
        self.tilt = nn.Embedding(n_batches, n_features)

    def queries(self, query_BQD: Tensor, batch_B: Tensor) -> Tensor:
        """Return the queries of cells of these batches (a negative one is unknown); one cell's batch serves all rows."""
        shift_BD = self.shift(batch_B.clamp(min=0)) * (batch_B >= 0)[:, None]
        return query_BQD + shift_BD[:, None]

    def answers(self, query_BQ: Tensor, batch_B: Tensor, level_BQK: Tensor) -> Tensor:
        """Return what is added to the logits, (B, Q, K), of features whose bins have these magnitudes."""
        tilt_BQ = self.tilt.weight[batch_B.clamp(min=0)[:, None], query_BQ.clamp(min=0)] * (batch_B >= 0)[:, None]
        return tilt_BQ[..., None] * level_BQK
