"""Probabilities of labels as probabilities of types: summed up the ontology, and answered as finely as they allow.

Labels are the columns of a matrix of probabilities. Each has a term of the ontology, or "" for none ("Doublets", say).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cellxpert.errors import ConfigError, OntologyError
from cellxpert.ontology.graph import CellOntology

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["BackedOff", "back_off", "label_targets", "roll_up"]

QUALITIES = frozenset(
    {
        "CL:0000151",  # secretory cell
        "CL:0000183",  # contractile cell
        "CL:0000211",  # electrically active cell
        "CL:0000219",  # motile cell
        "CL:0000225",  # anucleate cell
        "CL:0000226",  # single nucleate cell
        "CL:0000255",  # eukaryotic cell
        "CL:0000325",  # stuff accumulating cell
        "CL:0000393",  # electrically responsive cell
        "CL:0000404",  # electrically signaling cell
        "CL:0002242",  # nucleate cell
        "CL:0011026",  # progenitor cell: the Cell Ontology counts monocytes among them
        "CL:0011115",  # precursor cell
    }
)
"""Terms that name a quality which unrelated types share; as an answer they say less than the lineage beside them."""
_ROUNDING = 1e-6
"""Sums of single-precision probabilities may miss a threshold by this much."""


class BackedOff(NamedTuple):
    """What :func:`back_off` answers for each cell."""

    terms: np.ndarray
    """Term, or "" if the answer has none."""
    labels: np.ndarray
    """Index of the label that is the answer (the most probable one, if several have its term), or -1: a coarser type, or none."""
    proba: np.ndarray
    """Probability of the answer, or 0 where there is none."""


def roll_up(proba: ArrayLike, terms: Sequence[str], ontology: CellOntology) -> tuple[np.ndarray, list[str]]:
    """Sum probabilities of labels up the ontology.

    The probability of a type is the sum over the labels whose term is the type or a kind of it. Labels without a term count for
    no type.

    Parameters
    ----------
    proba
        Probabilities (cells x labels).
    terms
        Term of each label, or "".
    ontology
        Where the terms come from.

    Returns
    -------
    proba_of_terms
        Probabilities (cells x types).
    all_terms
        The types: every label's term and all its ancestors, coarse ones first.

    Raises
    ------
    OntologyError
        If there is not one term or "" per label, or one is unknown or obsolete.
    """
    proba, member, all_terms = _members(proba, terms, ontology)
    return proba @ member, all_terms


def back_off(
    proba: ArrayLike, terms: Sequence[str], *, threshold: float, ontology: CellOntology, floor: float = 0.25
) -> BackedOff:
    """Answer with the most specific type that is probable enough.

    Candidates are the labels, and the types above them, whose probability (:func:`roll_up`) reaches the threshold. Of these the most
    specific answers: one with no kind of it among the candidates; if there are several, the most probable, then the one with
    the fewest kinds in the ontology. A label without a term is a candidate by its own probability only.

    A type above the labels is no answer if it says next to nothing: if more than ``floor`` of all terms of the ontology are it or
    kinds of it ("cell", "eukaryotic cell", "neural cell" with the default), or if it is one of those that name a quality of unrelated
    types, such as "motile cell" or "nucleate cell". A label's own term always is.

    Parameters
    ----------
    proba
        Probabilities (cells x labels).
    terms
        Term of each label, or "".
    threshold
        Least probability of an answer, above 0 and at most 1.
    ontology
        Where the terms come from.
    floor
        Largest share of the ontology's terms that an answer may cover.

    Returns
    -------
    BackedOff
        ``terms``, ``labels`` and ``proba`` of each cell.

    Raises
    ------
    ConfigError
        If ``threshold`` or ``floor`` is not between 0 and 1.
    OntologyError
        As for :func:`roll_up`.
    """
    for name, value in (("threshold", threshold), ("floor", floor)):
        if not 0 < value <= 1:
            raise ConfigError(f"back_off({name}=)", found=repr(value), fix="give a number above 0, at most 1")
    proba, member, all_terms = _members(proba, terms, ontology)
    without = np.flatnonzero([not term for term in terms])
    sizes = np.array([1 + len(ontology.descendants(term)) for term in all_terms], dtype=np.int64)
    own = np.isin(np.array(all_terms, dtype=object), [term for term in terms if term])
    telling = own | ((sizes <= floor * len(ontology)) & ~np.isin(np.array(all_terms, dtype=object), list(QUALITIES)))
    # columns: types, then labels without a term
    chance = np.hstack([proba @ member, proba[:, without]])
    candidate = (chance >= threshold - _ROUNDING) & np.append(telling, np.ones(len(without), dtype=bool))
    below = np.zeros((chance.shape[1], chance.shape[1]), dtype=bool)  # [i, j]: j is a kind of i
    for i, term in enumerate(all_terms):
        below[i, : len(all_terms)] = [other in ontology.descendants(term) for other in all_terms]
    finest = candidate & ~(candidate.astype(np.float32) @ below.T > 0)
    # most probable, then fewest kinds: sizes only part what is equal up to rounding
    by_size = np.argsort(np.append(sizes, np.zeros(len(without))), kind="stable")
    scores = np.where(finest, np.round(chance / _ROUNDING), -1.0)[:, by_size]
    best = by_size[scores.argmax(axis=1)]
    answered = finest.any(axis=1)
    return _answers(proba, terms, best, answered=answered, columns=[*all_terms, *map(int, without)], chance=chance)


def label_targets(terms: Sequence[str], ontology: CellOntology, *, exact: Sequence[bool] | None = None) -> np.ndarray:
    """Which labels a cell of each label may have, where some labels are kinds of others.

    A cell called "T cell" may be any of the T cells that are labels of their own. Labels with the same term stand for each
    other, and a label without a term for itself only.

    Parameters
    ----------
    terms
        Term of each label, or "".
    ontology
        Where the terms come from.
    exact
        Whether a label means all cells of its term. One that means only some of them ("CD8 T CD57+" of the CD8 T cells; those that
        :func:`match_labels` found as ``"general"``) stands for itself only, while coarser labels still stand for it. Default: all do.

    Returns
    -------
    numpy.ndarray
        Booleans (labels x labels): row i marks i, and the labels whose term is that of i or a kind of it.

    Raises
    ------
    OntologyError
        If a term is unknown or obsolete, or ``exact`` has not one value per label.
    """
    terms = _checked(terms, ontology)
    whole = np.ones(len(terms), dtype=bool) if exact is None else np.asarray(exact)
    if whole.dtype != bool or whole.shape != (len(terms),):
        found = f"{whole.dtype}, shape {whole.shape}, for {len(terms)} labels"
        raise OntologyError("label_targets(exact=)", found=found, fix="give one boolean per label")
    targets = np.eye(len(terms), dtype=bool)
    for i, term in enumerate(terms):
        if term and whole[i]:
            targets[i] |= [bool(other) and ontology.is_a(other, term) for other in terms]
    return targets


def _answers(
    proba: np.ndarray,
    terms: Sequence[str],
    best: np.ndarray,
    *,
    answered: np.ndarray,
    columns: Sequence[str | int],
    chance: np.ndarray,
) -> BackedOff:
    """Say each cell's best column as a term and a label; ``columns`` are types, then indices of labels without a term."""
    n = len(proba)
    labels, names = np.full(n, -1, dtype=np.int64), np.full(n, "", dtype=object)
    for column in np.unique(best[answered]):
        rows = np.flatnonzero(answered & (best == column))
        what = columns[column]
        if isinstance(what, int):
            labels[rows] = what
            continue
        names[rows] = what
        same = np.flatnonzero([term == what for term in terms])
        if len(same):
            labels[rows] = same[proba[np.ix_(rows, same)].argmax(axis=1)]
    return BackedOff(names, labels, np.where(answered, chance[np.arange(n), best], 0.0))


def _members(
    proba: ArrayLike, terms: Sequence[str], ontology: CellOntology
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities as float64, which label (rows) is of which type (columns), and the types."""
    proba, terms = np.asarray(proba, dtype=np.float64), _checked(terms, ontology)
    if proba.ndim != 2 or proba.shape[1] != len(terms):
        found = f"{len(terms)} terms for probabilities of shape {proba.shape}"
        raise OntologyError("terms", found=found, fix='give one term per label, "" for those without')
    if not (np.isfinite(proba).all() and (proba >= 0).all()):
        raise OntologyError("proba", found="values that are negative or not finite", fix="give probabilities")
    upward = [ontology.ancestors(term) | {term} if term else frozenset() for term in terms]
    all_terms = sorted(frozenset().union(*upward), key=lambda term: (ontology.depth(term), term))
    member = np.array([[term in up for term in all_terms] for up in upward], dtype=np.float64)
    return proba, member.reshape(len(terms), len(all_terms)), all_terms


def _checked(terms: Sequence[str], ontology: CellOntology) -> list[str]:
    terms = list(terms)
    if not terms:
        raise OntologyError("terms", found="no labels", fix='give one term per label, "" for those without')
    for term in terms:
        if term != "":
            ontology.name(term)
    return terms
