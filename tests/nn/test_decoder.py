from __future__ import annotations

import itertools

import pytest
import torch

from cellxpert.batch import Questions
from cellxpert.nn.decoder import Memory

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def _ask(network, memory, *, queries, seen, bins):
    """Ask one feature after the other, each with exactly the values that it may see."""
    outs = []
    for query, visible in zip(queries, seen, strict=True):
        n = len(visible)
        questions = Questions(
            query_BQ=torch.tensor([[query]]),
            value_feature_BM=torch.tensor([visible], dtype=torch.int64) if n else None,
            value_bin_BM=torch.tensor([[bins[f] for f in visible]], dtype=torch.int64) if n else None,
            visible_BQM=torch.ones(1, 1, n, dtype=torch.bool) if n else None,
        )
        outs.append(network.decode(questions, memory)[0, 0])
    return torch.stack(outs)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def setting(request, make_network, make_batch):
    """Return a network, the memory of one context and values of five features outside it."""
    network = make_network().to(request.param)
    with torch.no_grad():
        memory = network.memory(network.encode(make_batch([12])))
    features = [3, 17, 8, 25, 11]
    bins = dict(zip(features, [0, 4, 2, 6, 1], strict=True))
    with torch.no_grad():
        yield network, memory, features, bins, TOLERANCE[request.param]


def _one_pass(network, memory, features, bins, visible):
    ids = torch.tensor([features])
    values = torch.tensor([[bins[f] for f in features]])
    questions = Questions(query_BQ=ids, value_feature_BM=ids, value_bin_BM=values, visible_BQM=visible[None])
    return network.decode(questions, memory)[0]


def test_one_leave_one_out_pass_equals_n_passes(setting):
    network, memory, features, bins, tolerance = setting
    one = _one_pass(network, memory, features, bins, ~torch.eye(5, dtype=torch.bool))
    seen = [[f for f in features if f != query] for query in features]
    many = _ask(network, memory, queries=features, seen=seen, bins=bins)
    torch.testing.assert_close(one, many, rtol=0, atol=tolerance)
    # the values do matter
    unseen = _one_pass(network, memory, features, bins, torch.zeros(5, 5, dtype=torch.bool))
    assert (one - unseen).abs().max() > 1e-3


def test_one_causal_pass_equals_n_sequential_conditionals(setting):
    network, memory, features, bins, tolerance = setting
    one = _one_pass(network, memory, features, bins, torch.ones(5, 5, dtype=torch.bool).tril(-1))
    seen = [features[:i] for i in range(5)]
    many = _ask(network, memory, queries=features, seen=seen, bins=bins)
    torch.testing.assert_close(one, many, rtol=0, atol=tolerance)


def test_the_any_order_joint_sums_to_one(make_network, make_batch):
    states = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert len(states) == 81
    for dtype, order in itertools.product(TOLERANCE, ([0, 1, 2, 3], [2, 0, 3, 1])):
        network = make_network(n_features=6, n_bins=3).to(dtype)
        batch = make_batch([3], n_features=6, n_bins=3)
        with torch.no_grad():
            memory = network.prepare(network.memory(network.encode(batch)))
            ids = torch.tensor(order).expand(81, -1)
            bins = states[:, order]
            questions = Questions(
                query_BQ=ids,
                value_feature_BM=ids,
                value_bin_BM=bins,
                visible_BQM=torch.ones(1, 4, 4, dtype=torch.bool).tril(-1),
            )
            log_p = network.decode(questions, memory).log_softmax(-1).gather(2, bins[..., None]).sum((1, 2))
        assert abs(log_p.exp().sum().item() - 1) < TOLERANCE[dtype]
        assert log_p.exp().max() > 1.2 / 81  # and is not merely flat


def test_an_answer_does_not_depend_on_what_else_was_asked(setting):
    network, memory, features, bins, tolerance = setting
    visible = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    one = _one_pass(network, memory, features, bins, visible)
    ids, values = torch.tensor([features]), torch.tensor([[bins[f] for f in features]])
    more = Questions(
        query_BQ=torch.tensor([[29, 3, 0, 17, 8, 25, 11, 3]]),
        value_feature_BM=ids,
        value_bin_BM=values,
        visible_BQM=torch.cat([~visible[:1], visible[:1], ~visible[1:2], visible[1:], ~visible[:1]])[None],
    )
    found = network.decode(more, memory)[0]
    torch.testing.assert_close(found[[1, 3, 4, 5, 6]], one, rtol=0, atol=tolerance)


def test_a_hidden_value_has_no_influence(setting):
    network, memory, features, bins, tolerance = setting
    visible = torch.ones(5, 5, dtype=torch.bool)
    visible[:, 2] = False
    one = _one_pass(network, memory, features, bins, visible)
    other = _one_pass(network, memory, features, bins | {features[2]: 6}, visible)
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_values_are_a_set(setting):
    network, memory, features, bins, tolerance = setting
    order = [4, 2, 0, 1, 3]
    visible = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    one = _one_pass(network, memory, features, bins, visible)
    ids, values = torch.tensor([features]), torch.tensor([[bins[f] for f in features]])
    shuffled = Questions(
        query_BQ=ids,
        value_feature_BM=ids[:, order],
        value_bin_BM=values[:, order],
        visible_BQM=visible[None, :, order],
    )
    torch.testing.assert_close(network.decode(shuffled, memory)[0], one, rtol=0, atol=tolerance)


def test_padding_of_queries_values_and_memory_is_invisible(setting):
    network, memory, features, bins, tolerance = setting
    visible = torch.ones(5, 5, dtype=torch.bool).tril(-1)
    one = _one_pass(network, memory, features, bins, visible)
    ids = torch.tensor([[*features, -1, -1]])
    padded = Questions(
        query_BQ=ids,
        value_feature_BM=ids,
        value_bin_BM=torch.tensor([[*(bins[f] for f in features), 3, -1]]),
        visible_BQM=torch.nn.functional.pad(visible, (0, 2, 0, 2), value=True)[None],
    )
    tokens = torch.cat([memory.tokens_BLD, 100 * torch.ones_like(memory.tokens_BLD[:, :3])], dim=1)
    mask = torch.arange(tokens.shape[1])[None] < memory.tokens_BLD.shape[1]
    found = network.decode(padded, Memory(tokens_BLD=tokens, mask_BL=mask, evidence=memory.evidence))
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, :5], one, rtol=0, atol=tolerance)


@pytest.mark.parametrize("with_values", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_one_memory_serves_all_chains(setting, with_values, prepared, masked, grad):
    network, memory, features, _, tolerance = setting
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(features).expand(3, -1)
    bins = torch.randint(0, 7, (3, 5), generator=generator)
    visible = torch.rand(3, 5, 5, generator=generator) < 0.5
    given = {"value_feature_BM": ids, "value_bin_BM": bins, "visible_BQM": visible} if with_values else {}
    if masked:
        mask = torch.arange(12)[None] < 9
        memory = Memory(tokens_BLD=memory.tokens_BLD, mask_BL=mask)
    with torch.set_grad_enabled(grad):
        together = network.decode(Questions(query_BQ=ids, **given), network.prepare(memory) if prepared else memory)
    for chain in range(3):
        one = {name: x[chain : chain + 1] for name, x in given.items()}
        alone = network.decode(Questions(query_BQ=ids[:1], **one), memory)
        torch.testing.assert_close(together[chain : chain + 1], alone, rtol=0, atol=tolerance)


def test_cells_of_a_batch_do_not_see_one_another(make_network, make_batch):
    network = make_network()
    batch = make_batch([6, 14, 9], n_queries=5)
    with torch.no_grad():
        together = network(batch).masked_BQK
        memory = network.memory(network.encode(batch))
        for b, length in enumerate([6, 14, 9]):
            evidence = memory.evidence.rows(torch.tensor([b]))
            alone = Memory(tokens_BLD=memory.tokens_BLD[b : b + 1, :length], evidence=evidence)
            q = batch.masked
            one = Questions(
                query_BQ=q.query_BQ[b : b + 1],
                value_feature_BM=q.value_feature_BM[b : b + 1],
                value_bin_BM=q.value_bin_BM[b : b + 1],
                visible_BQM=q.visible_BQM,
            )
            torch.testing.assert_close(network.decode(one, alone)[0], together[b], rtol=0, atol=1e-5)


def test_decoder_experts_count_the_queries_that_are_asked(make_network, make_batch):
    network = make_network(decoder_experts=True)
    batch = make_batch([6, 14], n_queries=5)
    routers = network(batch).routers
    assert len(routers) == 2 + 2 + 2  # encoder, masked pass, whole pass
    assert [int(r.count_E.sum()) for r in routers[2:]] == [20] * 4
