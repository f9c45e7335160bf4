"""What passes between data, network and losses.

Shape suffixes: B cells, T tokens of all cells laid end to end, L tokens of one cell, Q queries, M movable values, D width,
E experts, K bins, C labels, V features, P patterns of measured features, H hidden features of all cells, I interventions of a
cell, S directions of effects of perturbed genes, X coordinates of a place, F image features, G batches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["IGNORE", "Batch", "Intervention", "Output", "Questions", "RouterStats"]

IGNORE = -100
"""Target of a query that does not count, and label of a cell that has none."""


def _to(obj: Any, device: torch.device | str) -> Any:
    """Copy of a dataclass with every tensor (also inside nested dataclasses) on another device."""
    moved = {}
    for f in fields(obj):
        value = getattr(obj, f.name)
        if isinstance(value, Tensor):
            moved[f.name] = value.to(device, non_blocking=True)
        elif isinstance(value, Questions | Intervention):
            moved[f.name] = _to(value, device)
    return replace(obj, **moved)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What the decoder is asked, and what each query may see besides the memory of the context.

    A padded query has feature id -1 (its answer is meaningless and its target ``IGNORE``).
    """

    query_BQ: Tensor
    """Feature ids asked for (int64); -1 is padding."""
    target_BQ: Tensor | None = None
    """True bins (int64); ``IGNORE`` where they do not count."""
    value_feature_BM: Tensor | None = None
    """Feature ids of the movable values (int64); -1 is padding."""
    value_bin_BM: Tensor | None = None
    """Bins of the movable values (int64)."""
    visible_BQM: Tensor | None = None
    """Which movable values each query sees (bool). May be (1, Q, M): the same for all cells."""
    rate_B2: Tensor | None = None
    """Share of a cell's zero features (column 0) and of its non-zero ones (column 1) that became queries (float32); None
    if queries were drawn whatever their value. The losses correct for it, so that answers are frequencies in the cell."""

    def to(self, device: torch.device | str) -> Questions:
        """Copy on another device."""
        return _to(self, device)


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Genes that are set from outside, per cell."""

    feature_BI: Tensor
    """Feature ids (int64); -1 for a gene that is not among the features, and for padding."""
    target_BI: Tensor
    """Place among the genes that were perturbed in training cells (int64); -1 for others, and for padding."""
    dose_BI: Tensor
    """-1 is a knock-out, -0.7 a knock-down to 0.3, 1 a doubling; 0 is padding."""
    before: bool = False
    """Whether the context was read before the intervention (a control cell that is asked what would happen)."""
    code_BIS: Tensor | None = None
    """Codes added to those that were learned: predicted ones, of genes that were never perturbed."""
    usual_BI: Tensor | None = None
    """How much each gene does of what interventions usually do, 1 if None; cells take the largest of their genes."""
    pair_B: Tensor | None = None
    """How much of what genes set together do beside their parts is expected of this combination, 1 if None."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Cells as tokens, in one of two layouts.

    Packed (``pad_length is None``): T = sum of ``lengths_B``, cells end to end. Padded: T = B * ``pad_length``, cell b at
    ``b * pad_length``, its tokens first, feature id -1 after them. A cell's first token is always [CLS] (feature id
    ``n_features``, bin 0).
    """

    feature_T: Tensor
    """Feature ids (int64); ``n_features`` is [CLS], -1 padding."""
    bin_T: Tensor
    """Magnitude bins (int64)."""
    lengths_B: Tensor
    """Tokens per cell (int64, on the CPU), [CLS] included, padding not."""
    pad_length: int | None = None
    position_T: Tensor | None = None
    """Place of each token in its sequence, for networks with learned positions."""
    masked: Questions | None = None
    """Queries for hidden features, answered from the memory and the visible movable values."""
    whole: Questions | None = None
    """Queries answered from the cell's vector alone."""
    label_B: Tensor | None = None
    """Label codes (int64); ``IGNORE`` for unlabelled cells."""
    batch_B: Tensor | None = None
    """Codes of the cells' batches (int64), which the decoder alone is told; ``IGNORE`` for an unknown one."""
    row_B: Tensor | None = None
    """Row of each cell in ``obs_names`` (int64, on the CPU)."""
    measured_PV: Tensor | None = None
    """Features that were measured, one row per pattern (bool); None where zeros are tokens, or nothing is known of them."""
    pattern_B: Tensor | None = None
    """Row of each cell in ``measured_PV``."""
    hidden_feature_H: Tensor | None = None
    """Measured features that the context does not show, whatever their value (int64)."""
    hidden_cell_H: Tensor | None = None
    """Cell of each of them."""
    blank_B: Tensor | None = None
    """True for cells of which nothing is shown (bool)."""
    intervention: Intervention | None = None
    """Genes that are set from outside."""
    place_BX: Tensor | None = None
    """Place of each cell (float32), NaN where it is not known; None where places are not read."""
    image_BF: Tensor | None = None
    """Standardised image features (float32), NaN for cells without; None where they are not read."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.lengths_B)

    def to(self, device: torch.device | str) -> Batch:
        """Copy on another device; lengths and rows stay on the CPU."""
        return replace(_to(self, device), lengths_B=self.lengths_B, row_B=self.row_B)


@dataclass(frozen=True, kw_only=True)
class RouterStats:
    """What one mixture-of-experts layer did with the tokens that count (no padding, no [CLS])."""

    importance_E: Tensor
    """Sum of gate values per expert."""
    load_E: Tensor
    """Smooth estimate of the number of tokens per expert (Shazeer et al. 2017)."""
    z: Tensor
    """Mean squared log-sum-exp of the router's logits (scalar)."""
    count_E: Tensor
    """Tokens that each expert read (no gradient)."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the network returns for a batch; a part that was not asked for is None."""

    cell_BD: Tensor
    """Cell vectors."""
    masked_BQK: Tensor | None = None
    """Logits over bins for ``batch.masked``."""
    whole_BQK: Tensor | None = None
    """Logits over bins for ``batch.whole``."""
    label_BC: Tensor | None = None
    """Logits over labels."""
    routers: tuple[RouterStats, ...] = ()
    """One per mixture-of-experts layer."""
    alone: tuple[Tensor, Tensor] | None = None
    """Vectors (N, D) of the cells that have two modalities, read by one alone and by another alone."""
    batch_BG: Tensor | None = None
    """Logits over batches, of an adversary."""
