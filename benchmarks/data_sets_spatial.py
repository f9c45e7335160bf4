"""Tissue of the task ``spatial``: labelled cells with coordinates, how they are split, and larger tissue tiled from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
from sklearn.model_selection import StratifiedKFold, train_test_split

from benchmarks.registry import missing_files

__all__ = ["N_FOLDS", "N_SPLITS", "SPATIAL", "Tissue", "folds", "split", "tiled"]

MIN_CELLS = 5
"""Labels of fewer cells are not scored, and not learned."""
N_SPLITS, N_FOLDS = 3, 5


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """One data set.

    Parameters
    ----------
    name
        The file's stem.
    label_key
        Column of ``obs`` with the truth.
    counts
        What setup is told of the values: ``"auto"``, or ``"intensity"``.
    image_key
        ``obsm`` array that stands for image features, if there is one.
    """

    name: str
    label_key: str = "cell_type"
    counts: str = "auto"
    image_key: str | None = None

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        return missing_files([f"{self.name}.h5ad"], data_dir)

    def load(self, data_dir: Path) -> anndata.AnnData:
        """Read the tissue."""
        return anndata.read_h5ad(data_dir / f"{self.name}.h5ad")

    def labels(self, adata: anndata.AnnData) -> np.ndarray:
        """Label of each cell as text; "" where it is not scored."""
        labels = adata.obs[self.label_key].astype(object).fillna("nan").astype(str).to_numpy()
        names, counts = np.unique(labels, return_counts=True)
        return np.where(np.isin(labels, names[counts >= MIN_CELLS]) & (labels != "nan"), labels, "")


SPATIAL: Mapping[str, Tissue] = {
    tissue.name: tissue
    for tissue in (
        Tissue(name="spatial_merfish_poa_6509", image_key="seq_smfish"),
        Tissue(name="spatial_starmap_1549x1020"),
        Tissue(name="spatial_cycif_3029x33", counts="intensity"),
    )
}


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stratified 80/20 split of the labelled cells."""
    known = np.flatnonzero(labels != "")
    train, test = train_test_split(known, test_size=0.2, stratify=labels[known], random_state=seed)
    return train, test


def folds(labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test cells of each fold: together the test cells are all labelled cells."""
    known = np.flatnonzero(labels != "")
    kept = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0).split(known, labels[known])
    return [(known[train], known[test]) for train, test in kept]


def tiled(adata: anndata.AnnData, n_cells: int) -> anndata.AnnData:
    """Lay copies of a tissue side by side until there are so many cells; genes and coordinates only."""
    n_copies = -(-n_cells // adata.n_obs)
    side = int(np.ceil(np.sqrt(n_copies)))
    xy = np.asarray(adata.obsm["spatial"], float)
    size = 1.02 * np.ptp(xy, axis=0)
    places = np.array([(i % side, i // side) for i in range(n_copies)])
    made = anndata.AnnData(
        sp.vstack([sp.csr_matrix(adata.X)] * n_copies, format="csr")[:n_cells],
        obsm={"spatial": np.concatenate([xy + place * size for place in places])[:n_cells]},
    )
    made.var_names = adata.var_names
    made.obs_names = [f"cell{i}" for i in range(n_cells)]
    return made
