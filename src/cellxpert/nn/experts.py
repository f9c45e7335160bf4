"""Feed-forwards: one dense SwiGLU, and the sparse mixture of them behind a noisy top-k router (Shazeer et al. 2017).

No token is dropped and no expert has a capacity, so what a token gets never depends on the others in the batch. Tokens are
sorted by expert once; the experts then read contiguous rows.

Shape suffixes: T tokens, D width, E experts, S experts per token, R = T * S (token, expert) pairs, F hidden width of one
expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cellxpert.batch import RouterStats

__all__ = ["Dense", "Experts", "Router", "Routing", "compute_dtype", "router_stats"]

Method = Literal["auto", "grouped_mm", "split"]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Precision of matrix products on ``x``: autocast's, where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _activate(hidden_R2F: Tensor) -> Tensor:
    gate_RF, up_RF = hidden_R2F.chunk(2, dim=-1)
    return F.silu(gate_RF).mul_(up_RF)


def _activate_backward(hidden_R2F: Tensor, silu_RF: Tensor, grad_RF: Tensor) -> Tensor:
    gate_RF, up_RF = hidden_R2F.chunk(2, dim=-1)
    grad_R2F = torch.empty_like(hidden_R2F)
    grad_gate_RF, grad_up_RF = grad_R2F.chunk(2, dim=-1)
    torch.mul(silu_RF, grad_RF, out=grad_up_RF)
    torch.ops.aten.silu_backward.grad_input(grad_RF * up_RF, gate_RF, grad_input=grad_gate_RF)
    return grad_R2F


class _Activation(torch.autograd.Function):
    """silu(gate) * up, which keeps its input alone for the backward pass: a quarter less memory, as fast."""

    @staticmethod
    def forward(ctx, hidden_R2F):
        ctx.save_for_backward(hidden_R2F)
        return _activate(hidden_R2F)

    @staticmethod
    def backward(ctx, grad_RF):
        (hidden_R2F,) = ctx.saved_tensors
        return _activate_backward(hidden_R2F, F.silu(hidden_R2F.chunk(2, dim=-1)[0]), grad_RF)


class Dense(nn.Module):
    """SwiGLU feed-forward: (silu(x W_gate) * x W_up) W_down, without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Read each token on its own."""
        return self.down(_Activation.apply(self.up(x_TD)))


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the router decided, and what it decided it from."""

    gate_TS: Tensor
    """Weight of each chosen expert; they sum to one."""
    expert_TS: Tensor
    """Chosen experts, best first."""
    logits_TE: Tensor
    """Clean logits."""
    noisy_TE: Tensor
    """Logits that the choice was made from; the clean ones outside training."""
    scale_TE: Tensor | None
    """Scale of the noise; None outside training."""


class Router(nn.Module):
    """Noisy top-k choice of experts, in fp32 (or fp64): a choice is discrete, and bf16 logits tie.

    Both weights start at zero: experts are then chosen by noise alone, evenly.
    """

    def __init__(self, width: int, n_experts: int, *, experts_per_token: int) -> None:
        super().__init__()
        self.experts_per_token = experts_per_token
        self.choice = nn.Parameter(torch.empty(n_experts, width))
        self.noise = nn.Parameter(torch.empty(n_experts, width))

    def forward(self, x_TD: Tensor) -> Routing:
        """Choose experts for each token; noise (torch's default generator) only in training."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.to(self.choice.dtype)
            logits_TE = F.linear(x_TD, self.choice)
            noisy_TE, scale_TE = logits_TE, None
            if self.training:
                scale_TE = F.softplus(F.linear(x_TD, self.noise))
                noisy_TE = logits_TE + torch.randn_like(logits_TE) * scale_TE
            kept_TS, expert_TS = noisy_TE.topk(self.experts_per_token, dim=-1)
            return Routing(
                gate_TS=kept_TS.softmax(-1),
                expert_TS=expert_TS,
                logits_TE=logits_TE,
                noisy_TE=noisy_TE,
                scale_TE=scale_TE,
            )


def router_stats(routing: Routing, counted_T: Tensor) -> RouterStats:
    """Summarise a routing over the tokens that count.

    The load of an expert is the number of tokens that would choose it if its own noise were drawn anew, everything else
    being equal: P(H_e > threshold) with the threshold among the *other* experts' noisy logits. Outside training it is the
    count.
    """
    n_experts, n_chosen = routing.logits_TE.shape[1], routing.expert_TS.shape[1]
    weight_T1 = counted_T[:, None].to(routing.gate_TS.dtype)
    zeros_TE = torch.zeros_like(routing.logits_TE)
    chosen_TE = zeros_TE.scatter(1, routing.expert_TS, 1.0)
    importance_E = (zeros_TE.scatter(1, routing.expert_TS, routing.gate_TS) * weight_T1).sum(0)
    count_E = (chosen_TE * weight_T1).sum(0)
    load_E = count_E
    if routing.scale_TE is not None and n_chosen < n_experts:
        top = routing.noisy_TE.topk(n_chosen + 1, dim=-1).values
        threshold_TE = torch.where(chosen_TE > 0, top[:, -1:], top[:, -2:-1])
        # the smallest scale keeps the quotient finite where softplus underflows
        z_TE = (routing.logits_TE - threshold_TE) / routing.scale_TE.clamp(min=1e-6)
        load_E = (torch.special.ndtr(z_TE) * weight_T1).sum(0)
    z_T = routing.logits_TE.logsumexp(-1).square()
    z = (z_T * weight_T1[:, 0]).sum() / weight_T1.sum().clamp(min=1)
    return RouterStats(importance_E=importance_E, load_E=load_E, z=z, count_E=count_E.detach())


class _SplitExperts(torch.autograd.Function):
    """All experts, one product after the other, and the weighted sum of what they say.

    Written by hand because it keeps the tokens and the hidden rows alone for the backward pass (half of what autograd keeps),
    sums a token's rows by one fused gather (autograd would scatter-add), and makes no output so large that it is paged in
    anew on every call.
    """

    @staticmethod
    def forward(ctx, x_TD, gate_TS, up_ED2F, down_EFD, order_R, place_TS, counts):
        token_R = order_R // gate_TS.shape[1]
        hidden_R2F = x_TD.new_empty(len(order_R), up_ED2F.shape[2])
        said_RD = x_TD.new_empty(len(order_R), x_TD.shape[1])
        rows = (x.split(counts) for x in (token_R, hidden_R2F, said_RD))
        for up, down, token, hidden, said in zip(up_ED2F, down_EFD, *rows, strict=True):
            torch.mm(x_TD.index_select(0, token), up, out=hidden)
            torch.mm(_activate(hidden), down, out=said)
        ctx.counts = counts
        ctx.save_for_backward(x_TD, gate_TS, up_ED2F, down_EFD, order_R, place_TS, hidden_R2F)
        return F.embedding_bag(place_TS, said_RD, mode="sum", per_sample_weights=gate_TS)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD):
        x_TD, gate_TS, up_ED2F, down_EFD, order_R, place_TS, hidden_R2F = ctx.saved_tensors
        grad_up, grad_down = torch.empty_like(up_ED2F), torch.empty_like(down_EFD)
        grad_x_RD, grad_gate_R = grad_TD.new_empty(len(order_R), grad_TD.shape[1]), []
        gate_R1 = gate_TS.flatten()[order_R, None]
        token_R = order_R // gate_TS.shape[1]
        rows = (x.split(ctx.counts) for x in (token_R, gate_R1, grad_x_RD, hidden_R2F))
        for e, (token, gate, grad_x, hidden) in enumerate(zip(*rows, strict=True)):
            # the gate scales the narrow rows (width) and not the hidden ones
            grad_said, x_RD = grad_TD.index_select(0, token), x_TD.index_select(0, token)
            gated_RF, up_RF = hidden.chunk(2, dim=-1)
            silu_RF = F.silu(gated_RF)
            act_RF = silu_RF * up_RF
            grad_act_RF = grad_said @ down_EFD[e].T
            grad_gate_R.append(torch.linalg.vecdot(grad_act_RF, act_RF))
            torch.mm(act_RF.T, grad_said.mul_(gate), out=grad_down[e])
            grad_hidden = _activate_backward(hidden, silu_RF, grad_act_RF)
            torch.mm(x_RD.mul_(gate).T, grad_hidden, out=grad_up[e])
            torch.mm(grad_hidden, up_ED2F[e].T, out=grad_x)
        grad_x_TD = F.embedding_bag(place_TS, grad_x_RD, mode="sum", per_sample_weights=gate_TS)
        return grad_x_TD, torch.cat(grad_gate_R)[place_TS], grad_up, grad_down, None, None, None


def _grouped_experts(
    x_TD: Tensor, gate_TS: Tensor, up_ED2F: Tensor, down_EFD: Tensor, *, order_R: Tensor, count_E: Tensor
) -> Tensor:
    """All experts in one kernel, without waiting for the device to say how many tokens each one gets."""
    end_E = count_E.cumsum(0).to(torch.int32)
    token_R = order_R // gate_TS.shape[1]
    hidden_R2F = F.grouped_mm(x_TD[token_R], up_ED2F, offs=end_E)
    said_RD = F.grouped_mm(_Activation.apply(hidden_R2F), down_EFD, offs=end_E)
    # the product also hands grouped_mm's backward pass a contiguous gradient
    said_RD = said_RD * gate_TS.flatten()[order_R, None]
    return torch.zeros_like(x_TD).index_add(0, token_R, said_RD)


class Experts(nn.Module):
    """Sparse mixture of SwiGLU experts: the sum of the chosen experts' outputs, weighted by the router's gates.

    Parameters
    ----------
    width, hidden
        Width of a token, and hidden width of one expert.
    n_experts, experts_per_token
        Experts, and how many of them read each token.
    method
        ``"grouped_mm"`` (one kernel), ``"split"`` (one product per expert), or the faster of the two for the device and
        precision of the tokens.
    """

    def __init__(
        self, width: int, hidden: int, *, n_experts: int, experts_per_token: int, method: Method = "auto"
    ) -> None:
        super().__init__()
        self.method = method
        self.router = Router(width, n_experts, experts_per_token=experts_per_token)
        self.up = nn.Parameter(torch.empty(n_experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(n_experts, hidden, width))

    def forward(self, x_TD: Tensor, counted_T: Tensor) -> tuple[Tensor, RouterStats]:
        """Return what the experts say of each token, and statistics over the tokens that count."""
        routing = self.router(x_TD)
        stats = router_stats(routing, counted_T)
        expert_R = routing.expert_TS.flatten()
        order_R = expert_R.argsort(stable=True)
        count_E = torch.bincount(expert_R, minlength=len(self.up))
        dtype = compute_dtype(x_TD)
        inputs = [x.to(dtype) for x in (x_TD, routing.gate_TS, self.up, self.down)]
        grouped = self.method == "grouped_mm"
        if self.method == "auto":
            grouped = x_TD.is_cuda and dtype == torch.bfloat16
        if grouped:
            return _grouped_experts(*inputs, order_R=order_R, count_E=count_E), stats
        place_R = torch.empty_like(order_R)
        place_R[order_R] = torch.arange(len(order_R), device=order_R.device)
        place_TS = place_R.view_as(routing.expert_TS)
        return _SplitExperts.apply(*inputs, order_R, place_TS, count_E.tolist()), stats
