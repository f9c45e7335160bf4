"""Checks of an object's form: its type, names of cells and features, and the columns of a setup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert.data.obs import MISSING_TEXT
from cellxpert.errors import (
    DuplicateNamesError,
    EmptyDataError,
    FeatureNameError,
    MuDataError,
    ObjectTypeError,
    TransposedError,
    ViewError,
)

if TYPE_CHECKING:
    from cellxpert.data.cells import Cells

__all__ = [
    "ENSEMBL_GENE",
    "check_anndata",
    "check_columns",
    "check_mudata",
    "check_names",
    "check_object",
    "refuse_view",
]

ENSEMBL_GENE = re.compile(r"^ENS[A-Z]{0,6}G\d{6,}(\.\d+)?$")
"""Ensembl gene id of any species, with or without version."""
_BARCODE = re.compile(r"(?:^|[^A-Za-z])[ACGTN]{14,}(?:[^A-Za-z]|$)")
_PEAK = re.compile(r"^(?:chr\w{1,20}[:_-]\d+[-_]\d+|[\w.]{1,25}:\d+-\d+)$")
_ANTIBODY = re.compile(r"_TotalSeq[ABCD]?\b|^(?:ADT|AB)[_-]|[_-](?:ADT|protein|TotalSeq[ABCD]?)$", re.IGNORECASE)
_HOUSEHOLD = frozenset({"ACTB", "B2M", "EEF1A1", "FTL", "GAPDH", "MALAT1", "PTPRC", "RPLP0", "RPS27", "TMSB4X", "UBC"})
"""Genes that nearly every data set has; as names of cells they betray a transposed object."""
_FEW = 3


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
        fix = "give one of its tables, e.g. sdata.tables['table'], or use setup_spatialdata"
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


def check_names(adata: AnnData, role: str, *, where: str) -> list[str]:
    """Check that features have names, and that cells and features are not exchanged.

    Returns
    -------
    Findings that are worth a warning.

    Raises
    ------
    TransposedError
        If names of cells look like features, or names of features like barcodes.
    FeatureNameError
        If names of features are numbers.
    """
    features, cells = adata.var_names.astype(str), adata.obs_names.astype(str)
    if _looks_transposed(cells, features):
        found = f"cells named {list(cells[:3])}, features named {list(features[:3])}"
        raise TransposedError(where, found=found, fix=f"use {where}.T if cells are columns")
    if features.str.fullmatch(r"\d+").all():
        found = f"all names are numbers, e.g. {list(features[:3])}"
        fix = f"{where}.var_names = {where}.var[<column of gene symbols or Ensembl ids>].astype(str)"
        raise FeatureNameError(f"{where}.var_names", found=found, fix=fix)
    return _foreign_features(adata, role, features, where)


def _looks_transposed(cells: pd.Index, features: pd.Index) -> bool:
    """Whether cells are named like features and features are not, or the other way round with barcodes."""
    if _share(features, _BARCODE) > 0.5:
        return _share(cells, _BARCODE) <= 0.5
    for pattern in (ENSEMBL_GENE, _PEAK):
        if _share(cells, pattern) > 0.5:
            return _share(features, pattern) <= 0.5
    known = len(_HOUSEHOLD.intersection(cells.str.upper())) >= _FEW
    return known and not _HOUSEHOLD.intersection(features.str.upper()) and _share(features, ENSEMBL_GENE) <= 0.5


def _share(names: pd.Index, pattern: re.Pattern[str]) -> float:
    return float(np.mean([bool(pattern.search(n)) for n in names])) if len(names) else 0.0


def _foreign_features(adata: AnnData, role: str, features: pd.Index, where: str) -> list[str]:
    """Antibodies or peaks in the RNA matrix."""
    if role != "rna":
        return []
    foreign = features.str.contains(_ANTIBODY)
    if "feature_types" in adata.var:
        foreign |= (
            ~adata.var["feature_types"].astype(str).str.startswith(("Gene Expression", "gex", "GEX", "nan")).to_numpy()
        )
    if not foreign.any() or foreign.all():
        return []
    examples = list(features[foreign][:5])
    return [
        f"{where}: {int(foreign.sum())} of {len(features)} features of the RNA matrix are no genes, e.g. {examples}; "
        "put antibodies and peaks into modalities of their own"
    ]


def check_columns(cells: Cells) -> list[str]:
    """Check the batch and label columns of a setup.

    Returns
    -------
    Findings that are worth a warning: nothing labelled, rare labels, confounded batches, cells without a modality.

    Raises
    ------
    ObsKeyError, MissingValuesError, CategoryError, ObsConflictError
        If a column is absent, incomplete, not categorical, or contradicts itself.
    """
    notes: list[str] = []
    batches, labels = cells.batches(), cells.labels()
    anywhere = np.any([cells.present(role) for role in cells.roles], axis=0)
    if not anywhere.all():
        names = list(cells.obs_names[~anywhere][:5])
        notes.append(f"{int((~anywhere).sum())} cells have none of the modalities {list(cells.roles)}, e.g. {names}")
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
        if len(counts) < 2:
            notes.append(
                f"{place} has {len(counts)} labels besides {setup.unlabeled_category!r}: nothing to tell apart"
            )
        elif len(rare):
            notes.append(f"{place}: {len(rare)} labels have fewer than {_FEW} cells, e.g. {sorted(rare.index)[:5]}")
    if batches is not None:
        notes += _confounded(cells, batches, known)
    return notes


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
