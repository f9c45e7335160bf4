"""Cell vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cellxpert.data.collate import Collator
from cellxpert.data.loaders import inference_batches
from cellxpert.nn.network import Network

__all__ = ["embed"]


@torch.inference_mode()
def embed(
    network: Network, collator: Collator, *, batch_size: int | None = None, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Read every cell once.

    Parameters
    ----------
    network
        A trained network in evaluation mode, on ``device``.
    collator
        Tokens of the cells.
    batch_size
        Most cells per pass; None: as many as fit 4,096 tokens. It does not change the vectors.
    device
        Where to compute.

    Returns
    -------
    float32 array of shape (n_cells, width).
    """
    rows = np.arange(collator.tokens.n_cells)
    vectors = np.zeros((len(rows), network.config.width), np.float32)
    for chosen, batch in inference_batches(collator, rows, batch_size=batch_size):
        vectors[chosen] = network.encode(batch.to(device)).cell_BD.float().cpu().numpy()
    return vectors
