from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellxpert.errors import MetricError
from cellxpert.metrics.annotation import accuracy
from cellxpert.metrics.checks import finite_matrix, kept_genes, paired_labels, same_shape, unit_rows


def test_matrices_are_made_float_and_stay_sparse():
    assert finite_matrix("m", [[1, 2]]).dtype == np.float64
    sparse = finite_matrix("m", sp.csc_matrix(np.eye(2, dtype=np.int32)))
    assert sp.issparse(sparse)
    assert sparse.dtype == np.float64


@pytest.mark.parametrize("bad", [[1.0, 2.0], np.zeros((0, 3)), [[np.nan, 1.0]], sp.csr_array([[np.inf, 0.0]])])
def test_bad_matrices(bad):
    with pytest.raises(MetricError, match="m: "):
        finite_matrix("m", bad)


def test_shapes_must_agree():
    with pytest.raises(MetricError, match=r"\(1, 2\) and \(2, 2\)"):
        same_shape(np.zeros((1, 2)), np.zeros((2, 2)))


def test_labels_stay_what_they_are():
    true, pred = paired_labels([1, "a", True], np.array(["1", "a", "True"]))
    assert true.tolist() == [1, "a", True]
    assert pred.tolist() == ["1", "a", "True"]


def test_numbers_are_not_compared_with_the_same_numbers_as_text():
    """Every cell would count as wrong."""
    with pytest.raises(MetricError, match=r"\['0', '2'\] are in both as text"):
        paired_labels([0, 1, 2], np.array(["2", "0", "0"]))
    paired_labels([0, 1], ["x", "y"])  # no label in common is a bad prediction, no mistake


def test_series_are_paired_by_cell():
    true, pred = pd.Series(list("abc"), index=list("xyz")), pd.Series(list("cab"), index=list("zxy"))
    assert accuracy(true, pred) == 1
    assert accuracy(true.to_numpy(), pred.to_numpy()) == 0
    assert accuracy(true, pred.to_numpy()) == 0  # one of the two says nothing of cells
    for other in (pred.set_axis(list("zxw")), pd.concat([pred[:2], pred[:1]])):
        with pytest.raises(MetricError, match="indices do not name the same things"):
            accuracy(true, other)


@pytest.mark.parametrize("bad", [None, np.nan])
def test_labels_must_be_there(bad):
    with pytest.raises(MetricError, match="y_pred: 1 missing"):
        paired_labels(["a", "b"], ["a", bad])
    with pytest.raises(MetricError, match=r"shapes \(1,\) and \(2,\)"):
        paired_labels(["a"], ["a", "b"])


def test_kept_genes():
    np.testing.assert_array_equal(kept_genes(None, (2, 3)), [[True, True, True]])
    np.testing.assert_array_equal(kept_genes([True, False, False], (2, 3)), [[False, True, True]])
    each = np.array([[True, False, False], [False, False, True]])
    np.testing.assert_array_equal(kept_genes(each, (2, 3)), ~each)
    with pytest.raises(MetricError, match="booleans"):
        kept_genes([1, 0, 0], (2, 3))
    with pytest.raises(MetricError, match="booleans"):
        kept_genes([True, False], (2, 3))
    with pytest.raises(MetricError, match="1 of 3 genes are left"):
        kept_genes(np.array([[True, True, False], [False] * 3]), (2, 3), at_least=2)


def test_unit_rows():
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_tables_are_paired_by_name():
    truth = pd.DataFrame([[1.0, 2, 3], [4, 5, 6]], index=["p", "q"], columns=list("abc"))
    turned = truth.loc[["q", "p"], ["c", "a", "b"]]
    prediction, expected = same_shape(turned, truth)
    assert np.array_equal(prediction, expected)
    assert np.array_equal(same_shape(turned.to_numpy(), truth)[0], turned.to_numpy())  # one of them has no names
    for other in (turned.rename(columns={"a": "d"}), turned.loc[["q", "q"]]):
        with pytest.raises(MetricError, match="two tables whose (columns|index) differ"):
            same_shape(other, truth)
