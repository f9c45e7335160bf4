"""Screens of the small model of perturbed cells, and the smallest network there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import cellxpert as cx
from cellxpert import exchange
from cellxpert.config import NetworkConfig, SteeringConfig
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.tokens import Tokens
from cellxpert.nn import Network
from cellxpert.tasks.checks import make_screen
from cellxpert.tasks.screens import Asked, Screen, Subjects

SMALL = SteeringConfig(n_cells=12, n_movable=8, min_cells=5)


@pytest.fixture(scope="session")
def small() -> SteeringConfig:
    """Few cells, few genes."""
    return SMALL


@pytest.fixture(scope="session")
def subjects(screened: cx.CellxPert) -> Subjects:
    """The cells that the model was trained on."""
    state, data = screened._state, screened._data
    cells = Cells.open(data, screened._setup)
    tokens = exchange.read(state, data, setup=screened._setup, call="test", inplace=False, own=True)
    return exchange.subjects_of(
        state, cells, tokens, groupby="cell_type", known=(screened._learned.split == "train").to_numpy()
    )


@pytest.fixture(scope="session")
def make_job(screened: cx.CellxPert, subjects: Subjects) -> Callable[..., Screen]:
    """Make a screen: ``make_job(genes, subjects=..., perturbations=..., network=..., vocabulary=..., **arguments)``."""
    state = screened._state

    def make(genes: Any, **arguments: Any) -> Screen:
        own = {
            "subjects": replace(subjects, group=None),
            "network": state.network,
            "perturbations": state.perturbations,
            "vocabulary": state.vocabulary,
        }
        given = {name: arguments.pop(name, value) for name, value in own.items()}
        asked = Asked(**({"genes": genes, "settings": SMALL, "n_chains": 2, "n_steps": 20} | arguments))
        return make_screen(asked, given.pop("subjects"), **given)

    return make


@pytest.fixture(scope="session")
def tiny() -> Network:
    """Eight features, three bins, two perturbed genes, float64; all weights drawn, so that all parts matter."""
    config = NetworkConfig(
        width=64, encoder_layers=1, decoder_layers=2, n_experts=2, expert_hidden=8, decoder_hidden=16, n_factors=3
    )
    generator = torch.Generator().manual_seed(0)
    network = Network(config, feature_modality=[0] * 8, n_bins=3, n_targets=2, generator=generator).double().eval()
    with torch.no_grad():
        network.bins.linear.weight.normal_(std=0.15, generator=generator)
        network.bins.prior.weight.normal_(std=0.5, generator=generator)
        network.embedding.bin.weight.normal_(std=1.0, generator=generator)
        for weight in network.factors.parameters():
            weight.normal_(std=0.4, generator=generator)
    return network


@pytest.fixture(scope="session")
def tiny_cells() -> Collator:
    """Three cells of eight features, all of which were measured."""
    bin_NV = np.array([[2, 1, 0, 1, 0, 2, 1, 0], [0, 1, 2, 0, 0, 1, 2, 1], [1, 0, 0, 2, 2, 0, 0, 2]])
    cell, feature = np.nonzero(bin_NV)
    tokens = Tokens(
        feature=feature.astype(np.int32),
        bin=bin_NV[cell, feature].astype(np.uint8),
        start=np.concatenate([[0], np.cumsum((bin_NV > 0).sum(axis=1))]),
        rows=np.arange(3),
        pattern=np.zeros(3, np.int32),
        measured_features=np.ones((1, 8), bool),
    )
    return Collator(tokens, n_features=8, n_bins=3)
