"""Columns of ``obs``: found by name in modalities and the MuData, merged cell by cell, read as categories."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert.errors import CategoryError, MissingValuesError, ObsConflictError, ObsKeyError

__all__ = ["MISSING_TEXT", "as_categories", "closest", "read_column"]

MISSING_TEXT = frozenset({"", "nan", "NaN", "<NA>"})
"""Text that a missing value becomes by accident (``astype(str)``, CSV files); it is read as missing."""


def closest(name: str, known: list[str]) -> str | None:
    """Known name that is most like the one given, whatever its case; None if none is near."""
    folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def read_column(data: AnnData | MuData, key: str, *, rows: Mapping[str | None, np.ndarray]) -> pd.Series:
    """Read a column for every cell, from the modalities first, then from the global ``obs``.

    Parameters
    ----------
    data
        The object.
    key
        Name of the column.
    rows
        Per modality, the row of each cell (-1: absent), in the order in which modalities are asked.

    Returns
    -------
    Series of length n_cells, indexed by ``data.obs_names``, NaN where no part has a value.
    """
    sources = _sources(data, key, rows)
    if len(sources) == 1 and (sources[0][2] >= 0).all():
        _, column, row = sources[0]
        return pd.Series(column.array.take(row), index=data.obs_names, name=key)
    values = np.full(data.n_obs, np.nan, dtype=object)
    for where, column, row in sources:
        present = np.flatnonzero(row >= 0)
        new = column.astype(object).to_numpy()[row[present]]
        old = values[present]
        given, known = ~pd.isna(new), ~pd.isna(old)
        conflict = np.flatnonzero(given & known & (old != new))
        if len(conflict):
            i = conflict[0]
            found = (
                f"{len(conflict)} cells differ, e.g. {data.obs_names[present[i]]!r}: {old[i]!r} before, {new[i]!r} here"
            )
            fix = "make the columns agree, or drop all but one"
            raise ObsConflictError(f"{where}[{key!r}]", found=found, fix=fix)
        values[present[given & ~known]] = new[given & ~known]
    return pd.Series(values, index=data.obs_names, name=key).infer_objects()


def _sources(
    data: AnnData | MuData, key: str, rows: Mapping[str | None, np.ndarray]
) -> list[tuple[str, pd.Series, np.ndarray]]:
    """Parts of the object that have the column: how messages call them, the column, the row of each cell."""
    everyone = np.arange(data.n_obs)
    if isinstance(data, AnnData):
        if key in data.obs:
            return [("adata.obs", data.obs[key], everyone)]
        raise _absent(key, {"adata.obs": list(data.obs.columns)})
    found = [(f"mdata[{m!r}].obs", data.mod[m].obs[key], rows[m]) for m in rows if key in data.mod[m].obs]
    if key in data.obs:
        found.append(("mdata.obs", data.obs[key], everyone))
    if not found:  # mudata copies columns of a modality into the global obs under this name
        copies = [f"{m}:{key}" for m in rows if f"{m}:{key}" in data.obs]
        found = [("mdata.obs", data.obs[c], everyone) for c in copies]
    if not found:
        places = {f"mdata[{m!r}].obs": list(data.mod[m].obs.columns) for m in data.mod}
        raise _absent(key, {"mdata.obs": list(data.obs.columns), **places})
    return found


def _absent(key: str, places: dict[str, list[str]]) -> ObsKeyError:
    known = sorted({str(c) for names in places.values() for c in names})
    near = closest(key, known)
    fix = f"did you mean {near!r}?" if near else f"use one of {known[:20]}" if known else "add the column"
    return ObsKeyError(" or ".join(list(places)[:3]), found=f"no column {key!r}", fix=fix)


def as_categories(column: pd.Series, *, key: str, missing: str | None = None) -> pd.Series:
    """Read a column as categories with text names.

    Whole numbers and booleans become their text; text such as "nan" is a missing value; categories that no cell has do
    not count.

    Parameters
    ----------
    column
        The values.
    key
        Name of the column, for messages.
    missing
        Name given to missing values; None makes them an error.

    Returns
    -------
    Series of text with the index of ``column``.

    Raises
    ------
    MissingValuesError
        If values are missing and no name for them is given.
    CategoryError
        If the values are of several types, continuous, or neither text nor numbers.
    """
    codes, values = pd.factorize(column)
    names = _names(list(values), key)
    empty = np.array([name.strip() in MISSING_TEXT for name in [*names, ""]])
    codes = np.where(empty[codes], -1, codes)
    lacking = np.flatnonzero(codes < 0)
    if len(lacking) and missing is None:
        cells = [str(c) for c in column.index[lacking[:5]]]
        fix = f"fill them, e.g. obs[{key!r}] = obs[{key!r}].astype(object).fillna('unknown'), or remove the cells"
        raise MissingValuesError(f"obs[{key!r}]", found=f"{len(lacking)} cells without a value, e.g. {cells}", fix=fix)
    table = np.asarray([*names, "" if missing is None else missing], dtype=object)
    return pd.Series(table[codes], index=column.index, name=column.name)


def _names(values: list[object], key: str) -> list[str]:
    """Text of each category."""
    where = f"obs[{key!r}]"
    numbers = [v for v in values if isinstance(v, int | float | np.integer | np.floating | bool | np.bool_)]
    texts = [v for v in values if isinstance(v, str)]
    if len(texts) + len(numbers) < len(values) or (texts and numbers):
        kinds = sorted({type(v).__name__ for v in values})
        examples = [*texts[:2], *numbers[:2]] or values[:4]
        fix = f"make them text: obs[{key!r}] = obs[{key!r}].astype(str)"
        raise CategoryError(where, found=f"values of types {kinds}, e.g. {examples}", fix=fix)
    continuous = [v for v in numbers if float(v) != int(v)] if all(np.isfinite(float(v)) for v in numbers) else numbers
    if continuous:
        found = f"numbers that are not whole, e.g. {[float(v) for v in continuous[:5]]}"
        raise CategoryError(where, found=found, fix=f"bin them (pandas.cut), or name another column than {key!r}")
    if texts:
        return [str(t) for t in texts]
    return [str(v) if isinstance(v, bool | np.bool_) else str(int(v)) for v in numbers]
