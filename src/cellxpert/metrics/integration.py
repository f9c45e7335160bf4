"""How well cells of several batches and modalities lie in one space, and how right values of a modality that was not read are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from cellxpert.errors import MetricError, MetricMissingError
from cellxpert.metrics.annotation import accuracy, macro_f1
from cellxpert.metrics.checks import finite_matrix

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import ArrayLike

__all__ = ["foscttm", "imputation_scores", "integration_scores", "knn_transfer"]

BIO = ("isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi")
"""Scores of how well labels are kept apart, in the order of scib-metrics."""
BATCH = ("bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
"""Scores of how well batches are mixed."""
_BIO_WEIGHT = 0.6
_NEIGHBORS = 90
_NEIGHBORS_KBET, _NEIGHBORS_GRAPH = 50, 15
_FEWEST_APPROXIMATE = 500
"""With fewer cells neighbours are searched exactly: an approximate search may not find as many as there are."""
_FEWEST_KBET = 10
_BYTES_AT_ONCE = 2**26


def integration_scores(
    embedding: ArrayLike, *, batch: ArrayLike, labels: ArrayLike, pre: ArrayLike | None = None, seed: int = 0
) -> dict[str, float]:
    """Scores of an embedding by scib-metrics: are labels kept apart, and batches mixed (Luecken et al. 2022)?

    The same scores, neighbours (90 at most) and weights as ``scib_metrics.benchmark.Benchmarker``. All are in [0, 1], more is
    better. The first call of a process compiles for a minute.

    Parameters
    ----------
    embedding
        Cell vectors, (n_cells, d), dense.
    batch, labels
        Batch and label of each cell; at least two labels. Leave cells out whose label is not known.
    pre
        Vectors of the same cells before integration, usually principal components: what ``pcr_comparison`` compares with.
    seed
        Seed of the search for neighbours and of k-means; the Benchmarker's is 0.

    Returns
    -------
    dict
        ``isolated_labels``, ``kmeans_nmi``, ``kmeans_ari``, ``silhouette_label`` and ``clisi``, whose mean is ``bio``;
        ``bras``, ``ilisi``, ``kbet``, ``graph_connectivity`` and ``pcr_comparison``, whose mean is ``batch``; and ``total``, 0.6 of
        ``bio`` and 0.4 of ``batch``. What is not defined is NaN and left out of the mean: ``pcr_comparison`` without ``pre``, or if
        batches explain nothing of it; ``bras`` if no label has cells of two batches and more cells than batches; ``kbet`` if
        none has ten cells and two batches. **With one batch nothing can be mixed: all of these, ``batch`` and ``total`` are NaN.**

    Raises
    ------
    MetricError
        If lengths differ, labels are missing or all the same, or values are not finite.
    MetricMissingError
        If scib-metrics is not installed.
    """
    cells = _dense("embedding", embedding)
    kinds = _groups("labels", labels, len(cells))
    batches = _groups("batch", batch, len(cells))
    before = None if pre is None else _dense("pre", pre)
    if before is not None and len(before) != len(cells):
        raise MetricError("pre", found=f"{len(before)} rows, {len(cells)} cells", fix="give the same cells")
    if kinds.max() == 0:
        raise MetricError("labels", found="one label", fix="give cells of two labels or more")
    scib = _scib()
    neighbors = _neighbors(scib, cells, seed)
    scores = _bio(scib, cells, neighbors, kinds=kinds, batches=batches, seed=seed)
    scores |= dict.fromkeys(BATCH, float("nan"))
    if batches.max() > 0:
        scores |= _mixing(scib, cells, neighbors, kinds=kinds, batches=batches, pre=before)
    scores["bio"], scores["batch"] = (_mean([scores[name] for name in names]) for names in (BIO, BATCH))
    scores["total"] = _BIO_WEIGHT * scores["bio"] + (1 - _BIO_WEIGHT) * scores["batch"]
    return scores


def foscttm(a: ArrayLike, b: ArrayLike) -> float:
    """Fraction of samples closer than the true match (Liu et al. 2019): do two views of a cell lie in the same place?

    For each cell of one view, the share of the other cells whose other view is nearer to it than its own; equal distances count
    half. The mean over all cells, in both directions. 0 is a perfect match, 0.5 is chance.

    Parameters
    ----------
    a, b
        Vectors of the same cells in the same order, (n_cells, d) each; distances are Euclidean. Memory grows with n_cells, not
        its square.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    MetricError
        If shapes differ, there are fewer than two cells, or values are not finite.
    """
    from scipy.spatial.distance import cdist

    first, second = _dense("a", a), _dense("b", b)
    if first.shape != second.shape or len(first) < 2:
        found = f"shapes {first.shape} and {second.shape}"
        raise MetricError("a, b", found=found, fix="give two views of the same cells, two cells or more")
    n = len(first)
    step = max(1, _BYTES_AT_ONCE // (8 * n))
    nearer = 0.0
    for x, y in ((first, second), (second, first)):
        for start in range(0, n, step):
            rows = np.arange(start, min(start + step, n))
            apart = cdist(x[rows], y, "sqeuclidean")
            own = apart[rows - start, rows][:, None]
            nearer += (apart < own).sum() + 0.5 * ((apart == own).sum() - len(rows))
    return float(nearer / (2 * n * (n - 1)))


def knn_transfer(embedding: ArrayLike, labels: ArrayLike, batch: ArrayLike, *, k: int = 15) -> dict[str, float]:
    """Can the labels of a batch be read off the cells of the others? Leave-one-batch-out k nearest neighbours.

    Every cell gets the commonest label among its nearest cells of other batches; of labels that are equally common, the one
    whose cell is nearest.

    Parameters
    ----------
    embedding
        Cell vectors, (n_cells, d), dense; distances are Euclidean.
    labels, batch
        Label and batch of each cell; at least two batches.
    k
        Number of neighbours; all cells of the other batches where these are fewer.

    Returns
    -------
    dict
        ``macro_f1`` (unweighted mean over the labels that occur), ``accuracy``, and ``n_unseen``: cells whose label no other
        batch has. These count as wrong.

    Raises
    ------
    MetricError
        If lengths differ, labels or batches are missing, there is one batch, or values are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    cells = _dense("embedding", embedding)
    kinds, batches = _groups("labels", labels, len(cells)), _groups("batch", batch, len(cells))
    if batches.max() == 0:
        raise MetricError("batch", found="one batch", fix="give cells of two batches or more")
    if not isinstance(k, int | np.integer) or k < 1:
        raise MetricError("k", found=f"{k!r}", fix="give a whole number of 1 or more")
    predicted, n_unseen = np.empty_like(kinds), 0
    for left_out in range(batches.max() + 1):
        asked, known = np.flatnonzero(batches == left_out), np.flatnonzero(batches != left_out)
        search = NearestNeighbors(n_neighbors=min(k, len(known))).fit(cells[known])
        near = kinds[known][search.kneighbors(cells[asked], return_distance=False)]
        votes = (near[:, :, None] == near[:, None, :]).sum(axis=2)
        predicted[asked] = near[np.arange(len(asked)), votes.argmax(axis=1)]  # the first of the most: the nearest
        n_unseen += int((~np.isin(kinds[asked], kinds[known])).sum())
    return {
        "macro_f1": macro_f1(kinds, predicted),
        "accuracy": accuracy(kinds, predicted),
        "n_unseen": float(n_unseen),
    }


def imputation_scores(
    truth: Any,
    predicted: ArrayLike,
    *,
    detection: bool = False,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
) -> dict[str, float]:
    """Scores of values that were not read: does a feature go up in the cells where it is said to?

    Parameters
    ----------
    truth
        Measured values, cells x features, sparse too, on the scale of the prediction.
    predicted
        Expected values, of the same cells and features: in the same order, or, of two tables, with the same names.
    detection
        Score, too, whether a feature is there at all (truth above 0): for open chromatin.
    lower, upper
        Bounds of an interval per value; both or none.

    Returns
    -------
    dict
        ``pearson``: over cells, per feature, then the mean over features; a feature predicted to be the same in all cells
        has 0. Features whose truth does not vary have no correlation and are left out: ``n_constant`` of them, ``n_features`` are
        scored. ``rmse``: over all values. With ``detection``, ``auroc``: the same mean of the area under the ROC curve, over the
        ``n_auroc`` features found in some cells and not in others. With bounds, ``coverage``: share of values inside.

    Raises
    ------
    MetricError
        If shapes or names differ, values are not finite, or one bound is missing or above the other.
    """
    truth, predicted, lower, upper = _by_name(truth, predicted, lower, upper)
    true, guess = finite_matrix("truth", truth), _dense("predicted", predicted)
    if true.shape != guess.shape:
        found = f"shapes {true.shape} and {guess.shape}"
        raise MetricError("truth, predicted", found=found, fix="give the same cells and features, in the same order")
    bounds = _bounds(lower, upper, guess.shape)
    step = max(1, _BYTES_AT_ONCE // (8 * len(guess)))
    correlations, areas, squares, inside = [], [], 0.0, 0
    for start in range(0, guess.shape[1], step):
        block = slice(start, start + step)
        x = true[:, block].toarray() if sp.issparse(true) else true[:, block]
        y = guess[:, block]
        correlations.append(_correlations(x, y))
        squares += float(((x - y) ** 2).sum())
        if detection:
            areas.append(_areas(x > 0, y))
        if bounds:
            inside += int(((bounds[0][:, block] <= x) & (x <= bounds[1][:, block])).sum())
    correlation = np.concatenate(correlations)
    scored = np.isfinite(correlation)
    scores = {
        "pearson": _mean(correlation),
        "rmse": float(np.sqrt(squares / guess.size)),
        "n_features": float(scored.sum()),
        "n_constant": float((~scored).sum()),
    }
    if detection:
        area = np.concatenate(areas)
        scores |= {"auroc": _mean(area), "n_auroc": float(np.isfinite(area).sum())}
    return scores | ({"coverage": inside / guess.size} if bounds else {})


def _by_name(truth: Any, *others: Any) -> tuple[Any, ...]:
    """Return tables in the order of the first; what is no table is in that order already."""
    import pandas as pd

    if not isinstance(truth, pd.DataFrame):
        return truth, *others
    sorted_ = []
    for table in others:
        if isinstance(table, pd.DataFrame):
            same = [
                getattr(table, axis).sort_values().equals(getattr(truth, axis).sort_values())
                for axis in ("index", "columns")
            ]
            if not all(same) or not (truth.index.is_unique and truth.columns.is_unique):
                found = "tables whose cells or features have other names, or names twice"
                raise MetricError("truth, predicted", found=found, fix="give both for the same cells and features")
            table = table.loc[truth.index, truth.columns]
        sorted_.append(table)
    return truth, *sorted_


def _scib() -> ModuleType:
    try:
        import scib_metrics
    except ImportError as error:
        raise MetricMissingError(
            "metrics.integration_scores",
            found="the package scib-metrics is not installed",
            fix='pip install "cellxpert[integration]"',
        ) from error
    return scib_metrics


def _dense(name: str, matrix: Any) -> np.ndarray:
    matrix = finite_matrix(name, matrix)
    return matrix.toarray() if sp.issparse(matrix) else matrix


def _groups(name: str, values: Any, n: int) -> np.ndarray:
    """Return the number of each cell's group, from 0, in the order of their names (on which scib-metrics' kBET depends)."""
    import pandas as pd

    codes = pd.factorize(np.asarray(values, dtype=object).ravel(), sort=True)[0].astype(np.int64)
    if len(codes) != n:
        raise MetricError(name, found=f"{len(codes)} values, {n} cells", fix="give one per cell")
    if (codes < 0).any():
        raise MetricError(name, found=f"{(codes < 0).sum()} missing", fix="leave these cells out")
    return codes


def _mean(values: Any) -> float:
    """Mean of what is defined; NaN if nothing is."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _neighbors(scib: ModuleType, cells: np.ndarray, seed: int) -> Any:
    """Nearest cells, the cell itself first."""
    n = min(_NEIGHBORS, len(cells))
    if len(cells) >= _FEWEST_APPROXIMATE:
        return scib.nearest_neighbors.pynndescent(cells, n_neighbors=n, random_state=seed, n_jobs=1)
    from sklearn.neighbors import NearestNeighbors

    distances, indices = NearestNeighbors(n_neighbors=n).fit(cells).kneighbors(cells)
    return scib.nearest_neighbors.NeighborsResults(
        indices=indices.astype(np.int32), distances=distances.astype(np.float32)
    )


def _bio(
    scib: ModuleType, cells: np.ndarray, neighbors: Any, *, kinds: np.ndarray, batches: np.ndarray, seed: int
) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    # scib_metrics.isolated_labels would log to the root logger; it is the mean below, over the labels of the fewest batches
    widths = (np.asarray(scib.utils.silhouette_samples(cells, kinds), dtype=np.float64) + 1) / 2
    n_batches = np.array([len(np.unique(batches[kinds == kind])) for kind in range(kinds.max() + 1)])
    isolated = np.flatnonzero(n_batches == n_batches.min())
    clusters = scib.utils.KMeans(int(kinds.max()) + 1, seed=seed).fit(cells.astype(np.float32)).labels_
    return {
        "isolated_labels": float(np.mean([widths[kinds == kind].mean() for kind in isolated])),
        "kmeans_nmi": float(normalized_mutual_info_score(kinds, clusters)),
        "kmeans_ari": float(adjusted_rand_score(kinds, clusters)),
        "silhouette_label": float(widths.mean()),
        "clisi": float(scib.clisi_knn(neighbors, kinds)),
    }


def _mixing(
    scib: ModuleType,
    cells: np.ndarray,
    neighbors: Any,
    *,
    kinds: np.ndarray,
    batches: np.ndarray,
    pre: np.ndarray | None,
) -> dict[str, float]:
    here = [(int((kinds == kind).sum()), len(np.unique(batches[kinds == kind]))) for kind in range(kinds.max() + 1)]
    few = {n: neighbors.subset_neighbors(n=min(n, len(cells))) for n in (_NEIGHBORS_KBET, _NEIGHBORS_GRAPH)}
    scores = {
        "ilisi": float(scib.ilisi_knn(neighbors, batches)),
        "graph_connectivity": float(scib.graph_connectivity(few[_NEIGHBORS_GRAPH], kinds)),
    }
    if any(1 < n_batches < n for n, n_batches in here):
        scores["bras"] = float(scib.bras(cells, kinds, batches))
    if any(n >= _FEWEST_KBET and n_batches > 1 for n, n_batches in here):
        scores["kbet"] = float(scib.kbet_per_label(few[_NEIGHBORS_KBET], batches, kinds))
    if pre is not None:
        explained = [scib.utils.principal_component_regression(x, batches, categorical=True) for x in (pre, cells)]
        if explained[0] > 0:
            scores["pcr_comparison"] = max(0.0, 1 - explained[1] / explained[0])
    return scores


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column; NaN where ``x`` does not vary, 0 where ``y`` does not."""
    varies, guessed = np.ptp(x, axis=0) > 0, np.ptp(y, axis=0) > 0
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    found = np.divide((x * y).sum(axis=0), norm, out=np.zeros(x.shape[1]), where=guessed & (norm > 0))
    return np.where(varies, found, np.nan)


def _areas(there: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column; NaN where all cells are alike."""
    from scipy.stats import rankdata

    n, total = there.sum(axis=0), len(there)
    pairs = n * (total - n)
    ranks = (rankdata(y, axis=0) * there).sum(axis=0) - n * (n + 1) / 2
    return np.divide(ranks, pairs, out=np.full(there.shape[1], np.nan), where=pairs > 0)


def _bounds(lower: Any, upper: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    if lower is None and upper is None:
        return None
    if lower is None or upper is None:
        raise MetricError("lower, upper", found="one of them", fix="give both")
    low, high = _dense("lower", lower), _dense("upper", upper)
    if low.shape != shape or high.shape != shape or (low > high).any():
        found = f"shapes {low.shape} and {high.shape}, {int((low > high).sum()) if low.shape == high.shape else '?'} crossed"
        raise MetricError("lower, upper", found=found, fix=f"give bounds of shape {shape}, lower <= upper")
    return low, high
