"""From cells to the centroids that perturbation scores compare, and how sure a mean of such scores is.

Suffixes: N, M cells; P conditions; G genes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from cellxpert.errors import MetricError
from cellxpert.metrics.checks import finite_matrix, kept_genes, paired

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import ArrayLike

__all__ = [
    "bootstrap_interval",
    "centroids",
    "noise_ceiling",
    "perturbed_mean",
    "t_scores",
    "target_mask",
    "top_genes",
]


def centroids(cells_NG: Any, conditions_N: ArrayLike, *, order: Sequence[str]) -> np.ndarray:
    """Mean profile of the cells of each condition.

    Parameters
    ----------
    cells_NG
        Expression, cells x genes, dense or sparse, usually log1p of normalised counts.
    conditions_N
        Condition of each cell.
    order
        Conditions wanted, in the order of the rows returned. Cells of other conditions do not count.

    Returns
    -------
    numpy.ndarray
        Conditions x genes.

    Raises
    ------
    MetricError
        If arrays differ in length, are empty or not finite, or a condition wanted has no cells.
    """
    cells, conditions = finite_matrix("cells_NG", cells_NG), np.asarray(conditions_N)
    if conditions.shape != (cells.shape[0],):
        found = f"{cells.shape[0]} cells, conditions of shape {conditions.shape}"
        raise MetricError("conditions_N", found=found, fix="give one condition per cell")
    if not len(order):
        raise MetricError("metrics.centroids(order=)", found="none", fix="list conditions that have cells")
    member = np.array([conditions == condition for condition in order], dtype=np.float64)
    n = member.sum(axis=1, keepdims=True)
    if empty := [condition for condition, cells_of in zip(order, n, strict=True) if not cells_of]:
        found = f"no cells of {empty[:5]}"
        raise MetricError("metrics.centroids(order=)", found=found, fix="list conditions that have cells")
    totals = sp.csr_array(member) @ cells
    return (totals.toarray() if sp.issparse(totals) else totals) / n


def perturbed_mean(centroids_PG: ArrayLike) -> np.ndarray:
    """Mean of the centroids of perturbed conditions, each condition counting once however many cells it has.

    The reference of the second Pearson score of Viñas Torné et al. 2025 (Systema), made of training conditions only.

    Parameters
    ----------
    centroids_PG
        Conditions x genes, without the control.

    Returns
    -------
    numpy.ndarray
        One value per gene.
    """
    return finite_matrix("centroids_PG", centroids_PG).mean(axis=0)


def target_mask(conditions: Sequence[str | Collection[str]], genes: Sequence[str], *, sep: str = "+") -> np.ndarray:
    """Which genes each condition targets.

    A clamped or knocked-out gene gives free marks, so scores leave target genes out:
    ``target_mask(...).any(axis=0)`` leaves out those of all conditions (the headline), ``target_mask(...)`` each
    condition's own only (as cell-eval does), with which even a constant prediction scores above chance.

    Parameters
    ----------
    conditions
        Target of each condition, several joined by ``sep`` or as a collection; what follows a name in parentheses, as in the names of
        :attr:`cellxpert.PerturbResult.perturbations` (``"JAK2(knockdown 0.5)"``), is no part of it.
    genes
        Name of each gene, without duplicates.
    sep
        What separates targets within a name.

    Returns
    -------
    numpy.ndarray
        Booleans, conditions x genes; a target that is not among the genes marks nothing.
    """
    place = {gene: i for i, gene in enumerate(genes)}
    if len(place) < len(genes):
        raise MetricError("genes", found="a name twice", fix="give each gene once")
    mask = np.zeros((len(conditions), len(genes)), dtype=bool)
    for row, condition in enumerate(conditions):
        targets = condition.split(sep) if isinstance(condition, str) else condition
        for target in (str(target).strip() for target in targets):
            gene = target if target in place else re.sub(r"\([a-z]+( [^ ()]+)?\)$", "", target)
            if gene in place:
                mask[row, place[gene]] = True
    return mask


def t_scores(cells_NG: Any, control_MG: Any) -> np.ndarray:
    """Welch's t of every gene between two sets of cells; 0 where a gene varies in neither.

    Parameters
    ----------
    cells_NG, control_MG
        Expression of the cells of a condition and of those it is compared with, dense or sparse; two cells or more.

    Returns
    -------
    numpy.ndarray
        One value per gene; positive where the condition is higher.
    """
    moments = []
    for name, given in (("cells_NG", cells_NG), ("control_MG", control_MG)):
        cells = finite_matrix(name, given)
        if (n := cells.shape[0]) < 2:
            raise MetricError(name, found=f"{n} cell", fix="give two cells or more")
        mean = np.asarray(cells.mean(axis=0)).ravel()
        square = np.asarray((cells.multiply(cells) if sp.issparse(cells) else cells**2).mean(axis=0)).ravel()
        variance = square - mean**2
        # of a gene that does not vary, rounding is left
        variance[variance < 1e-12 * square] = 0
        moments.append((mean, variance / (n - 1)))
    (mean, variance), (mean_control, variance_control) = moments
    if mean.shape != mean_control.shape:
        raise MetricError("cells_NG, control_MG", found="other numbers of genes", fix="give the same genes")
    error = np.sqrt(variance + variance_control)
    return np.divide(mean - mean_control, error, out=np.zeros_like(error), where=error > 0)


def top_genes(scores_PG: ArrayLike, *, n: int = 20, exclude: ArrayLike | None = None) -> np.ndarray:
    """Mark the genes with the largest absolute scores of each condition, for scores on the top 20.

    Parameters
    ----------
    scores_PG
        What ranks genes, of the truth and never of a prediction: :func:`t_scores`, or true centroids minus control.
    n
        How many genes; all that are left if there are fewer. Of equal scores the first genes are taken.
    exclude
        Genes that cannot be chosen, booleans, (G,) or (P, G).

    Returns
    -------
    numpy.ndarray
        Booleans, conditions x genes. Scores take what to leave out: ``exclude=~top_genes(...)``.
    """
    if n < 1:
        raise MetricError("metrics.top_genes(n=)", found=repr(n), fix="give 1 or more")
    scores = np.abs(finite_matrix("scores_PG", scores_PG))
    left = kept_genes(exclude, scores.shape)
    ranked = np.argsort(np.where(left, -scores, 1.0), axis=1, kind="stable")[:, :n]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, ranked, True, axis=1)  # noqa: FBT003 - a value, not a flag
    return mask & left


def noise_ceiling(
    cells_NG: Any,
    conditions_N: ArrayLike,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    order: Sequence[str],
    n_splits: int = 10,
    rng: int | np.random.Generator = 0,
) -> np.ndarray:
    """Score that half of the cells of every condition reaches as a prediction of the other half.

    The halves share no cell and all conditions are halved, so that centroids are equally noisy. Whole conditions are less noisy:
    a model can score somewhat above.

    Parameters
    ----------
    cells_NG, conditions_N, order
        As for :func:`centroids`; every condition needs two cells.
    score
        ``(prediction_PG, truth_PG) -> one value per condition``, such as a score of this package with its references.
    n_splits
        Random splits to average over.
    rng
        Seed or generator.

    Returns
    -------
    numpy.ndarray
        One value per condition, in the order given.
    """
    cells, conditions, rng = finite_matrix("cells_NG", cells_NG), np.asarray(conditions_N), np.random.default_rng(rng)
    if conditions.shape != (cells.shape[0],):
        found = f"{cells.shape[0]} cells, conditions of shape {conditions.shape}"
        raise MetricError("conditions_N", found=found, fix="give one condition per cell")
    if n_splits < 1:
        raise MetricError("metrics.noise_ceiling(n_splits=)", found=str(n_splits), fix="give one split or more")
    if small := [c for c in order if (conditions == c).sum() < 2]:
        raise MetricError("conditions_N", found=f"{small[:5]} have fewer than two cells", fix="leave them out")
    total = np.zeros(len(order))
    for _ in range(n_splits):
        side = np.full(len(conditions), -1)
        for condition in order:
            rows = rng.permutation(np.flatnonzero(conditions == condition))
            side[rows[: len(rows) // 2]], side[rows[len(rows) // 2 :]] = 0, 1
        first, second = (centroids(cells[side == s], conditions[side == s], order=order) for s in (0, 1))
        total += np.asarray(score(first, second), dtype=np.float64)
    return total / n_splits


def bootstrap_interval(
    scores_P: ArrayLike,
    *,
    rival: ArrayLike = 0.0,
    level: float = 0.95,
    n_resamples: int = 10_000,
    rng: int | np.random.Generator = 0,
) -> dict[str, float]:
    """Mean of a score over conditions, or of its difference to a rival's, with a bootstrap interval over conditions.

    Parameters
    ----------
    scores_P
        One score per condition.
    rival
        What is subtracted: a number (chance), or the rival's scores of the same conditions (paired: two series by their index, arrays in
        the same order).
    level
        Probability that the interval is to hold.
    n_resamples
        How often conditions are drawn with replacement.
    rng
        Seed or generator.

    Returns
    -------
    dict
        ``mean``, ``low``, ``high`` (percentile method). Ranks within one panel depend on one another, so intervals of
        :func:`discrimination_score` and :func:`centroid_accuracy` are approximate.
    """
    scores_P, rival = paired(scores_P, rival, "scores_P, rival")
    scores, against = np.asarray(scores_P, dtype=np.float64), np.asarray(rival, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or against.shape not in {(), scores.shape}:
        found = f"shapes {scores.shape} and {against.shape}"
        raise MetricError(
            "scores_P, rival", found=found, fix="give one score per condition, the rival's in the same order"
        )
    if not 0 < level < 1 or n_resamples < 1:
        found = f"level={level!r}, n_resamples={n_resamples!r}"
        raise MetricError("metrics.bootstrap_interval", found=found, fix="give a level between 0 and 1")
    difference = scores - against
    if not np.isfinite(difference).all():
        raise MetricError(
            "scores_P, rival", found="values that are not finite", fix="say what an undefined score counts"
        )
    n = len(scores)
    drawn = np.random.default_rng(rng).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    low, high = np.quantile(drawn @ difference / n, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}
