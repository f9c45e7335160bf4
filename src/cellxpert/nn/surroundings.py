"""Where a cell lies and what its image shows, as one vector that is added to [CLS].

Shape suffixes: B cells, X coordinates of a place, W wavelengths, F image features, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Surroundings"]

WAVELENGTHS = 4.0, 2048.0
"""Shortest and longest wavelength, in distances between nearest neighbours."""
N_WAVELENGTHS = 10
N_COORDINATES = 3


class Surroundings(nn.Module):
    """Fourier features of a place (Tancik et al. 2020), and image features, projected to the width of a token.

    Both projections start at 0, and a cell without place or image gets nothing from them. The logarithm of a distance, the last
    coordinate of a place, is read in waves that are as many times shorter as distances of neighbours vary less than sections are wide.

    Parameters
    ----------
    width
        Width of a token.
    place
        Whether places are read.
    n_image
        Number of image features; 0 for none.
    """

    frequency_XW: Tensor

    def __init__(self, width: int, *, place: bool, n_image: int) -> None:
        super().__init__()
        self.place = nn.Linear(2 * N_COORDINATES * N_WAVELENGTHS, width, bias=False) if place else None
        self.image = nn.Linear(n_image, width, bias=False) if n_image else None
        low, high = (math.log2(w) for w in WAVELENGTHS)
        frequency_W = 2 * math.pi * torch.logspace(-low, -high, N_WAVELENGTHS, base=2.0)
        shorter_X = torch.tensor([1.0, 1.0, WAVELENGTHS[0]])
        self.register_buffer("frequency_XW", shorter_X[:, None] * frequency_W, persistent=False)

    def forward(self, place_BX: Tensor | None, image_BF: Tensor | None, *, blank_B: Tensor | None) -> Tensor | None:
        """Return the vectors (B, D); None where neither is read or known. Cells that are ``blank_B`` show nothing."""
        parts = []
        if self.place is not None and place_BX is not None:
            known_B = torch.isfinite(place_BX).all(1)
            angle_BXW = torch.nan_to_num(place_BX)[..., None] * self.frequency_XW
            wave_BX = torch.cat([angle_BXW.sin(), angle_BXW.cos()], dim=-1).flatten(1)
            parts.append((known_B, self.place(wave_BX)))
        if self.image is not None and image_BF is not None:
            parts.append((torch.isfinite(image_BF).all(1), self.image(torch.nan_to_num(image_BF))))
        if not parts:
            return None
        shown = [part_BD * known_B[:, None] for known_B, part_BD in parts]
        total_BD = torch.stack(shown).sum(0)
        return total_BD if blank_B is None else total_BD.masked_fill(blank_B[:, None], 0.0)
