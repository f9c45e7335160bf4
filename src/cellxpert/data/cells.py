"""Cells of an AnnData or MuData: the rows of every modality, found by name, never by position."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from cellxpert.data import obs as columns
from cellxpert.data.binning import Transform, magnitudes, row_scales, transform_of
from cellxpert.data.matrix import RowReader
from cellxpert.data.names import ensembl_ids
from cellxpert.data.roles import NICHE
from cellxpert.data.space import Space
from cellxpert.errors import ModalityError, MuDataError, ObjectTypeError
from cellxpert.genome.builds import genome_of
from cellxpert.genome.peaks import are_kmers

if TYPE_CHECKING:
    from cellxpert.data.record import ModalitySetup, Setup

__all__ = ["Cells", "modality_rows", "with_genome"]


def modality_rows(mdata: MuData, name: str) -> np.ndarray:
    """Row of each cell of the MuData in one of its modalities, checked by name.

    Returns
    -------
    int64 array of shape (n_cells,); -1 where the modality lacks the cell.

    Raises
    ------
    MuDataError
        If the row map is absent or stale.
    """
    adata, where = mdata.mod[name], f"mdata.obsmap[{name!r}]"
    fix = "call `mdata.update()` after changing a modality"
    if name not in mdata.obsmap:
        raise MuDataError(where, found="no row map for this modality", fix=fix)
    # uint32 on disk and in memory: without the cast, "absent" (0) minus 1 would be 4,294,967,295
    rows = np.asarray(mdata.obsmap[name]).astype(np.int64).ravel() - 1
    present = rows >= 0
    if rows.size and rows.max() >= adata.n_obs:
        raise MuDataError(where, found=f"row {rows.max() + 1} in a modality of {adata.n_obs} cells", fix=fix)
    mapped, named = adata.obs_names[rows[present]], mdata.obs_names[present]
    wrong = np.flatnonzero(mapped.to_numpy() != named.to_numpy())
    if len(wrong):
        pairs = ", ".join(f"{named[i]!r} -> {mapped[i]!r}" for i in wrong[:5])
        raise MuDataError(where, found=f"{len(wrong)} cells are mapped to the row of another cell ({pairs})", fix=fix)
    if present.sum() != adata.n_obs:
        found = f"{present.sum()} of the modality's {adata.n_obs} cells are in the MuData"
        raise MuDataError(where, found=found, fix=fix)
    return rows


def with_genome(setup: Setup, data: AnnData | MuData) -> Setup:
    """Return a setup that says of which genome build an object's peaks are.

    Raises
    ------
    GenomeError
        If the object names a build that its peaks contradict.
    """

    def noted(m: ModalitySetup) -> ModalitySetup:
        if m.role != "atac":
            return m
        adata, where = (data, "adata") if m.name is None else (data.mod[m.name], f"mdata[{m.name!r}]")
        return replace(m, genome=genome_of(adata, where=where))

    return replace(setup, modalities=tuple(map(noted, setup.modalities)))


class Cells:
    """Cells in the order of ``obs_names``, with the rows of each role's matrix.

    Made by :meth:`open`. Nothing is copied or densified; the object that was opened is never changed.
    """

    def __init__(self, data: AnnData | MuData, setup: Setup, *, rows: dict[str, np.ndarray]) -> None:
        self._data, self.setup, self._rows = data, setup, rows
        self._readers = {
            m.role: RowReader(self.adata(m.role), m.layer, where=self.where(m.role)) for m in setup.modalities
        }

    @classmethod
    def open(cls, data: AnnData | MuData, setup: Setup) -> Cells:
        """Find the rows of every modality of the setup and check them by name.

        Parameters
        ----------
        data
            The object: a view, a copy, a backed one, modalities in any order, any cell missing any modality.
        setup
            Which modality plays which role.

        Raises
        ------
        ObjectTypeError
            If the object is neither AnnData nor MuData.
        ModalityError
            If a modality of the setup is not in the object.
        MuDataError
            If row maps are stale.
        """
        if isinstance(data, AnnData):
            rows = {m.role: np.arange(data.n_obs) for m in setup.modalities}
            if any(m.name is not None for m in setup.modalities):
                names = [m.name for m in setup.modalities]
                raise ModalityError(
                    "AnnData", found=f"one matrix where modalities {names} are meant", fix="give a MuData"
                )
            return cls(data, setup, rows=rows)
        if not isinstance(data, MuData):
            raise ObjectTypeError("Cells.open", found=type(data).__name__, fix="give an AnnData or MuData object")
        rows = {}
        for m in setup.modalities:
            if m.name is None or m.name not in data.mod:
                have = sorted(data.mod)
                raise ModalityError("mdata", found=f"no modality {m.name!r}; it has {have}", fix="call `setup_mudata`")
            rows[m.role] = modality_rows(data, m.name)
        return cls(data, setup, rows=rows)

    def __repr__(self) -> str:
        parts = ", ".join(f"{role}: {int(self.present(role).sum())}" for role in self.roles)
        return f"Cells({self.n_cells} cells; {parts})"

    @property
    def n_cells(self) -> int:
        """Number of cells, whatever they lack."""
        return int(self._data.n_obs)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells; every array of this class is in this order."""
        return self._data.obs_names

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the setup, in their fixed order."""
        return tuple(self._rows)

    @property
    def token_roles(self) -> tuple[str, ...]:
        """Roles that features can have: those of the setup, and the niche where neighbours are known."""
        return self.setup.token_roles

    @functools.cached_property
    def space(self) -> Space | None:
        """Where cells are; None where the setup does not say."""
        if self.setup.spatial is None:
            return None
        names = {self.setup.modality(r).name: r for r in self.roles}
        rows = {name: self._rows[role] for name, role in names.items()}
        return Space.read(self._data, self.setup.spatial, rows=rows, roles=names)

    def where(self, role: str) -> str:
        """How messages call the modality of a role."""
        name = self.setup.modality(role).name
        return "adata" if name is None else f"mdata[{name!r}]"

    def adata(self, role: str) -> AnnData:
        """The modality that plays a role."""
        name = self.setup.modality(role).name
        return self._data if name is None else self._data.mod[name]

    def counts(self, role: str) -> str:
        """What the values of a role are: ``"integer"``, ``"fractional"`` or ``"intensity"``; of niches ``"magnitude"``."""
        return "magnitude" if role == NICHE else self.setup.modality(role).counts

    def transform(self, role: str) -> Transform:
        """How the values of a role become magnitudes."""
        kmers = role == "atac" and are_kmers(self.feature_names(role)) > 0
        return transform_of(role, self.counts(role), kmers=kmers)

    def rows(self, role: str) -> np.ndarray:
        """Row of each cell in the matrix of a role, int64 of shape (n_cells,); -1 where it is absent."""
        return self._rows[role]

    def present(self, role: str) -> np.ndarray:
        """Which cells have the modality, bool of shape (n_cells,); of niches, which have neighbours."""
        return self._of_neighbors().has_neighbors if role == NICHE else self._rows[role] >= 0

    def matrix_rows(self, role: str, rows: np.ndarray) -> sparse.csr_matrix:
        """Values of chosen cells in one modality.

        Parameters
        ----------
        role
            ``"rna"``, ``"atac"`` or ``"protein"``; ``"niche"``: mean magnitudes of the neighbours.
        rows
            Cells as positions in :attr:`obs_names` (int64), in any order, each of which must have the modality.

        Returns
        -------
        float64 CSR matrix of shape (len(rows), n_features): indices sorted, no duplicates, no stored zeros; the same
        whatever form the matrix has in the object.
        """
        if role == NICHE:
            return self._niches(np.asarray(rows, dtype=np.int64))
        local = self._rows[role][np.asarray(rows, dtype=np.int64)]
        assert (local >= 0).all(), "a cell that lacks the modality was asked for"
        return self._readers[role](local)

    def _of_neighbors(self) -> Space:
        assert self.space is not None, "the setup says nothing of neighbours"
        return self.space

    def _niches(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Mean magnitudes of the neighbours of some cells."""
        space = self._of_neighbors()
        weight = space.graph_NN[rows]
        used = np.unique(weight.indices)
        matrix = self.matrix_rows(space.source, used)
        transform = self.transform(space.source)
        scale = np.ones(matrix.shape[0])
        if transform != "clr":  # centring would need to know which proteins a model reads: counts are taken as they are
            scale = row_scales(matrix.data, matrix.indptr, transform=transform, n_features=matrix.shape[1])
        matrix.data = magnitudes(matrix.data, matrix.indptr, scale, transform=transform)
        mean = sparse.csr_matrix(weight[:, used] @ matrix)
        mean.data = np.round(mean.data, 6)  # so that the order in which neighbours are summed cannot be seen
        mean.eliminate_zeros()
        mean.sort_indices()
        return mean

    def feature_names(self, role: str) -> np.ndarray:
        """Names of a modality's features, in the order of its columns."""
        role = self._of_neighbors().source if role == NICHE else role
        return np.asarray(self.adata(role).var_names, dtype=str)

    def feature_ids(self, role: str) -> np.ndarray | None:
        """Ensembl gene ids of a modality's features without version, "" where there is none; None if none has one.

        Read from ``var_names``, or else from the first usual column of ``var`` (``gene_ids``, ``ensembl_id``, ...) that
        holds such ids.
        """
        role = self._of_neighbors().source if role == NICHE else role
        if role == "atac":
            return None
        _, ids = ensembl_ids(self.adata(role))
        return ids if (ids != "").any() else None

    def obs(self, key: str) -> pd.Series:
        """Column of ``obs`` in the order of :attr:`obs_names`: from the modalities first, then from the MuData itself.

        Raises
        ------
        ObsKeyError
            If no part of the object has the column.
        ObsConflictError
            If two parts say different things about one cell.
        """
        return columns.read_column(
            self._data, key, rows={self.setup.modality(r).name: self._rows[r] for r in self.roles}
        )

    def batches(self) -> pd.Series | None:
        """Batch of each cell as text, or None if the setup has no ``batch_key``; a missing one is an error."""
        key = self.setup.batch_key
        return None if key is None else columns.as_categories(self.obs(key), key=key)

    def labels(self) -> pd.Series | None:
        """Label of each cell as text, or None if the setup has no ``labels_key``; a missing one is the unlabelled."""
        key = self.setup.labels_key
        if key is None:
            return None
        return columns.as_categories(self.obs(key), key=key, missing=self.setup.unlabeled_category)

    def tissues(self) -> pd.Series | None:
        """Tissue of each cell as text, or None if the setup has no ``tissue_key``; a missing one is not known."""
        key = self.setup.tissue_key
        if key is None:
            return None
        return columns.as_categories(self.obs(key), key=key, missing=self.setup.unlabeled_category)

    def conditions(self) -> pd.Series | None:
        """Condition of each cell as text, or None if the setup has no ``perturbation_key``; a missing one is an error."""
        key = self.setup.perturbation_key
        return None if key is None else columns.as_categories(self.obs(key), key=key)
