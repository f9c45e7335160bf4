"""Predictions of what cells do when genes are perturbed: chains, their paired null, what trivial predictions say, diagnostics.

Letters: N start cells, J replicates, C = N * J chains, D draws, M sites, P sites that move, T steps, V features, G genes,
K bins, B cells of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellxpert.steering.diagnostics import convergence
from cellxpert.tasks import choices, kept
from cellxpert.tasks.arms import INDEPENDENT, Arm, Population
from cellxpert.tasks.bins import bins_at, measured
from cellxpert.tasks.checks import ANCHORED
from cellxpert.tasks.choices import Sites
from cellxpert.tasks.interventions import Request
from cellxpert.tasks.kept import Part
from cellxpert.tasks.readout import Outcome, Readout
from cellxpert.tasks.reference import trivial_effects
from cellxpert.tasks.response import CONDITION_COLUMNS, PerturbResult, effect_table, trajectory_table
from cellxpert.tasks.screens import Screen

__all__ = ["screen"]

Floats = npt.NDArray[np.float32]
SILENT = 0.01
"""A gene expressed in a smaller share of the start cells counts as silent."""
CONVERGED = 1.01
N_HELD = 2
"""Nulls held in memory."""


def screen(job: Screen, *, model_hash: str = "", progress: Callable[[], None] | None = None) -> PerturbResult:
    """Predict every perturbation in every group.

    Parameters
    ----------
    job
        What is asked.
    model_hash
        Hash of the network's weights, by which finished conditions are known to be of the same model.
    progress
        Called when a condition is finished.

    Raises
    ------
    ResumeError
        If the folder holds another screen.
    GeneError, InterventionError
        If nothing can be predicted of a perturbation, or nothing is left to respond to it.
    """
    folder = job.asked.folder
    if folder is not None:
        kept.open_folder(folder, job.fingerprint(model_hash))
    parts = []
    for number, group in enumerate(job.groups):
        nulls = _Nulls(job, group)
        for place, request in enumerate(job.requests):
            part = kept.read(folder, (place, number))
            if part is None:
                part = _predict(job, request, group, nulls.of(request))
                kept.write(folder, (place, number), part)
            parts.append(part)
            if progress is not None:
                progress()
    return PerturbResult(
        table=pd.concat([p.table for p in parts], ignore_index=True),
        conditions=pd.DataFrame([p.condition for p in parts], columns=list(CONDITION_COLUMNS)),
        baselines=pd.concat([p.baselines for p in parts], ignore_index=True),
        trajectory=pd.concat([p.trajectory for p in parts], ignore_index=True),
        genes=job.genes,
        expression={p.key: p.expression for p in parts},
        latent={p.key: p.latent for p in parts},
        cells={p.key: p.cells for p in parts},
        draws={p.key: p.draws for p in parts},
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Null:
    """Start cells with one choice of sites, and what they do unperturbed."""

    sites: Sites
    population: Population
    readout: Readout
    arm: Arm
    outcome: Outcome
    start_NV: Floats
    start_latent: Floats
    latent: Floats


class _Nulls:
    """Nulls of a group, which perturbations share; the latest few are held."""

    def __init__(self, job: Screen, group: str) -> None:
        self.job, self.rows = job, job.groups[group]
        self.found: dict[tuple[bytes, ...], _Null] = {}

    @functools.cached_property
    def common(self) -> Sites | None:
        """Sites of all perturbations, if they can share them."""
        return choices.common_sites(self.job, self.rows)

    def of(self, request: Request) -> _Null:
        """Run the null of a perturbation, unless it ran before."""
        sites = self.common or choices.own_sites(self.job, request, self.rows)
        rows = choices.start_cells(self.job, request, self.rows)
        key = tuple(x.tobytes() for x in (sites.held, sites.movable, rows))
        if key not in self.found:
            self.found = dict(list(self.found.items())[1 - N_HELD :])  # before the next one takes its place
            self.found[key] = _run_null(self.job, sites, rows)
        return self.found[key]


def _run_null(job: Screen, sites: Sites, rows: npt.NDArray[np.int64]) -> _Null:
    population = Population(
        job.network,
        job.collator,
        rows=rows,
        feature_M=sites.feature_M,
        n_held=len(sites.held),
        n_replicates=job.n_replicates,
        level_VK=job.level_VK,
        settings=job.settings,
        seed=job.seed,
    )
    here_NV = measured(job.collator, rows)
    readout = Readout(population, asked_V=here_NV.any(axis=0) & ~job.niche_V)
    arm = population.run(kernel=job.kernel, n_steps=job.n_steps, plain=job.target in ANCHORED)
    features = np.arange(job.network.n_features)
    start_NV = job.level_VK.numpy()[features, bins_at(job.collator, rows, features)]
    with torch.no_grad():
        start_latent = job.network.encode(job.collator(rows)).cell_BD.float().numpy()
    return _Null(
        sites=sites,
        population=population,
        readout=readout,
        arm=arm,
        outcome=readout.outcome(arm, None),
        start_NV=np.where(here_NV, start_NV, np.nan).astype(np.float32),
        start_latent=start_latent,
        latent=readout.latent(arm),
    )


def _predict(job: Screen, request: Request, group: str, null: _Null) -> Part:
    """Run the perturbed arm and compare it with the null."""
    population, sites, place_G = null.population, null.sites, job.place_G
    intervention = held_NM = anchors = aim = None
    if job.target == "zero-shot":
        held_NM = choices.held_bins(job, request, sites, start_NM=population.start_NM)
    elif job.perturbations is not None:
        intervention = choices.intervention(job, request)
    if job.target in ANCHORED:
        anchors, aim = choices.anchors(job, request, sites.feature_M)
    arm = population.run(
        kernel=job.kernel,
        n_steps=job.n_steps,
        intervention=intervention,
        held_NM=held_NM,
        anchors=anchors,
        aim=aim,
    )
    level_NV, count_NV = null.readout.outcome(arm, intervention)
    drawn_NV, own = null.readout.drawn(arm, null.start_NV), job.own(request)
    if job.target != "zero-shot" and own:  # there they are held; here nothing was learned of what they become
        level_NV[:, own] = choices.set_levels(job, request, null.outcome[0][:, own])
        drawn_NV[:, own] = choices.set_levels(job, request, null.start_NV[:, own])
        fold_M = [fold for gene, fold in zip(request.genes, request.fold, strict=True) if gene in job.features]
        count_NV[:, own] = null.outcome[1][:, own] * np.array(fold_M)
    held = choices.regulators_of(job, request)
    level_NV[:, held], count_NV[:, held] = null.outcome[0][:, held], null.outcome[1][:, held]
    is_target_V, is_movable_V = np.zeros(job.network.n_features, bool), np.zeros(job.network.n_features, bool)
    is_target_V[own] = True
    is_movable_V[sites.movable] = True
    key, start_NG = (request.name, group), null.start_NV[:, place_G]
    draws = _draws(job, population, arm, null.arm)
    se_chains_V = np.full(job.network.n_features, np.nan)
    if job.n_replicates > 1:
        chain_JP = draws["effect"].mean(axis=1)
        se_chains_V[sites.movable] = chain_JP.std(axis=0, ddof=1) / np.sqrt(job.n_replicates)
    condition = _condition(job, request, group, null, arm=arm, draws=draws)
    return Part(
        key=key,
        table=effect_table(
            key=key,
            genes=job.genes,
            perturbed=(level_NV[:, place_G], count_NV[:, place_G]),
            null=(null.outcome[0][:, place_G], null.outcome[1][:, place_G]),
            start_NG=start_NG,
            is_target=is_target_V[place_G],
            is_movable=is_movable_V[place_G],
            se_chains=se_chains_V[place_G],
            converged=bool(condition["converged"]),
        ),
        condition=condition,
        baselines=_baselines(job, request, group),
        trajectory=trajectory_table(key, {"perturbed": arm, "null": null.arm}, n_replicates=job.n_replicates),
        expression={
            "start": start_NG,
            "perturbed": level_NV[:, place_G],
            "null": null.outcome[0][:, place_G],
            "drawn": drawn_NV[:, place_G],
        },
        latent={"start": null.start_latent, "perturbed": null.readout.latent(arm), "null": null.latent},
        cells=[str(job.subjects.names[i]) for i in population.rows],
        draws=draws,
    )


def _condition(
    job: Screen, request: Request, group: str, null: _Null, *, arm: Arm, draws: dict[str, npt.NDArray[np.generic]]
) -> dict[str, object]:
    """Row of the table of conditions: what was sampled, flags, diagnostics."""
    told, n_draws = convergence(draws["effect"]), float(draws["log_density"].size)
    # of independent draws there is no chain that could be elsewhere
    r_hat, ess_bulk, ess_tail = (1.0, n_draws, n_draws) if arm.kernel in INDEPENDENT else told.worst
    trained = job.perturbations is not None
    return {
        "perturbation": request.name,
        "group": group,
        "n_cells": len(null.population.rows),
        "n_chains": job.n_replicates,
        "target": job.target,
        "seen": trained and all(gene in job.perturbations.targets for gene in request.genes),
        "trained_on_perturbations": trained,
        "silent": _silent(job, request, null.start_NV),
        "r_hat": r_hat,
        "ess_bulk": ess_bulk,
        "ess_tail": ess_tail,
        "acceptance_burn_in": _share(arm.accepted_TC[: arm.burn_in]),
        "acceptance": _share(arm.accepted_TC[arm.burn_in :]),
        "moved": arm.moved,
        # where nothing varies, both arms are one
        "converged": bool(r_hat <= CONVERGED) if told.varies.any() else True,
        "kernel": arm.kernel,
        "block_size": -1 if arm.size is None else arm.size,
        "kappa": arm.kappa,
    }


def _silent(job: Screen, request: Request, start_NV: Floats) -> bool:
    """Whether a gene is to be set to a share of what the start cells lack (or held at a multiple of it)."""
    for gene, fold in zip(request.genes, request.fold, strict=True):
        if gene in job.features and (fold < 1 or (job.target == "zero-shot" and fold > 1)):
            value_N = start_NV[:, job.features[gene]]
            value_N = value_N[~np.isnan(value_N)]
            if len(value_N) and (value_N > 0).mean() < SILENT:
                return True
    return False


def _share(accepted_TC: npt.NDArray[np.bool_]) -> float:
    return float(accepted_TC.mean()) if accepted_TC.size else float("nan")


def _draws(job: Screen, population: Population, arm: Arm, null: Arm) -> dict[str, npt.NDArray[np.generic]]:
    """Mean effect on each movable gene over start cells, and mean log density, by replicate and draw."""
    n_cells, n_rep, free = len(population.rows), population.n_replicates, slice(population.n_held, None)
    density_JT = arm.log_density_TC[arm.burn_in :].reshape(-1, n_cells, n_rep).mean(axis=1).T
    n_draws = len(arm.x_DCM)
    every = density_JT.shape[1] // n_draws
    return {
        "effect": (arm.level_JDM - null.level_JDM)[..., free].numpy(),
        "log_density": density_JT[:, every - 1 :: every][:, :n_draws],
        "genes": np.array([job.vocabulary.names[f] for f in population.feature_M[free].tolist()]),
    }


def _baselines(job: Screen, request: Request, group: str) -> pd.DataFrame:
    """Rows of the table of trivial predictions."""
    control_NV = job.reported.levels(job.groups[group])
    own = np.array(job.own(request), np.int64)
    mean_M = np.asarray(control_NV.mean(axis=0)).ravel()[own]
    held_M = choices.set_levels(job, request, mean_M)
    bins = [b for gene, b in zip(request.genes, request.bins, strict=True) if gene in job.features]
    for i, bin_ in enumerate(bins):
        if bin_ is not None:  # on the scale of results
            held_M[i] = job.level_VK[own[i], bin_]
    # what is known of perturbed cells is known of their dose alone
    usual = job.perturbations is None or request.is_usual(job.perturbations.kind)
    found = trivial_effects(
        request,
        observed=job.reported if job.observed is not None and usual else None,
        features=job.gene_features,
        control_NV=control_NV,
        held_V=dict(zip(own.tolist(), held_M.tolist(), strict=True)),
    )
    columns = {"perturbation": request.name, "group": group, "variable": list(job.genes)}
    tables = [
        pd.DataFrame({"baseline": name, **columns, "effect": effect_V[job.place_G]}) for name, effect_V in found.items()
    ]
    return pd.concat(tables, ignore_index=True)
