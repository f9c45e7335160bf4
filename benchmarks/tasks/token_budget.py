"""How many features of each modality a model must read: preset ``nano``, labels of one donor learned, another's cells labelled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.data_sets_integration import BATCH, INTEGRATION, SYNTHETIC, Source, bare
from benchmarks.measure import measured
from benchmarks.metrics import annotation_scores
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import markdown

__all__ = ["GRIDS", "TASK", "annotate", "parts_of"]

METHOD = "cellxpert-nano"
GENES = (100, 250, 500, 1000)
OTHER = {"prot": (10, 34, 67, 134), "atac": (50, 100, 300, 600)}
NAMES = {"prot": "proteins", "atac": "peaks"}
GRIDS = ("bmmc_cite_neurips2021_set1", "bmmc_multiome_neurips2021_set1")
TRAIN = "s1d1"


def parts_of(split: str) -> tuple[int, int]:
    """Return the numbers of features that a split names.

    >>> parts_of("100 genes, 34 proteins")
    (100, 34)
    """
    genes, other = split.split(", ")
    return int(genes.split()[0]), int(other.split()[0])


def annotate(source: Source, split: str, *, train: str, options: Options) -> list[Measurement]:
    """Train on one batch with so many features, and label the cells of the others."""
    from benchmarks.methods.ours_integration import Budgeted

    loaded = source.load(options.data_dir)
    first = (loaded.mdata.obs[BATCH].astype(str) == train).to_numpy()
    n_genes, n_other = parts_of(split)
    annotator = Budgeted({"rna": n_genes, source.other: n_other}, seed=0, quick=options.quick)
    batch = pd.Series("0", index=loaded.mdata.obs_names)
    seen, asked = (bare({name: a[rows] for name, a in loaded.mdata.mod.items()}, batch) for rows in (first, ~first))
    with measured() as cost:
        annotator.fit(seen, loaded.labels[first])
        predicted = annotator.predict(asked)
    scores = annotation_scores(loaded.labels[~first], predicted.labels, predicted.confidence)
    return [Measurement(method=METHOD, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def cases(options: Options) -> Iterator[Case]:
    """Every number of genes with every number of proteins or peaks; the quick form has one of each."""
    for source in (SYNTHETIC,) if options.quick else tuple(INTEGRATION[name] for name in GRIDS):
        grid = [(100, 10)] if options.quick else itertools.product(GENES, OTHER[source.other])
        for n_genes, n_other in grid:
            split = f"{n_genes} genes, {n_other} {NAMES[source.other]}"
            train = "batch_0" if options.quick else TRAIN
            yield Case(
                data=source.name,
                split=split,
                seed=0,
                method=METHOD,
                run=partial(annotate, source, split, train=train, options=options),
                missing=source.missing(options.data_dir),
            )


def _grid(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Genes in rows, features of the other modality in columns."""
    rows = rows[rows["metric"] == metric]
    sizes = [parts_of(split) for split in rows["split"]]
    table = pd.DataFrame({"genes": [a for a, _ in sizes], "other": [b for _, b in sizes], "value": rows["value"]})
    return table.pivot_table(index="genes", columns="other", values="value")


def _names(rows: pd.DataFrame) -> str:
    return rows["split"].iloc[0].split()[-1]


def report(frame: pd.DataFrame) -> str:
    """Return a table of each metric per data set."""
    parts = [
        f"Preset `nano` trained on the cells of `{TRAIN}`, cells of the other donor labelled, one seed. Features are the most variable ones of the "
        "training cells. One test cell is 0.3 to 0.4 points of accuracy: differences of a few points are noise."
    ]
    for data, rows in frame.groupby("data", sort=False):
        for metric in ("accuracy", "macro_f1"):
            grid = _grid(rows, metric)
            lines = [
                [f"{genes:,} genes", *(f"{v:.3f}" if np.isfinite(v) else "–" for v in grid.loc[genes])]
                for genes in grid.index
            ]
            parts += [f"## {data}, {metric}", markdown(["", *(f"{n} {_names(rows)}" for n in grid.columns)], lines)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw a heat map of accuracy and of macro-F1 per data set."""
    groups: Mapping[str, pd.DataFrame] = dict(list(frame.groupby("data", sort=False)))
    figure = Figure(figsize=(7.5, 3.1 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False)
    for row, (data, rows) in zip(axes, groups.items(), strict=True):
        for axis, metric in zip(row, ("accuracy", "macro_f1"), strict=True):
            grid = _grid(rows, metric)
            picture = axis.imshow(grid.to_numpy(), cmap="viridis", origin="lower", aspect="auto")
            middle = (np.nanmin(grid.to_numpy()) + np.nanmax(grid.to_numpy())) / 2
            for (i, j), value in np.ndenumerate(grid.to_numpy()):
                if np.isfinite(value):
                    dark = "white" if value <= middle else "black"
                    axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=dark, fontsize=8)
            axis.set_xticks(range(grid.shape[1]), grid.columns)
            axis.set_yticks(range(grid.shape[0]), grid.index)
            axis.set_xlabel(_names(rows))
            axis.set_ylabel("genes")
            axis.set_title(f"{data}\n{metric}", fontsize=9)
            figure.colorbar(picture, ax=axis)
    path = stem.with_name(stem.name + ".png")
    figure.savefig(path, dpi=150)
    return [path]


TASK = Task(name="token-budget", cases=lambda options: list(cases(options)), report=report, plot=plot)
