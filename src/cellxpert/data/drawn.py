"""Tokens of the cells of a batch, end to end, and an order in which they are hidden.

Legend: B cells, N tokens of all cells end to end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellxpert.data.binning import ragged

__all__ = ["Drawn"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Tokens of a batch in vocabulary order, and one random order of each cell's tokens."""

    feature_N: Ints
    bin_N: Ints
    cell_N: Ints
    start: Ints
    order_N: Ints
    """Token at each place of the random order (cells stay end to end)."""
    rank_N: Ints
    """Place within its cell of ``order_N[i]``."""
    pattern_B: Ints
    """Which features were measured: row of a table that whoever draws has."""

    @property
    def lengths_B(self) -> Ints:
        """Number of tokens of each cell."""
        return np.diff(self.start)

    def only(self, kept_N: npt.NDArray[np.bool_], *, pattern_B: Ints | None = None) -> Drawn:
        """Return some of the tokens, in the same order; ``pattern_B``: what then counts as measured, if not the same."""
        cell_N = self.cell_N[kept_N]
        start = ragged(np.bincount(cell_N, minlength=len(self.pattern_B)))
        return Drawn(
            feature_N=self.feature_N[kept_N],
            bin_N=self.bin_N[kept_N],
            cell_N=cell_N,
            start=start,
            order_N=(np.cumsum(kept_N) - 1)[self.order_N[kept_N[self.order_N]]],
            rank_N=np.arange(start[-1]) - start[cell_N],
            pattern_B=self.pattern_B if pattern_B is None else pattern_B,
        )
