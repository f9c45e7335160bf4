"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellxpert.config import TrainingConfig
from cellxpert.training.optimizers import build_optimizer, learning_rate_factor, parameter_groups


def test_matrices_decay_and_tables_norms_and_biases_do_not() -> None:
    network = nn.ModuleDict({"linear": nn.Linear(2, 3), "table": nn.Embedding(4, 2), "norm": nn.RMSNorm(2)})
    decayed, free = parameter_groups(network, weight_decay=0.1, learning_rate=0.5)
    assert [id(p) for p in decayed["params"]] == [id(network["linear"].weight)]
    assert {id(p) for p in free["params"]} == {
        id(network["linear"].bias),
        id(network["table"].weight),
        id(network["norm"].weight),
    }
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(network, weight_decay=0.1, learning_rate=0.5)) == 1


@pytest.mark.parametrize("n_steps", [1, 2, 10, 1000])
def test_schedule_rises_then_falls_to_its_floor(n_steps: int) -> None:
    factors = [
        learning_rate_factor(s, n_steps=n_steps, warmup_fraction=0.1, final_fraction=0.05) for s in range(n_steps)
    ]
    peak = factors.index(max(factors))
    assert all(0 < f <= 1 for f in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if n_steps >= 10:
        assert max(factors) == pytest.approx(1)
        assert factors[-1] == pytest.approx(0.05)


def test_optimizer_takes_the_settings() -> None:
    network = nn.Linear(2, 2)
    optimizer, scheduler = build_optimizer(network, TrainingConfig(learning_rate=0.5, warmup_fraction=0.5), n_steps=10)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5 / 5)


def test_interventions_learn_slowly() -> None:
    """They begin at the observed effects."""
    network = nn.ModuleDict(
        {"factors": nn.ModuleDict({"intervention": nn.Embedding(3, 2), "read": nn.Embedding(3, 2)})}
    )
    free, slow = parameter_groups(network, weight_decay=0.1, learning_rate=0.5)
    assert [len(group["params"]) for group in (free, slow)] == [1, 1]
    assert slow["params"][0] is network["factors"]["intervention"].weight
    assert (free["lr"], slow["lr"]) == (0.5, 0.05)
    assert slow["weight_decay"] == 0
