"""scANVI as its documentation says: scVI on the training cells, scANVI from it, then the test cells read by the trained model.

What is not a default: the 2,000 most variable genes of the training cells, as in its tutorials, where there are more; scVI's own
400 epochs end after about 4,000 steps, so that it runs without a GPU (that is fewer epochs from some 1,300 cells on); scANVI's
20 epochs of 100 cells of each label, as in its tutorials: with its default of 10 epochs over all cells it does worse here.
"""

from __future__ import annotations

import logging
import warnings

import anndata
import numpy as np
import scanpy as sc
import scipy.sparse as sp
import scvi

from benchmarks.methods import Prediction

__all__ = ["ScANVI", "epochs", "scanvi"]

N_GENES = 2000
EPOCHS, STEPS, BATCH = 400, 4000, 128
LABEL, UNKNOWN = "label", "Unknown"


def epochs(n_cells: int) -> int:
    """Epochs of scVI: its own rule for up to 20,000 cells, bounded by steps.

    >>> [epochs(n) for n in (500, 2110, 6244)]
    [400, 242, 81]
    """
    return min(EPOCHS, max(1, STEPS * BATCH // n_cells))


class ScANVI:
    """scVI, then scANVI, on the training cells alone."""

    def __init__(self, *, seed: int, quick: bool) -> None:
        self.seed, self.quick = seed, quick

    def _read(self, adata: anndata.AnnData, labels: np.ndarray | str) -> anndata.AnnData:
        """Return the counts of the chosen genes and nothing else."""
        kept = adata[:, self.genes]
        read = anndata.AnnData(sp.csr_matrix(kept.X, dtype=np.float32), obs=kept.obs[[]].copy(), var=kept.var[[]])
        read.obs[LABEL] = labels
        return read

    def fit(self, cells: anndata.AnnData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        scvi.settings.seed = self.seed
        scvi.settings.verbosity = logging.ERROR
        self.genes = cells.var_names
        if cells.n_vars > N_GENES:
            table = sc.pp.highly_variable_genes(cells, n_top_genes=N_GENES, flavor="seurat_v3", inplace=False)
            self.genes = cells.var_names[table["highly_variable"].to_numpy()]
        seen = self._read(cells, labels)
        scvi.model.SCVI.setup_anndata(seen, labels_key=LABEL)
        plain = scvi.model.SCVI(seen)
        options = {"accelerator": "cpu", "enable_progress_bar": False}
        with warnings.catch_warnings(action="ignore"):  # Lightning's, of workers and loggers
            plain.train(max_epochs=1 if self.quick else epochs(cells.n_obs), **options)
            self.model = scvi.model.SCANVI.from_scvi_model(plain, unlabeled_category=UNKNOWN, labels_key=LABEL)
            self.model.train(max_epochs=1 if self.quick else 20, n_samples_per_label=100, **options)

    def predict(self, cells: anndata.AnnData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        table = self.model.predict(self._read(cells, UNKNOWN), soft=True)
        proba = table.to_numpy()
        return Prediction(table.columns.to_numpy(dtype=str)[proba.argmax(axis=1)], proba.max(axis=1))


def scanvi(*, seed: int, quick: bool) -> ScANVI:
    """SCVI and scANVI of scvi-tools."""
    return ScANVI(seed=seed, quick=quick)
