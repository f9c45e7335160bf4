from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellxpert import metrics, pl
from cellxpert.errors import PlotError


def test_points_are_the_bins():
    rng = np.random.default_rng(0)
    confidence = rng.random(300)
    correct = rng.random(300) < confidence**2
    table = metrics.reliability(confidence, correct)
    ax = pl.calibration(table)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), table[["confidence", "accuracy"]])
    assert np.argmax(ax.collections[0].get_sizes()) == np.argmax(table["n"])
    assert f"{metrics.ece(confidence, correct):.3f}" in ax.get_title(loc="left")
    assert pl.calibration(table, title="mine").get_title(loc="left") == "mine"


@pytest.mark.parametrize(
    "bad", [pd.DataFrame({"a": [1]}), [0.5], pd.DataFrame(columns=["n", "confidence", "accuracy"])]
)
def test_other_tables(bad):
    with pytest.raises(PlotError, match=r"cx\.metrics\.reliability"):
        pl.calibration(bad)
