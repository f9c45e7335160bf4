from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from cellxpert import metrics, pl
from cellxpert.errors import MetricError, PlotError
from cellxpert.pl.colors import PALETTE


def _curves(ax):
    """Label -> x, y, colour of the solid lines."""
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    return {line.get_label(): (*line.get_data(), to_hex(line.get_color()).upper()) for line in solid}


def _points(ax):
    """The marks of thresholds, by colour."""
    marks = [c for c in ax.collections if len(c.get_offsets())]
    return {to_hex(c.get_facecolor()[0]).upper(): tuple(c.get_offsets()[0]) for c in marks}


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=1, max_size=25))
def test_the_risk_is_the_error_rate_of_the_surest_cells(cells):
    """Of every number of cells; where scores are equal, on average over their orders."""
    scores = np.array([c[0] / 7 for c in cells])
    wrong = np.array([not c[1] for c in cells], dtype=float)
    ax = pl.risk_coverage(scores, ~wrong.astype(bool), return_fig=True).axes[0]
    ((label, (coverage, risk, color)),) = _curves(ax).items()
    expected = []
    for k in range(1, len(cells) + 1):
        last = np.sort(scores)[::-1][k - 1]
        sure, tied = scores > last, scores == last
        expected.append((wrong[sure].sum() + wrong[tied].mean() * (k - sure.sum())) / k)
    assert coverage == pytest.approx(np.arange(1, len(cells) + 1) / len(cells))
    assert risk == pytest.approx(expected)
    assert label == f"AURC {np.mean(expected):.3f}"
    assert color == PALETTE[0]


def test_several_confidences_and_their_thresholds():
    rng = np.random.default_rng(0)
    sure, strange = rng.random(200), rng.normal(size=200)
    correct = rng.random(200) < sure
    ax = pl.risk_coverage(
        {"confidence": sure, "novelty": -strange}, correct, threshold={"confidence": 0.6}, title="mine"
    )
    curves = _curves(ax)
    assert list(curves)[0] == f"confidence, AURC {metrics.aurc(sure, correct):.3f}"
    assert [c[2] for c in curves.values()] == list(PALETTE[:2])
    kept = sure >= 0.6
    assert _points(ax) == {PALETTE[0]: pytest.approx((kept.mean(), 1 - correct[kept].mean()))}
    random = next(line for line in ax.lines if line.get_label() == "at random")
    assert list(random.get_ydata()) == pytest.approx([1 - correct.mean()] * 2)
    named = [t.get_text() for t in ax.get_legend().texts]
    assert named == [*curves, "at random", "threshold"]
    assert ax.get_title(loc="left") == "mine"
    assert pl.risk_coverage(sure, correct, threshold=2.0).get_legend().texts[-1].get_text() == "threshold"
    assert not _points(pl.risk_coverage(sure, correct, threshold=2.0))  # nothing is kept


def test_the_surest_cells_alone_do_not_decide_how_high_the_plot_is():
    correct = np.ones(200, dtype=bool)
    correct[[0, 100]] = False
    ax = pl.risk_coverage(np.linspace(1, 0, 200), correct)
    ((_, risk, _),) = _curves(ax).values()
    assert risk[0] == 1
    assert ax.get_ylim()[1] == pytest.approx(1.1 * 0.25)  # one of the first four, 2 %
    assert pl.risk_coverage([0.5, 0.6], [True, True]).get_ylim()[1] > 0


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=20),
    st.lists(st.integers(0, 20), min_size=1, max_size=20),
    st.integers(-1, 21),
)
def test_the_curve_has_what_every_threshold_keeps_and_refuses(known, novel, threshold):
    ax = pl.novelty_curve(known, novel, threshold=threshold, return_fig=True).axes[0]
    ((label, (kept, refused, _)),) = _curves(ax).items()
    expected = {
        (sum(x < t for x in known) / len(known), sum(x >= t for x in novel) / len(novel)) for t in [*known, *novel, 99]
    }
    np.testing.assert_allclose(sorted(zip(kept, refused, strict=True)), sorted(expected), atol=1e-12)
    pairs = [(x > y) + 0.5 * (x == y) for x in novel for y in known]
    assert label.startswith(f"AUROC {np.mean(pairs):.3f}, ")
    mark = (sum(x <= threshold for x in known) / len(known), sum(x > threshold for x in novel) / len(novel))
    assert _points(ax) == {PALETTE[0]: pytest.approx(mark)}


def test_the_share_refused_where_nine_of_ten_known_cells_are_kept():
    known, novel = np.arange(1000) / 1000, np.array([0.95] * 3 + [0.2])
    ax = pl.novelty_curve({"score": known, "other": -known}, {"score": novel, "other": -novel}, title="mine")
    first, second = _curves(ax)
    assert first.startswith("score: AUROC")
    assert first.endswith(", 75 % at the line")
    assert second.endswith(", 0 % at the line")
    line = next(x for x in ax.lines if x.get_label() == "90 % of known cells kept")
    assert list(line.get_xdata()) == [0.9, 0.9]
    assert not _points(ax)
    assert ax.get_title(loc="left") == "mine"


@pytest.mark.parametrize("draw", [lambda: pl.risk_coverage([0.2, 0.8], [0, 1]), lambda: pl.novelty_curve([0.1], [0.2])])
def test_axes_are_in_percent_and_the_legend_lies_beside_them(draw):
    ax = draw()
    for _ in range(2):
        ax.figure.draw_without_rendering()
    for axis in (ax.xaxis, ax.yaxis):
        for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
            assert float(text.get_text().removesuffix(" %").replace("−", "-")) == pytest.approx(100 * place)
    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.get_window_extent())
    assert legend.x1 <= ax.figure.bbox.x1


def test_what_cannot_be_drawn():
    for bad in ([], [np.nan, 1.0], [[0.1, 0.2]], ["a", "b"], {}, {"x": [np.inf, 0]}):
        with pytest.raises(PlotError, match=r"risk_coverage\(confidence=\)"):
            pl.risk_coverage(bad, [True, False])
        with pytest.raises(PlotError, match=r"novelty_curve\(novel\)"):
            pl.novelty_curve([0.1], bad)
    with pytest.raises(MetricError, match="shapes"):
        pl.risk_coverage([0.1, 0.2], [True])
    with pytest.raises(MetricError, match="other than True"):
        pl.risk_coverage([0.1, 0.2], [True, 7])
    with pytest.raises(PlotError, match=r"\['a'\] and \['b'\]"):
        pl.novelty_curve({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(PlotError, match=r"\['typo'\] for \['a'\]"):
        pl.risk_coverage({"a": [0.1, 0.2]}, [True, False], threshold={"typo": 0.1})
    with pytest.raises(PlotError, match=r"(?s)one for \['a'\].*threshold=\{'a': \.\.\.\}"):
        pl.novelty_curve({"a": [0.1]}, {"a": [0.2]}, threshold=0.1)
