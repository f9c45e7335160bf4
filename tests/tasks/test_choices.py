"""How a perturbation is put to the chains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cellxpert.data.collate import Collator
from cellxpert.errors import GeneError, InterventionError
from cellxpert.metrics import baselines
from cellxpert.tasks import choices
from cellxpert.tasks.bins import bins_at, bins_of
from cellxpert.tasks.choices import Sites
from cellxpert.tasks.reference import unseen_weights


def one(job):
    return job, job.requests[0]


# --- start cells -------------------------------------------------------------------------------------------------------


def test_start_cells_are_drawn_by_lot(make_job):
    job, request = one(make_job("gene_00"))
    rows = job.groups["all"]
    chosen = choices.start_cells(job, request, rows)
    assert len(chosen) == 12
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(rows)
    assert np.array_equal(chosen, choices.start_cells(job, request, rows))
    assert not np.array_equal(chosen, choices.start_cells(make_job("gene_00", seed=1), request, rows))
    assert np.array_equal(choices.start_cells(job, request, rows[:9]), rows[:9])


def test_cells_that_express_what_is_held_come_first(make_job):
    """A zero that is held at zero would change nothing."""
    job, request = one(make_job("gene_00", target="zero-shot"))
    rows = job.groups["all"]
    expressing = bins_at(job.collator, rows, np.array([0]))[:, 0] > 0
    assert (~expressing).any()
    chosen = choices.start_cells(job, request, rows)
    assert set(chosen) <= set(rows[expressing])
    # too few of them: any cells
    few = np.concatenate([rows[expressing][:4], rows[~expressing][:20]])
    assert (bins_at(job.collator, choices.start_cells(job, request, few), np.array([0])) == 0).any()
    # a bin can be set in any cell, and what is learned acts in any
    anywhere = choices.start_cells(make_job("gene_00"), request, rows)
    job, request = one(make_job({"gene_00": ("bin", 9)}, target="zero-shot"))
    assert np.array_equal(choices.start_cells(job, request, rows), anywhere)


# --- sites -------------------------------------------------------------------------------------------------------------


def sites(job):
    return choices.own_sites(job, job.requests[0], job.groups["all"])


def test_what_moves_most_is_movable(make_job, screened):
    job, request = one(make_job("gene_00"))
    network = screened._state.network
    gap = network.blank_means(choices.intervention(job, request)) - network.blank_means(None)
    score = (gap.abs() * network.factors.scale_V.abs()).numpy()
    score[0] = -1
    found = sites(job)
    assert found.movable.tolist() == sorted(np.argsort(-score)[:8].tolist())
    assert not len(found.held)
    anchored = sites(make_job("gene_00", target="anchored"))
    level_VK = network.factors.levels(torch.arange(network.n_features)).double().numpy()
    score = np.abs(replace(job.observed, level_VK=level_VK).delta("gene_00")) * network.factors.scale_V.abs().numpy()
    score[0] = -1
    assert anchored.movable.tolist() == sorted(np.argsort(-score)[:8].tolist())


@pytest.mark.parametrize("genes", ["gene_00", {"gene_00": ("fold", 3.0)}, {"gene_00": ("bin", 30)}], ids=str)
def test_what_goes_with_the_value_is_movable(make_job, screened, genes):
    """Held genes say by their value who moves, not by what is known of knock-outs."""
    job = make_job(genes, target="zero-shot")
    network, vocabulary = screened._state.network, screened._state.vocabulary
    # factors read counts of a usual cell, magnitudes are of counts per 10,000
    per_count = np.expm1(float(vocabulary.decode(0, 1))) / np.expm1(float(network.factors.level_MK[0, 1]))
    usual = np.log1p(per_count * np.expm1(float(network.factors.centre_V[0])))
    level = {0: 0.0, 3: np.log1p(3 * np.expm1(usual)), 30: float(vocabulary.decode(0, 30))}
    held = level[0 if genes == "gene_00" else int(genes["gene_00"][1])]
    bin_ = int(bins_of(vocabulary, np.array([0]), np.array([held]))[0])
    gap = network.blank_means(None, clamped=([0], [bin_])) - network.blank_means(None)
    score = (gap.abs() * network.factors.scale_V.abs()).numpy()
    score[0] = -1
    found = sites(job)
    assert found.movable.tolist() == sorted(np.argsort(-score)[:8].tolist())
    assert found.held.tolist() == [0]
    assert found.feature_M.tolist() == [0, *found.movable]


def test_regulators_never_move(make_job):
    free = sites(make_job("gene_00")).movable
    names = [f"gene_{i:02d}" for i in free if i < 44][:3]
    job = make_job("gene_00", regulators={"gene_00": [*names, "unknown"], "gene_01": ["gene_40"]})
    held_back = sites(job).movable
    assert len(held_back) == 8
    assert not {int(n[-2:]) for n in names} & set(held_back)
    assert choices.common_sites(job, job.groups["all"]) is None  # they differ from gene to gene


def test_perturbations_of_a_screen_share_their_sites(make_job):
    job = make_job(["gene_00", "gene_01+gene_06"])
    rows = job.groups["all"]
    common = choices.common_sites(job, rows)
    assert len(common.movable) == 8
    assert not {0, 1, 6} & set(common.movable)
    scores = {}
    for request in job.requests:
        own = choices.own_sites(replace(job, requests=(request,)), request, rows)
        scores[request.name] = set(own.movable)
    assert set(common.movable) & scores["gene_00"]
    assert set(common.movable) & scores["gene_01+gene_06"]


def test_perturbing_everything_leaves_each_gene_the_others(make_job):
    """A screen over all genes cannot share what it does not perturb."""
    job = make_job([f"gene_{i:02d}" for i in range(44)])
    rows = job.groups["all"]
    assert choices.common_sites(job, rows) is None
    found = choices.own_sites(job, job.requests[5], rows)
    assert len(found.movable) == 8
    assert 5 not in found.movable


def test_nothing_left_to_respond(make_job):
    everything = "+".join(f"gene_{i:02d}" for i in range(44))
    job, request = one(make_job(everything))
    proteins = choices.own_sites(job, request, job.groups["all"]).movable
    assert (proteins >= 44).all()
    job = replace(job, asked=replace(job.asked, regulators={"gene_00": ["protein"]}))
    no_protein = [
        r
        for r in job.groups["all"]
        if not job.collator.tokens.measured_features[job.collator.tokens.pattern[r], 44:].any()
    ]
    with pytest.raises(InterventionError, match="nothing could respond"):
        choices.own_sites(job, request, np.array(no_protein))


def test_what_was_not_measured_does_not_move(make_job, subjects):
    tokens = subjects.collator.tokens
    measured = tokens.measured_features.copy()
    best = int(sites(make_job("gene_00")).movable[0])
    measured[:, best] = False
    other = replace(subjects, collator=Collator(replace(tokens, measured_features=measured), n_features=50, n_bins=50))
    assert best not in sites(make_job("gene_00", subjects=replace(other, group=None))).movable


# --- what is done ------------------------------------------------------------------------------------------------------


def test_interventions(make_job):
    job, request = one(make_job({"gene_06": ("knockdown", 0.3), "gene_01": "overexpression"}))
    told = choices.intervention(job, request)
    targets = job.perturbations.targets
    assert told.feature_BI.tolist() == [[1, 6]]
    assert [targets[t] for t in told.target_BI[0]] == ["gene_01", "gene_06"]
    np.testing.assert_allclose(told.dose_BI, [[1.0, -0.7]], rtol=1e-6)
    assert told.before
    assert not told.code_BIS.any()


def test_the_registered_kind_is_put_as_in_training(make_job, screened):
    for kind in ("knockout", "knockdown", "overexpression"):
        seen = replace(screened._state.perturbations, kind=kind)
        job, request = one(make_job("gene_00", perturbations=seen))
        trained = seen.assign(pd.Series(["gene_00"]), screened._state.vocabulary)
        told = choices.intervention(job, request)
        assert told.dose_BI.tolist() == trained.dose_NI.tolist()
        assert told.target_BI.tolist() == trained.target_NI.tolist()
        assert told.feature_BI.tolist() == trained.feature_NI.tolist()


def test_what_was_seen_of_pairs_is_expected_of_others_as_far_as_they_share_it(make_job, screened):
    part = screened._state.network.factors.intervention
    assert screened._state.perturbations.conditions.count("gene_01+gene_06") == 1
    kept = part.pair_gain.clone()
    try:
        part.pair_gain.fill_(0.25)
        told = {n: choices.intervention(*one(make_job(n))) for n in ("gene_00", "gene_01+gene_06", "gene_00+gene_06")}
    finally:
        part.pair_gain.copy_(kept)
    assert told["gene_00"].pair_B is None
    assert told["gene_01+gene_06"].pair_B is None
    assert told["gene_00+gene_06"].pair_B.tolist() == [0.25]


def test_embedded_genes_carry_codes_over(make_job, screened):
    part = screened._state.network.factors.intervention
    targets = list(screened._state.perturbations.targets)
    embedding = pd.DataFrame(np.random.default_rng(0).normal(size=(len(targets) + 1, 3)), index=[*targets, "new"])
    job, request = one(make_job("gene_00+new", embedding=embedding))
    told = choices.intervention(job, request)
    assert told.feature_BI.tolist() == [[0, -1]]
    assert told.target_BI.tolist() == [[targets.index("gene_00"), -1]]
    effect = (part.code.weight @ part.direct.weight.T + part.usual.weight.T).detach().double().numpy()
    weight = unseen_weights(embedding, seen=targets, genes=["new"], effect_GV=effect)[0]
    assert not told.code_BIS[0, 0].any()  # what was seen needs no embedding
    np.testing.assert_allclose(told.code_BIS[0, 1], weight @ part.code.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(told.usual_BI, [[1.0, weight.sum()]], atol=1e-6)


def test_held_bins(make_job):
    genes = {"gene_00": ("fold", 3.0), "gene_01": "knockout", "gene_05": ("bin", 40), "gene_06": ("fold", 1.0)}
    job, request = one(make_job(genes, target="zero-shot"))
    held = Sites(np.array([0, 1, 2, 5, 6]), np.array([9, 10]))
    start = torch.from_numpy(np.random.default_rng(0).integers(0, 50, (30, 7)))
    found = choices.held_bins(job, request, held, start_NM=start)
    means = job.vocabulary.block("rna").bin_means
    edges = job.vocabulary.block("rna").edges
    for n in range(30):
        own = means[start[n, 0]]
        level = np.log1p(3 * np.expm1(own))
        assert found[n, 0] == (0 if own == 0 else 1 + (edges <= level).sum())
    assert (found[:, 1] == 0).all()
    assert torch.equal(found[:, 2], start[:, 2])  # perturbed in another entry of the screen
    assert (found[:, 3] == 40).all()
    assert torch.equal(found[:, 4], start[:, 4])
    assert found.shape == (30, 5)


def test_levels_that_are_set(make_job):
    job, request = one(make_job({"gene_00": ("fold", 3.0), "gene_01": ("bin", 7)}, target="zero-shot"))
    found = choices.set_levels(job, request, np.array([[0.0, 1.0], [2.0, 0.5]]))
    seven = float(job.vocabulary.decode(1, 7))
    np.testing.assert_allclose(found, [[0.0, seven], [np.log1p(3 * np.expm1(2.0)), seven]])


# --- anchors -----------------------------------------------------------------------------------------------------------


def test_observed_anchors(make_job):
    job, request = one(make_job("gene_06+gene_01", target="anchored"))
    feature_M = sites(job).feature_M
    found, aim = choices.anchors(job, request, feature_M)
    expected, expected_aim = job.observed.anchors("gene_01+gene_06", feature_M, settings=job.settings, seed=0)
    assert torch.equal(found.bin_AM, expected.bin_AM)
    assert aim == expected_aim > 0
    cells = {tuple(x) for x in bins_at(job.collator, job.observed.rows_of("gene_01+gene_06"), feature_M).tolist()}
    assert all(tuple(x) in cells for x in found.bin_AM.tolist())
    given = replace(job, asked=replace(job.asked, settings=replace(job.settings, kappa=0.4)))
    found, aim = choices.anchors(given, request, feature_M)
    assert aim is None
    assert found.kappa == 0.4


def test_predicted_anchors_are_moved_control_cells(make_job, screened):
    job, request = one(make_job("gene_00", target="predicted"))
    feature_M = np.array([3, 8, 9, 20, 45])  # the last one is a protein
    found, aim = choices.anchors(job, request, feature_M)
    observed, vocabulary = job.observed, job.vocabulary
    others = [n for n in observed.perturbed if n != "gene_00" and "+" not in n]
    read = screened._state.network.factors.read.weight.detach().numpy()
    control = observed.mean("control")
    effect = baselines.linear(
        np.stack([observed.delta(n) for n in others]),
        gene_embedding_GD=baselines.principal_genes(
            np.stack([control, *(observed.mean(n) for n in others)]), n_components=len(others) + 1
        ),
        target_embedding_TD=read[[int(n[-2:]) for n in others]],
        query_embedding_QD=read[[0]],
    )[0][feature_M]
    weight = np.abs(effect) + 1e-3
    np.testing.assert_allclose(found.weight_M, weight / weight.mean())
    bins = observed.bins("control", feature_M, seed=0)
    # every anchor is the image of a control cell
    moved = bins_of(vocabulary, feature_M, np.maximum(vocabulary.decode(feature_M, bins) + effect, 0))
    images = {tuple(x) for x in moved.tolist()}
    assert all(tuple(x) in images for x in found.bin_AM.tolist())
    # to come as near as control cells are to theirs: neither 0, which would be copies, nor beyond reach
    far = (np.abs(bins[:, None] - bins) @ found.weight_M.numpy() / 5).mean()
    assert 0.1 * far < aim < far


def test_predicted_anchors_need_an_embedding(make_job):
    embedding = pd.DataFrame(np.eye(3), index=["gene_00", "gene_01", "gene_40"])
    job, request = one(make_job("gene_40", target="predicted", embedding=embedding))
    assert choices.anchors(job, request, np.arange(3))[1] > 0
    job, request = one(make_job("gene_41", target="predicted", embedding=embedding))
    with pytest.raises(GeneError, match=r"no embedding of \['gene_41'\]"):
        choices.anchors(job, request, np.arange(3))
    job, request = one(make_job("gene_40", target="predicted", embedding=embedding.drop(index="gene_01")))
    with pytest.raises(GeneError, match="1 other perturbed genes"):
        choices.anchors(job, request, np.arange(3))


@pytest.mark.parametrize(
    ("kind", "share"), [("knockout", 1.0), (("fold", 0.9), 0.1), (("fold", 1.0), 0.0), ("overexpression", 0.0)]
)
def test_what_all_perturbations_share_grows_with_the_dose(make_job, kind, share):
    job = make_job({"gene_00": kind})
    assert choices.intervention(job, job.requests[0]).usual_BI.tolist() == [[pytest.approx(share)]]
