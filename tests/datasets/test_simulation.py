from __future__ import annotations

import numpy as np
import pytest

from cellxpert.datasets.simulation import make_world, place_cells


def _world(**changes):
    arguments = {
        "n_genes": 60,
        "n_types": 3,
        "n_batches": 2,
        "n_perturbations": 4,
        "type_effect": 1.0,
        "batch_effect": 0.2,
        "niche_effect": 0.5,
        "knockout_effect": 3.0,
        "rng": np.random.default_rng(0),
    }
    return make_world(**(arguments | changes))


def test_deviation_equals_going_down_the_network_gene_by_gene():
    world = _world()
    rng = np.random.default_rng(1)
    own = rng.normal(size=(20, 60))
    knocked = rng.choice([-1, *world.target_P], size=20)
    expected = np.zeros((20, 60))
    for cell in range(20):
        for gene in range(60):  # regulators come before those they act on
            if gene == knocked[cell]:
                expected[cell, gene] = -3.0
            else:
                expected[cell, gene] = own[cell, gene] + sum(
                    world.weight_GG[gene, other] * expected[cell, other] for other in range(gene)
                )
    np.testing.assert_allclose(world.deviation(own, knocked), expected, atol=1e-12)


def test_effect_is_the_mean_change_of_the_same_cells():
    world = _world()
    own = np.random.default_rng(2).normal(size=(50, 60))
    before = world.deviation(own, np.full(50, -1))
    for i, gene in enumerate(world.target_P):
        after = world.deviation(own, np.full(50, gene))
        effect = (after - before).mean(axis=0)
        np.testing.assert_allclose(world.effect(before.mean(axis=0))[i], effect, atol=1e-12)
        reached = world.direct()[i] | world.indirect()[i]
        reached[gene] = True
        assert not effect[~reached].any()
    assert not (world.direct() & world.indirect()).any()


def test_network_is_sparse_acyclic_and_three_levels_deep():
    weight = _world().weight_GG
    assert not np.triu(weight).any()
    links = (weight != 0).astype(int)
    assert links.sum(axis=1).max() <= 2
    assert (links @ links).any()
    assert not (links @ links @ links).any()
    assert (links.sum(axis=1) == 0).sum() > 3  # genes that answer to nobody


@pytest.mark.parametrize("n_genes", [3, 5, 8])
def test_smallest_worlds(n_genes):
    world = _world(n_genes=n_genes, n_types=1, n_batches=1, n_perturbations=1)
    assert len(world.target_P) == 1
    assert not world.programme_CG.any()
    assert not world.batch_SG.any()


def test_places_are_finite_for_any_number_of_cells():
    for n_cells in (1, 2, 10):
        kind = np.arange(n_cells) % 2
        place, share = place_cells(kind, np.zeros(n_cells, dtype=int), dims=2, rng=np.random.default_rng(0))
        assert place.shape == (n_cells, 2)
        assert np.isfinite(place).all()
        assert ((share >= 0) & (share <= 1)).all()
