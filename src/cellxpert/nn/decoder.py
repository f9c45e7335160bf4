"""The value-isolated decoder: any conditional p(bin of a feature | context, some values), many per pass.

A query attends, through one softmax, to the memory of the context and to the movable values visible to it. Queries never
attend to one another, and values never attend to anything: their keys and values in every layer are projections of the
(feature, bin) embedding. So an answer depends on its own query, the memory and what that query sees, and on nothing else
that was asked: a diagonal mask gives all leave-one-out conditionals in one pass, a causal mask a normalised joint.

Shape suffixes: B cells (or chains), L tokens of one context, Q queries, M movable values, S = L + M, D width, H heads,
X width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.batch import RouterStats
from cellxpert.config import HEAD_WIDTH, NetworkConfig
from cellxpert.nn.block import Dropout, FeedForward, norm
from cellxpert.nn.experts import compute_dtype
from cellxpert.nn.factors import Evidence

__all__ = ["Decoder", "DecoderLayer", "Memory", "PreparedMemory", "Values"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a decoder knows of the context. A batch of one serves any number of chains."""

    tokens_BLD: Tensor
    """Tokens of the context, padded."""
    mask_BL: Tensor | None = None
    """True at tokens, False at padding; None if there is no padding. No row may be all False."""
    evidence: Evidence | None = None
    """What the context says of the factors; not read by the decoder."""
    batch_B: Tensor | None = None
    """Batches of the cells; a query is told of them before the decoder reads it."""


@dataclass(frozen=True, kw_only=True)
class PreparedMemory:
    """A memory's keys and values for every layer: computed once per context, read by any number of passes."""

    keys: tuple[Tensor, ...]
    """(B, H, L, X) per layer."""
    values: tuple[Tensor, ...]
    """(B, H, L, X) per layer."""
    mask_BL: Tensor | None = None
    """As in :class:`Memory`."""
    evidence: Evidence | None = None
    """As in :class:`Memory`."""
    batch_B: Tensor | None = None
    """As in :class:`Memory`."""

    def cells(self, part: slice) -> PreparedMemory:
        """Some of the contexts, side by side."""
        evidence = self.evidence
        if evidence is not None:
            evidence = evidence.rows(torch.arange(len(evidence.sum_BR), device=evidence.sum_BR.device)[part])
        return PreparedMemory(
            keys=tuple(x[part] for x in self.keys),
            values=tuple(x[part] for x in self.values),
            mask_BL=None if self.mask_BL is None else self.mask_BL[part],
            evidence=evidence,
            batch_B=None if self.batch_B is None else self.batch_B[part],
        )


@dataclass(frozen=True, kw_only=True)
class Values:
    """Movable values and who sees them."""

    tokens_BMD: Tensor
    """Embeddings, a function of (feature, bin) alone."""
    visible_BQM: Tensor
    """Which values each query sees; the batch may be 1."""


def _heads(x_BSD: Tensor) -> Tensor:
    return x_BSD.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Pre-norm: cross-attention, then a feed-forward."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = norm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.memory_kv = nn.Linear(width, 2 * width, bias=False)
        self.value_kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = Dropout(config.dropout)
        hidden = config.expert_hidden if config.decoder_experts else config.decoder_hidden
        self.feed_forward = FeedForward(config, experts=config.decoder_experts, hidden=hidden)

    def attend(
        self, x_BQD: Tensor, memory: tuple[Tensor, Tensor], values_BMD: Tensor | None, *, mask: Tensor | None
    ) -> Tensor:
        """Return what the queries read from memory and values, (B, Q, D)."""
        query_BHQX = _heads(self.query(self.norm(x_BQD)))
        n_cells = len(query_BHQX)
        seen = None if values_BMD is None else [_heads(x) for x in self.value_kv(values_BMD).chunk(2, dim=-1)]
        parts = (memory,) if seen is None else (memory, seen)
        key_BHSX, value_BHSX = (
            torch.cat([x.expand(n_cells, -1, -1, -1) for x in xs], dim=2) if seen else xs[0]
            for xs in zip(*parts, strict=True)
        )
        key_BHSX, value_BHSX = (x.expand(n_cells, -1, -1, -1) for x in (key_BHSX, value_BHSX))
        read_BHQX = F.scaled_dot_product_attention(query_BHQX, key_BHSX, value_BHSX, attn_mask=mask)
        return self.out(read_BHQX.transpose(1, 2).flatten(2))

    def forward(
        self,
        x_BQD: Tensor,
        memory: tuple[Tensor, Tensor] | None,
        values_BMD: Tensor | None,
        *,
        mask: Tensor | None,
        counted_BQ: Tensor,
    ) -> tuple[Tensor, RouterStats | None]:
        """Return the queries after this layer, and its router's statistics over the queries that count."""
        if memory is not None:
            x_BQD = x_BQD + self.dropout(self.attend(x_BQD, memory, values_BMD, mask=mask))
        x_TD, stats = self.feed_forward(x_BQD.flatten(0, 1), counted_BQ.flatten())
        return x_TD.view_as(x_BQD), stats


class Decoder(nn.Module):
    """Layers, then a final norm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.value_norm = norm(config.width)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.decoder_layers)])
        self.norm = norm(config.width)

    def prepare(self, memory: Memory) -> PreparedMemory:
        """Compute every layer's keys and values of a memory."""
        pairs = [layer.memory_kv(memory.tokens_BLD).chunk(2, dim=-1) for layer in self.layers]
        keys, values = (tuple(_heads(x) for x in xs) for xs in zip(*pairs, strict=True))
        return PreparedMemory(
            keys=keys, values=values, mask_BL=memory.mask_BL, evidence=memory.evidence, batch_B=memory.batch_B
        )

    def forward(
        self, x_BQD: Tensor, memory: Memory | PreparedMemory | None, values: Values | None = None, *, counted_BQ: Tensor
    ) -> tuple[Tensor, tuple[RouterStats, ...]]:
        """Answer queries.

        Parameters
        ----------
        x_BQD
            Embedded queries.
        memory
            The context, prepared or not; a batch of 1 is shared by all B. None where the queries carry all that there is
            to know, so that no attention takes place.
        values
            Movable values; None if there are none.
        counted_BQ
            False at padded queries.

        Returns
        -------
        Answers after the final norm, and the routers' statistics (``decoder_experts`` only).
        """
        read: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        mask = values_BMD = None
        if memory is not None:
            prepared = memory if isinstance(memory, PreparedMemory) else self.prepare(memory)
            read = list(zip(prepared.keys, prepared.values, strict=True))
            mask = _mask(prepared, values, x_BQD=x_BQD)
            values_BMD = None if values is None else self.value_norm(values.tokens_BMD)
        routers = []
        for layer, pair in zip(self.layers, read, strict=True):
            x_BQD, stats = layer(x_BQD, pair, values_BMD, mask=mask, counted_BQ=counted_BQ)
            if stats is not None:
                routers.append(stats)
        return self.norm(x_BQD), tuple(routers)


def _mask(memory: PreparedMemory, values: Values | None, *, x_BQD: Tensor) -> Tensor | None:
    """What each query may see, as a term of the scores: (B, 1, Q, S) or (B, 1, 1, L); None if all of it."""
    n_cells, n_queries, _ = x_BQD.shape
    seen = memory.mask_BL if memory.mask_BL is None else memory.mask_BL[:, None, :]
    if values is not None:
        n_tokens = memory.keys[0].shape[2]
        context = values.visible_BQM.new_ones((1, 1, n_tokens)) if seen is None else seen
        context = context.expand(n_cells, n_queries, n_tokens)
        seen = torch.cat([context, values.visible_BQM.expand(n_cells, n_queries, -1)], dim=-1)
    if seen is None:
        return None
    # additive: made once for all layers, where a boolean mask is converted by every call
    return torch.zeros_like(seen, dtype=compute_dtype(x_BQD)).masked_fill_(~seen, float("-inf"))[:, None]
