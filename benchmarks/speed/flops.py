"""Floating-point operations and parameters of our network, counted from its shape.

Only matrix products and attention count (2 operations per multiply-add), what is masked or padded does not, and a backward
pass is twice the forward pass: recomputed work earns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from cellxpert.config import NetworkConfig

__all__ = ["active_decoder_parameters", "active_encoder_parameters", "decoder_flops", "encoder_flops"]


def _feed_forward(config: NetworkConfig, *, sparse: bool, hidden: int) -> int:
    """Matrix weights that one token meets in a SwiGLU feed-forward."""
    if not sparse:
        return 3 * config.width * hidden
    return 3 * config.width * hidden * config.experts_per_token + config.width * config.n_experts


def active_encoder_parameters(config: NetworkConfig) -> int:
    """Matrix weights of the encoder that one token meets."""
    sparse = config.feed_forward == "experts"
    hidden = config.expert_hidden if sparse else config.expert_hidden * config.experts_per_token
    return config.encoder_layers * (4 * config.width**2 + _feed_forward(config, sparse=sparse, hidden=hidden))


def active_decoder_parameters(config: NetworkConfig) -> int:
    """Matrix weights of the decoder that one query meets; its keys and values of the memory are among them."""
    hidden = config.expert_hidden if config.decoder_experts else config.decoder_hidden
    return config.decoder_layers * (
        4 * config.width**2 + _feed_forward(config, sparse=config.decoder_experts, hidden=hidden)
    )


def encoder_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Operations of one forward pass over cells of these lengths ([CLS] included)."""
    attention = sum(4 * n * n * config.width for n in lengths) * config.encoder_layers
    return 2 * active_encoder_parameters(config) * sum(lengths) + attention


def decoder_flops(config: NetworkConfig, *, n_memory: Sequence[int], n_queries: int, n_values: int, n_bins: int) -> int:
    """Operations of one forward pass of the decoder.

    Parameters
    ----------
    config
        Shape of the network.
    n_memory
        Tokens of the memory of each cell; 0 for all: queries that carry the cell, without attention.
    n_queries, n_values
        Queries and movable values per cell.
    n_bins
        Width of the answer.
    """
    width, cells = config.width, len(n_memory)
    hidden = config.expert_hidden if config.decoder_experts else config.decoder_hidden
    feed_forward = 2 * _feed_forward(config, sparse=config.decoder_experts, hidden=hidden)
    answer = 2 * width * n_bins * cells * n_queries
    if not any(n_memory):
        gain = 2 * width**2 * cells
        return config.decoder_layers * feed_forward * cells * n_queries + gain + answer
    n_keys = sum(n_memory) + cells * n_values
    attention = 4 * width**2 * (n_keys + cells * n_queries) + 4 * width * n_queries * n_keys
    factors = 4 * cells * n_queries * n_values * config.n_factors  # two sums over what is visible
    return config.decoder_layers * (attention + feed_forward * cells * n_queries) + answer + factors
