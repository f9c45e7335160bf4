"""Labels of cells: how probable each is, what else they could be, and when there is none to give.

Shape suffixes: N cells, C labels, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from cellxpert.data.calibration import Calibration, Tissues, choose
from cellxpert.errors import ConfigError
from cellxpert.ontology import CellOntology, back_off

__all__ = [
    "COARSER",
    "FEW_GENES",
    "LABELLED",
    "LOW_CONFIDENCE",
    "OUT_OF_DISTRIBUTION",
    "Annotation",
    "Evidence",
    "LabelOptions",
    "annotate",
]

LABELLED, COARSER = "labelled", "coarser"
LOW_CONFIDENCE, OUT_OF_DISTRIBUTION, FEW_GENES = "low_confidence", "out_of_distribution", "few_genes"
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
_TYPICAL = 0.95
"""Share of cells like the training cells whose distance counts as less than 1."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What is asked of labels; see :meth:`cellxpert.CellxPert.annotate`."""

    unknown: bool = True
    coverage: float = 0.9
    back_off: float | None = None
    set_coverage: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("coverage", 0.5), ("back_off", 0.0), ("set_coverage", 0.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if value is not None and not (number and least < value <= 1):
                raise ConfigError(
                    f"annotate({name}=)", found=repr(value), fix=f"give a share above {least:g} and at most 1"
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What was read of cells."""

    logits_NC: npt.NDArray[np.float32]
    shown_N: npt.NDArray[np.int64]
    """How many features with a value were seen in each cell."""
    distance_N: Floats | None = None
    """Squared distance to the nearest label; None without a calibration."""
    tissue_NC: npt.NDArray[np.float32] | None = None
    """Logits of tissues; None of a model that tells none apart."""
    learned_N: Floats | None = None
    """How probable it is that the type of a cell was learned; None: taken for granted."""
    cluster_N: npt.NDArray[np.int64] | None = None
    """Cluster whose cells vote together, -1 for a cell that votes alone."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Annotation:
    """Labels of cells; ``confidence[i]`` is the probability of the type that ``labels[i]`` is a word for."""

    labels: npt.NDArray[np.object_]
    confidence: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    """Of every label, (N, C), whatever was decided."""
    classes: tuple[str, ...]
    reason: npt.NDArray[np.object_]
    """``LABELLED``, ``COARSER``, or why there is no label."""
    ood: npt.NDArray[np.float32]
    """Distance to the nearest label, relative to that which 95 % of cells like the training cells do not exceed; NaN if not known."""
    uncertainty: npt.NDArray[np.float32]
    """Share of cells like the training cells that are surer of their label, or nearer to it, whichever is more; NaN if not known."""
    terms: npt.NDArray[np.object_] | None = None
    """Ontology term of each cell's label, ``"unknown"`` without one; None where labels have no terms."""
    sets_NC: Bools | None = None
    """Labels that a cell may have."""
    tissue: npt.NDArray[np.object_] | None = None
    """Tissue of each cell, and how probable it is; None of a model that tells none apart."""
    tissue_confidence: npt.NDArray[np.float32] | None = None


def annotate(
    evidence: Evidence,
    *,
    classes: Sequence[str],
    unlabeled_category: str,
    calibration: Calibration | None,
    options: LabelOptions | None = None,
    label_terms: Sequence[str] | None = None,
    type_C: npt.NDArray[np.int64] | None = None,
    allowed_CC: Bools | None = None,
    ontology: CellOntology | None = None,
    tissues: Tissues | None = None,
) -> Annotation:
    """Name the type of each cell, or say why not.

    Parameters
    ----------
    evidence
        What was read of the cells.
    classes
        Names of the labels, in the order of the network's.
    unlabeled_category
        Name for cells that get none; their confidence is 0.
    calibration
        What was measured on other cells. Without it probabilities are taken at their word, and only cells of which nothing was seen
        get no label.
    options
        What is asked.
    label_terms
        Ontology term of each label, ``""`` for none.
    type_C
        Code of the type that each label is a word for (:func:`cellxpert.data.calibration.choose`); None: each is its own.
    allowed_CC
        Which labels a cell of each label may have (:func:`cellxpert.ontology.label_targets`), as the calibration was told; None: itself alone.
    ontology
        Where the terms come from; needed to back off.
    tissues
        Names of the tissues.

    Returns
    -------
    The labels.
    """
    options = LabelOptions() if options is None else options
    temperature = 1.0 if calibration is None else calibration.temperature
    own_NC = softmax(evidence.logits_NC.astype(np.float64) / temperature, axis=1)
    own_NC = own_NC if evidence.learned_N is None else own_NC * evidence.learned_N[:, None]
    proba_NC, distance_N, shown_N = _voted(own_NC, evidence)
    best_N, confidence_N = choose(proba_NC, np.arange(len(classes)) if type_C is None else type_C)
    labels_N = np.asarray(classes, dtype=object)[best_N]
    terms_N = None if label_terms is None else np.asarray(label_terms, dtype=object)[best_N]
    reason_N = np.full(len(best_N), LABELLED, dtype=object)
    uncertainty_N = _uncertainty(confidence_N, distance_N, calibration)
    few_N, strange_N, unsure_N = _doubts(confidence_N, distance_N, shown_N, calibration=calibration, options=options)
    if options.back_off is not None:
        assert label_terms is not None
        assert ontology is not None
        unsure_N = confidence_N < options.back_off
        answer = back_off(proba_NC, label_terms, threshold=options.back_off, ontology=ontology)
        # a label's own term too: "T cell", where that is a label beside "CD8 T cell"
        coarser_N = unsure_N & (answer.terms != "")
        names = {term: ontology.name(term) for term in set(answer.terms[coarser_N])}
        labels_N[coarser_N] = [
            classes[label] if label >= 0 else names[term]
            for label, term in zip(answer.labels[coarser_N], answer.terms[coarser_N], strict=True)
        ]
        terms_N = np.where(coarser_N, answer.terms, terms_N)
        confidence_N = np.where(coarser_N, answer.proba, confidence_N)
        reason_N[coarser_N] = COARSER
        unsure_N &= ~coarser_N
    if options.unknown:
        for reason, refused_N in ((LOW_CONFIDENCE, unsure_N), (OUT_OF_DISTRIBUTION, strange_N), (FEW_GENES, few_N)):
            reason_N[refused_N] = reason
        refused_N = few_N | strange_N | unsure_N
        labels_N[refused_N], confidence_N = unlabeled_category, np.where(refused_N, 0.0, confidence_N)
        terms_N = None if terms_N is None else np.where(refused_N, "", terms_N)
    tissue_N, tissue_confidence_N = _tissues(evidence, tissues, unlabeled_category)
    return Annotation(
        labels=labels_N,
        confidence=confidence_N.astype(np.float32),
        probabilities=own_NC.astype(np.float32),
        classes=tuple(classes),
        reason=reason_N,
        ood=_relative(evidence, calibration).astype(np.float32),
        uncertainty=uncertainty_N.astype(np.float32),
        terms=None if terms_N is None else np.where(terms_N == "", "unknown", terms_N),
        sets_NC=_sets(own_NC if allowed_CC is None else own_NC @ allowed_CC.T, calibration, options.set_coverage),
        tissue=tissue_N,
        tissue_confidence=tissue_confidence_N,
    )


def _tissues(
    evidence: Evidence, tissues: Tissues | None, unlabeled_category: str
) -> tuple[npt.NDArray[np.object_] | None, npt.NDArray[np.float32] | None]:
    """Name the most probable tissue of each cell; a cell of which nothing was seen has none."""
    if tissues is None or evidence.tissue_NC is None:
        return None, None
    proba_NC = softmax(evidence.tissue_NC.astype(np.float64) / tissues.temperature, axis=1)
    tissue_N = np.asarray(tissues.names, dtype=object)[proba_NC.argmax(axis=1)]
    confidence_N, nothing_N = proba_NC.max(axis=1).astype(np.float32), evidence.shown_N == 0
    tissue_N[nothing_N], confidence_N[nothing_N] = unlabeled_category, 0.0
    return tissue_N, confidence_N


def _voted(own_NC: Floats, evidence: Evidence) -> tuple[Floats, Floats | None, npt.NDArray[np.int64]]:
    """What decides of each cell: its own evidence, or that of its cluster: mean probabilities, median distance."""
    cluster_N, distance_N, shown_N = evidence.cluster_N, evidence.distance_N, evidence.shown_N
    if cluster_N is None:
        return own_NC, distance_N, shown_N
    proba_NC, votes_N = own_NC.copy(), cluster_N >= 0
    distance_N = None if distance_N is None else distance_N.copy()
    shown_N = shown_N.copy()
    counted_N = votes_N & (shown_N > 0)
    for cluster in np.unique(cluster_N[votes_N]):
        members, voters = cluster_N == cluster, counted_N & (cluster_N == cluster)
        if not voters.any():
            continue
        proba_NC[members] = own_NC[voters].mean(axis=0)
        shown_N[members] = int(np.median(evidence.shown_N[voters]))
        if distance_N is not None and evidence.distance_N is not None:
            distance_N[members] = np.median(evidence.distance_N[voters])
    return proba_NC, distance_N, shown_N


def _doubts(
    confidence_N: Floats,
    distance_N: Floats | None,
    shown_N: npt.NDArray[np.int64],
    *,
    calibration: Calibration | None,
    options: LabelOptions,
) -> tuple[Bools, Bools, Bools]:
    """Cells that show too little, that are too far from every label, and whose label is not probable enough.

    Each of the last two would refuse half of the share of cells like the training cells that may be refused.
    """
    few_N, none_N = shown_N == 0, np.zeros(len(shown_N), bool)
    if calibration is None or distance_N is None or options.coverage == 1:
        return few_N, none_N, none_N
    share = (1 - options.coverage) / 2
    few_N = shown_N < calibration.least_features
    strange_N = distance_N > calibration.threshold("distance", 1 - share)
    return few_N, strange_N, confidence_N < calibration.threshold("confidence", share)


def _uncertainty(confidence_N: Floats, distance_N: Floats | None, calibration: Calibration | None) -> Floats:
    if calibration is None or distance_N is None:
        return np.full(len(confidence_N), np.nan)
    return np.maximum(calibration.rank("confidence", confidence_N), calibration.rank("distance", distance_N))


def _relative(evidence: Evidence, calibration: Calibration | None) -> Floats:
    if calibration is None or evidence.distance_N is None:
        return np.full(len(evidence.shown_N), np.nan)
    return evidence.distance_N / max(calibration.threshold("distance", _TYPICAL), 1e-12)


def _sets(proba_NC: Floats, calibration: Calibration | None, set_coverage: float | None) -> Bools | None:
    """Conformal sets (Sadinle et al. 2019): labels as probable as the true ones of a share of other cells, and the likeliest.

    A label is as probable as all that a cell with it may have, here as where the true ones were measured.
    """
    if set_coverage is None:
        return None
    if calibration is None:
        raise ConfigError(
            "annotate(set_coverage=)",
            found="a model whose labels are not calibrated: too few labelled cells were left to measure on",
            fix="train with more labelled cells, or leave set_coverage out",
        )
    n_within = np.ceil(round((calibration.n_cells + 1) * set_coverage, 9))
    if n_within > calibration.n_cells:  # more than so few cells can promise of any smaller set
        return np.ones(proba_NC.shape, bool)
    sets_NC = 1 - proba_NC <= calibration.threshold("surprise", n_within / calibration.n_cells)
    sets_NC[np.arange(len(sets_NC)), proba_NC.argmax(axis=1)] = True
    return sets_NC
