"""Whole predictions: what does nothing has no effect, what is shared changes nothing, what was interrupted goes on."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cellxpert.data.collate import Collator
from cellxpert.errors import ResumeError
from cellxpert.steering.diagnostics import convergence
from cellxpert.tasks import perturb
from cellxpert.tasks.bins import bins_at
from cellxpert.tasks.perturb import screen

GENE = "gene_00"


def same(one, other, *keys):
    """Whether results say the same of some conditions, bit for bit."""
    for key in keys:
        for name in ("expression", "latent", "draws"):
            mine, yours = getattr(one, name)[key], getattr(other, name)[key]
            for part in mine:
                np.testing.assert_array_equal(mine[part], yours[part], err_msg=f"{name} {part}")
        assert list(one.cells[key]) == list(other.cells[key])
        for name in ("table", "conditions", "baselines", "trajectory"):
            mine, yours = (
                t[(t["perturbation"] == key[0]) & (t["group"] == key[1])].reset_index(drop=True)
                for t in (getattr(one, name), getattr(other, name))
            )
            assert len(mine)
            pd.testing.assert_frame_equal(mine, yours, check_exact=True)


# --- no effect ---------------------------------------------------------------------------------------------------------


def nothing_happens(result, *, but=()):
    """``but``: genes that are set."""
    table, others = result.table[~result.table["variable"].isin(but)], ~np.isin(result.genes, but)
    for name in ("effect", "se", "log_fc"):
        assert (table[name].dropna() == 0).all(), name
    tested = table[~table["is_target"]]
    assert (tested["p_value"].dropna() == 1).all()
    assert (tested["adj_p_value"].dropna() == 1).all()
    assert tested["p_value"].notna().sum() > 40
    for values in result.expression.values():
        np.testing.assert_array_equal(values["perturbed"][:, others], values["null"][:, others])
    for values in result.latent.values():
        np.testing.assert_array_equal(values["perturbed"], values["null"])
    assert result.conditions["converged"].all()


@pytest.mark.parametrize("kernel", ["auto", "block", "fill-in"])
def test_a_dose_of_nothing(make_job, small, kernel):
    settings = replace(small, kernel=kernel)
    nothing_happens(screen(make_job({GENE: ("fold", 1.0)}, settings=settings)))
    assert screen(make_job(GENE, settings=settings)).table["effect"].abs().max() > 0.1


def test_a_network_that_learned_nothing_of_interventions(make_job, screened):
    network = copy.deepcopy(screened._state.network)
    with torch.no_grad():
        for weight in network.factors.intervention.parameters():
            weight.zero_()
        network.factors.intervention.response_V.zero_()
    nothing_happens(screen(make_job([GENE, "gene_40"], network=network)), but=[GENE, "gene_40"])


@pytest.mark.parametrize(
    "genes", [{GENE: ("fold", 1.0)}, {"gene_00": ("fold", 1.0), "gene_01": ("fold", 1.0)}], ids=str
)
def test_genes_that_are_held_as_they_are(make_job, genes):
    nothing_happens(screen(make_job(genes, target="zero-shot")))


def _with_bin(subjects, feature, bin_):
    """The same cells, all with one bin of a gene."""
    tokens = subjects.collator.tokens
    everyone = np.arange(tokens.n_cells)
    bins = bins_at(subjects.collator, everyone, np.arange(50))
    bins[:, feature] = bin_ * tokens.measured_features[tokens.pattern, feature]
    cell, features = np.nonzero(bins)
    other = replace(
        tokens,
        feature=features.astype(np.int32),
        bin=bins[cell, features].astype(np.uint8),
        start=np.concatenate([[0], np.cumsum((bins > 0).sum(axis=1))]),
    )
    return replace(subjects, collator=Collator(other, n_features=50, n_bins=50), group=None)


@pytest.mark.parametrize("bin_", [0, 17])
def test_a_gene_held_at_the_bin_that_it_has(make_job, subjects, bin_):
    cells = _with_bin(subjects, 0, bin_)
    nothing_happens(screen(make_job({GENE: ("bin", bin_)}, subjects=cells, target="zero-shot")))
    other = screen(make_job({GENE: ("bin", 40)}, subjects=cells, target="zero-shot"))
    assert other.table["effect"].abs().max() > 0.1


# --- seeds and sharing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["learned", "anchored", "zero-shot"])
def test_seeds(make_job, target):
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, again, other = (screen(make_job(GENE, target=target, n_steps=10, seed=s)) for s in (0, 0, 1))
    same(one, again, (GENE, "all"))
    assert not np.array_equal(one.table["effect"], other.table["effect"])
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_company_changes_nothing_where_sites_are_the_same(make_job, small, monkeypatch):
    """All but the perturbed genes move, so that more of the same genes leave the choice as it is."""
    settings = replace(small, n_movable=60)
    genes = [GENE, {GENE: ("knockdown", 0.5)}, {GENE: "overexpression"}]
    runs, real = [], perturb._run_null
    monkeypatch.setattr(perturb, "_run_null", lambda *args: runs.append(1) or real(*args))
    together = screen(make_job(genes, settings=settings))
    assert len(runs) == 1  # one null serves all
    alone = screen(make_job(GENE, settings=settings))
    same(together, alone, (GENE, "all"))
    weak, strong = (together.effects().loc[name].abs().sum() for name in (f"{GENE}(knockdown 0.5)", GENE))
    assert 0 < weak < strong


def test_the_order_of_a_screen_changes_nothing(make_job):
    one, other = (screen(make_job(genes)) for genes in ([GENE, "gene_05"], ["gene_05", GENE]))
    same(one, other, (GENE, "all"), ("gene_05", "all"))


def test_nulls_in_memory_are_few(make_job, monkeypatch):
    """With regulators each perturbation has its own."""
    found, real = [], perturb._Nulls.of
    monkeypatch.setattr(
        perturb._Nulls, "of", lambda self, request: (real(self, request), found.append(len(self.found)))[0]
    )
    regulators = {GENE: ["gene_10"], "gene_05": ["gene_11"], "gene_01": ["gene_12"], "gene_06": []}
    screen(make_job(list(regulators), regulators=regulators))
    assert max(found) == perturb.N_HELD < len(found)


def test_groups_are_predictions_of_their_own(make_job, subjects):
    both = screen(make_job(GENE, subjects=subjects))
    assert list(both.expression) == [(GENE, "type_0"), (GENE, "type_1")]
    kind = dict(zip(subjects.names, subjects.group, strict=True))
    for key, cells in both.cells.items():
        assert {kind[c] for c in cells} == {key[1]}
    # the same cells without a name for the group
    first = np.array(subjects.group) == "type_0"
    condition = np.where(first, subjects.condition, "gene_05").astype(object)
    alone = screen(make_job(GENE, subjects=replace(subjects, condition=list(condition), group=None)))
    assert list(alone.cells[GENE, "all"]) == list(both.cells[GENE, "type_0"])
    assert alone.table["effect"].tolist() == both.table[both.table["group"] == "type_0"]["effect"].tolist()


# --- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["learned", "anchored", "zero-shot"])
def test_what_a_result_says(make_job, subjects, target):
    job = make_job(GENE, target=target)
    result = screen(job)
    key, rows = (GENE, "all"), [subjects.names.index(c) for c in result.cells[GENE, "all"]]
    assert len(rows) == 12
    assert {subjects.condition[i] for i in rows} == {"control"}
    start = result.expression[key]["start"]
    features = np.arange(44)
    expected = job.level_VK.numpy()[features, bins_at(subjects.collator, np.array(rows), features)]
    np.testing.assert_array_equal(start, expected)
    found = result.table.set_index("variable")
    difference = result.expression[key]["perturbed"].astype(float) - result.expression[key]["null"]
    np.testing.assert_allclose(found["effect"], difference.mean(axis=0), atol=1e-9)
    assert found.index[found["is_target"]].tolist() == [GENE]
    assert not found["is_movable"][GENE]
    movable = [g for g in result.draws[key]["genes"] if g in found.index]
    assert found.index[found["is_movable"]].tolist() == movable
    # the effect of what moved is the mean of its draws
    at = [list(result.draws[key]["genes"]).index(g) for g in movable]
    drawn = result.draws[key]["effect"][..., at].mean(axis=(0, 1))
    np.testing.assert_allclose(found.loc[movable, "effect"], drawn, atol=2e-5)
    assert found["effect"].notna().all()
    (row,) = result.conditions.to_dict("records")
    assert (row["target"], row["seen"], row["trained_on_perturbations"], row["silent"]) == (target, True, True, False)
    assert (row["n_cells"], row["n_chains"]) == (12, 2)
    independent = target != "anchored"
    assert row["kernel"] == ("ancestral" if independent else "block")
    assert (row["kappa"] > 0) != independent
    told = convergence(result.draws[key]["effect"]).worst
    expected = (1.0, 8.0, 8.0) if independent else told
    assert (row["r_hat"], row["ess_bulk"], row["ess_tail"]) == expected
    assert row["converged"] == (row["r_hat"] <= 1.01)
    trace = result.trajectory
    assert set(trace["arm"]) == {"perturbed", "null"}
    if not independent:
        kept = trace[(trace["arm"] == "perturbed") & ~trace["burn_in"]]
        assert row["acceptance"] == pytest.approx(kept["acceptance"].mean())
        assert trace[trace["arm"] == "perturbed"]["distance"].notna().all()
        assert trace[trace["arm"] == "null"]["distance"].isna().all()


@pytest.mark.parametrize(
    ("target", "asked"), [("learned", {"gene_00": 0.0, "gene_01": 3.0}), ("anchored", {"gene_00": 0.0})]
)
def test_the_gene_itself_is_what_was_asked_for(make_job, target, asked):
    """Its left-over counts are hidden in training, so that nothing is learned of it."""
    result = screen(
        make_job([{gene: ("fold", fold) if fold else "knockout"} for gene, fold in asked.items()], target=target)
    )
    for gene, fold in asked.items():
        (values,) = (v for (name, _), v in result.expression.items() if name.startswith(gene))
        at = list(result.genes).index(gene)
        for told, plain in (("perturbed", "null"), ("drawn", "start")):
            np.testing.assert_allclose(np.expm1(values[told][:, at]), fold * np.expm1(values[plain][:, at]), rtol=1e-4)
        (row,) = result.table[result.table["is_target"] & (result.table["variable"] == gene)].to_dict("records")
        assert np.sign(row["effect"]) == np.sign(row["log_fc"]) == np.sign(fold - 1)
        assert abs(row["log_fc"]) > 0.5
        assert np.isnan(row["p_value"])


def test_genes_that_were_never_perturbed_are_said_to_be(make_job):
    result = screen(make_job([GENE, "gene_40", f"{GENE}+gene_40"]))
    assert result.conditions["seen"].tolist() == [True, False, False]
    assert "never perturbed in training" in repr(result)
    assert not screen(make_job("gene_40", perturbations=None)).conditions["trained_on_perturbations"].any()


def test_regulators_do_not_respond(make_job):
    free = screen(make_job(GENE))
    moving = free.table[free.table["is_movable"]]["variable"].tolist()[:2]
    found = screen(make_job(GENE, regulators={GENE: moving})).table.set_index("variable")
    assert (found.loc[moving, "effect"] == 0).all()
    assert not found.loc[moving, "is_movable"].any()


def test_silent_genes(make_job, subjects):
    """Taking away what is not there; what is forced on need not have been there."""
    nowhere = _with_bin(subjects, 0, 0)

    def silent(genes, **more):
        return screen(make_job(genes, subjects=nowhere, **more)).conditions["silent"].item()

    assert silent(GENE)
    assert silent(f"{GENE}+gene_05")
    assert not silent("gene_05")
    assert not silent({GENE: "overexpression"})
    assert silent({GENE: "overexpression"}, target="zero-shot")  # a multiple of nothing
    assert not silent({GENE: ("bin", 30)}, target="zero-shot")


def test_genes_that_were_not_measured_have_no_effect_of_zero(make_job, subjects):
    tokens = subjects.collator.tokens
    measured = tokens.measured_features.copy()
    measured[:, [0, 20]] = False
    keep = ~np.isin(tokens.feature, [0, 20])
    cell = np.repeat(np.arange(tokens.n_cells), tokens.lengths)[keep]
    start = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=tokens.n_cells))])
    fewer = replace(tokens, feature=tokens.feature[keep], bin=tokens.bin[keep], start=start, measured_features=measured)
    cells = replace(subjects, collator=Collator(fewer, n_features=50, n_bins=50), group=None)
    result = screen(make_job(GENE, subjects=cells))
    found = result.table.set_index("variable")
    numbers = ["effect", "log_fc", "p_value", "null_effect", "expressed_fraction"]
    assert found.loc[[GENE, "gene_20"], numbers].isna().all().all()
    assert found.drop(index=[GENE, "gene_20"])[numbers].notna().all().all()
    assert np.isnan(result.expression[GENE, "all"]["start"][:, [0, 20]]).all()
    assert not result.conditions["silent"].any()


def test_baselines(make_job):
    job = make_job([GENE, "gene_01+gene_06", {GENE: ("fold", 2.0)}])
    result = screen(job)
    wide = result.baselines.pivot_table(index=["perturbation", "baseline"], columns="variable", values="effect")
    assert set(wide.loc[GENE].index) == {"no_change", "perturbed_mean", "linear", "gauss_conditional"}
    assert "additive" in wide.loc["gene_01+gene_06"].index
    x = job.reported.levels(job.groups["all"]).toarray()
    slope = np.cov(x.T, bias=True)[0] / x[:, 0].var()
    for name, level in {GENE: 0.0, f"{GENE}(fold 2)": np.log1p(2 * np.expm1(x[:, 0].mean()))}.items():
        expected = slope[:44] * (level - x[:, 0].mean())
        np.testing.assert_allclose(wide.loc[name, "gauss_conditional"][list(job.genes)], expected, atol=1e-6)


def test_a_single_chain_leaves_convergence_unknown(make_job):
    result = screen(make_job(GENE, target="anchored", n_chains=1, n_steps=8))
    assert np.isnan(result.conditions["r_hat"].item())
    assert not result.conditions["converged"].item()
    assert "unknown" in result.doubts[0]


# --- resuming ----------------------------------------------------------------------------------------------------------


def test_an_interrupted_screen_goes_on(make_job, subjects, tmp_path):
    genes, keys = [GENE, "gene_05"], [(g, t) for t in ("type_0", "type_1") for g in (GENE, "gene_05")]
    whole = screen(make_job(genes, subjects=subjects))
    job = make_job(genes, subjects=subjects, folder=tmp_path / "screen")
    done = []

    def stop():
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen(job, model_hash="model", progress=stop)
    assert len(list((tmp_path / "screen").glob("condition-*.npz"))) == 2
    resumed = screen(job, model_hash="model", progress=lambda: done.append(1))
    assert len(done) == 6
    same(resumed, whole, *keys)
    assert list(resumed.expression) == list(whole.expression)
    for name in ("table", "conditions", "baselines", "trajectory"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(whole, name), check_exact=True)


def test_finished_conditions_are_not_computed_again(make_job, tmp_path, monkeypatch):
    job = make_job([GENE, "gene_05"], folder=tmp_path)
    first = screen(job, model_hash="model")
    monkeypatch.setattr(perturb, "_run_null", lambda *_: pytest.fail("computed"))
    same(screen(job, model_hash="model"), first, (GENE, "all"), ("gene_05", "all"))


def test_another_screen_is_refused(make_job, subjects, tmp_path):
    screen(make_job(GENE, folder=tmp_path), model_hash="model")
    others = replace(subjects, known=np.ones(len(subjects.names), bool), group=None)
    for other, model_hash, what in (
        (make_job(GENE, folder=tmp_path, n_steps=21), "model", "n_steps"),
        (make_job(GENE, folder=tmp_path, seed=1), "model", "seed"),
        (make_job("gene_05", folder=tmp_path), "model", "perturbations"),
        (make_job(GENE, folder=tmp_path, subjects=others), "model", "cells"),
        (make_job(GENE, folder=tmp_path), "other", "model"),
    ):
        with pytest.raises(ResumeError, match=f"{what} differ"):
            screen(other, model_hash=model_hash)
