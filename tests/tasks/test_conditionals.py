"""The network as the sampler's model, on its smallest self: 4 movable features, 3 bins, float64."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch

from cellxpert.batch import Batch, Intervention, Questions
from cellxpert.config import NetworkConfig
from cellxpert.nn import Network
from cellxpert.steering import Anchors, BlockMH, Informed, MultipleTry, Schedule, Streams, SuffixRedraw, Target, run
from cellxpert.steering.conditionals import Packed, causal_terms, draw_in_order, ranks
from cellxpert.steering.kernels import init
from cellxpert.tasks import conditionals
from cellxpert.tasks.conditionals import NetworkConditionals

FEATURES = torch.tensor([1, 3, 4, 6])
STATES = torch.tensor(list(itertools.product(range(3), repeat=4)))
ORDER = torch.tensor([[2, 0, 3, 1]])


@pytest.fixture(scope="module")
def network():
    config = NetworkConfig(
        width=64, encoder_layers=1, decoder_layers=2, n_experts=2, expert_hidden=8, decoder_hidden=16
    )
    generator = torch.Generator().manual_seed(0)
    network = Network(config, feature_modality=[0] * 8, n_bins=3, generator=generator).double().eval()
    with torch.no_grad():
        network.bins.linear.weight.normal_(std=0.15, generator=generator)
        network.bins.prior.weight.normal_(std=0.5, generator=generator)
        network.embedding.bin.weight.normal_(std=1.0, generator=generator)
    return network


def _context(*cells):
    features = [torch.tensor([8, *cell]) for cell in cells]
    return Batch(
        feature_T=torch.cat(features),
        bin_T=torch.cat([torch.tensor([0] + [2] * len(cell)) for cell in cells]),
        lengths_B=torch.tensor([len(f) for f in features]),
    )


def test_answers_are_the_networks(network):
    model = NetworkConditionals(network, _context([0, 2, 5]), FEATURES)
    x = STATES[[5, 50]]
    visible = torch.tensor([[[False, True, True, False], [True, False, True, True]]]).expand(2, -1, -1)
    query = torch.tensor([[0, 1], [3, 1]])
    visible = visible.clone()
    visible[1, 0, 3] = False
    found = model.log_prob(query, x, visible)
    memory = network.memory(network.encode(_context([0, 2, 5])))
    for c in range(2):
        for q in range(2):
            seen = visible[c, q]
            asked = Questions(
                query_BQ=FEATURES[query[c, q]].view(1, 1),
                value_feature_BM=FEATURES[seen][None],
                value_bin_BM=x[c, seen][None],
                visible_BQM=torch.ones(1, 1, int(seen.sum()), dtype=torch.bool),
            )
            alone = network.decode(asked, memory).log_softmax(-1)[0, 0]
            torch.testing.assert_close(found[c, q], alone, rtol=0, atol=1e-12)


def test_conditionals_of_random_weights_are_inconsistent(network):
    """Two orders give two joints: what makes the tests of the sampler bite."""
    model = NetworkConditionals(network, _context([0, 2, 5]), FEATURES)
    laws = [Target(model=model, order_CM=o.expand(81, -1))(STATES).log_density_C for o in (ORDER, ORDER.flip(1))]
    for law in laws:
        assert law.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert (laws[0].exp() - laws[1].exp()).abs().sum() > 1e-3


@pytest.mark.parametrize("part", ["joint", "pseudo"])
@pytest.mark.parametrize(
    "kernel",
    [BlockMH(size=2), SuffixRedraw(), MultipleTry(size=2, n_tries=3), Informed()],
    ids=lambda k: type(k).__name__,
)
def test_kernels_leave_the_networks_own_law_invariant(network, kernel, part):
    """By enumeration with the network's own answers; a failure is tried once more with four times the sample."""
    if part == "pseudo" and isinstance(kernel, SuffixRedraw):
        return
    from scipy import stats

    model = NetworkConditionals(network, _context([0, 2, 5]), FEATURES)
    anchors = Anchors(bin_AM=torch.tensor([[0, 1, 2, 0], [2, 2, 0, 1]]), kappa=0.5)
    law = Target(model=model, order_CM=ORDER.expand(81, -1), part=part, anchors=anchors)(STATES).log_density_C.softmax(
        0
    )
    p_values = []
    for seed, n in ((0, 8_000), (1, 32_000)):
        x = STATES[torch.multinomial(law, n, replacement=True, generator=torch.Generator().manual_seed(seed))]
        target = Target(model=model, order_CM=ORDER.expand(n, -1), part=part, anchors=anchors)
        trace = run(kernel, target, x, schedule=Schedule(n_steps=2, thin=2), streams=Streams(seed, n, buffer=1))
        counts = torch.bincount((trace.state.x_CM * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double()
        often = n * law >= 5
        pooled = [torch.cat([v[often], v[~often].sum()[None]]) for v in (counts, n * law)]
        p_values.append(stats.chisquare(*pooled).pvalue)
        if p_values[-1] > 1e-4:
            break
    assert p_values[-1] > 1e-4
    assert often.sum() > 40


def test_a_context_per_chain(network):
    """Chains of different cells, candidates of one chain side by side."""
    cells = ([0, 2, 5], [7, 2], [5])
    together = NetworkConditionals(network, _context(*cells), FEATURES)
    x, visible = STATES[[3, 9, 30, 44, 60, 80]], (~torch.eye(4, dtype=torch.bool))[None]
    query = torch.arange(4).expand(6, -1)
    found = together.log_prob(query, x, visible)
    for c, cell in enumerate(cells):
        alone = NetworkConditionals(network, _context(cell), FEATURES)
        rows = slice(2 * c, 2 * c + 2)
        torch.testing.assert_close(found[rows], alone.log_prob(query[rows], x[rows], visible), rtol=0, atol=1e-12)
    with pytest.raises(AssertionError, match="evaluation mode"):
        NetworkConditionals(Network(network.config, feature_modality=[0] * 8, n_bins=3), _context([0]), FEATURES)


# --- caches ------------------------------------------------------------------------------------------------------------

CELLS = ([0, 2, 5], [7, 2], [5], [0, 2, 5, 7])


class Plain:
    """The network asked anew for every question: a context and only the values that are seen, no cache."""

    n_sites, n_bins = 4, 3

    def __init__(self, network, contexts):
        self.network, self.contexts = network, contexts

    def log_prob(self, query_CQ, x_CM, visible_CQM):
        visible_CQM = visible_CQM.expand(len(x_CM), -1, -1)
        out, copies = [], len(x_CM) // len(self.contexts)
        with torch.no_grad():
            memories = [self.network.memory(self.network.encode(context)) for context in self.contexts]
            for c, (query, x, visible) in enumerate(zip(query_CQ, x_CM, visible_CQM, strict=True)):
                questions = Questions(
                    query_BQ=FEATURES[query][None],
                    value_feature_BM=FEATURES[None],
                    value_bin_BM=x[None],
                    visible_BQM=visible[None],
                )
                out.append(self.network.decode(questions, memories[c // copies])[0].log_softmax(-1))
        return torch.stack(out)


def _intervened(network, kind, *, dtype=torch.float64):
    """A network that has seen interventions, and what is done to a context; None for none."""
    if kind == "nothing done":
        return network, lambda context: context
    other = Network(network.config, feature_modality=[0] * 8, n_bins=3, n_targets=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_(std=0.3, generator=generator)

    def done(context):
        n = context.n_cells
        intervention = Intervention(
            feature_BI=torch.tensor([[1]]).expand(n, 1),
            target_BI=torch.tensor([[1]]).expand(n, 1),
            dose_BI=torch.full((n, 1), -1.0, dtype=dtype),
            before=kind == "before",
        )
        return dataclasses.replace(context, intervention=intervention)

    return other.double().eval(), done


@pytest.mark.parametrize("done", ["nothing done", "before", "after"])
@pytest.mark.parametrize("cells", [CELLS[:1], CELLS], ids=["one context", "contexts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_answers_are_the_networks(network, cells, dtype, done):
    network, do = _intervened(network, done, dtype=dtype)
    network = copy.deepcopy(network).to(dtype)
    plain = Plain(network, [do(_context(cell)) for cell in cells])
    cached = NetworkConditionals(network, do(_context(*cells)), FEATURES)
    assert isinstance(cached, Packed)
    generator = torch.Generator().manual_seed(0)
    x = STATES[torch.randint(0, 81, (12,), generator=generator)]
    query = torch.randint(0, 4, (12, 3), generator=generator)
    visible = torch.rand(12, 3, 4, generator=generator) < 0.5
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = plain.log_prob(query, x, visible)
    torch.testing.assert_close(cached.log_prob(query, x, visible), expected, rtol=0, atol=tolerance)
    # different numbers of questions per chain
    count = torch.arange(12) % 4
    asked = torch.arange(3) < count[:, None]
    found = cached.log_prob_packed(query[asked], x, visible[asked], count_C=count)
    torch.testing.assert_close(found, expected[asked], rtol=0, atol=tolerance)
    # site after site
    order = torch.stack([torch.randperm(4, generator=generator) for _ in range(12)])
    uniform = torch.rand(12, 4, dtype=torch.float64, generator=generator)
    start = torch.arange(12) % 5
    one, other = (draw_in_order(m, x, order, start_C=start, uniform_CM=uniform) for m in (cached, plain))
    assert torch.equal(one.x_CM, other.x_CM)
    torch.testing.assert_close(one.log_prob_CM, other.log_prob_CM, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("kernel", [BlockMH(size=2), SuffixRedraw(), MultipleTry(size=2, n_tries=3), Informed()])
def test_runs_are_those_of_the_plain_network(network, kernel):
    """The same numbers give the same chains, step by step, whatever is kept on the way."""
    cells, order = CELLS[:2], ORDER.expand(6, -1)
    plain = Plain(network, [_context(cell) for cell in cells])
    cached = NetworkConditionals(network, _context(*cells), FEATURES)
    anchors = Anchors(bin_AM=torch.tensor([[0, 1, 2, 0], [2, 2, 0, 1]]), kappa=0.5)
    part = "joint" if isinstance(kernel, SuffixRedraw) else "pseudo"
    for weight in (1.0, 0.7):
        one, other = (
            run(
                kernel,
                Target(model=model, order_CM=order, part=part, anchors=anchors, weight=weight),
                STATES[[3, 9, 30, 44, 60, 80]],
                schedule=Schedule(n_steps=12, burn_in=6, adapt=False),
                streams=Streams(0, 6),
            )
            for model in (cached, plain)
        )
        assert torch.equal(one.x_RCM, other.x_RCM)
        torch.testing.assert_close(one.log_density_TC, other.log_density_TC, rtol=0, atol=1e-10)
        assert one.moved_CM.any(1).all()


def test_rows_in_portions(network, monkeypatch):
    cached = NetworkConditionals(network, _context(*CELLS), FEATURES)
    order = ORDER.expand(8, -1)
    whole = causal_terms(cached, STATES[:8], ranks(order))
    monkeypatch.setattr(conditionals, "N_ROWS", 3)
    torch.testing.assert_close(causal_terms(cached, STATES[:8], ranks(order)), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stale", ["values", "factors", "context"])
def test_stale_caches_are_caught(network, monkeypatch, stale):
    """Draws that do not show up in what later sites see, and answers about another cell."""
    network, _ = _intervened(network, "before")  # all weights matter
    cached = NetworkConditionals(network, _context(*CELLS), FEATURES)
    if stale == "values":
        real = cached.reader._values
        monkeypatch.setattr(cached.reader, "_values", lambda x, entry: real(x if x.shape[1] > 1 else x * 0, entry))
    elif stale == "factors":
        monkeypatch.setattr(cached.tilt, "read_MF", cached.tilt.read_MF.roll(1, dims=0))
    else:
        monkeypatch.setattr(cached.tilt, "evidence", cached.tilt.evidence.rows(torch.tensor([1, 2, 3, 0])))
    order, uniform = ORDER.expand(40, -1), torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).double()
    drawn = draw_in_order(cached, STATES[:40], order, start_C=torch.zeros(40).long(), uniform_CM=uniform)
    plain = Plain(network, [_context(cell) for cell in CELLS])
    truth = init(drawn.x_CM, Target(model=plain, order_CM=order)).density.term_CM
    assert (drawn.log_prob_CM - truth).abs().max() > 1e-3
