"""How much each expert reads of a cell.

Letters: N cells, B cells of a batch, T tokens, E experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from cellxpert.data.collate import Collator
from cellxpert.data.loaders import inference_batches
from cellxpert.errors import ConfigError
from cellxpert.nn.experts import Router, Routing
from cellxpert.nn.network import Network

__all__ = ["expert_usage"]


@torch.inference_mode()
def expert_usage(
    network: Network, collator: Collator, *, batch_size: int | None = None, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Return each expert's share of the gates of a cell's tokens, a mean over the encoder's layers.

    [CLS] does not count, but in a cell that has no other token; prompts never do.

    Parameters
    ----------
    network, collator, batch_size, device
        As in :func:`cellxpert.tasks.embed.embed`.

    Returns
    -------
    A float32 array of shape (n_cells, n_experts) whose rows sum to 1.

    Raises
    ------
    ConfigError
        If the encoder has no experts.
    """
    routers = [module for module in network.encoder.modules() if isinstance(module, Router)]
    if not routers:
        raise ConfigError(
            "get_expert_usage", found="a model without experts", fix="train one with feed_forward='experts'"
        )
    n_experts, n_prompts = network.config.n_experts, network.config.n_prompts
    usage_NE = np.zeros((collator.tokens.n_cells, n_experts), np.float32)
    for chosen, batch in inference_batches(collator, np.arange(len(usage_NE)), batch_size=batch_size):
        with _listening(routers) as said, torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            layout = network.encode(batch.to(device)).layout
        counts_T = (layout.offset_T > 0) | (batch.lengths_B.to(device) == 1)[layout.cell_T]
        cell_T = layout.cell_T[counts_T]
        # prompts lie behind the tokens of each cell
        own_T = (torch.arange(len(counts_T), device=cell_T.device) + n_prompts * layout.cell_T)[counts_T]
        total_BE = torch.zeros(len(chosen), n_experts, dtype=torch.float64, device=cell_T.device)
        for routing in said:
            for gate_T, expert_T in zip(routing.gate_TS[own_T].T, routing.expert_TS[own_T].T, strict=True):
                total_BE.index_put_((cell_T, expert_T), gate_T.double(), accumulate=True)
        usage_NE[chosen] = (total_BE / total_BE.sum(1, keepdim=True)).cpu().numpy()
    return usage_NE


@contextlib.contextmanager
def _listening(routers: list[Router]) -> Iterator[list[Routing]]:
    """Collect what routers decide, one entry per call."""
    said: list[Routing] = []
    handles = [router.register_forward_hook(lambda _, __, routing: said.append(routing)) for router in routers]
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()
