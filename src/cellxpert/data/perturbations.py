"""Perturbed cells: which genes were set from outside in each, read from the names of their conditions.

Legend: N cells, I interventions of a cell, V features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.data.conditions import DOSES, Kind, genes_of
from cellxpert.data.tokens import Tokens
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import VocabularyError

__all__ = ["Assigned", "Perturbations", "gene_ids", "without_targets"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Assigned:
    """Interventions of many cells; rows end with padding (feature and target -1, dose 0)."""

    feature_NI: Ints
    target_NI: Ints
    dose_NI: npt.NDArray[np.float32]

    @property
    def intervened(self) -> npt.NDArray[np.bool_]:
        """Which cells have any."""
        return (self.dose_NI != 0).any(axis=1)


@dataclass(frozen=True, kw_only=True)
class Perturbations:
    """What a model has seen of perturbed cells. Travels with a checkpoint."""

    conditions: tuple[str, ...]
    """Perturbed conditions among the training cells, sorted."""
    targets: tuple[str, ...]
    """Genes that were set in these, sorted; not all of them need be features."""
    control: str
    kind: Kind = "knockout"

    @classmethod
    def fit(cls, condition: Sequence[str], *, control: str, kind: Kind) -> Perturbations:
        """Collect the conditions of training cells."""
        conditions = tuple(sorted(set(condition) - {control}))
        targets = tuple(sorted({gene for name in conditions for gene in genes_of(name, control)}))
        return cls(conditions=conditions, targets=targets, control=control, kind=kind)

    def combined(self, genes: Sequence[str]) -> bool:
        """Say whether training cells have these genes set together, and no others."""
        return any(set(genes_of(name, self.control)) == set(genes) for name in self.conditions)

    def assign(self, condition: pd.Series, vocabulary: Vocabulary) -> Assigned:
        """Say which genes are set in each cell."""
        names = [genes_of(name, self.control) for name in condition.astype(str)]
        return self.assign_genes(names, [[DOSES[self.kind]] * len(genes) for genes in names], vocabulary)

    def assign_genes(
        self, genes: Sequence[Sequence[str]], doses: Sequence[Sequence[float]], vocabulary: Vocabulary
    ) -> Assigned:
        """The same from lists of genes and doses, one per cell."""
        width = max([len(g) for g in genes], default=0) or 1
        place = {name: i for i, name in enumerate(self.targets)}
        feature_of = gene_ids(vocabulary, {g for names in genes for g in names})
        feature_NI = np.full((len(genes), width), -1, np.int64)
        target_NI, dose_NI = feature_NI.copy(), np.zeros(feature_NI.shape, np.float32)
        for row, (names, dose) in enumerate(zip(genes, doses, strict=True)):
            for column, (name, amount) in enumerate(zip(names, dose, strict=True)):
                feature_NI[row, column] = feature_of.get(name, -1)
                target_NI[row, column] = place.get(name, -1)
                dose_NI[row, column] = amount
        return Assigned(feature_NI, target_NI, dose_NI)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "conditions": list(self.conditions),
            "targets": list(self.targets),
            "control": self.control,
            "kind": self.kind,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Perturbations:
        """Rebuild from :meth:`to_dict`.

        Raises
        ------
        VocabularyError
            If an entry is missing or is not what it should be.
        """
        try:
            lists = data["conditions"], data["targets"]
            if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists):
                raise TypeError("conditions and targets are no lists of names")
            conditions, targets = map(tuple, lists)
            found = cls(conditions=conditions, targets=targets, control=str(data["control"]), kind=data["kind"])
        except (KeyError, TypeError) as error:
            raise VocabularyError("perturbations", found=repr(error), fix="copy the whole folder again") from error
        if found.kind not in tuple(DOSES) or list(found.targets) != sorted(set(found.targets)):
            raise VocabularyError("perturbations", found=f"{found.kind!r}, {found.targets[:5]}", fix="copy it again")
        return found


def gene_ids(vocabulary: Vocabulary, names: set[str]) -> dict[str, int]:
    """Return the feature id of each gene that is a feature, by name or by Ensembl id."""
    if "rna" not in vocabulary.roles:
        return {}
    block, offset = vocabulary.block("rna"), vocabulary.offset("rna")
    by_name = {name: offset + i for i, name in enumerate(block.names)}
    by_id = {} if block.ids is None else {name: offset + i for i, name in enumerate(block.ids) if name}
    return {name: found for name in names if (found := by_name.get(name, by_id.get(name))) is not None}


def without_targets(tokens: Tokens, assigned: Assigned) -> Tokens:
    """Return the tokens without those of the genes that are set in their cell; these count as not measured there.

    What is left of a gene that was cut out, or forced on, says nothing about the genes that regulate it.
    """
    own_NI = np.where(assigned.dose_NI != 0, assigned.feature_NI, -1)
    cell_T = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
    kept_T = ~(tokens.feature[:, None] == own_NI[cell_T]).any(axis=1)
    combination = np.concatenate([tokens.pattern[:, None].astype(np.int64), np.sort(own_NI, axis=1)], axis=1)
    unique, pattern = np.unique(combination, axis=0, return_inverse=True)
    measured = tokens.measured_features[unique[:, 0]].copy()
    for row, features in zip(measured, unique[:, 1:], strict=True):
        row[features[features >= 0]] = False
    lengths = np.bincount(cell_T[kept_T], minlength=tokens.n_cells)
    return replace(
        tokens,
        feature=tokens.feature[kept_T],
        bin=tokens.bin[kept_T],
        start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pattern=pattern.reshape(-1).astype(np.int32),
        measured_features=measured,
    )
