"""Self-attention within each cell of a packed batch, by interchangeable backends.

Cells lie end to end; a token attends to all tokens of its own cell and to no other. Every backend computes the same
function:

* ``reference``: one plain softmax per cell.
* ``sdpa``: torch's scaled_dot_product_attention; cells of equal length in one call, otherwise padded with a mask or, where
  that wastes work, cell by cell.
* ``varlen``: ``torch.nn.attention.varlen``, no padding (CUDA, half precision).
* ``flash``: flash_attn's variable-length kernel, no padding (CUDA, half precision, where installed).

Shape suffixes: B cells, T tokens of all cells end to end, L tokens of the longest cell, H heads, X width of a head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Backend", "Layout", "available_backends", "pad", "self_attention", "unpad"]

Backend = Literal["auto", "flash", "varlen", "sdpa", "reference"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the cells of a packed batch begin and end; made once per batch, used by every layer."""

    lengths: tuple[int, ...]
    """Tokens per cell."""
    start_B: Tensor
    """First token ([CLS]) of each cell (int64)."""
    offset_T: Tensor
    """Place of each token in its cell (int64)."""
    cell_T: Tensor
    """Cell of each token (int64)."""
    cumulative: Tensor
    """0 and the ends of the cells (int32, B + 1), as variable-length kernels want them."""

    @classmethod
    def of(cls, lengths_B: Tensor, device: torch.device | str = "cpu") -> Layout:
        """Lay out cells of these lengths (int64, on the CPU)."""
        end_B = lengths_B.cumsum(0)
        start_B = end_B - lengths_B
        cell_T = torch.repeat_interleave(torch.arange(len(lengths_B)), lengths_B)
        offset_T = torch.arange(len(cell_T)) - start_B[cell_T]
        cumulative = F.pad(end_B, (1, 0)).to(torch.int32)
        tensors = (start_B, offset_T, cell_T, cumulative)
        start_B, offset_T, cell_T, cumulative = (t.to(device, non_blocking=True) for t in tensors)
        return cls(
            lengths=tuple(lengths_B.tolist()), start_B=start_B, offset_T=offset_T, cell_T=cell_T, cumulative=cumulative
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest cell."""
        return max(self.lengths)

    @property
    def is_even(self) -> bool:
        """Whether all cells have the same length."""
        return min(self.lengths) == self.longest

    def slot_T(self, length: int) -> Tensor:
        """Place of each token in cells padded to ``length``, flattened."""
        return self.cell_T * length + self.offset_T

    def mask_BL(self) -> Tensor | None:
        """True at tokens, False at padding; None if there is no padding."""
        if self.is_even:
            return None
        lengths_B = self.cumulative[1:] - self.cumulative[:-1]
        return torch.arange(self.longest, device=lengths_B.device) < lengths_B[:, None]


class _Scatter(torch.autograd.Function):
    """Rows to distinct places among zeros. Both directions are plain copies; autograd's own would accumulate."""

    @staticmethod
    def forward(ctx, x_T, slot_T, n_rows):
        ctx.save_for_backward(slot_T)
        out = x_T.new_zeros((n_rows, *x_T.shape[1:]))
        out[slot_T] = x_T
        return out

    @staticmethod
    def backward(ctx, grad):
        (slot_T,) = ctx.saved_tensors
        return grad.index_select(0, slot_T), None, None


class _Gather(torch.autograd.Function):
    """Rows from distinct places: the inverse of :class:`_Scatter`."""

    @staticmethod
    def forward(ctx, x, slot_T):
        ctx.save_for_backward(slot_T)
        ctx.n_rows = len(x)
        return x.index_select(0, slot_T)

    @staticmethod
    def backward(ctx, grad_T):
        (slot_T,) = ctx.saved_tensors
        grad = grad_T.new_zeros((ctx.n_rows, *grad_T.shape[1:]))
        grad[slot_T] = grad_T
        return grad, None


def pad(x_T: Tensor, layout: Layout) -> Tensor:
    """Packed (T, ...) to padded (B, L, ...), zeros at the padding."""
    shape = (len(layout.lengths), layout.longest, *x_T.shape[1:])
    if layout.is_even:
        return x_T.view(shape)
    return _Scatter.apply(x_T, layout.slot_T(layout.longest), shape[0] * shape[1]).view(shape)


def unpad(x_BL: Tensor, layout: Layout) -> Tensor:
    """Padded (B, L, ...) to packed (T, ...)."""
    if layout.is_even:
        return x_BL.flatten(0, 1)
    return _Gather.apply(x_BL.flatten(0, 1), layout.slot_T(layout.longest))


def _reference(qkv_T3HX: Tensor, layout: Layout) -> Tensor:
    outs = []
    for qkv_L3HX in qkv_T3HX.split(layout.lengths):
        q_HLX, k_HLX, v_HLX = qkv_L3HX.permute(1, 2, 0, 3).unbind(0)
        scores_HLL = q_HLX @ k_HLX.transpose(-1, -2) * q_HLX.shape[-1] ** -0.5
        outs.append((scores_HLL.softmax(-1) @ v_HLX).transpose(0, 1))
    return torch.cat(outs)


def _loop_is_faster(qkv_T3HX: Tensor, layout: Layout) -> bool:
    """Whether one call per cell beats one padded call on the CPU.

    One thread is always faster cell by cell (nothing is padded; measured from 150 to 1,200 tokens). Torch spreads the
    backward pass over cells and heads alone, so several threads may prefer the padded call.
    """
    if qkv_T3HX.is_cuda:
        return False
    n_threads, n_heads = torch.get_num_threads(), qkv_T3HX.shape[2]
    n_cells = len(layout.lengths)
    loop = sum(n * n for n in layout.lengths) / min(n_threads, n_heads)
    padded = n_cells * layout.longest**2 / min(n_threads, n_cells * n_heads)
    return loop < padded


def _sdpa(qkv_T3HX: Tensor, layout: Layout) -> Tensor:
    if layout.is_even or not _loop_is_faster(qkv_T3HX, layout):
        mask_BL = layout.mask_BL()
        q, k, v = pad(qkv_T3HX, layout).permute(2, 0, 3, 1, 4).unbind(0)  # each BHLX
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        out_BHLX = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return unpad(out_BHLX.transpose(1, 2), layout)
    outs_HLX = []
    for q, k, v in zip(*(x.transpose(0, 1).split(layout.lengths, dim=1) for x in qkv_T3HX.unbind(1)), strict=True):
        outs_HLX.append(F.scaled_dot_product_attention(q[None], k[None], v[None])[0])
    return torch.cat([out.transpose(0, 1) for out in outs_HLX])


def _varlen(qkv_T3HX: Tensor, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.contiguous() for x in qkv_T3HX.unbind(1))
    longest = layout.longest
    return varlen_attn(q, k, v, layout.cumulative, layout.cumulative, longest, longest)


def _flash(qkv_T3HX: Tensor, layout: Layout) -> Tensor:
    from flash_attn import flash_attn_varlen_qkvpacked_func

    return flash_attn_varlen_qkvpacked_func(qkv_T3HX, layout.cumulative, layout.longest)


def available_backends(device: torch.device | str, dtype: torch.dtype) -> tuple[Backend, ...]:
    """Backends that run on this device and precision, fastest first."""
    backends: list[Backend] = []
    if torch.device(device).type == "cuda" and dtype in {torch.float16, torch.bfloat16}:
        if importlib.util.find_spec("flash_attn") is not None:
            backends.append("flash")
        if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
            backends.append("varlen")
    return (*backends, "sdpa", "reference")


def self_attention(qkv_T3HX: Tensor, layout: Layout, *, backend: Backend = "auto") -> Tensor:
    """Attend within each cell.

    Parameters
    ----------
    qkv_T3HX
        Queries, keys and values of all tokens.
    layout
        Where the cells begin and end.
    backend
        ``"auto"`` takes the fastest one that this device and precision allow.

    Returns
    -------
    Tensor of shape (T, H, X).
    """
    if backend == "auto":
        backend = available_backends(qkv_T3HX.device, qkv_T3HX.dtype)[0]
    functions: dict[str, Callable[[Tensor, Layout], Tensor]] = {
        "reference": _reference,
        "sdpa": _sdpa,
        "varlen": _varlen,
        "flash": _flash,
    }
    return functions[backend](qkv_T3HX, layout)
