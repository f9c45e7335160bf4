"""Errors of what is asked: of perturbations, labels, models, data sets that come with the package, metrics and plots."""

from __future__ import annotations

from cellxpert.errors.base import CellxPertError

__all__ = [
    "AdapterError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CheckpointVersionError",
    "DatasetError",
    "DeviceError",
    "FewCellsError",
    "GeneError",
    "InterventionError",
    "MetricError",
    "MetricMissingError",
    "NotTrainedError",
    "OntologyError",
    "OntologyMissingError",
    "OutputExistsError",
    "PlotError",
    "ResumeError",
    "TrainingDivergedError",
]


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
    """A saved model has a format that this version does not read, or is a model of another class."""

    code = "CX704"
    why = "settings or weights that this version does not know would be ignored or mean something else."


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
