"""Errors say what, where and how to mend it, and are caught as the builtin that they specialise."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from cellxpert import errors

BUILTINS = (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError)
KINDS = [getattr(errors, n) for n in errors.__all__ if n not in {"CellxPertError", "CellxPertWarning"}]


def test_codes_are_unique_and_stable():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"CX\d{3}", code) for code in codes)
    stable = {"ConfigError": "CX001", "MuDataError": "CX105", "NotCountsError": "CX205", "NotTrainedError": "CX701"}
    assert {name: getattr(errors, name).code for name in stable} == stable


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_an_error_reads_and_travels_well(kind):
    error = kind("adata.X", found="3 NaN", fix="remove them")
    text = str(error)
    assert text.startswith(f"[{kind.code}] adata.X: 3 NaN\n")
    assert kind.why in text
    assert text.endswith("Fix: remove them")
    assert kind.why.endswith(".")
    assert kind.__doc__
    assert isinstance(error, errors.CellxPertError)
    assert isinstance(error, BUILTINS)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # errors cross process borders
        assert type(twin) is kind
        assert str(twin) == text
        assert (twin.where, twin.found, twin.fix) == ("adata.X", "3 NaN", "remove them")


def test_parts_may_be_left_out():
    assert str(errors.ObsKeyError("obs")) == f"[CX401] obs\nWhy it matters: {errors.ObsKeyError.why}"
