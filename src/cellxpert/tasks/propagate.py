"""What perturbed cells do to the cells next to them: niches change, and cells are asked what they expect in the new ones.

Letters: N cells, S start cells, V features, W niche features, G genes, Q queries, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse

from cellxpert.batch import Questions
from cellxpert.data.collate import Collator
from cellxpert.data.roles import NICHE
from cellxpert.tasks.bins import bins_at, bins_of, measured, rebinned
from cellxpert.tasks.response import TABLE_COLUMNS, PerturbResult, effect_table
from cellxpert.tasks.screens import Screen

__all__ = ["Around", "changed_niches", "with_surroundings"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
N_FOLDS = 4
"""Parts in which the genes of a cell are asked for: each from a context that does not hold it."""
AT_ONCE = 256
"""Cells asked side by side."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Around:
    """Who is next to whom, and the niches that follow from it."""

    graph_NN: sparse.csr_array
    """Weight of each neighbour in a cell's niche; rows sum to 1, or to 0 without neighbours."""
    level_NV: Floats
    """Magnitude of each niche feature in each cell's niche."""


def changed_niches(
    around: Around, start_S: Ints, shift_SW: npt.NDArray[np.floating], *, asked_N: npt.NDArray[np.bool_]
) -> tuple[Ints, Floats, Floats]:
    """Return the cells that have a start cell as neighbour and are none, their niches after these changed, and how much of them did.

    Parameters
    ----------
    around
        Neighbours and niches.
    start_S
        Cells that change.
    shift_SW
        By how much the magnitude of each niche feature changes in them.
    asked_N
        Which cells are looked at.
    """
    weight_NS = sparse.csr_array(around.graph_NN[:, start_S])
    reached = np.setdiff1d(np.flatnonzero((np.diff(weight_NS.indptr) > 0) & asked_N), start_S)
    level_NV = around.level_NV[reached] + weight_NS[reached] @ shift_SW
    share = np.asarray(weight_NS[reached].sum(axis=1)).ravel()
    return reached, np.maximum(level_NV, 0.0).astype(np.float32), share.astype(np.float32)


def with_surroundings(job: Screen, result: PerturbResult, around: Around) -> PerturbResult:
    """Add to a result how the cells next to the perturbed ones respond."""
    niche = job.vocabulary.offset(NICHE) + np.arange(len(job.vocabulary.block(NICHE).names))
    place_of = {name: place for place, name in enumerate(job.genes)}
    gene_of_niche = np.array([place_of.get(name, -1) for name in job.vocabulary.block(NICHE).names])
    row_of = {name: row for row, name in enumerate(job.subjects.names)}
    # cells that were perturbed themselves, or of which no gene was measured, say nothing of what surroundings do
    asked_N = measured(job.collator, np.arange(len(job.subjects.names)))[:, job.place_G].any(axis=1)
    if job.subjects.condition is not None:
        asked_N &= np.asarray(job.subjects.condition, dtype=object) == job.subjects.control
    of_conditions = result.conditions.set_index(["perturbation", "group"])["converged"]
    converged = {key: bool(value) for key, value in of_conditions.items()}
    tables, reached = [pd.DataFrame(columns=list(TABLE_COLUMNS))], {}
    for key, expression in result.expression.items():
        start_S = np.array([row_of[name] for name in result.cells[key]])
        shift_SG = _magnitudes(job, expression["perturbed"]) - _magnitudes(job, expression["null"])
        shift_SW = np.where(gene_of_niche >= 0, np.nan_to_num(shift_SG)[:, gene_of_niche], 0.0)
        rows, level_NW, share = changed_niches(around, start_S, shift_SW, asked_N=asked_N)
        if not len(rows):
            continue
        bin_NW = bins_of(job.vocabulary, niche, level_NW.astype(np.float64))
        before = rebinned(job.collator, rows, niche, bin_NM=bins_at(job.collator, rows, niche))
        after = rebinned(job.collator, rows, niche, bin_NM=bin_NW)
        null, perturbed = (_expected(job, collator) for collator in (before, after))
        start_NG = job.level_VK.numpy()[job.place_G, bins_at(job.collator, rows, job.place_G)]
        start_NG = np.where(measured(job.collator, rows)[:, job.place_G], start_NG, np.nan)
        nothing_G = np.zeros(len(job.genes), bool)
        tables.append(
            effect_table(
                key=key,
                genes=job.genes,
                perturbed=perturbed,
                null=null,
                start_NG=start_NG.astype(np.float32),
                is_target=nothing_G,
                is_movable=nothing_G,
                converged=converged[key],
            )
        )
        with torch.no_grad():
            latent = [job.network.encode(after(part)).cell_BD.float().numpy() for part in _portions(len(rows))]
        reached[key] = {
            "cells": [str(job.subjects.names[row]) for row in rows],
            "perturbed": perturbed[0],
            "null": null[0],
            "latent": np.concatenate(latent),
            "share": share,
        }
    surroundings = pd.concat(tables[1:], ignore_index=True) if len(tables) > 1 else tables[0]
    return replace(result, surroundings=surroundings, reached=reached)


def _magnitudes(job: Screen, level_NG: Floats) -> npt.NDArray[np.float64]:
    """Results as the magnitudes that niches are means of: their counts are per 10,000."""
    return np.log1p(np.expm1(level_NG.astype(np.float64)) * (1e4 / job.settings.target_sum))


def _portions(n_cells: int) -> list[Ints]:
    return [np.arange(begin, min(begin + AT_ONCE, n_cells)) for begin in range(0, n_cells, AT_ONCE)]


@torch.no_grad()
def _expected(job: Screen, collator: Collator) -> tuple[Floats, Floats]:
    """Return what each gene is expected at given the niche and the genes of the other folds: mean levels and mean counts, (N, G)."""
    network, n_cells = job.network, collator.tokens.n_cells
    asked_G = np.flatnonzero(measured(collator, np.arange(n_cells))[:, job.place_G].any(axis=0))
    level_NG = np.full((n_cells, len(job.place_G)), np.nan, np.float32)
    count_NG = level_NG.copy()
    for part in _portions(n_cells):
        for fold in range(min(N_FOLDS, len(asked_G))):
            place = asked_G[fold::N_FOLDS]
            hidden_V = np.zeros(network.n_features, bool)
            hidden_V[job.place_G[place]] = True
            memory = network.memory(network.encode(collator.context(part, hidden_V)))
            query_Q = torch.from_numpy(job.place_G[place])
            p_NQK = network.decode(Questions(query_BQ=query_Q.expand(len(part), -1)), memory).softmax(-1)
            level_QK = job.level_VK[query_Q]
            level_NG[np.ix_(part, place)] = (p_NQK * level_QK).sum(-1).numpy()
            count_NG[np.ix_(part, place)] = (p_NQK * level_QK.expm1()).sum(-1).numpy()
    return level_NG, count_NG
