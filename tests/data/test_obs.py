"""Columns become categories with text names, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellxpert.data.obs import as_categories, closest
from cellxpert.errors import CategoryError, MissingValuesError


def read(values, **options):
    column = pd.Series(values)
    column.index = [f"c{i}" for i in range(len(column))]
    return as_categories(column, key="k", **options).tolist()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        ([2, 1, 2], ["2", "1", "2"]),
        ([2.0, 1.0, 2.0], ["2", "1", "2"]),  # whole numbers that met a missing value on their way
        (pd.array([2, 1, 2], dtype="Int64"), ["2", "1", "2"]),
        (pd.array(["x", "y", "x"], dtype="string"), ["x", "y", "x"]),
        ([True, False, True], ["True", "False", "True"]),
        (pd.Categorical(["x", "y", "x"], categories=["unused", "y", "x"]), ["x", "y", "x"]),
        (pd.Categorical([3, 1, 3], categories=[1, 2, 3]), ["3", "1", "3"]),
        (np.array(["x", "y"]), ["x", "y"]),
        (["Unknown", "None"], ["Unknown", "None"]),
    ],
)
def test_values_become_text(values, names):
    assert read(values) == names


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, "b"],
        ["a", np.nan, "b"],
        pd.Categorical(["a", None, "b"]),
        pd.array(["a", pd.NA, "b"], dtype="string"),
        ["a", "nan", "b"],
        ["a", " ", "b"],
        pd.Categorical(["a", "<NA>", "b"]),
    ],
)
def test_missing_values_get_a_name_or_are_an_error(values):
    assert read(values, missing="Unknown") == ["a", "Unknown", "b"]
    with pytest.raises(MissingValuesError, match=r"1 cells without a value, e\.g\. \['c1'\]"):
        read(values)


def test_missing_whole_numbers():
    assert read([1.0, np.nan], missing="?") == ["1", "?"]
    assert read([np.nan, np.nan], missing="?") == ["?", "?"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", 1], r"types \['int', 'str'\]"),
        ([1.5, 2.0], r"not whole, e\.g\. \[1\.5\]"),
        ([np.inf, 2.0], "not whole"),
        ([b"a", b"b"], "bytes"),
        ([("a",), ("b",)], "tuple"),
        ([pd.Timestamp("2020-01-01")], "Timestamp"),
    ],
)
def test_what_is_no_category_is_refused(values, message):
    with pytest.raises(CategoryError, match=message):
        read(values, missing="Unknown")


def test_the_input_is_not_changed():
    column = pd.Series(pd.Categorical(["a", None]), index=["x", "y"], name="k")
    before = column.copy()
    out = as_categories(column, key="k", missing="Unknown")
    pd.testing.assert_series_equal(column, before)
    assert out.index.tolist() == ["x", "y"]
    assert out.name == "k"


def test_the_closest_name_ignores_case():
    assert closest("Batch", ["batch", "donor"]) == "batch"
    assert closest("bulk_label", ["bulk_labels", "batch"]) == "bulk_labels"
    assert closest("zzz", ["batch"]) is None
    assert closest("x", []) is None
