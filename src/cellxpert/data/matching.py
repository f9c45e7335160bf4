"""Which column of another object is which feature of a vocabulary: by name, else genes by Ensembl id and peaks by place."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.errors import CellxPertWarning, DuplicateNamesError, FeatureOverlapError
from cellxpert.genome.builds import require_same_genome
from cellxpert.genome.peaks import are_kmers, parse_peaks, place_keys

if TYPE_CHECKING:
    from cellxpert.data.vocabulary import FeatureBlock

__all__ = ["match_features", "overlap"]

_WARN_BELOW = 0.8
_CONTRADICTED_WARN, _CONTRADICTED_ERROR = 0.01, 0.2
_SPECIES = re.compile(r"^(ENS[A-Z]*)G\d+")


def match_features(
    block: FeatureBlock,
    *,
    names: npt.NDArray[np.str_],
    ids: npt.NDArray[np.str_] | None,
    genome: str | None = None,
    peaks: bool = False,
    min_overlap: float = 0.3,
) -> npt.NDArray[np.int64]:
    """Find a modality's features among the columns of a matrix.

    A column is the feature of its name. A column whose name is unknown is the feature of its Ensembl id, if no column has
    that feature's name; a peak, that of its place: ``chr1:10-20``, ``chr1_10_20`` and ``1-10-20`` are one.

    Parameters
    ----------
    block
        The features looked for.
    names, ids
        Names of the columns, and their Ensembl ids without versions ("" where unknown).
    genome
        Genome build of peaks, where it is known.
    peaks
        Whether the features are peaks, or niches of peaks.
    min_overlap
        Least share of the features, and of the training counts they carry, that must be found.

    Returns
    -------
    int64 array: for every column its place in ``block.names``, or -1.

    Raises
    ------
    DuplicateNamesError
        If two columns are the same feature.
    FeatureOverlapError
        If too few features are found, or if Ensembl ids show that the same names belong to other genes.
    GenomeError
        If the peaks are of another genome build than the features.

    Warns
    -----
    CellxPertWarning
        If less than 80 % are found, if more than 1 % of the names stand for another Ensembl id, or if peaks are of a genome with another
        name, of which nothing else is known.
    """
    names = np.asarray(names, dtype=str)
    found = pd.Index(np.asarray(block.names, dtype=object)).get_indexer(names.astype(object)).astype(np.int64)
    _refuse_repeats(found, names, block, by="name")
    if peaks:
        if note := require_same_genome(genome, block.genome, names=names, known=block.names):
            warnings.warn(note, CellxPertWarning, stacklevel=3)
        if len(np.unique(found[found >= 0])) < len(block.names):  # spelt in another way, or not there
            found = _by_other_name(found, names, place_keys(names), place_keys(block.names), block, by="place")
    elif ids is not None and block.ids is not None:
        known = np.asarray(block.ids, dtype=str)
        ids = np.asarray(ids, dtype=str)
        _compare_ids(found, names, ids, known, block)
        found = _by_other_name(found, names, ids, known, block, by="Ensembl id")
    _gate(found, names, ids, block, min_overlap=min_overlap)
    return found


def _by_other_name(
    found: npt.NDArray[np.int64],
    names: npt.NDArray[np.str_],
    ids: npt.NDArray[np.str_],
    known: npt.NDArray[np.str_],
    block: FeatureBlock,
    *,
    by: str,
) -> npt.NDArray[np.int64]:
    """Find what names did not, by a second name ("" for none) of the columns and of the features."""
    unique, first, count = np.unique(known, return_index=True, return_counts=True)
    place = {u: int(f) for u, f, c in zip(unique, first, count, strict=True) if u and c == 1}
    taken = np.zeros(len(known), np.bool_)
    taken[found[found >= 0]] = True
    by_id = np.array([place.get(i, -1) for i in ids.tolist()], np.int64).reshape(-1)
    by_id[(found >= 0) | ((by_id >= 0) & taken[by_id])] = -1
    _refuse_repeats(by_id, names, block, by=by)
    return np.where(by_id >= 0, by_id, found)


def overlap(block: FeatureBlock, found: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return how much of a modality was found: ``features`` and ``counts``, shares between 0 and 1."""
    here = np.unique(found[found >= 0])
    total = float(block.counts.sum())
    return {
        "features": len(here) / len(block.names),
        "counts": float(block.counts[here].sum()) / total if total > 0 else 0.0,
    }


def _examples(values: npt.ArrayLike) -> str:
    return ", ".join(repr(str(v)) for v in np.asarray(values).reshape(-1)[:5])


def _refuse_repeats(found: npt.NDArray[np.int64], names: npt.NDArray[np.str_], block: FeatureBlock, *, by: str) -> None:
    place, count = np.unique(found[found >= 0], return_counts=True)
    if (count > 1).any():
        twice = place[count > 1]
        raise DuplicateNamesError(
            f"features of {block.role}",
            found=f"{len(twice)} features have several columns by {by}, such as {_examples(names[found == twice[0]])}",
            fix="keep one column per feature, or merge them",
        )


def _compare_ids(
    found: npt.NDArray[np.int64],
    names: npt.NDArray[np.str_],
    ids: npt.NDArray[np.str_],
    known: npt.NDArray[np.str_],
    block: FeatureBlock,
) -> None:
    """Same name, another Ensembl id: a few come from annotation releases, many from another organism."""
    theirs = known[found]
    both = (found >= 0) & (ids != "") & (theirs != "")
    wrong = np.flatnonzero(both & (ids != theirs))
    if not both.any() or len(wrong) < _CONTRADICTED_WARN * both.sum():
        return
    shown = ", ".join(f"{names[i]} ({ids[i]}, expected {theirs[i]})" for i in wrong[:3])
    text = f"{len(wrong)} of {int(both.sum())} names stand for another Ensembl id: {shown}"
    if len(wrong) > _CONTRADICTED_ERROR * both.sum():
        raise FeatureOverlapError(
            f"features of {block.role}",
            found=f"{text}{_organisms(ids, block)}",
            fix="map the genes to the model's organism; if names are to be trusted, drop the column of Ensembl ids",
        )
    warnings.warn(f"{block.role}: {text}; they were matched by name", CellxPertWarning, stacklevel=4)


def _species(ids: npt.ArrayLike | None) -> str:
    """Prefix of most Ensembl ids: ENS is human, ENSMUS mouse."""
    hits = [hit.group(1) for i in ([] if ids is None else np.asarray(ids).tolist()) if (hit := _SPECIES.match(i))]
    return Counter(hits).most_common(1)[0][0] if hits else ""


def _organisms(ids: npt.ArrayLike | None, block: FeatureBlock) -> str:
    here, there = _species(ids), _species(block.ids)
    return (
        f"; another organism: ids are {here}G... here and {there}G... in the model"
        if here and there and here != there
        else ""
    )


def _peak_hint(names: npt.NDArray[np.str_], block: FeatureBlock) -> tuple[str, str]:
    """Say what differs of peaks whose places do not match, and what helps."""
    here, there = are_kmers(names), are_kmers(block.names)
    if here or there:
        found = [f"k-mers of {k} bases" if k else "peaks" for k in (here, there)]
        fix = f"make them with cellxpert.peaks_to_kmers(..., k={there})" if there else "give cells by peaks"
        return f"; {found[0]} here, {found[1]} in the model", fix
    fix = "count fragments in the model's peaks; cellxpert.peaks_to_kmers makes features that other peaks have too"
    odd = int((parse_peaks(names)["chrom"] == "").sum())
    if 2 * odd > len(names):
        return f"; {odd} of {len(names)} peaks are not named by their place", f"name them chr:start-end, and {fix}"
    return "; peaks are matched by place: another peak call?", fix


def _gate(
    found: npt.NDArray[np.int64],
    names: npt.NDArray[np.str_],
    ids: npt.NDArray[np.str_] | None,
    block: FeatureBlock,
    *,
    min_overlap: float,
) -> None:
    share = overlap(block, found)
    text = f"{share['features']:.1%} of the model's {len(block.names)} features, with {share['counts']:.1%} of the training counts"
    if min(share.values()) < min_overlap:
        folded = {name.casefold() for name in block.names}
        alike = sum(name.casefold() in folded for name in set(names.tolist())) / len(block.names)
        hint = _organisms(ids, block)
        if not hint and alike > share["features"] + 0.2:
            hint = f"; {alike:.0%} would match but for upper and lower case: another organism (mouse Actb, human ACTB)?"
        fix = "give the names or Ensembl ids the model knows"
        if block.role == "atac":
            hint, fix = _peak_hint(names, block)
        missing = np.setdiff1d(np.arange(len(block.names)), found)
        absent = _examples(np.asarray(block.names)[missing])
        raise FeatureOverlapError(
            f"features of {block.role}",
            found=f"only {text}{hint}. Here: {_examples(names)}; absent: {absent}",
            fix=fix,
        )
    if min(share.values()) < _WARN_BELOW:
        warnings.warn(f"{block.role}: found {text}; the others are absent tokens", CellxPertWarning, stacklevel=4)
