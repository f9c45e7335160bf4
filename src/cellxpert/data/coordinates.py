"""Coordinates of cells, graphs of their neighbours and image features: read from the object, and checked.

Letters: N cells, P dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from cellxpert.data.obs import closest
from cellxpert.errors import SpatialError

__all__ = ["check_coordinates", "n_repeated", "overlaid", "read_graph", "read_obsm"]

Floats = npt.NDArray[np.float64]
Rows = Mapping[str | None, npt.NDArray[np.int64]]
_MOST_REPEATED = 0.01
"""Share of cells at the place of another cell above which whole sections must lie over one another."""
_SECTION_NAMES = ("library", "section", "slice", "slide", "sample", "fov", "roi", "region", "bregma")
_MOST_SECTIONS = 1000


def _parts(data: AnnData | MuData, rows: Rows) -> list[tuple[str, AnnData | MuData, npt.NDArray[np.int64]]]:
    """Each part of an object: what messages call it, the part, the row in it of each cell."""
    everyone = np.arange(data.n_obs)
    if isinstance(data, AnnData):
        return [("adata", data, everyone)]
    return [*((f"mdata[{m!r}]", data.mod[m], rows[m]) for m in rows if m is not None), ("mdata", data, everyone)]


def read_obsm(data: AnnData | MuData, key: str, *, rows: Rows, what: str) -> tuple[Floats, list[str | None]]:
    """Read an ``obsm`` array for every cell: from the modalities first, then from the MuData itself.

    Parameters
    ----------
    data
        The object.
    key
        Name of the array.
    rows
        Per modality, the row of each cell (-1: absent).
    what
        What it holds, for messages.

    Returns
    -------
    float64 array with a row per cell, NaN where no part has the cell; and the modalities that have it (None: the object itself).

    Raises
    ------
    SpatialError
        If no part has it, if it does not hold numbers, or if two parts differ.
    """
    parts = [(where, part, row) for where, part, row in _parts(data, rows) if key in part.obsm]
    if not parts:
        masks = set(data.mod) if isinstance(data, MuData) else set()  # mudata keeps there which cells a modality has
        known = sorted({str(k) for _, part, _ in _parts(data, rows) for k in part.obsm} - masks)
        fix = f"use one of {known}" if known else f"put them there: adata.obsm[{key!r}] = ..., one row per cell"
        if near := closest(key, known):
            fix = f"did you mean {near!r}?"
        raise SpatialError(f"obsm[{key!r}]", found=f"no such array, and so no {what}", fix=fix)
    values: Floats | None = None
    for where, part, row in parts:
        place, here = f"{where}.obsm[{key!r}]", row >= 0
        new = _numbers(part.obsm[key], place, what)
        if isinstance(part, MuData):  # the whole has rows for all cells, those that have no place too
            here = here & ~np.isnan(new).all(axis=1)
        if values is None:
            values = np.full((data.n_obs, new.shape[1]), np.nan)
        elif new.shape[1] != values.shape[1]:
            found = f"{new.shape[1]} columns here, {values.shape[1]} in another modality"
            raise SpatialError(place, found=found, fix="give all parts of the object the same columns")
        known = here & np.isfinite(values).all(axis=1)
        one, other = values[known].astype(np.float32), new[row[known]].astype(np.float32)  # as some tools store them
        twice = np.flatnonzero((one != other).any(axis=1))
        if len(twice):
            names = list(data.obs_names[np.flatnonzero(known)[twice[:5]]])
            found = f"{len(twice)} cells have other {what} in another modality, e.g. {names}"
            raise SpatialError(place, found=found, fix="keep one of the two arrays")
        _require_finite(new[row[here]], data.obs_names[here], place, what)
        values[here] = new[row[here]]
    assert values is not None
    names_of = {f"mdata[{m!r}]": m for m in rows}
    return values, [names_of.get(where) for where, _, _ in parts]


def _numbers(array: Any, place: str, what: str) -> Floats:
    values = array.to_numpy() if isinstance(array, pd.DataFrame) else array
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "iufb":
        found = f"an array of type {values.dtype} and shape {values.shape}"
        raise SpatialError(place, found=found, fix=f"give {what} as numbers, one row per cell")
    return values.astype(np.float64)


def _require_finite(values: Floats, names: pd.Index, place: str, what: str) -> None:
    finite = np.isfinite(values).all(axis=1)
    if finite.all():
        return
    examples = [str(n) for n in names[~finite][:5]]
    found = f"{int((~finite).sum())} of {len(names)} cells have NaN or infinite {what}, e.g. {examples}"
    if values.shape[1] == 3 and what == "coordinates" and np.isfinite(values[~finite, :2]).all():
        found = f"{int((~finite).sum())} of {len(names)} cells have x and y but no finite z, e.g. {examples}"
        raise SpatialError(place, found=found, fix="give every section a z (0 if flat), or drop the column from all")
    owner = place.partition(".obsm")[0]
    fix = f"keep the others: {owner} = {owner}[numpy.isfinite({place}).all(axis=1)].copy()"
    if owner != "adata":
        fix = f"remove these cells from {owner}, or their coordinates, and call `mdata.update()`"
    raise SpatialError(place, found=found, fix=fix)


def check_coordinates(xyz_NP: Floats, section_N: npt.NDArray[np.int64], *, where: str, sections: list[str]) -> None:
    """Refuse coordinates that are no places: of another width than 2 or 3, or of sections laid over one another.

    Parameters
    ----------
    xyz_NP
        Coordinates; NaN for cells that have none.
    section_N
        Section of each cell, 0 for all where none are named.
    where
        How messages call the array.
    sections
        Names of the sections; empty where none are named.

    Raises
    ------
    SpatialError
        See above.
    """
    if xyz_NP.shape[1] not in (2, 3):
        fix = "give x and y, or x, y and z" + (", without other columns" if xyz_NP.shape[1] > 3 else "")
        raise SpatialError(where, found=f"{xyz_NP.shape[1]} columns", fix=fix)
    placed = np.flatnonzero(np.isfinite(xyz_NP).all(axis=1))
    if not len(placed):
        raise SpatialError(where, found="no cell with coordinates", fix="pass spatial_key=None")
    repeated = n_repeated(xyz_NP[placed], section_N[placed])
    if repeated > _MOST_REPEATED * len(placed):
        found = f"{repeated} of {len(placed)} cells lie exactly where another cell of their section does"
        fix = f"check obsm, or name a finer column than this one, whose sections are {sections[:5]}"
        if not sections:
            fix = "say which section each cell is of: library_key='...', a column of obs"
        raise SpatialError(where, found=found, fix=fix)


def n_repeated(xyz_NP: Floats, section_N: npt.NDArray[np.int64]) -> int:
    """Count cells at the place of an earlier cell of their section."""
    table = pd.DataFrame(np.column_stack([xyz_NP, section_N]))
    return int(table.duplicated().sum())


def overlaid(data: AnnData | MuData, xyz_NP: Floats) -> str | None:
    """Find a column of ``obs`` that looks like sections laid over one another; None if there is none."""
    placed = np.flatnonzero(np.isfinite(xyz_NP).all(axis=1))
    size = np.ptp(xyz_NP[placed], axis=0)[:2]
    for name in data.obs.columns:
        column = data.obs[name].iloc[placed]
        if not any(word in str(name).casefold() for word in _SECTION_NAMES):
            continue
        if column.dtype.kind == "f" or not 2 <= column.nunique() <= min(_MOST_SECTIONS, data.n_obs // 20):
            continue
        spans = [
            np.ptp(xyz_NP[placed[rows]], axis=0)[:2] for rows in column.groupby(column, observed=True).indices.values()
        ]
        if (np.median(spans, axis=0) > 0.7 * size).all():
            return str(name)
    return None


def read_graph(data: AnnData | MuData, key: str, *, rows: Rows) -> sparse.csr_array:
    """Read a graph of neighbours from ``obsp``: of squidpy, scanpy, or the user's own.

    Parameters
    ----------
    data
        The object.
    key
        Its name in ``obsp``, or what was given to squidpy as ``key_added``: ``f"{key}_connectivities"``.
    rows
        Per modality, the row of each cell (-1: absent).

    Returns
    -------
    Weights of shape (N, N), in the order of the object's cells, without self-loops.

    Raises
    ------
    SpatialError
        If there is no such graph, or its weights are negative or not finite.
    """
    parts, names = _parts(data, rows), (key, f"{key}_connectivities")
    found = [(where, part, row, name) for where, part, row in parts for name in names if name in part.obsp]
    if not found:
        known = sorted({str(k) for _, part, _ in parts for k in part.obsp})
        fix = f"use one of {known}" if known else "make it: squidpy.gr.spatial_neighbors(adata)"
        raise SpatialError(f"obsp[{key!r}]", found="no such graph", fix=fix)
    total = sparse.csr_array((data.n_obs, data.n_obs))
    for where, part, row, name in found:
        place = f"{where}.obsp[{name!r}]"
        if name.endswith("distances"):
            better = name.removesuffix("distances") + "connectivities"
            raise SpatialError(place, found="distances: the farthest would count most", fix=f"pass {better!r}")
        graph = sparse.coo_array(part.obsp[name]).astype(np.float64)
        if not np.isfinite(graph.data).all() or (graph.data < 0).any():
            raise SpatialError(place, found="negative or infinite weights", fix="give connectivities")
        cell_of_row = np.full(part.n_obs, -1)
        cell_of_row[row[row >= 0]] = np.flatnonzero(row >= 0)
        one, other = cell_of_row[graph.row], cell_of_row[graph.col]
        kept = (one >= 0) & (other >= 0) & (one != other) & (graph.data > 0)
        mine = sparse.csr_array((graph.data[kept], (one[kept], other[kept])), shape=total.shape)
        total = total.maximum(mine)  # an edge that two modalities have is one edge
    return sparse.csr_array(total)
