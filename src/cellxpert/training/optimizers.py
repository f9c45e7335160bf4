"""AdamW with two parameter groups, and a learning rate that warms up, then falls as a cosine."""

from __future__ import annotations

import math

import torch
from torch import nn

from cellxpert.config import TrainingConfig

__all__ = ["build_optimizer", "learning_rate_factor", "parameter_groups"]


INTERVENTION_PACE = 0.1
"""Learning rate of what interventions do, relative to the others': it begins at the observed effects."""


def parameter_groups(network: nn.Module, *, weight_decay: float, learning_rate: float) -> list[dict[str, object]]:
    """Split trainable parameters: matrices decay; norms, biases, embeddings and per-feature tables do not."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    decayed, free, slow = [], [], []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".intervention." in name:
            slow.append(parameter)
        else:
            (free if parameter.ndim < 2 or id(parameter) in tables else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "lr": learning_rate},
        {"params": free, "weight_decay": 0.0, "lr": learning_rate},
        {"params": slow, "weight_decay": 0.0, "lr": INTERVENTION_PACE * learning_rate},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, *, n_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """Share of the peak learning rate at a step: linear up, cosine down to ``final_fraction`` at the last step."""
    warmup = max(1, round(warmup_fraction * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, n_steps - 1 - warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    network: nn.Module, config: TrainingConfig, *, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW and its schedule over ``n_steps`` optimiser steps."""
    optimizer = torch.optim.AdamW(
        parameter_groups(network, weight_decay=config.weight_decay, learning_rate=config.learning_rate),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        fused=next(network.parameters()).device.type in {"cpu", "cuda"},  # one pass over the weights
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            step,
            n_steps=n_steps,
            warmup_fraction=config.warmup_fraction,
            final_fraction=config.final_fraction,
        ),
    )
    return optimizer, scheduler
