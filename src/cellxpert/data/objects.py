"""Checks of an object's form: its type, that names occur once, and the cells and columns of a setup."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert.data.obs import MISSING_TEXT, closest
from cellxpert.errors import (
    ControlError,
    DuplicateNamesError,
    EmptyDataError,
    MuDataError,
    ObjectTypeError,
    ViewError,
)

if TYPE_CHECKING:
    from cellxpert.data.cells import Cells

__all__ = [
    "check_anndata",
    "check_columns",
    "check_mudata",
    "check_object",
    "refuse_view",
]

_FEW = 3
_CELLS_COMPARED = 256
"""Cells in which features of the same name are compared between modalities."""


def check_object(data: Any) -> None:
    """Raise ``ObjectTypeError`` unless the data are an AnnData or a MuData."""
    if isinstance(data, AnnData | MuData):
        return
    kind = f"{type(data).__module__}.{type(data).__qualname__}"
    found, fix = kind, "give an AnnData or MuData object"
    if data is None:
        found = "None"
    elif isinstance(data, str) or hasattr(data, "__fspath__"):
        read = "mudata.read_h5mu" if str(data).endswith(".h5mu") else "anndata.read_h5ad"
        found, fix = f"the path {str(data)!r}", f"read it first: {read}({str(data)!r})"
    elif kind.startswith("spatialdata"):
        fix = "call setup_spatialdata(sdata, table_key='table')"
    elif hasattr(data, "shape"):
        fix = "wrap it with names of cells and genes: anndata.AnnData(X, obs=..., var=...)"
    raise ObjectTypeError("data", found=found, fix=fix)


def check_anndata(adata: Any, *, where: str = "adata") -> None:
    """Check that an AnnData has cells and features, each with a name of its own.

    Raises
    ------
    ObjectTypeError, EmptyDataError, DuplicateNamesError
    """
    check_object(adata)
    if isinstance(adata, MuData):
        raise ObjectTypeError(where, found="a MuData", fix="call setup_mudata, or give one modality: mdata['rna']")
    _require_size(adata, where)
    _require_unique(adata.obs_names, f"{where}.obs_names", "obs_names_make_unique()", where)
    _require_unique(adata.var_names, f"{where}.var_names", "var_names_make_unique()", where)


def check_mudata(mdata: Any) -> None:
    """Check that a MuData has cells, that its modalities are AnnData objects, and that its names are up to date.

    Raises
    ------
    ObjectTypeError, EmptyDataError, DuplicateNamesError, MuDataError
    """
    check_object(mdata)
    if isinstance(mdata, AnnData):
        raise ObjectTypeError(
            "mdata", found="an AnnData", fix="call setup_anndata, or wrap it: mudata.MuData({'rna': adata})"
        )
    if not mdata.mod:
        raise EmptyDataError(
            "mdata", found="no modalities", fix="build it from AnnData objects: mudata.MuData({'rna': adata})"
        )
    for name, adata in mdata.mod.items():
        if not isinstance(adata, AnnData):
            fix = (
                "take the inner object's modalities up one level"
                if isinstance(adata, MuData)
                else f"del mdata.mod[{name!r}]"
            )
            raise MuDataError(f"mdata[{name!r}]", found=f"{type(adata).__name__} instead of an AnnData", fix=fix)
    if mdata.axis != 0:
        fix = "build it with axis=0, whose modalities share cells"
        raise MuDataError("mdata", found=f"axis={mdata.axis}: modalities share features", fix=fix)
    if mdata.n_obs == 0:
        raise EmptyDataError("mdata", found="0 cells", fix="check the filter that made it")
    # cells first: without unique names no row map is to be trusted
    for name, adata in mdata.mod.items():
        _require_unique(adata.obs_names, f"mdata[{name!r}].obs_names", "obs_names_make_unique()", f"mdata[{name!r}]")
        _require_unique(adata.var_names, f"mdata[{name!r}].var_names", "var_names_make_unique()", f"mdata[{name!r}]")
        if adata.n_vars == 0:
            raise EmptyDataError(f"mdata[{name!r}]", found="0 features", fix="check the filter that made it")
    _require_unique(mdata.obs_names, "mdata.obs_names", "obs_names_make_unique()", "mdata")
    n_vars = sum(adata.n_vars for adata in mdata.mod.values())
    if n_vars != mdata.n_vars:
        found = f"{mdata.n_vars} features, its modalities have {n_vars}"
        raise MuDataError("mdata", found=found, fix="call `mdata.update()` after changing a modality")


def _require_size(adata: AnnData, where: str) -> None:
    for n, what in ((adata.n_obs, "cells"), (adata.n_vars, "features")):
        if n == 0:
            raise EmptyDataError(where, found=f"0 {what}", fix="check the filter that made it")


def _require_unique(names: pd.Index, where: str, mend: str, owner: str) -> None:
    if names.is_unique:
        return
    doubled = names[names.duplicated()].unique()
    examples = [str(n) for n in doubled[:5]]
    raise DuplicateNamesError(
        where, found=f"{len(doubled)} names occur more than once, e.g. {examples}", fix=f"{owner}.{mend}"
    )


def refuse_view(data: AnnData | MuData, call: str) -> None:
    """Raise ``ViewError`` if a call that writes into the object was given a view.

    Parameters
    ----------
    data
        The object.
    call
        Name of the call, for the message.
    """
    check_object(data)
    if data.is_view:
        name = "adata" if isinstance(data, AnnData) else "mdata"
        fix = f"{name} = {name}.copy()" + ("" if call.startswith("setup") else ", or pass inplace=False")
        raise ViewError(call, found=f"a view of {data.n_obs} cells", fix=fix)


def check_columns(cells: Cells) -> list[str]:
    """Check the columns of a setup: batch, label, tissue, condition.

    Returns
    -------
    Findings that are worth a warning: nothing labelled, rare labels, confounded batches, cells without a modality, and
    modalities whose cells are the same but for their names, or that hold the same features.

    Raises
    ------
    ObsKeyError, MissingValuesError, CategoryError, ObsConflictError
        If a column is absent, incomplete, not categorical, or contradicts itself.
    ControlError
        If no cell is of the control condition.
    """
    notes: list[str] = []
    batches, labels = cells.batches(), cells.labels()
    anywhere = np.any([cells.present(role) for role in cells.roles], axis=0)
    if not anywhere.all():
        names = list(cells.obs_names[~anywhere][:5])
        notes.append(f"{int((~anywhere).sum())} cells have none of the modalities {list(cells.roles)}, e.g. {names}")
    notes += _unpaired(cells) + _copied(cells)
    setup = cells.setup
    known = None if labels is None else labels[labels != setup.unlabeled_category]
    if known is not None:
        counts = known.value_counts()
        rare = counts[counts < _FEW]
        place = f"obs[{setup.labels_key!r}]"
        words = cells.obs(setup.labels_key).isin(sorted(MISSING_TEXT))
        if words.any():
            notes.append(
                f"{place}: {int(words.sum())} cells have a label such as 'nan' or ''; they count as unlabelled"
            )
        near = [n for n in counts.index if n.strip().casefold() == setup.unlabeled_category.strip().casefold()]
        if near:
            notes.append(
                f"{place}: {near[0]!r} is read as a label, since unlabeled_category is {setup.unlabeled_category!r}; "
                f"pass unlabeled_category={near[0]!r} if it means that the type is not known"
            )
        if len(counts) < 2:
            notes.append(
                f"{place} has {len(counts)} labels besides {setup.unlabeled_category!r}: nothing to tell apart"
            )
        elif len(rare):
            notes.append(f"{place}: {len(rare)} labels have fewer than {_FEW} cells, e.g. {sorted(rare.index)[:5]}")
    if batches is not None:
        notes += _confounded(cells, batches, known)
    tissues = cells.tissues()
    if tissues is not None and len(set(tissues) - {setup.unlabeled_category}) < 2:
        notes.append(f"obs[{setup.tissue_key!r}] has fewer than two tissues: nothing to tell apart")
    conditions = cells.conditions()
    if conditions is not None:
        notes += _conditions(conditions, setup.perturbation_key, setup.control_category)
    return notes


def _conditions(conditions: pd.Series, key: str | None, control: str) -> list[str]:
    """Check that there are control cells, and something else."""
    names = sorted(set(conditions))
    if control not in names:
        near = closest(control, names) or names[0]
        raise ControlError(
            f"obs[{key!r}]",
            found=f"no cell is {control!r}; there are {names[:5]}",
            fix=f"pass control_category={near!r}",
        )
    return [] if len(names) > 1 else [f"obs[{key!r}]: every cell is {control!r}, so no effect can be learned"]


def _unpaired(cells: Cells) -> list[str]:
    """Modalities that share no cell, though their names are the same but for a prefix, a suffix, or their case."""
    notes = []
    for one, other in itertools.combinations(cells.roles, 2):
        here, there = cells.present(one), cells.present(other)
        if (here & there).any() or not (here.any() and there.any()):
            continue
        names = cells.obs_names[here].astype(str), cells.obs_names[there].astype(str)
        if pair := _same_but_for_spelling(*names):
            notes.append(
                f"{cells.where(one)} and {cells.where(other)} share no cell, yet their names differ by a prefix, a suffix "
                f"or case only, e.g. {pair[0]!r} and {pair[1]!r}; give a cell one name in all modalities, and "
                "build the MuData again"
            )
    return notes


def _copied(cells: Cells) -> list[str]:
    """Modalities that hold the same features: not only of the same names, which is usual, but with the same values."""
    notes = []
    for one, other in itertools.combinations(cells.roles, 2):
        names = [pd.Index(cells.feature_names(role)) for role in (one, other)]
        shared = names[0].intersection(names[1])
        rows = np.flatnonzero(cells.present(one) & cells.present(other))[:_CELLS_COMPARED]
        if not len(shared) or not len(rows):
            continue
        ours, theirs = (
            cells.matrix_rows(role, rows)[:, names[i].get_indexer(shared)].toarray()
            for i, role in enumerate((one, other))
        )
        # a few ones in the same cells may be chance
        same = (ours == theirs).all(axis=0) & ((ours > 0).sum(axis=0) >= _FEW) & (ours.max(axis=0) > 1)
        if same.any():
            notes.append(
                f"{cells.where(one)} and {cells.where(other)} hold {int(same.sum())} features with the same names and values, "
                f"e.g. {list(shared[same][:5])}; keep each in the modality that it was measured in"
            )
    return notes


def _same_but_for_spelling(one: pd.Index, other: pd.Index) -> tuple[str, str] | None:
    """Names of one cell in both, if most cells of the smaller modality have such a pair."""
    for affix in (r"(?!)", r"[-_.:#|][^-_.:#|]*$", r"^[^-_.:#|]*[-_.:#|]+"):
        plain = [names.str.casefold().str.replace(affix, "", regex=True) for names in (one, other)]
        if not all(p.is_unique for p in plain):
            continue  # what is left of a name no longer stands for one cell
        common = plain[0].intersection(plain[1])
        if 2 * len(common) > min(len(one), len(other)):
            return one[plain[0].get_loc(common[0])], other[plain[1].get_loc(common[0])]
    return None


def _confounded(cells: Cells, batches: pd.Series, labels: pd.Series | None) -> list[str]:
    notes = []
    key = cells.setup.batch_key
    sizes = batches.value_counts()
    if (sizes < _FEW).any():
        small = sorted(sizes.index[sizes < _FEW])
        notes.append(f"obs[{key!r}]: {len(small)} batches have fewer than {_FEW} cells, e.g. {small[:5]}")
    if len(sizes) < 2:
        return [*notes, f"obs[{key!r}] has one batch only"]
    if labels is not None and labels.nunique() > 1:
        per_label = pd.DataFrame({"batch": batches.loc[labels.index].to_numpy(), "label": labels.to_numpy()})
        if per_label.drop_duplicates()["label"].is_unique:
            notes.append(
                f"obs[{key!r}] is confounded with obs[{cells.setup.labels_key!r}]: no label occurs in two batches, so "
                "differences between batches and between labels cannot be told apart"
            )
    groups: list[set[str]] = []  # batches linked by a modality that they share
    for role in cells.roles:
        linked = set(batches[cells.present(role)])
        apart = [g for g in groups if not g & linked]
        groups = [*apart, linked.union(*(g for g in groups if g & linked))] if linked else groups
    if len(groups) > 1:
        examples = [sorted(g)[:3] for g in groups]
        notes.append(
            f"obs[{key!r}] is confounded with the modality: batches {examples} share no modality with one another"
        )
    return notes
