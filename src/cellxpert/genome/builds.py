"""Genome builds: what an object says of its own, and which ones the places of its peaks allow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import pandas as pd
from anndata import AnnData

from cellxpert.errors import GenomeError
from cellxpert.genome.peaks import are_kmers, bare, parse_peaks

__all__ = ["BUILDS", "build_of_lengths", "genome_of", "known_build", "possible_builds", "require_same_genome"]

# fmt: off
_LENGTHS = {
    "hg38": (248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422,
             135086622, 133275309, 114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167,
             46709983, 50818468, 156040895, 57227415),
    "hg19": (249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022, 141213431, 135534747,
             135006516, 133851895, 115169878, 107349540, 102531392, 90354753, 81195210, 78077248, 59128983, 63025520,
             48129895, 51304566, 155270560, 59373566),
    "mm39": (195154279, 181755017, 159745316, 156860686, 151758149, 149588044, 144995196, 130127694, 124359700, 130530862,
             121973369, 120092757, 120883175, 125139656, 104073951, 98008968, 95294699, 90720763, 61420004, 169476592,
             91455967),
    "mm10": (195471971, 182113224, 160039680, 156508116, 151834684, 149736546, 145441459, 129401213, 124595110, 130694993,
             122082543, 120129022, 120421639, 124902244, 104043685, 98207768, 94987271, 90702639, 61431566, 171031299,
             91744698),
    "mm9":  (197195432, 181748087, 159599783, 155630120, 152537259, 149517037, 152524553, 131738871, 124076172, 129993255,
             121843856, 121257530, 120284312, 125194864, 103494974, 98319150, 95272651, 90772031, 61342430, 166650296,
             15902555),
}
# fmt: on
"""Bases of chromosomes 1, 2, ..., X, Y."""
BUILDS = MappingProxyType(
    {
        build: MappingProxyType(
            dict(zip([*map(str, range(1, len(lengths) - 1)), "X", "Y"], lengths, strict=True))  # X and Y come last
        )
        for build, lengths in _LENGTHS.items()
    }
)
"""Known builds: chromosome (without ``chr``) to its length in bases."""
_ALIASES = MappingProxyType(
    {
        "hg38": re.compile(r"grch38|hg38"),
        "hg19": re.compile(r"grch37|hg19|hs37|\bb37\b"),
        "mm39": re.compile(r"grcm39|mm39"),
        "mm10": re.compile(r"grcm38|mm10"),
        "mm9": re.compile(r"ncbim37|mgscv37|mm9(?!\d)"),
    }
)


def known_build(text: object) -> str | None:
    """Return the known build that a text names; None if it names none, or several.

    >>> known_build("GRCh38-2020-A"), known_build("mm10"), known_build("GRCh38_and_mm10"), known_build("GRCz11")
    ('hg38', 'mm10', None, None)
    """
    named = [build for build, pattern in _ALIASES.items() if pattern.search(str(text).casefold())]
    return named[0] if len(named) == 1 else None


def build_of_lengths(lengths: Iterable[tuple[str, int]]) -> str | None:
    """Return the known build whose chromosomes have these lengths (name and bases); None if some differ, or none is there."""
    given = {bare(str(name)): int(n) for name, n in lengths}
    for build, table in BUILDS.items():
        shared = [c for c in table if c in given]
        if shared and all(given[c] == table[c] for c in shared):
            return build
    return None


def possible_builds(names: Iterable[object]) -> tuple[str, ...]:
    """Return the known builds that nothing contradicts.

    A peak contradicts a build in which its chromosome (a number, X or Y) does not exist or ends before the peak begins. Peaks that run
    over an end were widened after they were called, and contradict nothing. Other contigs tell nothing.

    Parameters
    ----------
    names
        Names of peaks; those that are no places tell nothing.
    """
    table = parse_peaks(names)
    table = table[table["chrom"] != ""]
    last: dict[str, int] = {}
    for chrom, start in table.groupby("chrom")["start"].max().items():
        last[bare(str(chrom))] = max(int(start), last.get(bare(str(chrom)), 0))
    last = {c: start for c, start in last.items() if c.isdigit() or c in {"X", "Y"}}
    return tuple(b for b, lengths in BUILDS.items() if all(start < lengths.get(c, 0) for c, start in last.items()))


def genome_of(adata: AnnData, *, where: str = "adata") -> str | None:
    """Return the genome build of an object's peaks.

    What the object says counts: ``uns["genome"]``, one value in ``var["genome"]`` (10x Genomics files as scanpy and muon read them),
    the chromosomes' lengths in ``uns["reference_sequences"]`` (SnapATAC2), or the name of the file ``uns["files"]["genome"]`` (muon), if
    it names a known build. Otherwise it is the one known build that the
    peaks allow. K-mers have none: they are the same in all genomes.

    Parameters
    ----------
    adata
        Cells by peaks.
    where
        How messages call it.

    Returns
    -------
    ``"hg38"``, ``"hg19"``, ``"mm39"``, ``"mm10"`` or ``"mm9"``; another build as the object names it; None if it is not known.

    Raises
    ------
    GenomeError
        If peaks lie beyond the chromosomes of the build that the object names.
    """
    if are_kmers(adata.var_names):
        return None
    source, said = _said(adata)
    build, fits = known_build(said), possible_builds(adata.var_names)
    if build is None:
        return said or (fits[0] if len(fits) == 1 else None)
    if build not in fits:
        could = f"they could be of {' or '.join(fits)}" if fits else "they are of no build that is known here"
        raise GenomeError(
            f"{where}.{source}",
            found=f"{said!r}, but peaks lie beyond the chromosomes of {build}, e.g. {_beyond(adata.var_names, build)}; {could}",
            fix=f"correct {where}.{source}, or remove it if it is wrong"
            if fits
            else "remove peaks that are no places of the genome",
        )
    return build


def _said(adata: AnnData) -> tuple[str, str]:
    """Where an object names its genome, and the name; "" if it does not."""
    if isinstance(said := adata.uns.get("genome"), str) and said:
        return "uns['genome']", said
    if "genome" in adata.var:
        names = [str(n) for n in adata.var["genome"].dropna().unique() if str(n) not in {"", "nan", "NA"}]
        if len(names) == 1:
            return "var['genome']", names[0]
    table = adata.uns.get("reference_sequences")
    if isinstance(table, pd.DataFrame) and {"reference_seq_name", "reference_seq_length"} <= set(table.columns):
        build = build_of_lengths(zip(table["reference_seq_name"], table["reference_seq_length"], strict=True))
        return "uns['reference_sequences']", build or ""
    files = adata.uns.get("files")
    if isinstance(files, Mapping) and (
        build := known_build(str(files.get("genome", "")).replace("\\", "/").split("/")[-1])
    ):
        return "uns['files']['genome']", build
    return "", ""


def _beyond(names: Iterable[object], build: str) -> list[str]:
    """Up to five peaks that a build has no place for."""
    table = parse_peaks(names)
    chroms = [bare(c) for c in table["chrom"]]
    odd = [
        (c.isdigit() or c in {"X", "Y"}) and start >= BUILDS[build].get(c, 0)
        for c, start in zip(chroms, table["start"], strict=True)
    ]
    return list(table.index[odd][:5])


def require_same_genome(
    here: str | None, there: str | None, *, names: Iterable[object], known: Iterable[object]
) -> str | None:
    """Refuse peaks of another build than a model's.

    Parameters
    ----------
    here, there
        The build of an object's peaks and of the model's, as :func:`genome_of` gives them; None where it is not known.
    names, known
        Names of the object's peaks and of the model's, which say what the builds can be where they are not known.

    Returns
    -------
    What is worth a warning: builds with other names, of which nothing else is known. Else None.

    Raises
    ------
    GenomeError
        If they cannot be of one build.
    """
    ours, theirs = _candidates(here, names), _candidates(there, known)
    if ours and theirs and not set(ours) & set(theirs):
        raise GenomeError(
            "features of atac",
            found=f"peaks of {' or '.join(ours)} here, of {' or '.join(theirs)} in the model",
            fix=f"count fragments that were aligned to {theirs[0]} in the model's peaks, or lift the peaks over to it; "
            "of other peaks or another build, cellxpert.peaks_to_kmers makes features that are comparable",
        )
    if here and there and here.casefold() != there.casefold() and not (known_build(here) and known_build(there)):
        return f"atac: peaks of the genome {here!r} here, of {there!r} in the model; they were matched by place"
    return None


def _candidates(genome: str | None, names: Iterable[object]) -> tuple[str, ...]:
    """Known builds that peaks may be of; none if their genome is another one."""
    if genome is None:
        return possible_builds(names)
    build = known_build(genome)
    return () if build is None else (build,)
