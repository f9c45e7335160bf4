"""Synthetic multi-omic cells: small, fast, and with a truth against which an answer can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellxpert.datasets.simulation import World, make_world, place_cells
from cellxpert.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mudata import MuData
    from scipy.sparse import csr_matrix

__all__ = ["synthetic"]

_CHUNK = 2048  # cells simulated at once; part of what a seed means
_STREAMS = ("world", "cells", "space", "missing", "noise", "depth", "rna", "atac", "protein", "links", "escape")

_SIZES = ("n_genes", "n_types", "n_batches", "n_perturbations", "n_pairs", "n_regulators")
_EFFECTS = ("type_effect", "batch_effect", "niche_effect", "knockout_effect", "interaction", "stress_effect")


def synthetic(
    *,
    n_cells: int = 300,
    n_genes: int = 120,
    n_peaks: int = 150,
    n_proteins: int = 12,
    n_types: int = 4,
    n_batches: int = 2,
    spatial_dims: int = 2,
    n_sections: int = 1,
    n_perturbations: int = 0,
    n_pairs: int = 0,
    n_regulators: int | None = None,
    control_fraction: float = 0.4,
    missing: Mapping[str, float] | None = None,
    type_effect: float = 1.0,
    batch_effect: float = 0.2,
    niche_effect: float = 0.5,
    knockout_effect: float = 3.0,
    interaction: float = 0.0,
    stress_effect: float = 0.0,
    escape: float = 0.0,
    noise: float = 0.3,
    depth: float = 1.0,
    dispersion: float = 0.1,
    dropout: float = 0.0,
    seed: int = 0,
) -> MuData:
    """Simulate cells of which everything is known.

    Genes form a sparse network without cycles. Types, neighbours and noise shift genes of their own, and the shifts run down
    the network; a knock-out holds its gene and its descendants follow. Peaks and proteins follow the gene they belong to.
    Masters (a twentieth of the genes) act on regulators, and these on the rest.

    Parameters
    ----------
    n_cells, n_genes, n_peaks, n_proteins, n_types, n_batches
        Sizes. ``n_peaks=0`` or ``n_proteins=0`` leaves that modality out.
    spatial_dims, n_sections
        0: no coordinates; 2 or 3: cells of a type lie in patches (micrometres), and cells near type 0 differ. Tissue sections.
    n_perturbations, n_pairs, control_fraction
        Genes knocked out alone; pairs of them knocked out together, ``"gene_a+gene_b"``, neither of which acts on the other;
        share of cells left as ``"control"``. Masters are knocked out first; pairs with common descendants come first.
    n_regulators
        Genes of the middle level (default: ``n_genes // 8``). With more of them, more genes can be knocked out.
    missing
        Modality name to the share of cells that lack it, such as ``{"atac": 0.3}``; a cell keeps at least one modality.
    type_effect, batch_effect, niche_effect, knockout_effect, noise
        Sizes of the shifts, in units of the natural logarithm of a gene's rate; batch and noise are standard deviations.
    interaction
        Size of what the loss of both genes of a pair adds to each gene downstream of both, up or down; 0: log-rates are additive.
    stress_effect
        Size of the own shift, up or down, of a random fifth of the genes in every cell that is perturbed, whatever its gene.
    escape
        Share of the cells labelled as perturbed that are not: neither knocked out nor under stress.
    depth, dispersion, dropout
        Depth of RNA (1: about 1.4 counts per gene), variance = mean + dispersion * mean², share of RNA counts lost.
    seed
        Same arguments and seed: the same object. Changing one modality leaves the others as they are, and so does changing
        ``interaction``, ``stress_effect`` or ``escape`` with the network, the pairs and the labels of cells.

    Returns
    -------
    mudata.MuData
        Modalities ``rna``, ``atac``, ``protein`` with CSR counts (float32), cells in the same order where they exist. In
        ``obs`` (object and modalities, categorical): ``cell_type``, ``batch``, and ``section`` and ``perturbation`` where
        asked for. ``obsm["spatial"]``. ``uns["truth"]``: ``genes``, ``types``, ``base``, ``type_shift`` (types x genes, own),
        ``type_effect`` (with what is handed down), ``batch_effect``, ``regulation`` (regulator, target, weight), ``cells``
        (depth, share of type-0 neighbours, and ``escaped`` where asked for), ``peaks`` and ``proteins`` (with their gene, "" if
        none), ``niche`` and ``perturbation``. The latter has ``names`` (labels, single genes first), ``genes`` (those knocked
        out, joined by ``+``), ``stress`` (what every perturbed cell gains, with what is handed down; one value per gene), and
        perturbations x genes: ``effect`` (mean change of the log-rate in cells that did not escape), ``additive_effect`` (the
        same without interaction: for a pair the sum of its two genes, stress counted once), ``direct``, ``indirect`` and
        ``ancestors`` (genes upstream).

    Raises
    ------
    DatasetError
        If a number is out of range or the modalities cannot be missing as asked.
    """
    settings = {name: value for name, value in locals().items() if name not in {"missing", "seed"}}
    _validate(settings)
    streams = dict(zip(_STREAMS, np.random.SeedSequence(seed).spawn(len(_STREAMS)), strict=True))
    rngs = {name: np.random.default_rng(sequence) for name, sequence in streams.items()}
    world = make_world(**{name: settings[name] for name in (*_SIZES, *_EFFECTS)}, rng=rngs["world"])
    if len(world.target_K) < n_perturbations:
        raise DatasetError(
            "datasets.synthetic(n_perturbations=)",
            found=f"{n_perturbations}, but only {len(world.target_K)} of {n_genes} genes act on others",
            fix="ask for fewer perturbations, more regulators or more genes",
        )
    if len(world.pair_Q2) < n_pairs:
        raise DatasetError(
            "datasets.synthetic(n_pairs=)",
            found=f"{n_pairs}, but only {len(world.pair_Q2)} pairs of the {n_perturbations} genes do not act on each other",
            fix="ask for fewer pairs or more perturbations",
        )
    cells = _draw_cells(settings, world, rngs)
    counts, links, mean_G = _draw_counts(settings, world, cells, rngs)
    present = _draw_presence(n_cells, list(counts), dict(missing or {}), rngs["missing"])
    mdata = _assemble(counts, cells, present)
    mdata.uns["truth"] = _truth(world, cells, links, mean_G)
    return mdata


@dataclass(frozen=True, kw_only=True)
class _Cells:
    obs: pd.DataFrame
    kind: np.ndarray
    batch: np.ndarray
    perturbation: np.ndarray
    escaped: np.ndarray | None
    place: np.ndarray | None
    share: np.ndarray
    depth: np.ndarray
    genes: list[str]
    labels: list[str]


def _validate(settings: dict[str, Any]) -> None:
    def require(ok: bool, name: str, rule: str) -> None:  # noqa: FBT001
        if not ok:
            raise DatasetError(f"datasets.synthetic({name}=)", found=repr(settings[name]), fix=f"give {rule}")

    least = {"n_cells": 2, "n_genes": 3, "n_peaks": 0, "n_proteins": 0, "n_types": 1, "n_batches": 1, "n_sections": 1}
    for name, low in (least | {"n_perturbations": 0, "n_pairs": 0}).items():
        require(
            isinstance(settings[name], int | np.integer) and settings[name] >= low, name, f"a whole number >= {low}"
        )
    for name in (*_EFFECTS, "noise", "dispersion"):
        require(0 <= settings[name] < np.inf, name, "0 or more")
    require(
        settings["n_types"] <= min(settings["n_cells"], settings["n_genes"]), "n_types", "at most n_cells and n_genes"
    )
    require(settings["spatial_dims"] in {0, 2, 3}, "spatial_dims", "0, 2 or 3")
    require(0 < settings["depth"] < np.inf, "depth", "a positive number")
    for name in ("dropout", "escape"):
        require(0 <= settings[name] < 1, name, "a number in [0, 1)")
    # One gene at least is neither master nor regulator.
    room = settings["n_genes"] - max(1, settings["n_genes"] // 20) - 1
    n_regulators = 1 if settings["n_regulators"] is None else settings["n_regulators"]
    whole = isinstance(n_regulators, int | np.integer)
    require(whole and 1 <= n_regulators <= room, "n_regulators", f"None or a whole number from 1 to {room}")
    require(0 < settings["control_fraction"] < 1, "control_fraction", "a number between 0 and 1")


def _evenly(n_cells: int, n_groups: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(n_cells) % n_groups)


def _names(stem: str, n: int) -> list[str]:
    return [f"{stem}_{i:0{len(str(n - 1))}d}" for i in range(n)]


def _draw_cells(settings: dict[str, Any], world: World, rngs: dict[str, np.random.Generator]) -> _Cells:
    rng, n = rngs["cells"], settings["n_cells"]
    genes = _names("gene", settings["n_genes"])
    kind = _evenly(n, settings["n_types"], rng)
    batch = _evenly(n, settings["n_batches"], rng)
    section = _evenly(n, settings["n_sections"], rng)
    obs = pd.DataFrame(index=_names("cell", n))
    obs["cell_type"] = pd.Categorical.from_codes(kind, _names("type", settings["n_types"]))
    obs["batch"] = pd.Categorical.from_codes(batch, _names("batch", settings["n_batches"]))
    place, share = None, np.zeros(n)
    if settings["spatial_dims"]:
        place, share = place_cells(kind, section, dims=settings["spatial_dims"], rng=rngs["space"])
        obs["section"] = pd.Categorical.from_codes(section, _names("section", settings["n_sections"]))
    perturbation, escaped = np.full(n, -1), np.zeros(n, dtype=bool)
    if labels := ["+".join(genes[g] for g in held) for held in world.knocked()]:
        treated = rng.permutation(n)[round(n * settings["control_fraction"]) :]
        perturbation[treated] = np.arange(len(treated)) % len(labels)
        guide = pd.Categorical.from_codes(perturbation + 1, ["control", *labels])
        obs["perturbation"] = guide.remove_unused_categories()
        # The label says which guide a cell got; where that did not work, the cell is as if it had none.
        escaped[rngs["escape"].permutation(treated)[: round(len(treated) * settings["escape"])]] = True
        perturbation[escaped] = -1
    depth = settings["depth"] * rngs["depth"].lognormal(0, 0.25, n)
    names = {"genes": genes, "labels": labels}
    state = {"perturbation": perturbation, "escaped": escaped if settings["escape"] > 0 else None}
    return _Cells(obs=obs, kind=kind, batch=batch, place=place, share=share, depth=depth, **state, **names)


def _negative_binomial(mean: np.ndarray, dispersion: float, rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(rng.gamma(1 / dispersion, mean * dispersion) if dispersion > 0 else mean)


def _link(n: int, world: World, rng: np.random.Generator) -> np.ndarray:
    """Gene of each of ``n`` features, -1 for the fifth that follows none; genes that tell types apart come first."""
    spread = (world.programme_CG @ world.total_GG.T).std(axis=0) + 1e-9 * rng.random(len(world.base_G))
    linked = np.resize(np.argsort(-spread), n - n // 5)
    return rng.permutation(np.concatenate([linked, np.full(n // 5, -1)]))


def _draw_counts(
    settings: dict[str, Any], world: World, cells: _Cells, rngs: dict[str, np.random.Generator]
) -> tuple[dict[str, tuple[csr_matrix, list[str]]], dict[str, np.ndarray], np.ndarray]:
    import scipy.sparse as sp

    n, n_batches = settings["n_cells"], settings["n_batches"]
    sizes = {"atac": settings["n_peaks"], "protein": settings["n_proteins"]}
    level = {"atac": (-1.2, 0.5), "protein": (3.0, 0.7)}
    # Streams are split per modality, so that asking for more peaks changes no protein.
    link_rngs = dict(zip(sizes, rngs["links"].spawn(2), strict=True))
    links, base, shift = {}, {}, {}
    for name, size in sizes.items():
        links[name] = _link(size, world, link_rngs[name])
        base[name] = link_rngs[name].normal(*level[name], size)
        shift[name] = settings["batch_effect"] * (n_batches > 1) * link_rngs[name].normal(0, 1, (n_batches, size))
    parts: dict[str, list[csr_matrix]] = {"rna": [], "atac": [], "protein": []}
    mean_G = np.zeros(settings["n_genes"])
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        kind, batch, cell_depth = cells.kind[rows], cells.batch[rows], cells.depth[rows, None]
        own = world.programme_CG[kind] + cells.share[rows, None] * world.niche_G
        own += settings["noise"] * rngs["noise"].normal(size=own.shape)
        mean_G += (own @ world.total_GG.T).sum(axis=0) / n
        state = world.deviation(own, cells.perturbation[rows])
        rate = cell_depth * np.exp(world.base_G + state + world.batch_SG[batch])
        drawn = {"rna": _negative_binomial(rate, settings["dispersion"], rngs["rna"])}
        drawn["rna"] *= rngs["rna"].random(rate.shape) >= settings["dropout"]
        for name, gene in links.items():
            follow = np.where(gene >= 0, state[:, gene], 0.0)
            mean = np.exp(base[name] + 0.8 * follow + shift[name][batch]) * rngs[name].lognormal(0, 0.2, (len(kind), 1))
            drawn[name] = _negative_binomial(mean, settings["dispersion"] if name == "protein" else 0.0, rngs[name])
        for name, values in drawn.items():
            parts[name].append(sp.csr_matrix(values.astype(np.float32)))
    features = {
        "rna": cells.genes,
        "atac": [f"chr1:{1000 * i + 1}-{1000 * i + 500}" for i in range(sizes["atac"])],
        "protein": _names("protein", sizes["protein"]) if sizes["protein"] else [],
    }
    counts = {name: (sp.vstack(parts[name], format="csr"), features[name]) for name in parts if features[name]}
    return counts, {name: links[name] for name in counts if name in links}, mean_G


def _draw_presence(
    n_cells: int, names: list[str], missing: dict[str, float], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Which cells each modality has; exactly the shares asked for, and no cell without any."""
    where = "datasets.synthetic(missing=)"
    if unknown := sorted(set(missing) - set(names)):
        raise DatasetError(where, found=f"{unknown}", fix=f"use names among {names}")
    if bad := {name: share for name, share in missing.items() if not 0 <= share < 1}:
        raise DatasetError(where, found=f"{bad}", fix="give shares in [0, 1)")
    kept = {name: max(1, n_cells - round(missing.get(name, 0.0) * n_cells)) for name in names}
    if sum(kept.values()) < n_cells:
        raise DatasetError(where, found=f"{missing}", fix="let the shares present sum to at least 1")
    present = np.zeros((n_cells, len(names)), dtype=bool)
    for column, name in enumerate(names):
        present[rng.permutation(n_cells)[: kept[name]], column] = True
    # A cell left with nothing takes over a modality from a cell that has another one too.
    for cell in np.flatnonzero(~present.any(axis=1)):
        rich = np.flatnonzero(present.sum(axis=1) > 1)
        giver = rng.choice(rich)
        column = rng.choice(np.flatnonzero(present[giver]))
        present[[giver, cell], column] = False, True
    return {name: present[:, column] for column, name in enumerate(names)}


def _assemble(counts: dict[str, tuple[csr_matrix, list[str]]], cells: _Cells, present: dict[str, np.ndarray]) -> MuData:
    from anndata import AnnData
    from mudata import MuData, set_options

    with set_options(pull_on_update=False):
        parts = {}
        for name, (matrix, features) in counts.items():
            rows = np.flatnonzero(present[name])
            part = AnnData(matrix[rows], obs=cells.obs.iloc[rows].copy(), var=pd.DataFrame(index=features))
            if cells.place is not None:
                part.obsm["spatial"] = cells.place[rows]
            parts[name] = part
        mdata = MuData(parts)
        if not mdata.obs_names.equals(cells.obs.index):
            mdata = mdata[list(cells.obs.index)].copy()  # MuData lists the cells of the first modality first
        assert mdata.obs_names.equals(cells.obs.index)
        mdata.obs = cells.obs.copy()
        if cells.place is not None:
            mdata.obsm["spatial"] = cells.place.copy()
    return mdata


def _truth(world: World, cells: _Cells, links: dict[str, np.ndarray], mean_G: np.ndarray) -> dict[str, Any]:
    genes = np.array(cells.genes, dtype=object)
    target, regulator = np.nonzero(world.weight_GG)
    regulation = {"regulator": genes[regulator], "target": genes[target], "weight": world.weight_GG[target, regulator]}
    truth: dict[str, Any] = {
        "genes": genes,
        "types": np.array(cells.obs["cell_type"].cat.categories, dtype=object),
        "base": world.base_G,
        "type_shift": world.programme_CG,
        "type_effect": world.programme_CG @ world.total_GG.T,
        "batch_effect": world.batch_SG,
        "regulation": pd.DataFrame(regulation, index=[str(i) for i in range(len(target))]),
        "cells": pd.DataFrame({"depth": cells.depth, "niche_share": cells.share}, index=cells.obs.index),
    }
    for name, gene in links.items():
        key = {"atac": "peaks", "protein": "proteins"}[name]
        truth[key] = pd.DataFrame(
            {"gene": np.where(gene >= 0, genes[gene], "")}, index=[str(i) for i in range(len(gene))]
        )
    if cells.place is not None:
        truth["niche"] = {"sender": str(truth["types"][world.sender]), "shift": world.niche_G}
    if cells.escaped is not None:
        truth["cells"]["escaped"] = cells.escaped
    if cells.labels:
        truth["perturbation"] = {
            "names": np.array(cells.labels, dtype=object),
            "genes": np.array(cells.labels, dtype=object),
            "effect": world.effect(mean_G),
            "additive_effect": world.effect(mean_G, interaction=False),
            "direct": world.direct(),
            "indirect": world.indirect(),
            "ancestors": world.ancestors(),
            "stress": world.stress_G,
        }
    return truth
