"""Errors of what is given: objects, matrices, names, columns."""

from __future__ import annotations

from cellxpert.errors.base import CellxPertError

__all__ = [
    "BackedFileError",
    "CategoryError",
    "ControlError",
    "DuplicateNamesError",
    "EmptyDataError",
    "FeatureNameError",
    "FeatureOverlapError",
    "GenomeError",
    "GenomeMissingError",
    "LayerError",
    "MatrixTypeError",
    "MissingValuesError",
    "ModalityError",
    "MuDataError",
    "NegativeValueError",
    "NoLabelsError",
    "NonFiniteError",
    "NotCountsError",
    "NotSetUpError",
    "ObjectTypeError",
    "ObsConflictError",
    "ObsKeyError",
    "QueryError",
    "SparseStructureError",
    "SpatialError",
    "SplitError",
    "TransposedError",
    "ViewError",
    "VocabularyError",
]


# --- objects: CX1.. ---


class ObjectTypeError(CellxPertError, TypeError):
    """The data are not an AnnData or MuData object: a path, None, an array, a table, or the other of the two."""

    code = "CX101"
    why = "cells and features are paired by name, so they are read from an AnnData or MuData object only."


class EmptyDataError(CellxPertError, ValueError):
    """The object has no cells, no features or no modalities."""

    code = "CX102"
    why = "there is nothing to learn from or to predict."


class ViewError(CellxPertError, ValueError):
    """A call that writes its result into the object was given a view."""

    code = "CX103"
    why = "writing into a view copies it silently, and the result never reaches the object that you hold."


class BackedFileError(CellxPertError, OSError):
    """The file behind a backed object is closed, or cannot be read or written."""

    code = "CX104"
    why = "the values of a backed object are read from its file while they are needed."


class MuDataError(CellxPertError, ValueError):
    """The MuData has a form that cannot be read: ``axis=1``, nested, a modality that is None, or row maps gone stale."""

    code = "CX105"
    why = "the rows of a modality could be paired with the wrong cells."


class ModalityError(CellxPertError, KeyError):
    """A modality is not in the object, or not in the setup, or plays two roles."""

    code = "CX106"
    why = "which matrix holds RNA, ATAC or protein must be said, never guessed."


class NotSetUpError(CellxPertError, RuntimeError):
    """The object was not set up, or the record of its setup was changed."""

    code = "CX107"
    why = "the setup says which matrix holds what, and which columns are the batch and the label."


# --- matrices: CX2.. ---


class LayerError(CellxPertError, KeyError):
    """The layer does not exist, or ``X`` is None."""

    code = "CX201"
    why = "there are no values to read."


class MatrixTypeError(CellxPertError, TypeError):
    """The matrix is of a kind (dask, cupy, awkward, ...) or dtype (object, text, bool, complex, ...) that is not read."""

    code = "CX202"
    why = "its values are not numbers held on this machine, or cannot hold counts exactly."


class NonFiniteError(CellxPertError, ValueError):
    """The matrix has NaN or infinite values."""

    code = "CX203"
    why = "one such value turns every prediction of its cell, and the loss, into NaN."


class NegativeValueError(CellxPertError, ValueError):
    """The matrix has negative values."""

    code = "CX204"
    why = "counts and intensities are never negative; these values look scaled or centred."


class NotCountsError(CellxPertError, ValueError):
    """The matrix is not what ``counts`` says: log-transformed, normalised or fractional values in the place of counts."""

    code = "CX205"
    why = "counts are normalised inside; doing it twice gives wrong magnitudes without any further error."


class SparseStructureError(CellxPertError, ValueError):
    """A sparse matrix contradicts itself: pointers that decrease or overflow, indices out of range."""

    code = "CX206"
    why = "values would be read from the wrong cells or features."


class TransposedError(CellxPertError, ValueError):
    """Cells and features look exchanged."""

    code = "CX207"
    why = "cells must be rows and features columns; the object is never transposed for you."


# --- names of features and cells: CX3.. ---


class DuplicateNamesError(CellxPertError, ValueError):
    """A feature or cell name occurs twice, or two features became one when names were matched."""

    code = "CX301"
    why = "features and cells are matched by name, and a name must stand for one of them."


class FeatureNameError(CellxPertError, ValueError):
    """Feature names are positions instead of names, or identifiers that cannot be told apart."""

    code = "CX302"
    why = "features are matched by name or Ensembl id, never by position."


class FeatureOverlapError(CellxPertError, ValueError):
    """Too few of the model's features are in the object: another organism, other identifiers, another panel."""

    code = "CX303"
    why = "a model that reads almost nothing of a cell still returns a confident answer."


class VocabularyError(CellxPertError, ValueError):
    """The features differ from those that the model or the reference was made with."""

    code = "CX304"
    why = "weights belong to features; with another list they would be read for the wrong ones."


class GenomeError(CellxPertError, ValueError):
    """Peaks and a genome do not belong together (another build, places beyond a chromosome's end), or its sequences cannot be read."""

    code = "CX305"
    why = "the same coordinates are another place in another build."


class GenomeMissingError(CellxPertError, ImportError):
    """Sequences are read by an optional package that is not installed."""

    code = "CX306"
    why = "without the sequences of peaks there are no words of DNA to count."


# --- cells and their columns: CX4.. ---


class ObsKeyError(CellxPertError, KeyError):
    """A column of ``obs`` does not exist."""

    code = "CX401"
    why = "without the column there is no batch, label or group for the cells."


class MissingValuesError(CellxPertError, ValueError):
    """A column that needs a value for every cell has missing ones."""

    code = "CX402"
    why = "a missing value would silently become a category of its own."


class CategoryError(CellxPertError, ValueError):
    """A column cannot be read as categories: mixed types, continuous numbers, or one where two are needed."""

    code = "CX403"
    why = "which cells belong together would depend on who reads the column."


class ObsConflictError(CellxPertError, ValueError):
    """Modalities say different things about the same cell."""

    code = "CX404"
    why = "picking one of them would be a guess."


class NoLabelsError(CellxPertError, ValueError):
    """Labels are needed, and no cell has one."""

    code = "CX405"
    why = "a classifier cannot be trained or scored without labels."


class SplitError(CellxPertError, ValueError):
    """Cells cannot be split as asked: an unknown split name, an empty part, or a group on both sides."""

    code = "CX406"
    why = "a score measured on cells that were trained on, or that share a donor with them, means nothing."


class QueryError(CellxPertError, ValueError):
    """Cells given to a trained model have a batch, label or modality that it never saw."""

    code = "CX407"
    why = "the model has no weights for it, and the nearest one would be a guess."


class ControlError(CellxPertError, ValueError):
    """No cell is of the control condition, or none of those that are left."""

    code = "CX408"
    why = "an effect is a difference from control cells; without them there is none to learn or to predict."


class SpatialError(CellxPertError, ValueError):
    """Coordinates, sections, neighbours or image features are absent, incomplete, or contradict one another."""

    code = "CX409"
    why = "a cell would get the neighbours or the place of another one."
