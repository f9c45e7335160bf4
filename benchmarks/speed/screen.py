"""A screen of knock-outs on real cells: how long it takes, and that one that was killed goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path

import anndata

import cellxpert as cx
from benchmarks.measure import measured
from benchmarks.registry import Measurement

__all__ = ["screen"]


def _ask(model_dir: str, file: str, folder: str | None) -> cx.PerturbResult:
    """Every knock-out of the data, 200 control cells, 4 chains each."""
    adata = anndata.read_h5ad(file)
    model = cx.CellxPert.load(model_dir, adata)
    names = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    with warnings.catch_warnings(action="ignore", category=cx.errors.CellxPertWarning):  # silent genes, short chains
        return model.perturb(names, n_chains=4, resume=folder, inplace=False, progress_bar=False, seed=0)


def _killed(model_dir: str, file: str, folder: Path, *, after: int) -> int:
    """Run in a process that is killed once some conditions are kept; return how many are."""
    process = multiprocessing.get_context("spawn").Process(target=_ask, args=(model_dir, file, str(folder)))
    process.start()
    while process.is_alive() and len(list(folder.glob("*.json"))) <= after:
        time.sleep(0.2)
    process.kill()
    process.join()
    return len(list(folder.glob("*.json"))) - 1  # one says what screen it is


def screen(*, file: Path) -> list[Measurement]:
    """Time the screen without interruption, then kill it half way and time what is left; both must say the same."""
    adata = anndata.read_h5ad(file)
    cx.CellxPert.setup_anndata(adata, perturbation_key="perturbation", control_category="control")
    model = cx.CellxPert(adata, preset="nano", seed=0)
    model.train(max_epochs=1, train_size=1.0, progress_bar=False)
    with tempfile.TemporaryDirectory() as work:
        model.save(f"{work}/model")
        with measured() as cost:
            whole = _ask(f"{work}/model", str(file), None)
        kept = _killed(f"{work}/model", str(file), Path(work) / "kept", after=len(whole.conditions) // 2)
        with measured() as rest:
            resumed = _ask(f"{work}/model", str(file), f"{work}/kept")
    if not whole.table.equals(resumed.table):
        raise AssertionError("a resumed screen differs from an uninterrupted one")
    values = {
        "minutes": cost.seconds / 60,
        "conditions": float(len(whole.conditions)),
        "kept_at_kill": float(kept),
        "minutes_resumed": rest.seconds / 60,
    }
    return [Measurement(method="cellxpert-learned", metrics=values, seconds=cost.seconds, mib=cost.mib)]
