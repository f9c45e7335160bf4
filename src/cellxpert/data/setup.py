"""Saying what an object holds: which matrix is RNA, ATAC or protein, and which columns are batch and label."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import keys
from cellxpert.data.cells import Cells, with_genome
from cellxpert.data.check import check_values
from cellxpert.data.conditions import DOSES
from cellxpert.data.names import check_names
from cellxpert.data.objects import check_anndata, check_columns, check_mudata, refuse_view
from cellxpert.data.obs import closest
from cellxpert.data.record import LabelTerm, ModalitySetup, Setup, SpatialSetup
from cellxpert.data.roles import MEASURED
from cellxpert.data.space import Space, check_space
from cellxpert.errors import CellxPertWarning, ConfigError, LayerError, ModalityError, NotSetUpError

__all__ = [
    "ModalitySetup",
    "Setup",
    "presence",
    "query_setup",
    "read_setup",
    "record_terms",
    "setup_anndata",
    "setup_mudata",
    "spatial_setup",
    "summary",
    "validate",
]

_COUNTS = ("auto", "integer", "fractional", "intensity")
_MAX_BATCHES_SHOWN = 30


def setup_mudata(
    mdata: MuData,
    *,
    rna: str | None = None,
    atac: str | None = None,
    protein: str | None = None,
    layers: Mapping[str, str | None] | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    tissue_key: str | None = None,
    unlabeled_category: str = "Unknown",
    perturbation_key: str | None = None,
    control_category: str = "control",
    perturbation_type: str = "knockout",
    counts: str | Mapping[str, str] = "auto",
    spatial: SpatialSetup | None = None,
) -> Setup:
    """Say what a MuData holds, check all of it, and record that in ``uns["cellxpert_info"]["setup"]``.

    Nothing else of the object is changed. Any cell may lack any modality.

    Parameters
    ----------
    mdata
        The object; not a view.
    rna, atac, protein
        Name in ``mdata.mod`` of the modality that plays each role; at least one.
    layers
        Per role, the layer that holds the values; ``X`` where nothing is said.
    batch_key, labels_key, tissue_key
        Columns of ``obs``, in the modalities or in the MuData itself.
    unlabeled_category
        Label of cells whose type is not known; cells without a value count as such.
    perturbation_key, control_category, perturbation_type
        Column of ``obs`` with the condition of each cell: the control's name, or the genes that were set, joined by
        ``"+"``; and what was done to them, ``"knockout"``, ``"knockdown"`` or ``"overexpression"``.
    counts
        What the values are, for all roles or per role. ``"auto"`` and ``"integer"`` require whole numbers,
        ``"fractional"`` accepts corrected counts (CellBender, decontX), ``"intensity"`` any numbers from 0 (imaging).
    spatial
        Where cells are, from :func:`spatial_setup`. Arrays are read from the modalities first, then from the MuData.

    Returns
    -------
    Setup
        The record that was stored.

    Raises
    ------
    CellxPertError
        Its kind says what is wrong with the object, the values, the names or the columns.

    Warns
    -----
    CellxPertWarning
        For each finding that may mislead: empty cells, rare labels, a batch confounded with the label, ...
    """
    refuse_view(mdata, "setup_mudata")
    check_mudata(mdata)
    names = {role: name for role, name in zip(MEASURED, (rna, atac, protein), strict=True) if name is not None}
    _check_roles(mdata, names)
    layer = _per_role(layers or {}, "layers", names, example="counts")
    kind = _per_role(counts, "counts", names, example="fractional") if isinstance(counts, Mapping) else {}
    modalities = tuple(
        ModalitySetup(
            role=r,
            name=n,
            layer=layer.get(r),
            counts=_counts(counts if isinstance(counts, str) else kind.get(r, "auto")),
        )
        for r, n in names.items()
    )
    perturbation = (perturbation_key, control_category, perturbation_type)
    columns = {"batch_key": batch_key, "labels_key": labels_key, "tissue_key": tissue_key}
    return _register(mdata, _setup(modalities, columns, unlabeled_category, perturbation, spatial))


def setup_anndata(
    adata: AnnData,
    *,
    modality: str = "rna",
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    tissue_key: str | None = None,
    unlabeled_category: str = "Unknown",
    perturbation_key: str | None = None,
    control_category: str = "control",
    perturbation_type: str = "knockout",
    counts: str = "auto",
    spatial: SpatialSetup | None = None,
) -> Setup:
    """Say what an AnnData holds, check all of it, and record that in ``uns["cellxpert_info"]["setup"]``.

    Parameters
    ----------
    adata
        The object; not a view.
    modality
        Role of its matrix: ``"rna"``, ``"atac"`` or ``"protein"``.
    layer
        Layer that holds the values; None for ``X``.
    batch_key, labels_key, tissue_key, unlabeled_category, perturbation_key, control_category, perturbation_type, counts
        As in :func:`setup_mudata`.
    spatial
        As in :func:`setup_mudata`.

    Returns
    -------
    Setup
        The record that was stored.

    Raises
    ------
    CellxPertError
        As in :func:`setup_mudata`.
    """
    refuse_view(adata, "setup_anndata")
    check_anndata(adata)
    if modality not in MEASURED:
        raise ConfigError("setup_anndata(modality=)", found=repr(modality), fix=f"use one of {list(MEASURED)}")
    modalities = (ModalitySetup(role=modality, layer=layer, counts=_counts(counts)),)
    perturbation = (perturbation_key, control_category, perturbation_type)
    columns = {"batch_key": batch_key, "labels_key": labels_key, "tissue_key": tissue_key}
    return _register(adata, _setup(modalities, columns, unlabeled_category, perturbation, spatial))


def _check_roles(mdata: MuData, names: dict[str, str]) -> None:
    have = list(mdata.mod)
    if not names:
        guess = next((r for r in MEASURED if r in have), "rna")
        raise ModalityError(
            "setup_mudata",
            found=f"no modality was named; mdata has {have}",
            fix=f"pass {guess}={have[0] if guess not in have else guess!r}",
        )
    for role, name in names.items():
        if name not in mdata.mod:
            near = closest(str(name), have)
            fix = f"pass {role}={near!r}" if near else f"use one of {have}"
            raise ModalityError(
                f"setup_mudata({role}=)", found=f"no modality {name!r} in mdata, which has {have}", fix=fix
            )
    if len(set(names.values())) < len(names):
        raise ModalityError("setup_mudata", found=f"one modality in two roles: {names}", fix="name each modality once")


def _per_role(values: object, argument: str, names: dict[str, str], *, example: str) -> dict[str, Any]:
    """Check a mapping from role to something."""
    role = next(iter(names))
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"setup_mudata({argument}=)", found=repr(values), fix=f"pass {argument}={{{role!r}: {example!r}}}"
        )
    for key in values:
        if key not in names:
            roles = {n: r for r, n in names.items()}
            fix = f"the key is the role: {roles[key]!r}" if key in roles else f"use one of {list(names)}"
            raise ConfigError(f"setup_mudata({argument}=)", found=f"{key!r} is not a role in this call", fix=fix)
    return dict(values)


def _counts(counts: object) -> Any:
    if counts not in _COUNTS:
        raise ConfigError("counts=", found=repr(counts), fix=f"use one of {list(_COUNTS)}")
    return "integer" if counts == "auto" else counts


def _setup(
    modalities: tuple[ModalitySetup, ...],
    columns: dict[str, Any],
    unlabeled: object,
    perturbation: tuple[object, object, object],
    spatial: SpatialSetup | None,
) -> Setup:
    perturbation_key, control, kind = perturbation
    columns = columns | {"perturbation_key": perturbation_key}
    for name, value in columns.items():
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(f"{name}=", found=repr(value), fix="give the name of a column of obs, or None")
    if not (isinstance(unlabeled, str) and unlabeled):
        raise ConfigError("unlabeled_category=", found=repr(unlabeled), fix="give a name, such as 'Unknown'")
    if not (isinstance(control, str) and control):
        raise ConfigError("control_category=", found=repr(control), fix="give the name of the control cells' condition")
    if kind not in tuple(DOSES):  # a list is not hashable
        raise ConfigError("perturbation_type=", found=repr(kind), fix=f"use one of {list(DOSES)}")
    return Setup(
        modalities=modalities,
        unlabeled_category=unlabeled,
        control_category=control,
        perturbation_type=kind,
        spatial=spatial,
        **columns,
    )


def spatial_setup(
    *,
    spatial_key: str | None = None,
    library_key: str | None = None,
    neighbors_key: str | None = None,
    n_neighbors: int = 10,
    image_key: str | None = None,
) -> SpatialSetup | None:
    """Check what is said of where cells are; None if nothing is.

    Parameters
    ----------
    spatial_key, library_key, neighbors_key, n_neighbors, image_key
        See :class:`~cellxpert.data.record.SpatialSetup`.

    Raises
    ------
    ConfigError
        If a name is none, a number of neighbours is below 1, or sections are named and nothing that they could part.
    """
    keys_of = {
        "spatial_key": spatial_key,
        "library_key": library_key,
        "neighbors_key": neighbors_key,
        "image_key": image_key,
    }
    for name, value in keys_of.items():
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(f"{name}=", found=repr(value), fix="give a name, such as 'spatial', or None")
    if not (isinstance(n_neighbors, int | np.integer) and not isinstance(n_neighbors, bool) and n_neighbors >= 1):
        raise ConfigError("n_neighbors=", found=repr(n_neighbors), fix="give a whole number from 1")
    if spatial_key is None and neighbors_key is None and image_key is None:
        if library_key is not None:
            found = f"{library_key!r}, and neither coordinates nor a graph"
            raise ConfigError("library_key=", found=found, fix="pass spatial_key='spatial' too, or batch_key instead")
        return None
    return SpatialSetup(n_neighbors=int(n_neighbors), **keys_of)


def _register(data: AnnData | MuData, setup: Setup) -> Setup:
    setup = with_genome(replace(setup, notes=validate(data, setup)), data)
    # a new dict: the old one may be shared with a shallow copy of the object
    data.uns[keys.INFO] = {**data.uns.get(keys.INFO, {}), keys.SETUP: setup.to_dict()}
    for note in setup.notes:
        warnings.warn(note, CellxPertWarning, stacklevel=4)  # the caller of CellxPert.setup_*
    return setup


def validate(data: AnnData | MuData, setup: Setup) -> tuple[str, ...]:
    """Check an object against a setup, all values included, and write nothing.

    Parameters
    ----------
    data
        The object; views and backed ones too.
    setup
        What it is said to hold.

    Returns
    -------
    Findings that are worth a warning.

    Raises
    ------
    CellxPertError
        As in :func:`setup_mudata`.
    """
    (check_anndata if isinstance(data, AnnData) else check_mudata)(data)
    cells = Cells.open(data, setup)
    notes: list[str] = []
    for m in setup.modalities:
        adata, where = cells.adata(m.role), cells.where(m.role)
        notes += check_names(adata, m.role, where=where)
        notes += check_values(adata, m.layer, counts=m.counts, role=m.role, where=where)
    if cells.space is not None and setup.spatial is not None:
        notes += check_space(data, cells.space, spatial_key=setup.spatial.spatial_key)
    return tuple(notes + check_columns(cells))


def read_setup(data: AnnData | MuData) -> Setup:
    """Return the setup that was recorded in an object.

    Raises
    ------
    NotSetUpError
        If there is none.
    """
    (check_anndata if isinstance(data, AnnData) else check_mudata)(data)
    record = data.uns.get(keys.INFO, {}).get(keys.SETUP)
    if record is None:
        call = (
            "setup_anndata(adata)"
            if isinstance(data, AnnData)
            else f"setup_mudata(mdata, rna={next(iter(data.mod))!r})"
        )
        raise NotSetUpError(f"uns[{keys.INFO!r}]", found="no setup", fix=f"call cellxpert.CellxPert.{call} first")
    return Setup.from_dict(record)


def record_terms(data: AnnData | MuData, label_terms: tuple[LabelTerm, ...]) -> None:
    """Add what labels mean to the setup that is recorded in an object."""
    setup = replace(read_setup(data), label_terms=label_terms)
    data.uns[keys.INFO] = {**data.uns[keys.INFO], keys.SETUP: setup.to_dict()}


def query_setup(setup: Setup, data: AnnData | MuData) -> Setup:
    """Say how to read an object that a model was not trained on.

    Its own recorded setup counts if it has one. Otherwise the model's is used, without the modalities and columns that
    the object lacks.

    Raises
    ------
    ModalityError
        If the object has none of the modalities.
    LayerError
        If a modality lacks the model's layer.
    """
    (check_anndata if isinstance(data, AnnData) else check_mudata)(data)
    if keys.SETUP in data.uns.get(keys.INFO, {}):
        return read_setup(data)
    if isinstance(data, AnnData):
        named = [m for m in setup.modalities if len(setup.modalities) == 1 or m.role == "rna"]
        modalities = tuple(replace(m, name=None) for m in named[:1])
        columns = set(data.obs.columns)
    else:
        named = [replace(m, name=m.role if m.name is None else m.name) for m in setup.modalities]
        modalities = tuple(m for m in named if m.name in data.mod)
        columns = set(data.obs.columns).union(*(data.mod[m.name].obs.columns for m in modalities))
        columns |= {c.split(":", 1)[1] for c in data.obs.columns if ":" in c}
    if not modalities:
        wanted = [m.name or m.role for m in setup.modalities]
        raise ModalityError("query", found=f"none of the modalities {wanted}", fix="call setup_mudata on it first")
    for m in modalities:
        adata = data if m.name is None else data.mod[m.name]
        if m.layer is not None and m.layer not in adata.layers:
            found = f"no layer {m.layer!r}, which the model was set up with; it has {sorted(adata.layers)}"
            call = "setup_anndata(adata, layer=...)"
            if m.name is not None:
                call = f"setup_mudata(mdata, {m.role}={m.name!r}, layers={{{m.role!r}: ...}})"
            fix = f"say where its counts are: call cellxpert.CellxPert.{call} on it, None for X"
            raise LayerError("query" if m.name is None else f"query[{m.name!r}]", found=found, fix=fix)
    keys_of = ("batch_key", "labels_key", "tissue_key", "perturbation_key")
    kept = {k: v if (v := getattr(setup, k)) in columns else None for k in keys_of}
    spatial = (
        None
        if setup.spatial is None
        else _query_space(setup.spatial, data, modalities=[m.name for m in modalities], columns=columns)
    )
    return with_genome(replace(setup, modalities=modalities, notes=(), spatial=spatial, **kept), data)


def _query_space(
    spatial: SpatialSetup, data: AnnData | MuData, *, modalities: list[str | None], columns: set[str]
) -> SpatialSetup | None:
    """What an object has of the coordinates, sections, graphs and image features that a model was set up with."""
    parts = [data, *((data.mod[name] for name in modalities) if isinstance(data, MuData) else ())]
    arrays, graphs = ({key for part in parts for key in getattr(part, name)} for name in ("obsm", "obsp"))
    graph = spatial.neighbors_key
    found = replace(
        spatial,
        spatial_key=spatial.spatial_key if spatial.spatial_key in arrays else None,
        library_key=spatial.library_key if spatial.library_key in columns else None,
        neighbors_key=graph if graphs & {graph, f"{graph}_connectivities"} else None,
        image_key=spatial.image_key if spatial.image_key in arrays else None,
    )
    return found if found.has_niche or found.image_key is not None else None


def presence(cells: Cells) -> pd.DataFrame:
    """Count the cells of each modality in each batch.

    Returns
    -------
    int64 table: a row per role and ``"cells"`` for all; a column per batch, or one ``"all"`` without a batch key.
    """
    batches = cells.batches()
    batch = pd.Series("all", index=range(cells.n_cells)) if batches is None else batches.reset_index(drop=True)
    masks = {role: cells.present(role) for role in cells.roles} | {"cells": np.ones(cells.n_cells, dtype=bool)}
    table = pd.DataFrame(masks).groupby(batch.to_numpy()).sum().T
    return table.astype(np.int64)


def summary(setup: Setup, data: AnnData | MuData) -> str:
    """Describe a setup: matrices and layers in use, cells per batch and modality, labels, findings.

    Parameters
    ----------
    setup
        From :func:`read_setup` or a setup call.
    data
        The object.

    Returns
    -------
    Several lines of text, without a final line break.
    """
    cells = Cells.open(data, setup)
    matrices = pd.DataFrame(
        {
            "role": setup.roles,
            "modality": [m.name or "(AnnData)" for m in setup.modalities],
            "values": ["X" if m.layer is None else f"layers[{m.layer!r}]" for m in setup.modalities],
            "counts": [m.counts for m in setup.modalities],
            "cells": [int(cells.present(r).sum()) for r in setup.roles],
            "features": [cells.adata(r).n_vars for r in setup.roles],
        }
    )
    lines = [f"cellxpert setup of {cells.n_cells} cells", matrices.to_string(index=False)]
    labels = cells.labels()
    if labels is None:
        lines.append("labels: none")
    else:
        unlabeled = int((labels == setup.unlabeled_category).sum())
        n_labels = labels[labels != setup.unlabeled_category].nunique()
        lines.append(
            f"labels: obs[{setup.labels_key!r}], {n_labels} labels, {unlabeled} cells {setup.unlabeled_category!r}"
        )
    conditions = cells.conditions()
    if conditions is not None:
        n_control = int((conditions == setup.control_category).sum())
        n_conditions = conditions[conditions != setup.control_category].nunique()
        lines.append(
            f"perturbations: obs[{setup.perturbation_key!r}], {n_conditions} conditions ({setup.perturbation_type}), "
            f"{n_control} cells {setup.control_category!r}"
        )
    lines += [f"genome of the peaks: {m.genome}" for m in setup.modalities if m.genome is not None]
    if cells.space is not None and setup.spatial is not None:
        lines.append(_space_line(setup.spatial, cells.space))
    table = presence(cells).T
    key = "none" if setup.batch_key is None else f"obs[{setup.batch_key!r}], {len(table)} batches"
    lines += [f"batches: {key}; cells with each modality:", table.head(_MAX_BATCHES_SHOWN).to_string()]
    if len(table) > _MAX_BATCHES_SHOWN:
        lines.append(f"... and {len(table) - _MAX_BATCHES_SHOWN} more batches")
    return "\n".join([*lines, *(f"note: {note}" for note in setup.notes)])


def _space_line(said: SpatialSetup, space: Space) -> str:
    parts = [] if space.xyz_NP is None else [f"obsm[{said.spatial_key!r}] in {space.xyz_NP.shape[1]}-D"]
    parts += [f"{len(space.sections)} sections of obs[{said.library_key!r}]"] if space.sections else []
    if space.graph_NN is not None:
        source = f"obsp of {said.neighbors_key!r}" if said.neighbors_key else f"{said.n_neighbors} nearest neighbours"
        parts.append(f"niches of {space.source} from {source} in {int(space.has_neighbors.sum())} cells")
    parts += [] if space.image_NF is None else [f"{space.image_NF.shape[1]} image features"]
    return f"space: {', '.join(parts)}"
