"""How right predicted effects of perturbations are.

Most scores compare centroids: the mean profile of the cells of each condition, true and predicted, usually of log1p of normalised
counts. They return one value per condition. Three things make such scores lie, and have an argument here:

* A model that sets the target gene itself earns marks for it: leave target genes out (``exclude``, :func:`target_mask`).
* An effect is a difference to a reference. If truth and prediction subtract the same noisy control mean, its noise correlates
  with itself: keep half of the control cells from the model, and take the truth's reference from them (two references).
* Ranks within a panel depend on the panel: compare with constant predictions on the same conditions, never across panels.

Suffixes: P conditions; G genes; N, M cells; Q further conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from cellxpert.errors import MetricError
from cellxpert.metrics.checks import finite_matrix, kept_genes, same_shape, unit_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

__all__ = [
    "centroid_accuracy",
    "de_overlap",
    "discrimination_chance",
    "discrimination_score",
    "energy_distance",
    "mae",
    "mse",
    "pearson_delta",
    "rmse",
    "systematic_variation",
]


def pearson_delta(
    prediction_PG: ArrayLike,
    truth_PG: ArrayLike,
    *,
    prediction_reference: ArrayLike,
    truth_reference: ArrayLike,
    exclude: ArrayLike | None = None,
    undefined: float = 0.0,
) -> np.ndarray:
    """Pearson correlation over genes of the predicted and the true difference to a reference.

    Parameters
    ----------
    prediction_PG, truth_PG
        Predicted and true centroids, conditions x genes.
    prediction_reference, truth_reference
        What is subtracted from either, (G,) or (P, G). For effects: mean of the control cells that the model had, and of control
        cells that it had not. For what is specific of a condition (Systema): :func:`perturbed_mean` of the training conditions,
        twice. Predicting a reference itself is undefined, so print both scores.
    exclude
        Genes left out, booleans, (G,) or (P, G). For the 20 genes that change most: ``~top_genes(...)``.
    undefined
        What a condition counts in which one of the differences is the same for all genes (within rounding), such as
        that of a model that predicts the reference. 0 by default; NaN in cell-eval.

    Returns
    -------
    numpy.ndarray
        One correlation per condition.

    Raises
    ------
    MetricError
        If arrays differ in shape, are empty or not finite, or too few genes are left; so for every function of this module.
    """
    prediction, truth = same_shape(prediction_PG, truth_PG)
    kept = kept_genes(exclude, truth.shape, at_least=2)
    sides = []
    for name, given, side, reference in (
        ("prediction_reference", prediction_PG, prediction, prediction_reference),
        ("truth_reference", truth_PG, truth, truth_reference),
    ):
        subtracted = _reference(name, reference, truth.shape)
        difference = np.where(kept, side - subtracted, 0)
        difference = np.where(kept, difference - difference.sum(axis=1, keepdims=True) / kept.sum(axis=1)[:, None], 0)
        # what is left of a difference to itself is rounding, which must not be correlated with anything
        scale = np.maximum(np.abs(side).max(axis=1), np.abs(subtracted).max())
        rounding = 16 * max(_resolution(given), _resolution(reference)) * scale
        sides.append((difference, np.abs(difference).max(axis=1) > rounding))
    (a, varies_a), (b, varies_b) = sides
    defined = varies_a & varies_b
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    correlation = (a * b).sum(axis=1) / np.where(defined, norms, 1)
    return np.where(defined, np.clip(correlation, -1, 1), undefined)


def mse(
    prediction_PG: ArrayLike,
    truth_PG: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
) -> np.ndarray:
    """Mean squared error over genes.

    Parameters
    ----------
    prediction_PG, truth_PG
        Predicted and true centroids, conditions x genes.
    weights
        Weight of each gene, (G,) or (P, G), not negative; made to sum to 1 over the genes that count. Default: equal.
    exclude
        Genes left out, booleans, (G,) or (P, G).

    Returns
    -------
    numpy.ndarray
        One value per condition.
    """
    return _mean_error(prediction_PG, truth_PG, power=2, weights=weights, exclude=exclude)


def rmse(prediction_PG: ArrayLike, truth_PG: ArrayLike, *, exclude: ArrayLike | None = None) -> np.ndarray:
    """Root of the mean squared error over genes.

    Parameters
    ----------
    prediction_PG, truth_PG, exclude
        As for :func:`mse`.
    """
    return np.sqrt(_mean_error(prediction_PG, truth_PG, power=2, weights=None, exclude=exclude))


def mae(prediction_PG: ArrayLike, truth_PG: ArrayLike, *, exclude: ArrayLike | None = None) -> np.ndarray:
    """Mean absolute error over genes.

    Parameters
    ----------
    prediction_PG, truth_PG, exclude
        As for :func:`mse`.
    """
    return _mean_error(prediction_PG, truth_PG, power=1, weights=None, exclude=exclude)


def centroid_accuracy(
    prediction_PG: ArrayLike,
    truth_PG: ArrayLike,
    *,
    others_QG: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
) -> np.ndarray:
    """Share of the other conditions whose true centroid is farther from the prediction than the right one (Systema).

    Euclidean distances; another centroid at the same distance counts half (not at all in Systema). Constant predictions average
    0.5 over a panel, but not over part of it.

    Parameters
    ----------
    prediction_PG, truth_PG
        Predicted and true centroids, conditions x genes; all test conditions.
    others_QG
        True centroids of the other conditions (training, validation), which compete too.
    exclude
        Genes left out, booleans, (G,) or (P, G).

    Returns
    -------
    numpy.ndarray
        One value per condition, in [0, 1].
    """
    prediction, truth = same_shape(prediction_PG, truth_PG)
    rivals = truth if others_QG is None else np.vstack([truth, _others(others_QG, truth.shape[1])])
    if len(rivals) < 2:
        raise MetricError("metrics.centroid_accuracy", found="one condition", fix="give two conditions or more")
    distances = _distances(prediction, rivals, kept_genes(exclude, truth.shape), metric="euclidean")
    return 1 - _rank_of_own(distances) / (len(rivals) - 1)


def discrimination_score(
    predicted_delta_PG: ArrayLike,
    true_delta_PG: ArrayLike,
    *,
    distance: Literal["l1", "l2", "cosine"] = "cosine",
    exclude: ArrayLike | None = None,
) -> np.ndarray:
    """Perturbation discrimination score: 1 - rank / n, the rank of the right one among all true effects near the prediction.

    Signed effects, as in cell-eval since 0.8. An effect at the same distance counts half a rank (cell-eval sorts it anywhere), so
    that a prediction without any effect scores chance in every distance (an effect a million times smaller than the largest true one
    counts as none). See :func:`discrimination_chance`.

    Parameters
    ----------
    predicted_delta_PG, true_delta_PG
        Predicted and true effects (centroids minus control), conditions x genes.
    distance
        ``"cosine"`` compares directions only; ``"l1"`` (Virtual Cell Challenge) and ``"l2"`` also sizes.
    exclude
        Genes left out, booleans. ``target_mask(...).any(axis=0)``: the targets of all conditions, as a headline should.
        ``target_mask(...)``: each condition's own, as in cell-eval, where constant predictions then beat chance.

    Returns
    -------
    numpy.ndarray
        One value per condition, in [1 / n, 1].
    """
    metrics = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine"}
    if distance not in metrics:
        found = repr(distance)
        raise MetricError("metrics.discrimination_score(distance=)", found=found, fix=f"give one of {list(metrics)}")
    predicted, true = same_shape(predicted_delta_PG, true_delta_PG)
    kept = kept_genes(exclude, true.shape)
    # what is left of a profile minus itself is rounding, which has a direction too
    size = np.abs(predicted * kept).max(axis=1, keepdims=True)
    predicted = np.where(size > 1e-6 * np.abs(true * kept).max(), predicted, 0)
    distances = _distances(predicted, true, kept, metric=metrics[distance])
    return 1 - _rank_of_own(distances) / len(true)


def discrimination_chance(n_conditions: int) -> float:
    """Mean :func:`discrimination_score` of constant and of random predictions, (n + 1) / 2n: above 0.5 for few conditions.

    Parameters
    ----------
    n_conditions
        Number of conditions in the panel.
    """
    if n_conditions < 1:
        raise MetricError("n_conditions", found=repr(n_conditions), fix="give 1 or more")
    return (n_conditions + 1) / (2 * n_conditions)


def systematic_variation(
    centroids_PG: ArrayLike,
    *,
    reference: ArrayLike,
    shift_reference: ArrayLike,
    exclude: ArrayLike | None = None,
) -> np.ndarray:
    """Cosine of each condition's difference to control with the mean difference: what all perturbations share (Systema).

    Parameters
    ----------
    centroids_PG
        True centroids, conditions x genes.
    reference, shift_reference
        Control mean subtracted from each condition, and that subtracted from the mean of all conditions, (G,). Take them from two
        halves of the control cells; with the same cells the score is high for few of them, whatever the perturbations do.
    exclude
        Genes left out, booleans, (G,) or (P, G).

    Returns
    -------
    numpy.ndarray
        One cosine per condition; 0 where there is no difference at all.
    """
    centroids = finite_matrix("centroids_PG", centroids_PG)
    kept = kept_genes(exclude, centroids.shape)
    shift = centroids.mean(axis=0) - _reference("shift_reference", shift_reference, centroids.shape[1:])
    shift_PG = np.where(kept, shift, 0)
    effect_PG = np.where(kept, centroids - _reference("reference", reference, centroids.shape[1:]), 0)
    norms = np.linalg.norm(effect_PG, axis=1) * np.linalg.norm(shift_PG, axis=1)
    return np.divide((effect_PG * shift_PG).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)


def de_overlap(prediction: Mapping[str, Any], truth: Mapping[str, Any], *, max_fdr: float = 0.05) -> np.ndarray:
    """Share of the differentially expressed genes that a prediction has among its own first as many (overlap at N, DES).

    Significant genes are sorted by their absolute log fold change (of equal ones the first comes first), and N is the number
    of those of the truth; cell-eval's ``overlap_at_N``. 0 where truth or prediction has none.

    Parameters
    ----------
    prediction, truth
        ``"fdr"`` and ``"lfc"`` of every gene: arrays (G,) or (P, G) with the same genes in the same order, or tables with these
        columns whose index (the genes) must agree. A missing ``fdr`` is not significant.
    max_fdr
        Genes with a smaller false discovery rate are significant.

    Returns
    -------
    numpy.ndarray
        One value per condition.
    """
    indices = [list(table.index) for table in (prediction, truth) if hasattr(table, "index")]
    if len(indices) == 2 and indices[0] != indices[1]:
        raise MetricError("prediction, truth", found="other genes or another order", fix="reindex one to the other")
    tables = []
    for name, table in (("prediction", prediction), ("truth", truth)):
        fdr, lfc = (np.atleast_2d(np.asarray(table[column], dtype=np.float64)) for column in ("fdr", "lfc"))
        if fdr.shape != lfc.shape or fdr.ndim != 2 or np.isnan(lfc[fdr < max_fdr]).any():
            found = f"fdr {fdr.shape}, lfc {lfc.shape}" if fdr.shape != lfc.shape else "a significant gene without lfc"
            raise MetricError(name, found=found, fix="give both for every gene")
        tables.append((fdr, lfc))
    if tables[0][0].shape != tables[1][0].shape:
        found = f"shapes {tables[0][0].shape} and {tables[1][0].shape}"
        raise MetricError("prediction, truth", found=found, fix="give the same conditions and genes, in the same order")
    scores = []
    for row in range(len(tables[0][0])):
        mine, true = (_significant(fdr[row], lfc[row], max_fdr) for fdr, lfc in tables)
        scores.append(len(np.intersect1d(mine[: len(true)], true)) / max(len(true), 1))
    return np.array(scores)


def energy_distance(cells_NG: Any, others_MG: Any, *, unbiased: bool = True) -> float:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| between two sets of cells, Euclidean distances.

    Parameters
    ----------
    cells_NG, others_MG
        Cells x genes (or components), dense or sparse, such as predicted and true cells of a condition.
    unbiased
        True: pairs of a cell with itself do not count (U-statistic); the expectation is 0 for equal distributions however few
        cells there are, and estimates can fall below 0. False: they count (V-statistic, as in pertpy 1.0 and cell-eval); never
        negative, and larger the fewer cells.

    Returns
    -------
    float
        The distance, not its square root, in the units of the cells.
    """
    sides = []
    for name, given in (("cells_NG", cells_NG), ("others_MG", others_MG)):
        cells = finite_matrix(name, given)
        sides.append(cells.toarray() if sp.issparse(cells) else cells)
        if unbiased and len(sides[-1]) < 2:
            raise MetricError(name, found="one cell", fix="give two cells or more, or unbiased=False")
    x, y = sides
    if x.shape[1] != y.shape[1]:
        found = f"shapes {x.shape} and {y.shape}"
        raise MetricError("cells_NG, others_MG", found=found, fix="give the same genes")
    less = int(unbiased)
    within = [_sum_of_distances(s, s) / (len(s) * (len(s) - less)) for s in sides]
    return 2 * _sum_of_distances(x, y) / (len(x) * len(y)) - sum(within)


def _mean_error(
    prediction: ArrayLike, truth: ArrayLike, *, power: int, weights: ArrayLike | None, exclude: ArrayLike | None
) -> np.ndarray:
    prediction, truth = same_shape(prediction, truth)
    weight = kept_genes(exclude, truth.shape).astype(np.float64)
    if weights is not None:
        given = _reference("weights", weights, truth.shape)
        weight = weight * given
        if (given < 0).any() or not weight.sum(axis=1).all():
            raise MetricError("weights", found="negative values, or none above 0", fix="give weights of 0 and more")
    error = (weight * np.abs(prediction - truth) ** power).sum(axis=1)
    return error / weight.sum(axis=1)


def _reference(name: str, reference: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """A value per gene, or per condition and gene."""
    array = np.asarray(reference, dtype=np.float64)
    if array.shape not in {shape, shape[-1:]} or not np.isfinite(array).all():
        found = f"shape {array.shape}" if array.shape not in {shape, shape[-1:]} else "values that are not finite"
        raise MetricError(name, found=found, fix=f"give an array of shape {' or '.join(map(str, {shape[-1:], shape}))}")
    return array


def _resolution(array: ArrayLike) -> float:
    kind = np.asarray(array).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


def _others(others: ArrayLike, n_genes: int) -> np.ndarray:
    others = finite_matrix("others_QG", others)
    if others.shape[1] != n_genes:
        raise MetricError("others_QG", found=f"{others.shape[1]} genes, not {n_genes}", fix="give the same genes")
    return others


def _distances(prediction: np.ndarray, truth: np.ndarray, kept: np.ndarray, *, metric: str) -> np.ndarray:
    """Distance of each prediction to each truth, on the genes that count for the prediction's condition."""
    if len(kept) == 1:
        blocks = [(prediction[:, kept[0]], truth[:, kept[0]])]
    else:
        blocks = [(p[None, k], truth[:, k]) for p, k in zip(prediction, kept, strict=True)]
    if metric != "cosine":
        return np.vstack([cdist(p, t, metric) for p, t in blocks])
    # a profile without any effect has no direction: at a right angle to all
    return np.vstack([1 - unit_rows(p) @ unit_rows(t).T for p, t in blocks])


def _rank_of_own(distances: np.ndarray) -> np.ndarray:
    """How many truths are nearer than the right one (column p of row p); equally near ones count half."""
    own = np.diagonal(distances)[:, None]
    return (distances < own).sum(axis=1) + ((distances == own).sum(axis=1) - 1) / 2


def _significant(fdr: np.ndarray, lfc: np.ndarray, max_fdr: float) -> np.ndarray:
    genes = np.flatnonzero(fdr < max_fdr)
    return genes[np.argsort(-np.abs(lfc[genes]), kind="stable")]


def _sum_of_distances(x: np.ndarray, y: np.ndarray, *, rows: int = 1024) -> float:
    return float(sum(cdist(x[start : start + rows], y).sum() for start in range(0, len(x), rows)))
