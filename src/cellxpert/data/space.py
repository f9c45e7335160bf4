"""Where cells are: their sections, neighbours and places, on a scale that neither a unit nor a rotation changes.

Letters: N cells, P dimensions, S sections, F image features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.spatial import cKDTree

from cellxpert.data import coordinates as reading
from cellxpert.data import obs as columns
from cellxpert.errors import SpatialError

if TYPE_CHECKING:
    from cellxpert.data.record import SpatialSetup

__all__ = ["Space", "check_space"]

Floats = npt.NDArray[np.float64]
_TIE = 1e-6
"""Distances that differ by a smaller share are equal: on a grid all neighbours of a ring count, whatever rounding says."""
_SCALES_DIFFER = 10.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Space:
    """Sections, neighbours, places and image features of all cells of an object."""

    section_N: npt.NDArray[np.int64]
    """Section of each cell; 0 for all where none are named."""
    sections: list[str]
    """Their names; empty where none are named."""
    source: str
    """Role of the modality that niches are means of."""
    xyz_NP: Floats | None = None
    """Coordinates, NaN for cells without; None where the object has none."""
    scale_S: Floats | None = None
    """Median distance to the nearest neighbour in each section; NaN for sections of one cell."""
    place_NX: npt.NDArray[np.float32] | None = None
    """Distance from the section's middle in x and y, height above it, and log mean distance to the nearest neighbours, in units of
    ``scale_S``: (N, 3), NaN for cells without coordinates. A rotation about z or another unit changes none of them."""
    graph_NN: sparse.csr_array | None = None
    """Weights of each cell's neighbours, which sum to 1 (0 for a cell without neighbours); never across sections."""
    image_NF: Floats | None = None
    """Image features, NaN for cells without."""

    @classmethod
    def read(
        cls, data: AnnData | MuData, setup: SpatialSetup, *, rows: reading.Rows, roles: dict[str | None, str]
    ) -> Space:
        """Read what a setup says of an object.

        Parameters
        ----------
        data
            The object.
        setup
            Keys and numbers.
        rows
            Per modality, the row of each cell (-1: absent).
        roles
            Role that each modality plays.

        Raises
        ------
        SpatialError, ObsKeyError, MissingValuesError, CategoryError
            If something is absent, incomplete, or contradicts itself.
        """
        source = next(iter(rows))
        xyz_NP = scale_S = place_NX = graph_NN = image_NF = None
        if setup.spatial_key is not None:
            xyz_NP, holders = reading.read_obsm(data, setup.spatial_key, rows=rows, what="coordinates")
        section_N, sections = _sections(data, setup, rows=rows, xyz_NP=xyz_NP)
        if xyz_NP is not None:
            where = f"obsm[{setup.spatial_key!r}]"
            reading.check_coordinates(xyz_NP, section_N, where=where, sections=sections)
            source = next((m for m in holders if m in roles), source)
            present_N = rows[source] >= 0
            scale_S, place_NX, graph_NN = _places(xyz_NP, section_N, present_N, n_neighbors=setup.n_neighbors)
        if setup.neighbors_key is not None:
            graph_NN = reading.read_graph(data, setup.neighbors_key, rows=rows)
            _refuse_bridges(graph_NN, section_N, sections, key=setup.neighbors_key)
            graph_NN = _shares(graph_NN, rows[source] >= 0)
        if setup.image_key is not None:
            image_NF, _ = reading.read_obsm(data, setup.image_key, rows=rows, what="image features")
        return cls(
            section_N=section_N,
            sections=sections,
            source=roles[source],
            xyz_NP=xyz_NP,
            scale_S=scale_S,
            place_NX=place_NX,
            graph_NN=graph_NN,
            image_NF=image_NF,
        )

    @property
    def has_neighbors(self) -> npt.NDArray[np.bool_]:
        """Which cells have neighbours."""
        assert self.graph_NN is not None
        return np.diff(self.graph_NN.indptr) > 0


def _sections(
    data: AnnData | MuData, setup: SpatialSetup, *, rows: reading.Rows, xyz_NP: Floats | None
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Section of each cell, and their names; a cell without coordinates needs none."""
    if setup.library_key is None:
        return np.zeros(data.n_obs, np.int64), []
    column = columns.read_column(data, setup.library_key, rows=rows)
    asked = np.ones(data.n_obs, bool)
    if xyz_NP is not None and setup.neighbors_key is None:
        asked = np.isfinite(xyz_NP).all(axis=1)
    names = columns.as_categories(column[asked], key=setup.library_key).to_numpy(dtype=str)
    found, code = np.unique(names, return_inverse=True)
    section_N = np.zeros(data.n_obs, np.int64)
    section_N[asked] = code.reshape(-1)
    return section_N, found.tolist()


def _places(
    xyz_NP: Floats, section_N: npt.NDArray[np.int64], present_N: npt.NDArray[np.bool_], *, n_neighbors: int
) -> tuple[Floats, npt.NDArray[np.float32], sparse.csr_array]:
    """Scales of the sections, places of the cells, and the graph of the nearest neighbours that have the source of niches."""
    n_cells, n_sections = len(xyz_NP), int(section_N.max(initial=0)) + 1
    scale_S, place_NX = np.full(n_sections, np.nan), np.full((n_cells, 3), np.nan)
    one, other = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    near_N = np.full(n_cells, np.nan)
    placed_N = np.isfinite(xyz_NP).all(axis=1)
    for section in range(n_sections):
        cells = np.flatnonzero(placed_N & (section_N == section))
        if len(cells) < 2:
            continue
        distance, neighbor = _nearest(xyz_NP[cells], n_neighbors)
        scale_S[section] = np.median(distance[:, 0])
        kept = np.isfinite(distance)
        near_N[cells] = np.sum(distance, axis=1, where=kept) / kept.sum(axis=1)
        at, column = np.nonzero(kept)
        one.append(cells[at])
        other.append(cells[neighbor[at, column]])
    usual = np.median(scale_S[scale_S > 0]) if (scale_S > 0).any() else 1.0
    for section in range(n_sections):
        cells = np.flatnonzero(placed_N & (section_N == section))
        scale = scale_S[section] if scale_S[section] > 0 else usual
        from_middle = (xyz_NP[cells] - xyz_NP[cells].mean(axis=0)) / scale if len(cells) else xyz_NP[cells]
        place_NX[cells, 0] = np.linalg.norm(from_middle[:, :2], axis=1)
        place_NX[cells, 1] = from_middle[:, 2] if xyz_NP.shape[1] == 3 else 0.0
        place_NX[cells, 2] = np.nan_to_num(np.log(np.maximum(near_N[cells] / scale, 1e-3)))
    ones, others = np.concatenate(one), np.concatenate(other)
    graph = sparse.csr_array((np.ones(len(ones)), (ones, others)), shape=(n_cells, n_cells))
    return scale_S, place_NX.astype(np.float32), _shares(graph, present_N)


def _nearest(xyz_NP: Floats, n_neighbors: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Distances and rows of each cell's nearest neighbours, and of all as far as the last of them; infinite where there are none."""
    n_cells, n_asked, tree = len(xyz_NP), 2 * n_neighbors + 8, cKDTree(xyz_NP)
    while True:
        n_asked = min(n_cells, n_asked)
        distance, row = tree.query(xyz_NP, k=n_asked)
        own = row == np.arange(n_cells)[:, None]
        own[:, -1] |= ~own.any(axis=1)  # at a place that many cells share, a cell may not be among its own nearest
        distance, row = distance[~own].reshape(n_cells, -1), row[~own].reshape(n_cells, -1)
        last = distance[:, min(n_neighbors, distance.shape[1]) - 1] * (1 + _TIE)
        if n_asked == n_cells or (distance[:, -1] > last).all():
            return np.where(distance <= last[:, None], distance, np.inf), row
        n_asked *= 2  # more cells are as far as the last one


def _shares(graph: sparse.csr_array, present_N: npt.NDArray[np.bool_]) -> sparse.csr_array:
    """Weights that sum to 1 over the neighbours that have the source of niches."""
    graph = sparse.csr_array(graph * present_N[None].astype(np.float64))
    graph.eliminate_zeros()
    graph.sort_indices()
    total = np.asarray(graph.sum(axis=1)).ravel()
    graph.data = graph.data / np.repeat(total, np.diff(graph.indptr))
    return graph


def _refuse_bridges(
    graph: sparse.csr_array, section_N: npt.NDArray[np.int64], sections: list[str], *, key: str
) -> None:
    graph = graph.tocoo()
    across = np.flatnonzero(section_N[graph.row] != section_N[graph.col])
    if len(across):
        pair = sections[section_N[graph.row[across[0]]]], sections[section_N[graph.col[across[0]]]]
        found = f"{len(across)} of {graph.nnz} edges join two sections, e.g. {pair[0]!r} and {pair[1]!r}"
        fix = "pass library_key to squidpy.gr.spatial_neighbors too, or leave neighbors_key out"
        raise SpatialError(f"obsp[{key!r}]", found=found, fix=fix)


def check_space(data: AnnData | MuData, space: Space, *, spatial_key: str | None) -> list[str]:
    """Say what is worth a warning: cells at one place, sections that lie over one another or differ in scale, or are too small.

    Parameters
    ----------
    data
        The object.
    space
        What was read of it.
    spatial_key
        Name of the coordinates, for messages.
    """
    notes, where = [], f"obsm[{spatial_key!r}]"
    if space.xyz_NP is not None and space.scale_S is not None:
        placed = np.isfinite(space.xyz_NP).all(axis=1)
        if n := reading.n_repeated(space.xyz_NP[placed], space.section_N[placed]):
            notes.append(f"{where}: {n} cells lie exactly where another cell of their section does")
        if not space.sections and (name := reading.overlaid(data, space.xyz_NP)):
            notes.append(
                f"{where}: cells of different obs[{name!r}] lie over one another and are taken for neighbours; "
                f"pass library_key={name!r} if these are sections"
            )
        scale = space.scale_S[np.isfinite(space.scale_S)]
        if len(scale) and scale.min() == 0:
            notes.append(f"{where}: in some sections most cells share their place with another")
        elif len(scale) and scale.max() > _SCALES_DIFFER * scale.min():
            low, high = (space.sections[int(f(space.scale_S))] for f in (np.nanargmin, np.nanargmax))
            notes.append(
                f"{where}: neighbours are {scale.min():.3g} apart in section {low!r} and {scale.max():.3g} in {high!r}; "
                "each section is scaled on its own, but check that its unit and its cells are what you mean"
            )
    if space.graph_NN is not None:
        placed = np.ones(len(space.section_N), bool) if space.xyz_NP is None else np.isfinite(space.xyz_NP).all(axis=1)
        if alone := int((~space.has_neighbors & placed).sum()):
            notes.append(f"{alone} cells have no neighbours, and so no niche")
    return notes
