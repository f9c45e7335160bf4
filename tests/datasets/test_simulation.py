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


SCREEN = {"n_perturbations": 8, "n_pairs": 6, "interaction": 0.7, "stress_effect": 0.4}


@pytest.mark.parametrize("changes", [{}, SCREEN])
def test_deviation_equals_going_down_the_network_gene_by_gene(changes):
    world = _world(**changes)
    rng = np.random.default_rng(1)
    own = rng.normal(size=(40, 60))
    held = world.knocked()
    perturbation = rng.integers(-1, len(held), size=40)
    stress = world.stress_G - world.weight_GG @ world.stress_G  # own part
    expected = np.zeros((40, 60))
    for cell, which in enumerate(perturbation):
        for gene in range(60):  # regulators come before those they act on
            if which >= 0 and gene in held[which]:
                expected[cell, gene] = -3.0
            else:
                expected[cell, gene] = own[cell, gene] + (stress[gene] if which >= 0 else 0)
                expected[cell, gene] += sum(
                    world.weight_GG[gene, other] * expected[cell, other] for other in range(gene)
                )
    for cell, which in enumerate(perturbation):
        if which >= len(world.target_K):
            expected[cell] += world.extra_QG[which - len(world.target_K)]
    np.testing.assert_allclose(world.deviation(own, perturbation), expected, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, SCREEN])
def test_effect_is_the_mean_change_of_the_same_cells(changes):
    world = _world(**changes)
    own = np.random.default_rng(2).normal(size=(50, 60))
    before = world.deviation(own, np.full(50, -1))
    effects = world.effect(before.mean(axis=0))
    assert len(effects) == len(world.knocked())
    for which, genes in enumerate(world.knocked()):
        after = world.deviation(own, np.full(50, which))
        np.testing.assert_allclose(effects[which], (after - before).mean(axis=0), atol=1e-12)
        reached = world.direct()[which] | world.indirect()[which]
        assert not reached[genes].any()
        reached[genes] = True
        np.testing.assert_allclose(effects[which][~reached], world.stress_G[~reached], atol=1e-12)
    assert not (world.direct() & world.indirect()).any()
    assert not ((world.direct() | world.indirect()) & world.ancestors()).any()


def test_pairs_of_a_world():
    world = _world(**SCREEN)
    links = world.weight_GG != 0

    def below(gene):
        children = set(np.flatnonzero(links[:, gene]).tolist())
        return children.union(*(below(child) for child in children))

    pairs = world.knocked()[len(world.target_K) :]
    assert len(pairs) == 6
    assert len({tuple(pair) for pair in pairs}) == 6
    shared = []
    for row, (one, other) in enumerate(pairs):
        assert one < other
        assert {one, other} <= set(world.target_K.tolist())
        assert one not in below(other)
        assert other not in below(one)
        common = below(one) & below(other)
        assert set(np.flatnonzero(world.extra_QG[row]).tolist()) == common
        assert set(np.abs(world.extra_QG[row][list(common)]).tolist()) <= {0.7}
        shared.append(bool(common))
        which = len(world.target_K) + row
        assert set(np.flatnonzero(world.direct()[which] | world.indirect()[which])) == below(one) | below(other)
        assert set(np.flatnonzero(world.ancestors()[which])) == {
            g for g in range(60) if {one, other} & below(g)
        }  # fmt: skip
    assert shared == sorted(shared, reverse=True)
    assert any(shared)
    assert len(set(np.sign(world.extra_QG[world.extra_QG != 0]))) == 2


def test_a_screen_leaves_the_rest_of_the_world_as_it_is():
    plain, screen = _world(n_perturbations=8), _world(**SCREEN)
    for name in ("base_G", "weight_GG", "programme_CG", "batch_SG", "niche_G", "target_K"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(screen, name))
    assert not plain.stress_G.any()
    assert not plain.extra_QG.any()
    other = _world(**(SCREEN | {"interaction": 0.1, "stress_effect": 0.8}))
    np.testing.assert_array_equal(other.pair_Q2, screen.pair_Q2)
    np.testing.assert_allclose(other.stress_G, 2 * screen.stress_G, atol=1e-12)
    own = screen.stress_G - screen.weight_GG @ screen.stress_G
    np.testing.assert_allclose(np.sort(np.abs(own))[::-1], [0.4] * 12 + [0.0] * 48, atol=1e-12)


@pytest.mark.parametrize("n_genes", [100, 200])
def test_a_quarter_of_the_genes_can_act_on_others(n_genes):
    few = _world(n_genes=n_genes, n_perturbations=n_genes)
    assert (few.weight_GG != 0).any(axis=0).sum() == len(few.target_K) <= n_genes // 20 + n_genes // 8
    many = _world(n_genes=n_genes, n_perturbations=n_genes, n_regulators=n_genes // 5)
    assert 0.24 * n_genes <= len(many.target_K) <= n_genes / 4
    # Masters come first, then the regulators that they act on.
    above = many.ancestors().any(axis=1)
    assert above.tolist() == [False] * (n_genes // 20) + [True] * (len(above) - n_genes // 20)


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
    assert len(world.target_K) == 1
    assert not world.programme_CG.any()
    assert not world.batch_SG.any()


def test_places_are_finite_for_any_number_of_cells():
    for n_cells in (1, 2, 10):
        kind = np.arange(n_cells) % 2
        place, share = place_cells(kind, np.zeros(n_cells, dtype=int), dims=2, rng=np.random.default_rng(0))
        assert place.shape == (n_cells, 2)
        assert np.isfinite(place).all()
        assert ((share >= 0) & (share <= 1)).all()
