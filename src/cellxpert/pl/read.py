"""Columns and coordinates of an AnnData or MuData, in the order of its cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cellxpert.errors import PlotError

__all__ = ["column", "coordinates", "mask", "matrix"]


def coordinates(data: Any, basis: str) -> np.ndarray:
    """First two columns of ``obsm[basis]`` or ``obsm["X_" + basis]``, or of an array given in place of an object.

    In a MuData, a modality's coordinates serve where the object has none; cells that it lacks get NaN.
    """
    if not hasattr(data, "obsm"):
        found = np.asarray(data, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] < 2:
            raise PlotError("pl data", found=f"shape {found.shape}", fix="give an AnnData, a MuData or an (n, 2) array")
        return found[:, :2]
    fix = "sc.pp.neighbors(adata, use_rep='X_cellxpert'); sc.tl.umap(adata)"
    return matrix(data, basis, fix=fix, n_columns=2)


def matrix(data: Any, key: str, *, fix: str, n_columns: int | None = None) -> np.ndarray:
    """Numbers of ``obsm[key]`` or ``obsm["X_" + key]``, the first ``n_columns`` or all; ``fix`` is the line that makes them.

    In a MuData, a modality's array serves where the object has none; cells that it lacks get NaN.
    """
    for part in _parts(data):
        for name in (key, f"X_{key}"):
            if name in part.obsm and np.asarray(part.obsm[name]).dtype != bool:
                return _spread(np.asarray(part.obsm[name], dtype=np.float64)[:, :n_columns], part, data)
    known = sorted({name for part in _parts(data) for name in part.obsm})
    raise PlotError(f"obsm[{key!r}]", found=f"not there; obsm has {known[:8]}", fix=fix)


def column(data: Any, values: Any, what: str = "color") -> pd.Series:
    """Return ``obs[values]``, or the values themselves, one per cell.

    In a MuData, a modality's column serves where the object has none; cells that it lacks get a missing value.
    """
    n_cells = data.n_obs if hasattr(data, "obsm") else len(data)
    if not isinstance(values, str):
        series = values.reset_index(drop=True) if isinstance(values, pd.Series) else pd.Series(values)
        if len(series) != n_cells:
            raise PlotError(f"pl {what}=", found=f"{len(series)} values for {n_cells} cells", fix="give one per cell")
        return series
    if not hasattr(data, "obsm"):
        raise PlotError(f"pl {what}=", found=f"{values!r} with a plain array", fix="give one value per cell")
    for part in _parts(data):
        if values in part.obs:
            found = part.obs[values]
            return (found if part is data else found.reindex(data.obs_names)).reset_index(drop=True)
    known = sorted({key for part in _parts(data) for key in part.obs.columns})
    raise PlotError(f"obs[{values!r}]", found=f"not there; obs has {known[:8]}", fix="give one of these names")


def mask(data: Any, values: Any, what: str) -> np.ndarray:
    """Truth value of each cell; missing ones are False."""
    series = column(data, values, what)
    known = series.dropna()
    if not known.isin([True, False]).all():
        raise PlotError(f"pl {what}=", found="values other than True and False", fix="give one truth value per cell")
    return series.isin([True]).to_numpy(dtype=bool)


def _parts(data: Any) -> list[Any]:
    return [data, *data.mod.values()] if hasattr(data, "mod") else [data]


def _spread(values: np.ndarray, part: Any, data: Any) -> np.ndarray:
    if part is data:
        return values
    place = part.obs_names.get_indexer(data.obs_names)
    spread = np.full((data.n_obs, values.shape[1]), np.nan)
    spread[place >= 0] = values[place[place >= 0]]
    return spread
