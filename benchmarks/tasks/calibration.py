"""Cells of another donor, sample or protocol, a few of them labelled: what these are worth, and used for what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from benchmarks.data_sets import CALIBRATION as DATA
from benchmarks.data_sets import DataSet, Pooled, Split
from benchmarks.measure import measured
from benchmarks.methods import CALIBRATION as METHODS
from benchmarks.methods import Prediction, make
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, method_table
from benchmarks.tasks.annotation import METRICS, bare, pooled_scores

__all__ = ["TASK", "calibrate"]

N_LABELLED, N_DRAWS = 100, 3
RETRAINED = "-retrained"


def calibrate(
    data: DataSet, split: Split | Pooled, *, method: str, retrained: bool, seed: int, options: Options
) -> list[Measurement]:
    """Let one method have the labels of 100 test cells drawn at random, and score it on the others.

    As it is, and as it does with these labels if it can use them (``calibrated``); or trained on these cells too.
    """
    adata = data.load(options.data_dir)
    adata = adata["rna"] if data.multimodal else adata
    labels = adata.obs[data.label_key].astype(str).to_numpy()
    rng, truth, seconds, mib = np.random.default_rng(seed), [], 0.0, 0.0
    answers: dict[str, list[Prediction]] = {}
    for train, test in split.rounds(adata, labels):
        known = np.isin(test, rng.choice(test, min(N_LABELLED, len(test) // 2), replace=False))
        train = np.concatenate([train, test[known]]) if retrained else train
        annotator = make(METHODS[method], seed=seed, quick=options.quick)
        with measured() as cost:
            annotator.fit(bare(adata, train), labels[train])
            for name, found in _answers(annotator, bare(adata, test), np.where(known, labels[test], ""), retrained):
                rest = Prediction(found.labels[~known], found.confidence[~known])
                answers.setdefault(method + name, []).append(rest)
        truth.append(labels[test][~known])
        seconds, mib = seconds + cost.seconds, max(mib, cost.mib)
    return [
        Measurement(method=name, metrics=pooled_scores(truth, parts), seconds=seconds, mib=mib)
        for name, parts in answers.items()
    ]


def _answers(
    annotator: object, cells: anndata.AnnData, known: np.ndarray, retrained: bool
) -> Iterator[tuple[str, Prediction]]:
    yield RETRAINED if retrained else "", annotator.predict(cells)
    if not retrained and hasattr(annotator, "predict_calibrated"):
        yield "-calibrated", annotator.predict_calibrated(cells, known)


def cases(options: Options) -> Iterator[Case]:
    """Every data set, method and draw of the labelled cells; the quick form has the data that need no file, once."""
    for data, split in DATA:
        if options.quick != (data.make is not None):
            continue
        for seed in range(1 if options.quick else N_DRAWS):
            for method, entry in METHODS.items():
                for retrained in (False, True):
                    yield Case(
                        data=data.name,
                        split=split.name,
                        seed=seed,
                        method=method + RETRAINED * retrained,
                        run=partial(
                            calibrate, data, split, method=method, retrained=retrained, seed=seed, options=options
                        ),
                        missing=data.missing(options.data_dir) or entry.missing(),
                    )


def report(frame: pd.DataFrame) -> str:
    """Return one table per data set and split."""
    parts = [
        "Cells of another donor, sample or protocol than the training cells; 100 of them (of every fold), drawn at random, are labelled, "
        "and all methods are scored on the others. As they are; `-calibrated`: told the 100 labels as `annotate(calibration_key=)`; `-retrained`: "
        "trained on the 100 cells too. Mean ± sd over draws, best in bold; `se`: standard error of the mean of `accuracy`. Other "
        "columns as in `annotation`."
    ]
    for (data, split), rows in frame.groupby(["data", "split"], sort=False):
        parts += [f"## {data}, {split}", method_table(rows, METRICS, standard_error=True)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw accuracy and calibration of every draw."""
    known = [method + end for method in METHODS for end in ("", "-calibrated", RETRAINED)]
    order = [method for method in known if method in set(frame["method"])]
    return [dot_plot(frame, ["accuracy", "ece"], stem.with_name(stem.name + ".png"), order=order)]


TASK = Task(name="calibration", cases=lambda options: list(cases(options)), report=report, plot=plot)
