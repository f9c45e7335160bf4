"""Names of peaks as places on chromosomes, however they are spelt."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

__all__ = ["are_kmers", "bare", "parse_peaks", "place_keys"]

_PLACE = re.compile(r"^(.+?)(?::(\d{1,15})-(\d{1,15})|-(\d{1,15})-(\d{1,15})|_(\d{1,15})_(\d{1,15}))$")
"""chr:start-end, chr-start-end or chr_start_end; a contig's own name may hold the same signs."""
_KMER = re.compile(r"^[ACGT]+$")


def parse_peaks(names: Iterable[object]) -> pd.DataFrame:
    """Read the places that peaks are named by.

    Coordinates are taken as they stand. Where they are needed exactly, they count as those of BED files: from 0, with the end
    excluded.

    Parameters
    ----------
    names
        Names such as ``chr1:10-20``, ``chr1-10-20``, ``chr1_10_20`` or ``GL000194.1:1-200``.

    Returns
    -------
    Table in the order of the names, which are its index: ``chrom`` (text), ``start``, ``end`` (int64). A name that is no place, or
    one without length, has ``""``, -1, -1.
    """
    index = pd.Index([str(n) for n in names], dtype=object)
    chrom, start, end = [], np.full(len(index), -1, np.int64), np.full(len(index), -1, np.int64)
    for i, name in enumerate(index):
        hit = _PLACE.match(name)
        first, last = (int(g) for g in hit.groups()[1:] if g is not None) if hit else (0, 0)
        chrom.append(hit.group(1) if hit and first < last else "")
        if chrom[-1]:
            start[i], end[i] = first, last
    return pd.DataFrame({"chrom": np.array(chrom, dtype=object), "start": start, "end": end}, index=index)


def bare(chrom: str) -> str:
    """Return a chromosome's name without ``chr``; the mitochondrial one is MT.

    >>> bare("chr1"), bare("X"), bare("chrM"), bare("GL000194.1")
    ('1', 'X', 'MT', 'GL000194.1')
    """
    plain = chrom[3:] if chrom[:3].casefold() == "chr" and len(chrom) > 3 else chrom
    return "MT" if plain == "M" else plain


def place_keys(names: Iterable[object]) -> np.ndarray:
    """Return one spelling of each peak's place, ``""`` where a name is none.

    >>> place_keys(["chr1_10_20", "1:10-20", "peak7"]).tolist()
    ['1:10-20', '1:10-20', '']
    """
    table = parse_peaks(names)
    plain = {c: bare(c) for c in table["chrom"].unique()}
    rows = zip(table["chrom"], table["start"], table["end"], strict=True)
    return np.array([f"{plain[c]}:{a}-{b}" if c else "" for c, a, b in rows], dtype=str)


def are_kmers(names: Iterable[object]) -> int:
    """Return the length of the words of DNA that all names are; 0 if they are anything else.

    >>> are_kmers(["AAAA", "AAAC"]), are_kmers(["chr1:1-5", "AAAC"])
    (4, 0)
    """
    lengths = set()
    for name in names:
        lengths.add(len(str(name)))
        if len(lengths) > 1 or not _KMER.match(str(name)):
            return 0
    return lengths.pop() if lengths else 0
