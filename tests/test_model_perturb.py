"""``model.perturb`` as users call it: objects of all kinds, what is written, files, plots."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import matplotlib
import mudata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData, set_options

import cellxpert as cx
from cellxpert.errors import (
    CellxPertWarning,
    ConfigError,
    ControlError,
    FewCellsError,
    GeneError,
    InterventionError,
    NotTrainedError,
    ObsKeyError,
    ResumeError,
    ViewError,
)

GENE, PAIR = "gene_00", "gene_01+gene_06"
SMALL = cx.config.SteeringConfig(n_cells=12, n_movable=8, min_cells=5)


def perturb(model, genes=GENE, n_steps=20, **more):
    given = {"steering": SMALL, "n_chains": 2, "progress_bar": False} | more
    return model.perturb(genes, n_steps, **given)


@pytest.fixture
def rna(knockouts: MuData) -> ad.AnnData:
    """The cells' RNA as a plain AnnData."""
    return knockouts["rna"].copy()


def effects(result):
    return result.table.set_index(["perturbation", "group", "variable"])["effect"]


# --- objects -----------------------------------------------------------------------------------------------------------


def test_an_object_and_its_copy_agree(screened, knockouts):
    """The model's own object keeps cells apart that were not trained on; what is predicted is the same."""
    own = perturb(screened, inplace=False)
    other = perturb(screened, mdata=knockouts, inplace=False)
    assert own.cells == other.cells
    assert effects(own).equals(effects(other))
    assert isinstance(own, cx.PerturbResult)


def test_an_anndata_of_its_rna_has_no_proteins(screened, rna):
    result = perturb(screened, mdata=rna, inplace=False)
    assert result.cells == {(GENE, "all"): list(result.cells[GENE, "all"])}
    assert set(result.cells[GENE, "all"]) <= set(rna.obs_names[rna.obs["perturbation"] == "control"])
    assert effects(result).notna().all()


def test_a_view_a_permutation_and_a_file_are_the_same_cells(screened, rna, tmp_path):
    expected = effects(perturb(screened, mdata=rna, inplace=False))
    genes = np.random.default_rng(0).permutation(rna.n_vars)
    rna.write_h5ad(tmp_path / "x.h5ad")
    for other in (rna[:, genes].copy(), rna[:], ad.read_h5ad(tmp_path / "x.h5ad", backed="r")):
        assert effects(perturb(screened, mdata=other, inplace=False)).equals(expected)


def test_cells_of_unknown_condition_are_all_control(screened, rna):
    del rna.obs["perturbation"]
    result = perturb(screened, mdata=rna, inplace=False)
    assert not set(result.cells[GENE, "all"]) <= set(perturb(screened, inplace=False).cells[GENE, "all"])
    assert set(result.baselines["baseline"]) == {"no_change", "gauss_conditional"}


def test_perturbations_travel_with_the_model(screened, knockouts, tmp_path):
    screened.save(tmp_path / "model")
    model = cx.CellxPert.load(tmp_path / "model", knockouts)
    one, other = perturb(model, [GENE, PAIR], inplace=False), perturb(screened, [GENE, PAIR], inplace=False)
    assert effects(one).equals(effects(other))
    assert one.conditions["seen"].all()
    with pytest.warns(CellxPertWarning, match="converged"):
        anchored = perturb(model, target="anchored", inplace=False)
    assert anchored.conditions["target"].tolist() == ["anchored"]
    alone = cx.CellxPert.load(tmp_path / "model")
    assert effects(perturb(alone, [GENE, PAIR], mdata=knockouts, inplace=False)).equals(effects(one))
    with pytest.raises(NotTrainedError, match="mdata"):
        perturb(alone)


def test_a_model_that_saw_no_perturbed_cells(trained, pbmc):
    rna = pbmc["rna"].copy()
    genes = list(trained._state.vocabulary.names)
    expressed = np.asarray((rna[:, genes].X > 0).mean(axis=0)).ravel()
    gene = genes[int(expressed.argmax())]
    result = perturb(trained, gene, mdata=rna, inplace=False)
    assert result.conditions["target"].tolist() == ["zero-shot"]
    assert not result.conditions[["seen", "trained_on_perturbations"]].any().any()
    assert set(result.baselines["baseline"]) == {"no_change", "gauss_conditional"}
    with pytest.raises(ControlError, match="zero-shot"):
        perturb(trained, gene, mdata=rna, target="learned", inplace=False)


def test_groups(screened, knockouts):
    result = perturb(screened, [GENE, PAIR], mdata=knockouts, groupby="cell_type", inplace=False)
    assert result.conditions[["perturbation", "group"]].to_numpy().tolist() == [
        [p, g] for g in ("type_0", "type_1") for p in (GENE, PAIR)
    ]
    for (_, group), cells in result.cells.items():
        assert set(knockouts.obs.loc[list(cells), "cell_type"]) == {group}


# --- what is written ---------------------------------------------------------------------------------------------------


def names_in(nested, found=()):
    """All keys of nested dictionaries."""
    for key, value in nested.items():
        found = (*found, key)
        if isinstance(value, dict):
            found = names_in(value, found)
    return found


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")  # anndata announces its next default
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_an_anndata_is_written_and_read_again(screened, rna, tmp_path, suffix):
    result = perturb(screened, mdata=rna)
    assert rna.layers["cellxpert_perturbed"].shape == rna.shape
    getattr(rna, f"write_{suffix}")(tmp_path / f"x.{suffix}")
    again = getattr(ad, f"read_{suffix}")(tmp_path / f"x.{suffix}")
    cells = list(result.cells[GENE, "all"])
    layer = pd.DataFrame(again.layers["cellxpert_perturbed"], index=again.obs_names, columns=again.var_names)
    assert np.array_equal(layer.loc[cells, list(result.genes)], result.expression[GENE, "all"]["perturbed"])
    assert layer.drop(index=cells).isna().all().all()
    vectors = pd.DataFrame(again.obsm["X_cellxpert_perturbed"], index=again.obs_names)
    assert np.array_equal(vectors.loc[cells], result.latent[GENE, "all"]["perturbed"])
    entry = again.uns["cellxpert_info"]["perturb"]["cellxpert_perturbed"]
    for name in ("table", "conditions", "baselines"):
        assert entry[name].shape == getattr(result, name).shape
    assert entry["table"]["effect"].tolist() == result.table["effect"].tolist()
    assert entry["weights_hash"]
    keys = names_in(rna.uns["cellxpert_info"])
    assert not {GENE, "type_0", *result.perturbations} & set(keys)


def test_a_mudata_is_written_and_read_again(screened, knockouts, tmp_path):
    """Names that no path may hold are values only."""
    cells = knockouts.obs["cell_type"].astype(str).replace({"type_0": "T cells/CD8+", "type_1": "β"})
    knockouts.obs["kind"] = cells
    for adata in knockouts.mod.values():
        adata.obs["kind"] = cells[adata.obs_names]
    result = perturb(screened, [GENE, PAIR], mdata=knockouts, groupby="kind", key_added="a/b")
    assert set(result.conditions["group"]) == {"T cells/CD8+", "β"}
    with set_options(pull_on_update=False):
        knockouts.write_h5mu(tmp_path / "x.h5mu")
        again = mudata.read_h5mu(tmp_path / "x.h5mu")
    entry = again.uns["cellxpert_info"]["perturb"]["a_b"]
    assert entry["table"]["effect"].tolist() == result.table["effect"].tolist()
    assert list(entry["genes"]) == [GENE, PAIR]
    assert not any("/" in k or "+" in k for k in names_in(knockouts.uns["cellxpert_info"]))
    assert not again["rna"].layers.keys()
    with set_options(pull_on_update=False):
        perturb(screened, mdata=again)
        again.write_h5mu(tmp_path / "y.h5mu")
        last = mudata.read_h5mu(tmp_path / "y.h5mu")
    assert np.isfinite(last["rna"].layers["cellxpert_perturbed"]).any(axis=1).sum() == 12
    assert last.obsm["X_cellxpert_perturbed"].shape == (500, 64)


def test_inplace_false_writes_nothing(screened, knockouts):
    before = {m: (list(a.layers), list(a.obsm), list(a.uns), list(a.obs)) for m, a in knockouts.mod.items()}
    x = knockouts["rna"].X.copy()
    perturb(screened, mdata=knockouts, inplace=False)
    after = {m: (list(a.layers), list(a.obsm), list(a.uns), list(a.obs)) for m, a in knockouts.mod.items()}
    assert after == before
    assert list(knockouts.uns) == ["truth"]
    assert not knockouts.obsm.keys() - {"rna", "protein"}
    assert (x != knockouts["rna"].X).nnz == 0


def test_views_are_refused_before_anything_is_computed(screened, rna, monkeypatch):
    monkeypatch.setattr("cellxpert.model.screen", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ViewError, match="perturb"):
        perturb(screened, mdata=rna[:200])


# --- refusals and warnings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"genes": "gene_0O"}, GeneError, "did you mean"),
        ({"genes": []}, InterventionError, "name at least one gene"),
        ({"genes": {GENE: ("fold", -1.0)}}, InterventionError, "use 'knockout'"),
        ({"genes": {GENE: ("knockdown", float("nan"))}}, InterventionError, "use 'knockout'"),
        ({"genes": {GENE: ("knockout", "overexpression")}}, InterventionError, "use 'knockout'"),
        ({"genes": f"{GENE}+{GENE}"}, InterventionError, "once"),
        ({"n_steps": 0}, InterventionError, "1 to 1,000,000"),
        ({"n_steps": 10**9}, InterventionError, "1 to 1,000,000"),
        ({"n_chains": 0}, InterventionError, "at least 1"),
        ({"groupby": "celltype"}, ObsKeyError, "did you mean 'cell_type'"),
        ({"steering": cx.config.SteeringConfig(min_cells=100_000)}, FewCellsError, "min_cells="),
        ({"steering": cx.config.SteeringConfig(kernel="ancestral"), "target": "anchored"}, ConfigError, "kernel='auto'"),
    ],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_bad_inputs_are_refused(screened, arguments, kind, words):
    with pytest.raises(kind) as caught:
        perturb(screened, inplace=False, **arguments)
    assert f"Fix: {words}" in str(caught.value) or words in str(caught.value).split("Fix: ")[1]
    assert caught.value.code in str(caught.value)


def test_an_object_without_control_cells(screened, rna):
    treated = rna[rna.obs["perturbation"] != "control"].copy()
    with pytest.raises(ControlError, match="control"):
        perturb(screened, mdata=treated, inplace=False)


def test_an_untrained_model(knockouts):
    cx.CellxPert.setup_mudata(knockouts, rna="rna", protein="protein", perturbation_key="perturbation")
    with pytest.raises(NotTrainedError):
        cx.CellxPert(knockouts, preset="nano").perturb(GENE)


def test_silent_genes_are_told(screened, rna):
    rna.X = rna.X.multiply(rna.var_names != GENE).tocsr()
    with pytest.warns(CellxPertWarning, match=r"perturb: genes of \['gene_00'\] are not expressed") as caught:
        result = perturb(screened, mdata=rna, inplace=False)
    assert result.conditions["silent"].tolist() == [True]
    assert {w.filename for w in caught if "perturb:" in str(w.message)} == {__file__}


def test_chains_that_have_not_converged_are_told(screened):
    with pytest.warns(CellxPertWarning, match="have not converged.*raise n_steps"):
        result = perturb(screened, target="anchored", n_steps=8, inplace=False)
    assert not result.conditions["converged"].any()
    assert not result.table["converged"].any()  # so its p values say
    assert result.conditions["r_hat"].item() > 1.01


def test_quiet_where_there_is_nothing_to_tell(screened):
    with warnings.catch_warnings(action="error"):
        assert perturb(screened, inplace=False).doubts == ()


# --- resuming ----------------------------------------------------------------------------------------------------------


def test_a_screen_resumes(screened, tmp_path, monkeypatch):
    genes = [GENE, "gene_05"]
    whole = perturb(screened, genes, inplace=False)
    folder = tmp_path / "screen"
    first = perturb(screened, genes, inplace=False, resume=folder)
    (folder / "condition-00001-000.json").unlink()  # as if it had been interrupted
    again = perturb(screened, genes, inplace=False, resume=str(folder))
    for result in (first, again):
        for name in ("table", "conditions", "baselines", "trajectory"):
            pd.testing.assert_frame_equal(getattr(result, name), getattr(whole, name), check_exact=True)
    with pytest.raises(ResumeError, match="perturbations differ"):
        perturb(screened, [*genes, PAIR], inplace=False, resume=folder)
    with pytest.raises(ResumeError, match="settings differ"):
        perturb(screened, genes, inplace=False, resume=folder, steering=cx.config.SteeringConfig(n_cells=12))
    assert json.loads((folder / "screen.json").read_text())["seed"] == 0


# --- use ---------------------------------------------------------------------------------------------------------------


def test_seeds_are_the_models_by_default(screened):
    one, other = perturb(screened, inplace=False), perturb(screened, inplace=False, seed=screened._seed)
    assert effects(one).equals(effects(other))
    assert not effects(one).equals(effects(perturb(screened, inplace=False, seed=7)))


def test_genes_that_nobody_perturbed_follow_their_embedding(screened):
    targets = list(screened._state.perturbations.targets)
    embedding = pd.DataFrame(np.random.default_rng(0).normal(size=(len(targets), 4)), index=targets)
    embedding.loc["new"] = embedding.loc[GENE]
    result = perturb(screened, ["new", GENE], target_embedding=embedding, inplace=False)
    assert result.conditions["seen"].tolist() == [False, True]
    assert np.isfinite(result.effects()).all().all()
    with pytest.raises(GeneError, match="new"):
        perturb(screened, "new", inplace=False)


def test_plots_of_a_result(screened, tmp_path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings(action="ignore", category=CellxPertWarning):
        result = perturb(screened, [GENE, "gene_05", PAIR], inplace=False)
        anchored = perturb(screened, GENE, target="anchored", inplace=False)
    try:
        for one, name in ((result, GENE), (result, PAIR), (anchored, GENE)):
            for plot in (cx.pl.volcano, cx.pl.top_genes, cx.pl.trace, cx.pl.trajectory):
                assert plot(one, name) is not None
        assert cx.pl.similarity(result) is not None
    finally:
        pyplot.close("all")


# --- what a prediction must not depend on -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["zero-shot", "learned"])
def test_genes_of_a_screen_respond_to_one_another(screened, target):
    """In a zero-shot screen other genes were once held as well, so that they could not."""
    genes = ["gene_00", "gene_05", "gene_09"]
    together = perturb(screened, genes, target=target, inplace=False).table
    off = together[together["variable"].isin(genes) & ~together["is_target"]]
    assert (off["effect"] != 0).all()
    if target == "zero-shot":  # each has its own null there, and so is what it is alone
        for gene in genes:
            alone = perturb(screened, gene, target=target, inplace=False).table
            pd.testing.assert_frame_equal(
                together[together["perturbation"] == gene].reset_index(drop=True), alone, check_exact=True
            )


@pytest.mark.filterwarnings("ignore:perturb. chains")
def test_the_null_of_anchored_chains_is_the_models_own_law(screened):
    """Without the model's part, chains that nothing steers are uniform: no cells to compare with."""
    nulls = {}
    for name, more in {"own": {}, "weight": {"weight": 0.0}, "part": {"part": "none"}}.items():
        settings = cx.config.SteeringConfig(n_cells=12, n_movable=8, min_cells=5, kernel="block", kappa=0.05, **more)
        result = perturb(screened, target="anchored", steering=settings, inplace=False)
        nulls[name] = result.table["null_effect"]
    assert nulls["weight"].equals(nulls["own"])
    assert nulls["part"].equals(nulls["own"])


@pytest.mark.filterwarnings("ignore:perturb. chains")
def test_every_kernel_heeds_the_weight(screened):
    found = [
        perturb(
            screened,
            target="anchored",
            steering=cx.config.SteeringConfig(
                n_cells=12, n_movable=8, min_cells=5, kernel="suffix", kappa=0.05, weight=weight
            ),
            inplace=False,
        )
        for weight in (1.0, 0.5)
    ]
    assert not effects(found[0]).equals(effects(found[1]))
    assert found[0].table["null_effect"].equals(found[1].table["null_effect"])


def test_an_effect_is_small_where_the_dose_is(screened):
    sizes = {}
    for fold in (0.0, 0.5, 0.999, 1.0, 1.001):
        table = perturb(screened, {GENE: ("fold", fold)}, inplace=False).table
        sizes[fold] = table.loc[~table["is_target"], "effect"].abs().mean()
    assert sizes[1.0] == 0
    assert sizes[0.999] < 0.01 * sizes[0.0]
    assert sizes[1.001] < 0.01 * sizes[0.0]
    assert sizes[0.999] < sizes[0.5] < sizes[0.0]


def test_what_is_known_of_another_dose_is_no_baseline(screened):
    usual = {"no_change", "gauss_conditional", "perturbed_mean", "linear"}
    assert set(perturb(screened, inplace=False).baselines["baseline"]) == usual
    assert set(perturb(screened, {GENE: ("fold", 0)}, inplace=False).baselines["baseline"]) == usual
    other = perturb(screened, {GENE: "overexpression"}, inplace=False).baselines
    assert set(other["baseline"]) == {"no_change", "gauss_conditional"}


def test_a_bin_is_held_at_its_level_in_baselines_too(screened):
    settings = cx.config.SteeringConfig(n_cells=12, n_movable=8, min_cells=5, target_sum=1e6)
    result = perturb(screened, {GENE: ("bin", 30)}, target="zero-shot", steering=settings, inplace=False)
    mine = result.baselines[result.baselines["variable"] == GENE].set_index("baseline")["effect"]
    assert mine["gauss_conditional"] > 1


def test_few_perturbed_cells_are_no_anchors(screened, rna):
    own = np.flatnonzero(rna.obs["perturbation"] == GENE)
    few = rna[np.setdiff1d(np.arange(rna.n_obs), own[3:])].copy()
    with pytest.raises(FewCellsError, match="3 training cells of this condition"):
        perturb(screened, mdata=few, target="anchored", inplace=False)


# --- names and files of others ------------------------------------------------------------------------------------------


def test_layers_of_the_user_are_not_overwritten(screened, rna):
    rna.layers["counts"], rna.layers["mine"] = rna.X.copy(), rna.X.copy()
    cx.CellxPert.setup_anndata(rna, layer="counts", perturbation_key="perturbation")
    before = {name: rna.layers[name].copy() for name in ("counts", "mine")}
    for name in before:
        with pytest.raises(ConfigError, match="layers of .* that hold something else"):
            perturb(screened, mdata=rna, key_added=name)
        assert (rna.layers[name] != before[name]).nnz == 0
    perturb(screened, mdata=rna, key_added="out")
    perturb(screened, mdata=rna, key_added="out")  # its own is written again


def test_arrays_of_the_user_are_not_overwritten(screened, rna):
    rna.obsm["X_pca"] = np.ones((rna.n_obs, 2))
    with pytest.raises(ConfigError, match=r"obsm\['X_pca'\], which holds something else"):
        perturb(screened, mdata=rna, key_added="pca")
    assert (rna.obsm["X_pca"] == 1).all()
    assert "pca" not in rna.layers


@pytest.mark.filterwarnings("ignore:perturb. chains")
def test_a_loaded_model_goes_on_with_a_screen(screened, tmp_path):
    """It knows which cells it was trained on, whose anchors and baselines these are, in whatever order they are."""
    genes, folder = [GENE, "gene_05"], tmp_path / "screen"
    first = perturb(screened, genes, inplace=False, resume=folder)
    screened.save(tmp_path / "model")
    with set_options(pull_on_update=False):
        copy = screened._data.copy()
    loaded = cx.CellxPert.load(tmp_path / "model", copy)
    again = perturb(loaded, genes, inplace=False, resume=folder)
    pd.testing.assert_frame_equal(again.table, first.table)
    anchored = [perturb(m, target="anchored", inplace=False).table for m in (screened, loaded)]
    pd.testing.assert_frame_equal(*anchored, check_exact=True)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_damaged_condition_is_done_again(screened, tmp_path, suffix):
    first = perturb(screened, inplace=False, resume=tmp_path)
    (file,) = tmp_path.glob(f"condition-*{suffix}")
    file.write_bytes(file.read_bytes()[:40])
    again = perturb(screened, inplace=False, resume=tmp_path)
    pd.testing.assert_frame_equal(again.table, first.table)
    (tmp_path / "screen.json").write_text("{")
    with pytest.raises(ResumeError, match="screen.json, which says of which screen it is, is damaged"):
        perturb(screened, inplace=False, resume=tmp_path)


def test_records_say_who_could_not_respond_and_of_which_groups(screened, rna):
    perturb(screened, mdata=rna, regulators={GENE: ["gene_03", "gene_02"]}, groupby="cell_type", key_added="held")
    entry = rna.uns["cellxpert_info"]["perturb"]["held"]
    assert entry["regulators"].values.tolist() == [[GENE, "gene_02"], [GENE, "gene_03"]]
    assert entry["groupby"] == "cell_type"
    assert entry["target_embedding"] is False


def test_a_table_of_regulators_gives_what_its_mapping_gives(screened, rna, tmp_path):
    """The same results and the same record; a screen begun with one goes on with the other."""
    names = ["gene_03", "gene_02", "unknown"]
    table = pd.DataFrame({"source": [*names, GENE], "target": GENE, "weight": [1, -1, 0.5, 1]})
    first = perturb(screened, mdata=rna, regulators={GENE: names}, key_added="mapping", resume=tmp_path)
    (file,) = tmp_path.glob("condition-*.json")
    written = file.stat().st_mtime_ns
    kept = perturb(screened, mdata=rna, regulators=table, inplace=False, resume=tmp_path)
    assert file.stat().st_mtime_ns == written
    anew = perturb(screened, mdata=rna, regulators=table, key_added="table")
    for again in (kept, anew):
        pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    entries = rna.uns["cellxpert_info"]["perturb"]
    pd.testing.assert_frame_equal(entries["table"]["regulators"], entries["mapping"]["regulators"])


def test_chains_say_how_far_they_differ(screened):
    result = perturb(screened, n_chains=3, inplace=False)
    table, draws = result.table.set_index("variable"), result.draws[GENE, "all"]
    expected = draws["effect"].mean(axis=1).std(axis=0, ddof=1) / np.sqrt(3)
    here = np.isin(draws["genes"], table.index)  # proteins move too, and are in no table of genes
    np.testing.assert_allclose(table.loc[draws["genes"][here], "se_chains"].to_numpy(), expected[here])
    assert table.loc[~table["is_movable"], "se_chains"].isna().all()
