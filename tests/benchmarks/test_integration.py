"""The task ``integration``: mosaics really lack what they lost, no label reaches a method, and known embeddings get known scores."""

from __future__ import annotations

from importlib.util import find_spec

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets_integration import (
    BATCH,
    INTEGRATION,
    SYNTHETIC,
    Source,
    asked_features,
    bare,
    mosaic,
    stratified_rows,
)
from benchmarks.methods import INTEGRATION as METHODS
from benchmarks.methods import make_integrator
from benchmarks.methods.integration import Block, block, clr, magnitudes, selected_genes, unit_blocks
from benchmarks.registry import Options
from benchmarks.tasks import integration as task
from benchmarks.tasks.integration import (
    TASK,
    as_given,
    embedding_scores,
    given_to,
    imputed_scores,
    integrate,
    mosaic_of,
    views,
)

NO_SCORES = {"integration_scores": lambda *_, **__: {}}


def _rna_and_peaks(n: int = 240) -> mudata.MuData:
    """Three types, each with genes and peaks of its own, two batches."""
    rng = np.random.default_rng(0)
    kind = np.arange(n) % 3
    mods = {}
    for name, width in {"rna": 45, "atac": 60}.items():
        rate = 0.3 + 2.0 * (np.arange(width)[None, :] // (width // 3) == kind[:, None])
        adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.int32)))
        adata.var_names = [f"{name}{i}" for i in range(width)]
        adata.obs_names = [f"c{i}" for i in range(n)]
        adata.obs["cell_type"], adata.obs["site"] = np.array(["a", "b", "c"])[kind], rng.choice(["x", "y"], n)
        mods[name] = adata
    mods["atac"].obs["site"] = mods["rna"].obs["site"]
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(mods)


PEAKS = Source(name="peaks", other="atac", batch_key="site", unlabelled=("c",), make=_rna_and_peaks)


@pytest.fixture
def without_scib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the scores that need scib-metrics, which have tests of their own."""
    monkeypatch.setattr(task.cx.metrics, "integration_scores", NO_SCORES["integration_scores"])


# --- cells ---


def test_methods_get_counts_and_batches_and_nothing_else():
    loaded = PEAKS.load(None)
    assert list(loaded.mdata.obs) == [BATCH]
    whole = _rna_and_peaks()
    for name, adata in loaded.mdata.mod.items():
        assert not list(adata.obs)
        assert not list(adata.var)
        np.testing.assert_array_equal(adata.X.toarray(), whole[name].X.toarray())
    assert loaded.mdata.obs[BATCH].astype(str).tolist() == whole["rna"].obs["site"].tolist()
    assert set(loaded.labels) == {"a", "b", ""}  # c means not known


@pytest.mark.parametrize("source", [SYNTHETIC, PEAKS], ids=lambda s: s.name)
def test_a_mosaic_lacks_what_it_lost(source):
    loaded = source.load(None)
    made, lost = mosaic(loaded.mdata)
    n = made.n_obs
    assert sorted(made.obs_names) == sorted(loaded.mdata.obs_names)
    assert {name: int((lost == name).sum()) for name in source.modalities} == dict.fromkeys(
        source.modalities, round(0.3 * n)
    )
    whole = loaded.mdata.obs[BATCH].astype(str)
    for i, cell in enumerate(made.obs_names):
        assert str(made.obs[BATCH].iloc[i]) == whole[cell]
        for name in source.modalities:
            row = int(made.obsmap[name][i])  # 0: absent, else the row plus 1
            assert (row == 0) == (lost[i] == name) == (cell not in made[name].obs_names)
            if row:
                assert made[name].obs_names[row - 1] == cell
                np.testing.assert_array_equal(made[name].X[row - 1].toarray(), loaded.mdata[name][cell].X.toarray())
    again, same = mosaic(loaded.mdata)
    assert list(again.obs_names) == list(made.obs_names)
    assert list(same) == list(lost)
    assert list(mosaic(loaded.mdata, seed=1)[1]) != list(lost)


def test_labels_and_batches_follow_the_cells_of_a_mosaic():
    loaded = PEAKS.load(None)
    problem, plain = mosaic_of(loaded), as_given(loaded)
    by_name = dict(zip(loaded.mdata.obs_names, zip(plain.labels, plain.batch, strict=True), strict=True))
    for cell, label, batch in zip(problem.mdata.obs_names, problem.labels, problem.batch, strict=True):
        assert by_name[cell] == (label, batch)
    assert (plain.lost == "").all()


def test_a_subsample_keeps_the_shares_of_groups():
    groups = np.repeat(["a", "b", "c"], [700, 200, 101])
    rows = stratified_rows(groups, 100)
    assert len(set(rows)) == 100
    assert (np.sort(rows) == rows).all()
    assert np.unique(groups[rows], return_counts=True)[1].tolist() == [70, 20, 10]


def test_features_asked_for_vary_most():
    adata = anndata.AnnData(sp.csr_matrix(np.array([[0, 5, 1, 3], [0, 5, 1, 0], [0, 5, 0, 9], [0, 5, 0, 0]])))
    adata.var_names = list("abcd")
    assert asked_features(adata, "atac", at_most=2) == ["c", "d"]  # open in half of the cells
    assert asked_features(adata, "prot", at_most=2) == list("abcd")
    logs = np.log1p(1e4 * adata.X.toarray() / adata.X.toarray().sum(axis=1, keepdims=True))
    assert asked_features(adata, "rna", at_most=1) == [adata.var_names[logs.var(axis=0).argmax()]]


# --- blocks ---


def test_clr_equals_a_plain_loop():
    counts = np.random.default_rng(0).poisson(3.0, (6, 5))
    for row, cell in zip(clr(sp.csr_matrix(counts)), counts, strict=True):
        g = np.prod(1.0 + cell) ** (1 / 5)
        np.testing.assert_allclose(row, [np.log1p(x / g) for x in cell])


def test_blocks_are_centred_and_have_one_variance():
    loaded = PEAKS.load(None)
    for name in ("rna", "atac"):
        np.testing.assert_allclose(block(loaded.mdata[name], name).mean(axis=0), 0, atol=1e-10)
    values = unit_blocks(loaded.mdata)
    n_genes = block(loaded.mdata["rna"], "rna").shape[1]
    for part in (values[:, :n_genes], values[:, n_genes:]):
        assert part.var(axis=0).sum() == pytest.approx(1)
    made, lost = mosaic(loaded.mdata)
    values = unit_blocks(made)
    n_genes = block(made["rna"], "rna").shape[1]
    assert not values[lost == "rna", :n_genes].any()
    assert values[lost == "atac", :n_genes].any(axis=1).all()


def test_genes_are_chosen_where_there_are_many():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1.0, size=(60, 2500)))
    counts[:, -5:] = 0
    kept = selected_genes(anndata.AnnData(sp.csr_matrix(counts)))
    assert kept.sum() == 2000
    assert not kept[-5:].any()  # no cell has them
    assert selected_genes(anndata.AnnData(sp.csr_matrix(counts[:, -900:]))).tolist() == [True] * 895 + [False] * 5


def test_tf_idf_equals_a_plain_loop_and_its_first_axis_is_left_out():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.2, 3.0, (60, 1)) * rng.uniform(0.1, 1.0, (1, 25)))
    counts[:, 3] = 0  # a peak that no cell has
    adata = anndata.AnnData(sp.csr_matrix(counts))
    learned = Block("atac", 5)
    values = learned.fit(adata)
    peaks = [j for j in range(25) if counts[:, j].any()]
    weighted = np.array(
        [[np.log1p(1e4 * cell[j] / max(cell.sum(), 1) * 60 / counts[:, j].sum()) for j in peaks] for cell in counts]
    )
    np.testing.assert_allclose(learned._tf_idf(adata).toarray(), weighted)
    left, strength, _ = np.linalg.svd(weighted, full_matrices=False)
    axes = (left * strength)[:, 1:6]
    axes = (axes - axes.mean(axis=0)) / axes.std(axis=0)
    np.testing.assert_allclose(np.abs(values), np.abs(axes), atol=1e-6)


@pytest.mark.parametrize("source", [SYNTHETIC, PEAKS], ids=lambda s: s.name)
def test_a_block_is_read_of_other_cells_as_it_was_learned(source):
    mdata = source.load(None).mdata
    for name, adata in mdata.mod.items():
        learned = Block(name, 5)
        whole = learned.fit(adata)
        np.testing.assert_allclose(learned.read(adata[10:20]), whole[10:20], atol=1e-8)


# --- methods ---


@pytest.mark.usefixtures("without_scib")
@pytest.mark.parametrize("method", [m for m, e in METHODS.items() if e.module.endswith(".integration")])
@pytest.mark.parametrize("source", [SYNTHETIC, PEAKS], ids=lambda s: s.name)
def test_baselines_place_every_cell(method, source):
    if not given_to(METHODS[method], source, "mosaic"):
        pytest.skip("reads another modality")
    problem = mosaic_of(source.load(None))
    one = make_integrator(METHODS[method], seed=0, quick=True)
    if hasattr(one, "tell"):
        one.tell(problem.labels)
    found = one.integrate(problem.mdata)
    if found is not None:
        assert len(found) == problem.mdata.n_obs
        assert np.isfinite(found).all()
    if hasattr(one, "impute"):
        for name in source.modalities:
            features = asked_features(problem.mdata[name], name)[:7]
            assert one.impute(name, features).shape == (problem.mdata.n_obs, 7)


@pytest.mark.usefixtures("without_scib")
def test_controls_bound_the_scores():
    problem = as_given(PEAKS.load(None))
    scores = {}
    for method in ("labels", "pca_concat", "shuffled"):
        one = make_integrator(METHODS[method], seed=0, quick=True)
        if method == "labels":
            one.tell(problem.labels)
        scores[method] = embedding_scores(problem, one.integrate(problem.mdata))["knn_macro_f1"]
    assert scores["labels"] == 1
    assert scores["pca_concat"] > 0.9
    assert 0.3 < scores["shuffled"] < 0.7  # two labels, equally common


def test_a_classifier_learns_of_other_batches_alone():
    """Labels of the batch that is asked for can be anything."""
    (measured,) = integrate(PEAKS, "paired", method="pca_concat_logistic", seed=0, options=Options(quick=True))
    assert set(measured.metrics) == {"knn_macro_f1", "knn_accuracy"}
    assert measured.metrics["knn_macro_f1"] > 0.9
    problem = as_given(PEAKS.load(None))
    mine = problem.batch == problem.batch[0]
    other = {"a": "b", "b": "a", "": ""}
    turned = np.where(mine, [other[name] for name in problem.labels], problem.labels)
    said = []
    for names in (problem.labels, turned):
        one = make_integrator(METHODS["pca_concat_logistic"], seed=0, quick=True)
        one.tell(names)
        assert one.integrate(problem.mdata) is None
        said.append(one.label(problem.batch))
    assert np.array_equal(said[0][mine], said[1][mine])
    assert not np.array_equal(said[0][~mine], said[1][~mine])


@pytest.mark.usefixtures("without_scib")
def test_correlation_finds_cells_by_the_other_modality():
    """Cells that lost RNA are labelled by cells that lost ATAC: the two share no feature."""
    problem = mosaic_of(PEAKS.load(None))
    found = {
        method: embedding_scores(problem, make_integrator(METHODS[method], seed=0, quick=True).integrate(problem.mdata))
        for method in ("cca", "pca_rna")
    }
    assert found["cca"]["cross_accuracy"] > 0.75
    assert found["pca_rna"]["cross_accuracy"] < 0.65


# --- scores ---


def test_imputation_is_scored_on_what_was_kept_back():
    problem = mosaic_of(PEAKS.load(None))
    features = {name: asked_features(problem.mdata[name], name) for name in ("rna", "atac")}
    truth = {
        name: magnitudes(problem.whole[name][problem.mdata.obs_names], name, features[name]).toarray()
        for name in features
    }
    found = imputed_scores(problem, truth, features)
    assert found["rna_pearson"] == pytest.approx(1)
    assert found["rna_rmse"] == 0
    assert (found["atac_auroc"], found["atac_pearson"]) == pytest.approx((1, 1))
    for name in features:  # what is said of cells that kept the modality does not count
        truth[name][problem.lost != name] = 0
    assert imputed_scores(problem, truth, features) == found


def test_views_are_of_cells_that_lost_a_modality_and_are_given_whole():
    problem = mosaic_of(PEAKS.load(None))

    class Spy:
        """Remembers what it is asked."""

        asked: list = []

        def embed_modality(self, mdata, modality):
            self.asked.append((modality, mdata))
            return mdata[modality].X.toarray().sum(axis=1, keepdims=True)

    first, second = views(problem, Spy())
    assert [modality for modality, _ in Spy.asked] == ["rna", "atac"]
    names = problem.mdata.obs_names[problem.lost != ""]
    for _, mdata in Spy.asked:
        assert list(mdata.obs_names) == list(names)
        assert list(mdata.obs) == [BATCH]
        assert all(list(adata.obs_names) == list(names) for adata in mdata.mod.values())
    np.testing.assert_array_equal(first[:, 0], problem.whole["rna"][names].X.toarray().sum(axis=1))
    np.testing.assert_array_equal(second[:, 0], problem.whole["atac"][names].X.toarray().sum(axis=1))


@pytest.mark.usefixtures("without_scib")
def test_a_case_measures_an_imputer_and_an_embedding():
    (measured,) = integrate(PEAKS, "mosaic", method="impute_ridge", seed=0, options=Options(quick=True))
    assert {"rna_pearson", "rna_rmse", "atac_auroc", "atac_pearson"} <= set(measured.metrics)
    assert measured.metrics["rna_pearson"] > 0.2
    assert measured.metrics["atac_auroc"] > 0.6
    (measured,) = integrate(PEAKS, "mosaic", method="cca", seed=0, options=Options(quick=True))
    assert set(measured.metrics) == {"knn_macro_f1", "knn_accuracy", "cross_macro_f1", "cross_accuracy", "foscttm"}
    assert measured.metrics["foscttm"] < 0.47
    assert measured.seconds > 0


@pytest.mark.slow
@pytest.mark.usefixtures("without_scib")
def test_ours_runs_without_integrate():
    for split in ("paired", "mosaic"):
        (measured,) = integrate(SYNTHETIC, split, method="cellxpert-nano-latent", seed=0, options=Options(quick=True))
        assert 0 <= measured.metrics["knn_accuracy"] <= 1
        assert ("foscttm" in measured.metrics) == (split == "mosaic")


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("scib_metrics") is None, reason="scib-metrics is not installed (group benchmark-integration)"
)
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_a_whole_case():
    (measured,) = integrate(SYNTHETIC, "paired", method="labels", seed=0, options=Options(quick=True))
    assert measured.metrics["bio"] > 0.9
    assert measured.metrics["kmeans_nmi"] == pytest.approx(1)
    assert measured.metrics["batch"] > 0.7


# --- cases, report ---


def test_cases_give_methods_what_they_read():
    cases = list(TASK.cases(Options()))
    assert len({case.key for case in cases}) == len(cases)
    seeds = {case.method: {c.seed for c in cases if c.method == case.method} for case in cases}
    assert {m for m, s in seeds.items() if s == {0, 1, 2}} == {m for m, entry in METHODS.items() if entry.seeded}
    assert {m for m, s in seeds.items() if s == {0}} == {m for m, entry in METHODS.items() if not entry.seeded}
    keys = {(case.data, case.split, case.method) for case in cases}
    for name, source in INTEGRATION.items():
        splits = {split for data, split, _ in keys if data == name}
        assert splits == ({"rna-only"} if source.other is None else {"paired", "mosaic"})
        for split in splits:
            methods = {m for data, s, m in keys if (data, s) == (name, split)}
            assert {"pca_rna", "scvi", "shuffled", "labels", "cellxpert-nano", "cellxpert-nano-latent"} <= methods
            assert ("totalvi" in methods) == ("pca_protein" in methods) == (source.other == "prot")
            assert ("multivi" in methods) == ("pca_atac" in methods) == (source.other == "atac")
            assert ("wnn" in methods) == (source.other is not None)
            assert ("harmony_rna" in methods) == (source.batch_key is not None)
            assert ("impute_ridge" in methods) == (split == "mosaic")
    assert all(case.missing for case in cases)  # no folder was named


def test_report_and_plot(tmp_path):
    rows = [
        {
            "method": method,
            "data": "toy",
            "split": split,
            "seed": 0,
            "metric": metric,
            "value": v,
            "seconds": 1.0,
            "mib": 9.0,
        }
        for method, v in (("pca_rna", 0.7), ("cellxpert-nano", 0.8))
        for split, metrics in {
            "paired": ["bio", "batch", "total"],
            "mosaic": ["bio", "foscttm", "prot_pearson"],
        }.items()
        for metric in metrics
    ]
    rows.append(rows[-1] | {"method": "impute_mean", "metric": "prot_pearson", "value": 0.9})
    rows.append(rows[0] | {"method": "pca_concat_logistic", "metric": "knn_macro_f1", "value": 0.3})
    text = TASK.report(pd.DataFrame(rows))
    assert "| `pca_concat_logistic` | – | – | – | **0.300** |" in text  # it has no space, and labels all the same
    assert "## toy, paired" in text
    assert text.index("impute_mean") > text.index("Values of a modality")
    assert "**0.900**" in text
    assert "| `pca_rna` | 0.700 | **0.700** | – | 1.0 |" in text  # foscttm: less is better
    (picture,) = TASK.plot(pd.DataFrame(rows), tmp_path / "integration")
    assert picture.exists()


def test_bare_pairs_batches_by_name():
    whole = _rna_and_peaks(12)
    batch = pd.Series([f"b{i}" for i in range(12)], index=[f"c{i}" for i in range(12)])[::-1]
    made = bare({"rna": whole["rna"][4:]}, batch)
    assert made.obs[BATCH].astype(str).tolist() == [f"b{i}" for i in range(4, 12)]


def test_real_sets_are_read_as_described(real_data):
    expected = {
        "scicar_kidney_554": (554, 441, 2),
        "kang2018_ifnb_2000x9015": (2000, 1013, 2),
        "pancreas_2protocols_2307x8634": (2307, 2307, 2),
    }
    for name, (n_cells, n_labelled, n_batches) in expected.items():
        loaded = INTEGRATION[name].load(real_data)
        assert (loaded.mdata.n_obs, int((loaded.labels != "").sum())) == (n_cells, n_labelled)
        assert loaded.mdata.obs[BATCH].nunique() == n_batches
