from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from cellxpert import metrics
from cellxpert.errors import MetricError
from cellxpert.metrics import baselines


def effects(n: int = 8, n_genes: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, n_genes))


def control(n: int = 60, n_genes: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.log1p(rng.poisson(np.exp(rng.normal(0, 0.7, (n, 1))) * np.linspace(0.3, 3, n_genes)))


# --- constants and sums ---


def test_constant_predictions():
    cells = control()
    for form in (np.asarray, sp.csr_matrix):
        np.testing.assert_allclose(baselines.control_mean(form(cells), n_conditions=3), [cells.mean(axis=0)] * 3)
    means = np.array([[1.0, 2.0], [3.0, 6.0]])
    np.testing.assert_allclose(baselines.perturbed_mean(means, n_conditions=2), [[2.0, 4.0]] * 2)


def test_additive_against_a_loop():
    singles, combinations = ["A", "B", "C"], ["A+B", "C+unknown", "unknown+other", "A+B+C"]
    delta = effects(3)
    parts = metrics.target_mask(combinations, singles)
    total, mean = baselines.additive(delta, parts_QT=parts), baselines.additive(delta, parts_QT=parts, mean=True)
    for row, combination in enumerate(combinations):
        known = [delta[singles.index(t)] for t in combination.split("+") if t in singles] or [np.zeros(12)]
        np.testing.assert_allclose(total[row], np.sum(known, axis=0), atol=1e-12)
        np.testing.assert_allclose(mean[row], np.mean(known, axis=0), atol=1e-12)
    with pytest.raises(MetricError, match="parts_QT"):
        baselines.additive(delta, parts_QT=parts[:, :2])


# --- the linear model ---


def test_principal_genes_equal_scikit_learns():
    means = effects(6, 40)
    got = baselines.principal_genes(means, n_components=4)
    expected = PCA(4, svd_solver="full").fit_transform(means.T)
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-10)
    np.testing.assert_allclose(got.T @ got, expected.T @ expected * np.eye(4), atol=1e-9)
    assert all(column[np.abs(column).argmax()] > 0 for column in got.T)
    with pytest.raises(MetricError, match="ask for fewer"):
        baselines.principal_genes(means, n_components=7)


def test_linear_equals_the_published_formula():
    """Genes x conditions, inverses spelt out, control as a condition of zeros."""
    rng = np.random.default_rng(1)
    targets, query = rng.normal(size=(8, 3)), rng.normal(size=(4, 3))
    delta = np.vstack([effects(), np.zeros(12)])
    genes = rng.normal(size=(12, 5))
    y, p = delta.T, np.vstack([targets, np.zeros(3)]).T
    centre = y.mean(axis=1, keepdims=True)
    k = np.linalg.inv(genes.T @ genes + 0.1 * np.eye(5)) @ genes.T @ (y - centre)
    k = k @ p.T @ np.linalg.inv(p @ p.T + 0.1 * np.eye(3))
    expected = (genes @ k @ query.T + centre).T
    got = baselines.linear(delta, gene_embedding_GD=genes, target_embedding_TD=p.T, query_embedding_QD=query)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_linear_recovers_a_bilinear_truth():
    rng = np.random.default_rng(2)
    genes, targets, core = rng.normal(size=(30, 4)), rng.normal(size=(20, 3)), rng.normal(size=(4, 3))
    targets -= targets.mean(axis=0)
    query, mean = rng.normal(size=(5, 3)), rng.normal(size=30)
    got = baselines.linear(
        targets @ core.T @ genes.T + mean,
        gene_embedding_GD=genes,
        target_embedding_TD=targets,
        query_embedding_QD=query,
        ridge=1e-9,
    )
    np.testing.assert_allclose(got, query @ core.T @ genes.T + mean, atol=1e-6)


def test_linear_gives_the_mean_effect_to_unknown_targets():
    rng = np.random.default_rng(3)
    embeddings = {"gene_embedding_GD": rng.normal(size=(12, 4)), "target_embedding_TD": rng.normal(size=(8, 2))}
    got = baselines.linear(effects(), **embeddings, query_embedding_QD=np.zeros((2, 2)))
    np.testing.assert_allclose(got, [effects().mean(axis=0)] * 2)
    with pytest.raises(MetricError, match="every gene"):
        baselines.linear(effects(n_genes=11), **embeddings, query_embedding_QD=np.zeros((2, 2)))
    with pytest.raises(MetricError, match="same dimensions"):
        baselines.linear(effects(), **embeddings, query_embedding_QD=np.zeros((2, 3)))
    with pytest.raises(MetricError, match="ridge"):
        baselines.linear(effects(), **embeddings, query_embedding_QD=np.zeros((2, 2)), ridge=0)


# --- neighbours ---


def test_knn_against_a_loop():
    rng = np.random.default_rng(4)
    targets, query, delta = rng.normal(size=(8, 3)), rng.normal(size=(5, 3)), effects()
    got = baselines.knn(delta, target_embedding_TD=targets, query_embedding_QD=query, n_neighbors=3)
    for q in range(5):
        cosine = [t @ query[q] / np.linalg.norm(t) / np.linalg.norm(query[q]) for t in targets]
        nearest = [t for t in sorted(range(8), key=lambda t: -cosine[t])[:3] if cosine[t] > 0]
        expected = sum(cosine[t] * delta[t] for t in nearest) / sum(cosine[t] for t in nearest)
        np.testing.assert_allclose(got[q], expected)


def test_knn_shrinks_what_is_little_known():
    delta, targets = effects(3), np.eye(3)
    query = np.array([[0.3, 0.4, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.1, 0.0, -1.0]])
    got = baselines.knn(delta, target_embedding_TD=targets, query_embedding_QD=query, shrink=True)
    sure = baselines.knn(delta, target_embedding_TD=targets, query_embedding_QD=query)
    np.testing.assert_allclose(got[:2], sure[:2])  # similarities 0.6 + 0.8, and 3 x 0.577: above 1
    np.testing.assert_array_equal(got[2], np.zeros(12))
    np.testing.assert_allclose(got[3], sure[3] * 0.1 / np.sqrt(1.01))


def test_knn_without_neighbours_gives_the_mean_effect():
    got = baselines.knn(
        effects(2), target_embedding_TD=[[1.0, 0.0], [1.0, 0.0]], query_embedding_QD=[[0.0, 1.0], [0.0, 0.0], [-1.0, 0]]
    )
    np.testing.assert_allclose(got, [effects(2).mean(axis=0)] * 3)
    with pytest.raises(MetricError, match="n_neighbors"):
        baselines.knn(effects(1), target_embedding_TD=[[1.0]], query_embedding_QD=[[1.0]], n_neighbors=0)


# --- from control cells alone ---


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_gauss_conditional_is_the_regression_on_the_targets(form):
    cells = control()
    clamped = np.array([[0, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=bool)
    value = np.array([0.0, 0.0, 0.5, 1.0, 0.0])
    got = baselines.gauss_conditional(form(cells), clamped_QG=clamped, value=value)
    for row, mask in zip(got[:2], clamped, strict=False):
        design = np.column_stack([np.ones(len(cells)), cells[:, mask]])
        coefficients = np.linalg.lstsq(design, cells, rcond=None)[0]
        expected = np.concatenate([[1.0], value[mask]]) @ coefficients - cells.mean(axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-10)
        np.testing.assert_allclose(row[mask], value[mask] - cells.mean(axis=0)[mask], atol=1e-10)
    np.testing.assert_array_equal(got[2], np.zeros(5))


def test_gauss_conditional_of_a_gene_that_does_not_vary():
    cells = control()
    cells[:, 1] = 0
    clamped = np.array([[False, True, False, False, False]])
    np.testing.assert_array_equal(baselines.gauss_conditional(cells, clamped_QG=clamped), np.zeros((1, 5)))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("highest", [False, True])
def test_control_stratified_against_a_loop(form, highest):
    cells = control()
    clamped = np.eye(5, dtype=bool)[[4, 0]]
    got = baselines.control_stratified(form(cells), clamped_QG=clamped, quantile=0.25, highest=highest)
    for row, gene in zip(got, [4, 0], strict=True):
        ranked = sorted(cells[:, gene], reverse=highest)
        last = ranked[14]  # 25 % of 60 cells, and their equals
        chosen = [c for c in cells if (c[gene] >= last if highest else c[gene] <= last)]
        np.testing.assert_allclose(row, np.mean(chosen, axis=0) - cells.mean(axis=0), atol=1e-12)


def test_control_stratified_of_two_targets_and_of_none():
    rng = np.random.default_rng(5)
    cells = rng.normal(size=(100, 3)) * [1.0, 10.0, 1.0]
    clamped = np.array([[True, True, False], [False, False, False]])
    got = baselines.control_stratified(cells, clamped_QG=clamped)
    level = cells[:, 0] / cells[:, 0].std() + cells[:, 1] / cells[:, 1].std()
    expected = cells[np.argsort(level)[:10]].mean(axis=0) - cells.mean(axis=0)
    np.testing.assert_allclose(got[0], expected, atol=1e-12)
    np.testing.assert_array_equal(got[1], np.zeros(3))


def test_control_baselines_refuse():
    with pytest.raises(MetricError, match="clamped_QG"):
        baselines.gauss_conditional(control(), clamped_QG=[[True, False]])
    with pytest.raises(MetricError, match="quantile"):
        baselines.control_stratified(control(), clamped_QG=np.zeros((1, 5), dtype=bool), quantile=0)
    with pytest.raises(MetricError, match="not finite"):
        baselines.control_mean(control() * np.nan, n_conditions=1)
