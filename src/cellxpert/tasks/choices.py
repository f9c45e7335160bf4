"""How a perturbation is put to the chains: the cells they start from, what moves, what is set, what they are drawn to.

Letters: N cells, M sites, V features, A anchors, I genes of an intervention, S directions of their effects.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cellxpert.batch import Intervention
from cellxpert.data.conditions import DOSES
from cellxpert.data.perturbations import gene_ids
from cellxpert.errors import GeneError, InterventionError
from cellxpert.metrics import baselines
from cellxpert.steering import Anchors
from cellxpert.tasks.bins import bins_at, bins_of, measured
from cellxpert.tasks.interventions import Request
from cellxpert.tasks.reference import medoid_anchors
from cellxpert.tasks.screens import Screen

__all__ = [
    "Sites",
    "anchors",
    "common_sites",
    "held_bins",
    "intervention",
    "own_sites",
    "regulators_of",
    "set_levels",
    "start_cells",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
MIN_EFFECT = 1e-3
"""Added to predicted effects where they weigh sites, so that every site counts."""


@dataclass(frozen=True, eq=False)
class Sites:
    """Features that chains see: held at a value, or movable."""

    held: Ints
    movable: Ints

    @property
    def feature_M(self) -> Ints:
        """Those that are held first."""
        return np.concatenate([self.held, self.movable])


def start_cells(job: Screen, request: Request, rows: Ints) -> Ints:
    """Choose start cells; where a gene is held at a share of its own value, those that express it, if there are enough."""
    own = job.own(request)
    if job.target == "zero-shot" and any(b is None for b in request.bins):
        expressing = rows[(bins_at(job.collator, rows, np.array(own)) > 0).any(axis=1)]
        if len(expressing) >= job.settings.min_cells:
            rows = expressing
    if len(rows) > job.settings.n_cells:
        rows = np.sort(np.random.default_rng([job.seed, 3]).choice(rows, job.settings.n_cells, replace=False))
    return rows


def common_sites(job: Screen, rows: Ints) -> Sites | None:
    """Choose sites that all perturbations of a screen share, and with them the null.

    None where they cannot: regulators differ from gene to gene, without all genes of the screen too few features are left, or genes
    are held: one that another request holds must be free to respond here.
    """
    if job.asked.regulators is not None or (job.target == "zero-shot" and len(job.requests) > 1):
        return None
    n_features = int((measured(job.collator, rows).any(axis=0) & ~job.niche_V).sum())
    found = _sites(job, job.requests, rows)
    enough = len(found.movable) >= min(job.settings.n_movable, n_features // 2)
    return found if enough or len(job.requests) == 1 else None


def own_sites(job: Screen, request: Request, rows: Ints) -> Sites:
    """Choose the sites of one perturbation.

    Raises
    ------
    InterventionError
        If nothing is left that could respond.
    """
    found = _sites(job, (request,), rows)
    if not len(found.movable):
        raise InterventionError(
            f"perturb({request.name!r})",
            found="no measured feature that is neither perturbed nor a regulator: nothing could respond",
            fix="perturb fewer genes at once, or name fewer regulators",
        )
    return found


def regulators_of(job: Screen, request: Request) -> list[int]:
    """Return the features that are said to act on a perturbed gene: they cannot respond to it."""
    given = job.asked.regulators or {}
    names = {name for gene in request.genes for name in given.get(gene, ())}
    return sorted(set(gene_ids(job.vocabulary, names).values()) - set(job.own(request)))


def _sites(job: Screen, requests: Sequence[Request], rows: Ints) -> Sites:
    """Take the features that the model expects to move most under any of the requests, in units of their deviation."""
    perturbed = sorted({feature for request in requests for feature in job.own(request)})
    barred = {feature for request in requests for feature in regulators_of(job, request)}
    score_V = functools.reduce(np.maximum, (_scores(job, request) for request in requests))
    score_V[~measured(job.collator, rows).any(axis=0)] = -1.0
    score_V[[*perturbed, *barred]] = -1.0
    score_V[job.niche_V] = -1.0  # what neighbours have does not follow what is done to the cell
    order = np.lexsort((np.arange(len(score_V)), -score_V))[: job.settings.n_movable]
    held = perturbed if job.target == "zero-shot" else []
    return Sites(np.array(held, np.int64), np.sort(order[score_V[order] >= 0]))


def _scores(job: Screen, request: Request) -> Floats:
    """How far the mean of each feature is expected to move (V,): in perturbed cells, or in a cell of which nothing else is known."""
    factors = job.network.factors
    assert factors is not None
    scale_V = np.minimum(np.abs(factors.scale_V.numpy()), 1e6)
    if job.target == "anchored" and job.observed is not None:
        return np.abs(job.told.delta(request.condition)) * scale_V
    plain_V = job.network.blank_means(None).numpy()
    if job.target != "zero-shot" and job.perturbations is not None:
        return np.abs(job.network.blank_means(intervention(job, request)).numpy() - plain_V) * scale_V
    own = np.array(job.own(request))
    set_M = bins_of(job.vocabulary, own, set_levels(job, request, _usual(job, own)))
    asked_V = job.network.blank_means(None, clamped=(own.tolist(), set_M.tolist())).numpy()
    return np.abs(asked_V - plain_V) * scale_V


def _usual(job: Screen, feature_M: Ints) -> Floats:
    """Usual magnitudes of features: what the factors know of them is on a scale of their own."""
    factors = job.network.factors
    assert factors is not None
    own_MK = factors.levels(torch.from_numpy(feature_M)).double().numpy()
    level_MK = job.vocabulary.decode(feature_M[:, None], np.arange(own_MK.shape[1]))
    centre_M = factors.centre_V.double().numpy()[feature_M]
    return np.array([np.interp(*x) for x in zip(centre_M, own_MK, level_MK, strict=True)])


def set_levels(job: Screen, request: Request, level_NM: npt.NDArray[np.floating]) -> Floats:
    """Return what the request makes of the magnitudes of its genes (those that are features); an axis before them may be missing."""
    level_NM = np.asarray(level_NM, np.float64).copy()
    at = [i for i, gene in enumerate(request.genes) if gene in job.features]
    for column, i in enumerate(at):
        fold, bin_ = request.fold[i], request.bins[i]
        if bin_ is not None:
            level_NM[..., column] = job.vocabulary.decode(job.features[request.genes[i]], bin_)
        elif fold != 1:
            level_NM[..., column] = np.log1p(fold * np.expm1(level_NM[..., column]))
    return level_NM


def held_bins(job: Screen, request: Request, sites: Sites, *, start_NM: Tensor) -> Tensor:
    """Return the bins of the held sites: what the request makes of each cell's own, others as they are."""
    held_NM = start_NM[:, : len(sites.held)].clone()
    at = [i for i, gene in enumerate(request.genes) if gene in job.features]
    own = np.array(job.own(request))
    column = np.searchsorted(sites.held, own)
    level_NM = set_levels(job, request, job.vocabulary.decode(own, held_NM[:, column].numpy()))
    new_NM = bins_of(job.vocabulary, own, level_NM)
    for place, i, bin_N in zip(column, at, new_NM.T, strict=True):
        if request.bins[i] is not None:
            held_NM[:, place] = request.bins[i]
        elif request.fold[i] != 1:
            held_NM[:, place] = torch.from_numpy(bin_N.copy())
    return held_NM


def intervention(job: Screen, request: Request) -> Intervention:
    """Return the request as the network takes it; what was never perturbed is carried over from what was."""
    assert job.perturbations is not None
    part = job.network.factors.intervention
    assigned = job.perturbations.assign_genes([request.genes], [request.doses(job.perturbations.kind)], job.vocabulary)
    code_BIS = torch.zeros(1, len(request.genes), part.code.weight.shape[1])
    # what all perturbations share grows with the dose as far as that of the training cells, and nothing is known of the reverse
    share_I = np.clip(np.nan_to_num(request.doses(job.perturbations.kind)) / DOSES[job.perturbations.kind], 0.0, 1.0)
    usual_BI = torch.from_numpy(share_I).float()[None]
    for i, gene in enumerate(request.genes):
        if gene not in job.carried:
            continue
        weight_G = job.carried[gene]
        code_BIS[0, i] = weight_G @ part.code.weight.detach()
        usual_BI[0, i] *= weight_G.sum()
    seen = len(request.genes) == 1 or job.perturbations.combined(request.genes)
    return Intervention(
        feature_BI=torch.from_numpy(assigned.feature_NI),
        target_BI=torch.from_numpy(assigned.target_NI),
        dose_BI=torch.from_numpy(assigned.dose_NI),
        before=True,
        code_BIS=code_BIS,
        usual_BI=usual_BI,
        pair_B=None if seen else part.pair_gain[None].clone(),
    )


def anchors(job: Screen, request: Request, feature_M: Ints) -> tuple[Anchors, float | None]:
    """Return what chains are drawn to, and the mean distance to aim at (None: the strength is given).

    Observed medoids of the condition; or control medoids moved by a linear prediction, to which moved cells should be as near
    as control cells are to theirs.
    """
    observed, settings = job.observed, job.settings
    assert observed is not None
    if job.target == "anchored":
        found, aim = observed.anchors(request.condition, feature_M, settings=settings, seed=job.seed)
    else:
        effect_M = _linear_effect(job, request)[feature_M]
        control_NM = observed.bins(observed.control, feature_M, seed=job.seed)
        found, aim = medoid_anchors(control_NM, np.abs(effect_M) + MIN_EFFECT, settings=settings)
        level_AM = job.vocabulary.decode(feature_M, found.bin_AM.numpy()) + effect_M
        moved_AM = bins_of(job.vocabulary, feature_M, np.maximum(level_AM, 0.0))
        found = replace(found, bin_AM=torch.from_numpy(moved_AM))
    return found, aim if settings.kappa is None else None


def _linear_effect(job: Screen, request: Request) -> Floats:
    """Effect (V,) by bilinear ridge regression on embeddings: those given, or the network's own of what genes read."""
    observed, embedding = job.observed, job.embedding
    assert observed is not None
    if embedding is None:
        names, first = job.vocabulary.block("rna").names, job.vocabulary.offset("rna")
        read = job.network.factors.read.weight[first : first + len(names)]
        embedding = pd.DataFrame(read.detach().numpy(), index=names)
    seen = [name for name in observed.perturbed if name != request.condition and name in embedding.index]
    lost = [gene for gene in request.genes if gene not in embedding.index]
    if len(seen) < 2 or lost:
        raise GeneError(
            f"perturb({request.name!r}, target='predicted')",
            found=f"no embedding of {lost}" if lost else f"{len(seen)} other perturbed genes with an embedding, of 2",
            fix="pass target_embedding= with a row for the gene and for the genes perturbed in training",
        )
    delta = np.stack([observed.delta(name) for name in seen])
    control_V = observed.mean(observed.control)
    centroids = np.concatenate([control_V[None], control_V + delta])
    return baselines.linear(
        delta,
        gene_embedding_GD=baselines.principal_genes(centroids, n_components=min(10, *centroids.shape)),
        target_embedding_TD=embedding.loc[seen].to_numpy(np.float64),
        query_embedding_QD=embedding.loc[list(request.genes)].to_numpy(np.float64).sum(axis=0, keepdims=True),
    )[0]
