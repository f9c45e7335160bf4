"""What perturbations do that a method has not seen: targets, pairs, replicates or cell types are held out, and lists of responders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from benchmarks.data_sets_perturbation import (
    PERTURBATION,
    SIGNATURES,
    VOCABULARY,
    PerturbationSet,
    PerturbationSplit,
    gene_sets,
    signatures,
)
from benchmarks.holdout import CONTROL, Fold, Held
from benchmarks.measure import Cost, measured
from benchmarks.methods import PERTURBATION as METHODS
from benchmarks.methods import Predictor, make_predictor
from benchmarks.methods.lists import LISTS
from benchmarks.perturbation_scores import Panel, causal_scores, list_scores, panel_scores
from benchmarks.registry import Case, Measurement, Options, Task, missing_files
from benchmarks.render import dot_plot, family, method_table
from benchmarks.responders import FILES as RESPONDER_FILES
from benchmarks.responders import METHODS_OF_RESPONDERS, predict_responders
from cellxpert import metrics

__all__ = ["TASK", "move", "panel_of", "predict_lists", "predict_perturbations"]

SHOWN = {
    "pds_cosine": True,
    "pds_cosine_low": None,
    "pds_cosine_high": None,
    "pds_l1": True,
    "centroid_accuracy": True,
    "pearson_delta": True,
    "pearson_delta_top20": True,
    "pearson_delta_pert": True,
    "rmse": False,
    "mse_top20": False,
}
SUBSETS = ("pds_cosine", "pds_l1", "centroid_accuracy", "pearson_delta", "pearson_delta_pert", "mse_top20")
CAUSAL = {
    "ancestor_leak": False,
    "descendant_auroc": True,
    "ancestor_leak_net": False,
    "descendant_auroc_net": True,
}
OF_LISTS = {"auroc": True, "auroc_gain": True, "specificity": True, "precision_at_50": True}
OF_RESPONDERS = {"auroc_shuffled": False, "p_shuffled": False}
CHAINS = {"energy_distance": False, "r_hat": False, "acceptance": None}
CONTROLS = ("ceiling",)
MAX_CELLS = 300


def predict_perturbations(
    data: PerturbationSet, split: PerturbationSplit, *, repetition: int, method: str, seed: int, options: Options
) -> list[Measurement]:
    """Fit one method per fold, pool what it predicts, and score all held-out conditions as one panel."""
    adata = data.read(options.data_dir)
    rng = np.random.default_rng([2022, repetition])
    folds = split.make(adata, rng)
    if method == "ceiling":
        folds, panel, cells, cost = _ceiling(adata, folds, rng)
    else:
        sets = gene_sets(options.data_dir if data.files else None)
        maker = partial(make_predictor, METHODS[method], seed=seed, quick=options.quick, gene_sets=sets)
        panel, cells, cost = _predicted(adata, folds, maker, with_cells=split.cells)
    held = [one for fold in folds for one in fold.held]
    targets = metrics.target_mask(sorted(set(adata.obs["condition"]) - {CONTROL}), list(adata.var_names)).any(axis=0)
    strong = np.isin([one.condition for one in held], data.strong)
    scores = panel_scores(panel, exclude=targets if data.targets else None, strong=strong)
    if data.targets:
        whole = panel_scores(panel, exclude=None, strong=strong)
        scores |= {f"{name}_with_targets": value for name, value in whole.items()}
    if "truth" in adata.uns:
        truth = adata.uns["truth"]
        place = [truth["names"].index(one.condition) for one in held]
        own = metrics.target_mask([one.condition for one in held], list(adata.var_names))
        scores |= causal_scores(panel, up_PG=truth["up"][place], down_PG=truth["down"][place], target_PG=own)
    if split.cells:
        genes = np.flatnonzero(~targets if data.targets else np.ones(adata.n_vars, dtype=bool))
        scores |= _distances(adata, held, cells, genes=genes, strong=strong)
    return [Measurement(method=method, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def _mean(adata: anndata.AnnData, rows: np.ndarray) -> np.ndarray:
    return np.asarray(adata.layers["log1p"][rows].mean(axis=0)).ravel()


def move(adata: anndata.AnnData, held: Held) -> np.ndarray | float:
    """What carries a profile from the level of the training cells to that of the held-out ones."""
    return 0.0 if held.level is None else _mean(adata, held.level) - _mean(adata, held.base)


def panel_of(adata: anndata.AnnData, folds: Sequence[Fold], profiles: dict[str, np.ndarray]) -> Panel:
    """Stack what is scored; ``profiles`` are on the level of the held-out cells."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Panel.__dataclass_fields__}
    conditions, expression = adata.obs["condition"].to_numpy(), adata.layers["log1p"]
    for fold in folds:
        trained = sorted(set(conditions[fold.train]) - {CONTROL})
        shared = metrics.perturbed_mean(
            metrics.centroids(expression[fold.train], conditions[fold.train], order=trained)
        )
        for one in fold.held:
            parts["prediction_PG"].append(profiles[one.condition])
            parts["truth_PG"].append(_mean(adata, one.truth))
            parts["prediction_reference_PG"].append(_mean(adata, one.base if one.level is None else one.level))
            parts["truth_reference_PG"].append(_mean(adata, one.truth_control))
            parts["shared_PG"].append(shared + move(adata, one))
            parts["t_PG"].append(metrics.t_scores(expression[one.truth], expression[one.truth_control]))
    return Panel(**{name: np.array(rows) for name, rows in parts.items()})


def _predicted(
    adata: anndata.AnnData, folds: Sequence[Fold], maker: partial[Predictor], *, with_cells: bool
) -> tuple[Panel, dict[str, np.ndarray], Cost]:
    """Run a method; also return its cells, or the training set's control cells moved to its profile if it predicts none."""
    total, profiles, cells = Cost(seconds=0.0, mib=0.0), {}, {}
    for fold in folds:
        seen = adata[fold.train].copy()
        conditions = seen.obs.pop("condition").to_numpy()
        asked, method = [one.condition for one in fold.held], maker()
        with measured() as cost:
            method.fit(seen, conditions, control=CONTROL)
            predicted = np.asarray(method.predict(asked), dtype=np.float64)
        total = Cost(seconds=total.seconds + cost.seconds, mib=max(total.mib, cost.mib))
        if predicted.shape != (len(asked), adata.n_vars) or not np.isfinite(predicted).all():
            raise ValueError(f"prediction of shape {predicted.shape}, or not finite")
        for one, profile in zip(fold.held, predicted, strict=True):
            profiles[one.condition] = profile + move(adata, one)
            if not with_cells:
                continue
            if hasattr(method, "predict_cells"):
                cells[one.condition] = method.predict_cells(one.condition) + move(adata, one)
            else:
                moved = adata.layers["log1p"][one.base].toarray() + (profile - _mean(adata, one.base))
                cells[one.condition] = moved + move(adata, one)
    return panel_of(adata, folds, profiles), cells, total


def _ceiling(
    adata: anndata.AnnData, folds: Sequence[Fold], rng: np.random.Generator
) -> tuple[list[Fold], Panel, dict[str, np.ndarray], Cost]:
    """Half of the held-out cells of each condition is the prediction, the other half the truth."""
    halved, profiles, cells = [], {}, {}
    for fold in folds:
        held = []
        for one in fold.held:
            first, second = np.array_split(rng.permutation(one.truth), 2)
            profiles[one.condition] = _mean(adata, first)
            cells[one.condition] = adata.layers["log1p"][first].toarray()
            fields = {name: getattr(one, name) for name in Held.__dataclass_fields__} | {"truth": second}
            held.append(Held(**fields))
        halved.append(Fold(train=fold.train, held=tuple(held)))
    return halved, panel_of(adata, halved, profiles), cells, Cost(seconds=0.0)


def _distances(
    adata: anndata.AnnData,
    held: Sequence[Held],
    cells: dict[str, np.ndarray],
    *,
    genes: np.ndarray,
    strong: np.ndarray,
) -> dict[str, float]:
    """Mean energy distance between predicted and true cells, 300 of each at most."""
    rng, values = np.random.default_rng(2022), []
    for one in held:
        truth = adata.layers["log1p"][one.truth].toarray()
        sides = [rng.permutation(side)[:MAX_CELLS][:, genes] for side in (cells[one.condition], truth)]
        values.append(metrics.energy_distance(*sides))
    scores = {"energy_distance": float(np.mean(values))}
    return scores | ({"strong_energy_distance": float(np.mean(np.array(values)[strong]))} if strong.any() else {})


def predict_lists(*, method: str, seed: int, options: Options, n_folds: int = 20) -> list[Measurement]:
    """Rank the genes that go up when a target is knocked down, from other targets' lists; all targets left out of the lists."""
    lists, universe = signatures(options.data_dir)
    genes = [gene for gene in universe if gene not in lists]
    place = {gene: i for i, gene in enumerate(genes)}
    targets = sorted(target for target, up in lists.items() if sum(gene in place for gene in up) >= 5)
    responds = np.zeros((len(targets), len(genes)), dtype=bool)
    for row, target in enumerate(targets):
        responds[row, [place[gene] for gene in lists[target] if gene in place]] = True
    sets, rule = gene_sets(options.data_dir), LISTS[method]
    found: dict[str, list[np.ndarray]] = {}
    total = Cost(seconds=0.0, mib=0.0)
    for asked in np.array_split(np.random.default_rng(2022).permutation(len(targets)), n_folds):
        train = np.setdiff1d(np.arange(len(targets)), asked)
        with measured() as cost:
            scores = rule([targets[t] for t in train], responds[train], [targets[q] for q in asked], sets, seed)
        total = Cost(seconds=total.seconds + cost.seconds, mib=max(total.mib, cost.mib))
        for name, values in list_scores(scores, responds[asked]).items():
            found.setdefault(name, []).append(values)
    result = {name: float(np.concatenate(values).mean()) for name, values in found.items()}
    return [Measurement(method=method, metrics=result, seconds=total.seconds, mib=total.mib)]


def _ablate(*, options: Options, seed: int) -> list[Measurement]:
    from benchmarks.ablation import ablate  # which imports this module

    return ablate(options=options, seed=seed)


def cases(options: Options) -> Iterator[Case]:
    """Every data set, split, repetition and method; the quick form has the simulated set once."""
    for data in PERTURBATION.values():
        if options.quick != (data.name == "toy"):
            continue
        for split in data.splits:
            for repetition in range(1, 2 if options.quick else split.repetitions + 1):
                for method in split.methods:
                    # one seed per repetition: both are a method's noise
                    seed = repetition - 1 if method in METHODS and METHODS[method].seeded else 0
                    run = partial(predict_perturbations, data, split, repetition=repetition, method=method, seed=seed)
                    yield Case(
                        data=data.name,
                        split=f"{split.name}/{repetition}",
                        seed=seed,
                        method=method,
                        run=partial(run, options=options),
                        missing=data.missing(options.data_dir),
                    )
    if not options.quick:
        yield Case(
            data="perturb_papalexi2021",
            split="ablation",
            seed=0,
            method="learned, ancestral",
            run=partial(_ablate, options=options, seed=0),
            missing=PERTURBATION["perturb_papalexi2021"].missing(options.data_dir),
        )
    for method in () if options.quick else METHODS_OF_RESPONDERS:
        yield Case(
            data="perturb_gasperini2019_k562",
            split="responders",
            seed=0,
            method=method,
            run=partial(predict_responders, method=method, seed=0, options=options),
            missing=missing_files(RESPONDER_FILES, options.data_dir),
        )
    files = (f"{SIGNATURES}.json.gz", *VOCABULARY)
    for method in () if options.quick else LISTS:
        yield Case(
            data=SIGNATURES,
            split="unseen-targets",
            seed=0,
            method=method,
            run=partial(predict_lists, method=method, seed=0, options=options),
            missing=missing_files(files, options.data_dir),
        )


def report(frame: pd.DataFrame) -> str:
    """Return tables per data set and split: all conditions, then the strong ones, then with the target genes."""
    parts = [
        "Held-out conditions; mean ± sd over repetitions (folds and halves of the control cells), best method in bold; `ceiling` (half "
        "of the cells predicts the other half) is none. Target genes of all conditions are left out. `pds_cosine_low` and `_high`: "
        "95 % bootstrap interval over conditions. Columns are explained in the README."
    ]
    frame = frame.assign(family=frame["split"].map(family))
    for (data, split), rows in frame.groupby(["data", "family"], sort=False):
        present = set(rows["metric"])
        if split == "ablation":
            columns = {m: SHOWN[m] for m in ("pearson_delta", "pearson_delta_pert", "pds_cosine", "rmse")}
            parts += [f"## {data}, ablation", method_table(rows, columns | CHAINS)]
            continue
        if "auroc" in present:
            shown = {m: higher for m, higher in (OF_LISTS | OF_RESPONDERS).items() if m in present}
            parts += [f"## {data}, {split}", method_table(rows, shown)]
            continue
        shown = SHOWN | ({"energy_distance": False} if "energy_distance" in present else {})
        shown |= CAUSAL if "descendant_auroc_net" in present else {}
        parts += [f"## {data}, {split}", method_table(rows, shown, controls=CONTROLS)]
        for title, prefix, suffix in (
            ("strong targets", "strong_", ""),
            ("target genes included", "", "_with_targets"),
        ):
            subset = {f"{prefix}{name}{suffix}": SHOWN[name] for name in SUBSETS}
            if set(subset) <= present:
                parts += [f"### {data}, {split}: {title}", method_table(rows, subset, controls=CONTROLS)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw PDS and Pearson scores of every run."""
    rows = frame[frame["metric"].isin(["pds_cosine", "pds_l1", "pearson_delta"])]
    known = [method for method in ("ceiling", *METHODS) if method in set(rows["method"])]
    order = [*known, *sorted(set(rows["method"]) - set(known))]
    path = stem.with_name(stem.name + ".png")
    return [dot_plot(rows, ["pds_cosine", "pds_l1", "pearson_delta"], path, order=order)] if len(rows) else []


TASK = Task(name="perturbation", cases=lambda options: list(cases(options)), report=report, plot=plot)
