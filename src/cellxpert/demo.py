"""The main job on real data, start to end: what ``cellxpert demo`` runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert import keys
from cellxpert.datasets import pbmc68k
from cellxpert.metrics import accuracy, ece, macro_f1
from cellxpert.model import CellxPert

if TYPE_CHECKING:
    from mudata import MuData

__all__ = ["run_demo"]

LABELS = "bulk_labels"
HELD_OUT = "held_out"
SPLIT_SEED = 2022


def run_demo(
    out: str | Path,
    *,
    preset: str = "nano",
    n_seeds: int = 3,
    max_epochs: int | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train on 80 % of PBMC68K's 700 bundled cells, annotate the other 20 %, and report.

    Parameters
    ----------
    out
        Folder for the results; made if need be, files of the same names are replaced.
    preset
        Size of the network.
    n_seeds
        Runs from different seeds; the report gives their mean, the files are those of the first.
    max_epochs
        Passes over the training cells; the preset's by default.
    progress_bar
        Show progress.

    Returns
    -------
    The report, also written to ``report.json``.
    """
    started = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    mdata = pbmc68k()
    truth = mdata.obs[LABELS].astype(str).to_numpy()
    train_rows, test_rows = _split(truth)
    train, test = _subset(mdata, train_rows), _subset(mdata, test_rows)
    del test.obs[LABELS], test["rna"].obs[LABELS]  # the model is never shown the answers

    CellxPert.setup_mudata(train, rna="rna", labels_key=LABELS)
    runs, first = [], None
    for seed in range(n_seeds):
        model = CellxPert(train, preset=preset, seed=seed)
        model.train(max_epochs=max_epochs, train_size=1.0, progress_bar=progress_bar)
        proba = model.annotate(test, inplace=False, return_proba=True)
        assert proba is not None
        runs.append(_scores(truth[test_rows], proba))
        first = first or model
    assert first is not None
    runs_table = pd.DataFrame(runs)
    baseline = _logistic_regression(mdata, truth, train_rows, test_rows)

    files = _write_results(first, mdata, test_rows, folder, scores=runs[0])
    report = {
        **runs_table.mean().to_dict(),
        **{f"lr_{name}": value for name, value in baseline.items()},
        "n_seeds": n_seeds,
        "preset": preset,
        "runs": runs,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": _peak_mib(),
        "files": [str(file) for file in files] + [str(folder / "report.json")],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    print(_table(runs_table, baseline, n_test=len(test_rows)))
    print(f"{report['seconds']:.0f} s, peak memory {report['peak_mib']:.0f} MiB\nfiles:")
    print("\n".join(f"  {file}" for file in report["files"]))
    return report


def _split(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(truth))
    train, test = train_test_split(rows, test_size=0.2, stratify=truth, random_state=SPLIT_SEED)
    return np.sort(train), np.sort(test)


def _subset(mdata: MuData, rows: np.ndarray) -> MuData:
    from mudata import set_options

    with set_options(pull_on_update=False):
        return mdata[rows].copy()


def _scores(truth: np.ndarray, proba: pd.DataFrame) -> dict[str, float]:
    predicted = proba.columns.to_numpy()[proba.to_numpy().argmax(axis=1)]
    return {
        "accuracy": float(accuracy(truth, predicted)),
        "macro_f1": float(macro_f1(truth, predicted)),
        "ece": float(ece(proba.to_numpy().max(axis=1), predicted == truth)),
    }


def _logistic_regression(
    mdata: MuData, truth: np.ndarray, train_rows: np.ndarray, test_rows: np.ndarray
) -> dict[str, float]:
    """The baseline: multinomial logistic regression (C = 0.1) on log1p of counts scaled to 1e4."""
    from sklearn.linear_model import LogisticRegression

    counts = mdata["rna"].X.toarray().astype(np.float64)
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(logs[train_rows], truth[train_rows])
    proba = pd.DataFrame(fitted.predict_proba(logs[test_rows]), columns=fitted.classes_)
    return _scores(truth[test_rows], proba)


def _write_results(
    model: CellxPert, mdata: MuData, test_rows: np.ndarray, folder: Path, *, scores: dict[str, float]
) -> list[Path]:
    """Latent and labels of all cells into an .h5mu, pictures, and the model."""
    import scanpy as sc
    from mudata import set_options

    from cellxpert import pl

    held_out = np.zeros(mdata.n_obs, bool)
    held_out[test_rows] = True
    for part in (mdata, mdata["rna"]):  # one modality with all cells in order
        part.obs[HELD_OUT] = held_out
    model.get_latent(mdata)
    model.annotate(mdata, unknown=False)  # what is scored
    adata = mdata["rna"]
    sc.pp.neighbors(adata, use_rep=keys.LATENT, key_added="cellxpert", random_state=0)
    sc.tl.umap(adata, neighbors_key="cellxpert", random_state=0)
    files = [folder / name for name in ("pbmc68k.h5mu", "annotation.png", "training.png", "model")]
    with set_options(pull_on_update=False):
        mdata.write_h5mu(files[0])
    pl.annotation_report(
        adata,
        LABELS,
        held_out=HELD_OUT,
        scores={k: scores[k] for k in ("accuracy", "macro_f1")},
        title="cellxpert on 700 cells of PBMC68K",
        save=files[1],
    )
    pl.training_history(model.history, save=files[2])
    model.save(files[3], overwrite=True)
    return files


def _table(runs: pd.DataFrame, baseline: dict[str, float], *, n_test: int) -> str:
    """Scores of both on the same held-out cells."""
    spread = runs.std(ddof=1) if len(runs) > 1 else runs.iloc[0] * np.nan
    lines = [f"\nheld-out cells: {n_test}; mean of {len(runs)} seed(s)", f"{'':22}accuracy  macro-F1       ECE"]
    names = ("accuracy", "macro_f1", "ece")
    for method, values in (
        ("cellxpert", runs.mean()),
        ("  standard deviation", spread),
        ("logistic regression", baseline),
    ):
        if not np.isnan(values["accuracy"]):
            lines.append(f"{method:22}" + "".join(f"{values[name]:8.3f}  " for name in names).rstrip())
    return "\n".join(lines)


def _peak_mib() -> float:
    """Largest resident memory of this process so far; NaN where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
