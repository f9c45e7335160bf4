"""What the network is trained to do: each objective is a small function that returns a scalar.

Shape suffixes: B cells, D width, Q queries, K bins, C labels, E experts, G batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cellxpert.batch import IGNORE, Batch, Output, Questions, RouterStats
from cellxpert.config import LabelLoss, TrainingConfig

__all__ = [
    "LabelObjective",
    "adversary_loss",
    "bins_loss",
    "class_margins",
    "class_weights",
    "contrast_loss",
    "label_loss",
    "router_losses",
    "total_loss",
]

EFFECTIVE_NUMBER_BETA = 0.99
"""beta of the effective number of samples, (1 - beta^n) / (1 - beta) (Cui et al. 2019)."""
MAX_MARGIN = 2.0
"""Margin of the rarest label, in logits."""
TEMPERATURE = 0.1
"""What cosines are divided by in the contrast."""


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
    target_N = questions.target_BQ.flatten()
    if not bool((target_N != IGNORE).any()):  # 0, not NaN
        return logits_BQK.sum() * 0.0
    return F.cross_entropy(logits_BQK.flatten(0, 1).float(), target_N, ignore_index=IGNORE)


def class_margins(counts_C: Sequence[int] | Tensor) -> Tensor:
    """Margins of label-distribution-aware margin loss (Cao et al. 2019): proportional to n^(-1/4), ``MAX_MARGIN`` for the rarest."""
    count_C = torch.as_tensor(counts_C, dtype=torch.float64)
    margin_C = torch.where(count_C > 0, count_C.clamp(min=1) ** -0.25, 0)
    return (MAX_MARGIN * margin_C / margin_C.max()).float()


def class_weights(counts_C: Sequence[int] | Tensor, kind: LabelLoss) -> Tensor | None:
    """Weight of each class in the label objective.

    Parameters
    ----------
    counts_C
        Training cells per class.
    kind
        ``"plain"``: none. ``"weighted"``: 1 / n (arXiv:2605.00930, whose normaliser cancels in the weighted mean).
        ``"balanced"``: the inverse of the effective number of samples (Cui et al. 2019). ``"ldam"``: none, see
        :func:`class_margins`.

    Returns
    -------
    Weights of mean 1 over the classes that occur (0 for the others), or None where all cells weigh alike.
    """
    if kind in {"plain", "ldam"}:
        return None
    count_C = torch.as_tensor(counts_C, dtype=torch.float64)
    seen_C = count_C > 0
    if kind == "weighted":
        weight_C = 1 / count_C.clamp(min=1)
    else:
        weight_C = (1 - EFFECTIVE_NUMBER_BETA) / (1 - EFFECTIVE_NUMBER_BETA ** count_C.clamp(min=1))
    weight_C = torch.where(seen_C, weight_C, 0)
    return (weight_C * seen_C.sum() / weight_C.sum()).float()


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelObjective:
    """How labels count."""

    weight_C: Tensor | None = None
    """Weight of each label's cells."""
    margin_C: Tensor | None = None
    """Margin of each label."""
    allowed_CC: Tensor | None = None
    """What a cell with a label may be: its row. None: that label alone."""
    smoothing: float = 0.0


def label_loss(logits_BC: Tensor, label_B: Tensor, objective: LabelObjective) -> Tensor:
    """Cross-entropy of labels, a mean weighted by class; unlabelled cells (``IGNORE``) do not count.

    A label that others are part of counts as the sum of these and itself: the marginal cross-entropy.
    """
    known_B = label_B != IGNORE
    if not bool(known_B.any()):
        return logits_BC.sum() * 0.0
    logits_BC, label_B = logits_BC[known_B].float(), label_B[known_B]
    if objective.allowed_CC is None:
        allowed_BC = F.one_hot(label_B, logits_BC.shape[1]).bool()
    else:
        allowed_BC = objective.allowed_CC[label_B]
    if objective.margin_C is not None:
        logits_BC = logits_BC - allowed_BC * objective.margin_C
    log_p_BC = logits_BC.log_softmax(-1)
    loss_B = -log_p_BC.masked_fill(~allowed_BC, -torch.inf).logsumexp(-1)
    loss_B = (1 - objective.smoothing) * loss_B - objective.smoothing * log_p_BC.mean(-1)
    weight_B = torch.ones_like(loss_B) if objective.weight_C is None else objective.weight_C[label_B]
    return (weight_B * loss_B).sum() / weight_B.sum()


def contrast_loss(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Symmetric InfoNCE of pairs of vectors (van den Oord et al. 2018; of two kinds of input, Radford et al. 2021), in nats.

    Each vector has to tell its partner from the others', by cosines; log B is chance. Fewer than two pairs count as 0.
    """
    if len(a_BD) < 2:
        return (a_BD.sum() + b_BD.sum()) * 0.0
    cosine_BB = F.normalize(a_BD.float(), dim=1) @ F.normalize(b_BD.float(), dim=1).T
    own_B = torch.arange(len(a_BD), device=a_BD.device)
    return (F.cross_entropy(cosine_BB / TEMPERATURE, own_B) + F.cross_entropy(cosine_BB.T / TEMPERATURE, own_B)) / 2


def adversary_loss(logits_BG: Tensor, batch_B: Tensor) -> Tensor:
    """Mean cross-entropy of an adversary, in nats; cells whose batch is not told (``IGNORE``) do not count."""
    if not bool((batch_B != IGNORE).any()):
        return logits_BG.sum() * 0.0
    return F.cross_entropy(logits_BG.float(), batch_B, ignore_index=IGNORE)


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
    output: Output, batch: Batch, *, config: TrainingConfig, labels: LabelObjective | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the objectives that the batch allows, and each of them by name (detached)."""
    terms: dict[str, Tensor] = {}
    if output.masked_BQK is not None and batch.masked is not None and batch.masked.target_BQ is not None:
        terms["bins"] = bins_loss(output.masked_BQK, batch.masked)
    if output.whole_BQK is not None and batch.whole is not None and batch.whole.target_BQ is not None:
        terms["cell"] = bins_loss(output.whole_BQK, batch.whole)
    if output.label_BC is not None and batch.label_B is not None:
        terms["label"] = label_loss(output.label_BC, batch.label_B, labels or LabelObjective())
    if output.alone is not None:
        terms["contrast"] = contrast_loss(*output.alone)
    if output.batch_BG is not None and batch.batch_B is not None:
        terms["adversary"] = adversary_loss(output.batch_BG, batch.batch_B)
    if output.routers:
        terms |= router_losses(output.routers)
    loss = torch.stack([getattr(config, f"{name}_weight") * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}
