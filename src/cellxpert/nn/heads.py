"""From vectors to answers: the label of a cell, bins of features, and what an adversary says of a cell's batch.

Shape suffixes: B cells, T tokens of all cells end to end, Q queries, D width, C labels, K bins, V features,
M modalities, F image features, G batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.nn.attention import Layout
from cellxpert.nn.cell import magnitude_scale

__all__ = ["BatchAdversary", "BinHead", "LabelHead"]


class BatchAdversary(nn.Module):
    """Tells the batch from the cell vector, while what is below learns that it cannot (Ganin et al. 2016).

    A layer of the vector's width, then logits. The gradient that reaches the vector is that of the negative of the loss.
    It is part of training, not of the network: nothing else asks it.

    Parameters
    ----------
    width
        Width of the cell vector.
    n_batches
        Number of batches.
    generator
        Source of the initial weights; the global generator is never touched.
    """

    def __init__(self, width: int, n_batches: int, *, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.hidden = nn.Linear(width, width)
            self.out = nn.Linear(width, n_batches)
        with torch.no_grad():
            for layer in (self.hidden, self.out):
                layer.weight.normal_(std=width**-0.5, generator=generator)
                layer.bias.zero_()

    def forward(self, cell_BD: Tensor) -> Tensor:
        """Return logits (B, G)."""
        turned_BD = 2 * cell_BD.detach() - cell_BD  # the same values, the gradient turned round
        return self.out(F.gelu(self.hidden(turned_BD)))


class LabelHead(nn.Module):
    """Logits over labels: a linear map of the cell vector, one of the binned magnitudes, and one of image features.

    The last two are zero until the head is fitted to its optimum after training (see :mod:`cellxpert.training.label_head`); it makes
    the head a logistic regression on magnitudes and cell vector, the baseline that is hard to beat where labelled cells are few.
    ``gradient`` is the share of the label loss's gradient that reaches what is below the cell vector.
    """

    scale_MK: Tensor
    modality_V: Tensor

    def __init__(
        self,
        width: int,
        n_labels: int,
        *,
        modality_V: Tensor,
        n_bins: int,
        dropout: float,
        gradient: float,
        n_image: int = 0,
    ) -> None:
        super().__init__()
        self.gradient = gradient
        self.dropout = nn.Dropout(dropout)
        self.cell = nn.Linear(width, n_labels)
        self.magnitude = nn.Embedding(len(modality_V) + 1, n_labels)
        self.magnitude.weight.requires_grad_(requires_grad=False)
        self.image = nn.Linear(n_image, n_labels, bias=False) if n_image else None
        if self.image is not None:
            self.image.weight.requires_grad_(requires_grad=False)
        self.register_buffer("modality_V", torch.cat([modality_V, modality_V.new_zeros(1)]), persistent=False)
        n_modalities = int(modality_V.max()) + 1
        self.register_buffer("scale_MK", 4 * magnitude_scale(n_bins).expand(n_modalities, -1).clone())

    @torch.no_grad()
    def start_from(self, scale_MK: Tensor) -> None:
        """Set what each bin of each modality weighs in the reading of magnitudes; a row of 0 leaves a modality out."""
        self.scale_MK.copy_(scale_MK)

    def forward(
        self, cell_BD: Tensor, layout: Layout, *, feature_T: Tensor, bin_T: Tensor, image_BF: Tensor | None = None
    ) -> Tensor:
        """Return logits in fp32 (or fp64); a cell without image features gets nothing from these."""
        with torch.autocast(cell_BD.device.type, enabled=False):
            scale_T = self.scale_MK[self.modality_V[feature_T], bin_T]  # 0 at [CLS], whose bin is 0
            logits_BC = F.embedding_bag(
                feature_T, self.magnitude.weight, layout.start_B, mode="sum", per_sample_weights=scale_T
            )
            cell_BD = cell_BD.to(self.cell.weight.dtype)
            cell_BD = torch.lerp(cell_BD.detach(), cell_BD, self.gradient)
            logits_BC = logits_BC + self.cell(self.dropout(cell_BD))
            if self.image is not None and image_BF is not None:
                known_B1 = torch.isfinite(image_BF).all(1, keepdim=True)
                logits_BC = logits_BC + self.image(torch.nan_to_num(image_BF)) * known_B1
            return logits_BC


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
