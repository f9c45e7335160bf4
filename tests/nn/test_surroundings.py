"""Fourier features against a loop; cells of which nothing is known get nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cellxpert.config import preset
from cellxpert.nn import Network
from cellxpert.nn.surroundings import N_WAVELENGTHS, WAVELENGTHS, Surroundings

NAN = float("nan")


@pytest.fixture
def around() -> Surroundings:
    module = Surroundings(64, place=True, n_image=4).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    return module


def random(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape) * 20)


@torch.no_grad()
def test_equals_a_loop(around):
    place, image = random(5, 3), random(5, 4)
    ratio = (WAVELENGTHS[1] / WAVELENGTHS[0]) ** (1 / (N_WAVELENGTHS - 1))
    for b in range(5):
        angles = [
            2 * math.pi * float(place[b, x]) / (WAVELENGTHS[0] * ratio**w) * (WAVELENGTHS[0] if x == 2 else 1)
            for x in range(3)
            for w in range(N_WAVELENGTHS)
        ]
        waves = np.array(
            [f(a) for x in range(3) for f in (math.sin, math.cos) for a in angles[x * N_WAVELENGTHS :][:N_WAVELENGTHS]]
        )
        expected = around.place.weight.numpy() @ waves + around.image.weight.numpy() @ image[b].numpy()
        found = around(place[b : b + 1], image[b : b + 1], blank_B=None)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # frequencies are float32


@torch.no_grad()
def test_what_is_not_known_adds_nothing(around):
    place, image = random(3, 3), random(3, 4)
    both = around(place, image, blank_B=None)
    place[1, 0], image[2, 3] = NAN, NAN
    part = around(place, image, blank_B=None)
    assert torch.equal(part[0], both[0])
    assert torch.equal(part[1], around(None, image, blank_B=None)[1])
    assert torch.equal(part[2], around(place, None, blank_B=None)[2])
    assert around(None, None, blank_B=None) is None
    blank = around(place, image, blank_B=torch.tensor([True, False, False]))
    assert not blank[0].any()
    assert torch.equal(blank[1:], part[1:])


@torch.no_grad()
def test_a_network_starts_unaware_of_places_and_then_reads_them(make_batch):
    from dataclasses import replace

    config = preset("nano").network
    network = Network(config, feature_modality=[0] * 30, n_bins=7, n_labels=3, place=True, n_image=4).eval()
    plain = Network(config, feature_modality=[0] * 30, n_bins=7, n_labels=3).eval()
    batch = make_batch([5, 9])
    told = replace(batch, place_BX=random(2, 3).float(), image_BF=random(2, 4).float())
    assert torch.equal(network.encode(told).cell_BD, plain.encode(batch).cell_BD)
    torch.nn.init.normal_(network.surroundings.place.weight, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(network.encode(told).cell_BD, network.encode(batch).cell_BD)
    nowhere = replace(told, place_BX=torch.full((2, 3), NAN))
    assert torch.equal(network.encode(nowhere).cell_BD, network.encode(batch).cell_BD)
    torch.nn.init.normal_(network.labels.image.weight, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(network.encode(told).label_BC, network.encode(replace(told, image_BF=None)).label_BC)


@torch.no_grad()
def test_places_do_not_leak_between_cells(make_batch):
    from dataclasses import replace

    network = Network(preset("nano").network, feature_modality=[0] * 30, n_bins=7, place=True).eval()
    torch.nn.init.normal_(network.surroundings.place.weight, generator=torch.Generator().manual_seed(1))
    place = random(2, 3).float()
    other = place.clone()
    other[1] += 3
    for pad_length in (None, 16):
        batch = make_batch([5, 9], pad_length=pad_length)
        one, two = (network.encode(replace(batch, place_BX=p)).cell_BD for p in (place, other))
        assert torch.equal(one[0], two[0])
        assert not torch.allclose(one[1], two[1])
