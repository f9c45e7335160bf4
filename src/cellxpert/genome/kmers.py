"""K-mers of the sequences of peaks: features that are the same whatever the peak call, the genome build or the organism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cellxpert.errors import (
    ConfigError,
    EmptyDataError,
    FeatureNameError,
    GenomeError,
    GenomeMissingError,
    LayerError,
    NegativeValueError,
    NonFiniteError,
    NotCountsError,
    ObjectTypeError,
)
from cellxpert.genome.builds import build_of_lengths, genome_of, known_build
from cellxpert.genome.peaks import bare, parse_peaks

__all__ = ["canonical_kmers", "count_kmers", "peaks_to_kmers"]

_SHORTEST, _LONGEST = 4, 8
_CHUNK_CELLS = 1024
_CHUNK_BASES = 1 << 20
_NO_BASE = 4
_BREAK = "N"


def peaks_to_kmers(
    adata: AnnData,
    fasta: str | os.PathLike[str],
    *,
    k: int = 6,
    layer: str | None = None,
    missing: Literal["error", "drop"] = "error",
) -> AnnData:
    """Turn cells by peaks into cells by k-mers of the peaks' sequences.

    Data sets with other peaks have other features, and a model of the one cannot read the other. The words of DNA in what is
    open are features of both. A k-mer and its reverse complement count as one (the first in the alphabet); ``N`` and other letters break
    a k-mer; lower case is sequence too. A cell's value is the sum over its peaks of count times occurrences in the peak
    (the k-mer features of chromVAR, Schep et al. 2017, before any correction of bias).

    Parameters
    ----------
    adata
        Cells by peaks, raw counts; peaks are named ``chr1:10-20``, ``chr1-10-20`` or ``chr1_10_20``, from 0, with the end excluded (as
        in BED files and those of 10x Genomics). A view or a backed object is fine.
    fasta
        FASTA file of the genome that the fragments were aligned to, plain or compressed by bgzip. pyfaidx writes an index beside it
        (``.fai``) where there is none.
    k
        Bases of a word, 4 to 8: 136, 512, 2,080, 8,192 or 32,896 features.
    layer
        Layer that holds the counts; None for ``X``.
    missing
        What to do with peaks on chromosomes that the file lacks: ``"error"``, or ``"drop"`` them and record it.

    Returns
    -------
    AnnData of the same cells by all k-mers in alphabetical order: ``X`` is CSR of int32 (int64 if a value needs it), ``obs`` is a copy.
    ``uns["kmers"]`` has ``k``, ``fasta`` (the file's name), ``genome`` ("" if not known), ``n_peaks`` (used), ``n_dropped``,
    ``dropped`` (chromosomes) and ``renamed`` (chromosomes that were found with or without ``chr``).

    Raises
    ------
    ObjectTypeError, EmptyDataError, LayerError, NonFiniteError, NegativeValueError, NotCountsError
        If there are no counts to read.
    FeatureNameError
        If peaks are not named by their place.
    GenomeMissingError
        If pyfaidx is not installed.
    GenomeError
        If the file cannot be read, it lacks chromosomes, peaks lie beyond a chromosome's end, or the
        peaks are of another build than the file.
    ConfigError
        If ``k`` or ``missing`` is none of the above.

    Notes
    -----
    Nothing is divided by the total of a cell: values stay counts, which a setup takes as they are (``modality="atac"``), and models
    divide by the total themselves: k-mers are read as log(1 + 10,000 x / total), as RNA is. Doing it here too would hide from the
    checks that the values were counts.

    Needs memory for the k-mers of all peaks (8 bytes for each k-mer that a peak holds: about 4 KB for 500 bases) and twice that of the
    result (8 bytes for each k-mer that a cell holds, and with k = 6 most cells hold nearly all). Cells and sequences are read in chunks; no matrix is made dense but a dense ``X`` by chunks.

    Examples
    --------
    >>> kmers = cx.peaks_to_kmers(adata, "hg38.fa")  # doctest: +SKIP
    >>> cx.CellxPert.setup_anndata(kmers, modality="atac", labels_key="cell_type")  # doctest: +SKIP
    """
    if isinstance(k, bool) or k not in range(_SHORTEST, _LONGEST + 1):
        raise ConfigError("peaks_to_kmers(k=)", found=repr(k), fix=f"use {_SHORTEST} to {_LONGEST}; 6 is usual")
    if missing not in ("error", "drop"):
        raise ConfigError("peaks_to_kmers(missing=)", found=repr(missing), fix="use 'error' or 'drop'")
    if not isinstance(adata, AnnData):
        found = f"{type(adata).__module__}.{type(adata).__qualname__}"
        raise ObjectTypeError("peaks_to_kmers", found=found, fix="give one modality: mdata['atac']")
    if 0 in adata.shape:
        raise EmptyDataError(
            "adata", found=f"{adata.n_obs} cells, {adata.n_vars} peaks", fix="check the filter that made it"
        )
    matrix = _matrix(adata, layer)
    peaks = _places(adata)
    with _open(fasta) as genome:
        names, record = _chromosomes(adata, peaks, genome, path=Path(fasta), missing=missing)
        peak_kmers = _of_peaks(genome, peaks, names, k=int(k))
    chunks = [
        _narrow(chunk @ peak_kmers) for chunk in _chunks(matrix, where="X" if layer is None else f"layers[{layer!r}]")
    ]
    counts = sparse.vstack(chunks, format="csr")
    counts.sort_indices()
    var = pd.DataFrame(index=pd.Index(canonical_kmers(int(k)), dtype=object))
    return AnnData(counts, obs=adata.obs.copy(), var=var, uns={"kmers": {"k": int(k), **record}})


def _narrow(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Half the memory, where all values allow it."""
    fits = counts.nnz == 0 or counts.data.max() <= np.iinfo(np.int32).max
    return counts.astype(np.int32) if fits else counts


def canonical_kmers(k: int) -> list[str]:
    """Return the words of ``k`` bases in alphabetical order, one of each pair of reverse complements.

    >>> canonical_kmers(1), len(canonical_kmers(6))
    (['A', 'C'], 2080)
    """
    codes = np.unique(_canonical_codes(k))
    shifts = 2 * np.arange(k - 1, -1, -1)
    return ["".join(row) for row in np.array(list("ACGT"))[(codes[:, None] >> shifts) & 3]]


def count_kmers(sequences: list[str], k: int) -> sparse.csr_matrix:
    """Count the canonical k-mers of sequences.

    Parameters
    ----------
    sequences
        Letters of any case; whatever is not A, C, G or T breaks a k-mer.
    k
        Bases of a word, 1 to 8.

    Returns
    -------
    int32 CSR matrix of shape (number of sequences, number of canonical k-mers), in the order of :func:`canonical_kmers`.
    """
    canonical = _canonical_codes(k)
    column = np.searchsorted(np.unique(canonical), canonical)
    base_of = np.full(256, _NO_BASE, np.uint8)
    for code, letters in enumerate(("Aa", "Cc", "Gg", "Tt")):
        base_of[[ord(letter) for letter in letters]] = code
    # a break after each sequence: no word reaches from one into the next
    text = np.frombuffer(_BREAK.join([*sequences, ""]).encode("ascii", "replace"), np.uint8)
    base = base_of[text]
    row = np.repeat(np.arange(len(sequences)), [len(s) + 1 for s in sequences])
    shape = (len(sequences), len(np.unique(canonical)))
    n_words = len(base) - k + 1
    if n_words < 1:
        return sparse.csr_matrix(shape, dtype=np.int32)
    word, whole = np.zeros(n_words, np.int64), np.ones(n_words, bool)
    for j in range(k):
        here = base[j : j + n_words]
        whole &= here != _NO_BASE
        word = (word << 2) | (here & 3)
    row, word = row[:n_words][whole], word[whole]
    return sparse.coo_matrix((np.ones(len(word), np.int32), (row, column[word])), shape=shape).tocsr()


def _canonical_codes(k: int) -> npt.NDArray[np.int64]:
    """Of each word, read as a number in base 4 (A, C, G, T), the lower of its own and its reverse complement's."""
    word = np.arange(4**k, dtype=np.int64)
    rest, reverse = word.copy(), np.zeros_like(word)
    for _ in range(k):
        reverse = (reverse << 2) | (3 - (rest & 3))
        rest >>= 2
    return np.minimum(word, reverse)


def _matrix(adata: AnnData, layer: str | None) -> Any:
    if layer is not None and layer not in adata.layers:
        have = sorted(adata.layers)
        raise LayerError("adata.layers", found=f"no layer {layer!r}", fix=f"use one of {have}, or none to read X")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise LayerError("adata.X", found="X is None", fix=f"pass one of the layers {sorted(adata.layers)}")
    return matrix.tocsr() if sparse.issparse(matrix) else matrix  # rows of a CSC matrix are slow to take


def _places(adata: AnnData) -> pd.DataFrame:
    peaks = parse_peaks(adata.var_names)
    odd = peaks.index[peaks["chrom"] == ""]
    if len(odd):
        raise FeatureNameError(
            "adata.var_names",
            found=f"{len(odd)} of {len(peaks)} peaks are not named by their place, e.g. {list(odd[:5])}",
            fix="name peaks chr:start-end, or remove these: adata[:, adata.var_names.str.contains(r'[:_-]\\d+[-_]\\d+$')]",
        )
    return peaks


def _open(fasta: str | os.PathLike[str]) -> Any:
    """Open a FASTA file with its index."""
    try:
        import pyfaidx
    except ImportError as error:
        raise GenomeMissingError(
            "peaks_to_kmers", found="the package pyfaidx is not installed", fix='pip install "cellxpert[atac]"'
        ) from error
    path = Path(fasta)
    if not path.is_file():
        raise GenomeError(str(path), found="no such file", fix="give the path of the genome's FASTA file")
    if path.stat().st_size == 0:
        raise GenomeError(str(path), found="an empty file", fix="restore it from its source")
    try:
        return pyfaidx.Fasta(str(path), as_raw=True)
    except (OSError, ValueError, ImportError, pyfaidx.FastaIndexingError) as error:
        fix = "give an uncompressed FASTA file in a folder where its index (.fai) can be written, or make that with `samtools faidx`"
        raise GenomeError(str(path), found=f"it cannot be read: {error}", fix=fix) from error


def _chromosomes(
    adata: AnnData, peaks: pd.DataFrame, genome: Any, *, path: Path, missing: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Name in the file of each chromosome of the peaks, and what is recorded; checks that the peaks are of this genome."""
    lengths = {name: len(genome[name]) for name in genome.keys()}  # noqa: SIM118 a Fasta is no dict
    there, here = build_of_lengths(lengths.items()), genome_of(adata)
    if there and here and known_build(here) != there:
        found = f"peaks of {here}, but a genome with the chromosomes of {there}"
        fix = f"give the FASTA file of {here}, or correct the name if it is wrong: adata.uns['genome'] = {there!r}"
        raise GenomeError(path.name, found=found, fix=fix)
    plain: dict[str, list[str]] = {}
    for name in lengths:
        plain.setdefault(bare(name), []).append(name)
    chroms = list(peaks["chrom"].unique())
    names = {
        c: c if c in lengths else plain[bare(c)][0] for c in chroms if c in lengths or len(plain.get(bare(c), ())) == 1
    }
    dropped = [c for c in chroms if c not in names]
    lost = peaks["chrom"].isin(dropped)
    if dropped and (missing == "error" or lost.all()):
        raise GenomeError(
            path.name,
            found=f"{len(dropped)} of the peaks' {len(chroms)} chromosomes, with {int(lost.sum())} of {len(peaks)} peaks, are not in "
            f"the file, e.g. {dropped[:5]}; it has {list(lengths)[:5]}",
            fix="give the genome that the fragments were aligned to"
            + ("" if lost.all() else ", or pass missing='drop' to leave these peaks out"),
        )
    end = peaks["chrom"].map({c: lengths[n] for c, n in names.items()})
    beyond = peaks.index[(~lost & (peaks["end"] > end)).to_numpy()]
    if len(beyond):
        raise GenomeError(
            path.name,
            found=f"{len(beyond)} of {len(peaks)} peaks lie beyond the end of their chromosome, e.g. {list(beyond[:5])}",
            fix="give the build that the fragments were aligned to; peaks that were widened over an end must be cut or removed",
        )
    return names, {
        "fasta": path.name,
        "genome": here or there or "",
        "n_peaks": int((~lost).sum()),
        "n_dropped": int(lost.sum()),
        "dropped": dropped,
        "renamed": [c for c, n in names.items() if c != n],
    }


def _of_peaks(genome: Any, peaks: pd.DataFrame, names: dict[str, str], *, k: int) -> sparse.csr_matrix:
    """Count the k-mers of every peak; a peak on no chromosome of the file has none."""
    parts, waiting, n_bases = [], [], 0
    for chrom, start, end in peaks.itertuples(index=False):
        waiting.append(str(genome[names[chrom]][start:end]) if chrom in names else "")
        n_bases += len(waiting[-1])
        if n_bases >= _CHUNK_BASES:
            parts.append(count_kmers(waiting, k))
            waiting, n_bases = [], 0
    parts.append(count_kmers(waiting, k))
    return sparse.vstack(parts, format="csr", dtype=np.int32)


def _chunks(matrix: Any, *, where: str) -> Iterator[sparse.csr_matrix]:
    """Counts of some cells at a time, as int64, after checking that they are counts."""
    for begin in range(0, matrix.shape[0], _CHUNK_CELLS):
        rows = sparse.csr_matrix(matrix[begin : begin + _CHUNK_CELLS])
        values = rows.data
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NonFiniteError(f"adata.{where}", found="NaN or infinite values", fix="replace or remove them")
        if values.dtype.kind != "b" and (values < 0).any():
            raise NegativeValueError(
                f"adata.{where}", found=f"values down to {values.min():.4g}", fix="give raw counts"
            )
        if values.dtype.kind == "f" and (values != np.rint(values)).any():
            fix = "pass layer= with the raw counts: weights, TF-IDF values and logarithms cannot be summed over peaks"
            raise NotCountsError(
                f"adata.{where}", found=f"values such as {values[values != np.rint(values)][0]:.4g}", fix=fix
            )
        yield rows.astype(np.int64)
