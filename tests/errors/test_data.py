"""Errors of what is given are caught as the builtins that users would expect."""

from __future__ import annotations

from cellxpert import errors
from cellxpert.errors import data


def test_the_builtin_fits():
    assert issubclass(errors.LayerError, KeyError)
    assert issubclass(errors.ObjectTypeError, TypeError)
    assert issubclass(errors.ControlError, ValueError)
    assert issubclass(errors.GenomeMissingError, ImportError)


def test_codes_say_that_they_are_of_what_is_given():
    assert {getattr(data, name).code[2] for name in data.__all__} == {"1", "2", "3", "4"}
