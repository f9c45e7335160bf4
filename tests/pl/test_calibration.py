from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cellxpert import metrics, pl
from cellxpert.errors import MetricError, PlotError
from cellxpert.pl.colors import PALETTE


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


def test_several_are_drawn_over_one_another():
    rng = np.random.default_rng(0)
    before, after = rng.random(300) ** 0.3, rng.random(300)
    correct = rng.random(300) < after
    ax = pl.calibration({"before": (before, correct), "after": [after, correct]})
    for points, line, values, color in zip(ax.collections, ax.lines[1:], (before, after), PALETTE, strict=False):
        table = metrics.reliability(values, correct)
        np.testing.assert_allclose(points.get_offsets(), table[["confidence", "accuracy"]])
        np.testing.assert_allclose(np.transpose(line.get_data()), table[["confidence", "accuracy"]])
        assert {to_hex(points.get_facecolor()[0]).upper(), line.get_color()} == {color}
    assert len(ax.collections) == 2
    assert [t.get_text() for t in ax.get_legend().texts] == [
        f"{name} (ECE {metrics.ece(values, correct):.3f})" for name, values in (("before", before), ("after", after))
    ]
    assert ax.get_title(loc="left") == ""
    assert pl.calibration(metrics.reliability(after, correct)).get_legend() is None


def test_what_cannot_be_compared():
    with pytest.raises(PlotError, match="no table"):
        pl.calibration({})
    with pytest.raises(PlotError, match=r"(?s)DataFrame in place.*'before'"):
        pl.calibration({"a": pd.DataFrame()})
    with pytest.raises(PlotError, match="in place of two arrays"):
        pl.calibration({"a": ([0.5], [True], [1])})
    with pytest.raises(MetricError, match="shapes"):
        pl.calibration({"a": ([0.5, 0.6], [True])})


@pytest.mark.parametrize(
    "bad", [pd.DataFrame({"a": [1]}), [0.5], pd.DataFrame(columns=["n", "confidence", "accuracy"])]
)
def test_other_tables(bad):
    with pytest.raises(PlotError, match=r"cx\.metrics\.reliability"):
        pl.calibration(bad)
