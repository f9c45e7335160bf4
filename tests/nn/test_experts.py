from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.nn.experts import Dense, Experts, Router, router_stats


def _experts(*, n_experts=4, experts_per_token=2, seed=0, dtype=torch.float32, method="auto"):
    experts = Experts(16, 8, n_experts=n_experts, experts_per_token=experts_per_token, method=method).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=dtype) * 0.5)
    return experts.eval()


def _plain(experts, x):
    """Every token and every chosen expert, one after the other; differentiable."""
    outs = []
    for token in x:
        kept, chosen = (experts.router.choice @ token).topk(experts.router.experts_per_token)
        gates, out = kept.softmax(0), 0
        for gate, e in zip(gates, chosen.tolist(), strict=True):
            g, u = (token @ experts.up[e]).chunk(2)
            out = out + gate * ((F.silu(g) * u) @ experts.down[e])
        outs.append(out)
    return torch.stack(outs)


def _tokens(n, width=16, seed=0, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 40), n_experts=st.integers(1, 6), chosen=st.integers(1, 3), seed=st.integers(0, 99))
def test_experts_are_equal_to_a_plain_loop(n, n_experts, chosen, seed):
    experts = _experts(
        n_experts=n_experts, experts_per_token=min(chosen, n_experts), seed=seed, dtype=torch.float64, method="split"
    )
    x = _tokens(n, seed=seed, dtype=torch.float64)
    weight = _tokens(n, seed=seed + 1, dtype=torch.float64)
    grads = []
    for function in (lambda t: experts(t, torch.ones(n, dtype=torch.bool))[0], lambda t: _plain(experts, t)):
        experts.zero_grad()
        t = x.clone().requires_grad_()
        out = function(t)
        (out * weight).sum().backward()
        grads.append([out.detach(), t.grad, *(p.grad for p in (experts.up, experts.down, experts.router.choice))])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_both_methods_are_equal(dtype, tolerance):
    results = []
    for method in ("split", "grouped_mm", "auto"):
        experts, x = _experts(dtype=dtype, method=method), _tokens(10, dtype=dtype).requires_grad_()
        with torch.no_grad():
            experts.router.choice[2] = 0
            experts.router.choice[2, 0] = -100  # some experts get few tokens
        out = experts(x, torch.ones(10, dtype=torch.bool))[0]
        (out * _tokens(10, seed=1, dtype=dtype)).sum().backward()
        results.append([out.detach(), x.grad, experts.up.grad, experts.down.grad, experts.router.choice.grad])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_no_token_depends_on_another():
    experts, x = _experts(dtype=torch.float64), _tokens(20, dtype=torch.float64)
    together = experts(x, torch.ones(20, dtype=torch.bool))[0]
    for i in range(20):
        alone = experts(x[i : i + 1], torch.ones(1, dtype=torch.bool))[0]
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


def test_noise_only_in_training_and_reproducible():
    experts, x = _experts(), _tokens(50)
    clean = experts.router(x)
    assert clean.scale_TE is None
    assert torch.equal(clean.noisy_TE, clean.logits_TE)
    experts.train()
    noisy = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        noisy.append(experts.router(x).noisy_TE)
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    assert not torch.equal(noisy[0], clean.logits_TE)


def test_gates_sum_to_one_over_the_best_experts():
    routing = _experts(n_experts=5).router(_tokens(30))
    torch.testing.assert_close(routing.gate_TS.sum(1), torch.ones(30))
    best = routing.logits_TE.argsort(dim=1, descending=True)[:, :2]
    assert torch.equal(routing.expert_TS, best)


def test_statistics_leave_out_what_does_not_count():
    experts, x = _experts(), _tokens(30)
    counted = torch.rand(30, generator=torch.Generator().manual_seed(3)) < 0.6
    experts.train()
    torch.manual_seed(0)
    routing = experts.router(x)
    stats = router_stats(routing, counted)
    importance, count, z = torch.zeros(4), torch.zeros(4), []
    for t in counted.nonzero().flatten().tolist():
        for gate, e in zip(routing.gate_TS[t], routing.expert_TS[t].tolist(), strict=True):
            importance[e] += gate.detach()
            count[e] += 1
        z.append(routing.logits_TE[t].exp().sum().log().item() ** 2)
    torch.testing.assert_close(stats.importance_E, importance)
    assert torch.equal(stats.count_E, count)
    assert not stats.count_E.requires_grad
    assert stats.z.item() == pytest.approx(sum(z) / len(z), rel=1e-5)


def test_load_is_the_probability_of_being_chosen_when_the_own_noise_is_redrawn():
    experts, x = _experts(), _tokens(3)
    experts.train()
    torch.manual_seed(0)
    routing = experts.router(x)
    stats = router_stats(routing, torch.ones(3, dtype=torch.bool))
    draws, expected = 20000, torch.zeros(4)
    for e in range(4):
        noisy = routing.noisy_TE.detach().expand(draws, 3, 4).clone()
        noise = torch.randn(draws, 3, generator=torch.Generator().manual_seed(e))
        noisy[:, :, e] = routing.logits_TE[:, e].detach() + noise * routing.scale_TE[:, e].detach()
        expected[e] = (noisy.topk(2, dim=-1).indices == e).any(-1).float().mean(0).sum()
    torch.testing.assert_close(stats.load_E.detach(), expected, rtol=0, atol=0.03)


def test_load_is_the_count_without_noise():
    experts, counted = _experts(), torch.ones(9, dtype=torch.bool)
    stats = router_stats(experts.router(_tokens(9)), counted)
    assert torch.equal(stats.load_E, stats.count_E)
    everyone = _experts(n_experts=2).train()
    torch.manual_seed(0)
    stats = router_stats(everyone.router(_tokens(9)), counted)
    assert stats.load_E.tolist() == [9, 9]


def test_a_router_of_zeros_learns():
    experts = _experts().train()
    with torch.no_grad():
        experts.router.choice.zero_()
        experts.router.noise.zero_()
    x, counted = _tokens(200), torch.ones(200, dtype=torch.bool)
    target = torch.where(x[:, :1] > 0, x.flip(1), -x)  # two regimes
    optimizer = torch.optim.Adam(experts.parameters(), lr=1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(60):
        out, stats = experts(x, counted)
        loss = (out - target).square().mean()
        losses.append(loss.item())
        balance = sum(v.var() / v.mean() ** 2 for v in (stats.importance_E, stats.load_E))
        optimizer.zero_grad()
        (loss + 1e-2 * balance).backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert experts.router.choice.abs().max() > 0.01
    assert experts.router.noise.abs().max() > 0.001
    assert stats.count_E.min() > 10


def test_router_stays_in_fp32_under_autocast():
    experts = _experts()
    with torch.autocast("cpu", torch.bfloat16):
        out, stats = experts(_tokens(12), torch.ones(12, dtype=torch.bool))
        routing = experts.router(_tokens(12).bfloat16())
    assert out.dtype == torch.bfloat16
    assert routing.logits_TE.dtype == routing.gate_TS.dtype == stats.z.dtype == torch.float32
    exact = experts(_tokens(12), torch.ones(12, dtype=torch.bool))[0]
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_dense_is_swiglu():
    dense = Dense(16, 8)
    x = _tokens(5)
    gate, up = x @ dense.up.weight[:8].T, x @ dense.up.weight[8:].T
    torch.testing.assert_close(dense(x), (gate * gate.sigmoid() * up) @ dense.down.weight.T)


def test_gradients_of_dense_are_those_of_finite_differences():
    dense = Dense(4, 3).double()
    x = _tokens(5, width=4, dtype=torch.float64).requires_grad_()
    up, down = dense.up.weight, dense.down.weight
    assert torch.autograd.gradcheck(lambda x, *_: dense(x), (x, up, down))


def test_router_has_two_matrices():
    shapes = {name: tuple(p.shape) for name, p in Router(16, 4, experts_per_token=2).named_parameters()}
    assert shapes == {"choice": (4, 16), "noise": (4, 16)}
