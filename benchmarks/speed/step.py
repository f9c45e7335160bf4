"""One training step, the same for ours and the rivals. Imports nothing but torch: memory is measured with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["step_of"]


def step_of(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that does one training step: forward, backward, AdamW."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step
