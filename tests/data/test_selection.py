"""Features are chosen on training cells, by name, within the budget."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellxpert.config import TokenConfig
from cellxpert.data import selection
from cellxpert.data.cells import Cells
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.data.selection import select_features
from cellxpert.errors import CellxPertWarning, DuplicateNamesError, EmptyDataError

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning")  # mudata 0.3


def adata_of(values, prefix="g", first=0):
    n, g = values.shape
    obs = pd.DataFrame(index=pd.Index([f"c{first + i}" for i in range(n)], dtype=object))
    var = pd.DataFrame(index=pd.Index([f"{prefix}{j:04d}" for j in range(g)], dtype=object))
    return ad.AnnData(sparse.csr_matrix(values.astype(np.float32)), obs=obs, var=var)


def cells_of(values, role="rna", counts="integer"):
    return Cells.open(adata_of(values), Setup(modalities=(ModalitySetup(role=role, counts=counts),)))


def chosen(cells, role, config, rows=None):
    rows = np.arange(cells.n_cells) if rows is None else rows
    choice = select_features(cells, config, train_rows=rows)[role]
    return cells.feature_names(role)[choice.columns].tolist()


def counts(n=300, g=120, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.lognormal(-0.5, 1.2, g), size=(n, g))


def test_planted_variable_genes_come_first():
    values = counts(g=600)
    rng = np.random.default_rng(1)
    planted = rng.choice(np.flatnonzero(values.mean(axis=0) > 0.3), 12, replace=False)
    values[:150, planted] = rng.poisson(3 * values[:, planted].mean(axis=0) + 1, size=(150, 12))
    names = chosen(cells_of(values), "rna", TokenConfig(n_genes=12))
    assert names == sorted(f"g{j:04d}" for j in planted)


def test_rna_scores_are_the_variance_of_clipped_pearson_residuals():
    values = counts().astype(float)
    values[3], values[7, 5] = 0, 900  # an empty cell, and a residual beyond the clip
    pool = selection._Pool.read(cells_of(values), "rna", rows=np.arange(300))
    expected = values.sum(axis=1, keepdims=True) * values.sum(axis=0) / values.sum()
    seen = expected.sum(axis=0) > 0
    with np.errstate(invalid="ignore"):
        residual = np.nan_to_num((values - expected) / np.sqrt(expected))
    assert residual.max() > np.sqrt(300)
    np.testing.assert_allclose(pool.scores(), np.minimum(residual, np.sqrt(300)).var(axis=0)[seen], rtol=1e-9)


def test_genes_are_those_of_scanpy():
    import scanpy as sc

    values = counts(g=400)
    adata = adata_of(values[:, values.sum(axis=0) > 0])
    table = sc.experimental.pp.highly_variable_genes(
        adata, flavor="pearson_residuals", theta=np.inf, n_top_genes=100, inplace=False
    )
    names = chosen(Cells.open(adata, Setup(modalities=(ModalitySetup(role="rna"),))), "rna", TokenConfig(n_genes=100))
    assert names == sorted(table.index[table["highly_variable"]])


def test_peaks_by_variance_of_being_open_and_proteins_by_their_log_ratio():
    values = counts(g=40)
    open_share = (values > 0).mean(axis=0)
    score = np.where(open_share > 0, open_share * (1 - open_share), -1)
    truth = sorted(f"g{j:04d}" for j in np.argsort(-score, kind="stable")[:9])
    assert chosen(cells_of(values, "atac"), "atac", TokenConfig(n_peaks=9)) == truth

    centre = np.exp(np.log1p(values).mean(axis=1, keepdims=True))
    variance = np.log1p(values / centre).var(axis=0, ddof=1)
    truth = sorted(f"g{j:04d}" for j in np.argsort(-variance, kind="stable")[:9])
    assert chosen(cells_of(values, "protein"), "protein", TokenConfig(n_proteins=9)) == truth

    variance = np.arcsinh(values / 5).var(axis=0, ddof=1)
    truth = sorted(f"g{j:04d}" for j in np.argsort(-variance, kind="stable")[:9])
    assert chosen(cells_of(values, "protein", "intensity"), "protein", TokenConfig(n_proteins=9)) == truth


@pytest.mark.parametrize("role", ["rna", "atac", "protein"])
def test_order_of_columns_does_not_matter_even_for_ties(role):
    values = counts(g=60)
    values = np.concatenate([values, values, values], axis=1)  # every score occurs three times
    cells = cells_of(values, role)
    config = TokenConfig(n_genes=50, n_peaks=50, n_proteins=50)
    truth = chosen(cells, role, config)
    adata = cells.adata(role)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(adata.n_vars)
        other = Cells.open(adata[:, order].copy(), cells.setup)
        assert chosen(other, role, config) == truth
        here = select_features(other, config, train_rows=np.arange(300))[role]
        there = select_features(cells, config, train_rows=np.arange(300))[role]
        assert here.means.tobytes() == there.means.tobytes()


def test_only_training_cells_count():
    values = counts()
    other = values.copy()
    other[200:] = np.random.default_rng(9).poisson(50, size=(100, 120))
    rows = np.arange(200)
    config = TokenConfig(n_genes=30)
    assert chosen(cells_of(values), "rna", config, rows) == chosen(cells_of(other), "rna", config, rows)


def test_features_never_seen_in_training_are_left_out():
    values = counts(g=20)
    values[:100, [3, 5]] = 0
    values[100:, 3] = 4
    choice = select_features(cells_of(values), TokenConfig(), train_rows=np.arange(100))["rna"]
    assert {3, 5}.isdisjoint(choice.columns)
    np.testing.assert_allclose(choice.means, values[:100, choice.columns].mean(axis=0))
    assert len(choice.columns) == (values[:100].sum(axis=0) > 0).sum()


def mosaic():
    """60 cells: RNA in the first 40, protein in the last 40."""
    values = counts(n=60, g=30) + 1
    rna, protein = adata_of(values[:40], "g"), adata_of(values[20:, :10], "p", first=20)
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({"rna": rna, "protein": protein})
    setup = Setup(modalities=(ModalitySetup(role="rna", name="rna"), ModalitySetup(role="protein", name="protein")))
    return Cells.open(mdata, setup)


def test_modalities_use_the_training_cells_that_have_them():
    cells = mosaic()
    choice = select_features(cells, TokenConfig(), train_rows=np.arange(30))
    rna = cells.matrix_rows("rna", np.arange(30)).toarray()
    protein = cells.matrix_rows("protein", np.arange(20, 30)).toarray()
    np.testing.assert_allclose(choice["rna"].means, rna.mean(axis=0))
    np.testing.assert_allclose(choice["protein"].means, protein.mean(axis=0))


def test_a_modality_without_training_cells_is_left_out_with_a_warning():
    with pytest.warns(CellxPertWarning, match="protein: no training cell"):
        choice = select_features(mosaic(), TokenConfig(), train_rows=np.arange(20))
    assert list(choice) == ["rna"]


def test_budget_is_shared_in_proportion():
    with pytest.warns(CellxPertWarning, match="exceed the 19"):
        choice = select_features(mosaic(), TokenConfig(max_tokens=20), train_rows=np.arange(60))
    assert {role: len(c.columns) for role, c in choice.items()} == {"rna": 14, "protein": 5}  # 30 and 10 wanted
    with pytest.warns(CellxPertWarning, match="exceed"):
        choice = select_features(
            mosaic(), TokenConfig(max_tokens=3, n_genes=30, n_proteins=1), train_rows=np.arange(60)
        )
    assert {role: len(c.columns) for role, c in choice.items()} == {"rna": 1, "protein": 1}


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(EmptyDataError), pytest.warns(CellxPertWarning, match="rna"):
        select_features(cells_of(np.zeros((5, 4))), TokenConfig(), train_rows=np.arange(5))
    with pytest.raises(EmptyDataError), pytest.warns(CellxPertWarning, match="rna"):
        select_features(cells_of(counts()), TokenConfig(), train_rows=[])


def test_repeated_names_are_refused():
    adata = adata_of(counts(g=5))
    adata.var_names = ["a", "b", "a", "c", "d"]
    cells = Cells.open(adata, Setup(modalities=(ModalitySetup(role="rna"),)))
    with pytest.raises(DuplicateNamesError, match="'a'"):
        select_features(cells, TokenConfig(), train_rows=np.arange(9))
