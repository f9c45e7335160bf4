"""Magnitudes and bins against plain loops in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data import binning

RAGGED = st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=5)


def flat(rows, dtype=float):
    values = np.array([v for row in rows for v in row], dtype=dtype)
    return values, binning.ragged([len(row) for row in rows])


def plain_quantile_bins(row, n_bins):
    """Number of the quantiles 0, 1/(n_bins-2), ..., 1 of the non-zero values that are <= x, in fractions."""
    found = sorted(v for v in row if v)
    edges = []
    for k in range(n_bins - 1):
        at = Fraction(k, n_bins - 2) * (len(found) - 1)
        low = int(at)
        high = min(low + 1, len(found) - 1)
        edges.append(
            Fraction(found[low]) + (at - low) * (Fraction(found[high]) - Fraction(found[low]))
        ) if found else None
    return [sum(e <= v for e in edges) if v else 0 for v in row]


@settings(deadline=None, max_examples=60)
@given(rows=RAGGED, n_bins=st.sampled_from([3, 5, 50, 256]))
def test_quantile_bins_are_the_quantiles_of_each_row(rows, n_bins):
    values, start = flat(rows)
    expected = [b for row in rows for b in plain_quantile_bins(row, n_bins)]
    np.testing.assert_array_equal(binning.quantile_bins(values, start, n_bins=n_bins), expected)


@settings(deadline=None, max_examples=60)
@given(rows=RAGGED, n_bins=st.integers(3, 60), factor=st.sampled_from([0.37, 1e-9, 1e6]))
def test_counting_and_sorting_give_the_same_bins(rows, n_bins, factor):
    values, start = flat(rows)
    counted = binning.quantile_bins(values, start, n_bins=n_bins)
    np.testing.assert_array_equal(binning.quantile_bins(values * factor, start, n_bins=n_bins), counted)
    np.testing.assert_array_equal(binning.quantile_bins(np.log1p(values * factor), start, n_bins=n_bins), counted)


def test_quantile_bins_agree_with_numpy_as_scgpt_calls_it():
    rng = np.random.default_rng(0)
    row = rng.negative_binomial(0.4, 0.05, size=3000).astype(float)
    row = row[row > 0]
    edges = np.quantile(row, np.linspace(0, 1, 49))
    ours = binning.quantile_bins(row, [0, len(row)], n_bins=50)
    np.testing.assert_array_equal(ours, np.digitize(row, edges))


def test_integers_beyond_the_counting_limit_are_sorted():
    values = np.array([1, 10**6, 8191, 8192, 3], float)
    small = np.array([1, 5, 3, 4, 2], float)
    start = [0, 5]
    np.testing.assert_array_equal(
        binning.quantile_bins(values, start, n_bins=50), binning.quantile_bins(small, start, n_bins=50)
    )


@settings(deadline=None, max_examples=80)
@given(
    values=st.lists(st.floats(1e-3, 1e4) | st.integers(1, 6).map(float), min_size=1, max_size=80),
    n_bins=st.integers(3, 20),
)
def test_edges_part_the_values_and_never_equal_ones(values, n_bins):
    edges = binning.fit_edges(values, n_bins=n_bins)
    assert edges.shape == (n_bins - 2,)
    finite = edges[np.isfinite(edges)]
    assert (np.diff(finite) > 0).all()
    bins = binning.digitize(values, [0, len(values)], [1.0], transform="counts", edges=edges)
    expected = [1 + sum(e <= v for e in edges) for v in values]
    np.testing.assert_array_equal(bins, expected)
    distinct = sorted(set(np.round(values, 9)))
    used = sorted(set(bins.tolist()))
    assert used == list(range(1, min(len(distinct), n_bins - 1) + 1))  # no gap, and as many as there can be
    order = np.argsort(values, kind="stable")
    assert (np.diff(bins[order].astype(int)) >= 0).all()


def test_edges_of_distinct_values_are_quantiles():
    values = np.random.default_rng(1).lognormal(size=4900)
    bins = binning.digitize(values, [0, 4900], [1.0], transform="counts", edges=binning.fit_edges(values, n_bins=50))
    np.testing.assert_array_equal(np.bincount(bins, minlength=50)[1:], 100)


def test_frequent_counts_leave_bins_to_rare_ones():
    values = np.repeat([1.0, 2.0, 3.0, *range(4, 60)], [9000, 900, 90, *[1] * 56])
    bins = binning.digitize(
        values, [0, len(values)], [1.0], transform="counts", edges=binning.fit_edges(values, n_bins=50)
    )
    for count, expected in [(1, 1), (2, 2), (3, 3)]:
        assert set(bins[values == count]) == {expected}
    assert np.bincount(bins)[4:].max() <= 2  # 56 rare counts in 46 bins


def test_edges_do_not_depend_on_order():
    values = np.random.default_rng(2).lognormal(size=999)
    edges = binning.fit_edges(values, n_bins=50)
    assert edges.tobytes() == binning.fit_edges(values[::-1], n_bins=50).tobytes()


def test_values_that_differ_by_rounding_are_not_parted():
    totals = np.arange(1, 400)
    values = np.concatenate([np.log1p(k * (1e4 / (k * totals))) for k in (1, 3, 7)])  # the same 399 ratios
    bins = binning.digitize(
        values, [0, len(values)], [1.0], transform="counts", edges=binning.fit_edges(values, n_bins=50)
    )
    assert len(np.unique(values)) > 399
    assert (bins.reshape(3, 399) == bins[:399]).all()


def test_magnitudes_follow_their_formulas():
    rng = np.random.default_rng(3)
    rows = [rng.poisson(3, size=n) * rng.choice([1, 100], size=n) for n in (7, 0, 20, 1)]
    rows[3][:] = 5
    values, start = flat(rows)
    n_features = 30
    expected = {"log": [], "counts": [], "clr": [], "arcsinh": []}
    for row in rows:
        total, logs = sum(row), sum(np.log1p(row)) / n_features
        for x in row:
            expected["log"].append(np.log1p(1e4 * x / total))
            expected["counts"].append(x)
            expected["clr"].append(np.log1p(x / np.exp(logs)))
            expected["arcsinh"].append(np.arcsinh(x / 5))
    for transform, truth in expected.items():
        scale = binning.row_scales(values, start, transform=transform, n_features=n_features)
        got = binning.magnitudes(values, start, scale, transform=transform)
        np.testing.assert_allclose(got, truth, rtol=1e-10, err_msg=transform)
        edges = binning.fit_edges(got[got > 0], n_bins=9)
        bins = binning.digitize(values, start, scale, transform=transform, edges=edges)
        np.testing.assert_array_equal(
            bins, [0 if v == 0 else 1 + sum(edges <= m) for v, m in zip(values, got, strict=True)]
        )


@pytest.mark.parametrize("transform", binning.TRANSFORMS)
def test_scales_do_not_depend_on_the_order_of_columns(transform):
    rng = np.random.default_rng(4)
    row = rng.lognormal(sigma=4, size=500)
    scales = {
        binning.row_scales(rng.permutation(row), [0, 500], transform=transform, n_features=500).tobytes()
        for _ in range(20)
    }
    assert len(scales) == 1


def test_totals_of_counts_are_exact():
    row = np.array([2.0**52, 1, 1, 1])
    assert binning.row_scales(row, [0, 4], transform="log", n_features=4)[0] == 1e4 / (2.0**52 + 3)


def test_tiny_values_do_not_divide_by_zero():
    scale = binning.row_scales([1e-300, 1e-14], [0, 1, 2], transform="log", n_features=3)
    assert np.isfinite(scale).all()


@pytest.mark.parametrize(
    ("role", "counts", "transform"),
    [("rna", "integer", "log"), ("rna", "fractional", "log"), ("atac", "integer", "counts"), ("protein", "integer", "clr"),
     ("protein", "intensity", "arcsinh"), ("rna", "intensity", "arcsinh")],
)  # fmt: skip
def test_transform_follows_role_and_kind_of_values(role, counts, transform):
    assert binning.transform_of(role, counts) == transform


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.01, 50), st.integers(1, 9)), min_size=1, max_size=30))
def test_decoded_bins_never_fall_and_are_the_closest_such(pairs):
    from scipy.optimize import isotonic_regression

    magnitude, bins = map(np.array, zip(*pairs, strict=True))
    means = binning.bin_means(magnitude, bins, n_bins=10)
    assert means[0] == 0
    assert (np.diff(means[1:]) >= 0).all()
    used = np.unique(bins)
    plain = [magnitude[bins == b].mean() for b in used]
    truth = isotonic_regression(plain, weights=[(bins == b).sum() for b in used]).x
    np.testing.assert_allclose(means[used], truth, rtol=1e-9)
    order = np.random.default_rng(0).permutation(len(bins))
    assert binning.bin_means(magnitude[order], bins[order], n_bins=10).tobytes() == means.tobytes()


def test_unused_bins_decode_between_their_neighbours():
    means = binning.bin_means([1.0, 3.0], [1, 3], n_bins=6)
    assert means.tolist() == [0, 1, 2, 3, 3, 3]


def test_numba_is_not_imported_with_the_module():
    import subprocess
    import sys

    code = "import sys, cellxpert.data.tokens, cellxpert.data.collate; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
