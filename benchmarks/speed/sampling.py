"""What a step of the sampler costs, and a pseudo-likelihood, against the same with masked-language-model passes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import interleaved, measured, ratio
from benchmarks.registry import Measurement
from benchmarks.speed import inputs, ours, rivals
from cellxpert.batch import Batch, Questions
from cellxpert.config import ModelConfig, preset
from cellxpert.nn.network import Network
from cellxpert.steering import BlockMH, Streams, Target, init
from cellxpert.tasks.conditionals import NetworkConditionals

__all__ = ["SamplerOfBert", "pseudo_likelihood", "steps"]

OURS = "cellxpert-base"
N_STEPS = 4
"""Steps of ours per round: how many rows one takes depends on the block that was drawn."""


def _context(config: ModelConfig, *, length: int, n_sites: int) -> tuple[Batch, Tensor]:
    """Return a cell of ``length`` tokens, and movable features that are not among them."""
    batch = inputs.inference_batch(1, length=length, config=config)
    shown = torch.zeros(config.tokens.n_genes + 1, dtype=torch.bool)
    shown[batch.feature_T] = True
    return batch, (~shown).nonzero()[:n_sites, 0]


class SamplerOfBert:
    """A chain over the bins of ``n_sites`` of a cell's tokens, whose conditionals and energies are masked-model passes.

    A cell has ``length`` tokens altogether, the movable ones among them. Energies are one pass over the unmasked cell
    (Goyal et al. 2022), read at the movable tokens alone.
    """

    def __init__(self, bert: rivals.MaskedBert, *, length: int, n_sites: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.bert, self.n_sites, self.size, self.generator = bert, n_sites, size, generator
        self.ids_1L = torch.randperm(bert.n_features, generator=generator)[None, :length]
        self.bin_1L = torch.randint(0, bert.n_bins, (1, length), generator=generator)
        self.sites = torch.arange(n_sites)
        self.energy = self._energy(self.bin_1L)

    def conditionals(self, bin_1L: Tensor, hidden: Tensor) -> Tensor:
        """Return log p(. | the other tokens) of hidden tokens: one pass."""
        shown_1L = bin_1L.clone()
        shown_1L[0, hidden] = self.bert.n_bins
        return self.bert(self.ids_1L, shown_1L, hidden).log_softmax(-1)

    def _energy(self, bin_1L: Tensor) -> Tensor:
        log_p = self.bert(self.ids_1L, bin_1L, self.sites).log_softmax(-1)
        return -log_p.gather(1, bin_1L[0, : self.n_sites, None]).sum()

    def step(self, *, careful: bool) -> None:
        """Move once, in two passes (shared proposal, energy kept) or in four."""
        block = torch.randperm(self.n_sites, generator=self.generator)[: self.size]
        forward = self.conditionals(self.bin_1L, block)
        proposed_1L = self.bin_1L.clone()
        proposed_1L[0, block] = torch.multinomial(forward.exp(), 1, generator=self.generator)[:, 0]
        backward = forward if careful else self.conditionals(proposed_1L, block)
        before, after = self.energy if careful else self._energy(self.bin_1L), self._energy(proposed_1L)
        log_ratio = before - after
        log_ratio = log_ratio + backward.gather(1, self.bin_1L[0, block, None]).sum()
        log_ratio = log_ratio - forward.gather(1, proposed_1L[0, block, None]).sum()
        if torch.rand((), generator=self.generator).log() < log_ratio:
            self.bin_1L, self.energy = proposed_1L, after


def _without_caches(network: Network, context: Batch, feature_M: Tensor, *, size: int) -> Callable[[], None]:
    """Return a step of one chain by our own network that keeps nothing: four times the whole cell, then the decoder."""
    n_sites = len(feature_M)
    x_1M = torch.randint(0, network.n_bins, (1, n_sites), generator=torch.Generator().manual_seed(0))
    causal_1MM = torch.ones(1, n_sites, n_sites, dtype=torch.bool).tril(-1)

    def ask(site_1Q: Tensor, visible_1QM: Tensor) -> Tensor:
        questions = Questions(
            query_BQ=feature_M[site_1Q], value_feature_BM=feature_M[None], value_bin_BM=x_1M, visible_BQM=visible_1QM
        )
        return network.decode(questions, network.memory(network.encode(context))).log_softmax(-1)

    def step() -> None:
        block_1S = torch.arange(size)[None]
        outside_1SM = (torch.arange(n_sites) >= size).expand(1, size, -1)
        for _ in range(2):
            ask(block_1S, outside_1SM)
            ask(torch.arange(n_sites)[None], causal_1MM)

    return step


def steps(*, length: int, n_sites: int = 128, n_chains: int = 16, size: int = 4, repeats: int) -> list[Measurement]:
    """Metropolis-Hastings steps per CPU second, summed over the chains: blocks of ``size`` of ``n_sites`` movable features.

    Ours leaves the any-order joint invariant (a context of ``length`` tokens, the movable features besides). The rivals are
    one chain each: more would not be faster, a cell's tokens are enough for full speed.
    """
    config = preset("base")
    with measured() as cost, torch.inference_mode():
        network = ours.network_of(config).eval()
        context, feature_M = _context(config, length=length, n_sites=n_sites)
        model = NetworkConditionals(network, context, feature_M)
        generator = torch.Generator().manual_seed(0)
        order_CM = torch.stack([torch.randperm(n_sites, generator=generator) for _ in range(n_chains)])
        x_CM = torch.randint(0, config.tokens.n_bins, (n_chains, n_sites), generator=generator)
        target, kernel, streams = Target(model=model, order_CM=order_CM), BlockMH(size=size), Streams(0, n_chains)
        state = init(x_CM, target)

        def move() -> None:
            nonlocal state
            for _ in range(N_STEPS):
                state, _ = kernel(state, target, streams)

        functions: dict[str, Callable[[], object]] = {
            OURS: move,
            "cellxpert-without-caches": _without_caches(network, context, feature_M, size=size),
            "context": lambda: NetworkConditionals(network, context, feature_M),
        }
        for name, n_parameters in (
            ("bert", network.n_parameters()),
            ("bert_active", rivals.active_parameters(config)),
        ):
            bert = rivals.MaskedBert(config, n_parameters=n_parameters, length=length).eval()
            chain = SamplerOfBert(bert, length=length, n_sites=n_sites, size=size)
            functions[f"{name}_four_passes"] = lambda c=chain: c.step(careful=False)
            functions[f"{name}_two_passes"] = lambda c=chain: c.step(careful=True)
        seconds = interleaved(functions, repeats=repeats)
    reading = seconds.pop("context")
    seconds[OURS] = [s / (N_STEPS * n_chains) for s in seconds[OURS]]
    found = {f"speed_vs_{name}": ratio(took, seconds[OURS]) for name, took in seconds.items() if name != OURS}
    found["context_cpu_s"] = statistics.median(reading)
    return [
        Measurement(
            method=name,
            metrics={"chain_steps_per_cpu_s": 1 / statistics.median(took)} | (found if name == OURS else {}),
            seconds=cost.seconds,
            mib=cost.mib,
        )
        for name, took in seconds.items()
    ]


def pseudo_likelihood(*, length: int, n_sites: int = 128, n_timed: int = 4, repeats: int) -> list[Measurement]:
    """Pseudo-likelihoods of ``n_sites`` features of one cell: one leave-one-out pass against a masked pass per feature.

    ``n_timed`` of the rival's passes are timed, and multiplied.
    """
    config = preset("base")
    with measured() as cost, torch.inference_mode():
        network = ours.network_of(config).eval()
        context, feature_M = _context(config, length=length, n_sites=n_sites)
        x_1M = torch.randint(0, config.tokens.n_bins, (1, n_sites), generator=torch.Generator().manual_seed(0))
        order_1M = torch.arange(n_sites)[None]
        target = Target(model=NetworkConditionals(network, context, feature_M), order_CM=order_1M, part="pseudo")

        def anew() -> None:
            model = NetworkConditionals(network, context, feature_M)
            Target(model=model, order_CM=order_1M, part="pseudo")(x_1M)

        bert = rivals.MaskedBert(config, n_parameters=network.n_parameters(), length=length).eval()
        chain = SamplerOfBert(bert, length=length, n_sites=n_sites, size=1)

        def masked() -> None:
            for site in range(n_timed):
                chain.conditionals(chain.bin_1L, torch.tensor([site]))

        seconds = interleaved(
            {OURS: lambda: target(x_1M), "cellxpert-base-context-read-anew": anew, "bert_masked_passes": masked},
            repeats=repeats,
        )
    seconds["bert_masked_passes"] = [s * n_sites / n_timed for s in seconds["bert_masked_passes"]]
    slow = seconds["bert_masked_passes"]
    return [
        Measurement(
            method=name,
            metrics={"cells_per_cpu_s": 1 / statistics.median(took)}
            | ({"speed_vs_masked_passes": ratio(slow, took)} if took is not slow else {}),
            seconds=cost.seconds,
            mib=cost.mib,
        )
        for name, took in seconds.items()
    ]
