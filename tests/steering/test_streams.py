"""A chain's numbers are its own."""

from __future__ import annotations

import torch
from scipy import stats

from cellxpert.steering.streams import Streams


def test_numbers_depend_on_seed_and_chain_alone():
    together = Streams(3, 5, buffer=7)
    drawn = torch.cat([together.uniform(4), together.uniform(11), together.uniform(2)], dim=1)
    assert drawn.shape == (5, 17)
    for c in range(5):
        alone = Streams(3, 1, first=c, buffer=100)
        assert torch.equal(alone.uniform(17)[0], drawn[c])
    assert torch.equal(Streams(3, 5).uniform(17), drawn)
    assert not torch.equal(Streams(4, 5).uniform(17), drawn)


def test_streams_are_even_and_do_not_follow_one_another():
    drawn = Streams(0, 200).uniform(500)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.flatten(), "uniform").pvalue > 1e-4
    correlation = torch.corrcoef(drawn).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / 500**0.5  # the largest of 19,900 pairs
