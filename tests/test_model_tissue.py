"""A second head names tissues: learned, written, saved, kept by fine-tuning, and frozen under adapters."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from mudata import MuData

import cellxpert as cx
from cellxpert.errors import CellxPertError


@pytest.fixture(scope="module")
def mdata() -> MuData:
    """Two tissues that share no type; the tissue of every tenth cell is not known."""
    mdata = cx.datasets.synthetic(n_cells=240, n_genes=60, n_peaks=0, n_proteins=0, n_types=4, seed=0)
    types = sorted(set(mdata.obs["cell_type"].astype(str)))
    tissue = np.where(mdata.obs["cell_type"].astype(str).isin(types[:2]), "liver/left", "lung")
    mdata.obs["truth"] = tissue
    mdata.obs["tissue"] = np.where(np.arange(240) % 10 == 0, "Unknown", tissue)
    cx.CellxPert.setup_mudata(mdata, rna="rna", labels_key="cell_type", tissue_key="tissue")
    return mdata


@pytest.fixture(scope="module")
def model(mdata: MuData) -> cx.CellxPert:
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    model.train(max_epochs=1, train_size=1.0, progress_bar=False)
    return model


def test_tissues_are_named_beside_labels(model: cx.CellxPert, mdata: MuData) -> None:
    table = model.annotate(inplace=False)
    assert (table["tissue"].to_numpy() == mdata.obs["truth"].to_numpy()).mean() > 0.9
    assert table["tissue_confidence"].between(0.5, 1).all()
    assert set(table["label"]) - {"Unknown"} <= set(mdata.obs["cell_type"].astype(str))


def test_tissues_are_written_and_recorded(model: cx.CellxPert, mdata: MuData, tmp_path: Path) -> None:
    written = mdata.copy()
    model.annotate(written)
    assert written.obs["cellxpert_tissue"].dtype == "category"
    assert written.obs["cellxpert_tissue_confidence"].dtype == np.float32
    assert written["rna"].obs["cellxpert_tissue"].tolist() == written.obs["cellxpert_tissue"].tolist()
    assert list(written.uns["cellxpert_info"]["annotate"]["cellxpert_label"]["tissues"]) == ["liver/left", "lung"]
    written.write_h5mu(tmp_path / "a.h5mu")


def test_a_cell_without_counts_has_no_tissue(model: cx.CellxPert, mdata: MuData) -> None:
    query = mdata["rna"].copy()
    query.X = query.X.toarray()
    query.X[3] = 0
    with warnings.catch_warnings(action="ignore", category=cx.errors.CellxPertWarning):  # told in other tests
        table = model.annotate(query, inplace=False)
    assert (table["tissue"].iloc[3], table["tissue_confidence"].iloc[3]) == ("Unknown", 0)


def test_a_saved_model_names_the_same_tissues(model: cx.CellxPert, mdata: MuData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = cx.CellxPert.load(tmp_path / "model", mdata)
    assert loaded.annotate(inplace=False).equals(model.annotate(inplace=False))


def test_an_adapter_keeps_the_tissue_head(model: cx.CellxPert, mdata: MuData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    adapted = cx.CellxPert.load(tmp_path / "model", mdata)
    before = {k: v.clone() for k, v in adapted._state.network.state_dict().items() if k.startswith("tissues.")}
    assert before
    adapted.add_adapter("ours", rank=2)
    adapted.finetune(mdata, adapter="ours", max_epochs=1, progress_bar=False)
    after = adapted._state.network.state_dict()
    assert all(v.equal(after[k]) for k, v in before.items())
    tissues = ["tissue", "tissue_confidence"]
    assert not np.array_equal(adapted.get_latent(inplace=False), model.get_latent(inplace=False))
    assert adapted.annotate(inplace=False)[tissues].equals(model.annotate(inplace=False)[tissues])
    with pytest.warns(cx.errors.CellxPertWarning, match="merge_adapter: tissues are named by a head that was fitted"):
        adapted.merge_adapter()


def test_fine_tuning_on_other_tissues_makes_the_head_anew(model: cx.CellxPert, mdata: MuData, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    tuned = cx.CellxPert.load(tmp_path / "model", mdata)
    other = mdata.copy()
    other.obs["tissue"] = np.where(other.obs["truth"] == "lung", "kidney", "skin")
    cx.CellxPert.setup_mudata(other, rna="rna", labels_key="cell_type", tissue_key="tissue")
    tuned.finetune(other, max_epochs=1, train_size=1.0, progress_bar=False)
    table = tuned.annotate(inplace=False)
    assert (table["tissue"].to_numpy() == other.obs["tissue"].to_numpy()).mean() > 0.9


def test_a_column_that_is_not_there_is_named(mdata: MuData) -> None:
    copy = mdata.copy()
    with pytest.raises(CellxPertError, match="organ"):
        cx.CellxPert.setup_mudata(copy, rna="rna", tissue_key="organ")


def test_one_tissue_is_told(mdata: MuData) -> None:
    copy = mdata.copy()
    copy.obs["organ"] = "lung"
    with pytest.warns(cx.errors.CellxPertWarning, match=r"obs\['organ'\] has fewer than two tissues"):
        cx.CellxPert.setup_mudata(copy, rna="rna", tissue_key="organ")
