"""The most variable features of each modality, chosen on training cells only.

Statistics are taken per column over the training rows in their order, and everything that compares columns runs over names
in sorted order, so the choice does not depend on the order of the columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellxpert.data.binning import Transform, magnitudes, row_scales
from cellxpert.data.conditions import genes_of
from cellxpert.data.roles import NICHE
from cellxpert.errors import CellxPertWarning, DuplicateNamesError, EmptyDataError

if TYPE_CHECKING:
    from cellxpert.config import TokenConfig
    from cellxpert.data.cells import Cells

__all__ = ["Choice", "select_features"]

_CHUNK = 1024
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Features chosen of one modality, sorted by name."""

    columns: IntArray
    """Their columns in the modality's matrix."""
    means: FloatArray
    """Mean value of each over the training cells that have the modality."""


def select_features(cells: Cells, config: TokenConfig, *, train_rows: npt.ArrayLike) -> dict[str, Choice]:
    """Choose each modality's most variable features.

    Genes are ranked by the variance of their Pearson residuals under Poisson noise (Lause et al. 2021 with theta infinite: for
    equal accuracy of a linear classifier it needs fewer tokens than deviance, and it keeps more than dispersion within bins of
    equal mean does); peaks by the variance of being open; proteins by the variance of their centred log-ratio; intensities by
    that of their arcsinh, niches by that of their mean magnitudes. Ties go to the name that sorts first. A feature that is zero in all training cells is never chosen: nothing could be
    learned about it. Genes that are perturbed in training cells are chosen first.

    Parameters
    ----------
    cells
        The cells of an object that was set up.
    config
        Number of features per modality. If they exceed ``max_tokens - 1`` together, each number is cut in proportion.
    train_rows
        Rows of the training cells.

    Raises
    ------
    EmptyDataError
        If there is no training cell, or none with a non-zero value.
    DuplicateNamesError
        If a feature name occurs twice in a modality.

    Warns
    -----
    CellxPertWarning
        If a modality is left out because no training cell has values in it, or if the budget was cut.
    """
    train = np.asarray(train_rows, dtype=np.int64)
    wanted = {"rna": config.n_genes, "atac": config.n_peaks, "protein": config.n_proteins, NICHE: config.n_niche}
    pools: dict[str, _Pool] = {}
    for role in cells.token_roles:
        if not wanted[role]:
            continue
        pool = _Pool.read(cells, role, rows=train[cells.present(role)[train]])
        if len(pool.columns):
            pools[role] = pool
        else:
            warnings.warn(
                f"{role}: no training cell has a non-zero value, so this modality is left out",
                CellxPertWarning,
                stacklevel=2,
            )
    if not pools:
        raise EmptyDataError("train_rows", found=f"{len(train)} cells, no values", fix="give cells with counts")
    take = _budget({role: min(wanted[role], len(pool.columns)) for role, pool in pools.items()}, config.max_tokens - 1)
    required = _perturbed_genes(cells, train)
    return {
        role: pool.choose(take[role], required=required if role == "rna" else frozenset())
        for role, pool in pools.items()
    }


def _perturbed_genes(cells: Cells, rows: IntArray) -> frozenset[str]:
    """Genes that are set from outside in some of these cells."""
    conditions = cells.conditions()
    if conditions is None:
        return frozenset()
    control = cells.setup.control_category
    return frozenset(gene for name in set(conditions.iloc[rows]) for gene in genes_of(name, control))


def _budget(wanted: dict[str, int], limit: int) -> dict[str, int]:
    total = sum(wanted.values())
    if total <= limit:
        return wanted
    share = {role: n * limit / total for role, n in wanted.items()}
    take = {role: max(1, int(x)) for role, x in share.items()}
    for role in sorted(share, key=lambda r: int(share[r]) - share[r]):  # largest remainder first
        if sum(take.values()) < limit:
            take[role] += 1
    while sum(take.values()) > limit:
        take[max(take, key=lambda r: take[r])] -= 1
    warnings.warn(
        f"{wanted} features exceed the {limit} that max_tokens leaves; {take} are read. "
        "Set n_genes, n_peaks, n_proteins and n_niche to choose the shares.",
        CellxPertWarning,
        stacklevel=3,
    )
    return take


@dataclass(frozen=True)
class _Pool:
    """Columns of one modality with a non-zero training value, sorted by name, and the sums of their values."""

    cells: Cells
    role: str
    rows: IntArray
    columns: IntArray
    total: FloatArray

    @classmethod
    def read(cls, cells: Cells, role: str, *, rows: IntArray) -> _Pool:
        names = np.asarray(cells.feature_names(role), dtype=str)
        columns = np.argsort(names, kind="stable")
        twice = names[columns][1:][names[columns][1:] == names[columns][:-1]]
        if len(twice):
            raise DuplicateNamesError(
                f"feature names of {role}",
                found=f"{len(twice)} repeated, such as {sorted(set(twice.tolist()))[:5]}",
                fix="call var_names_make_unique(), or merge the columns",
            )
        total = np.zeros(len(names))
        for matrix in _chunks(cells, role, rows):
            total += np.bincount(matrix.indices, weights=matrix.data, minlength=len(names))
        columns = columns[total[columns] > 0]
        return cls(cells, role, rows, columns, total[columns])

    def choose(self, n: int, *, required: frozenset[str]) -> Choice:
        picked = np.arange(len(self.columns))
        if n < len(picked):
            first = np.zeros(len(picked), bool)
            if required:  # by name or by Ensembl id, as gene_ids finds them
                for names in (self.cells.feature_names(self.role), self.cells.feature_ids(self.role)):
                    first |= False if names is None else np.isin(np.asarray(names, str)[self.columns], list(required))
            picked = np.sort(np.lexsort((-self.scores(), ~first))[:n])
        return Choice(self.columns[picked], self.total[picked] / max(len(self.rows), 1))

    def scores(self) -> FloatArray:
        transform = self.cells.transform(self.role)
        n = max(len(self.rows), 1)
        if transform == "counts":
            open_share = self.sums(lambda matrix: (matrix.data != 0).astype(np.float64)) / n
            return open_share * (1 - open_share)
        if transform == "log":
            return self.residual_variance(n)
        return _variance(
            self.sums(lambda matrix: _magnitudes(matrix, transform)),
            self.sums(lambda matrix: _magnitudes(matrix, transform) ** 2),
            n=n,
        )

    def residual_variance(self, n: int) -> FloatArray:
        """Variance of Pearson residuals (x - m) / sqrt(m), with m = total of the cell x share of the gene, clipped at sqrt(n).

        Zeros need no loop: their residual is -sqrt(m), and sums of m and sqrt(m) over all cells are products.
        """
        share = np.zeros(len(self.cells.feature_names(self.role)))
        first, second = np.zeros(len(share)), np.zeros(len(share))
        share[self.columns] = self.total / self.total.sum()
        totals = roots = 0.0
        for matrix in _chunks(self.cells, self.role, self.rows):
            size = 1e4 / row_scales(matrix.data, matrix.indptr, transform="log", n_features=matrix.shape[1])
            size[np.diff(matrix.indptr) == 0] = 0
            totals, roots = totals + float(size.sum()), roots + float(np.sqrt(size).sum())
            expected = np.repeat(size, np.diff(matrix.indptr)) * share[matrix.indices]
            root = np.sqrt(expected)
            residual = np.minimum((matrix.data - expected) / root, np.sqrt(n))
            first += np.bincount(matrix.indices, weights=residual + root, minlength=len(share))
            second += np.bincount(matrix.indices, weights=residual**2 - expected, minlength=len(share))
        first, second = first - np.sqrt(share) * roots, second + share * totals
        return (second / n - (first / n) ** 2)[self.columns]

    def sums(self, of: Callable[[sp.csr_matrix], FloatArray]) -> FloatArray:
        """Column sums over the training rows of a function of the stored values."""
        total = np.zeros(len(self.cells.feature_names(self.role)))
        for matrix in _chunks(self.cells, self.role, self.rows):
            total += np.bincount(matrix.indices, weights=of(matrix), minlength=len(total))
        return total[self.columns]


def _chunks(cells: Cells, role: str, rows: IntArray) -> Iterator[sp.csr_matrix]:
    for begin in range(0, len(rows), _CHUNK):
        yield cells.matrix_rows(role, rows[begin : begin + _CHUNK])


def _magnitudes(matrix: sp.csr_matrix, transform: Transform) -> FloatArray:
    scale = row_scales(matrix.data, matrix.indptr, transform=transform, n_features=matrix.shape[1])
    return magnitudes(matrix.data, matrix.indptr, scale, transform=transform)


def _variance(first: FloatArray, second: FloatArray, *, n: int) -> FloatArray:
    return np.maximum(second - first**2 / n, 0) / max(n - 1, 1)
