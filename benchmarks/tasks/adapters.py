"""A model trained on one data set is taken to the labels of another: by all its weights, by adapters, by a label head alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata
import numpy as np
import pandas as pd

from benchmarks.data_sets import ANNOTATION, Route, stratified
from benchmarks.measure import measured
from benchmarks.methods import ANNOTATION as METHODS
from benchmarks.methods import Prediction, make
from benchmarks.metrics import annotation_scores
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, method_table
from benchmarks.tasks.annotation import bare

__all__ = ["PAIRS", "TASK", "Setting", "adapted", "few", "sizes"]

METRICS = {"macro_f1": True, "accuracy": True, "trained_share": False, "stored_share": False, "file_share": False}
SIZES = ("trained_share", "stored_share", "file_share", "file_mib")
RIVALS = {"logistic_regression": "logistic_regression", "from-scratch": "cellxpert-nano"}
"""Methods that see the target's training cells alone."""
N_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How many cells of the target have a label.

    Parameters
    ----------
    name
        Name in the results.
    per_type
        Most training cells per type; None: all.
    """

    name: str
    per_type: int | None = None


_FACS, _PBMC3K, _PBMC68K = (ANNOTATION[name] for name in ("pbmc_facs_zheng2017", "pbmc3k", "pbmc68k"))
PAIRS: tuple[Route, ...] = (
    Route(name="from-facs", sources=(_FACS,), target=_PBMC3K),
    Route(name="from-pbmc3k", sources=(_PBMC3K,), target=_PBMC68K),
    Route(name="from-pbmc3k", sources=(_PBMC3K,), target=_FACS),
)
"""From all cells of one set to the training cells of another, on their shared genes."""
SETTINGS = (Setting(name="20-per-type", per_type=20), Setting(name="all"))
_ITSELF = Route(name="from-itself", sources=(_PBMC68K,), target=_PBMC68K)
"""Needs no file: for the quick form."""


def few(labels: np.ndarray, rows: np.ndarray, *, per_type: int | None, seed: int) -> np.ndarray:
    """Draw at most so many of the rows per label."""
    if per_type is None:
        return rows
    rows = np.random.default_rng(seed).permutation(rows)
    place = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
    return np.sort(rows[place < per_type])


def _base(cells: anndata.AnnData, folder: Path, *, preset: str, seed: int, quick: bool) -> None:
    """Train a model on cells with their own labels, and save it."""
    import cellxpert as cx
    from benchmarks.methods.adapting import LABEL, labelled

    cells = labelled(cells, cells.obs[LABEL].to_numpy(dtype=str))
    model = cx.CellxPert(cells, preset=preset, seed=seed)
    model.train(max_epochs=1 if quick else None, train_size=1.0, progress_bar=False)
    model.save(folder)


def adapted(route: Route, setting: Setting, *, seed: int, options: Options) -> list[Measurement]:
    """Train one base, adapt it in every way to the same cells, and score all on the same other cells."""
    from benchmarks.methods.adapting import WAYS, adapt, answers, labelled, sizes_of

    seen, asked = route.load(options.data_dir)
    labels = asked.obs["label"].to_numpy(dtype=str)
    train, test = stratified(asked, labels)
    train = few(labels, train, per_type=setting.per_type, seed=seed)
    cells, held_out = bare(asked, train), bare(asked, test)
    found = []

    def note(method: str, said: Prediction, seconds: float, mib: float, **sizes: float) -> None:
        scores = annotation_scores(labels[test], said.labels, said.confidence) | sizes
        found.append(Measurement(method=method, metrics=scores, seconds=seconds, mib=mib))

    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        _base(seen, base, preset="nano", seed=seed, quick=options.quick)
        here = labelled(cells, labels[train])
        for name, way in WAYS.items():
            with measured() as cost:
                model = adapt(base, way, here, seed=seed, quick=options.quick)
                said = answers(model, held_out)
            sizes = dict.fromkeys(SIZES[:3], 1.0)
            if way.method is not None:
                sizes = asdict(sizes_of(model, base, Path(folder) / name))
            if way.head_alone:
                sizes = {}
            note(name, said, cost.seconds, cost.mib, **sizes)
    for name, rival in RIVALS.items():
        annotator = make(METHODS[rival], seed=seed, quick=options.quick)
        with measured() as cost:
            annotator.fit(cells, labels[train])
            said = annotator.predict(held_out)
        note(name, said, cost.seconds, cost.mib)
    return found


def sizes(route: Route, preset: str, *, options: Options) -> list[Measurement]:
    """Say how large adapters of a preset are; its weights have seen 200 cells for one epoch, so there is nothing to score."""
    import cellxpert as cx
    from benchmarks.methods.adapting import NAME, sizes_of

    seen, _ = route.load(options.data_dir)
    found = []
    with TemporaryDirectory() as folder, measured() as cost:
        base = Path(folder) / "base"
        some = np.sort(np.random.default_rng(0).permutation(seen.n_obs)[:200])
        _base(seen[some].copy(), base, preset=preset, seed=0, quick=True)
        for method in ("lora", "prompts"):
            model = cx.CellxPert.load(base)
            model.add_adapter(NAME, method=method)
            found.append((method, asdict(sizes_of(model, base, Path(folder) / method))))
    return [Measurement(method=name, metrics=size, seconds=cost.seconds, mib=cost.mib) for name, size in found]


def cases(options: Options) -> Iterator[Case]:
    """Every pair, number of labels and seed, all methods at once; then sizes of presets."""
    for setting in SETTINGS:
        for route in (_ITSELF,) if options.quick else PAIRS:
            for seed in range(1 if options.quick else N_SEEDS):
                yield Case(
                    data=route.target.name,
                    split=f"{route.name}/{setting.name}",
                    seed=seed,
                    method="full",
                    run=partial(adapted, route, setting, seed=seed, options=options),
                    missing=route.missing(options.data_dir),
                )
    route = _ITSELF if options.quick else PAIRS[0]
    for preset in ("nano",) if options.quick else ("nano", "mini", "base"):
        yield Case(
            data=route.sources[0].name,
            split=f"sizes/{preset}",
            seed=0,
            method="lora",
            run=partial(sizes, route, preset, options=options),
            missing=route.missing(options.data_dir),
        )


def report(frame: pd.DataFrame) -> str:
    """Return one table per pair and number of labels, and one of sizes."""
    parts = [
        "A model (preset `nano`) is trained on all cells of one set with their own labels, then taken to the labels of another; means ± sd "
        "over seeds, best in bold. `full`: all weights go on learning. `lora` (rank 8), `prompts` (16): adapters. `-steered`: labels steer what is "
        "learned (`label_gradient=1`). `head`: a new label head on the model as it is. `logistic_regression`, `from-scratch`: from the "
        "target's training cells alone. `trained_share`: of the parameters, what gradient descent trains. `stored_share`: numbers in the adapter "
        "(with its label head, which a solver fits) per parameter. `file_share`: its folder, of the model's. `seconds`: "
        "adapting and predicting; the training of the base is not in them."
    ]
    scored = frame[~frame["split"].str.startswith("sizes/")]
    for (data, split), rows in scored.groupby(["data", "split"], sort=False):
        parts += [f"## {data}, {split.replace('/', ', ')}", method_table(rows, METRICS)]
    for split, rows in frame[frame["split"].str.startswith("sizes/")].groupby("split", sort=False):
        parts += [
            f"## Sizes, {split.partition('/')[2]}",
            method_table(rows, dict.fromkeys(SIZES, False), digits=4),
        ]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw macro-F1 and accuracy of every run."""
    frame = frame[~frame["split"].str.startswith("sizes/")]
    if frame.empty:
        return []
    frame = frame.assign(split=frame["split"].str.replace("/", ", "))
    return [
        dot_plot(
            frame,
            ["macro_f1", "accuracy"],
            stem.with_name(stem.name + ".png"),
            order=list(dict.fromkeys(frame["method"])),
        )
    ]


TASK = Task(name="adapters", cases=lambda options: list(cases(options)), report=report, plot=plot)
