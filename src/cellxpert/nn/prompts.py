"""Learned tokens that every cell gets beside its own: the encoder's attention reads them, and nothing after it sees them.

Shape suffixes: B cells, T tokens of all cells end to end, W the same with the prompts, P prompts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellxpert.nn.attention import Layout

__all__ = ["Prompted", "Prompts"]


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """Cells with their prompts."""

    tokens_WD: Tensor
    """Tokens of each cell, its prompts after them."""
    layout: Layout
    """Where the cells begin and end among these."""
    counted_W: Tensor
    """True at tokens but [CLS] and prompts."""
    own_T: Tensor
    """Place of each token without prompts."""


class Prompts(nn.Module):
    """Prompts, the same for every cell (Lester et al. 2021)."""

    def __init__(self, n_prompts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_prompts, width))

    def forward(self, tokens_TD: Tensor, layout: Layout) -> Prompted:
        """Put the prompts behind the tokens of each cell: [CLS] stays first."""
        n_prompts, n_cells = len(self.weight), len(layout.lengths)
        device = tokens_TD.device
        wide = Layout.of(torch.tensor(layout.lengths) + n_prompts, device)
        own_T = wide.start_B[layout.cell_T] + layout.offset_T
        end_B = wide.cumulative[1:].long()
        prompt_BP = end_B[:, None] - n_prompts + torch.arange(n_prompts, device=device)
        at_W = torch.cat([own_T, prompt_BP.flatten()])
        prompts_WD = self.weight.to(tokens_TD.dtype).repeat(n_cells, 1)
        order_W = torch.empty_like(at_W)
        order_W[at_W] = torch.arange(len(at_W), device=device)
        counted_W = torch.zeros(len(at_W), dtype=torch.bool, device=device)
        counted_W[own_T] = layout.offset_T > 0
        return Prompted(
            tokens_WD=torch.cat([tokens_TD, prompts_WD])[order_W], layout=wide, counted_W=counted_W, own_T=own_T
        )
