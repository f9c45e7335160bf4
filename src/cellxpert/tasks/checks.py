"""What was asked of :meth:`cellxpert.CellxPert.perturb`, checked in full before anything is computed.

Letters: V features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.config import SteeringConfig
from cellxpert.data.obs import closest
from cellxpert.data.perturbations import Perturbations
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import ConfigError, ControlError, FewCellsError, GeneError, InterventionError
from cellxpert.nn.network import Network
from cellxpert.tasks.arms import INDEPENDENT
from cellxpert.tasks.bins import measured
from cellxpert.tasks.interventions import Request, parse
from cellxpert.tasks.reference import Observed
from cellxpert.tasks.screens import Asked, Screen, Subjects

__all__ = ["make_screen"]

Ints = npt.NDArray[np.int64]
N_CHAINS = 4
MAX_CONDITIONS = 20_000
"""Most perturbations times groups in one call."""
MAX_STEPS = 1_000_000
MIN_ANCHORED = 4
"""Fewest cells of a condition that anchors are chosen among."""
TARGETS = ("auto", "learned", "anchored", "predicted", "zero-shot")
ANCHORED = frozenset({"anchored", "predicted"})
REGULON = ("source", "target")
"""Columns of a table of regulators: who acts, and on which gene."""


def make_screen(
    asked: Asked,
    subjects: Subjects,
    *,
    network: Network,
    vocabulary: Vocabulary,
    perturbations: Perturbations | None,
) -> Screen:
    """Check what was asked, and put it into one form.

    Parameters
    ----------
    asked
        The arguments of the call.
    subjects
        The cells.
    network, vocabulary, perturbations
        The model: its network in evaluation mode on the CPU, its features, and what it has seen of perturbed cells.

    Raises
    ------
    InterventionError, ConfigError
        If something asked for means nothing, contradicts something else, or is too much.
    GeneError
        If a gene is unknown, not measured where that is needed, or nothing is known of what follows from it.
    ControlError, FewCellsError
        If there are no control cells, too few in a group, or no perturbed ones where they are needed.
    """
    target = _check_arguments(asked, trained=perturbations is not None)
    if network.factors is None:
        found = "a network without factors (n_factors=0)"
        raise InterventionError("perturb", found=found, fix="train one with n_factors >= 1")
    known = set(vocabulary.block("rna").names if "rna" in vocabulary.roles else ())
    known |= set(() if perturbations is None else perturbations.targets)
    known |= set(() if asked.embedding is None or perturbations is None else asked.embedding.index.astype(str))
    default = "knockout" if perturbations is None else perturbations.kind
    requests = parse(asked.genes, known=known, default=default, n_bins=network.n_bins)
    asked = replace(asked, regulators=_check_regulators(asked.regulators, requests=requests, known=known))
    job = Screen(
        network=network,
        vocabulary=vocabulary,
        perturbations=perturbations,
        subjects=subjects,
        requests=requests,
        groups=_groups(subjects, vocabulary, n_requests=len(requests), settings=asked.settings),
        observed=_observed(subjects, vocabulary),
        target=target,
        kernel=_kernel(asked.settings, anchored=target in ANCHORED),
        n_steps=int(asked.n_steps),
        n_replicates=N_CHAINS if asked.n_chains is None else int(asked.n_chains),
        asked=asked,
    )
    if target == "predicted" and "rna" not in vocabulary.roles:
        found, fix = "a model that reads no genes: anchors are predicted from what genes read", "use target='learned'"
        raise InterventionError("perturb(target='predicted')", found=found, fix=fix)
    if target == "predicted" and job.observed is None:
        raise ControlError(
            "perturb(target='predicted')",
            found="no perturbed cells to predict anchors from",
            fix="call setup with perturbation_key= and train",
        )
    for request in requests:
        _check_request(job, request)
    return job


def _check_arguments(asked: Asked, *, trained: bool) -> str:
    """Check what needs no data, and return the target."""

    def whole(x: object, most: int) -> bool:
        return isinstance(x, int | np.integer) and not isinstance(x, bool) and 1 <= x <= most

    if not whole(asked.n_steps, MAX_STEPS):
        found, fix = repr(asked.n_steps), f"give a whole number, 1 to {MAX_STEPS:,}"
        raise InterventionError("perturb(n_steps=)", found=found, fix=fix)
    if asked.n_chains is not None and not whole(asked.n_chains, MAX_STEPS):
        raise InterventionError("perturb(n_chains=)", found=repr(asked.n_chains), fix="give a whole number, at least 1")
    if asked.target not in TARGETS:
        raise InterventionError("perturb(target=)", found=repr(asked.target), fix=f"use one of {list(TARGETS)}")
    if asked.target == "learned" and not trained:
        raise ControlError(
            "perturb(target='learned')",
            found="a model that was trained without perturbed cells",
            fix="use target='zero-shot', or set up perturbation_key= and train",
        )
    if not (isinstance(asked.seed, int | np.integer) and not isinstance(asked.seed, bool) and asked.seed >= 0):
        raise InterventionError("perturb(seed=)", found=repr(asked.seed), fix="give a whole number, 0 or more")
    if not isinstance(asked.settings, SteeringConfig):
        fix = "pass cellxpert.config.SteeringConfig(n_cells=100), say"
        raise ConfigError("perturb(steering=)", found=repr(asked.settings)[:80], fix=fix)
    regulators = asked.regulators
    named = isinstance(regulators, Mapping) and all(
        isinstance(v, Collection) and not isinstance(v, str) for v in regulators.values()
    )
    if regulators is not None and not named and not isinstance(regulators, pd.DataFrame):
        fix = "give a mapping from gene to a list of genes, e.g. {'JAK2': ['STAT1', 'IRF1']}, or a table of them"
        raise InterventionError("perturb(regulators=)", found=repr(regulators)[:80], fix=fix)
    _check_embedding(asked.embedding)
    return asked.target if asked.target != "auto" else "learned" if trained else "zero-shot"


def _check_regulators(
    regulators: Mapping[str, Collection[str]] | pd.DataFrame | None,
    *,
    requests: Sequence[Request],
    known: Collection[str],
) -> Mapping[str, Collection[str]] | None:
    """Refuse entries from which nothing would follow. A table of the whole genome may have genes that are not asked for or not known.

    Returns
    -------
    The mapping; of a table, what it says of the genes that are asked for.
    """
    if regulators is None:
        return None
    asked = sorted({gene for request in requests for gene in request.genes})
    if isinstance(regulators, pd.DataFrame):
        regulators = _mapping_of(regulators, asked)
    given = {gene: regulators[gene] for gene in asked if gene in regulators}
    if any(set(names) & set(known) for names in given.values()):
        return regulators
    found, wanted, names = f"no entry of {asked[:5]}", asked, list(regulators)
    if given:
        found, wanted = f"regulators of {list(given)[:5]} none of which the model knows", sorted(known)
        names = [name for entry in given.values() for name in entry]
    near = next((c for name in names if (c := closest(str(name), wanted))), None)
    fix = f"did you mean {near!r}?" if near else "name genes that are asked for and regulators that the model reads"
    raise GeneError("perturb(regulators=)", found=found + ": nothing would be kept from responding", fix=fix)


def _mapping_of(table: pd.DataFrame, genes: Collection[str]) -> dict[str, list[str]]:
    """Read regulators of genes off a table with a row for each; that a gene acts on itself says nothing of others."""
    where, columns = "perturb(regulators=)", [str(c) for c in table.columns]
    if any(columns.count(name) != 1 for name in REGULON):
        fix = "name the column of regulators 'source', that of regulated genes 'target': table.rename(columns=...)"
        raise InterventionError(where, found=f"a table with columns {columns[:10]}", fix=fix)
    if table.empty:
        raise InterventionError(where, found="a table without rows", fix="give a row for each regulator of a gene")
    for name in REGULON:
        lost = [x for x in table[name] if not isinstance(x, str) or not x]
        if lost:
            found = f"{lost[0]!r} for a gene in {len(lost)} rows of column {name!r}"
            fix = "give names as text; table.dropna(subset=['source', 'target']) drops rows without"
            raise InterventionError(where, found=found, fix=fix)
    acting: dict[str, list[str]] = {}
    for target, source in sorted(set(zip(table["target"], table["source"], strict=True))):
        if target in genes and source != target:
            acting.setdefault(target, []).append(source)
    return acting


def _check_embedding(embedding: pd.DataFrame | None) -> None:
    if embedding is None:
        return
    where, twice = "perturb(target_embedding=)", []
    if not isinstance(embedding, pd.DataFrame):
        raise InterventionError(where, found=type(embedding).__name__, fix="give a DataFrame with one row per gene")
    if not all(np.issubdtype(d, np.number) for d in embedding.dtypes) or not np.isfinite(embedding.to_numpy()).all():
        raise InterventionError(where, found="values that are not finite numbers", fix="fill or drop them")
    if twice := list(embedding.index[embedding.index.duplicated()].astype(str)):
        raise InterventionError(where, found=f"{twice[:5]} in several rows", fix="keep one row per gene")


def _kernel(settings: SteeringConfig, *, anchored: bool) -> str:
    """Return the kernel, or say why the one asked for cannot sample the target."""
    kernel, own_law = settings.kernel, settings.part == "joint" and settings.weight == 1 and not anchored
    where = f"SteeringConfig(kernel={kernel!r})"
    if not anchored and (settings.part == "none" or settings.weight == 0):
        found = f"part={settings.part!r}, weight={settings.weight:g} where no anchors steer: every state is as probable"
        raise ConfigError("SteeringConfig", found=found, fix="use part='joint' and weight=1, or target='anchored'")
    if kernel == "auto":
        return "ancestral" if own_law else "block"
    if kernel in INDEPENDENT and not own_law:
        found = "a target that has anchors, a weight or a pseudo-likelihood: draws from the joint are no sample of it"
        raise ConfigError(where, found=found, fix="use kernel='auto'")
    if kernel == "suffix" and settings.part != "joint":
        raise ConfigError(where, found=f"part={settings.part!r}", fix="use part='joint' or kernel='block'")
    if kernel == "tilted" and settings.distance == "histogram":
        found = "distance='histogram', which is no sum over genes"
        raise ConfigError(where, found=found, fix="use distance='bins' or kernel='block'")
    return kernel


def _groups(
    subjects: Subjects, vocabulary: Vocabulary, *, n_requests: int, settings: SteeringConfig
) -> dict[str, Ints]:
    """Return the control cells of each group: those in which genes were measured."""
    here = _with_genes(subjects, vocabulary)
    if subjects.condition is not None:
        here &= np.asarray(subjects.condition, dtype=object) == subjects.control
    if not here.any():
        found = f"no cell is {subjects.control!r}" if subjects.condition is not None else "no cell with genes"
        raise ControlError("perturb", found=found, fix="give an object with control cells whose genes were measured")
    groups = {"all": np.flatnonzero(here)}
    if subjects.group is not None:
        group = np.asarray(subjects.group, dtype=object)
        groups = {str(name): np.flatnonzero(here & (group == name)) for name in sorted(set(group))}
    for name, rows in groups.items():
        if len(rows) < settings.min_cells:
            fix = "leave the group out"
            fix += (
                f", or pass SteeringConfig(min_cells={len(rows)})" if len(rows) else ": perturb(mdata=...) without it"
            )
            raise FewCellsError(f"perturb, group {name!r}", found=f"{len(rows)} control cells", fix=fix)
    if (n := n_requests * len(groups)) > MAX_CONDITIONS:
        cells = sum(min(len(rows), settings.n_cells) for rows in groups.values()) * n_requests
        found = f"{n_requests:,} perturbations x {len(groups)} groups = {n:,} conditions, {cells:,} cells to predict"
        raise InterventionError("perturb", found=found, fix=f"ask for at most {MAX_CONDITIONS:,} in one call")
    return groups


def _with_genes(subjects: Subjects, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Say in which cells genes were measured; of a model without genes, all cells count."""
    if "rna" not in vocabulary.roles:
        return np.ones(len(subjects.names), bool)
    first, n_genes, tokens = vocabulary.offset("rna"), len(vocabulary.block("rna").names), subjects.collator.tokens
    return tokens.measured_features[:, first : first + n_genes].any(axis=1)[tokens.pattern]


def _observed(subjects: Subjects, vocabulary: Vocabulary) -> Observed | None:
    """Return the cells of known conditions in which genes were measured, if any of them is perturbed."""
    if subjects.condition is None:
        return None
    known = _with_genes(subjects, vocabulary)
    known = known if subjects.known is None else known & subjects.known
    found = Observed(
        collator=subjects.collator,
        condition=subjects.condition,
        rows=np.flatnonzero(known),
        control=subjects.control,
        level_VK=vocabulary.decode(np.arange(vocabulary.n_features)[:, None], np.arange(vocabulary.n_bins)),
    )
    return found if found.perturbed and len(found.rows_of(found.control)) else None


def _check_request(job: Screen, request: Request) -> None:
    """Say why a perturbation cannot be predicted under the target, if so."""
    where, features, trained = f"perturb({request.name!r})", job.features, job.perturbations is not None
    own = job.own(request)
    if len(set(own)) < len(own):
        found = f"{list(request.genes)} are names of one gene"
        raise InterventionError(where, found=found, fix="name each gene once")
    lost = [g for g in request.genes if g not in features]
    if job.target == "zero-shot":
        rows = np.concatenate(list(job.groups.values()))
        here_V = measured(job.collator, rows).any(axis=0)
        if lost or (lost := [g for g in request.genes if not here_V[features[g]]]):
            found = f"{lost} not measured in the control cells, so that they cannot be held at a value"
            fix = "ask for genes that are among the model's features and in the object"
            raise GeneError(where, found=found, fix=fix + (", or use target='learned'" if trained else ""))
        doses = [f for f, b in zip(request.fold, request.bins, strict=True) if b is None and f not in (0, 1)]
        if doses and job.vocabulary.binning == "per_cell":
            found = f"a dose of {doses[0]:g}, and binning='per_cell': what it does to bins within a cell is not known"
            raise InterventionError(
                where, found=found, fix="ask for a knockout or a bin, or train with binning='global'"
            )
    elif any(b is not None for b in request.bins):
        found = f"a bin, where {job.target!r} knows changes of expression only"
        raise InterventionError(where, found=found, fix="give a fold, e.g. ('fold', 2.0), or use target='zero-shot'")
    n_anchored = 0 if job.observed is None else len(job.observed.rows_of(request.condition))
    if job.target == "anchored" and 0 < n_anchored < MIN_ANCHORED:
        found = f"{n_anchored} training cells of this condition whose genes were measured"
        fix = f"use target='learned', or train on {MIN_ANCHORED} or more: of fewer, how near chains should come is not known"
        raise FewCellsError(f"perturb({request.name!r}, target='anchored')", found=found, fix=fix)
    if job.target == "anchored" and not n_anchored:
        raise ControlError(
            f"perturb({request.name!r}, target='anchored')",
            found="no training cells of this condition to take anchors from",
            fix="use target='predicted' or target='auto'",
        )
    if job.target == "predicted" and trained and not request.is_usual(job.perturbations.kind):
        found = "another dose than that of the perturbed cells, whose effects predict the anchors"
        raise InterventionError(where, found=found, fix="leave the dose out, or use target='learned'")
    if job.target != "anchored" and trained:
        embedded = () if job.embedding is None else job.embedding.index
        lost = [g for g in lost if g not in job.perturbations.targets and g not in embedded]
        if lost:
            found = f"{lost} never perturbed in training, and not among the model's features"
            fix = "pass target_embedding= with a row for it (see cellxpert.metrics.gene_set_embedding)"
            raise GeneError(where, found=found, fix=fix)
