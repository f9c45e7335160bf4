"""How often each feature falls into each bin: where the decoder starts from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellxpert.data.tokens import Tokens

__all__ = ["log_bin_frequencies"]

_PSEUDO_CELLS = 2.0
"""Weight, in cells, of the mean over all features: a feature seen in few cells is not certain of anything."""


def log_bin_frequencies(tokens: Tokens, rows: npt.NDArray[np.int64], *, n_bins: int) -> npt.NDArray[np.float32]:
    """Log frequency of every bin of every feature among the chosen cells that measured it.

    Parameters
    ----------
    tokens
        Tokens of an object.
    rows
        Training cells.
    n_bins
        Number of bins, zero's included.

    Returns
    -------
    float32 array of shape (V, n_bins), smoothed towards the mean over features.
    """
    n_features = tokens.measured_features.shape[1]
    cell_of_token = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
    chosen = np.zeros(tokens.n_cells, bool)
    chosen[rows] = True
    kept = chosen[cell_of_token]
    flat = tokens.feature[kept].astype(np.int64) * n_bins + tokens.bin[kept]
    counts = np.bincount(flat, minlength=n_features * n_bins).reshape(n_features, n_bins).astype(np.float64)
    cells_of_pattern = np.bincount(tokens.pattern[rows], minlength=len(tokens.measured_features))
    measured = cells_of_pattern @ tokens.measured_features
    counts[:, 0] += measured - counts.sum(axis=1)  # measured zeros that are no tokens
    mean = (counts.sum(axis=0) + 1) / (counts.sum() + n_bins)
    smoothed = (counts + _PSEUDO_CELLS * mean) / (measured + _PSEUDO_CELLS)[:, None]
    return np.log(smoothed).astype(np.float32)
