from __future__ import annotations

import dataclasses
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellxpert.config import (
    PRESETS,
    LabelLoss,
    ModelConfig,
    NetworkConfig,
    SteeringConfig,
    TokenConfig,
    TrainingConfig,
    preset,
)
from cellxpert.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(
    width=st.integers(1, 8).map(lambda n: 64 * n),
    n_bins=st.integers(3, 256),
    ratios=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)).map(sorted),
    zeros=st.sampled_from(["drop", "keep"]),
)
def test_any_valid_config_survives_json(width, n_bins, ratios, zeros):
    config = ModelConfig().replace(width=width, n_bins=n_bins, mask_ratio=tuple(ratios), zeros=zeros)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_replace_changes_one_setting_and_copies():
    before = preset("nano")
    after = before.replace(max_epochs=7, n_genes=50)
    assert (after.training.max_epochs, after.tokens.n_genes) == (7, 50)
    assert preset("nano") == before
    assert after.network == before.network
    assert after.replace(max_epochs=before.training.max_epochs, n_genes=before.tokens.n_genes) == before


def test_setting_names_are_unambiguous():
    """``replace`` finds a setting by its name alone."""
    names = [f.name for kind in (TokenConfig, NetworkConfig, TrainingConfig) for f in dataclasses.fields(kind)]
    assert len(set(names)) == len(names)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("nano").network.width = 128


BAD = [
    ("n_genes", 0),
    ("n_bins", 2),
    ("n_bins", 257),
    ("binning", "per-cell"),
    ("zeros", True),
    ("max_tokens", 4097),
    ("width", 100),
    ("width", 0),
    ("encoder_layers", 0),
    ("experts_per_token", 99),
    ("expert_hidden", 12),
    ("feed_forward", "moe"),
    ("dropout", 1.0),
    ("attention", "fast"),
    ("max_epochs", 0),
    ("batch_size", 0),
    ("learning_rate", 0.0),
    ("bins_weight", -1.0),
    ("mask_ratio", (0.5, 0.1)),
    ("mask_ratio", (0.0, 0.1)),
    ("label_loss", "focal"),
    ("label_smoothing", 1.0),
    ("n_factors", -1),
    ("blank", 1.0),
    ("blank", -0.1),
    ("modality_dropout", 1.0),
    ("modality_dropout", -0.1),
    ("contrast_weight", -0.1),
    ("adversary_weight", -0.1),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}={v}" for n, v in BAD])
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        ModelConfig().replace(**{name: value})


def test_ways_that_labels_count():
    assert TrainingConfig().label_loss == "balanced"
    assert {name: preset(name).training.label_loss for name in PRESETS} == {
        "nano": "balanced",
        "mini": "balanced",
        "base": "balanced",
        "paper": "weighted",
    }
    for kind in get_args(LabelLoss):
        config = ModelConfig().replace(label_loss=kind)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="'heads'"):
        ModelConfig().replace(heads=4)
    with pytest.raises(ConfigError, match="tiny"):
        preset("tiny")
    with pytest.raises(ConfigError, match="decoder"):
        ModelConfig.from_dict({"decoder": {}})
    with pytest.raises(ConfigError, match="depth"):
        ModelConfig.from_dict({"network": {"depth": 3}})


def test_heads_are_64_wide():
    assert [preset(name).network.n_heads for name in ("nano", "mini", "base")] == [1, 2, 4]


def test_a_network_may_have_no_factors_and_the_published_one_has_none():
    assert ModelConfig().replace(n_factors=0).network.n_factors == 0
    assert preset("paper").network.n_factors == 0
    assert all(preset(name).network.n_factors > 0 for name in ("nano", "mini", "base"))


BAD_STEERING = [
    ("kernel", "gibbs"),
    ("part", "all"),
    ("distance", "euclidean"),
    ("n_movable", 0),
    ("n_cells", 0),
    ("min_cells", 0),
    ("block_size", 0),
    ("n_tries", 0),
    ("n_anchors", 0),
    ("temperature", 0.0),
    ("draws_per_step", 0.0),
    ("target_sum", -1e4),
    ("mix", 1.0),
    ("mix", -0.1),
    ("weight", -1.0),
    ("kappa", -0.5),
]


@pytest.mark.parametrize(("name", "value"), BAD_STEERING, ids=[f"{n}={v}" for n, v in BAD_STEERING])
def test_impossible_ways_to_steer_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"SteeringConfig\.{name}"):
        SteeringConfig(**{name: value})


def test_ways_to_steer():
    assert SteeringConfig().kappa is None
    assert SteeringConfig(kappa=0.0, weight=0.0, mix=0.0).kappa == 0
    for name, values in {
        "kernel": ("auto", "ancestral", "suffix", "block", "multiple-try", "informed", "tilted", "fill-in"),
        "part": ("joint", "pseudo", "none"),
        "distance": ("bins", "squared", "histogram"),
    }.items():
        assert [getattr(SteeringConfig(**{name: v}), name) for v in values] == list(values)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SteeringConfig().kernel = "block"


def test_how_many_cells_show_nothing():
    """More of them where what interventions do is learned; none in the published system."""
    assert [TrainingConfig().share_blank(perturbed=p) for p in (False, True)] == [0.1, 0.3]
    assert [TrainingConfig(blank=0.2).share_blank(perturbed=p) for p in (False, True)] == [0.2, 0.2]
    assert not preset("paper").training.share_blank(perturbed=True)
