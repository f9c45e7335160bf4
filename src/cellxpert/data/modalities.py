"""One modality of a cell hidden whole: which, what that leaves to show, and what it leaves to ask.

A model that always sees some of each modality never has to say one from the other. Niches belong to the neighbours, and are hidden
with no modality.

Legend: B cells, P patterns of measured features, V features, M modalities, S scopes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellxpert.data.drawn import Drawn
from cellxpert.data.roles import MEASURED

__all__ = ["HiddenModalities"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class HiddenModalities:
    """Hides modalities of cells that have two or more.

    Parameters
    ----------
    measured_PV
        Measured features of each pattern.
    modality_V
        Modality of each feature, as place in ``MODALITIES``.
    share
        Share of the cells with two or more measured modalities in which one is hidden; 0 hides none.

    Attributes
    ----------
    scope_SV
        Features of each scope. The first P are the patterns; where modalities are hidden, P follow for each of them with its
        features alone, then P for each without them.
    """

    def __init__(self, measured_PV: Bools, *, modality_V: Ints | None, share: float) -> None:
        self.modality_V, self.share, self.n_patterns = modality_V, share, len(measured_PV)
        self.scope_SV, self.present_PM = measured_PV, np.zeros((len(measured_PV), len(MEASURED)), np.bool_)
        if share > 0:
            assert modality_V is not None, "modalities to hide need to be known"
            own_MV = modality_V == np.arange(len(MEASURED))[:, None]
            self.present_PM = (measured_PV.astype(np.int64) @ own_MV.T) > 0
            if (self.present_PM.sum(axis=1) > 1).any():  # a table of many patterns is not made larger for nothing
                parts = [measured_PV & (own_V == alone) for alone in (True, False) for own_V in own_MV]
                self.scope_SV = np.concatenate([measured_PV, *parts])

    def choose(self, pattern_B: Ints, rng: np.random.Generator) -> Ints:
        """Draw the modality that is hidden in each cell, any of those that it has alike; -1 for none."""
        gone_B = np.full(len(pattern_B), -1)
        if self.share > 0:
            present_BM = self.present_PM[pattern_B]
            drawn_B = np.where(present_BM, rng.random(present_BM.shape), -1.0).argmax(axis=1)
            hides_B = (present_BM.sum(axis=1) > 1) & (rng.random(len(pattern_B)) < self.share)
            gone_B = np.where(hides_B, drawn_B, -1)
        return gone_B

    def divide(self, drawn: Drawn, gone_B: Ints) -> tuple[Drawn, Drawn]:
        """Return what can be asked for where a modality is hidden, its features alone, and what is shown, the others.

        Cells of which none is hidden stay as they are in both.
        """
        if (gone_B < 0).all():
            return drawn, drawn
        assert self.modality_V is not None
        hides_B = gone_B >= 0
        hidden_N = self.modality_V[drawn.feature_N] == gone_B[drawn.cell_N]
        alone_B = drawn.pattern_B + np.where(hides_B, self.n_patterns * (1 + gone_B), 0)
        without_B = alone_B + np.where(hides_B, self.n_patterns * len(MEASURED), 0)
        asked = drawn.only(hidden_N | ~hides_B[drawn.cell_N], pattern_B=alone_B)
        return asked, drawn.only(~hidden_N, pattern_B=without_B)
