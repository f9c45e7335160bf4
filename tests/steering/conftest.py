"""Models small enough to enumerate: every state, every conditional, every target."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

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


@pytest.fixture(scope="session")
def models():
    """Return both kinds of model by name."""
    return {"consistent": consistent(), "inconsistent": inconsistent()}
