"""700 real blood cells that the scanpy wheel carries, with their counts recovered."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellxpert.errors import DatasetError

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from scipy.sparse import csr_matrix

__all__ = ["pbmc68k", "recover_counts"]

_FILE = "10x_pbmc68k_reduced.h5ad"
_STORED_ERROR = 6e-4
"""The file keeps log1p(1e4 * count / total) to three decimals: half of the last one, and room for float32."""


def pbmc68k() -> MuData:
    """Return 700 peripheral blood cells of 10 types as counts; needs no network.

    The cells are a part of *Fresh 68k PBMCs (donor A)* of 10x Genomics (Zheng et al. 2017, 10.1038/ncomms14049; CC BY 4.0), as
    carried by scanpy. The file there holds normalised, rounded logarithms; the counts are recovered from them and checked
    against each cell's total (see :func:`recover_counts`).

    Returns
    -------
    mudata.MuData
        One modality, ``rna``: 700 cells x 765 genes (symbols), ``X`` a CSR matrix of whole numbers (float32). In ``obs``, of
        the object and of the modality: ``bulk_labels`` (categorical, 10 cell types), ``phase`` and ``louvain``
        (categorical), ``S_score``, ``G2M_score``, and ``n_counts``, ``n_genes``, ``percent_mito``, which describe all genes
        measured, not only the 765.

    Raises
    ------
    DatasetError
        If scanpy or its file is missing, or the file no longer leads to whole counts.

    Examples
    --------
    >>> import cellxpert as cx
    >>> cx.datasets.pbmc68k()["rna"].shape
    (700, 765)
    """
    from anndata import AnnData
    from mudata import MuData, set_options

    stored = _read(_path())
    if stored.raw is None or not {"bulk_labels", "n_counts"} <= set(stored.obs.columns):
        raise DatasetError("datasets.pbmc68k", found=f"an unknown form of {_FILE}", fix="pip install 'scanpy>=1.11'")
    counts = recover_counts(stored.raw.X, totals=stored.obs["n_counts"].to_numpy())
    obs = stored.obs.copy()
    obs.index = obs.index.astype(str).rename(None)
    var = stored.raw.var.iloc[:, :0].copy()
    var.index = var.index.astype(str).rename(None)
    with set_options(pull_on_update=False):
        mdata = MuData({"rna": AnnData(counts, obs=obs, var=var)})
        mdata.obs = obs.loc[mdata.obs_names].copy()
    return mdata


def recover_counts(logged: csr_matrix, *, totals: np.ndarray) -> csr_matrix:
    """Recover whole counts from ``log1p(1e4 * count / total)`` kept to three decimals.

    The smallest non-zero value of a cell is taken for one count and the others are multiples of it. This is then proved, not
    assumed: the counts found, normalised with the cell's known total, must give every stored value back to its last decimal.

    Parameters
    ----------
    logged
        Cells x genes.
    totals
        Counts of each cell over all genes measured, of shape (cells,).

    Returns
    -------
    scipy.sparse.csr_matrix
        Counts, whole numbers as float32.

    Raises
    ------
    DatasetError
        If a value is negative or not finite, or a count found does not give the stored value back.
    """
    import scipy.sparse as sp

    found = sp.csr_matrix(logged, dtype=np.float64, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    stored = found.data
    if not np.isfinite(stored).all() or (stored < 0).any():
        raise DatasetError("datasets.recover_counts", found="values that are negative or not finite")
    per_cell = np.diff(found.indptr)
    scaled = np.expm1(stored)
    smallest = np.ones(found.shape[0])
    smallest[per_cell > 0] = np.minimum.reduceat(scaled, found.indptr[:-1][per_cell > 0]) if len(scaled) else 1.0
    counts = np.rint(scaled / np.repeat(smallest, per_cell))
    total_of_value = np.repeat(np.asarray(totals, dtype=np.float64), per_cell)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = ~(np.abs(np.log1p(1e4 * counts / total_of_value) - stored) <= _STORED_ERROR)
    if off.any():
        raise DatasetError(
            "datasets.recover_counts",
            found=f"{int(off.sum())} of {off.size} values that are no whole count of their cell's total",
            fix="pip install 'scanpy>=1.11', whose file is known to be exact",
        )
    found.data = counts.astype(np.float32)
    return found.astype(np.float32)


def _path() -> Path:
    # The folder is looked up without importing scanpy, which takes seconds.
    spec = find_spec("scanpy")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / "datasets" / _FILE
        if path.is_file():
            return path
    raise DatasetError("datasets.pbmc68k", found=f"no {_FILE} in scanpy", fix="pip install 'scanpy>=1.11'")


def _read(path: Path) -> AnnData:
    import anndata as ad

    # The file was written by a very old anndata; it reads well, and says so once for each of its elements.
    with warnings.catch_warnings(action="ignore"):
        return ad.read_h5ad(path)
