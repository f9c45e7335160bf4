"""How right predicted types of cells are, where types are kinds of others.

Cells are labelled with terms of an ontology; what a term is a kind of is passed in, as a mapping or a function, such as
``CellOntology().ancestors``. A predicted ``""`` means no answer; true terms must be known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from cellxpert.errors import MetricError
from cellxpert.metrics.checks import paired_labels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["error_distance", "hierarchical_f1", "hierarchical_scores", "within_branch_accuracy"]

Ancestors = Mapping[str, Iterable[str]] | Callable[[str], Iterable[str]]
Distance = Mapping[tuple[str, str], float] | Callable[[str, str], float]


def hierarchical_f1(y_true: ArrayLike, y_pred: ArrayLike, *, ancestors: Ancestors) -> float:
    """Harmonic mean of hierarchical precision and recall (:func:`hierarchical_scores`).

    Parameters
    ----------
    y_true, y_pred
        True and predicted term of each cell.
    ancestors
        All terms that a term is a kind of, without itself; for these too.
    """
    return hierarchical_scores(y_true, y_pred, ancestors=ancestors)["f1"]


def hierarchical_scores(y_true: ArrayLike, y_pred: ArrayLike, *, ancestors: Ancestors) -> dict[str, float]:
    """Precision, recall and F1 in which a term stands for itself and all that it is a kind of (Kiritchenko et al. 2006).

    Terms in common are counted over all cells, then divided by the terms predicted (precision) and the true ones (recall). An
    answer too coarse costs recall, one too fine precision. Roots of the hierarchy, which every cell would have right, do not count.
    Without a hierarchy, when no term has ancestors, all three are the accuracy if every cell has an answer.

    Parameters
    ----------
    y_true, y_pred
        True and predicted term of each cell.
    ancestors
        All terms that a term is a kind of, without itself; for these too.

    Returns
    -------
    dict
        ``precision`` (0 if nothing was answered), ``recall``, ``f1``.

    Raises
    ------
    MetricError
        If the arrays differ in length, are empty or have missing terms, ``ancestors`` does not know a term, or all true terms are roots.
    """
    pairs = _pairs(y_true, y_pred)
    above = _above(pairs, ancestors)
    roots = {a for terms in above.values() for a in terms if not _ancestors_of(a, ancestors)}
    sets = {term: ({term} | up) - roots for term, up in above.items()} | {"": set()}
    shared = sum(n * len(sets[true] & sets[pred]) for (true, pred), n in pairs.items())
    n_pred = sum(n * len(sets[pred]) for (_, pred), n in pairs.items())
    n_true = sum(n * len(sets[true]) for (true, _), n in pairs.items())
    if not n_true:
        raise MetricError("y_true", found="roots of the hierarchy only", fix="score cells whose type says something")
    precision, recall = shared / n_pred if n_pred else 0.0, shared / n_true
    return {"precision": precision, "recall": recall, "f1": 2 * shared / (n_pred + n_true)}


def within_branch_accuracy(y_true: ArrayLike, y_pred: ArrayLike, *, ancestors: Ancestors) -> float:
    """Share of cells whose predicted term is the true one, a kind of it, or what it is a kind of.

    For labels of different fineness: "T cell" does not contradict "naive CD4 T cell". A prediction of the root never contradicts
    anything, so read it beside :func:`hierarchical_f1`.

    Parameters
    ----------
    y_true, y_pred
        True and predicted term of each cell. No answer counts as wrong.
    ancestors
        All terms that a term is a kind of, without itself.
    """
    pairs = _pairs(y_true, y_pred)
    above = _above(pairs, ancestors) | {"": set()}
    right = sum(n for (true, pred), n in pairs.items() if true == pred or true in above[pred] or pred in above[true])
    return right / pairs.total()


def error_distance(y_true: ArrayLike, y_pred: ArrayLike, *, distance: Distance) -> dict[str, float]:
    """How far in the hierarchy answers are from the truth.

    Parameters
    ----------
    y_true, y_pred
        True and predicted term of each cell. Cells without an answer are left out.
    distance
        Distance of a true and a predicted term, such as ``CellOntology().distance``, or a mapping of pairs of them. Asked for wrong
        answers only; right ones are at 0.

    Returns
    -------
    dict
        ``wrong``: mean over wrong answers, NaN if there are none. ``all``: mean over all answers, NaN if there are none.

    Raises
    ------
    MetricError
        If the arrays differ in length, are empty or have missing terms, or a distance is unknown or negative.
    """
    total, n_wrong, n_all = 0.0, 0, 0
    for (true, pred), n in _pairs(y_true, y_pred).items():
        if not pred:
            continue
        n_all += n
        if true != pred:
            total += n * _distance_of(true, pred, distance)
            n_wrong += n
    return {"wrong": total / n_wrong if n_wrong else math.nan, "all": total / n_all if n_all else math.nan}


def _pairs(y_true: ArrayLike, y_pred: ArrayLike) -> Counter[tuple[str, str]]:
    """Cells by true and predicted term: there are few pairs, and many cells."""
    true, pred = paired_labels(y_true, y_pred)
    for name, terms in (("y_true", true), ("y_pred", pred)):
        if others := [term for term in terms if not isinstance(term, str)]:
            raise MetricError(name, found=f"{others[0]!r}, which is no term", fix="give terms as text")
    if n_unknown := int((true == "").sum()):
        raise MetricError("y_true", found=f"{n_unknown} cells without a term", fix="leave these cells out")
    return Counter(zip(true.tolist(), pred.tolist(), strict=True))


def _above(pairs: Iterable[tuple[str, str]], ancestors: Ancestors) -> dict[str, set[str]]:
    """Ancestors of every term that occurs."""
    return {term: _ancestors_of(term, ancestors) for term in {t for pair in pairs for t in pair} - {""}}


def _ancestors_of(term: str, ancestors: Ancestors) -> set[str]:
    if callable(ancestors):
        return set(ancestors(term))
    if term not in ancestors:
        fix = "give every term, and every ancestor, an entry; an empty one if it is a root"
        raise MetricError("ancestors", found=f"no entry for {term!r}", fix=fix)
    return set(ancestors[term])


def _distance_of(true: str, pred: str, distance: Distance) -> float:
    if not callable(distance) and (true, pred) not in distance:
        raise MetricError("distance", found=f"no entry for {(true, pred)}", fix="give one for every pair that occurs")
    value = distance(true, pred) if callable(distance) else distance[true, pred]
    if not value >= 0:
        raise MetricError("distance", found=f"{value} for {(true, pred)}", fix="give distances of 0 or more")
    return value
