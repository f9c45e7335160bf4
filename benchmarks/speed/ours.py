"""Our side of the speed cases: the network of ``base`` and one of its training steps. Imports no rival."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.speed import flops, inputs
from benchmarks.speed.step import step_of
from cellxpert.batch import Batch
from cellxpert.config import ModelConfig, preset
from cellxpert.nn.experts import Router
from cellxpert.nn.network import Network
from cellxpert.training.objectives import total_loss
from cellxpert.training.optimizers import build_optimizer

__all__ = ["network_of", "step_flops", "training_step"]


def network_of(config: ModelConfig) -> Network:
    """Return a network of random weights over genes alone, whose routers use all experts as trained ones do.

    The routers start at zero, and drawn weights would send all tokens to the same experts (tokens of an untrained network
    are much alike), which is faster than real life. So they are drawn, and made blind to what all tokens share.
    """
    network = Network(
        config.network,
        feature_modality=[0] * config.tokens.n_genes,
        n_bins=config.tokens.n_bins,
        max_tokens=config.tokens.max_tokens,
    )
    generator = torch.Generator().manual_seed(1)
    for router in (m for m in network.modules() if isinstance(m, Router)):
        nn.init.normal_(router.choice.data, std=router.choice.shape[1] ** -0.5, generator=generator)
    hooks = [m.register_forward_pre_hook(_ignore_mean) for m in network.encoder.modules() if isinstance(m, Router)]
    with torch.no_grad():
        network.eval().encode(inputs.inference_batch(2, length=min(256, config.tokens.n_genes), config=config))
    for hook in hooks:
        hook.remove()
    return network


def _ignore_mean(router: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    """Remove the mean of a router's input from its weights."""
    mean_D = nn.functional.normalize(arguments[0].mean(0), dim=0)
    router.choice -= torch.outer(router.choice @ mean_D, mean_D)


def training_step(batch: Batch) -> Callable[[], None]:
    """Return one training step of ``base`` on a batch."""
    config = preset("base")
    network = network_of(config).train()
    optimizer, _ = build_optimizer(network, config.training, n_steps=1000)
    return step_of(lambda: total_loss(network(batch), batch, config=config.training)[0], optimizer)


def step_flops(config: ModelConfig, batch: Batch) -> int:
    """Operations of one training step: encoder and both sets of questions, backward twice the forward."""
    lengths, n_bins = batch.lengths_B.tolist(), config.tokens.n_bins
    total = flops.encoder_flops(config.network, lengths)
    for questions, memory in ((batch.masked, lengths), (batch.whole, [0] * len(lengths))):
        values = questions.value_feature_BM
        total += flops.decoder_flops(
            config.network,
            n_memory=memory,
            n_queries=questions.query_BQ.shape[1],
            n_values=0 if values is None else values.shape[1],
            n_bins=n_bins,
        )
    return 3 * total
