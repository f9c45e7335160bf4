"""Between object and model: what is read, what is written where, and what is recorded."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData, set_options

import cellxpert as cx
from cellxpert import exchange
from cellxpert.data.cells import Cells
from cellxpert.errors import CellxPertWarning, ViewError
from cellxpert.tasks.checks import make_screen
from cellxpert.tasks.perturb import screen
from cellxpert.tasks.screens import Asked

GENE, PAIR = "gene_00", "gene_01+gene_06"


def read(model, data, **more):
    given = {"setup": model._setup, "call": "test", "inplace": False, "own": False} | more
    return exchange.read(model._state, data, **given)


# --- reading -----------------------------------------------------------------------------------------------------------


def test_tokens_are_in_the_order_of_the_cells(screened, knockouts):
    tokens = read(screened, knockouts)
    assert tokens.n_cells == knockouts.n_obs
    order = np.random.default_rng(0).permutation(knockouts.n_obs)
    with set_options(pull_on_update=False):
        other = read(screened, knockouts[order].copy())
    assert other.lengths.tolist() == tokens.lengths[order].tolist()


def test_views_are_read_but_not_written_to(screened, knockouts):
    view = knockouts["rna"][:40]
    assert read(screened, view).n_cells == 40
    with pytest.raises(ViewError, match="test"):
        read(screened, view, inplace=True)


def test_what_the_checks_find_is_told_of_other_objects(screened, knockouts):
    counts = knockouts["rna"].copy()
    counts.X = counts.X.multiply(np.arange(counts.n_obs)[:, None] >= 3).tocsr()
    with pytest.warns(CellxPertWarning) as caught:
        screened.get_latent(counts, inplace=False)
    first, second = (str(w.message) for w in caught)
    assert "3 of 470 cells have no value above zero" in first
    assert "3 of 470 cells have no counts in the model's features" in second
    assert {w.filename for w in caught} == {__file__}  # whoever called the method


def test_subjects(screened, knockouts):
    state = screened._state
    cells = Cells.open(knockouts, screened._setup)
    tokens = read(screened, knockouts)
    known = np.arange(knockouts.n_obs) % 3 > 0
    found = exchange.subjects_of(state, cells, tokens, groupby="cell_type", known=known)
    assert list(found.names) == knockouts.obs_names.tolist()
    assert list(found.condition) == knockouts.obs["perturbation"].tolist()
    assert list(found.group) == knockouts.obs["cell_type"].tolist()
    assert found.known is known
    # genes that were set are not read where they were
    gene = state.vocabulary.names.index(GENE)
    knocked = np.flatnonzero(knockouts.obs["perturbation"] == GENE)
    seen = found.collator.tokens
    assert not any(gene in seen.feature[seen.start[i] : seen.start[i + 1]] for i in knocked)
    assert any(gene in tokens.feature[tokens.start[i] : tokens.start[i + 1]] for i in knocked)
    plain = exchange.subjects_of(
        state, Cells.open(knockouts, replace(screened._setup, perturbation_key=None)), tokens, groupby=None, known=None
    )
    assert (plain.condition, plain.known, plain.group) == (None, None, None)
    assert plain.collator.tokens is tokens


def test_networks_elsewhere_are_copied(screened):
    network = screened._state.network
    assert exchange.on_cpu(network) is network

    class Elsewhere(torch.nn.Linear):
        """Weights that say they are on another device."""

        def parameters(self, recurse=True):
            return (p.to("meta") for p in super().parameters(recurse))

    layer = Elsewhere(2, 2)
    copied = exchange.on_cpu(layer)
    assert copied is not layer
    assert torch.equal(copied.weight, layer.weight)


def test_progress_counts_and_stays_silent_where_not_asked_for(capsys):
    with exchange.progress("perturb", 3, show=False) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr().err == ""


def test_descriptions_are_plain_values(screened):
    tokens = read(screened, screened._data, own=True)
    found = exchange.describe(screened._state, tokens, started=0.0, device="cpu")
    assert set(found) == {
        "version", "weights_hash", "vocabulary_hash", "seed", "feature_overlap", "device", "seconds"
    }  # fmt: skip
    assert found["version"] == cx.__version__
    assert found["feature_overlap"] == 1
    assert all(isinstance(v, str | int | float) for v in found.values())


# --- writing -----------------------------------------------------------------------------------------------------------


def predicted(model, data, genes, *, groupby=None):
    """A result, and what is needed to write it."""
    state = model._state
    cells = Cells.open(
        data, model._setup if isinstance(data, MuData) else exchange.setups.query_setup(model._setup, data)
    )
    tokens = exchange.read(state, data, setup=model._setup, call="test", inplace=False, own=True)
    settings = cx.config.SteeringConfig(n_cells=12, n_movable=8, min_cells=5)
    asked = Asked(genes=genes, settings=settings, n_chains=2, n_steps=20)
    subjects = exchange.subjects_of(state, cells, tokens, groupby=groupby, known=None)
    job = make_screen(
        asked, subjects, network=state.network, vocabulary=state.vocabulary, perturbations=state.perturbations
    )
    return screen(job), {"cells": cells, "asked": asked, "state": state}


def write(model, data, genes, *, key="out", groupby=None):
    result, given = predicted(model, data, genes, groupby=groupby)
    cells = given.pop("cells")
    exchange.write_perturbation(data, cells, result, key=key, entry={"version": "0"}, **given)
    return result


def test_predicted_cells_are_written_by_name(screened, knockouts):
    """Genes in another order, one that the model does not know; cells of modalities in an order of their own."""
    rng = np.random.default_rng(0)
    rna = knockouts["rna"][rng.permutation(knockouts["rna"].n_obs)][:, rng.permutation(44)].copy()
    new = ad.AnnData(np.ones((rna.n_obs, 1), np.float32), obs=pd.DataFrame(index=rna.obs_names))
    new.var_names = ["unknown"]
    obs = rna.obs.copy()
    rna = ad.concat([new, rna], axis=1)
    rna.obs = obs
    mdata = MuData({"protein": knockouts["protein"].copy(), "rna": rna})
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein="protein", perturbation_key="perturbation")
    result = write(screened, mdata, GENE)
    key = (GENE, "all")
    layer = pd.DataFrame(mdata["rna"].layers["out"], index=rna.obs_names, columns=rna.var_names)
    cells = list(result.cells[key])
    expected = pd.DataFrame(result.expression[key]["perturbed"], index=cells, columns=list(result.genes))
    assert np.array_equal(layer.loc[cells, list(result.genes)], expected)
    assert layer["unknown"].isna().all()
    assert layer.drop(index=cells).isna().all().all()
    assert layer.to_numpy().dtype == np.float32
    vectors = pd.DataFrame(mdata.obsm["X_out"], index=mdata.obs_names)
    assert np.array_equal(vectors.loc[cells], result.latent[key]["perturbed"])
    assert vectors.drop(index=cells).isna().all().all()
    for adata in mdata.mod.values():
        assert np.array_equal(adata.obsm["X_out"], vectors.loc[adata.obs_names], equal_nan=True)
    assert "out" not in mdata["protein"].layers


def test_groups_of_one_perturbation_are_written_together(screened, knockouts):
    adata = knockouts["rna"].copy()
    result = write(screened, adata, GENE, groupby="cell_type")
    layer = pd.DataFrame(adata.layers["out"], index=adata.obs_names, columns=adata.var_names)
    for key, cells in result.cells.items():
        assert np.array_equal(layer.loc[list(cells), list(result.genes)], result.expression[key]["perturbed"])
    assert layer.notna().any(axis=1).sum() == 24


def test_a_screen_writes_tables_and_removes_what_they_do_not_describe(screened, knockouts):
    adata = knockouts["rna"].copy()
    adata.layers["mine"] = adata.X.copy()
    write(screened, adata, GENE)
    write(screened, adata, GENE, key="kept")
    result = write(screened, adata, [GENE, PAIR])
    assert set(adata.layers) == {"mine", "kept"}
    assert set(adata.obsm) == {"X_kept"}
    entry = adata.uns["cellxpert_info"]["perturb"]["out"]
    assert entry["genes"] == [GENE, PAIR]
    pd.testing.assert_frame_equal(entry["table"].reset_index(drop=True), result.table)
    assert all(isinstance(name, str) for name in entry["table"].index)


def test_layers_of_others_are_not_removed(screened, knockouts):
    """Only what an earlier call wrote under this key."""
    adata = knockouts["rna"].copy()
    adata.layers["out"] = adata.X.copy()
    write(screened, adata, [GENE, PAIR])
    assert "out" in adata.layers


def test_records_say_what_was_asked(screened, knockouts):
    adata = knockouts["rna"].copy()
    write(screened, adata, {GENE: ("fold", 0.5)})
    entry = adata.uns["cellxpert_info"]["perturb"]["out"]
    assert entry["genes"] == [f"{GENE}(fold 0.5)"]
    assert (entry["n_steps"], entry["n_chains"], entry["seed"]) == (20, 2, 0)
    assert entry["steering"]["n_movable"] == 8
    assert "kappa" not in entry["steering"]  # HDF5 knows no None
    assert entry["version"] == "0"
