"""Small networks and batches with random content."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cellxpert.batch import Batch, Questions
from cellxpert.config import NetworkConfig
from cellxpert.nn import Network

N_FEATURES, N_BINS = 30, 7


@pytest.fixture
def small_config():
    """Return the settings of a network that runs in milliseconds."""
    return NetworkConfig(
        width=64, encoder_layers=2, decoder_layers=2, n_experts=4, expert_hidden=16, decoder_hidden=24, dropout=0.1
    )


@pytest.fixture
def make_network(small_config):
    """Return a function that builds a network in evaluation mode; settings by name."""

    def make(*, n_features=N_FEATURES, n_bins=N_BINS, n_labels=0, n_targets=0, seed=0, **settings):
        torch_generator = torch.Generator().manual_seed(seed)
        modality = [i % 2 for i in range(n_features)]
        network = Network(
            dataclasses.replace(small_config, **settings),
            feature_modality=modality,
            n_bins=n_bins,
            n_labels=n_labels,
            n_targets=n_targets,
            generator=torch_generator,
        )
        # routers, priors and gains start at constants, which would hide mistakes
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "router" in name or "prior" in name:
                    weight.normal_(generator=torch_generator)
                if "norm" in name:
                    weight.uniform_(0.5, 1.5, generator=torch_generator)
        return network.eval()

    return make


@pytest.fixture
def make_batch():
    """Return a function that makes a batch of cells with given lengths ([CLS] included), packed or padded."""

    def make(lengths, *, pad_length=None, n_features=N_FEATURES, n_bins=N_BINS, seed=0, n_queries=0):
        generator = torch.Generator().manual_seed(seed)
        features, bins, queries, targets = [], [], [], []
        for n in lengths:
            order = torch.randperm(n_features, generator=generator)
            features.append(torch.cat([torch.tensor([n_features]), order[: n - 1].sort().values]))
            drawn = torch.randint(1, n_bins, (n - 1,), generator=generator)
            bins.append(torch.cat([torch.zeros(1, dtype=torch.int64), drawn]))
            queries.append(order.flip(0)[:n_queries])
            targets.append(torch.randint(0, n_bins, (n_queries,), generator=generator))
        masked = None
        if n_queries:
            query_BQ, target_BQ = torch.stack(queries), torch.stack(targets)
            masked = Questions(
                query_BQ=query_BQ,
                target_BQ=target_BQ,
                value_feature_BM=query_BQ,
                value_bin_BM=target_BQ,
                visible_BQM=torch.ones(n_queries, n_queries, dtype=torch.bool).tril(-1)[None],
            )
        if pad_length is not None:
            features = [torch.nn.functional.pad(x, (0, pad_length - len(x)), value=-1) for x in features]
            bins = [torch.nn.functional.pad(x, (0, pad_length - len(x))) for x in bins]
        return Batch(
            feature_T=torch.cat(features),
            bin_T=torch.cat(bins),
            lengths_B=torch.tensor(lengths),
            pad_length=pad_length,
            masked=masked,
            whole=None if masked is None else Questions(query_BQ=masked.query_BQ, target_BQ=masked.target_BQ),
        )

    return make
