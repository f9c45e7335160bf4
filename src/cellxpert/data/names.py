"""Names of features: their Ensembl ids, and checks that they stand for genes, peaks or proteins, each for one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
from anndata import AnnData

from cellxpert.data.obs import MISSING_TEXT
from cellxpert.errors import DuplicateNamesError, FeatureNameError, TransposedError
from cellxpert.genome.peaks import are_kmers, place_keys

__all__ = ["check_names", "ensembl_ids"]

_ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6})G\d{6,}(\.\d+)?$")
"""Ensembl gene id of any species, with or without version."""
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id", "gene_ids-0")
_BARCODE = re.compile(r"(?:^|[^A-Za-z])[ACGTN]{14,}(?:[^A-Za-z]|$)")
_PEAK = re.compile(r"^(?:chr\w{1,20}[:_-]\d+[-_]\d+|[\w.]{1,25}:\d+-\d+)$")
"""What is certainly no gene: a name such as ``A_1_2`` may be one, though as a peak it has a place (``genome.peaks``)."""
_ANTIBODY = re.compile(r"_TotalSeq[ABCD]?\b|^(?:ADT|AB)[_-]|[_-](?:ADT|protein|TotalSeq[ABCD]?)$", re.IGNORECASE)
_PROTEINS = re.compile(r"^(?:CD(?:3|8|11[BC]|16|25|45|45R[AO]|49F|56|57|62L|66B|127)|HLA-DR|IG[DM])$", re.IGNORECASE)
"""Usual names of antibodies that are symbols of no gene."""
_GENES = ("Gene Expression", "gex", "GEX", "nan")
_NO_GENES = ("antibody", "antigen", "peak", "crispr", "multiplexing", "custom", "adt", "hto", "atac")
"""How ``feature_types`` begins, in lower case, where it is certain that these are no genes."""
_GENOME = re.compile(r"^(GRC[hm]\d{2}|hg\d{2}|mm\d{1,2})_+")
_NUMBER = re.compile(r"^\d+(\.\d+)?$")
_FLY = re.compile(r"^(?:CG\d{4,}|FBgn\d+)$")
_HOUSEHOLD = frozenset({"ACTB", "B2M", "EEF1A1", "FTL", "GAPDH", "MALAT1", "PTPRC", "RPLP0", "RPS27", "TMSB4X", "UBC"})
"""Genes that nearly every data set has; as names of cells they betray a transposed object."""
_FEW = 3
_MIXED = 0.05
"""Least share of each of two kinds of names that are called mixed."""


_REPEATED = 0.01
"""Share of repeated Ensembl ids in a column that is usual: EPRS and QARS have one in some annotations."""


def ensembl_ids(adata: AnnData) -> tuple[str, np.ndarray]:
    """Return where the Ensembl ids of features are, and the ids without versions ("" where there is none).

    Of ``var_names`` and the usual columns of ``var`` (``gene_ids``, ``ensembl_id``, ...), the first with most ids counts.
    """
    sources = {"var_names": adata.var_names} | {f"var[{c!r}]": adata.var[c] for c in _ID_COLUMNS if c in adata.var}
    found = {source: _without_version(values) for source, values in sources.items()}
    best = max(found, key=lambda source: sum(map(bool, found[source])))
    return best, np.asarray(found[best], dtype=str)


def _without_version(values: Iterable[object]) -> list[str]:
    return [v.split(".")[0] if _ENSEMBL.match(v) else "" for v in map(str, values)]


def check_names(adata: AnnData, role: str, *, where: str) -> list[str]:
    """Check that features have names, one each, and that cells and features are not exchanged.

    Returns
    -------
    Findings that are worth a warning: antibodies or peaks among genes, names of several kinds or organisms, Ensembl ids
    that several features have, peaks without a place.

    Raises
    ------
    TransposedError
        If names of cells look like features, or names of features like barcodes.
    FeatureNameError
        If names of features are numbers or missing.
    DuplicateNamesError
        If names are the same Ensembl id in several versions, or the same place in several spellings.
    """
    features, cells = adata.var_names.map(str), adata.obs_names.map(str)
    if _looks_transposed(cells, features):
        found = f"cells named {list(cells[:3])}, features named {list(features[:3])}"
        raise TransposedError(where, found=found, fix=f"use {where}.T if cells are columns")
    _require_names(features, where)
    if role == "atac":
        return [] if are_kmers(features) else _odd_peaks(features, where)
    notes = _repeated_ids(adata, features, where)
    if role == "rna":
        notes += _foreign_features(adata, features, where) + _mixed(features, ensembl_ids(adata)[1], where)
    return notes


def _looks_transposed(cells: pd.Index, features: pd.Index) -> bool:
    """Whether cells are named like features and features are not, or the other way round with barcodes."""
    if _share(features, _BARCODE) > 0.5:
        return _share(cells, _BARCODE) <= 0.5
    for pattern in (_ENSEMBL, _PEAK):
        if _share(cells, pattern) > 0.5:
            return _share(features, pattern) <= 0.5
    known = len(_HOUSEHOLD.intersection(cells.str.upper())) >= _FEW
    return known and not _HOUSEHOLD.intersection(features.str.upper()) and _share(features, _ENSEMBL) <= 0.5


def _share(names: pd.Index, pattern: re.Pattern[str]) -> float:
    return float(np.mean(_are(names, pattern))) if len(names) else 0.0


def _are(names: pd.Index, pattern: re.Pattern[str]) -> np.ndarray:
    return np.array([bool(pattern.search(n)) for n in names], dtype=bool)


def _require_names(features: pd.Index, where: str) -> None:
    fix = f"{where}.var_names = {where}.var[<column of gene symbols or Ensembl ids>].astype(str)"
    numbers = _are(features, _NUMBER)
    if 2 * numbers.sum() >= len(features):
        found = f"{numbers.sum()} of {len(features)} names are numbers, e.g. {list(features[numbers][:3])}"
        raise FeatureNameError(f"{where}.var_names", found=found, fix=fix)
    missing = features.str.strip().isin(sorted(MISSING_TEXT))
    if missing.any() and not _are(features, _FLY).any():  # nan, nanchung, is a gene of the fly
        names = list(features[missing])
        found = f"{len(names)} names are missing: {names[:5]}"
        fix = (
            f"name these features, or remove them: {where}[:, ~{where}.var_names.astype(str).isin({names[:5]})].copy()"
        )
        raise FeatureNameError(f"{where}.var_names", found=found, fix=fix)


def _odd_peaks(features: pd.Index, where: str) -> list[str]:
    """Peaks whose names are not places on a chromosome; one place in two spellings is an error."""
    places = pd.Index(place_keys(features))
    twice = (places != "") & places.duplicated(keep=False)
    if twice.any():
        raise DuplicateNamesError(
            f"{where}.var_names",
            found=f"{places[twice].nunique()} places have several peaks, e.g. {list(features[places == places[twice][0]])}",
            fix="keep one peak of each place, or sum their columns",
        )
    odd = features[places == ""]
    if not len(odd):
        return []
    return [
        f"{where}: {len(odd)} of {len(features)} peaks are not named chr:start-end, chr-start-end or chr_start_end, "
        f"e.g. {list(odd[:5])}; those of other objects are matched by place, so these may match nothing"
    ]


def _repeated_ids(adata: AnnData, features: pd.Index, where: str) -> list[str]:
    """One Ensembl id for several features: an error among the names; in a column, it does not tell them apart."""
    bare = pd.Index(_without_version(features))
    twice = (bare != "") & bare.duplicated(keep=False)
    if twice.any():
        raise DuplicateNamesError(
            f"{where}.var_names",
            found=f"{bare[twice].nunique()} Ensembl ids occur in several versions, e.g. {sorted(features[twice])[:5]}",
            fix="keep one version of each, or sum their columns",
        )
    source, ids = ensembl_ids(adata)
    given = pd.Index(ids)
    twice = (given != "") & given.duplicated(keep=False)
    if twice.sum() <= _REPEATED * (given != "").sum():
        return []
    pairs = sorted(zip(given[twice], features[twice], strict=True))[:5]
    return [
        f"{where}.{source}: {given[twice].nunique()} Ensembl ids stand for several features, e.g. {pairs}; these features "
        "match those of other objects by name only"
    ]


def _foreign_features(adata: AnnData, features: pd.Index, where: str) -> list[str]:
    """Antibodies or peaks in the RNA matrix."""
    foreign = _are(features, _ANTIBODY) | _are(features, _PEAK)
    proteins = _are(features, _PROTEINS)
    if proteins.sum() >= _FEW:  # one or two may be symbols of another organism or annotation
        foreign |= proteins
    if "feature_types" in adata.var:
        types = adata.var["feature_types"].astype(str).str
        genes = types.startswith(_GENES).to_numpy(dtype=bool)
        # without a known word for genes, all that is not known to be something else may be genes
        foreign |= ~genes if genes.any() else types.lower().str.startswith(_NO_GENES).to_numpy(dtype=bool)
    if not foreign.any():
        return []
    examples = list(features[foreign][:5])
    return [
        f"{where}: {int(foreign.sum())} of {len(features)} features of the RNA matrix are no genes, e.g. {examples}; "
        "put antibodies and peaks into modalities of their own"
    ]


def _mixed(features: pd.Index, ids: np.ndarray, where: str) -> list[str]:
    """Genes of two organisms, or symbols among Ensembl ids."""
    few = _MIXED * len(features)
    genomes = Counter(hit.group() for f in features if (hit := _GENOME.match(f)))
    if genomes.total() >= few and genomes:
        examples = [next(f for f in features if f.startswith(genome)) for genome in sorted(genomes)]
        return [
            f"{where}: {genomes.total()} of {len(features)} names begin with a genome, e.g. {examples[:5]}; keep the genes "
            "of one organism and strip the prefix, or they match those of no other object"
        ]
    kinds = Counter(hit.group(1) for i in ids if (hit := _ENSEMBL.match(i)))
    many = {kind for kind, n in kinds.items() if n >= few}
    if len(many) > 1:
        examples = [next(str(i) for i in ids if i.startswith(f"{kind}G")) for kind in sorted(many)]
        return [f"{where}: Ensembl ids of {len(many)} organisms, e.g. {examples}; keep the genes of one organism"]
    return _mixed_kinds(features, ids, where)


def _mixed_kinds(features: pd.Index, ids: np.ndarray, where: str) -> list[str]:
    named = _are(features, _ENSEMBL)
    other = ~(named | _are(features, _ANTIBODY) | _are(features, _PEAK))
    # a column of ids tells what the symbols are
    if min(named.sum(), other.sum()) < _MIXED * len(features) or not named.any() or (ids != "").sum() > named.sum():
        return []
    return [
        f"{where}: {int(named.sum())} of {len(features)} names are Ensembl ids and the others are not, e.g. "
        f"{[*features[named][:2], *features[other][:2]]}; genes named differently elsewhere match nothing, so give all "
        "symbols or all ids, or add the ids as var['gene_ids']"
    ]
