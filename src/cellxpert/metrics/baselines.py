"""Simple predictions of perturbation effects, which a model has to beat on the same conditions.

Constant ones (:func:`control_mean`, :func:`perturbed_mean`), learnt from other perturbations (:func:`additive`, :func:`linear`,
:func:`knn`) and such that only look at control cells (:func:`gauss_conditional`, :func:`control_stratified`): the natural null of
a model that sets a gene and asks for the rest. Effects ("delta") are differences to the mean of control cells.

Suffixes: T training conditions; Q conditions asked for; G genes; D dimensions of an embedding; N control cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from cellxpert.errors import MetricError
from cellxpert.metrics import pseudobulk
from cellxpert.metrics.checks import finite_matrix, unit_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "additive",
    "control_mean",
    "control_stratified",
    "gauss_conditional",
    "knn",
    "linear",
    "perturbed_mean",
    "principal_genes",
]


def control_mean(control_NG: Any, *, n_conditions: int) -> np.ndarray:
    """Predict that nothing changes.

    Parameters
    ----------
    control_NG
        Expression of the control cells, dense or sparse.
    n_conditions
        Number of conditions asked for.

    Returns
    -------
    numpy.ndarray
        Profiles, Q x G, all alike.

    Raises
    ------
    MetricError
        If arrays do not fit together, are empty or not finite; so for every function of this module.
    """
    return np.tile(_mean(finite_matrix("control_NG", control_NG)), (n_conditions, 1))


def perturbed_mean(centroids_TG: ArrayLike, *, n_conditions: int) -> np.ndarray:
    """Predict the mean of the training conditions, each condition counting once.

    Parameters
    ----------
    centroids_TG
        Centroids of the perturbed training conditions; with their effects in its place, the result is an effect.
    n_conditions
        Number of conditions asked for.

    Returns
    -------
    numpy.ndarray
        Profiles, Q x G, all alike.
    """
    return np.tile(pseudobulk.perturbed_mean(centroids_TG), (n_conditions, 1))


def additive(delta_TG: ArrayLike, *, parts_QT: ArrayLike, mean: bool = False) -> np.ndarray:
    """Add the effects of single perturbations to that of a combination.

    Parameters
    ----------
    delta_TG
        Effects of the single perturbations.
    parts_QT
        Which singles each combination is made of, booleans: ``target_mask(combinations, singles)``. A part that was not
        measured adds nothing.
    mean
        Average the known parts in place of adding them ("matching mean" of Systema).

    Returns
    -------
    numpy.ndarray
        Effects, Q x G; zero without any known part.
    """
    delta, parts = finite_matrix("delta_TG", delta_TG), np.asarray(parts_QT)
    if parts.dtype != bool or parts.ndim != 2 or parts.shape[1] != len(delta):
        found = f"{parts.dtype}, shape {parts.shape}, for {len(delta)} singles"
        raise MetricError("parts_QT", found=found, fix="give booleans, combinations x singles")
    total = parts.astype(np.float64) @ delta
    return total / np.maximum(parts.sum(axis=1, keepdims=True), 1) if mean else total


def principal_genes(centroids_TG: ArrayLike, *, n_components: int = 10) -> np.ndarray:
    """Embed genes by the principal components of their profiles over training conditions.

    The gene embedding of the linear model of Ahlmann-Eltze et al. 2025: genes are the observations, conditions (control included)
    the variables, centred and not scaled.

    Parameters
    ----------
    centroids_TG
        Centroids of the training conditions, control included.
    n_components
        Dimensions; at most as many as there are conditions and genes.

    Returns
    -------
    numpy.ndarray
        Scores, G x D; of each component, the largest in absolute value is positive.
    """
    profiles = finite_matrix("centroids_TG", centroids_TG).T
    if not 1 <= n_components <= min(profiles.shape):
        found = f"{n_components} for {profiles.shape[0]} genes and {profiles.shape[1]} conditions"
        raise MetricError("metrics.principal_genes(n_components=)", found=found, fix="ask for fewer")
    left, values, _ = np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)
    scores = left[:, :n_components] * values[:n_components]
    return scores * np.where(scores[np.abs(scores).argmax(axis=0), np.arange(n_components)] < 0, -1, 1)


def linear(
    delta_TG: ArrayLike,
    *,
    gene_embedding_GD: ArrayLike,
    target_embedding_TD: ArrayLike,
    query_embedding_QD: ArrayLike,
    ridge: float = 0.1,
) -> np.ndarray:
    """Bilinear ridge regression of effects on embeddings of genes and of targets (Ahlmann-Eltze et al. 2025).

    With Y the effects (genes x conditions), b their mean, G and P the embeddings of genes and of targets::

        K = (G'G + ridge I)^-1 G' (Y - b) P (P'P + ridge I)^-1        effect of q = G K p_q + b

    As published: G from :func:`principal_genes` of the training conditions with control; P the rows of G of the targets;
    the control counts as a training condition with zero effect and zero embedding. The two embeddings need not be alike:
    :func:`~cellxpert.metrics.gene_set_embedding` also embeds targets that are not measured.

    Parameters
    ----------
    delta_TG
        Effects of the training conditions.
    gene_embedding_GD
        Embedding of the genes.
    target_embedding_TD, query_embedding_QD
        Embedding of the training conditions and of those asked for, of the same dimensions (which may differ from
        those of the genes). Conditions of zeros get the mean effect.
    ridge
        Penalty, the same on both sides; embeddings are not scaled.

    Returns
    -------
    numpy.ndarray
        Effects, Q x G.
    """
    delta, genes = finite_matrix("delta_TG", delta_TG), finite_matrix("gene_embedding_GD", gene_embedding_GD)
    targets, query = _embeddings(delta, target_embedding_TD, query_embedding_QD)
    if len(genes) != delta.shape[1]:
        found = f"{len(genes)} genes, effects have {delta.shape[1]}"
        raise MetricError("gene_embedding_GD", found=found, fix="embed every gene")
    if not ridge > 0:
        raise MetricError("metrics.linear(ridge=)", found=repr(ridge), fix="give a positive number")
    mean = delta.mean(axis=0)
    by_gene = np.linalg.solve(genes.T @ genes + ridge * np.eye(genes.shape[1]), genes.T @ (delta - mean).T @ targets)
    core = np.linalg.solve(targets.T @ targets + ridge * np.eye(targets.shape[1]), by_gene.T).T
    return query @ core.T @ genes.T + mean


def knn(
    delta_TG: ArrayLike,
    *,
    target_embedding_TD: ArrayLike,
    query_embedding_QD: ArrayLike,
    n_neighbors: int = 5,
    shrink: bool = False,
) -> np.ndarray:
    """Average the effects of the training conditions with the most similar targets, weighted by the similarity.

    Cosine similarity; training conditions of similarity 0 or less are no neighbours, and a condition without neighbours
    (an embedding of zeros, for instance) gets the mean effect. Ties go to the first condition.

    Parameters
    ----------
    delta_TG
        Effects of the training conditions.
    target_embedding_TD, query_embedding_QD
        Embedding of the training conditions and of those asked for.
    n_neighbors
        How many conditions are averaged, at most.
    shrink
        Multiply the average with the sum of the similarities where that is below 1: the less is known, the smaller the
        effect, and none without neighbours.

    Returns
    -------
    numpy.ndarray
        Effects, Q x G.
    """
    delta = finite_matrix("delta_TG", delta_TG)
    targets, query = _embeddings(delta, target_embedding_TD, query_embedding_QD)
    if n_neighbors < 1:
        raise MetricError("metrics.knn(n_neighbors=)", found=repr(n_neighbors), fix="give 1 or more")
    similarity = np.maximum(unit_rows(query) @ unit_rows(targets).T, 0)
    # similarities that differ by rounding only are ties
    nearest = np.argsort(-similarity.round(12), axis=1, kind="stable")[:, :n_neighbors]
    weight = np.zeros_like(similarity)
    np.put_along_axis(weight, nearest, np.take_along_axis(similarity, nearest, axis=1), axis=1)
    total = weight.sum(axis=1, keepdims=True)
    if shrink:
        return weight @ delta / np.maximum(total, 1)
    return np.where(total > 0, weight @ delta / np.where(total > 0, total, 1), delta.mean(axis=0))


def gauss_conditional(
    control_NG: Any, *, clamped_QG: ArrayLike, value: ArrayLike = 0.0, ridge: float = 0.0
) -> np.ndarray:
    """Change of the mean that a Gaussian fitted to control cells expects when genes are observed at a value.

    E[x | x_S = v] - E[x] with the covariance of the control cells. It conditions and does not intervene: regulators of the
    target move as its targets do. No perturbation data are used.

    Parameters
    ----------
    control_NG
        Expression of the control cells, dense or sparse.
    clamped_QG
        Target genes of each condition, booleans: ``target_mask(conditions, genes)``. Targets that are not measured cannot be set.
    value
        What targets are set to, a number or one per gene; 0 is a knockout.
    ridge
        Added to the variance of the targets.

    Returns
    -------
    numpy.ndarray
        Effects, Q x G; zero where no target is measured or none varies.
    """
    control, clamped = _clamped(control_NG, clamped_QG)
    mean = _mean(control)
    change = np.broadcast_to(np.asarray(value, dtype=np.float64), mean.shape) - mean
    effects = np.zeros(clamped.shape)
    for row, mask in enumerate(clamped):
        if not mask.any():
            continue
        centred = _columns(control, mask) - mean[mask]
        with_all = (centred.T @ control) / control.shape[0]  # the mean of the other side drops out
        variance = with_all[:, mask] + ridge * np.eye(int(mask.sum()))
        effects[row] = change[mask] @ np.linalg.pinv(variance, hermitian=True) @ with_all
    return effects


def control_stratified(
    control_NG: Any, *, clamped_QG: ArrayLike, quantile: float = 0.1, highest: bool = False
) -> np.ndarray:
    """Mean of the control cells that happen to express the target least, minus that of all control cells.

    Parameters
    ----------
    control_NG, clamped_QG
        As for :func:`gauss_conditional`.
    quantile
        Share of the cells that are taken; all cells as low as the last of them count too, so that for a gene that most cells
        lack these are all cells that lack it. Of several targets, the sum of their standardised expression counts.
    highest
        Take the cells that express the target most: activation in place of a knockout.

    Returns
    -------
    numpy.ndarray
        Effects, Q x G; zero where no target is measured or none varies.
    """
    control, clamped = _clamped(control_NG, clamped_QG)
    if not 0 < quantile <= 1:
        raise MetricError(
            "metrics.control_stratified(quantile=)", found=repr(quantile), fix="give a share above 0, up to 1"
        )
    mean = _mean(control)
    effects = np.zeros(clamped.shape)
    for row, mask in enumerate(clamped):
        target = _columns(control, mask)
        spread = target.std(axis=0)
        level = (target / np.where(spread > 0, spread, np.inf)).sum(axis=1) * (-1 if highest else 1)
        # np.quantile interpolates; the value of a cell makes ties exact
        chosen = level <= np.sort(level)[int(np.ceil(quantile * len(level))) - 1]
        effects[row] = _mean(control[chosen]) - mean
    return effects


def _mean(cells: Any) -> np.ndarray:
    return np.asarray(cells.mean(axis=0)).ravel()


def _columns(cells: Any, mask: np.ndarray) -> np.ndarray:
    columns = cells[:, np.flatnonzero(mask)]
    return columns.toarray() if sp.issparse(columns) else columns


def _clamped(control: Any, clamped: ArrayLike) -> tuple[Any, np.ndarray]:
    control, clamped = finite_matrix("control_NG", control), np.asarray(clamped)
    if clamped.dtype != bool or clamped.ndim != 2 or clamped.shape[1] != control.shape[1]:
        found = f"{clamped.dtype}, shape {clamped.shape}, for {control.shape[1]} genes"
        raise MetricError("clamped_QG", found=found, fix="give booleans, conditions x genes")
    return control, clamped


def _embeddings(delta: np.ndarray, targets: ArrayLike, query: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    targets, query = finite_matrix("target_embedding_TD", targets), finite_matrix("query_embedding_QD", query)
    if len(targets) != len(delta) or targets.shape[1] != query.shape[1]:
        found = f"shapes {targets.shape} and {query.shape} for {len(delta)} training conditions"
        raise MetricError(
            "target_embedding_TD, query_embedding_QD", found=found, fix="embed every condition in the same dimensions"
        )
    return targets, query
