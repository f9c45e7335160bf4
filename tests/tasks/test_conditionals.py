"""The network as the sampler's model, on its smallest self: 4 movable features, 3 bins, float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from cellxpert.batch import Batch, Questions
from cellxpert.config import NetworkConfig
from cellxpert.nn import Network
from cellxpert.steering import Anchors, BlockMH, Informed, MultipleTry, Schedule, Streams, SuffixRedraw, Target, run
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
