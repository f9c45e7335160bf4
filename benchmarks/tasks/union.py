"""Many data sets in one table, each with its own words for the same cells: more than a hundred labels that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.data_sets_union import UNION, Union
from benchmarks.measure import measured
from benchmarks.methods import UNION as METHODS
from benchmarks.methods import Prediction, make
from benchmarks.metrics import annotation_scores
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, method_table
from benchmarks.tasks.annotation import bare
from benchmarks.tasks.transfer import terms_of

__all__ = ["TASK", "annotate_all", "term_scores"]

METRICS = {
    "accuracy": True,
    "macro_f1": True,
    "term_accuracy": True,
    "hierarchical_f1": True,
    "macro_hierarchical_f1": True,
    "macro_compatible": True,
    "contradictions": False,
}
SPLIT = "stratified-2022"
N_SEEDS = 3
_SMALL = Union(name="pbmc68k", parts=tuple(part for part in UNION.parts if not part.file))
"""Needs no file: for the quick form."""


def term_scores(truth: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score predicted terms.

    Parameters
    ----------
    truth, predicted
        A term per cell; predicted "" is no answer.
    labels
        True label of each cell, over which ``macro_`` is the mean.

    Returns
    -------
    dict
        ``term_accuracy``; ``hierarchical_f1`` and its mean over labels; ``macro_compatible``: mean over labels of the share of cells whose
        answer is the true term, a kind of it, or what it is a kind of; ``contradictions``: share of cells of which it is none of these.
    """
    from cellxpert.metrics import hierarchical_f1, within_branch_accuracy
    from cellxpert.ontology import CellOntology

    above = CellOntology().ancestors
    groups = [labels == label for label in np.unique(labels)]
    return {
        "term_accuracy": float((truth == predicted).mean()),
        "hierarchical_f1": hierarchical_f1(truth, predicted, ancestors=above),
        "macro_hierarchical_f1": float(
            np.mean([hierarchical_f1(truth[here], predicted[here], ancestors=above) for here in groups])
        ),
        "macro_compatible": float(
            np.mean([within_branch_accuracy(truth[here], predicted[here], ancestors=above) for here in groups])
        ),
        "contradictions": 1 - within_branch_accuracy(truth, predicted, ancestors=above),
    }


def annotate_all(union: Union, *, method: str, seed: int, options: Options) -> list[Measurement]:
    """Train one method on the training cells of all sets and score it on their test cells; which set these are from it is not told."""
    cells, train, test = union.load(options.data_dir)
    labels = cells.obs["label"].to_numpy(dtype=str)
    seen, held_out = bare(cells, train), bare(cells, test)
    seen.obs["set"] = cells.obs["set"].to_numpy(dtype=str)[train]
    annotator = make(METHODS[method], seed=seed, quick=options.quick)
    with measured() as cost:
        annotator.fit(seen, labels[train])
        said = {method: annotator.predict(held_out)}
    coarser = annotator.predict_coarser(held_out) if hasattr(annotator, "predict_coarser") else None
    if coarser is not None:
        said[f"{method}-back-off"] = coarser
    names = np.unique(labels[train])
    sizes = {"n_labels": float(len(names)), "n_terms": float(len(np.unique(terms_of(names))))}
    return [
        Measurement(method=name, metrics=_scores(labels[test], answer) | sizes, seconds=cost.seconds, mib=cost.mib)
        for name, answer in said.items()
    ]


def _scores(labels: np.ndarray, said: Prediction) -> dict[str, float]:
    """Score answers as names, and as terms where the truth has one."""
    truth = terms_of(labels)
    known = truth != ""
    scores = annotation_scores(labels, said.labels, said.confidence)
    return scores | term_scores(truth[known], terms_of(said.labels)[known], labels[known])


def cases(options: Options) -> Iterator[Case]:
    """Every method and seed; the quick form has the one set that needs no file."""
    ontology = "" if find_spec("cellxgene_ontology_guide") else 'needs pip install -e ".[ontology]"'
    union = _SMALL if options.quick else UNION
    for method, entry in METHODS.items():
        for seed in range(N_SEEDS if entry.seeded and not options.quick else 1):
            yield Case(
                data=union.name,
                split=SPLIT,
                seed=seed,
                method=method,
                run=partial(annotate_all, union, method=method, seed=seed, options=options),
                missing=union.missing(options.data_dir) or entry.missing() or ontology,
            )


def report(frame: pd.DataFrame) -> str:
    """Return one table per union."""
    parts = [
        "Held-out cells of all sets together; mean ± sd over seeds, best in bold. `accuracy`, `macro_f1`: of the labels as names. The "
        "others read labels as terms of the Cell Ontology: `term_accuracy`; `hierarchical_f1`: a term stands for itself and all "
        "that it is a kind of; `compatible`: the answer is the true term, a kind of it, or what it is a kind of; `contradictions`: share of "
        "cells of which it is none of these, less is better. `macro_`: mean over the true labels."
    ]
    for (data, split), rows in frame.groupby(["data", "split"], sort=False):
        sizes = rows[rows["metric"].isin(["n_labels", "n_terms"])].groupby("metric")["value"].max()
        told = ", ".join(f"{int(n)} {name.removeprefix('n_')}" for name, n in sizes.items())
        parts += [f"## {data}, {split}" + (f" ({told})" if told else ""), method_table(rows, METRICS)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw macro-F1 of names, hierarchical F1 and the share of compatible answers."""
    known = [method for method in METHODS if method in set(frame["method"])]
    order = [*known, *sorted(set(frame["method"]) - set(known))]
    metrics = ["macro_f1", "macro_hierarchical_f1", "macro_compatible"]
    return [dot_plot(frame, metrics, stem.with_name(stem.name + ".png"), order=order)]


TASK = Task(name="union", cases=lambda options: list(cases(options)), report=report, plot=plot)
