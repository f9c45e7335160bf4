"""What one call of :meth:`cellxpert.CellxPert.perturb` is about: cells, arguments, and what its perturbations share.

Letters: V features, G genes, K bins.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellxpert.config import SteeringConfig
from cellxpert.data.collate import Collator
from cellxpert.data.perturbations import Perturbations, gene_ids
from cellxpert.data.roles import MODALITIES, NICHE
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.nn.network import Network
from cellxpert.tasks.interventions import Request
from cellxpert.tasks.reference import Observed, unseen_weights

__all__ = ["Asked", "Screen", "Subjects"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Subjects:
    """The cells of an object, and what is known of each."""

    collator: Collator
    names: Sequence[str]
    control: str
    """Name of the control condition."""
    condition: Sequence[str] | None = None
    """None: all are control cells."""
    known: npt.NDArray[np.bool_] | None = None
    """Cells whose condition may be used for anchors and baselines: those trained on. None: all."""
    group: Sequence[str] | None = None
    """None: all are of the group ``"all"``."""

    def fingerprint(self) -> str:
        """Hash of all that a prediction depends on."""
        tokens, digest = self.collator.tokens, hashlib.sha256()
        for array in (tokens.feature, tokens.bin, tokens.start, tokens.pattern, tokens.measured_features, self.known):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        for words in (self.names, (self.control,), self.condition, self.group):
            digest.update(b"-" if words is None else "\0".join(words).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of the call, see there."""

    genes: Any
    n_steps: int = 200
    target: str = "auto"
    n_chains: int | None = None
    seed: int = 0
    settings: SteeringConfig = field(default_factory=SteeringConfig)
    regulators: Mapping[str, Collection[str]] | pd.DataFrame | None = None
    """A table as it was given; those of a :class:`Screen` are a mapping."""
    embedding: pd.DataFrame | None = None
    groupby: str | None = None
    folder: Path | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Screen:
    """Everything that the perturbations of one call share."""

    network: Network
    vocabulary: Vocabulary
    perturbations: Perturbations | None
    """What the model has seen of perturbed cells."""
    subjects: Subjects
    requests: tuple[Request, ...]
    groups: Mapping[str, Ints]
    """Control cells of each group, as positions among the tokens."""
    observed: Observed | None
    """Cells of known conditions that anchors and baselines are made of."""
    target: str
    kernel: str
    n_steps: int
    n_replicates: int
    asked: Asked

    @property
    def n_conditions(self) -> int:
        """Number of perturbations times groups."""
        return len(self.requests) * len(self.groups)

    @property
    def settings(self) -> SteeringConfig:
        """How to sample."""
        return self.asked.settings

    @property
    def seed(self) -> int:
        """Seed of all that is drawn."""
        return self.asked.seed

    @property
    def collator(self) -> Collator:
        """Tokens of the cells."""
        return self.subjects.collator

    @functools.cached_property
    def features(self) -> dict[str, int]:
        """Feature of each gene that is perturbed, where it is one."""
        return gene_ids(self.vocabulary, {gene for request in self.requests for gene in request.genes})

    @functools.cached_property
    def gene_features(self) -> dict[str, int]:
        """Feature of every gene that is one."""
        return gene_ids(self.vocabulary, set(self.vocabulary.names))

    def own(self, request: Request) -> list[int]:
        """Features among the genes of a request."""
        return [self.features[gene] for gene in request.genes if gene in self.features]

    @functools.cached_property
    def embedding(self) -> pd.DataFrame | None:
        """What is known of genes beside the data, with text as row names."""
        given = self.asked.embedding
        return None if given is None else given.set_axis(given.index.astype(str))

    @functools.cached_property
    def carried(self) -> dict[str, torch.Tensor]:
        """Of each gene that was never perturbed, the weights with which the effects of those that were carry over to it."""
        assert self.perturbations is not None
        assert self.network.factors is not None
        seen, part = self.perturbations.targets, self.network.factors.intervention
        genes = sorted({gene for request in self.requests for gene in request.genes} - set(seen))
        effect_GV = (part.code.weight @ part.direct.weight.T + part.usual.weight.T).detach().double().numpy()
        weight_QG = unseen_weights(self.embedding, seen=seen, genes=genes, effect_GV=effect_GV)
        return dict(zip(genes, torch.from_numpy(weight_QG).float(), strict=True))

    @functools.cached_property
    def niche_V(self) -> npt.NDArray[np.bool_]:
        """Which features are of niches: context, whatever is perturbed."""
        return self.vocabulary.role_of_feature == MODALITIES.index(NICHE)

    @functools.cached_property
    def place_G(self) -> Ints:
        """Features that results are about: the genes, or all that were measured in the cell where there are none."""
        if "rna" not in self.vocabulary.roles:
            return np.flatnonzero(~self.niche_V)
        return self.vocabulary.offset("rna") + np.arange(len(self.vocabulary.block("rna").names))

    @functools.cached_property
    def genes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.vocabulary.names[place] for place in self.place_G)

    @functools.cached_property
    def level_VK(self) -> torch.Tensor:
        """Magnitude that results give to each bin of each feature (those of genes scaled to ``target_sum``)."""
        level_VK = self.vocabulary.decode(np.arange(self.network.n_features)[:, None], np.arange(self.network.n_bins))
        if "rna" in self.vocabulary.roles and self.vocabulary.block("rna").transform == "log":
            level_VK[self.place_G] = np.log1p(np.expm1(level_VK[self.place_G]) * (self.settings.target_sum / 1e4))
        return torch.from_numpy(level_VK).float()

    @functools.cached_property
    def reported(self) -> Observed:
        """Observed cells on the scale of results; without any, they still say the magnitudes of the control cells."""
        level_VK = self.level_VK.double().numpy()
        if self.observed is not None:
            return replace(self.observed, level_VK=level_VK)
        names, nobody = [""] * len(self.subjects.names), np.zeros(0, np.int64)
        return Observed(collator=self.collator, condition=names, rows=nobody, control="", level_VK=level_VK)

    @functools.cached_property
    def told(self) -> Observed:
        """Observed cells on the scale of the network's factors."""
        assert self.observed is not None
        assert self.network.factors is not None
        level_VK = self.network.factors.levels(torch.arange(self.network.n_features))
        return replace(self.observed, level_VK=level_VK.double().numpy())

    def fingerprint(self, model_hash: str) -> dict[str, Any]:
        """Plain values that differ where any result could."""
        from importlib.metadata import version

        asked = self.asked
        return {
            "cellxpert": version("cellxpert"),
            "model": model_hash,
            "cells": self.subjects.fingerprint(),
            "perturbations": [[r.name, *map(repr, (r.fold, r.bins))] for r in self.requests],
            "groups": list(self.groups),
            "target": self.target,
            "n_steps": self.n_steps,
            "n_chains": self.n_replicates,
            "seed": asked.seed,
            "settings": vars(asked.settings),
            "regulators": None if asked.regulators is None else {k: sorted(v) for k, v in asked.regulators.items()},
            "embedding": None
            if self.embedding is None
            else hashlib.sha256(self.embedding.to_csv().encode()).hexdigest(),
        }
