"""One block of the encoder, and the feed-forward that encoder and decoder share.

Shape suffixes: T tokens, D width, H heads, X width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.batch import RouterStats
from cellxpert.config import HEAD_WIDTH, NetworkConfig
from cellxpert.nn.attention import Layout, self_attention
from cellxpert.nn.experts import Dense, Experts

__all__ = ["Dropout", "EncoderBlock", "FeedForward", "norm"]


def norm(width: int) -> nn.LayerNorm:
    """Return the normalisation used everywhere: within one token, without bias.

    LayerNorm and not RMSNorm: torch has one kernel for it on every device (RMSNorm is 4 times slower on the CPU).
    """
    return nn.LayerNorm(width, eps=1e-6, bias=False)


class _Drop(torch.autograd.Function):
    """Keep some elements, scaled; remembers one byte per element."""

    @staticmethod
    def forward(ctx, x, keep, scale):
        ctx.scale = scale
        ctx.save_for_backward(keep)
        return x * (keep * x.new_tensor(scale))

    @staticmethod
    def backward(ctx, grad):
        (keep,) = ctx.saved_tensors
        return grad * (keep * grad.new_tensor(ctx.scale)), None, None


class Dropout(nn.Module):
    """Dropout whose CPU path draws one random byte per element (4 times faster than torch's Bernoulli draws).

    On the CPU the probability is a multiple of 1/256. Draws come from torch's default generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share ``p`` of the elements and scale up the others, in training only."""
        if not self.training or self.p == 0:
            return x
        n_dropped = round(256 * self.p)
        if x.device.type != "cpu" or not 0 < n_dropped < 256:
            return F.dropout(x, self.p)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= n_dropped
        return _Drop.apply(x, keep, 256 / (256 - n_dropped))


class FeedForward(nn.Module):
    """Pre-norm residual branch: experts or one dense SwiGLU.

    Parameters
    ----------
    config
        Shape of the network.
    experts
        Whether this one is a mixture of experts.
    hidden
        Hidden width: of one expert, or of the dense feed-forward.
    """

    def __init__(self, config: NetworkConfig, *, experts: bool, hidden: int) -> None:
        super().__init__()
        self.norm = norm(config.width)
        self.dense = None if experts else Dense(config.width, hidden)
        self.experts = None
        if experts:
            self.experts = Experts(
                config.width, hidden, n_experts=config.n_experts, experts_per_token=config.experts_per_token
            )
        self.dropout = Dropout(config.dropout)

    def forward(self, x_TD: Tensor, counted_T: Tensor) -> tuple[Tensor, RouterStats | None]:
        """Return the tokens with the branch added, and the router's statistics over the tokens that count."""
        if self.dense is not None:
            return x_TD + self.dropout(self.dense(self.norm(x_TD))), None
        out_TD, stats = self.experts(self.norm(x_TD), counted_T)
        return x_TD + self.dropout(out_TD), stats


class EncoderBlock(nn.Module):
    """Pre-norm: attention within the cell, then experts."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.backend = config.attention
        self.norm = norm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.dropout = Dropout(config.dropout)
        sparse = config.feed_forward == "experts"
        hidden = config.expert_hidden if sparse else config.experts_per_token * config.expert_hidden
        self.feed_forward = FeedForward(config, experts=sparse, hidden=hidden)

    def forward(self, x_TD: Tensor, layout: Layout, counted_T: Tensor) -> tuple[Tensor, RouterStats | None]:
        """Return the tokens after this block, and its router's statistics."""
        qkv_T3HX = self.qkv(self.norm(x_TD)).unflatten(-1, (3, -1, HEAD_WIDTH))
        attended_THX = self_attention(qkv_T3HX, layout, backend=self.backend)
        x_TD = x_TD + self.dropout(self.out(attended_THX.flatten(1)))
        return self.feed_forward(x_TD, counted_T)
