"""The table of effects against a loop over genes; what a result can be turned into."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cellxpert.errors import ConfigError
from cellxpert.tasks.arms import Arm
from cellxpert.tasks.perturb import screen
from cellxpert.tasks.response import CONDITION_COLUMNS, TABLE_COLUMNS, PerturbResult, effect_table, trajectory_table

KEY = ("KO", "all")


def arms(rng, n_cells, n_genes):
    """Magnitudes and counts of two arms, and start cells."""
    count = [rng.gamma(2.0, 3.0, (n_cells, n_genes)).astype(np.float32) for _ in range(2)]
    return *((np.log1p(c), c) for c in count), np.log1p(rng.poisson(1.0, (n_cells, n_genes))).astype(np.float32)


def table(perturbed, null, start, **flags):
    n_genes = start.shape[1]
    given_flags = {"is_target": np.zeros(n_genes, bool), "is_movable": np.ones(n_genes, bool)} | flags
    genes = [f"g{i}" for i in range(n_genes)]
    return effect_table(key=KEY, genes=genes, perturbed=perturbed, null=null, start_NG=start, **given_flags)


def benjamini_hochberg(p):
    """By its definition: the smallest p_(j) m / j over j >= i."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, smallest = [0.0] * len(p), 1.0
    for rank in range(len(p), 0, -1):
        i = order[rank - 1]
        smallest = min(smallest, p[i] * len(p) / rank)
        out[i] = smallest
    return out


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_effects_gene_by_gene(n_cells, n_genes, seed):
    perturbed, null, start = arms(np.random.default_rng(seed), n_cells, n_genes)
    is_target = np.arange(n_genes) == 0
    found = table(perturbed, null, start, is_target=is_target)
    assert list(found.columns) == list(TABLE_COLUMNS)
    expected_p = []
    for g in range(n_genes):
        row = found.iloc[g]
        difference = perturbed[0][:, g].astype(float) - null[0][:, g]
        assert row["effect"] == pytest.approx(difference.mean(), abs=1e-9)
        assert row["se"] == pytest.approx(stats.sem(difference), rel=1e-6)
        means = [x[1][:, g].astype(float).mean() for x in (perturbed, null)]
        assert row["log_fc"] == pytest.approx(np.log2((means[0] + 0.1) / (means[1] + 0.1)))
        assert row["null_effect"] == pytest.approx((null[0][:, g].astype(float) - start[:, g]).mean(), abs=1e-9)
        assert row["expressed_fraction"] == pytest.approx((start[:, g] > 0).mean())
        assert (row["perturbation"], row["group"], row["variable"]) == (*KEY, f"g{g}")
        if g:
            expected_p.append(stats.ttest_rel(perturbed[0][:, g].astype(float), null[0][:, g].astype(float)).pvalue)
    assert np.isnan(found["p_value"].iloc[0])  # a gene that is set is not tested
    assert np.isnan(found["adj_p_value"].iloc[0])
    np.testing.assert_allclose(found["p_value"].iloc[1:], expected_p, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found["adj_p_value"].iloc[1:], benjamini_hochberg(expected_p), rtol=1e-5, atol=1e-12)


def test_arms_that_are_one():
    _, null, start = arms(np.random.default_rng(0), 6, 4)
    found = table(null, null, start)
    for name in ("effect", "log_fc", "se"):
        assert (found[name] == 0).all()
    assert (found["p_value"] == 1).all()
    assert (found["adj_p_value"] == 1).all()


def test_the_same_change_in_every_cell():
    _, null, start = arms(np.random.default_rng(0), 6, 2)
    null = (np.round(null[0]), null[1])
    found = table((null[0] + 1, null[1]), null, start)
    assert (found["effect"] == 1).all()
    assert (found["se"] == 0).all()
    assert (found["p_value"] == 0).all()


def test_what_was_not_measured_is_not_zero():
    perturbed, null, start = arms(np.random.default_rng(0), 6, 3)
    start[:, 1] = np.nan
    start[:3, 2] = np.nan
    for arm in (perturbed, null):
        for values in arm:
            values[:, 1] = np.nan
    with warnings.catch_warnings(action="error"):
        found = table(perturbed, null, start).set_index("variable")
    numbers = ["log_fc", "effect", "se", "p_value", "adj_p_value", "null_effect", "expressed_fraction"]
    assert found.loc["g1", numbers].isna().all()
    assert found.loc[["g0", "g2"], numbers].notna().all().all()
    assert found.loc["g2", "expressed_fraction"] == (start[3:, 2] > 0).mean()
    assert found.loc["g2", "null_effect"] == pytest.approx((null[0][3:, 2].astype(float) - start[3:, 2]).mean())
    only = table(*[tuple(x[:, ::2] for x in arm) for arm in (perturbed, null)], start[:, ::2])
    np.testing.assert_array_equal(found.loc[["g0", "g2"], "adj_p_value"], only["adj_p_value"])


def test_one_cell_has_no_error():
    perturbed, null, start = arms(np.random.default_rng(0), 1, 3)
    with warnings.catch_warnings(action="error"):
        found = table(perturbed, null, start)
    assert found["effect"].notna().all()
    assert found[["se", "p_value", "adj_p_value"]].isna().all().all()


# --- trajectories --------------------------------------------------------------------------------------------------


def arm(rng, *, n_steps=6, n_chains=6, distance=True):
    return Arm(
        x_DCM=torch.zeros(2, n_chains, 3, dtype=torch.uint8),
        mean_NMY=torch.zeros(3, 3, 2),
        level_JDM=torch.zeros(2, 2, 3),
        log_density_TC=rng.normal(size=(n_steps, n_chains)),
        accepted_TC=rng.random((n_steps, n_chains)) < 0.5,
        distance_TC=rng.random((n_steps, n_chains)) if distance else None,
        shift_TC=rng.random((n_steps, n_chains)).astype(np.float32),
        moved=0.5,
        burn_in=2,
        size=None,
        kappa=0.1,
        kernel="block",
    )


def test_trajectories_are_means_over_cells():
    rng = np.random.default_rng(0)
    both = {"perturbed": arm(rng), "null": arm(rng, n_steps=4, distance=False)}
    found = trajectory_table(KEY, both, n_replicates=2)
    assert len(found) == 2 * 6 + 2 * 4
    for name, one in both.items():
        for chain in range(2):
            rows = found[(found["arm"] == name) & (found["chain"] == chain)]
            assert rows["step"].tolist() == list(range(len(one.log_density_TC)))
            assert rows["burn_in"].tolist() == [t < 2 for t in rows["step"]]
            own = [0 + chain, 2 + chain, 4 + chain]  # chains of a cell stand together
            for column, values in {
                "log_density": one.log_density_TC,
                "acceptance": one.accepted_TC,
                "distance": one.distance_TC,
                "shift": one.shift_TC,
            }.items():
                if values is None:
                    assert rows[column].isna().all()
                else:
                    np.testing.assert_allclose(rows[column], values[:, own].astype(float).mean(axis=1), rtol=1e-6)


# --- results -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(make_job, subjects) -> PerturbResult:
    return screen(make_job(["gene_05", "gene_00", "gene_01+gene_06"], subjects=subjects))


def test_effects_as_a_matrix(result):
    found = result.effects(group="type_1")
    assert found.index.tolist() == ["gene_05", "gene_00", "gene_01+gene_06"] == list(result.perturbations)
    rows = result.table[(result.table["group"] == "type_1") & (result.table["perturbation"] == "gene_00")]
    assert found.loc["gene_00", rows["variable"]].tolist() == rows["effect"].tolist()
    with pytest.raises(ConfigError, match="'type_0', 'type_1'"):
        result.effects()


def test_predicted_cells_as_anndata(result):
    adata = result.to_anndata()
    assert adata.shape == (6 * 12, 44)
    assert adata.obs_names.is_unique
    assert adata.var_names.tolist() == list(result.genes)
    key = ("gene_00", "type_1")
    rows = ((adata.obs["perturbation"] == key[0]) & (adata.obs["group"] == key[1])).to_numpy()
    assert adata.obs["cell"][rows].tolist() == list(result.cells[key])
    expected = {"X": "perturbed", "null": "null", "start": "start", "drawn": "drawn"}
    for where, name in expected.items():
        values = adata[rows].X if where == "X" else adata[rows].layers[where]
        np.testing.assert_array_equal(values, result.expression[key][name])
    np.testing.assert_array_equal(adata[rows].obsm["X_cellxpert"], result.latent[key]["perturbed"])
    np.testing.assert_array_equal(adata[rows].obsm["X_cellxpert_null"], result.latent[key]["null"])
    effect = (adata[rows].X.astype(float) - adata[rows].layers["null"]).mean(axis=0)
    np.testing.assert_allclose(result.effects(group="type_1").loc["gene_00", list(result.genes)], effect, atol=1e-9)


def test_diagnostics(result):
    found = result.diagnostics
    assert set(found) == set(result.draws)
    key = ("gene_05", "type_0")
    posterior = found[key].posterior
    assert posterior["effect"].dims == ("chain", "draw", "gene")
    np.testing.assert_array_equal(posterior["effect"].values, result.draws[key]["effect"])
    assert posterior["gene"].values.tolist() == result.draws[key]["genes"].tolist()
    assert posterior["log_density"].shape == posterior["effect"].shape[:2] == (2, 4)


def test_what_is_shown(result):
    text = repr(result)
    assert "6 conditions x 44 genes" in text
    assert "gene_00 in type_1 (learned): no flags" in text


def test_doubts(result):
    assert result.doubts == ()
    from dataclasses import replace

    conditions = result.conditions.copy()
    assert list(conditions.columns) == list(CONDITION_COLUMNS)
    conditions.loc[0, "silent"] = True
    conditions.loc[1, ["converged", "r_hat"]] = [False, 1.234]
    doubted = replace(result, conditions=conditions)
    silent, astray = doubted.doubts
    assert "['gene_05'] are not expressed" in silent
    assert "['gene_00']" in astray
    assert "R-hat up to 1.234" in astray
    assert "silent" in repr(doubted)
    assert "not converged: R-hat 1.234" in repr(doubted)
    conditions = conditions.assign(silent=False, converged=False, r_hat=np.nan)
    assert "R-hat unknown" in replace(result, conditions=conditions).doubts[0]
    many = pd.concat([conditions] * 3, ignore_index=True)
    assert "... and 8 more" in repr(replace(result, conditions=many))
