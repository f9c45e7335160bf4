"""The main job, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mudata import read_h5mu, set_options

import cellxpert as cx
from cellxpert.demo import run_demo


def test_demo_reports_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_demo(tmp_path / "demo", n_seeds=1, max_epochs=1, progress_bar=False)
    assert json.loads((tmp_path / "demo" / "report.json").read_text()) == report
    assert {"accuracy", "macro_f1", "lr_accuracy", "lr_macro_f1", "n_seeds", "seconds", "peak_mib"} <= report.keys()
    # measured once by other code: logistic regression, C = 0.1, on this split
    assert report["lr_accuracy"] == pytest.approx(0.871, abs=5e-4)
    assert report["lr_macro_f1"] == pytest.approx(0.737, abs=1.5e-2)
    assert all(Path(file).exists() for file in report["files"])
    with set_options(pull_on_update=False):
        mdata = read_h5mu(tmp_path / "demo" / "pbmc68k.h5mu")
    assert mdata["rna"].obs["held_out"].sum() == 140
    assert mdata["rna"].obsm["X_umap"].shape == (700, 2)
    assert mdata.obsm["X_cellxpert"].shape == (700, 64)
    held_out = mdata[mdata.obs["held_out"].to_numpy()]
    classes = np.asarray(mdata.uns["cellxpert_info"]["annotate"]["cellxpert_label"]["classes"])
    likeliest = classes[held_out.obsm["cellxpert_proba"].argmax(axis=1)]  # the score counts cells that got no label too
    assert (likeliest == held_out.obs["bulk_labels"].astype(str)).mean() == pytest.approx(report["accuracy"])
    named = (held_out.obs["cellxpert_reason"] == "labelled").to_numpy()
    assert (held_out.obs["cellxpert_label"].astype(str) == likeliest)[named].all()
    assert cx.CellxPert.load(tmp_path / "demo" / "model").is_trained
    shown = capsys.readouterr().out
    assert "logistic regression" in shown
    assert "report.json" in shown
