"""Baselines of the task ``integration`` that need no more than scikit-learn and scanpy: principal components, correlations, controls.

What they read of a modality is its *block*, features in columns, centred:

* RNA: log1p of counts per 10,000, the 2,000 genes of highest dispersion (scanpy's default) where there are more, unit variance, at most 10.
* protein: centred log-ratio of each cell, log1p(x / g), g the geometric mean of 1 + x over the cell's proteins, less 1.
* ATAC: TF-IDF as Signac's default, log1p(10,000 * share of the cell's counts * cells / counts of the peak), singular vectors 2 to 31, each at unit
  variance: the first follows depth.

A cell that lacks a modality stands at the mean of its block, which is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import anndata
import mudata
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.methods.baselines import log_normalised

__all__ = [
    "N_COMPONENTS",
    "Block",
    "block",
    "cca",
    "clr",
    "impute_knn",
    "impute_mean",
    "impute_ridge",
    "labels",
    "magnitudes",
    "pca_atac",
    "pca_concat",
    "pca_concat_logistic",
    "pca_protein",
    "pca_rna",
    "places_of",
    "principal",
    "selected_genes",
    "shuffled",
    "spread",
    "unit_blocks",
]

N_COMPONENTS = 30
N_GENES = 2000
N_SOURCE = 50
"""Principal components of the other modality that imputation is learned from."""


def clr(counts: sp.spmatrix | np.ndarray) -> np.ndarray:
    """Centred log-ratio that keeps zeros, as Seurat's within cells: log1p(x / g), log g the mean of log1p(x) over the cell."""
    values = counts.toarray() if sp.issparse(counts) else np.asarray(counts)
    values = values.astype(np.float64)
    return np.log1p(values / np.exp(np.log1p(values).mean(axis=1, keepdims=True)))


def magnitudes(adata: anndata.AnnData, modality: str, features: Sequence[str]) -> sp.csr_matrix | np.ndarray:
    """Return the values in which imputed ones are asked for: log1p of RNA per 10,000, CLR of protein, counts of peaks."""
    places = adata.var_names.get_indexer(features)
    if modality == "rna":
        return log_normalised(adata)[:, places]
    return clr(adata.X)[:, places] if modality == "prot" else sp.csr_matrix(adata.X, dtype=np.float64)[:, places]


def selected_genes(adata: anndata.AnnData) -> np.ndarray:
    """Return which genes are read: those of highest dispersion where more than 2,000 are expressed."""
    logged = anndata.AnnData(sp.csr_matrix(log_normalised(adata)), var=adata.var[[]])  # scanpy takes no sparse arrays
    kept = np.asarray(logged.X.sum(axis=0)).ravel() > 0
    if kept.sum() > N_GENES:
        logged = logged[:, kept].copy()
        table = sc.pp.highly_variable_genes(logged, n_top_genes=N_GENES, inplace=False)
        kept[np.flatnonzero(kept)[~table["highly_variable"].to_numpy()]] = False
    return kept


class Block:
    """What baselines read of a modality, learned from some cells and read of any: cells x columns."""

    def __init__(self, modality: str, n_components: int = N_COMPONENTS) -> None:
        self.modality, self.n_components = modality, n_components

    def fit(self, adata: anndata.AnnData) -> np.ndarray:
        """Learn features, weights, means and deviations; return the block of the cells, centred."""
        self.kept = selected_genes(adata) if self.modality == "rna" else np.asarray(adata.X.sum(axis=0)).ravel() > 0
        if self.modality == "atac":
            self.peaks = adata.n_obs / np.asarray(adata.X.sum(axis=0)).ravel()[self.kept]
            weighted = self._tf_idf(adata)
            n = min(self.n_components + 1, min(weighted.shape) - 1)
            self.svd = TruncatedSVD(n, algorithm="arpack", random_state=0).fit(weighted)
        values = self._values(adata)
        self.mean, self.deviation = values.mean(axis=0), values.std(axis=0)
        return self.read(adata, values)

    def read(self, adata: anndata.AnnData, values: np.ndarray | None = None) -> np.ndarray:
        """Return the block of any cells, less the means of those it was learned from."""
        values = (self._values(adata) if values is None else values) - self.mean
        if self.modality == "prot":
            return values
        values = values / self.deviation
        return np.minimum(values, 10.0) if self.modality == "rna" else values

    def _values(self, adata: anndata.AnnData) -> np.ndarray:
        if self.modality == "rna":
            return log_normalised(adata)[:, self.kept].toarray()
        return clr(adata.X) if self.modality == "prot" else self.svd.transform(self._tf_idf(adata))[:, 1:]

    def _tf_idf(self, adata: anndata.AnnData) -> sp.csr_matrix:
        counts = sp.csr_matrix(adata.X, dtype=np.float64)
        totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
        scaled = sp.diags_array(1 / totals) @ counts[:, self.kept] @ sp.diags_array(self.peaks)
        return (1e4 * scaled).log1p().tocsr()


def block(adata: anndata.AnnData, modality: str, *, n_components: int = N_COMPONENTS) -> np.ndarray:
    """Return the block of the cells that it is learned from."""
    return Block(modality, n_components).fit(adata)


def principal(values: np.ndarray, n: int = N_COMPONENTS) -> np.ndarray:
    """Return at most ``n`` principal components."""
    return PCA(min(n, min(values.shape) - 1), svd_solver="arpack", random_state=0).fit_transform(values)


def spread(values: np.ndarray, places: np.ndarray, n_cells: int) -> np.ndarray:
    """Return rows at their places among all cells; the others are zero, which is the mean."""
    whole = np.zeros((n_cells, values.shape[1]))
    whole[places] = values
    return whole


def places_of(mdata: mudata.MuData, modality: str) -> np.ndarray:
    """Return the row in ``mdata`` of each cell of a modality."""
    return mdata.obs_names.get_indexer(mdata[modality].obs_names)


def unit_blocks(mdata: mudata.MuData) -> np.ndarray:
    """Return all blocks side by side, each with a total variance of 1 over the cells that have it."""
    parts = []
    for name, adata in mdata.mod.items():
        values = block(adata, name)
        parts.append(spread(values / np.sqrt(values.var(axis=0).sum()), places_of(mdata, name), mdata.n_obs))
    return np.hstack(parts)


class OneModality:
    """Principal components of one modality; of ATAC, the block itself is made of components."""

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        values = block(mdata[self.modality], self.modality)
        values = values if self.modality == "atac" else principal(values)
        return spread(values, places_of(mdata, self.modality), mdata.n_obs)


class Concatenated:
    """Principal components of all blocks side by side."""

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        return principal(unit_blocks(mdata))


class Classified(Concatenated):
    """Logistic regression of labels on the same components: what neighbours in a space are to be compared with."""

    def tell(self, names: np.ndarray) -> None:
        """Take the labels ("": none)."""
        self.names = names

    def integrate(self, mdata: mudata.MuData) -> None:
        """Keep the components: there is no space of its own."""
        self.points = super().integrate(mdata)

    def label(self, batch: np.ndarray) -> np.ndarray:
        """Label the cells of each batch by what was learned from the labelled cells of the others."""
        predicted = np.full(len(batch), "", dtype=object)
        for left_out in np.unique(batch):
            asked, known = batch == left_out, (batch != left_out) & (self.names != "")
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            predicted[asked] = model.fit(self.points[known], self.names[known]).predict(self.points[asked])
        return predicted


class Correlated:
    """Canonical correlations, learned from the cells that have both modalities.

    50 principal components of each, over its own cells, whitened over the paired ones; singular vectors of their correlation. A cell
    lies at the mean of what its modalities say.
    """

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        self.blocks, self.axes, self.turns, self.means, paired = {}, {}, {}, {}, []
        both = mdata.obs_names[(np.stack(list(mdata.obsmap.values())) > 0).all(axis=0)]
        for name, adata in mdata.mod.items():
            self.blocks[name] = Block(name, N_SOURCE)
            values = self.blocks[name].fit(adata)
            n = min(N_SOURCE, min(values.shape) - 1)
            self.axes[name] = PCA(n, svd_solver="arpack", random_state=0).fit(values)
            shown = self.axes[name].transform(values[adata.obs_names.get_indexer(both)])
            self.means[name], self.turns[name] = shown.mean(axis=0), self._whitener(shown)
            paired.append((shown - self.means[name]) @ self.turns[name])
        left, strength, right = np.linalg.svd(paired[0].T @ paired[1] / len(both), full_matrices=False)
        n = min(N_COMPONENTS, len(strength))
        for name, turn in zip(mdata.mod, (left, right.T), strict=True):
            self.turns[name] = self.turns[name] @ turn[:, :n] * strength[:n]
        stacked = np.full((len(mdata.mod), mdata.n_obs, n), np.nan)
        for values, name in zip(stacked, mdata.mod, strict=True):
            values[places_of(mdata, name)] = self.embed_modality(mdata, name)
        return np.nanmean(stacked, axis=0)

    def embed_modality(self, mdata: mudata.MuData, modality: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        shown = self.axes[modality].transform(self.blocks[modality].read(mdata[modality]))
        return (shown - self.means[modality]) @ self.turns[modality]

    @staticmethod
    def _whitener(values: np.ndarray) -> np.ndarray:
        """Turn to unit covariance, with a tenth of the mean variance added: the small components are noise."""
        variance, axes = np.linalg.eigh(np.cov(values.T, bias=True))
        return axes / np.sqrt(variance + 0.1 * variance.mean())


class Shuffled(OneModality):
    """Principal components of the RNA, each given to another cell."""

    def __init__(self, seed: int) -> None:
        super().__init__("rna")
        self.seed = seed

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        return np.random.default_rng(self.seed).permutation(super().integrate(mdata))


class Labels:
    """The truth, as far as it is known: a place per label and a little noise, so that neighbours within a label are random."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def tell(self, names: np.ndarray) -> None:
        """Take the labels, which no other method gets."""
        self.names = names

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        codes = np.unique(self.names, return_inverse=True)[1]
        noise = np.random.default_rng(self.seed).normal(scale=0.1, size=(mdata.n_obs, codes.max() + 1))
        return np.eye(codes.max() + 1)[codes] + noise


class Imputer:
    """Learns a modality's values from 50 components of the other one, over the cells that have both."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def integrate(self, mdata: mudata.MuData) -> None:
        """Keep the cells: there is no embedding."""
        self.mdata = mdata

    def impute(self, modality: str, features: Sequence[str]) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        values = magnitudes(self.mdata[modality], modality, features)
        values = values.toarray() if sp.issparse(values) else values
        known = places_of(self.mdata, modality)
        if self.kind == "mean":
            return np.tile(values.mean(axis=0), (self.mdata.n_obs, 1))
        (other,) = set(self.mdata.mod) - {modality}
        sources = principal(block(self.mdata[other], other, n_components=N_SOURCE), N_SOURCE)
        if self.kind == "ridge":
            sources = sources / sources.std(axis=0)
            regressor = RidgeCV(alphas=np.logspace(0, 4, 9))
        else:
            regressor = KNeighborsRegressor(15)
        has = places_of(self.mdata, other)
        sources = spread(sources, has, self.mdata.n_obs)
        both = np.intersect1d(known, has)
        at = np.full(self.mdata.n_obs, -1)
        at[known] = np.arange(len(known))
        return regressor.fit(sources[both], values[at[both]]).predict(sources)


def pca_rna(*, seed: int, quick: bool) -> OneModality:
    """30 principal components of the RNA."""
    return OneModality("rna")


def pca_protein(*, seed: int, quick: bool) -> OneModality:
    """30 principal components of the proteins, fewer where there are fewer proteins."""
    return OneModality("prot")


def pca_atac(*, seed: int, quick: bool) -> OneModality:
    """Singular vectors 2 to 31 of the peaks."""
    return OneModality("atac")


def pca_concat(*, seed: int, quick: bool) -> Concatenated:
    """30 principal components of all modalities, each with a total variance of 1."""
    return Concatenated()


def pca_concat_logistic(*, seed: int, quick: bool) -> Classified:
    """Logistic regression on 30 principal components of all modalities."""
    return Classified()


def cca(*, seed: int, quick: bool) -> Correlated:
    """Canonical correlations."""
    return Correlated()


def shuffled(*, seed: int, quick: bool) -> Shuffled:
    """Nothing is right."""
    return Shuffled(seed)


def labels(*, seed: int, quick: bool) -> Labels:
    """All is right."""
    return Labels(seed)


def impute_mean(*, seed: int, quick: bool) -> Imputer:
    """The mean of the cells that have the modality."""
    return Imputer("mean")


def impute_ridge(*, seed: int, quick: bool) -> Imputer:
    """Ridge regression on 50 standardised components, its penalty by leave-one-out."""
    return Imputer("ridge")


def impute_knn(*, seed: int, quick: bool) -> Imputer:
    """Mean of the 15 nearest cells on 50 components."""
    return Imputer("knn")
