"""Cells of a tissue: labels of held-out cells, neighbourhoods of the labels, and what more cells cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import cellxpert as cx
from benchmarks.data_sets_spatial import N_SPLITS, SPATIAL, Tissue, folds, split, tiled
from benchmarks.measure import measured
from benchmarks.methods import SPATIAL as METHODS
from benchmarks.methods import Prediction, make_labeller
from benchmarks.metrics import annotation_scores
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, family, markdown, method_table

__all__ = ["TASK", "enrichment", "grow", "label", "neighbourhoods"]

POA = "spatial_merfish_poa_6509"
METRICS = {"accuracy": True, "macro_f1": True, "ece": False}
NEIGHBOURHOOD_METRICS = {"nhood_pearson": True, "nhood_spearman": True, "accuracy": True, "macro_f1": True}
NEIGHBOURHOOD_METHODS = ("cellxpert-nano", "cellxpert-nano-no-space", "logistic_regression", "spatial_neighbors")
N_PERMUTATIONS = 1000
SIZES = (10_000, 30_000, 100_000)


def _predict(
    tissue: Tissue, adata: anndata.AnnData, known: np.ndarray, *, method: str, seed: int, quick: bool
) -> Prediction:
    """Give a method the cells, the labels that it may know, and nothing else."""
    bare = adata.copy()
    bare.obs = bare.obs[[]]
    return make_labeller(METHODS[method], seed=seed, quick=quick).label(bare, known, tissue)


def label(tissue: Tissue, *, number: int, method: str, options: Options) -> list[Measurement]:
    """Label the test cells of one split; the split's number is the seed of the method."""
    adata = tissue.load(options.data_dir)
    labels = tissue.labels(adata)
    train, test = split(labels, number)
    known = np.full(len(labels), "", object)
    known[train] = labels[train]
    with measured() as cost:
        found = _predict(tissue, adata, known.astype(str), method=method, seed=number, quick=options.quick)
    scores = annotation_scores(labels[test], found.labels[test], found.confidence[test])
    return [Measurement(method=method, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def enrichment(adata: anndata.AnnData, labels: np.ndarray) -> pd.DataFrame:
    """Return squidpy's neighbourhood-enrichment z-scores of labels, six nearest neighbours, as a labelled table."""
    import squidpy

    kept = adata[labels != ""].copy()
    kept.obs = pd.DataFrame({"label": pd.Categorical(labels[labels != ""])}, index=kept.obs_names)
    with warnings.catch_warnings(action="ignore"):  # of libraries that squidpy calls
        squidpy.gr.spatial_neighbors_knn(kept, n_neighs=6)
        squidpy.gr.nhood_enrichment(
            kept, cluster_key="label", n_perms=N_PERMUTATIONS, seed=0, show_progress_bar=False, n_jobs=1
        )
    names = list(kept.obs["label"].cat.categories)
    return pd.DataFrame(kept.uns["label_nhood_enrichment"]["zscore"], index=names, columns=names)


def neighbourhoods(tissue: Tissue, *, method: str, options: Options) -> list[Measurement]:
    """Label every cell by a model that was not trained on it, and compare the neighbourhoods of these labels with the true ones."""
    adata = tissue.load(options.data_dir)
    labels = tissue.labels(adata)
    predicted, confidence = np.full(len(labels), "", object), np.zeros(len(labels))
    with measured() as cost:
        for train, test in folds(labels):
            known = np.full(len(labels), "", object)
            known[train] = labels[train]
            found = _predict(tissue, adata, known.astype(str), method=method, seed=0, quick=options.quick)
            predicted[test], confidence[test] = found.labels[test], found.confidence[test]
    true, guessed = (enrichment(adata, x) for x in (labels, predicted.astype(str)))
    both = true.index.intersection(guessed.index)
    pairs = np.triu_indices(len(both))
    a, b = (x.loc[both, both].to_numpy()[pairs] for x in (true, guessed))
    here = labels != ""
    scores = annotation_scores(labels[here], predicted[here].astype(str), confidence[here])
    scores["nhood_pearson"] = cx.metrics.neighborhood_correlation(true, guessed)
    scores["nhood_spearman"] = float(pd.Series(a).corr(pd.Series(b), method="spearman"))
    return [Measurement(method=method, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def grow(tissue: Tissue, *, n_cells: int, options: Options) -> list[Measurement]:
    """Set up, embed and annotate tissue of so many cells by a model trained on the tissue that it is tiled from."""
    adata = tissue.load(options.data_dir)
    labeller = make_labeller(METHODS["cellxpert-nano"], seed=0, quick=True)
    model = labeller.fit(adata, tissue.labels(adata), tissue)
    large = tiled(adata, n_cells)
    seconds = {}
    with measured() as cost:
        for name, call in {
            "setup": lambda: cx.CellxPert.setup_anndata(large, spatial_key="spatial"),
            "embed": lambda: model.get_latent(large),
            "annotate": lambda: model.annotate(large),
        }.items():
            start = time.perf_counter()
            call()
            seconds[f"{name}_seconds"] = time.perf_counter() - start
    assert np.isfinite(large.obsm["X_cellxpert"]).all()
    assert large.obs["cellxpert_label"].notna().all()
    metrics = seconds | {"ms_per_cell": 1e3 * cost.seconds / n_cells, "gib": cost.mib / 1024}
    return [Measurement(method="cellxpert-nano", metrics=metrics, seconds=cost.seconds, mib=cost.mib)]


def _given_to(method: str, tissue: Tissue) -> bool:
    if method == "cellxpert-nano-image":
        return tissue.image_key is not None
    return not (method == "logistic_regression_counts" and tissue.counts == "intensity")


def cases(options: Options) -> Iterator[Case]:
    """Every tissue, split and method; neighbourhoods; sizes. The quick form has one split of the smallest tissue."""
    for tissue in SPATIAL.values():
        if options.quick and tissue.name != "spatial_starmap_1549x1020":
            continue
        for number in range(1 if options.quick else N_SPLITS):
            for method in METHODS:
                if _given_to(method, tissue):
                    yield Case(
                        data=tissue.name,
                        split=f"stratified/{number}",
                        seed=number,
                        method=method,
                        run=partial(label, tissue, number=number, method=method, options=options),
                        missing=tissue.missing(options.data_dir),
                    )
    if options.quick:
        return
    poa = SPATIAL[POA]
    for method in NEIGHBOURHOOD_METHODS:
        yield Case(
            data=POA,
            split="cross-fitted",
            seed=0,
            method=method,
            run=partial(neighbourhoods, poa, method=method, options=options),
            missing=poa.missing(options.data_dir),
        )
    for n_cells in SIZES:
        yield Case(
            data=POA,
            split=f"tiled/{n_cells}",
            seed=0,
            method="cellxpert-nano",
            run=partial(grow, poa, n_cells=n_cells, options=options),
            missing=poa.missing(options.data_dir),
        )


def report(frame: pd.DataFrame) -> str:
    """Return a table per tissue, one of neighbourhoods, one of sizes."""
    parts = [
        "Held-out cells of a tissue, 80/20 stratified, labels of at least five cells; mean ± sd over three splits, best in bold. "
        "All cells are given to every method, labels of the training cells only. `ece`: expected calibration error, 15 bins, less is "
        "better. `seconds`: fit and predict, wall."
    ]
    frame = frame.assign(family=frame["split"].map(family))
    for (data, name), rows in frame.groupby(["data", "family"], sort=False):
        if name == "stratified":
            parts += [f"## {data}", method_table(rows, METRICS)]
    if (rows := frame[frame["family"] == "cross-fitted"]).size:
        parts += [
            f"## {POA}: neighbourhoods of predicted labels",
            "Every cell is labelled by a model that was not trained on it (five folds). Correlation of squidpy's neighbourhood-"
            f"enrichment z-scores ({N_PERMUTATIONS} permutations) of predicted and true labels over pairs of labels. Pearson's is "
            "dominated by the few largest scores; the rows below ours say how easily it is high.",
            method_table(rows, NEIGHBOURHOOD_METRICS),
        ]
    if (rows := frame[frame["family"] == "tiled"]).size:
        wide = rows.pivot_table(index="split", columns="metric", values="value")
        wide.index = [int(name.partition("/")[2]) for name in wide.index]
        columns = ["setup_seconds", "embed_seconds", "annotate_seconds", "ms_per_cell", "gib"]
        lines = [[f"{n:,}", *(f"{wide.loc[n, c]:.2f}" for c in columns)] for n in sorted(wide.index)]
        parts += [
            f"## {POA}, tiled: what more cells cost",
            "Preset `nano`, niches and places read. `gib`: peak resident memory of the process.",
            markdown(["cells", *columns], lines),
        ]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw accuracy and macro-F1 of every run."""
    rows = frame[frame["split"].map(family) == "stratified"]
    order = [method for method in METHODS if method in set(rows["method"])]
    return [dot_plot(rows, ["accuracy", "macro_f1"], stem.with_name(stem.name + ".png"), order=order)] if order else []


TASK = Task(name="spatial", cases=lambda options: list(cases(options)), report=report, plot=plot)
