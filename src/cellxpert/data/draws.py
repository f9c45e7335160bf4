"""Random choices for many cells at once: loops over bits that a numpy Generator drew."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

__all__ = ["distinct", "ragged_permutation"]

Ints = npt.NDArray[np.int64]


@functools.cache
def _kernels() -> SimpleNamespace:
    """Compile the loops; numba is imported at first use only.

    ``(bits * n) >> 32`` is a number below n: its bias is below n / 2**32, one in a million for the longest cell.
    """
    import numba

    compiled = functools.partial(numba.njit, cache=False, nogil=True)

    @compiled
    def shuffle(start, bits, out):  # type: ignore[no-untyped-def]
        for i in range(len(start) - 1):
            for at in range(start[i], start[i + 1]):
                other = start[i] + np.int64((np.uint64(bits[at]) * np.uint64(at - start[i] + 1)) >> np.uint64(32))
                out[at] = out[other]
                out[other] = at

    @compiled
    def choose(size, take, bits, pool, out):  # type: ignore[no-untyped-def]
        swapped = np.zeros(bits.shape[1], np.int64)
        for i in range(len(size)):
            for k in range(take[i]):
                other = k + np.int64((np.uint64(bits[i, k]) * np.uint64(size[i] - k)) >> np.uint64(32))
                out[i, k] = pool[other]
                pool[other] = pool[k]
                pool[k] = out[i, k]
                swapped[k] = other
            for k in range(take[i] - 1, -1, -1):  # put the pool back
                other = swapped[k]
                pool[k], pool[other] = pool[other], pool[k]

    return SimpleNamespace(shuffle=shuffle, choose=choose)


def ragged_permutation(start: Ints, *, rng: np.random.Generator) -> Ints:
    """Permute each ragged row: row i of the result holds ``start[i] ... start[i + 1] - 1`` in random order."""
    n = int(start[-1])
    out = np.empty(n, np.int64)
    _kernels().shuffle(start, rng.integers(0, 1 << 32, size=n, dtype=np.uint32), out)
    return out


def distinct(size: Ints, take: Ints, *, width: int, rng: np.random.Generator) -> Ints:
    """Draw without replacement for each row: ``take[i]`` of ``0 ... size[i] - 1``, every subset and order equally likely.

    Parameters
    ----------
    size, take
        Numbers per row, ``take <= size`` and ``take <= width``.
    width
        Columns of the result.
    rng
        Source of randomness.

    Returns
    -------
    int64 array of shape (n_rows, width); 0 from column ``take[i]`` on.
    """
    assert (take <= size).all()
    assert take.max(initial=0) <= width
    out = np.zeros((len(size), width), np.int64)
    bits = rng.integers(0, 1 << 32, size=out.shape, dtype=np.uint32)
    _kernels().choose(size, take, bits, np.arange(size.max(initial=0)), out)
    return out
