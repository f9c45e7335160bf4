"""One space for the cells of all batches and modalities; in mosaics, what a modality that a cell lacks would have shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import cellxpert as cx
from benchmarks.data_sets_integration import (
    BATCH,
    INTEGRATION,
    SYNTHETIC,
    Loaded,
    Source,
    asked_features,
    bare,
    mosaic,
)
from benchmarks.measure import measured
from benchmarks.methods import INTEGRATION as METHODS
from benchmarks.methods import IntegrationEntry, Integrator, make_integrator
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, method_table

__all__ = ["TASK", "Problem", "as_given", "embedding_scores", "given_to", "imputed_scores", "integrate", "mosaic_of"]

CONTROLS = ("labels", "shuffled")
"""Methods that know the truth, or nothing."""
PAIRED, MOSAIC, RNA_ONLY = "paired", "mosaic", "rna-only"
EMBEDDING = {"total": True, "bio": True, "batch": True, "knn_macro_f1": True, "cross_macro_f1": True, "foscttm": False}
N_SEEDS = 3
IMPUTED = {
    "prot_pearson": True,
    "rna_pearson": True,
    "atac_auroc": True,
    "atac_pearson": True,
}


@dataclass(frozen=True)
class Problem:
    """What a method gets, and what it is scored by.

    Parameters
    ----------
    mdata
        What it gets.
    whole
        All modalities of all cells, perhaps in another order: cells are found by name.
    labels, batch, lost
        Per cell of ``mdata``: its label ("" where it is not scored), its batch, and the modality that was taken away ("" for none).
    """

    mdata: mudata.MuData
    whole: mudata.MuData
    labels: np.ndarray
    batch: np.ndarray
    lost: np.ndarray


def as_given(loaded: Loaded) -> Problem:
    """All cells keep all modalities."""
    mdata = loaded.mdata
    lost = np.full(mdata.n_obs, "")
    return Problem(mdata, mdata, loaded.labels, mdata.obs[BATCH].astype(str).to_numpy(), lost)


def mosaic_of(loaded: Loaded) -> Problem:
    """30 % of the cells lose one modality, 30 % the other; drawn with seed 0, the same for all methods and seeds."""
    made, lost = mosaic(loaded.mdata)
    labels = pd.Series(loaded.labels, index=loaded.mdata.obs_names).loc[made.obs_names].to_numpy()
    return Problem(made, loaded.mdata, labels, made.obs[BATCH].astype(str).to_numpy(), lost)


def _before(problem: Problem) -> np.ndarray:
    """50 principal components of the RNA of all cells, those included that lost it: what ``pcr_comparison`` compares with."""
    from benchmarks.methods.integration import block, principal

    rna = problem.whole["rna"]
    values = principal(block(rna, "rna"), 50)
    return values[rna.obs_names.get_indexer(problem.mdata.obs_names)]


def embedding_scores(problem: Problem, embedding: np.ndarray) -> dict[str, float]:
    """Score vectors of all cells, over those with a label."""
    scored = problem.labels != ""
    cells, labels, batch, lost = (x[scored] for x in (embedding, problem.labels, problem.batch, problem.lost))
    scores = cx.metrics.integration_scores(cells, batch=batch, labels=labels, pre=_before(problem)[scored])
    if len(np.unique(batch)) > 1:
        found = cx.metrics.knn_transfer(cells, labels, batch)
        scores |= {"knn_macro_f1": found["macro_f1"], "knn_accuracy": found["accuracy"]}
    if (lost != "").any():
        apart = lost != ""  # no two of these share a modality unless they share both
        found = cx.metrics.knn_transfer(cells[apart], labels[apart], lost[apart])
        scores |= {"cross_macro_f1": found["macro_f1"], "cross_accuracy": found["accuracy"]}
    return scores


def views(problem: Problem, method: Integrator) -> tuple[np.ndarray, np.ndarray]:
    """Embed the cells that lost a modality, all of whose modalities are now given, by each modality alone."""
    names = problem.mdata.obs_names[problem.lost != ""]
    batch = pd.Series(problem.whole.obs[BATCH].to_numpy(), index=problem.whole.obs_names)
    asked = bare({name: adata[names] for name, adata in problem.whole.mod.items()}, batch)
    first, second = (method.embed_modality(asked, name) for name in asked.mod)
    return first, second


def imputed_scores(
    problem: Problem, predicted: Mapping[str, np.ndarray], features: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Score values of the modalities that cells lost against those that were kept back, on the scale of the methods."""
    from benchmarks.methods.integration import magnitudes

    scores = {}
    for name, values in predicted.items():
        rows = np.flatnonzero(problem.lost == name)
        truth = magnitudes(problem.whole[name][problem.mdata.obs_names[rows]], name, features[name])
        truth = truth.toarray() if sp.issparse(truth) else truth
        found = cx.metrics.imputation_scores(truth, values[rows], detection=name == "atac")
        kept = ("auroc", "pearson") if name == "atac" else ("pearson", "rmse", "n_constant")
        scores |= {f"{name}_{metric}": found[metric] for metric in kept}
    return scores


def integrate(source: Source, split: str, *, method: str, seed: int, options: Options) -> list[Measurement]:
    """Give a method the cells, and score where it puts them and what it says of what they lost."""
    loaded = source.load(options.data_dir)
    problem = mosaic_of(loaded) if split == MOSAIC else as_given(loaded)
    features = {name: asked_features(adata, name) for name, adata in problem.mdata.mod.items()}
    one = make_integrator(METHODS[method], seed=seed, quick=options.quick)
    if hasattr(one, "tell"):
        one.tell(problem.labels)
    predicted, seen = {}, None
    with measured() as cost:
        embedding = one.integrate(problem.mdata)
        if split == MOSAIC and hasattr(one, "embed_modality"):
            seen = views(problem, one)
        if split == MOSAIC and hasattr(one, "impute"):
            predicted = {name: one.impute(name, features[name]) for name in features}
    scores = {} if embedding is None else embedding_scores(problem, np.asarray(embedding))
    if hasattr(one, "label"):
        scored = problem.labels != ""
        said = one.label(problem.batch)[scored]
        scores |= {
            f"knn_{name}": getattr(cx.metrics, name)(problem.labels[scored], said) for name in ("macro_f1", "accuracy")
        }
    if seen is not None:
        scores["foscttm"] = cx.metrics.foscttm(*seen)
    scores |= imputed_scores(problem, {k: v for k, v in predicted.items() if v is not None}, features)
    scores = {name: value for name, value in scores.items() if not math.isnan(value)}
    return [Measurement(method=method, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def given_to(entry: IntegrationEntry, source: Source, split: str) -> bool:
    """Whether a method reads what a data set has."""
    has = {*source.modalities, *(() if source.other is None else ("other",))}
    return (
        set(entry.reads) <= has
        and (source.batch_key is not None or not entry.needs_batches)
        and (split == MOSAIC or not entry.mosaics_only)
    )


def cases(options: Options) -> Iterator[Case]:
    """Every data set, split and method, then further seeds of methods that have one. The quick form has data that need no file."""
    sources = (SYNTHETIC,) if options.quick else tuple(INTEGRATION.values())
    for seed in range(1 if options.quick else N_SEEDS):
        for source in sources:
            for split in (RNA_ONLY,) if source.other is None else (PAIRED, MOSAIC):
                for method, entry in METHODS.items():
                    if given_to(entry, source, split) and (entry.seeded or seed == 0):
                        yield Case(
                            data=source.name,
                            split=split,
                            seed=seed,
                            method=method,
                            run=partial(integrate, source, split, method=method, seed=seed, options=options),
                            missing=source.missing(options.data_dir) or entry.missing(),
                        )


def _present(rows: pd.DataFrame, metrics: Mapping[str, bool]) -> dict[str, bool]:
    here = set(rows["metric"])
    return {metric: up for metric, up in metrics.items() if metric in here}


def report(frame: pd.DataFrame) -> str:
    """Return one table per data set and split, and one of imputed values per mosaic."""
    parts = [
        "All cells are given at once, with their batches and without labels; mean ± sd over seeds where there are several (`se`: standard error "
        "of the first column's mean), best in bold. `bio`, `batch`, `total`: means of "
        "scib-metrics (labels kept apart, batches mixed, 0.6 and 0.4 of both). `knn_macro_f1`: each cell labelled by its 15 nearest cells of "
        "other batches; in the row `pca_concat_logistic`, by logistic regression on the cells of other batches. In mosaics, `cross_macro_f1`: cells that lost one modality labelled by those that lost the other; "
        "`foscttm`: share of cells that are nearer than a cell's own other modality, which the method never saw together with the first, less is "
        "better, 0.5 is chance. `labels` is the truth, `shuffled` gives each cell another's place. `seconds`: all that the method did, wall.",
    ]
    for (data, split), rows in frame.groupby(["data", "split"], sort=False):
        parts.append(f"## {data}, {split}")
        embedded = rows[rows["method"].isin(rows.loc[rows["metric"].isin(EMBEDDING), "method"])]
        if len(embedded):
            parts.append(method_table(embedded, _present(embedded, EMBEDDING), controls=CONTROLS, standard_error=True))
        metrics = _present(rows, IMPUTED)
        imputed = rows[rows["method"].isin(rows.loc[rows["metric"].isin(metrics), "method"])]
        if len(imputed):
            text = (
                "Values of a modality that was taken away, over the cells that lost it: mean over features of the correlation over cells "
                "(protein as CLR, RNA as log1p of counts per 10,000, peaks as counts), and of the AUROC of open peaks."
            )
            parts += [text, method_table(imputed, metrics)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw the means of labels and batches."""
    rows = frame[frame["metric"].isin(["bio", "batch"])]
    order = [method for method in METHODS if method in set(rows["method"])]
    return [dot_plot(rows, ["bio", "batch"], stem.with_name(stem.name + ".png"), order=order)] if order else []


TASK = Task(name="integration", cases=lambda options: list(cases(options)), report=report, plot=plot)
