"""Which column of another object is which feature of a vocabulary: by name, else by Ensembl id."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellxpert.errors import CellxPertWarning, DuplicateNamesError, FeatureOverlapError

if TYPE_CHECKING:
    from cellxpert.data.vocabulary import FeatureBlock

__all__ = ["match_features", "overlap"]

_WARN_BELOW = 0.8
_CONTRADICTED_WARN, _CONTRADICTED_ERROR = 0.01, 0.2
_SPECIES = re.compile(r"^(ENS[A-Z]*)G\d+")


def match_features(
    block: FeatureBlock, *, names: npt.NDArray[np.str_], ids: npt.NDArray[np.str_] | None, min_overlap: float = 0.3
) -> npt.NDArray[np.int64]:
    """Find a modality's features among the columns of a matrix.

    A column is the feature of its name. A column whose name is unknown is the feature of its Ensembl id, if no column has
    that feature's name.

    Parameters
    ----------
    block
        The features looked for.
    names, ids
        Names of the columns, and their Ensembl ids without versions ("" where unknown).
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

    Warns
    -----
    CellxPertWarning
        If less than 80 % are found, or if more than 1 % of the names stand for another Ensembl id.
    """
    names = np.asarray(names, dtype=str)
    found = pd.Index(np.asarray(block.names, dtype=object)).get_indexer(names.astype(object)).astype(np.int64)
    _refuse_repeats(found, names, block, by="name")
    if ids is not None and block.ids is not None:
        known = np.asarray(block.ids, dtype=str)
        ids = np.asarray(ids, dtype=str)
        _compare_ids(found, names, ids, known, block)
        unique, first, count = np.unique(known, return_index=True, return_counts=True)
        place = {u: int(f) for u, f, c in zip(unique, first, count, strict=True) if u and c == 1}
        taken = np.zeros(len(known), np.bool_)
        taken[found[found >= 0]] = True
        by_id = np.array([place.get(i, -1) for i in ids.tolist()], np.int64).reshape(-1)
        by_id[(found >= 0) | ((by_id >= 0) & taken[by_id])] = -1
        _refuse_repeats(by_id, names, block, by="Ensembl id")
        found = np.where(by_id >= 0, by_id, found)
    _gate(found, names, ids, block, min_overlap=min_overlap)
    return found


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


def _peak_hint(names: npt.NDArray[np.str_], block: FeatureBlock, share: float) -> str:
    """Peaks are matched by name only; say whether spelling or place is what differs."""

    def plain(name: str) -> str:
        return re.sub(r"[:_-]+", "-", name.casefold()).removeprefix("chr")

    known = {plain(name) for name in block.names}
    alike = len(known.intersection(map(plain, names.tolist()))) / len(block.names)
    if alike > share + 0.2:
        return f"; {alike:.0%} would match but for their separators or 'chr' prefix"
    return "; peaks are matched by name: another genome build or peak call?"


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
            hint, fix = (
                _peak_hint(names, block, share["features"]),
                "count fragments in the model's peaks, named as there",
            )
        missing = np.setdiff1d(np.arange(len(block.names)), found)
        absent = _examples(np.asarray(block.names)[missing])
        raise FeatureOverlapError(
            f"features of {block.role}",
            found=f"only {text}{hint}. Here: {_examples(names)}; absent: {absent}",
            fix=fix,
        )
    if min(share.values()) < _WARN_BELOW:
        warnings.warn(f"{block.role}: found {text}; the others are absent tokens", CellxPertWarning, stacklevel=4)
