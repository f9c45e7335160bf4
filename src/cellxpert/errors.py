"""Errors: each kind has a stable code, says what was found, where, why it matters and the line that fixes it.

Every class derives from :class:`CellxPertError` and from the builtin that Python users would catch. The error catalogue of
the documentation is generated from the classes of this module.
"""

from __future__ import annotations

from typing import ClassVar

# fmt: off
__all__ = [
    "AdapterError", "BackedFileError", "CategoryError", "CellxPertError", "CellxPertWarning", "CheckpointError",
    "CheckpointNotFoundError", "CheckpointVersionError", "ConfigError", "ControlError", "DatasetError", "DeviceError",
    "DuplicateNamesError", "EmptyDataError", "FeatureNameError", "FeatureOverlapError", "FewCellsError", "GeneError",
    "GenomeError", "InterventionError", "LayerError", "MatrixTypeError", "MetricError", "MetricMissingError",
    "MissingValuesError", "ModalityError", "MuDataError", "NegativeValueError",
    "NoLabelsError", "NonFiniteError", "NotCountsError", "NotSetUpError", "NotTrainedError", "ObjectTypeError",
    "ObsConflictError", "ObsKeyError", "OntologyError", "OntologyMissingError", "OutputExistsError", "PlotError", "QueryError", "ResumeError",
    "SparseStructureError", "SpatialError", "SplitError", "TrainingDivergedError", "TransposedError", "ViewError", "VocabularyError",
]
# fmt: on


class CellxPertError(Exception):
    """Base of every error that cellxpert raises on purpose.

    Parameters
    ----------
    where
        The object, modality, layer, column or setting at fault.
    found
        What was found there: counts, and at most five examples.
    fix
        The line or argument that mends it.
    """

    code: ClassVar[str] = "CX000"
    why: ClassVar[str] = ""

    def __init__(self, where: str, *, found: str = "", fix: str = "") -> None:
        self.where, self.found, self.fix = where, found, fix
        lines = [f"[{self.code}] {where}" + (f": {found}" if found else "")]
        lines += [f"Why it matters: {self.why}"] if self.why else []
        lines += [f"Fix: {fix}"] if fix else []
        super().__init__("\n".join(lines))

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.where, self.found, self.fix))


def _rebuild(kind: type[CellxPertError], where: str, found: str, fix: str) -> CellxPertError:
    return kind(where, found=found, fix=fix)


class CellxPertWarning(UserWarning):
    """Something that may mislead but does not stop the call; it is recorded in ``uns["cellxpert_info"]`` too."""


# --- settings and arguments: CX0.. ---


class ConfigError(CellxPertError, ValueError):
    """A setting or an argument has a value that it cannot have, or contradicts another one."""

    code = "CX001"
    why = "what was asked for would be undefined."


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


# --- perturbations: CX5.. ---


class GeneError(CellxPertError, KeyError):
    """A gene to be perturbed is unknown to the model, or not measured in the object."""

    code = "CX501"
    why = "nothing is known of what follows from a gene that was never read."


class InterventionError(CellxPertError, ValueError):
    """An intervention that means nothing: an unknown kind, a bad dose, or one gene set in two ways."""

    code = "CX502"
    why = "what the gene is set to would be a guess."


class FewCellsError(CellxPertError, ValueError):
    """A group has too few control cells to start from."""

    code = "CX503"
    why = "a mean over a handful of cells is noise, and its uncertainty cannot be told."


# --- labels as terms of the Cell Ontology: CX6.. ---


class OntologyError(CellxPertError, ValueError):
    """A term of the Cell Ontology that does not exist or is obsolete, or terms that do not fit the labels."""

    code = "CX601"
    why = "labels would be taken for kinds of cells that they are not."


class OntologyMissingError(CellxPertError, ImportError):
    """The Cell Ontology is not installed: it comes with an optional package."""

    code = "CX602"
    why = "which types are kinds of which is read from it, and never from the network."


# --- models: CX7.. ---


class NotTrainedError(CellxPertError, RuntimeError):
    """A model that was never trained was asked for a result."""

    code = "CX701"
    why = "its weights are random, and so would be the result."


class CheckpointError(CellxPertError, ValueError):
    """A saved model is damaged: truncated, an HTML page, a pickle, another hash, missing or unexpected weights."""

    code = "CX702"
    why = "weights that load only in part give results that look right."


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The folder of a saved model, or a file in it, does not exist."""

    code = "CX703"
    why = "a saved model is a folder of config.json, vocabulary.json and weights.safetensors."


class CheckpointVersionError(CheckpointError):
    """A saved model has a newer format than this version reads, or is a model of another class."""

    code = "CX704"
    why = "settings that this version does not know would be ignored."


class ResumeError(CellxPertError, ValueError):
    """Training cannot go on from this state: cells, labels, features or settings are not those it was started with."""

    code = "CX705"
    why = "a resumed run must equal one that was never interrupted."


class DeviceError(CellxPertError, RuntimeError):
    """The accelerator is not there, or its memory is not enough."""

    code = "CX706"
    why = "the computation cannot run there."


class TrainingDivergedError(CellxPertError, RuntimeError):
    """The loss became NaN or infinite."""

    code = "CX707"
    why = "every later step would make the weights NaN; the last good weights were kept."


class OutputExistsError(CellxPertError, FileExistsError):
    """A result would overwrite a file, a folder or an entry of the object."""

    code = "CX708"
    why = "nothing of yours is overwritten unless you say so."


class AdapterError(CellxPertError, ValueError):
    """An adapter that cannot be used as asked: an unknown or taken name, weights that are not there, another model's base."""

    code = "CX709"
    why = "an adapter is a small change to the weights of one model, and means nothing for others."


# --- data sets that come with the package: CX8.. ---


class DatasetError(CellxPertError, ValueError):
    """A bundled or simulated data set that cannot be made as its description says."""

    code = "CX801"
    why = "the data would not be what their description says."


# --- metrics and plots: CX9.. ---


class MetricError(CellxPertError, ValueError):
    """Arrays from which a metric cannot be computed: other lengths, empty, not finite, no such class."""

    code = "CX901"
    why = "the number would be undefined, or would describe other cells than those meant."


class PlotError(CellxPertError, ValueError):
    """Something that a plot needs is missing or has another shape."""

    code = "CX902"
    why = "the picture would be empty, or would show other cells than those meant."


class MetricMissingError(CellxPertError, ImportError):
    """A metric that an optional package computes, and the package is not installed."""

    code = "CX903"
    why = "a score under the same name, computed in another way, could not be compared with anyone's."
