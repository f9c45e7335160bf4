"""Cells of a type that was left out of training: who notices that they are none of the known ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.data_sets import UNKNOWN as DATA
from benchmarks.data_sets import LeftOut
from benchmarks.measure import measured
from benchmarks.methods import UNKNOWN as METHODS
from benchmarks.methods import make
from benchmarks.metrics import novelty_scores, refused
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, markdown, method_table
from benchmarks.tasks.annotation import bare

__all__ = ["TASK", "notice"]

DISTANCE = "-distance"
"""What the name of a method ends with where its second novelty score, a distance, is scored."""
KEPT = (0.95, 0.9, 0.8, 0.5)
"""Shares of the other cells that keep a label where the share of the new ones that is refused is noted."""
METRICS = (
    {"auroc": True}
    | {refused(keep): True for keep in KEPT}
    | {"accuracy_known": True, "unknown": True, "labelled": True}
)


def notice(left: LeftOut, kind: str, *, method: str, seed: int, options: Options) -> list[Measurement]:
    """Fit one method on the training cells without those of one type, and score what it says of all test cells."""
    adata = left.data.load(options.data_dir)
    labels = adata.obs[left.data.label_key].astype(str).to_numpy()
    train, test = left.split.make(adata, labels)
    train = train[labels[train] != kind]
    seen, held_out = bare(adata, train), bare(adata, test)
    annotator = make(METHODS[method], seed=seed, quick=options.quick)
    with measured() as cost:
        annotator.fit(seen, labels[train])
        predicted = annotator.predict(held_out)
    novelty = 1 - predicted.confidence if predicted.novelty is None else predicted.novelty
    new = labels[test] == kind
    known = {"accuracy_known": float((predicted.labels == labels[test])[~new].mean())}
    scores = novelty_scores(novelty, new, keep=KEPT) | known
    if hasattr(annotator, "refuses"):
        without = annotator.refuses(held_out)
        scores |= {"unknown": float(without[new].mean()), "labelled": float((~without[~new]).mean())}
    out = [Measurement(method=method, metrics=scores, seconds=cost.seconds, mib=cost.mib)]
    if predicted.distance is not None:
        scores = novelty_scores(predicted.distance, new, keep=KEPT) | known
        out.append(Measurement(method=method + DISTANCE, metrics=scores, seconds=cost.seconds, mib=cost.mib))
    return out


def cases(options: Options) -> Iterator[Case]:
    """Every data set, type left out and method; the quick form has one type of the data that need no file."""
    for left in DATA.values():
        if options.quick and left.data.make is None:
            continue
        for kind in left.kinds[:1] if options.quick else left.kinds:
            for method, entry in METHODS.items():
                yield Case(
                    data=left.data.name,
                    split=f"without/{kind}",
                    seed=0,
                    method=method,
                    run=partial(notice, left, kind, method=method, seed=0, options=options),
                    missing=left.data.missing(options.data_dir) or entry.missing(),
                )


def _per_type(rows: pd.DataFrame) -> str:
    """Return AUROC by method and type left out, the best of each type in bold."""
    rows = rows[rows["metric"] == "auroc"]
    wide = rows.pivot_table(index="method", columns="split", values="value", sort=False).round(3)
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    lines = [
        [f"`{method}`"]
        + [f"**{v:.3f}**" if v == wide[split].max() else f"{v:.3f}" for split, v in wide.loc[method].items()]
        for method in wide.index
    ]
    return markdown(["AUROC without", *(split.partition("/")[2] for split in wide.columns)], lines)


def report(frame: pd.DataFrame) -> str:
    """Return per data set the means over the types left out, and the AUROC of each type."""
    parts = [
        "One type at a time is left out of training; the test cells have it. Mean ± sd over these types, best in bold; `se`: "
        "standard error of the mean of `auroc`. `auroc`: of the novelty score, cells of the new type against all other test cells. "
        "`refused_90`: share of the new cells that are refused where 90 % of the other test cells keep a label, and so on. "
        "`accuracy_known`: of the label given to the other test cells. Methods without a novelty score of their own: 1 - confidence. "
        "`unknown`, `labelled`: share of the new cells that the method leaves without a label, for whatever reason, and of the others that it "
        "gives one, by its own settings (0.9 of cells like the training cells keep a label)."
    ]
    for data, rows in frame.groupby("data", sort=False):
        parts += [f"## {data}", method_table(rows, METRICS, standard_error=True), _per_type(rows)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw AUROC and the share refused, a dot per type left out."""
    known = [name for method in METHODS for name in (method, method + DISTANCE) if name in set(frame["method"])]
    order = [*known, *sorted(set(frame["method"]) - set(known))]
    return [dot_plot(frame, ["auroc", refused(0.9)], stem.with_name(stem.name + ".png"), order=order)]


TASK = Task(name="unknown", cases=lambda options: list(cases(options)), report=report, plot=plot)
