"""Distances, soft minimum and medoids against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from cellxpert.steering.anchors import Anchors, medoids

X = torch.tensor([[0, 3, 1], [2, 2, 2]])
A = torch.tensor([[0, 0, 1], [3, 1, 2], [1, 1, 1]])


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.5]])
def test_distances_and_energy_are_loops(power, weights):
    w = [1.0] * 3 if weights is None else weights
    anchors = Anchors(
        bin_AM=A,
        kappa=0.7,
        weight_M=None if weights is None else torch.tensor(weights),
        distance="bins" if power == 1 else "squared",
    )
    found = anchors.distances(X)
    energy = anchors.log_weight(found)
    costs = anchors.site_costs(4)
    for c, x in enumerate(X.tolist()):
        distances = [sum(w[g] * abs(x[g] - a[g]) ** power for g in range(3)) for a in A.tolist()]
        assert found[c].tolist() == pytest.approx(distances)
        assert energy[c].item() == pytest.approx(math.log(sum(math.exp(-0.7 * d) for d in distances) / 3))
        for a in range(3):
            assert sum(costs[a, g, x[g]].item() for g in range(3)) == pytest.approx(0.7 * distances[a])


def test_histogram_distance_is_scipys():
    found = Anchors(bin_AM=A, kappa=1.0, distance="histogram").distances(X)
    for c, x in enumerate(X.tolist()):
        assert found[c].tolist() == pytest.approx([3 * wasserstein_distance(x, a) for a in A.tolist()])


def test_distance_of_bins_is_the_wasserstein_distance_of_two_points():
    """One point mass must be carried to the other; under L1 that costs the sum of the gaps."""
    found = Anchors(bin_AM=A, kappa=1.0).distances(X)
    assert found[0].tolist() == [3, 6, 3]


def test_a_share_of_the_strength():
    anchors = Anchors(bin_AM=A, kappa=0.8)
    assert anchors.scaled(0.25).kappa == pytest.approx(0.2)
    distance = anchors.distances(X)
    assert anchors.scaled(0.0).log_weight(distance).tolist() == pytest.approx([0, 0], abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=2, max_size=9), st.integers(1, 9))
def test_medoids_have_the_smallest_park_jun_scores(rows, n_anchors):
    d = [[sum(abs(a - b) for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    scores = [sum(d[i][j] / max(sum(d[i]), 1e-300) for i in range(len(rows))) for j in range(len(rows))]
    found = medoids(torch.tensor(rows), n_anchors).tolist()
    assert len(set(found)) == len(found) == min(n_anchors, len(rows))
    assert [scores[j] for j in found] == pytest.approx(sorted(scores)[: len(found)])


def test_weights_decide_what_is_central():
    rows = torch.tensor([[0, 9], [0, 0], [5, 1], [9, 0]])
    assert (
        medoids(rows, 1, weight_M=torch.tensor([1.0, 0.0])).item()
        != medoids(rows, 1, weight_M=torch.tensor([0.0, 1.0])).item()
    )
