"""What is said of features that stay, against a loop that asks for one at a time from a context without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellxpert.batch import Intervention, Questions
from cellxpert.config import SteeringConfig
from cellxpert.data.collate import Collator
from cellxpert.tasks import readout
from cellxpert.tasks.arms import Population, for_cells
from cellxpert.tasks.bins import bins_at
from cellxpert.tasks.readout import Readout

FEATURES = np.array([6, 1])
ROWS = np.array([2, 0, 1])
KNOCKOUT = Intervention(
    feature_BI=torch.tensor([[5, 1]]),
    target_BI=torch.tensor([[1, -1]]),
    dose_BI=torch.tensor([[-1.0, -0.6]]).double(),
    before=True,
)


def people(network, collator, *, n_replicates=2):
    return Population(
        network,
        collator,
        rows=ROWS,
        feature_M=FEATURES,
        n_held=0,
        n_replicates=n_replicates,
        level_VK=network.factors.levels(torch.arange(8)).double(),
        settings=SteeringConfig(),
        seed=0,
    )


def plain(network, collator, feature, x_NM, *, hidden, intervention):
    """p(bin of a feature), cell by cell: what is hidden is cut out by hand, what moves is a value."""
    out = []
    for n, row in enumerate(ROWS):
        mask = np.zeros(8, bool)
        mask[hidden] = True
        context = collator.context(np.array([row]), mask)
        assert not set(hidden) & set(context.feature_T.tolist())
        if intervention is not None:
            context = replace(context, intervention=for_cells(intervention, 1))
        asked = Questions(
            query_BQ=torch.tensor([[feature]]),
            value_feature_BM=torch.from_numpy(FEATURES)[None],
            value_bin_BM=x_NM[n : n + 1],
            visible_BQM=torch.ones(1, 1, 2, dtype=torch.bool),
        )
        with torch.no_grad():
            out.append(network.decode(asked, network.memory(network.encode(context)))[0, 0].softmax(-1).numpy())
    return np.stack(out)


@pytest.mark.parametrize("intervention", [None, KNOCKOUT], ids=["null", "knockout"])
@pytest.mark.parametrize("at_once", [readout.AT_ONCE, 1], ids=["together", "one cell at a time"])
def test_each_feature_is_asked_from_a_context_without_it(tiny, tiny_cells, intervention, at_once, monkeypatch):
    monkeypatch.setattr(readout, "AT_ONCE", at_once)
    population = people(tiny, tiny_cells)
    asked = np.array([True, True, True, False, True, True, True, True])  # 3 was not measured; 1 and 6 move
    reader = Readout(population, asked_V=asked)
    x = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 0]], [[2, 0], [1, 2]]])
    level, count = reader.means(x, intervention)
    others = [0, 2, 4, 5, 7]
    folds = {f: [g for g in others if others.index(g) % 4 == i % 4] for i, f in enumerate(others)}
    values = population.level_VK.numpy()
    for feature in others:
        hidden = [*FEATURES, *folds[feature]]
        p = np.mean(
            [plain(tiny, tiny_cells, feature, x[:, j], hidden=hidden, intervention=intervention) for j in range(2)],
            axis=0,
        )
        np.testing.assert_allclose(level[:, feature], p @ values[feature], atol=1e-6)
        np.testing.assert_allclose(count[:, feature], p @ np.expm1(values[feature]), atol=1e-6)
    assert np.isnan(level[:, [1, 3, 6]]).all()
    assert np.isnan(count[:, [1, 3, 6]]).all()


def test_what_is_asked_for_does_not_show_in_the_answer(tiny, tiny_cells):
    """Another value of it in the cell changes nothing."""
    bins = bins_at(tiny_cells, np.arange(3), np.arange(8))
    bins[:, 4] = (bins[:, 4] + 1) % 3
    cell, feature = np.nonzero(bins)
    tokens = replace(
        tiny_cells.tokens,
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.concatenate([[0], np.cumsum((bins > 0).sum(axis=1))]),
    )
    x = torch.zeros(3, 1, 2, dtype=torch.int64)
    one, other = (
        Readout(people(tiny, c), asked_V=np.ones(8, bool)).means(x, None)[0]
        for c in (tiny_cells, Collator(tokens, n_features=8, n_bins=3))
    )
    np.testing.assert_allclose(one[:, 4], other[:, 4], atol=1e-12)
    assert np.abs(one[:, 0] - other[:, 0]).max() > 1e-4


@pytest.mark.parametrize("n_asked", [0, 1, 3])
def test_few_features_to_ask_for(tiny, tiny_cells, n_asked):
    asked = np.zeros(8, bool)
    asked[[0, 2, 3][:n_asked]] = True
    level, _ = Readout(people(tiny, tiny_cells), asked_V=asked).means(torch.zeros(3, 1, 2, dtype=torch.int64), None)
    assert np.isfinite(level).any(axis=0).tolist() == asked.tolist()


def test_outcome_of_an_arm(tiny, tiny_cells):
    """What moved by its draws, what stayed by the last ones."""
    population = people(tiny, tiny_cells)
    arm = population.run(kernel="ancestral", n_steps=100, intervention=KNOCKOUT)
    reader = Readout(population, asked_V=np.ones(8, bool))
    level, count = reader.outcome(arm, KNOCKOUT)
    last = arm.x_DCM[-1].long().view(3, 2, 2)
    expected = reader.means(last, KNOCKOUT)
    stays = [0, 2, 3, 4, 5, 7]
    for found, means, y in ((level, expected[0], 0), (count, expected[1], 1)):
        assert np.array_equal(found[:, stays], means[:, stays])
        np.testing.assert_allclose(found[:, FEATURES], arm.mean_NMY[..., y], rtol=1e-6)


def test_cells_are_read_once(tiny, tiny_cells, monkeypatch):
    population = people(tiny, tiny_cells)
    calls, real = [], type(tiny).encode
    monkeypatch.setattr(type(tiny), "encode", lambda self, batch: calls.append(1) or real(self, batch))
    reader = Readout(population, asked_V=np.ones(8, bool))
    arm = population.run(kernel="ancestral", n_steps=100)
    for intervention in (None, KNOCKOUT, None):
        reader.outcome(arm, intervention)
    assert len(calls) == readout.N_FOLDS


def test_cells_with_what_moved(tiny, tiny_cells):
    """Vectors and magnitudes of the start cells with one drawn state in the place of their own."""
    population = people(tiny, tiny_cells)
    arm = population.run(kernel="ancestral", n_steps=100)
    own = replace(arm, x_DCM=population.start_NM.repeat_interleave(2, dim=0)[None].to(torch.uint8))
    reader = Readout(population, asked_V=np.ones(8, bool))
    with torch.no_grad():
        vectors = tiny.encode(tiny_cells(ROWS)).cell_BD.float().numpy()
    np.testing.assert_allclose(reader.latent(own), vectors, atol=1e-6)
    assert np.abs(reader.latent(arm) - vectors).max() > 1e-3
    start = population.level_VK.numpy()[np.arange(8), bins_at(tiny_cells, ROWS, np.arange(8))].astype(np.float32)
    start[:, 3] = np.nan
    drawn = reader.drawn(arm, start)
    state = arm.x_DCM[-1].numpy().reshape(3, 2, 2)[:, 0]
    for n in range(3):
        for v in range(8):
            expected = start[n, v]
            if v in FEATURES:
                expected = population.level_VK[v, state[n, list(FEATURES).index(v)]].item()
            np.testing.assert_allclose(drawn[n, v], expected, rtol=1e-6)
