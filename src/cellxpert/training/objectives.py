"""What the network is trained to do: each objective is a small function that returns a scalar.

Shape suffixes: B cells, Q queries, K bins, C labels, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cellxpert.batch import IGNORE, Batch, Output, Questions, RouterStats
from cellxpert.config import TrainingConfig

__all__ = ["bins_loss", "class_weights", "label_loss", "router_losses", "total_loss"]

EFFECTIVE_NUMBER_BETA = 0.99
"""beta of the effective number of samples, (1 - beta^n) / (1 - beta) (Cui et al. 2019)."""


def _mean_cross_entropy(
    logits_NK: Tensor, target_N: Tensor, weight_K: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy that is 0, not NaN, where no target counts."""
    if not bool((target_N != IGNORE).any()):
        return logits_NK.sum() * 0.0
    return F.cross_entropy(logits_NK.float(), target_N, weight=weight_K, ignore_index=IGNORE, label_smoothing=smoothing)


def bins_loss(logits_BQK: Tensor, questions: Questions) -> Tensor:
    """Mean negative log-likelihood of the true bins, in nats; targets ``IGNORE`` do not count.

    Zeros and other values become queries at different rates (``questions.rate_B2``). Among the queries, bin k then has
    odds that are its odds in the cell times its rate, so the loss is that of the logits plus the log rate: the logits
    themselves learn the frequencies in the cell (a consequence of Bayes' rule; King & Zeng 2001 use it for rare events).
    """
    assert questions.target_BQ is not None
    if questions.rate_B2 is not None:
        log_rate_B2 = questions.rate_B2.clamp(min=1e-6).log()
        shift_BK = log_rate_B2[:, 1:].expand(-1, logits_BQK.shape[-1]).clone()
        shift_BK[:, 0] = log_rate_B2[:, 0]
        logits_BQK = logits_BQK + shift_BK[:, None, :]
    return _mean_cross_entropy(logits_BQK.flatten(0, 1), questions.target_BQ.flatten())


def class_weights(counts_C: Sequence[int] | Tensor, kind: Literal["plain", "weighted", "balanced"]) -> Tensor | None:
    """Weight of each class in the label objective.

    Parameters
    ----------
    counts_C
        Training cells per class.
    kind
        ``"plain"``: none. ``"weighted"``: 1 / n (arXiv:2605.00930, whose normaliser cancels in the weighted mean).
        ``"balanced"``: the inverse of the effective number of samples (Cui et al. 2019).

    Returns
    -------
    Weights of mean 1 over the classes that occur (0 for the others), or None for ``"plain"``.
    """
    if kind == "plain":
        return None
    count_C = torch.as_tensor(counts_C, dtype=torch.float64)
    seen_C = count_C > 0
    if kind == "weighted":
        weight_C = 1 / count_C.clamp(min=1)
    else:
        weight_C = (1 - EFFECTIVE_NUMBER_BETA) / (1 - EFFECTIVE_NUMBER_BETA ** count_C.clamp(min=1))
    weight_C = torch.where(seen_C, weight_C, 0)
    return (weight_C * seen_C.sum() / weight_C.sum()).float()


def label_loss(logits_BC: Tensor, label_B: Tensor, *, weight_C: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of labels, a mean weighted by class; unlabelled cells (``IGNORE``) do not count."""
    return _mean_cross_entropy(logits_BC, label_B, weight_C, smoothing)


def router_losses(routers: Sequence[RouterStats]) -> dict[str, Tensor]:
    """Squared coefficients of variation of importance and load (Shazeer et al. 2017) and the z-loss, means over layers."""

    def squared_variation(x_E: Tensor) -> Tensor:
        return x_E.var(correction=0) / (x_E.mean() ** 2 + 1e-10)

    return {
        "importance": torch.stack([squared_variation(r.importance_E) for r in routers]).mean(),
        "load": torch.stack([squared_variation(r.load_E) for r in routers]).mean(),
        "router_z": torch.stack([r.z for r in routers]).mean(),
    }


def total_loss(
    output: Output, batch: Batch, *, config: TrainingConfig, weight_C: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the objectives that the batch allows, and each of them by name (detached)."""
    terms: dict[str, Tensor] = {}
    if output.masked_BQK is not None and batch.masked is not None and batch.masked.target_BQ is not None:
        terms["bins"] = bins_loss(output.masked_BQK, batch.masked)
    if output.whole_BQK is not None and batch.whole is not None and batch.whole.target_BQ is not None:
        terms["cell"] = bins_loss(output.whole_BQK, batch.whole)
    if output.label_BC is not None and batch.label_B is not None:
        terms["label"] = label_loss(output.label_BC, batch.label_B, weight_C=weight_C, smoothing=config.label_smoothing)
    if output.routers:
        terms |= router_losses(output.routers)
    loss = torch.stack([getattr(config, f"{name}_weight") * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}
