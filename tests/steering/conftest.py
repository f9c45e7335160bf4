"""Models small enough to enumerate: every state, every conditional, every target."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cellxpert.batch import Batch
from cellxpert.config import NetworkConfig
from cellxpert.nn import Network
from cellxpert.tasks.conditionals import NetworkConditionals

N_SITES, N_BINS = 4, 3
STATES = torch.tensor(list(itertools.product(range(N_BINS), repeat=N_SITES)))
"""All 81 states, first site slowest."""


def code(x_CM):
    """Index of each state in STATES."""
    place = N_BINS ** torch.arange(x_CM.shape[1] - 1, -1, -1)
    return (x_CM * place).sum(-1)


class Table:
    """Conditionals looked up by (site, values of the visible sites): any table of them, consistent or not."""

    n_sites, n_bins = N_SITES, N_BINS

    def __init__(self, log_p):
        """Keep log_p[site, code with hidden sites as N_BINS, bin]."""
        self.log_p = log_p
        self._place = (N_BINS + 1) ** torch.arange(N_SITES - 1, -1, -1)

    def log_prob(self, query_CQ, x_CM, visible_CQM):
        seen_CQM = torch.where(visible_CQM, x_CM[:, None], N_BINS)
        return self.log_p[query_CQ, (seen_CQM * self._place).sum(-1)]


def all_codes():
    return itertools.product(range(N_BINS + 1), repeat=N_SITES)


def joint_of(seed):
    """Log probabilities of the 81 states of a pairwise log-linear law."""
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 0.5, (N_SITES, N_BINS))
    pair = rng.normal(0, 0.6, (N_SITES, N_SITES, N_BINS, N_BINS))
    energy = np.zeros(len(STATES))
    for s, x in enumerate(STATES.tolist()):
        energy[s] = sum(field[i, x[i]] for i in range(N_SITES))
        energy[s] += sum(pair[i, j, x[i], x[j]] for i in range(N_SITES) for j in range(i))
    return torch.from_numpy(energy).log_softmax(0)


def consistent(seed=0):
    """Conditionals of one joint law, by summing over whatever is hidden."""
    log_joint = joint_of(seed)
    log_p = torch.zeros((N_SITES, (N_BINS + 1) ** N_SITES, N_BINS), dtype=torch.float64)
    for at, seen in enumerate(all_codes()):
        keep = torch.ones(len(STATES), dtype=torch.bool)
        for site, value in enumerate(seen):
            if value < N_BINS:
                keep &= STATES[:, site] == value
        for site in range(N_SITES):
            if seen[site] == N_BINS:
                rows = [log_joint[keep & (STATES[:, site] == b)].logsumexp(0) for b in range(N_BINS)]
                log_p[site, at] = torch.stack(rows).log_softmax(0)
    return Table(log_p)


def inconsistent(seed=0, noise=0.7):
    """The same, each conditional with logit noise of its own: no joint law has these."""
    generator = torch.Generator().manual_seed(seed)
    log_p = consistent(seed).log_p
    return Table((log_p + noise * torch.randn(log_p.shape, dtype=torch.float64, generator=generator)).log_softmax(-1))


FEATURES = torch.tensor([1, 3, 4, 6])
CELL = [0, 2, 5]


def make(dtype):
    """Return the package's smallest network; its random weights are of a scale at which every flaw in ``mutants.py`` shows."""
    config = NetworkConfig(
        width=64, encoder_layers=1, decoder_layers=2, n_experts=2, expert_hidden=8, decoder_hidden=16
    )
    generator = torch.Generator().manual_seed(1)
    network = Network(config, feature_modality=[0] * 8, n_bins=N_BINS, generator=generator).eval()
    with torch.no_grad():
        network.bins.linear.weight.normal_(std=0.15, generator=generator)
        network.bins.prior.weight.normal_(std=0.1, generator=generator)
        network.embedding.bin.weight.normal_(std=4.0, generator=generator)
    return network.to(dtype)


def context(*cells):
    features = [torch.tensor([8, *cell]) for cell in cells]
    bins = [torch.tensor([0] + [1 + feature % 2 for feature in cell]) for cell in cells]
    lengths = torch.tensor([len(f) for f in features])
    return Batch(feature_T=torch.cat(features), bin_T=torch.cat(bins), lengths_B=lengths)


def tabulated(network):
    """Every conditional of a network in the context of one cell, asked one after another."""
    model = NetworkConditionals(network, context(CELL), FEATURES)
    seen = torch.tensor(list(all_codes()))
    visible = (seen < N_BINS)[:, None].expand(-1, N_SITES, -1) & ~torch.eye(N_SITES, dtype=torch.bool)
    query = torch.arange(N_SITES).expand(len(seen), -1)
    log_p = model.log_prob(query, seen.clamp(max=N_BINS - 1), visible)
    return Table(log_p.transpose(0, 1).contiguous())


@pytest.fixture(scope="session")
def models():
    """Return all kinds of model by name; the network's conditionals are inconsistent too."""
    return {"consistent": consistent(), "inconsistent": inconsistent(), "network": tabulated(make(torch.float64))}
