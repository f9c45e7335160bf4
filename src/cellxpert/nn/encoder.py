"""The encoder: blocks over the tokens of a context, and what comes out of them.

Shape suffixes: B cells, T tokens of all cells end to end, D width, C labels, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cellxpert.batch import RouterStats
from cellxpert.config import NetworkConfig
from cellxpert.nn.attention import Layout
from cellxpert.nn.block import EncoderBlock, norm
from cellxpert.nn.factors import Evidence

__all__ = ["Encoded", "Encoder"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Cells after the encoder; packed, whatever the layout of the batch was."""

    tokens_TD: Tensor
    """Tokens after the final norm."""
    cell_BD: Tensor
    """Cell vectors (fp32)."""
    lowest_BM: Tensor
    """Lowest non-zero bin per modality; 0 where there is none."""
    label_BC: Tensor | None = None
    """Logits over labels (fp32); None without a label head."""
    tissue_BC: Tensor | None = None
    """Logits over tissues (fp32); None without a tissue head."""
    layout: Layout
    """Where the cells begin and end among the tokens."""
    routers: tuple[RouterStats, ...] = ()
    """One per mixture-of-experts layer."""
    evidence: Evidence | None = None
    """What the context says of the factors; None for a network without them."""
    batch_B: Tensor | None = None
    """Batches of the cells, which only questions about them are told of."""


class Encoder(nn.Module):
    """Blocks, then a final norm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([EncoderBlock(config) for _ in range(config.encoder_layers)])
        self.norm = norm(config.width)

    def forward(
        self, x_TD: Tensor, layout: Layout, counted_T: Tensor | None = None
    ) -> tuple[Tensor, tuple[RouterStats, ...]]:
        """Return the tokens after the final norm, and the routers' statistics over those that count: all but [CLS] if None."""
        if counted_T is None:
            counted_T = layout.offset_T > 0
        routers = []
        for block in self.blocks:
            x_TD, stats = block(x_TD, layout, counted_T)
            if stats is not None:
                routers.append(stats)
        return self.norm(x_TD), tuple(routers)
