from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.nn import attention
from cellxpert.nn.attention import Layout, available_backends, pad, self_attention, unpad

LENGTHS = [[5], [1, 1], [7, 7, 7], [3, 9, 1, 4], [40, 2]]


def _qkv(lengths, *, heads=2, seed=0, dtype=torch.float32):
    return torch.randn(sum(lengths), 3, heads, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _plain(qkv, lengths):
    """One token at a time, in double precision."""
    outs, start = [], 0
    for n in lengths:
        q, k, v = qkv[start : start + n].double().unbind(1)
        for i in range(n):
            for h in range(q.shape[1]):
                weights = torch.softmax(k[:, h] @ q[i, h] / 8, dim=0)
                outs.append(weights @ v[:, h])
        start += n
    return torch.stack(outs).view(sum(lengths), -1, 64)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("loop", [True, False])
def test_backends_of_this_machine_are_equal_to_a_plain_loop(lengths, loop, monkeypatch):
    monkeypatch.setattr(attention, "_loop_is_faster", lambda *_: loop)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    qkv, layout = _qkv(lengths), Layout.of(torch.tensor(lengths), device)
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]:
        expected = _plain(qkv.to(dtype), lengths)
        for backend in (*available_backends(device, dtype), "auto"):
            found = self_attention(qkv.to(device, dtype), layout, backend=backend)
            assert found.dtype == dtype
            assert (found.double().cpu() - expected).abs().max() < tolerance, (backend, dtype)


@pytest.mark.parametrize("loop", [True, False])
def test_gradients_of_sdpa_and_reference_are_equal(loop, monkeypatch):
    monkeypatch.setattr(attention, "_loop_is_faster", lambda *_: loop)
    lengths = [3, 9, 1, 4]
    layout, grads = Layout.of(torch.tensor(lengths)), []
    weight = torch.randn(sum(lengths), 2, 64, generator=torch.Generator().manual_seed(1))
    for backend in ("reference", "sdpa"):
        qkv = _qkv(lengths).requires_grad_()
        (self_attention(qkv, layout, backend=backend) * weight).sum().backward()
        grads.append(qkv.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_cell_gets_the_same_alone_and_in_company(lengths, seed):
    qkv = _qkv(lengths, seed=seed)
    together = self_attention(qkv, Layout.of(torch.tensor(lengths)))
    alone = [self_attention(x, Layout.of(torch.tensor([len(x)]))) for x in qkv.split(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_layout_and_padding(lengths):
    layout = Layout.of(torch.tensor(lengths))
    x_T = torch.arange(1.0, sum(lengths) + 1).requires_grad_()
    padded = pad(x_T[:, None], layout)
    assert padded.shape == (len(lengths), max(lengths), 1)
    start = 0
    for b, n in enumerate(lengths):
        assert padded[b, :n, 0].tolist() == list(range(start + 1, start + n + 1))
        assert not padded[b, n:].any()
        assert layout.start_B[b] == start == layout.cumulative[b]
        assert layout.offset_T[start : start + n].tolist() == list(range(n))
        start += n
    mask = layout.mask_BL()
    if mask is not None:
        assert mask.sum(1).tolist() == lengths
    back = unpad(padded, layout)[:, 0]
    assert torch.equal(back, x_T)
    (back * x_T.detach()).sum().backward()
    assert torch.equal(x_T.grad, x_T.detach())


def test_one_thread_goes_cell_by_cell_and_many_threads_pad_small_cells():
    before = torch.get_num_threads()
    layout = Layout.of(torch.tensor([100, 110] * 8))
    qkv = torch.empty(sum(layout.lengths), 3, 1, 64)
    try:
        torch.set_num_threads(1)
        assert attention._loop_is_faster(qkv, layout)
        torch.set_num_threads(8)
        assert not attention._loop_is_faster(qkv, layout)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_cuda_does_not_pad():
    assert available_backends("cuda", torch.bfloat16)[0] in {"flash", "varlen"}
