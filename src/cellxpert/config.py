"""What a model is made of: frozen, validated settings that travel as JSON inside every checkpoint.

A :class:`ModelConfig` has three parts: how cells become tokens (:class:`TokenConfig`), the network that reads them
(:class:`NetworkConfig`) and how it is trained (:class:`TrainingConfig`). :func:`preset` returns the named ones.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from cellxpert.errors import ConfigError

__all__ = [
    "PRESETS",
    "AdapterConfig",
    "LabelLoss",
    "ModelConfig",
    "NetworkConfig",
    "SteeringConfig",
    "TokenConfig",
    "TrainingConfig",
    "preset",
]

LabelLoss = Literal["plain", "weighted", "balanced", "ldam"]
"""How the cells of rare and of common labels count; see :class:`TrainingConfig`."""
HEAD_WIDTH = 64
"""Width of one attention head: 64 is the size that attention kernels are tuned for."""


def _require(condition: bool, what: str, found: object, fix: str) -> None:  # noqa: FBT001
    if not condition:
        raise ConfigError(what, found=repr(found), fix=fix)


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """How a cell becomes a sequence of (feature, magnitude) tokens.

    Parameters
    ----------
    n_genes, n_peaks, n_proteins
        Most variable features kept per modality, chosen on training cells. Their sum is bounded by ``max_tokens - 1``.
    n_niche
        The same for what neighbours have, where a setup says who they are; 0 leaves niches out.
    place, image
        Read places and image features, where a setup names them.
    n_bins
        Number of magnitude bins, bin 0 being an exact zero (50 in arXiv:2605.00930).
    binning
        ``"global"``: quantile edges per modality over the training cells' non-zero values, kept in the vocabulary.
        ``"per_cell"``: quantiles within each cell.
    zeros
        ``"drop"``: only non-zero features are read (a measured zero can still be asked for). ``"keep"``: every measured
        feature of the vocabulary is a token.
    max_tokens
        Longest sequence, [CLS] included.
    """

    n_genes: int = 2000
    n_peaks: int = 1000
    n_proteins: int = 300
    n_niche: int = 150
    place: bool = True
    image: bool = True
    n_bins: int = 50
    binning: Literal["global", "per_cell"] = "global"
    zeros: Literal["drop", "keep"] = "drop"
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("n_genes", "n_peaks", "n_proteins"):
            _require(getattr(self, name) >= 1, f"TokenConfig.{name}", getattr(self, name), "give at least 1")
        _require(self.n_niche >= 0, "TokenConfig.n_niche", self.n_niche, "give 0 or more")
        _require(3 <= self.n_bins <= 256, "TokenConfig.n_bins", self.n_bins, "give 3 to 256 bins")
        _require(
            self.binning in {"global", "per_cell"}, "TokenConfig.binning", self.binning, "use 'global' or 'per_cell'"
        )
        _require(self.zeros in {"drop", "keep"}, "TokenConfig.zeros", self.zeros, "use 'drop' or 'keep'")
        _require(2 <= self.max_tokens <= 4096, "TokenConfig.max_tokens", self.max_tokens, "give 2 to 4096 tokens")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network.

    Parameters
    ----------
    width
        Width of a token, a multiple of 64 (attention heads are 64 wide).
    encoder_layers, decoder_layers
        Number of blocks.
    n_experts, experts_per_token, expert_hidden
        Experts per encoder block, how many of them read each token, and the hidden width of one (multiple of 8).
    decoder_hidden
        Hidden width of the decoder's dense feed-forward.
    feed_forward
        ``"experts"``, or ``"dense"``: one feed-forward of equal active size in their place (the ablation).
    decoder_experts
        Experts in the decoder too (as published).
    position
        Add a learned embedding of each token's place in the sequence (as published).
    pooling
        What a cell's vector is made of: ``"cls"``: [CLS] alone (as published), or ``"mean"``: a linear reading of the
        cell's magnitudes, [CLS] and the mean of the other tokens.
    n_factors
        Factors of the linear model that the answers contain (see the model guide); 0 for none. Interventions
        act on them.
    dropout
        Dropout on the residual branches, while training.
    label_dropout
        Dropout inside the label head, while training.
    label_gradient
        Share, from 0 to 1, of the label objective's gradient that reaches what is below the cell vector. At 0 the cell
        vector is learned from counts alone, and the label head is fitted to its optimum after training: better where
        labelled cells are few.
    n_prompts
        Learned tokens that every cell gets beside its own, read by the encoder alone; 0 for none.
    batches
        Tell the decoder each cell's batch, where the setup names it and the training cells have two or more. The encoder is never
        told, and a cell of an unknown batch is answered for as one of any.
    attention
        ``"auto"``, or one of ``"flash"``, ``"varlen"``, ``"sdpa"``, ``"reference"``.
    """

    width: int = 128
    encoder_layers: int = 3
    decoder_layers: int = 2
    n_experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 128
    decoder_hidden: int = 256
    feed_forward: Literal["experts", "dense"] = "experts"
    decoder_experts: bool = False
    position: bool = False
    pooling: Literal["mean", "cls"] = "mean"
    n_factors: int = 64
    dropout: float = 0.1
    label_dropout: float = 0.5
    label_gradient: float = 0.0
    n_prompts: int = 0
    batches: bool = True
    attention: Literal["auto", "flash", "varlen", "sdpa", "reference"] = "auto"

    @property
    def n_heads(self) -> int:
        """Number of attention heads."""
        return self.width // HEAD_WIDTH

    def __post_init__(self) -> None:
        _require(
            self.width >= HEAD_WIDTH and self.width % HEAD_WIDTH == 0,
            "NetworkConfig.width",
            self.width,
            f"give a multiple of {HEAD_WIDTH}",
        )
        for name in ("encoder_layers", "decoder_layers", "n_experts", "experts_per_token"):
            _require(getattr(self, name) >= 1, f"NetworkConfig.{name}", getattr(self, name), "give at least 1")
        for name in ("expert_hidden", "decoder_hidden"):
            hidden = getattr(self, name)
            _require(hidden >= 8 and hidden % 8 == 0, f"NetworkConfig.{name}", hidden, "give a multiple of 8")
        _require(
            self.experts_per_token <= self.n_experts,
            "NetworkConfig.experts_per_token",
            self.experts_per_token,
            "give at most n_experts",
        )
        _require(
            self.feed_forward in {"experts", "dense"},
            "NetworkConfig.feed_forward",
            self.feed_forward,
            "use 'experts' or 'dense'",
        )
        for name in ("n_factors", "n_prompts"):
            _require(getattr(self, name) >= 0, f"NetworkConfig.{name}", getattr(self, name), "give 0 or more")
        _require(self.pooling in {"mean", "cls"}, "NetworkConfig.pooling", self.pooling, "use 'mean' or 'cls'")
        _require(0 <= self.label_gradient <= 1, "NetworkConfig.label_gradient", self.label_gradient, "use [0, 1]")
        for name in ("dropout", "label_dropout"):
            rate = getattr(self, name)
            _require(0 <= rate < 1, f"NetworkConfig.{name}", rate, "give a number in [0, 1)")
        _require(
            self.attention in {"auto", "flash", "varlen", "sdpa", "reference"},
            "NetworkConfig.attention",
            self.attention,
            "use 'auto', 'flash', 'varlen', 'sdpa' or 'reference'",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the network is trained.

    Parameters
    ----------
    max_epochs, n_steps
        Where a run is not told its number of epochs: as many as come closest to ``n_steps`` optimiser steps, from 3 to
        ``max_epochs``. Small data need many passes, large data few.
    batch_size
        Cells per step.
    learning_rate, weight_decay, warmup_fraction, final_fraction, gradient_clip
        AdamW with linear warm-up, then cosine decay to ``final_fraction`` of the peak; the norm of the gradient is clipped.
    mask_ratio
        Range from which the masked share of a cell's tokens is drawn, anew for every cell and epoch.
    blank
        Share of cells of which nothing is shown but what was done to them: what a gene says by itself, and what is done to it, is
        learned there. None: 0.3 where perturbed cells are registered, else 0.1.
    modality_dropout
        Share of the cells with two or more measured modalities of which, in a step, one whole modality is hidden and asked for.
    n_queries, n_cell_queries
        Features asked per cell and step of the masked-bin and of the whole-cell objective.
    bins_weight, cell_weight, label_weight
        Weights of the masked-bin, whole-cell and label objectives.
    contrast_weight
        Weight of the contrast between the vectors of a cell read by one of its modalities alone and by another alone. It costs two
        more passes of the encoder; at 0 there are none.
    adversary_weight
        Weight of an adversary that tells the batch from the cell vector while the encoder learns that it cannot, where the decoder
        is told of batches; 0 for none.
    importance_weight, load_weight, router_z_weight
        Weights of the router's losses (Shazeer et al. 2017; Zoph et al. 2022).
    label_loss
        ``"plain"``, ``"weighted"`` (inverse class frequency, arXiv:2605.00930), ``"balanced"`` (effective number of
        samples, Cui et al. 2019: labels of fewer than about a hundred cells weigh more) or ``"ldam"`` (label-distribution-aware
        margins, Cao et al. 2019). Only the first gives probabilities that are those of cells as frequent as in training.
    label_smoothing
        Label smoothing of the label objective.
    ema_decay
        Decay of the moving average of the weights that a run ends with; 0 ends with the last weights.
    patience
        Epochs without improvement before early stopping ends training.
    """

    max_epochs: int = 30
    n_steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    final_fraction: float = 0.05
    gradient_clip: float = 1.0
    mask_ratio: tuple[float, float] = (0.1, 0.7)
    blank: float | None = None
    modality_dropout: float = 0.0
    n_queries: int = 32
    n_cell_queries: int = 64
    bins_weight: float = 1.0
    cell_weight: float = 1.0
    label_weight: float = 1.0
    contrast_weight: float = 0.0
    adversary_weight: float = 0.0
    importance_weight: float = 1e-2
    load_weight: float = 1e-2
    router_z_weight: float = 1e-3
    label_loss: LabelLoss = "balanced"
    label_smoothing: float = 0.0
    ema_decay: float = 0.99
    patience: int = 10

    def __post_init__(self) -> None:
        for name in ("max_epochs", "n_steps", "batch_size", "n_queries", "n_cell_queries", "patience"):
            _require(getattr(self, name) >= 1, f"TrainingConfig.{name}", getattr(self, name), "give at least 1")
        _require(self.learning_rate > 0, "TrainingConfig.learning_rate", self.learning_rate, "give a positive number")
        for name in (
            "weight_decay",
            "bins_weight",
            "cell_weight",
            "label_weight",
            "contrast_weight",
            "adversary_weight",
            "importance_weight",
            "load_weight",
            "router_z_weight",
        ):
            _require(getattr(self, name) >= 0, f"TrainingConfig.{name}", getattr(self, name), "give 0 or more")
        object.__setattr__(self, "mask_ratio", tuple(float(r) for r in self.mask_ratio))
        low, high = self.mask_ratio
        _require(0 < low <= high < 1, "TrainingConfig.mask_ratio", self.mask_ratio, "give 0 < low <= high < 1")
        _require(
            self.label_loss in {"plain", "weighted", "balanced", "ldam"},
            "TrainingConfig.label_loss",
            self.label_loss,
            "use 'plain', 'weighted', 'balanced' or 'ldam'",
        )
        for name in ("blank", "modality_dropout"):
            share = getattr(self, name)
            _require(share is None or 0 <= share < 1, f"TrainingConfig.{name}", share, "use [0, 1)")
        _require(0 <= self.ema_decay < 1, "TrainingConfig.ema_decay", self.ema_decay, "use [0, 1)")
        _require(0 <= self.label_smoothing < 1, "TrainingConfig.label_smoothing", self.label_smoothing, "use [0, 1)")

    def share_blank(self, *, perturbed: bool) -> float:
        """``blank``, decided; ``perturbed``: whether perturbed cells are registered."""
        if self.blank is not None:
            return self.blank
        return 0.3 if perturbed else 0.1


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """How :meth:`cellxpert.CellxPert.perturb` samples.

    Parameters
    ----------
    kernel
        ``"auto"``: exact independent draws (``"ancestral"``) where the target is the model's own law, ``"block"`` where anchors
        steer. ``"suffix"``, ``"multiple-try"``, ``"informed"`` and ``"tilted"`` are the other moves of
        :mod:`cellxpert.steering`; ``"fill-in"`` draws every gene once, unaware of the others: for means alone.
    n_movable
        Genes that can respond; the others stay as they are in the start cell, and are read out at the end.
    n_cells
        Most control cells of a group that chains start from.
    min_cells
        Fewest.
    block_size, temperature, mix
        Genes drawn at once by ``"block"`` and ``"multiple-try"``, temperature of their proposals, share of an even distribution
        in these.
    adapt
        Whether the number of genes drawn at once follows the acceptance in the burn-in.
    n_tries
        Candidates of ``"multiple-try"``.
    weight
        Weight of the model in the target (lambda).
    part
        The model's part: ``"joint"`` in one order per chain, ``"pseudo"``-likelihood, or ``"none"``.
    n_anchors
        Observed cells that anchored chains are drawn to.
    kappa
        Strength of the anchors in nats per bin and gene; None: such that chains come as near to them as held-out perturbed
        training cells do.
    distance
        ``"bins"``, ``"squared"`` or ``"histogram"``; see :class:`cellxpert.steering.Anchors`.
    draws_per_step
        Independent draws for every step asked for, where draws are independent.
    target_sum
        Counts per cell that results are scaled to before log1p.
    """

    kernel: Literal["auto", "ancestral", "suffix", "block", "multiple-try", "informed", "tilted", "fill-in"] = "auto"
    n_movable: int = 64
    n_cells: int = 200
    min_cells: int = 10
    block_size: int = 4
    temperature: float = 1.0
    mix: float = 0.0
    adapt: bool = True
    n_tries: int = 16
    weight: float = 1.0
    part: Literal["joint", "pseudo", "none"] = "joint"
    n_anchors: int = 8
    kappa: float | None = None
    distance: Literal["bins", "squared", "histogram"] = "bins"
    draws_per_step: float = 0.04
    target_sum: float = 1e4

    def __post_init__(self) -> None:
        kernels = {"auto", "ancestral", "suffix", "block", "multiple-try", "informed", "tilted", "fill-in"}
        _require(self.kernel in kernels, "SteeringConfig.kernel", self.kernel, f"use one of {sorted(kernels)}")
        _require(self.part in {"joint", "pseudo", "none"}, "SteeringConfig.part", self.part, "use 'joint' or 'pseudo'")
        distances = {"bins", "squared", "histogram"}
        _require(
            self.distance in distances, "SteeringConfig.distance", self.distance, f"use one of {sorted(distances)}"
        )
        for name in ("n_movable", "n_cells", "min_cells", "block_size", "n_tries", "n_anchors"):
            value = getattr(self, name)
            _require(
                type(value) is int and value >= 1, f"SteeringConfig.{name}", value, "give a whole number, at least 1"
            )
        for name in ("temperature", "draws_per_step", "target_sum"):
            _require(getattr(self, name) > 0, f"SteeringConfig.{name}", getattr(self, name), "give a positive number")
        _require(0 <= self.mix < 1, "SteeringConfig.mix", self.mix, "use [0, 1)")
        _require(self.weight >= 0, "SteeringConfig.weight", self.weight, "give 0 or more")
        _require(self.kappa is None or self.kappa >= 0, "SteeringConfig.kappa", self.kappa, "give 0 or more, or None")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What an adapter adds to a network: see :meth:`cellxpert.CellxPert.add_adapter`.

    Parameters
    ----------
    method
        ``"lora"``: updates of low rank to chosen weights (Hu et al. 2021). ``"prompts"``: learned tokens beside a cell's own
        (Lester et al. 2021).
    rank
        Rank of an update. An expert's is ``rank / experts_per_token``, at least 1: the experts that read one token share it.
    alpha
        Updates are scaled by ``alpha / rank``.
    targets
        Weights that are updated, by their full names, or the ends of these.
    n_prompts
        Number of learned tokens.
    """

    method: Literal["lora", "prompts"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    n_prompts: int = 0

    def __post_init__(self) -> None:
        _require(self.method in {"lora", "prompts"}, "AdapterConfig.method", self.method, "use 'lora' or 'prompts'")
        _require(type(self.rank) is int and self.rank >= 1, "AdapterConfig.rank", self.rank, "give 1 or more")
        _require(0 < self.alpha < float("inf"), "AdapterConfig.alpha", self.alpha, "give a positive number")
        least = int(self.method == "prompts")
        given = type(self.n_prompts) is int and self.n_prompts >= least
        _require(given, "AdapterConfig.n_prompts", self.n_prompts, f"give {least} or more")
        object.__setattr__(self, "targets", tuple(self.targets))
        named = all(isinstance(name, str) for name in self.targets)
        _require(named, "AdapterConfig.targets", self.targets, "give names of weights")
        _require(
            bool(self.targets) == (self.method == "lora"),
            "AdapterConfig.targets",
            self.targets,
            "name weights for 'lora' only",
        )

    @property
    def scale(self) -> float:
        """What updates are multiplied by."""
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self) | {"targets": list(self.targets)}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides what a model is: tokens, network, training."""

    tokens: TokenConfig = field(default_factory=TokenConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy in which single settings, whatever part they belong to, have other values.

        >>> preset("nano").replace(width=128, max_epochs=5).network.width
        128
        """
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in changes.items():
            owners = [part for part, settings in parts.items() if hasattr(settings, name)]
            if not owners:
                known = sorted(f.name for s in parts.values() for f in dataclasses.fields(s))
                raise ConfigError("ModelConfig.replace", found=f"unknown setting {name!r}", fix=f"use one of {known}")
            parts[owners[0]] = dataclasses.replace(parts[owners[0]], **{name: value})
        return ModelConfig(**parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested plain values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Rebuild the settings; an unknown or ill-typed name is an error."""
        kinds = {"tokens": TokenConfig, "network": NetworkConfig, "training": TrainingConfig}
        try:
            return cls(**{name: kinds[name](**settings) for name, settings in data.items()})
        except (TypeError, KeyError) as error:
            raise ConfigError("ModelConfig.from_dict", found=str(error), fix="remove the unknown setting") from error


def _paper() -> ModelConfig:
    base = PRESETS["base"]
    # experts everywhere, a little smaller each: the same number of parameters
    return base.replace(
        zeros="keep",
        position=True,
        pooling="cls",
        decoder_experts=True,
        expert_hidden=480,
        n_factors=0,
        batches=False,
        label_loss="weighted",
        blank=0.0,
    )


PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        network=NetworkConfig(
            width=64, encoder_layers=2, decoder_layers=1, n_experts=4, expert_hidden=64, decoder_hidden=128
        ),
        training=TrainingConfig(learning_rate=5e-3, max_epochs=16),
    ),
    "mini": ModelConfig(network=NetworkConfig()),
    "base": ModelConfig(
        tokens=TokenConfig(n_genes=4095),
        network=NetworkConfig(
            width=256, encoder_layers=4, decoder_layers=3, expert_hidden=640, decoder_hidden=1760, label_gradient=1.0
        ),
        training=TrainingConfig(
            learning_rate=3e-4,
            batch_size=64,
            n_steps=20_000,
            mask_ratio=(0.05, 0.5),
            n_queries=96,
            n_cell_queries=48,
            ema_decay=0.999,
        ),
    ),
}
PRESETS["paper"] = _paper()


def preset(name: str) -> ModelConfig:
    """Return a named configuration.

    Parameters
    ----------
    name
        ``"nano"``, ``"mini"``, ``"base"`` or ``"paper"``.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if name not in PRESETS:
        raise ConfigError("preset", found=repr(name), fix=f"use one of {sorted(PRESETS)}")
    return PRESETS[name]
