"""What is known without a chain, against sums over dense arrays and closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cellxpert.config import SteeringConfig
from cellxpert.metrics import baselines
from cellxpert.tasks import reference
from cellxpert.tasks.bins import bins_at
from cellxpert.tasks.interventions import parse
from cellxpert.tasks.reference import Observed, medoid_anchors, trivial_effects, unseen_weights


@pytest.fixture(scope="module")
def observed(make_job) -> Observed:
    return make_job("gene_00").observed


@pytest.fixture(scope="module")
def dense(observed) -> np.ndarray:
    """Magnitudes of all cells."""
    n_cells, features = observed.collator.tokens.n_cells, np.arange(observed.collator.n_features)
    return observed.level_VK[features, bins_at(observed.collator, np.arange(n_cells), features)]


def _request(genes, *, known=tuple(f"gene_{i:02d}" for i in range(44))):
    return parse(genes, known=known, default="knockout", n_bins=50)[0]


def test_means_of_conditions(observed, dense):
    condition, training = np.array(observed.condition), np.zeros(len(dense), bool)
    training[observed.rows] = True
    assert not training.all()  # cells held out are not looked at
    np.testing.assert_allclose(observed.levels(np.arange(len(dense))).toarray(), dense)
    tokens = observed.collator.tokens
    known = tokens.measured_features[tokens.pattern]
    assert not known[np.flatnonzero(training)][:, 44:].all()  # some cells lack proteins, which are not 0 there

    def mean(name):
        chosen = np.flatnonzero((condition == name) & training)
        found = np.zeros(dense.shape[1])
        for v in range(dense.shape[1]):
            values = [dense[i, v] for i in chosen if known[i, v]]
            found[v] = np.mean(values) if values else 0.0
        return found

    for name in (*observed.perturbed, "control"):
        assert observed.rows_of(name).tolist() == np.flatnonzero((condition == name) & training).tolist()
        np.testing.assert_allclose(observed.mean(name), mean(name), atol=1e-12)
        np.testing.assert_allclose(observed.delta(name), mean(name) - mean("control"), atol=1e-12)


def test_conditions_are_found_however_they_are_written(observed):
    """Norman et al. write KLF1+ctrl for one gene, and pairs in any order."""
    other = {"gene_00": "gene_00+ctrl", "gene_01+gene_06": "gene_06+gene_01", "gene_05": "gene_05"}
    written = [other.get(c, c) for c in observed.condition]
    assert written != list(observed.condition)
    again = replace(observed, condition=written)
    assert again.perturbed == observed.perturbed
    for name in observed.perturbed:
        assert again.rows_of(name).tolist() == observed.rows_of(name).tolist()


# --- anchors -----------------------------------------------------------------------------------------------------------


def test_weights_are_t_statistics(observed):
    from scipy import stats

    features = np.arange(44)
    bins = {c: bins_at(observed.collator, observed.rows_of(c), features) for c in ("control", "gene_00")}
    t = [stats.ttest_ind(bins["gene_00"][:, m], bins["control"][:, m], equal_var=False).statistic for m in range(44)]
    # variances of the sample in place of the population's: n against n - 1
    anchors, _ = observed.anchors("gene_00", features, settings=SteeringConfig(), seed=0)
    weight = anchors.weight_M.numpy()
    expected = np.minimum(np.nan_to_num(np.abs(t)), 10)
    np.testing.assert_allclose(weight / weight.max(), expected / expected.max(), atol=0.03)
    assert weight.mean() == pytest.approx(1)
    rows = {tuple(x) for x in bins["gene_00"].tolist()}
    assert all(tuple(x) in rows for x in anchors.bin_AM.tolist())
    assert len(anchors.bin_AM) == 8


@pytest.mark.parametrize("distance", ["bins", "squared", "histogram"])
def test_the_aim_is_how_far_other_cells_are(distance):
    rng = np.random.default_rng(0)
    bins, weight = rng.integers(0, 50, (30, 6)), rng.random(6) + 0.1
    anchors, aim = medoid_anchors(bins, weight, settings=SteeringConfig(n_anchors=4, distance=distance, kappa=0.3))
    assert anchors.kappa == 0.3
    scaled = weight / weight.mean()
    chosen = {tuple(x) for x in anchors.bin_AM.tolist()}
    total = []
    for x in bins:
        if tuple(x) in chosen:
            continue
        if distance == "histogram":
            gaps = [np.abs(np.sort(x) - np.sort(a)).sum() for a in anchors.bin_AM.numpy()]
        else:
            power = 1 if distance == "bins" else 2
            gaps = [(scaled * np.abs(x - a) ** power).sum() for a in anchors.bin_AM.numpy()]
        total.append(min(gaps) / 6)
    assert len(total) == 26
    assert aim == pytest.approx(np.mean(total))


def test_anchors_of_cells_that_differ_in_nothing():
    """Weights of nothing are even; of few cells half are anchors, so that the others say how near cells come to them."""
    bins = np.array([[1, 2], [3, 4], [1, 3], [3, 5]])
    anchors, aim = medoid_anchors(bins, np.zeros(2), settings=SteeringConfig())
    assert torch.equal(anchors.weight_M, torch.ones(2).double())
    chosen = anchors.bin_AM.tolist()
    assert len(chosen) == 2
    others = [x for x in bins.tolist() if x not in chosen]
    nearest = [min(sum(abs(a - b) for a, b in zip(x, y, strict=True)) for y in chosen) for x in others]
    assert aim == pytest.approx(np.mean(nearest) / 2)
    assert aim > 0


def test_anchors_of_a_large_condition_are_those_of_a_sample(observed, monkeypatch):
    monkeypatch.setattr(reference, "MAX_ANCHOR_CELLS", 20)
    features = np.arange(10)
    one, other, again = (observed.bins("control", features, seed=s) for s in (0, 1, 0))
    assert one.shape == (20, 10)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


# --- trivial predictions -------------------------------------------------------------------------------------------


def test_trivial_effects(observed, dense):
    features = {f"gene_{i:02d}": i for i in range(44)}
    control = observed.levels(observed.rows_of("control"))
    found = trivial_effects(
        _request("gene_00"), observed=observed, features=features, control_NV=control, held_V={0: 0.7}
    )
    assert set(found) == {"no_change", "gauss_conditional", "perturbed_mean", "linear"}
    assert not found["no_change"].any()
    others = [c for c in observed.perturbed if c != "gene_00"]
    np.testing.assert_allclose(found["perturbed_mean"], np.mean([observed.delta(c) for c in others], axis=0))
    x = control.toarray()
    covariance = np.cov(x.T, bias=True)
    expected = covariance[:, 0] / covariance[0, 0] * (0.7 - x[:, 0].mean())
    np.testing.assert_allclose(found["gauss_conditional"], expected, atol=1e-9)
    genes = baselines.principal_genes(
        np.stack([observed.mean("control"), *(observed.mean(c) for c in others)]), n_components=7
    )
    singles = [c for c in others if "+" not in c]
    linear = baselines.linear(
        np.stack([observed.delta(c) for c in singles]),
        gene_embedding_GD=genes,
        target_embedding_TD=genes[[features[c] for c in singles]],
        query_embedding_QD=genes[[0]],
    )[0]
    np.testing.assert_allclose(found["linear"], linear, atol=1e-12)


def test_what_is_asked_for_is_in_no_baseline_whatever_its_dose(observed):
    features = {f"gene_{i:02d}": i for i in range(44)}
    control = observed.levels(observed.rows_of("control"))
    plain, weak = (
        trivial_effects(_request(g), observed=observed, features=features, control_NV=control, held_V={})
        for g in ("gene_00", {"gene_00": ("knockdown", 0.5)})
    )
    for name in ("perturbed_mean", "linear"):
        np.testing.assert_array_equal(plain[name], weak[name])


def test_pairs_are_added_up(observed):
    found = trivial_effects(
        _request("gene_06+gene_01"),
        observed=observed,
        features={},
        control_NV=observed.levels(observed.rows_of("control")),
        held_V={},
    )
    np.testing.assert_allclose(found["additive"], observed.delta("gene_01") + observed.delta("gene_06"))
    assert "linear" not in found
    unknown = trivial_effects(
        _request("gene_10+gene_01"),
        observed=observed,
        features={},
        control_NV=observed.levels(observed.rows),
        held_V={},
    )
    assert "additive" not in unknown


def test_without_perturbed_cells_little_can_be_said(observed):
    control = observed.levels(observed.rows_of("control"))
    found = trivial_effects(_request("gene_00"), observed=None, features={}, control_NV=control, held_V={0: 0.0})
    assert set(found) == {"no_change", "gauss_conditional"}


# --- genes that were never perturbed -----------------------------------------------------------------------------------


def _unit(embedding):
    return embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)


def _ridge(embedding, names, gene, constant, ridge):
    """Kernel ridge regression weights, by the normal equations."""
    *seen, new = _unit(embedding.reindex([*names, gene], fill_value=0.0)).to_numpy()
    kernel = np.array([[a @ b + constant for b in seen] for a in seen])
    return np.linalg.inv(kernel + ridge * np.eye(len(names))) @ [a @ new + constant for a in seen]


@pytest.mark.parametrize("told", ["nothing", "the embedding's", "one for all"])
def test_weights_of_an_unseen_gene_are_kernel_ridge_regression(told):
    """With the settings under which each seen gene is predicted best from the others: left out and fitted anew, one by one."""
    rng = np.random.default_rng(0)
    embedding = pd.DataFrame(rng.normal(size=(9, 5)), index=[*"abcdefgh", "new"])
    seen = ["x", *"cadbefgh"]  # x has no row
    effect = rng.normal(size=(9, 30))
    if told == "the embedding's":
        effect[1:] = _unit(embedding).loc[list("cadbefgh")].to_numpy() @ rng.normal(size=(5, 30))
    elif told == "one for all":
        effect = 0.1 * effect + rng.normal(size=30)
    missed = {}
    for constant, ridge in itertools.product(reference.CONSTANTS, reference.RIDGES):
        total = 0.0
        for g in seen:
            others = [o for o in seen if o != g]
            predicted = _ridge(embedding, others, g, constant, ridge) @ effect[[seen.index(o) for o in others]]
            total += ((effect[seen.index(g)] - predicted) ** 2).sum()
        missed[constant, ridge] = total
    best = min(missed, key=missed.get)
    found = unseen_weights(embedding, seen=seen, genes=["new", "unheard of"], effect_GV=effect)
    np.testing.assert_allclose(found[0], _ridge(embedding, seen, "new", *best), atol=1e-8)
    np.testing.assert_allclose(found[1], _ridge(embedding, seen, "unheard of", *best), atol=1e-8)
    # what the embedding tells is taken over, what it does not tell is not
    if told == "nothing":
        assert np.abs(found).max() < 0.05
    elif told == "the embedding's":
        assert best[1] < 0.1
    else:
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=0.1)


def test_a_gene_that_is_embedded_as_a_seen_one_gets_its_code(monkeypatch):
    monkeypatch.setattr(reference, "RIDGES", (1e-9,))
    monkeypatch.setattr(reference, "CONSTANTS", (0.0,))
    embedding = pd.DataFrame(np.random.default_rng(0).normal(size=(3, 4)), index=list("abc"))
    embedding.loc["twin"] = 2.5 * embedding.loc["b"]  # cosines know no length
    found = unseen_weights(embedding, seen=list("abc"), genes=["twin"], effect_GV=np.eye(3))
    np.testing.assert_allclose(found, [[0, 1, 0]], atol=1e-6)


def test_what_cannot_be_judged_is_not_carried_over():
    embedding = pd.DataFrame(np.eye(3), index=list("abc"))
    for given in (embedding, None):  # one seen gene: nothing says whether others do the same
        assert np.abs(unseen_weights(given, seen=["a"], genes=["b"], effect_GV=np.ones((1, 4)))).max() < 1e-2
    opposite = np.array([[1.0, 1, 1], [-1, -1, -1]])
    assert np.abs(unseen_weights(embedding, seen=["a", "b"], genes=["c"], effect_GV=opposite)).max() < 1e-2
    assert unseen_weights(None, seen=list("ab"), genes=[], effect_GV=opposite).shape == (0, 2)
