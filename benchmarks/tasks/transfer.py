"""From one data set to another that names its cells otherwise: answers and truth are compared as terms of the Cell Ontology."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.data_sets import ANNOTATION, TRANSFER, Route
from benchmarks.measure import measured
from benchmarks.methods import TRANSFER as METHODS
from benchmarks.methods import make
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, method_table
from benchmarks.tasks.annotation import bare

__all__ = ["TASK", "annotate_other", "terms_of", "transfer_scores"]

METRICS = {
    "hierarchical_f1": True,
    "hierarchical_precision": True,
    "hierarchical_recall": True,
    "compatible": True,
    "compatible_known": True,
    "macro_compatible_known": True,
    "error_distance": False,
}
_ITSELF = Route(name="from-itself", sources=(ANNOTATION["pbmc68k"],), target=ANNOTATION["pbmc68k"])
"""Needs no file: for the quick form."""


def terms_of(labels: np.ndarray) -> np.ndarray:
    """Return the term of each label, "" for those that have none."""
    from cellxpert.ontology import match_labels

    names, codes = np.unique(labels, return_inverse=True)
    return match_labels(names)["term"].to_numpy(dtype=str)[codes]


def transfer_scores(truth: np.ndarray, predicted: np.ndarray, trained: Sequence[str]) -> dict[str, float]:
    """Score predicted terms.

    Parameters
    ----------
    truth, predicted
        A term per cell; predicted "" is no answer.
    trained
        Terms of the training labels. A cell is *known* if its term is one of them, a kind of one, or what one is a kind of.

    Returns
    -------
    dict
        ``hierarchical_…``; ``compatible``: the answer is the true term, a kind of it, or what it is a kind of; the same over known
        cells, and its mean over their true terms; ``error_distance``: edges between answer and truth, over all answers.
    """
    from cellxpert.metrics import error_distance, hierarchical_scores, within_branch_accuracy
    from cellxpert.ontology import CellOntology

    ontology = CellOntology()
    above = ontology.ancestors
    known = {t for t in np.unique(truth) if any(ontology.is_a(t, s) or ontology.is_a(s, t) for s in trained if s)}
    share = {t: within_branch_accuracy(truth[truth == t], predicted[truth == t], ancestors=above) for t in known}
    counts = {t: int((truth == t).sum()) for t in known}
    hierarchical = hierarchical_scores(truth, predicted, ancestors=above)
    return {f"hierarchical_{name}": value for name, value in hierarchical.items()} | {
        "compatible": within_branch_accuracy(truth, predicted, ancestors=above),
        "compatible_known": sum(share[t] * counts[t] for t in known) / max(sum(counts.values()), 1),
        "macro_compatible_known": sum(share.values()) / max(len(known), 1),
        "error_distance": error_distance(truth, predicted, distance=ontology.distance)["all"],
    }


def annotate_other(route: Route, *, method: str, seed: int, options: Options) -> list[Measurement]:
    """Train one method on all cells of the sources and score it on those cells of the target whose label is a term."""
    seen, asked = route.load(options.data_dir)
    labels, truth = seen.obs["label"].to_numpy(dtype=str), terms_of(asked.obs["label"].to_numpy(dtype=str))
    scored = truth != ""
    annotator = make(METHODS[method], seed=seed, quick=options.quick)
    seen, asked = bare(seen, np.arange(seen.n_obs)), bare(asked, np.flatnonzero(scored))
    with measured() as cost:
        annotator.fit(seen, labels)
        predicted = annotator.predict(asked)
    scores = transfer_scores(truth[scored], terms_of(predicted.labels), list(np.unique(terms_of(labels))))
    return [Measurement(method=method, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def cases(options: Options) -> Iterator[Case]:
    """Every route and method; the quick form goes from data that need no file to themselves."""
    ontology = "" if find_spec("cellxgene_ontology_guide") else 'needs pip install -e ".[ontology]"'
    for route in (_ITSELF,) if options.quick else TRANSFER:
        for method, entry in METHODS.items():
            yield Case(
                data=route.target.name,
                split=route.name,
                seed=0,
                method=method,
                run=partial(annotate_other, route, method=method, seed=0, options=options),
                missing=route.missing(options.data_dir) or entry.missing() or ontology,
            )


def report(frame: pd.DataFrame) -> str:
    """Return one table per route."""
    parts = [
        "All cells of the sources are trained on, all of the target annotated; their labels are other words for other groups of cells, so "
        "both are read as terms of the Cell Ontology. `hierarchical_f1` (precision, recall): a term stands for itself and all that it is a "
        "kind of. `compatible`: share of cells whose answer is the true term, a kind of it, or what it is a kind of; `_known`: without "
        "the types that training lacks; `macro_`: mean over types. `error_distance`: edges between answer and truth, less is better. "
        "Best in bold."
    ]
    for (data, split), rows in frame.groupby(["data", "split"], sort=False):
        parts += [f"## {data}, {split}", method_table(rows, METRICS)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw hierarchical F1 and the share of compatible answers."""
    order = [method for method in METHODS if method in set(frame["method"])]
    metrics = ["hierarchical_f1", "compatible_known"]
    return [dot_plot(frame, metrics, stem.with_name(stem.name + ".png"), order=order)]


TASK = Task(name="transfer", cases=lambda options: list(cases(options)), report=report, plot=plot)
