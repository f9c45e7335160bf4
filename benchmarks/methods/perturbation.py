"""Simple predictions of what perturbations do, behind ``fit`` and ``predict``.

``ceiling`` is no method: the task scores half of the held-out cells as a prediction of the other half.

Suffixes as in ``cellxpert.metrics.baselines``: T training conditions, Q conditions asked for, G genes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellxpert.data.effects import signal_share
from cellxpert.metrics import baselines, centroids, gene_set_embedding, target_mask
from cellxpert.tasks.reference import unseen_weights

__all__ = ["AnchorMean", "Baseline", "RandomMedoid", "SameCondition", "Training", "embed_targets"]

GeneSets = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Training:
    """What a method is fitted on, and the means that simple methods need of it."""

    adata: anndata.AnnData
    conditions: np.ndarray
    control: str

    @cached_property
    def names(self) -> list[str]:
        """Perturbed conditions, sorted."""
        return sorted(set(self.conditions) - {self.control})

    @cached_property
    def centroids_TG(self) -> np.ndarray:
        """Mean profiles of the perturbed conditions."""
        return centroids(self.adata.layers["log1p"], self.conditions, order=self.names)

    @cached_property
    def control_NG(self) -> sp.csr_matrix:
        """Control cells."""
        return self.adata.layers["log1p"][self.conditions == self.control]

    @cached_property
    def control_G(self) -> np.ndarray:
        """Mean profile of the control cells."""
        return np.asarray(self.control_NG.mean(axis=0)).ravel()

    @property
    def delta_TG(self) -> np.ndarray:
        """Effects of the perturbed conditions."""
        return self.centroids_TG - self.control_G

    @property
    def shrunk_delta_TG(self) -> np.ndarray:
        """Effects less the share of sampling noise in their size, towards none (positive-part James-Stein)."""

        def error(name: str) -> np.ndarray:
            cells = self.adata.layers["log1p"][self.conditions == name]
            spread = np.asarray(cells.power(2).mean(axis=0)) - np.asarray(cells.mean(axis=0)) ** 2
            return spread.ravel() / cells.shape[0]

        control = error(self.control)
        noise = np.array([error(name) for name in self.names]) + control
        return self.delta_TG * signal_share(self.delta_TG, noise, np.maximum(control, 1e-12))[:, None]

    @property
    def genes(self) -> list[str]:
        """Measured genes."""
        return list(self.adata.var_names)


Effects = Callable[[Training, Sequence[str], GeneSets], np.ndarray]
"""``(training, conditions asked for, gene sets) -> effects, Q x G``."""


class Baseline:
    """A rule for effects, added to the mean of the training set's control cells."""

    def __init__(self, effects: Effects, gene_sets: GeneSets) -> None:
        self.effects, self.gene_sets = effects, gene_sets

    def fit(self, adata: anndata.AnnData, conditions: np.ndarray, *, control: str) -> None:
        """See :class:`benchmarks.methods.Predictor`."""
        self.training = Training(adata, np.asarray(conditions), control)

    def predict(self, conditions: Sequence[str]) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`."""
        return self.training.control_G + self.effects(self.training, conditions, self.gene_sets)


class RandomMedoid(Baseline):
    """One of the eight most central training cells of the condition: what copying an anchor earns."""

    def _medoids(self, condition: str) -> np.ndarray:
        import torch

        from cellxpert.steering import medoids

        cells = self.training.adata.layers["log1p"][self.training.conditions == condition].toarray()
        return cells[medoids(torch.from_numpy(cells[:500]), 8).numpy()]

    def predict(self, conditions: Sequence[str]) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`."""
        rng = np.random.default_rng(0)
        return np.array([found[rng.integers(len(found))] for found in map(self._medoids, conditions)])

    def predict_cells(self, condition: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`."""
        return self._medoids(condition)


class SameCondition(Baseline):
    """A rule for conditions that were trained on; predicts their training cells as cells."""

    def predict_cells(self, condition: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`."""
        rows = self.training.conditions == condition
        return self.training.adata.layers["log1p"][rows].toarray()


class AnchorMean(Baseline):
    """The same rule; as cells, the mean itself: what an average is worth as a population."""

    def predict_cells(self, condition: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`."""
        return np.tile(self.predict([condition]), (2, 1))


def embed_targets(conditions: Sequence[str], gene_sets: GeneSets) -> np.ndarray:
    """Embed conditions by the gene sets of their targets, added up."""
    targets = sorted({target for condition in conditions for target in condition.split("+")})
    return target_mask(conditions, targets).astype(float) @ gene_set_embedding(gene_sets, targets)


# --- constants ---


def _control_mean(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    return np.zeros((len(asked), len(training.control_G)))


def _perturbed_mean(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    return baselines.perturbed_mean(training.delta_TG, n_conditions=len(asked))


def _perturbed_mean_cells(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """Every perturbed cell counts once, as in Systema's "non-control mean"."""
    perturbed = training.adata.layers["log1p"][training.conditions != training.control]
    return np.tile(np.asarray(perturbed.mean(axis=0)).ravel() - training.control_G, (len(asked), 1))


def _target_only(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """The target is not expressed and nothing else changes."""
    return np.where(target_mask(asked, training.genes), -training.control_G, 0)


# --- learnt from other perturbations ---


def _gene_embedding(training: Training) -> np.ndarray:
    profiles = np.vstack([training.centroids_TG, training.control_G])
    return baselines.principal_genes(profiles, n_components=min(10, *profiles.shape))


def _with_control(training: Training, embedding_TD: np.ndarray) -> dict[str, np.ndarray]:
    """The control is a training condition: no effect, an embedding of zeros."""
    return {
        "delta_TG": np.vstack([training.delta_TG, 0 * training.control_G]),
        "target_embedding_TD": np.vstack([embedding_TD, np.zeros(embedding_TD.shape[1])]),
    }


def _linear(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """As published: only measured targets have an embedding, and only they are trained on."""
    genes = _gene_embedding(training)
    mine, theirs = target_mask(training.names, training.genes), target_mask(asked, training.genes)
    measured = mine.any(axis=1)
    delta = np.vstack([training.delta_TG[measured], 0 * training.control_G])
    embedding = np.vstack([mine[measured].astype(float) @ genes, np.zeros(genes.shape[1])])
    return baselines.linear(
        delta,
        gene_embedding_GD=genes,
        target_embedding_TD=embedding,
        query_embedding_QD=theirs.astype(float) @ genes,
    )


def _knn(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """On the same embedding of measured targets."""
    genes = _gene_embedding(training)
    mine, theirs = target_mask(training.names, training.genes), target_mask(asked, training.genes)
    embeddings = {"target_embedding_TD": mine.astype(float) @ genes, "query_embedding_QD": theirs.astype(float) @ genes}
    return baselines.knn(training.delta_TG, **embeddings)


def _linear_gene_sets(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    embedding = embed_targets([*training.names, *asked], sets)
    trained = _with_control(training, embedding[: len(training.names)])
    return baselines.linear(
        trained["delta_TG"],
        gene_embedding_GD=_gene_embedding(training),
        target_embedding_TD=trained["target_embedding_TD"],
        query_embedding_QD=embedding[len(training.names) :],
    )


def _knn_gene_sets(training: Training, asked: Sequence[str], sets: GeneSets, *, shrink: bool = False) -> np.ndarray:
    embedding, n = embed_targets([*training.names, *asked], sets), len(training.names)
    embeddings = {"target_embedding_TD": embedding[:n], "query_embedding_QD": embedding[n:]}
    return baselines.knn(training.delta_TG, **embeddings, shrink=shrink)


def _kernel_gene_sets(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """What ours carries over to unseen targets, without the network: effects shrunk by their noise, kernel ridge regression."""
    embedding = pd.DataFrame(embed_targets([*training.names, *asked], sets), index=[*training.names, *asked])
    delta_TG = training.shrunk_delta_TG
    return unseen_weights(embedding, seen=training.names, genes=asked, effect_GV=delta_TG) @ delta_TG


def _same_condition(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    place = [training.names.index(condition) for condition in asked]
    return training.delta_TG[place]


def _same_condition_shrunk(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """Half way to the mean effect of all conditions."""
    return (_same_condition(training, asked, sets) + training.delta_TG.mean(axis=0)) / 2


# --- combinations ---


def _singles(training: Training) -> tuple[list[str], np.ndarray]:
    single = np.array(["+" not in name for name in training.names])
    return [name for name, is_single in zip(training.names, single, strict=True) if is_single], training.delta_TG[
        single
    ]


def _additive(training: Training, asked: Sequence[str], sets: GeneSets, *, mean: bool = False) -> np.ndarray:
    """Parts that were not measured alone add nothing."""
    names, delta = _singles(training)
    return baselines.additive(delta, parts_QT=target_mask(asked, names), mean=mean)


def _linear_members(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """Ridge regression on which targets a condition has: parts known from other pairs only add their share."""
    targets = sorted({target for name in [*training.names, *asked] for target in name.split("+")})
    trained = _with_control(training, target_mask(training.names, targets).astype(float))
    return baselines.linear(
        trained["delta_TG"],
        gene_embedding_GD=_gene_embedding(training),
        target_embedding_TD=trained["target_embedding_TD"],
        query_embedding_QD=target_mask(asked, targets).astype(float),
    )


# --- from control cells alone ---


def _gauss_conditional(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    return baselines.gauss_conditional(training.control_NG, clamped_QG=target_mask(asked, training.genes))


def _control_stratified(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    return baselines.control_stratified(training.control_NG, clamped_QG=target_mask(asked, training.genes))


# --- other cell types: conditions are the types of stimulated cells ---


def _type_means(training: Training, types: Sequence[str]) -> np.ndarray:
    """Mean control profiles of cell types."""
    of_cell = training.adata.obs["cell_type"].to_numpy()[training.conditions == training.control]
    return centroids(training.control_NG, of_cell, order=types)


def _type_control(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """The control cells of the type asked for, unchanged."""
    return _type_means(training, asked) - training.control_G


def _mean_shift(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """Add the mean over types of stimulated minus control."""
    shifts = training.centroids_TG - _type_means(training, training.names)
    return _type_control(training, asked, sets) + shifts.mean(axis=0)


def _nearest_type_shift(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """Add the shift of the type whose control cells correlate best."""
    known = _type_means(training, training.names)
    mine = _type_means(training, asked)
    nearest = np.corrcoef(mine, known)[: len(mine), len(mine) :].argmax(axis=1)
    return mine - training.control_G + (training.centroids_TG - known)[nearest]


def _latent_shift(training: Training, asked: Sequence[str], sets: GeneSets) -> np.ndarray:
    """The vector arithmetic of scGen, with 50 principal components for its autoencoder.

    The shift is the difference of means with every cell type resampled to one size; it is added to each control cell of
    the type asked for in the latent space, decoded, and negative values become 0.
    """
    from sklearn.decomposition import PCA

    cells = training.adata.layers["log1p"].toarray()
    model = PCA(min(50, *cells.shape), svd_solver="randomized", random_state=0)
    latent = model.fit_transform(cells)
    types, is_control = training.adata.obs["cell_type"].to_numpy(), training.conditions == training.control
    means = [
        np.mean([latent[side & (types == name)].mean(axis=0) for name in training.names], axis=0)
        for side in (is_control, ~is_control)
    ]
    profiles = [
        np.maximum(model.inverse_transform(latent[is_control & (types == name)] + means[1] - means[0]), 0).mean(axis=0)
        for name in asked
    ]
    return np.array(profiles) - training.control_G


def _maker(effects: Effects, kind: type[Baseline] = Baseline) -> Callable[..., Baseline]:
    def make(*, seed: int, quick: bool, gene_sets: GeneSets) -> Baseline:
        return kind(effects, gene_sets)

    return make


control_mean = _maker(_control_mean)
perturbed_mean = _maker(_perturbed_mean)
perturbed_mean_cells = _maker(_perturbed_mean_cells)
target_only = _maker(_target_only)
linear = _maker(_linear)
knn = _maker(_knn)
linear_gene_sets = _maker(_linear_gene_sets)
knn_gene_sets = _maker(_knn_gene_sets)
knn_gene_sets_shrunk = _maker(partial(_knn_gene_sets, shrink=True))
kernel_gene_sets = _maker(_kernel_gene_sets)
same_condition = _maker(_same_condition, SameCondition)
anchor_mean = _maker(_same_condition, AnchorMean)
random_medoid = _maker(_same_condition, RandomMedoid)
same_condition_shrunk = _maker(_same_condition_shrunk)
additive = _maker(_additive)
matching_mean = _maker(partial(_additive, mean=True))
linear_members = _maker(_linear_members)
gauss_conditional = _maker(_gauss_conditional)
control_stratified = _maker(_control_stratified)
type_control = _maker(_type_control)
mean_shift = _maker(_mean_shift)
nearest_type_shift = _maker(_nearest_type_shift)
latent_shift = _maker(_latent_shift)
