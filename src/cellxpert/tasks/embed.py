"""Cell vectors, and the logits of labels that are read with them."""

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
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
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
    Three float32 arrays: cell vectors (n_cells, width), and logits of labels and of tissues (n_cells, n_labels or n_tissues).
    """
    rows = np.arange(collator.tokens.n_cells)
    vectors = np.zeros((len(rows), network.config.width), np.float32)
    n_tissues = 0 if network.tissues is None else network.tissues.cell.out_features
    logits, tissues = (np.zeros((len(rows), n), np.float32) for n in (network.n_labels, n_tissues))
    for chosen, batch in inference_batches(collator, rows, batch_size=batch_size):
        # half precision is what the variable-length attention kernels of CUDA take; the cell vector itself is float32
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.startswith("cuda")):
            encoded = network.encode(batch.to(device))
        vectors[chosen] = encoded.cell_BD.float().cpu().numpy()
        if encoded.label_BC is not None:
            logits[chosen] = encoded.label_BC.float().cpu().numpy()
        if encoded.tissue_BC is not None:
            tissues[chosen] = encoded.tissue_BC.float().cpu().numpy()
    return vectors, logits, tissues
