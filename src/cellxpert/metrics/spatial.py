"""How values and labels lie in a tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from cellxpert.errors import MetricError
from cellxpert.metrics.checks import finite_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import ArrayLike
    from scipy.spatial import KDTree

__all__ = ["neighborhood_correlation", "variogram"]

_FEWEST_ENTRIES = 3
_MOST_ANCHORS_AT_ONCE = 2000
_FEWEST_DRAWN = 1000
"""Pairs of a bin among the uniform draws; a bin with fewer is read from a k-d tree, whatever that costs."""


def variogram(
    values: ArrayLike,
    coordinates: ArrayLike,
    *,
    sections: ArrayLike | None = None,
    radii: ArrayLike | None = None,
    n_bins: int = 12,
    max_pairs: int = 500_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Empirical variogram: how much cells differ at a distance.

    The semivariance of a bin is the mean, over pairs of cells at such a distance, of half the squared Euclidean distance of
    their values (Matheron 1963). Divided by the variance it is 1 where distance says nothing, and below 1 where cells that
    are near each other are alike. Pairs never span two sections.

    If there are more than ``max_pairs`` pairs, pairs are sampled, each pair of a bin with the same probability. Long bins take
    theirs from uniform draws; short bins, which such draws hardly hit, from a k-d tree: all pairs, or those around random cells.

    Parameters
    ----------
    values
        Values of each cell, (n,) or (n, d), sparse too: expression, a latent space, a score.
    coordinates
        Positions, (n, 2) or (n, 3).
    sections
        Section of each cell, for example the slice. Default: one section.
    radii
        Edges of the bins, positive and increasing, in the unit of ``coordinates``; a bin contains its upper end, not its lower.
        Default: ``n_bins`` bins, equally wide on a log scale, from the median distance to the nearest neighbour to half the
        longest side of a section.
    n_bins
        Number of bins where ``radii`` is None.
    max_pairs
        Most pairs that are compared in all; a bin has at most ``max_pairs / bins`` of them if pairs are sampled.
    seed
        Seed of the sample.

    Returns
    -------
    pandas.DataFrame
        One row per bin: ``distance`` (geometric mean of its edges), ``low``, ``high``, ``semivariance`` (NaN in a bin without
        pairs), ``variance_ratio`` and ``n_pairs`` (pairs compared). ``variance_ratio`` is the semivariance divided by that of
        all pairs within sections, which for one section is the sum of the columns' sample variances.

    Raises
    ------
    MetricError
        If the arrays differ in length, have another width, or hold values that are not finite; if sections are missing, radii
        do not increase, no section has two cells in different places, or the values do not vary.
    """
    import pandas as pd

    values, points, codes = _cells(values, coordinates, sections)
    if not all(isinstance(n, int | np.integer) and n >= 1 for n in (n_bins, max_pairs)):
        found = f"n_bins={n_bins!r}, max_pairs={max_pairs!r}"
        raise MetricError("metrics.variogram", found=found, fix="give whole numbers of 1 or more")
    total = _variance(values, codes)
    given = None if radii is None else _radii(radii)
    apart = _apart(points, codes, 0.0 if given is None else given[-1])
    edges = _default_radii(apart, points, codes, n_bins) if given is None else given
    if _count_pairs(codes) <= max_pairs:
        pairs = _all_pairs(codes)
    else:
        pairs = _sampled_pairs(apart, codes, edges, max_pairs=max_pairs, rng=np.random.default_rng(seed))
    place = _bins(apart, pairs, edges)
    pairs, place = pairs[:, place >= 0], place[place >= 0]
    n_pairs = np.bincount(place, minlength=len(edges) - 1)
    sums = np.bincount(place, weights=_half_squared(values, pairs), minlength=len(edges) - 1)
    gamma = np.divide(sums, n_pairs, out=np.full(len(sums), np.nan), where=n_pairs > 0)
    table = {
        "distance": np.sqrt(edges[:-1] * edges[1:]),
        "low": edges[:-1],
        "high": edges[1:],
        "semivariance": gamma,
        "variance_ratio": gamma / total,
        "n_pairs": n_pairs,
    }
    return pd.DataFrame(table)


def neighborhood_correlation(
    truth: pd.DataFrame | ArrayLike, predicted: pd.DataFrame | ArrayLike, *, labels: Sequence[Any] | None = None
) -> float:
    """Pearson correlation of two tables of neighbourhood enrichment: do the same labels lie beside each other?

    Each pair of labels that both tables have counts once, the diagonal too; pairs without a finite score in both are left out.

    Parameters
    ----------
    truth, predicted
        Scores, labels x labels, such as the z-scores of :func:`squidpy.gr.nhood_enrichment`; tables with labels as index and
        columns, in any order, or arrays. What is not symmetric is replaced by the mean with its transpose.
    labels
        Label of each row and column of arrays; tables have their own.

    Returns
    -------
    float
        From -1 to 1.

    Raises
    ------
    MetricError
        If a table is not square, an array has no labels, a label occurs twice, fewer than 3 pairs of labels have scores in
        both tables, or the scores of one do not vary.
    """
    tables = [_square(name, table, labels) for name, table in (("truth", truth), ("predicted", predicted))]
    common = [label for label in tables[0].index if label in tables[1].index]
    upper = np.triu_indices(len(common))
    x, y = ((s + s.T)[upper] / 2 for s in (t.loc[common, common].to_numpy(dtype=np.float64) for t in tables))
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < _FEWEST_ENTRIES:
        found = f"{both.sum()} pairs of labels with scores in both, {len(common)} common labels"
        raise MetricError("truth, predicted", found=found, fix=f"give {_FEWEST_ENTRIES} or more")
    x, y = x[both], y[both]
    if x.min() == x.max() or y.min() == y.max():
        raise MetricError("truth, predicted", found="scores that are all equal", fix="give scores that vary")
    return float(np.corrcoef(x, y)[0, 1])


def _square(name: str, table: Any, labels: Sequence[Any] | None) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        array = np.asarray(table, dtype=np.float64)
        if labels is None or array.shape != (len(labels), len(labels)):
            found = f"shape {array.shape} with {'no' if labels is None else len(labels)} labels"
            raise MetricError(name, found=found, fix="give a label per row and column, labels=, or a DataFrame")
        table = pd.DataFrame(array, index=list(labels), columns=list(labels))
    for axis in (table.index, table.columns):
        if axis.has_duplicates:
            found = f"{list(axis[axis.duplicated()][:5])} occur twice"
            raise MetricError(name, found=found, fix="give each label once")
    if set(table.index) != set(table.columns):
        raise MetricError(name, found="other labels in rows than in columns", fix="give a table of labels x labels")
    return table


def _cells(values: Any, coordinates: Any, sections: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Values (n, d), positions (n, 2 or 3) and the number of each cell's section."""
    import pandas as pd

    if not sp.issparse(values):
        values = np.asarray(values)
        values = values[:, None] if values.ndim == 1 else values
    values, points = finite_matrix("values", values), finite_matrix("coordinates", coordinates)
    if points.shape[1] not in {2, 3}:
        raise MetricError("coordinates", found=f"shape {points.shape}", fix="give an array (n, 2) or (n, 3)")
    points = points.toarray() if sp.issparse(points) else points
    codes = np.zeros(len(points), dtype=np.int64)
    if sections is not None:
        codes = pd.factorize(np.asarray(sections, dtype=object).ravel())[0].astype(np.int64)
    if not values.shape[0] == len(points) == len(codes):
        found = f"{values.shape[0]} values, {len(points)} positions, {len(codes)} sections"
        raise MetricError("values, coordinates, sections", found=found, fix="give one of each per cell")
    if (codes < 0).any():
        raise MetricError("sections", found=f"{(codes < 0).sum()} cells without one", fix="leave these cells out")
    if np.bincount(codes).max() < 2:
        raise MetricError("sections", found="no section with two cells", fix="give two cells or more per section")
    return values, points, codes


def _variance(values: Any, codes: np.ndarray) -> float:
    """Mean over all pairs within sections of half their squared distance."""
    variances, n_pairs = [], []
    for code, size in enumerate(np.bincount(codes)):
        if size > 1:
            rows = values[codes == code]
            if sp.issparse(rows):
                variance = (rows.multiply(rows).sum(axis=0) - rows.sum(axis=0) ** 2 / size) / (size - 1)
            else:
                variance = rows.var(axis=0, ddof=1)
            variances.append(float(variance.sum()))
            n_pairs.append(size * (size - 1) / 2)
    total = float(np.average(variances, weights=n_pairs))
    # The mean of equal numbers may differ from them in the last digit.
    if total <= 1e-24 * abs(values).max() ** 2 * values.shape[1] or not np.isfinite(total):
        raise MetricError("values", found="no variance within sections", fix="give values that vary between cells")
    return total


def _radii(radii: ArrayLike) -> np.ndarray:
    try:
        edges = np.asarray(radii, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MetricError(
            "radii", found=repr(radii)[:60], fix="give two or more positive numbers that increase"
        ) from error
    if edges.ndim != 1 or len(edges) < 2 or not (np.isfinite(edges).all() and (np.diff(edges, prepend=0) > 0).all()):
        found = f"shape {edges.shape}" if edges.ndim != 1 else f"{edges[:5].tolist()}"
        raise MetricError("radii", found=found, fix="give two or more positive numbers that increase")
    return edges


def _apart(points: np.ndarray, codes: np.ndarray, longest: float) -> np.ndarray:
    """Positions with the section as one more axis, so far apart that no search reaches another section."""
    if not codes.any():
        return points
    diagonal = np.linalg.norm(np.ptp(points, axis=0))
    return np.column_stack([points, codes * (4 * max(diagonal, longest) + 1)])


def _default_radii(apart: np.ndarray, points: np.ndarray, codes: np.ndarray, n_bins: int) -> np.ndarray:
    from scipy.spatial import KDTree

    nearest = KDTree(apart).query(apart, k=2)[0][:, 1]
    nearest = nearest[(nearest > 0) & (nearest <= np.linalg.norm(np.ptp(points, axis=0)))]
    longest = max(np.ptp(points[codes == code], axis=0).max() for code in range(codes.max() + 1))
    if not len(nearest) or np.median(nearest) >= longest / 2:
        found = "cells too few, or all in one place, for default radii"
        raise MetricError("coordinates", found=found, fix="give radii=")
    return np.geomspace(np.median(nearest), longest / 2, n_bins + 1)


def _count_pairs(codes: np.ndarray) -> int:
    sizes = np.bincount(codes)
    return int((sizes * (sizes - 1) // 2).sum())


def _all_pairs(codes: np.ndarray) -> np.ndarray:
    """Every pair within a section, (2, pairs)."""
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for code in range(codes.max() + 1):
        cells = np.flatnonzero(codes == code)
        pairs.append(cells[np.array(np.triu_indices(len(cells), 1))])
    return np.concatenate(pairs, axis=1)


def _sampled_pairs(
    apart: np.ndarray, codes: np.ndarray, edges: np.ndarray, *, max_pairs: int, rng: np.random.Generator
) -> np.ndarray:
    from scipy.spatial import KDTree

    most = max(1, max_pairs // (len(edges) - 1))
    n_pairs, n_drawn = _count_pairs(codes), max(4 * max_pairs, 1_000_000)
    drawn = rng.permutation(_all_pairs(codes), axis=1) if n_pairs <= n_drawn else _drawn_pairs(codes, n_drawn, rng)
    place = _bins(apart, drawn, edges)
    tree, kept = KDTree(apart), []
    share = n_pairs / drawn.shape[1]
    for i in range(len(edges) - 1):
        pairs = drawn[:, place == i]
        # About how many pairs a search of the tree would pass over.
        searched = share * np.isin(place, range(i + 1)).sum()
        if pairs.shape[1] < most and (pairs.shape[1] < _FEWEST_DRAWN or searched <= n_drawn):
            pairs = _near_pairs(tree, edges[i : i + 2], most, rng)
        kept.append(pairs[:, :most])
    return np.concatenate(kept, axis=1)


def _drawn_pairs(codes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` uniform draws from the pairs within sections; a pair may come twice."""
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes)
    weights = sizes * (sizes - 1.0)
    section = rng.choice(len(sizes), size=n, p=weights / weights.sum())
    first = rng.integers(0, sizes[section])
    second = rng.integers(0, sizes[section] - 1)
    second += second >= first
    start = (np.cumsum(sizes) - sizes)[section]
    return order[np.stack([start + first, start + second])]


def _near_pairs(tree: KDTree, edges: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of one bin around random cells, until there are ``most`` or no cells are left, in random order."""
    from scipy.spatial import KDTree

    known = np.empty(0, dtype=np.int64)
    cells = rng.permutation(tree.n)
    for start in range(0, tree.n, _MOST_ANCHORS_AT_ONCE):
        anchors = cells[start : start + _MOST_ANCHORS_AT_ONCE]
        around = KDTree(tree.data[anchors]).sparse_distance_matrix(tree, edges[1] * (1 + 1e-9), output_type="ndarray")
        found = np.sort(np.stack([anchors[around["i"]], around["j"]]), axis=0)
        found = found[:, _bins(tree.data, found, edges) == 0]
        # A pair of two anchors is found from both sides.
        known = np.unique(np.concatenate([known, found[0] * tree.n + found[1]]))
        if len(known) >= most:
            break
    return np.stack(np.divmod(rng.permutation(known), tree.n))


def _bins(points: np.ndarray, pairs: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each pair's distance; -1 outside all of them."""
    squares = np.zeros(pairs.shape[1])
    for axis in points.T:
        squares += (axis[pairs[0]] - axis[pairs[1]]) ** 2
    place = np.searchsorted(edges, np.sqrt(squares), side="left") - 1
    return np.where(place < len(edges) - 1, place, -1)


def _half_squared(values: Any, pairs: np.ndarray) -> np.ndarray:
    """Half the squared distance of the values of each pair, some pairs at a time."""
    found, step = np.zeros(pairs.shape[1]), max(1, 2_000_000 // values.shape[1])
    for start in range(0, pairs.shape[1], step):
        first, second = pairs[:, start : start + step]
        difference = values[first] - values[second]
        squares = difference.multiply(difference) if sp.issparse(difference) else difference**2
        found[start : start + step] = np.asarray(squares.sum(axis=1)).ravel() / 2
    return found
