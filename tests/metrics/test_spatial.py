from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from cellxpert import metrics
from cellxpert.errors import MetricError
from cellxpert.metrics.spatial import _sampled_pairs


def _plain(values, coordinates, sections, radii):
    """Semivariance and number of pairs of each bin, and the variance, by a double loop."""
    values = np.asarray(values, dtype=float).reshape(len(values), -1)
    sums, n, all_of_them = np.zeros(len(radii) - 1), np.zeros(len(radii) - 1, dtype=int), []
    for i in range(len(values)):
        for j in range(i):
            if sections[i] == sections[j]:
                half = 0.5 * sum((a - b) ** 2 for a, b in zip(values[i], values[j], strict=True))
                distance = np.sqrt(sum((a - b) ** 2 for a, b in zip(coordinates[i], coordinates[j], strict=True)))
                all_of_them.append(half)
                for b in range(len(radii) - 1):
                    if radii[b] < distance <= radii[b + 1]:
                        sums[b] += half
                        n[b] += 1
    return np.divide(sums, n, out=np.full(len(n), np.nan), where=n > 0), n, np.mean(all_of_them)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("width", [0, 4])
@pytest.mark.parametrize("n_sections", [1, 3])
def test_variogram_equals_a_double_loop(axes, width, n_sections):
    rng = np.random.default_rng(0)
    coordinates = rng.random((60, axes)) * 10
    values = rng.normal(size=(60, width) if width else 60)
    sections = np.array(["c", "a", "b"], dtype=object)[rng.integers(0, n_sections, 60)]
    radii = [0.5, 1, 2, 3, 5, 8, 40, 50]
    found = metrics.variogram(values, coordinates, sections=sections, radii=radii)
    gamma, n, variance = _plain(values, coordinates, sections, radii)
    assert list(found.columns) == ["distance", "low", "high", "semivariance", "variance_ratio", "n_pairs"]
    np.testing.assert_array_equal(found["n_pairs"], n)
    np.testing.assert_allclose(found["semivariance"], gamma)
    np.testing.assert_allclose(found["variance_ratio"], gamma / variance)
    np.testing.assert_allclose(found["distance"], np.sqrt(np.multiply(radii[1:], radii[:-1])))
    assert n[-1] == 0
    if n_sections == 1:
        assert variance == pytest.approx(np.var(values, axis=0, ddof=1).sum())
        assert found.equals(metrics.variogram(values, coordinates, radii=radii))


def test_sparse_values_equal_dense_ones():
    rng = np.random.default_rng(0)
    values, coordinates = rng.poisson(0.3, size=(80, 20)), rng.random((80, 2))
    sections = pd.Categorical(rng.choice(["x", "y"], 80))
    dense = metrics.variogram(values, coordinates, sections=sections)
    for make in (sp.csr_matrix, sp.csc_array):
        pd.testing.assert_frame_equal(metrics.variogram(make(values), coordinates, sections=sections), dense)


def test_default_radii_go_from_the_nearest_neighbour_to_half_the_longest_side():
    """On a grid the nearest neighbour is at 2; the longest side of either section is 30."""
    x, y = np.meshgrid(np.arange(0, 31, 2.0), np.arange(0, 11, 2.0))
    grid = np.column_stack([x.ravel(), y.ravel()])
    values = np.random.default_rng(0).normal(size=2 * len(grid))
    # The second section lies on the first, and 1000 away: neither may matter.
    for shift in (0, 1000):
        coordinates, sections = np.vstack([grid, grid + shift]), np.repeat([0, 1], len(grid))
        found = metrics.variogram(values, coordinates, sections=sections, n_bins=5)
        np.testing.assert_allclose(np.append(found["low"], found["high"].iloc[-1]), np.geomspace(2, 15, 6))
    assert len(metrics.variogram(values, coordinates, sections=sections)) == 12


def test_positions_as_values_have_half_the_squared_distance():
    rng = np.random.default_rng(0)
    coordinates = rng.random((300, 3))
    found = metrics.variogram(coordinates, coordinates)
    # the mean of h**2 / 2 over a bin lies between those of its edges
    assert (found["semivariance"] > found["low"] ** 2 / 2).all()
    assert (found["semivariance"] < found["high"] ** 2 / 2).all()


def test_a_gradient_along_a_line_grows_with_the_squared_distance():
    """Cells at 0, 1, 2, ... with value 3 x: pairs at distance h differ by 3 h."""
    x = np.arange(50.0)
    found = metrics.variogram(3 * x, np.column_stack([x, 0 * x]), radii=np.arange(0.5, 20))
    h = np.arange(1, 20)
    np.testing.assert_allclose(found["semivariance"], 9 * h**2 / 2)
    np.testing.assert_array_equal(found["n_pairs"], 50 - h)


def test_white_noise_has_no_spatial_structure():
    rng = np.random.default_rng(0)
    found = metrics.variogram(rng.normal(3, 5, size=(900, 8)), rng.random((900, 2)), n_bins=8)
    np.testing.assert_allclose(found["variance_ratio"], 1, atol=0.06)


def test_offsets_of_sections_are_no_spatial_structure():
    rng = np.random.default_rng(0)
    sections = np.repeat([0, 1], 400)
    values = rng.normal(size=800) + 100 * sections
    found = metrics.variogram(values, rng.random((800, 2)), sections=sections, n_bins=5)
    np.testing.assert_allclose(found["variance_ratio"], 1, atol=0.1)


def test_no_pair_spans_two_sections_however_long_the_radii():
    rng = np.random.default_rng(0)
    values, sections = rng.normal(size=3000), rng.integers(0, 3, 3000)
    coordinates = rng.random((3000, 2))
    n_within = sum(n * (n - 1) // 2 for n in np.bincount(sections))
    radii = [1e-4, 0.01, 2, 1e3, 1e6]
    found = metrics.variogram(values, coordinates, sections=sections, radii=radii, max_pairs=n_within)
    assert found["n_pairs"].iloc[2:].sum() == 0
    assert found["n_pairs"].sum() == pytest.approx(n_within, rel=1e-4)
    sampled = metrics.variogram(values, coordinates, sections=sections, radii=radii, max_pairs=4000)
    assert sampled["n_pairs"].iloc[2:].sum() == 0
    assert (sampled["n_pairs"].iloc[:2] == [min(1000, found["n_pairs"].iloc[0]), 1000]).all()
    assert sampled["semivariance"].iloc[2:].isna().all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(3, 25), st.integers(1, 3), st.integers(1, 3))
def test_the_mean_over_all_pairs_is_the_variance(seed, n, width, n_sections):
    rng = np.random.default_rng(seed)
    values, coordinates = rng.normal(size=(n, width)), rng.random((n, 2))
    sections = np.append([0, 0], rng.integers(0, n_sections, n - 2))
    found = metrics.variogram(values, coordinates, sections=sections, radii=np.geomspace(1e-9, 2, 5)).dropna()
    assert np.average(found["variance_ratio"], weights=found["n_pairs"]) == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0, 2 * np.pi), st.floats(0.1, 10), st.floats(-100, 100))
def test_rotation_order_scale_and_shift_do_not_matter(seed, angle, scale, shift):
    rng = np.random.default_rng(seed)
    coordinates, values = rng.random((40, 2)), rng.normal(size=(40, 3))
    radii = [0.05, 0.1, 0.3, 0.7, 1.5]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    order = rng.permutation(40)
    found = metrics.variogram(values, coordinates, radii=radii)
    again = metrics.variogram(scale * values[order] + shift, (coordinates @ turn + shift)[order], radii=radii)
    np.testing.assert_array_equal(found["n_pairs"], again["n_pairs"])
    np.testing.assert_allclose(found["variance_ratio"], again["variance_ratio"], rtol=1e-6)
    np.testing.assert_allclose(found["semivariance"] * scale**2, again["semivariance"], rtol=1e-6)


def _smooth(n, seed=0):
    rng = np.random.default_rng(seed)
    coordinates = rng.random((n, 2)) * [3, 1]
    return np.column_stack([np.sin(9 * coordinates[:, 0]), coordinates[:, 1] + rng.normal(0, 0.2, n)]), coordinates


@pytest.mark.parametrize("n_sections", [1, 4])
@pytest.mark.parametrize("n", [1200, 3000])
def test_a_sample_is_close_to_all_pairs_and_exact_in_short_bins(n, n_sections):
    """1,200 cells have fewer pairs than are drawn, 3,000 in one section more."""
    values, coordinates = _smooth(n)
    sections = np.random.default_rng(1).integers(0, n_sections, n)
    every = metrics.variogram(values, coordinates, sections=sections, max_pairs=10**8)
    sample = metrics.variogram(values, coordinates, sections=sections, max_pairs=60_000)
    assert every["n_pairs"].sum() > 2 * sample["n_pairs"].sum()
    np.testing.assert_array_equal(sample["n_pairs"], np.minimum(every["n_pairs"], 5000))
    np.testing.assert_allclose(sample["variance_ratio"], every["variance_ratio"], rtol=0.06)
    complete = every["n_pairs"] <= 5000
    assert complete.sum() >= 2
    np.testing.assert_allclose(sample["semivariance"][complete], every["semivariance"][complete])


def test_a_sample_depends_on_the_seed_alone():
    values, coordinates = _smooth(1500)
    first, again, other = (metrics.variogram(values, coordinates, max_pairs=10_000, seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first["semivariance"].equals(other["semivariance"])


def test_sampled_pairs_lie_in_their_section_and_are_taken_uniformly():
    """A crowd of 900 cells and one of 300, far apart: the share of pairs in the smaller one is that of all pairs."""
    rng = np.random.default_rng(0)
    points = np.vstack([rng.random((900, 2)) * 0.1, 5 + rng.random((300, 2)) * 0.1])
    codes, edges = np.zeros(1200, dtype=np.int64), np.array([1e-6, 0.2])
    smaller = []
    for seed in range(5):
        pairs = _sampled_pairs(points, codes, edges, max_pairs=5000, rng=np.random.default_rng(seed))
        assert pairs.shape == (2, 5000)
        assert ((pairs[0] < 900) == (pairs[1] < 900)).all()
        smaller.append((pairs[0] >= 900).mean())
    assert np.mean(smaller) == pytest.approx(300 * 299 / (300 * 299 + 900 * 899), abs=0.01)


GOOD = {"values": np.arange(4.0), "coordinates": np.array([[0, 0], [0, 1], [1, 0], [5, 5.0]])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.array([0, 1, np.nan, 2])}, "values.*not finite"),
        ({"values": np.zeros((4, 0))}, "values.*shape"),
        ({"values": np.full((4, 2), 0.1)}, "no variance"),
        ({"values": np.arange(3.0)}, "3 values, 4 positions"),
        ({"coordinates": np.full((4, 2), np.inf)}, "coordinates.*not finite"),
        ({"coordinates": np.zeros((4, 4))}, r"\(n, 2\) or \(n, 3\)"),
        ({"coordinates": np.zeros(4)}, "coordinates.*shape"),
        ({"coordinates": np.ones((4, 2))}, "default radii"),
        ({"sections": ["a", "a", "b"]}, "3 sections"),
        ({"sections": ["a", "a", None, "b"]}, "1 cells without one"),
        ({"sections": ["a", "b", "c", "d"]}, "no section with two cells"),
        ({"radii": [1, 1, 2]}, "radii"),
        ({"radii": [0, 1, 2]}, "radii"),
        ({"radii": [1, np.inf]}, "radii"),
        ({"radii": [1]}, "radii"),
        ({"radii": [[1, 2], [2, 3]]}, "radii.*shape"),
        ({"n_bins": 0}, "n_bins"),
        ({"max_pairs": 0.5}, "max_pairs"),
    ],
)
def test_bad_input(changes, message):
    metrics.variogram(**GOOD)
    with pytest.raises(MetricError, match=message):
        metrics.variogram(**(GOOD | changes))


def _scores(labels, seed):
    found = np.random.default_rng(seed).normal(size=(len(labels), len(labels)))
    return pd.DataFrame(found + found.T, index=labels, columns=labels)


def test_neighborhood_correlation_equals_a_loop_over_common_labels():
    truth, predicted = _scores(list("abcde"), 0), _scores(list("dcbxa"), 1)
    truth.loc["a", "b"] = truth.loc["b", "a"] = np.nan
    predicted.loc["c", "c"] = np.inf
    entries = [
        (truth.loc[i, j], predicted.loc[i, j])
        for i in "abcd"
        for j in "abcd"
        if i <= j and (i, j) not in {("a", "b"), ("c", "c")}
    ]
    assert len(entries) == 8
    found = metrics.neighborhood_correlation(truth, predicted)
    assert found == pytest.approx(pearsonr(*zip(*entries, strict=True)).statistic)
    shuffled = predicted.loc[list("xabcd"), list("abxdc")]
    assert metrics.neighborhood_correlation(truth, shuffled) == pytest.approx(found)
    assert metrics.neighborhood_correlation(predicted, truth) == pytest.approx(found)


def test_arrays_take_their_labels_from_the_argument():
    truth, predicted = _scores(["b", "a", "c"], 0), _scores(["b", "a", "c"], 1)
    expected = metrics.neighborhood_correlation(truth, predicted)
    labels = ["b", "a", "c"]
    assert metrics.neighborhood_correlation(truth.to_numpy(), predicted.to_numpy(), labels=labels) == expected
    assert metrics.neighborhood_correlation(truth, predicted.to_numpy(), labels=labels) == expected
    assert metrics.neighborhood_correlation(truth, 3 * truth + 1) == pytest.approx(1)
    assert metrics.neighborhood_correlation(truth, -truth) == pytest.approx(-1)


def test_tables_that_are_not_symmetric_count_as_the_mean_with_their_transpose():
    truth, predicted = _scores(list("abc"), 0), _scores(list("abc"), 1)
    skewed = predicted + np.array([[0, 5, -2], [-5, 0, 1], [2, -1, 0]])
    assert metrics.neighborhood_correlation(truth, skewed) == pytest.approx(
        metrics.neighborhood_correlation(truth, predicted)
    )


def test_bad_tables():
    table = _scores(list("abc"), 0)
    with pytest.raises(MetricError, match="truth.*with no labels"):
        metrics.neighborhood_correlation(table.to_numpy(), table)
    with pytest.raises(MetricError, match=r"predicted.*shape \(3, 3\) with 2 labels"):
        metrics.neighborhood_correlation(table, table.to_numpy(), labels=["a", "b"])
    with pytest.raises(MetricError, match="'a'.* occur twice"):
        metrics.neighborhood_correlation(table.to_numpy(), table, labels=["a", "a", "b"])
    with pytest.raises(MetricError, match="other labels in rows"):
        metrics.neighborhood_correlation(table, table.rename(columns={"a": "x"}))
    with pytest.raises(MetricError, match="1 pairs of labels"):
        metrics.neighborhood_correlation(table, _scores(list("axy"), 1))
    with pytest.raises(MetricError, match="0 pairs of labels"):
        metrics.neighborhood_correlation(table, _scores(list("xyz"), 1))
    with pytest.raises(MetricError, match="all equal"):
        metrics.neighborhood_correlation(table, 0 * table)
