"""Errors of what is asked are caught as the builtins that users would expect."""

from __future__ import annotations

from cellxpert import errors
from cellxpert.errors import models


def test_the_builtin_fits():
    assert issubclass(errors.CheckpointNotFoundError, FileNotFoundError)
    assert issubclass(errors.CheckpointNotFoundError, errors.CheckpointError)
    assert issubclass(errors.OutputExistsError, FileExistsError)
    assert issubclass(errors.NotTrainedError, RuntimeError)
    assert issubclass(errors.GeneError, KeyError)
    assert issubclass(errors.FewCellsError, ValueError)
    assert issubclass(errors.MetricMissingError, ImportError)


def test_codes_say_that_they_are_of_what_is_asked():
    assert {getattr(models, name).code[2] for name in models.__all__} == {"5", "6", "7", "8", "9"}
