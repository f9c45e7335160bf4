"""Random numbers, a stream per chain.

A chain's numbers depend on the seed and on the chain's own number, not on how many chains run beside it; two runs with the
same seed share their numbers, which is what pairs a chain with its null.

Shape suffixes: C chains, N numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["Streams"]


class Streams:
    """Uniform numbers of some chains, counted from ``first`` on.

    Parameters
    ----------
    seed
        Seed of all streams.
    n_chains
        Number of streams.
    first
        Number of the first chain.
    buffer
        Numbers drawn ahead per chain. It changes memory and time, not the numbers.
    """

    def __init__(self, seed: int, n_chains: int, *, first: int = 0, buffer: int = 256) -> None:
        key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self._generators = [np.random.Generator(np.random.Philox(key=[key, first + c])) for c in range(n_chains)]
        self._buffer = buffer
        self._drawn_CN = np.empty((n_chains, 0))
        self._at = 0

    @property
    def n_chains(self) -> int:
        """Number of streams."""
        return len(self._generators)

    def uniform(self, n: int) -> Tensor:
        """Return the next ``n`` numbers in [0, 1) of every chain, float64 of shape (C, n)."""
        left = self._drawn_CN.shape[1] - self._at
        if n > left:
            more = max(n - left, self._buffer)
            fresh_CN = np.stack([generator.random(more) for generator in self._generators])
            self._drawn_CN = np.concatenate([self._drawn_CN[:, self._at :], fresh_CN], axis=1)
            self._at = 0
        drawn_CN = self._drawn_CN[:, self._at : self._at + n]
        self._at += n
        return torch.from_numpy(drawn_CN.copy())
