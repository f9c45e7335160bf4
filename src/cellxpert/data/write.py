"""Results into the user's object: written to the whole and mirrored, row by row, to each of its modalities.

scanpy and squidpy read one AnnData, so a MuData's results are put where they look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import keys
from cellxpert.data.cells import modality_rows
from cellxpert.data.objects import refuse_view

__all__ = [
    "forget_obs",
    "forget_obsm",
    "record",
    "recorded",
    "require_writable",
    "write_layer",
    "write_obs",
    "write_obsm",
]


def require_writable(data: AnnData | MuData, call: str) -> None:
    """Refuse, before anything is computed, an object that a result could be written to in part only.

    Raises
    ------
    ViewError
        If the object is a view.
    MuDataError
        If the row map of any modality is stale, of one without a role too.
    """
    refuse_view(data, call)
    _parts(data)


def _parts(data: AnnData | MuData) -> list[tuple[AnnData | MuData, npt.NDArray[np.int64]]]:
    """The object and each modality, with the row in the object of each of its cells; all checked before any is given."""
    parts: list[tuple[AnnData | MuData, npt.NDArray[np.int64]]] = [(data, np.arange(data.n_obs))]
    if isinstance(data, MuData):
        for name, adata in data.mod.items():
            rows = modality_rows(data, name)
            row_of_cell = np.empty(adata.n_obs, np.int64)
            row_of_cell[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
            parts.append((adata, row_of_cell))
    return parts


def write_obsm(data: AnnData | MuData, key: str, values_ND: npt.NDArray[np.float32]) -> None:
    """Write an array with one row per cell into ``obsm[key]``."""
    for part, rows in _parts(data):
        part.obsm[key] = values_ND[rows]


def write_obs(data: AnnData | MuData, key: str, values: pd.Series) -> None:
    """Write a column; a categorical one loses the categories that a part does not use, and colours that no longer fit."""
    for part, rows in _parts(data):
        column = values.iloc[rows]
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.cat.remove_unused_categories()
            part.uns.pop(f"{key}_colors", None)  # squidpy fails on colours whose number differs from the categories'
        part.obs[key] = column.set_axis(part.obs_names)


def forget_obs(data: AnnData | MuData, key: str) -> None:
    """Remove a column that an earlier call wrote."""
    for part, _ in _parts(data):
        part.obs.drop(columns=key, errors="ignore", inplace=True)


def forget_obsm(data: AnnData | MuData, key: str) -> None:
    """Remove an array that an earlier call wrote."""
    for part, _ in _parts(data):
        part.obsm.pop(key, None)


def write_layer(
    data: AnnData | MuData,
    key: str,
    values_NG: npt.NDArray[np.float32],
    *,
    modality: str | None,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> None:
    """Write predicted values of some cells and features into a layer of one modality; all others are NaN.

    Parameters
    ----------
    data, key
        The object, and the layer's name.
    values_NG
        Values of the chosen cells and features.
    modality
        Name of the modality; None for an AnnData.
    rows, columns
        Rows in the modality, and columns of its matrix; negative ones are left out.
    """
    adata = data if modality is None else data.mod[modality]
    layer = np.full(adata.shape, np.nan, np.float32)
    cell, feature = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
    layer[np.ix_(rows[cell], columns[feature])] = values_NG[np.ix_(cell, feature)]
    adata.layers[key] = layer


def record(data: AnnData | MuData, call: str, *, key: str, entry: dict[str, Any]) -> None:
    """Record a call in ``uns["cellxpert_info"][call][key]``; ``entry`` holds plain values only."""
    info = dict(data.uns.get(keys.INFO, {}))
    info[call] = {**info.get(call, {}), _entry(key): entry}
    data.uns[keys.INFO] = info


def recorded(data: AnnData | MuData, call: str, *, key: str) -> bool:
    """Say whether a call is recorded under the key."""
    return _entry(key) in data.uns.get(keys.INFO, {}).get(call, {})


def _entry(key: str) -> str:
    """Name of a record: a key with "/" would become a nested group in HDF5 and Zarr."""
    return key.replace("/", "_")
