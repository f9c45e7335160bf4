"""A cell read by one of its modalities alone, and by another alone: what the contrast brings together.

Shape suffixes: B cells, T tokens of all cells end to end, M modalities, W features and [CLS].
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellxpert.batch import Batch
from cellxpert.data.roles import MEASURED

__all__ = ["views"]


def views(batch: Batch, modality_W: Tensor, *, generator: torch.Generator) -> tuple[Batch, Batch] | None:
    """Return the cells of a batch that show tokens of two modalities or more, once with those of one and once with those of another.

    Both are views of what the batch shows, on which masks act as they do in training; neither holds a niche, a place or an image,
    which both would share.

    Parameters
    ----------
    batch
        The cells, packed or padded.
    modality_W
        Modality of each feature, as place in ``MODALITIES``, and something for [CLS], the last.
    generator
        Chooses two modalities where there are three.

    Returns
    -------
    Two packed batches of the same cells, the first of the modality that comes first in ``MODALITIES``; None if fewer than two cells
    have two modalities.
    """
    n_cells, device = batch.n_cells, batch.feature_T.device
    real_T = batch.feature_T >= 0
    cell_T = torch.repeat_interleave(torch.arange(n_cells), batch.lengths_B).to(device)
    feature_T, bin_T = batch.feature_T[real_T], batch.bin_T[real_T]
    cls_T = feature_T == len(modality_W) - 1
    modality_T = modality_W[feature_T]
    present_BM = torch.stack(
        [torch.bincount(cell_T[(modality_T == m) & ~cls_T], minlength=n_cells) > 0 for m in range(len(MEASURED))], dim=1
    )
    kept_B = present_BM.sum(1) > 1
    if int(kept_B.sum()) < 2:
        return None
    score_BM = torch.rand(present_BM.shape, generator=generator).to(device).masked_fill(~present_BM, -1.0)
    pair_B2 = score_BM.topk(2, dim=1).indices.sort(dim=1).values

    def view(modality_B: Tensor) -> Batch:
        shown_T = kept_B[cell_T] & (cls_T | (modality_T == modality_B[cell_T]))
        lengths_B = torch.bincount(cell_T[shown_T], minlength=n_cells)[kept_B].cpu()
        position_T = None if batch.position_T is None else batch.position_T[real_T][shown_T]
        return Batch(feature_T=feature_T[shown_T], bin_T=bin_T[shown_T], lengths_B=lengths_B, position_T=position_T)

    return view(pair_B2[:, 0]), view(pair_B2[:, 1])
