"""Cell types of held-out cells: methods learn from the training cells only and label the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd

import cellxpert as cx
from benchmarks.data_sets import ANNOTATION as DATA
from benchmarks.data_sets import DataSet, Pooled, Split
from benchmarks.measure import measured
from benchmarks.methods import ANNOTATION as METHODS
from benchmarks.methods import LABEL_LOSSES, Prediction, make
from benchmarks.metrics import annotation_scores
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, family, method_table

__all__ = ["TASK", "annotate", "bare", "pooled_scores"]

METRICS = {"accuracy": True, "macro_f1": True, "ece": False, "ece_floor": None}


def bare(cells: anndata.AnnData | mudata.MuData, rows: np.ndarray) -> anndata.AnnData | mudata.MuData:
    """Return some cells with their counts and nothing else: no column of ``obs`` reaches a method."""
    if isinstance(cells, mudata.MuData):
        with mudata.set_options(pull_on_update=False):  # what the next mudata does by default
            return mudata.MuData({name: bare(modality, rows) for name, modality in cells.mod.items()})
    kept = cells[rows].copy()
    kept.obs = kept.obs[[]]
    return kept


def annotate(data: DataSet, split: Split | Pooled, *, method: str, seed: int, options: Options) -> list[Measurement]:
    """Fit one method on the training cells of one split and score it on the test cells; those of several folds together."""
    whole, entry = data.load(options.data_dir), METHODS[method]
    rna = whole["rna"] if data.multimodal else whole
    labels = rna.obs[data.label_key].astype(str).to_numpy()
    truth, answers, seconds, mib = [], [], 0.0, 0.0
    for train, test in split.rounds(rna, labels):
        seen, held_out = (bare(whole if entry.multimodal else rna, rows) for rows in (train, test))
        annotator = make(entry, seed=seed, quick=options.quick)
        with measured() as cost:
            annotator.fit(seen, labels[train])
            answers.append(annotator.predict(held_out))
        truth.append(labels[test])
        seconds, mib = seconds + cost.seconds, max(mib, cost.mib)
    return [Measurement(method=method, metrics=pooled_scores(truth, answers), seconds=seconds, mib=mib)]


def pooled_scores(truth: Sequence[np.ndarray], answers: Sequence[Prediction]) -> dict[str, float]:
    """Score the answers of several folds as one."""
    confidence = np.concatenate([one.confidence for one in answers])
    scores = annotation_scores(np.concatenate(truth), np.concatenate([one.labels for one in answers]), confidence)
    return scores | {"ece_floor": cx.metrics.ece_floor(confidence)}


def cases(options: Options) -> Iterator[Case]:
    """Every data set, split, method and seed, folds last; the quick form has one data set and one seed."""
    plan = [(data, split) for data in DATA.values() for split in data.splits]
    if options.quick:
        plan = [(data, split) for data, split in plan if data.make is not None and not _folds(split)]
    plan.sort(key=lambda pair: _folds(pair[1]))
    for data, split in plan:
        for method, entry in METHODS.items():
            variant = method in LABEL_LOSSES
            if (entry.multimodal and not data.multimodal) or (variant and _folds(split)):
                continue
            for seed in range(split.n_seeds if entry.seeded and not (options.quick or variant) else 1):
                yield Case(
                    data=data.name,
                    split=split.name,
                    seed=seed,
                    method=method,
                    run=partial(annotate, data, split, method=method, seed=seed, options=options),
                    missing=data.missing(options.data_dir) or entry.missing(),
                )


def _folds(split: Split | Pooled) -> bool:
    return isinstance(split, Pooled) or family(split.name) != split.name


def report(frame: pd.DataFrame) -> str:
    """Return one table per data set and split."""
    parts = [
        "Held-out cells; mean ± sd over seeds (and folds), best in bold; `se`: standard error of the mean of `accuracy` "
        "over them (– where there is one run). `macro_f1`: unweighted mean over the classes among "
        "the test cells. `ece`: expected calibration error, 15 bins, less is better; `ece_floor`: what it would be on so few cells if every confidence were exactly right. `seconds`: fit and predict, wall."
    ]
    frame = frame.assign(family=frame["split"].map(family))
    for (data, split), rows in frame.groupby(["data", "family"], sort=False):
        parts += [f"## {data}, {split}", method_table(rows, METRICS, standard_error=True)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw accuracy and macro-F1 of every run."""
    known = [method for method in METHODS if method in set(frame["method"])]
    order = [*known, *sorted(set(frame["method"]) - set(known))]
    return [dot_plot(frame, ["accuracy", "macro_f1"], stem.with_name(stem.name + ".png"), order=order)]


TASK = Task(name="annotation", cases=lambda options: list(cases(options)), report=report, plot=plot)
