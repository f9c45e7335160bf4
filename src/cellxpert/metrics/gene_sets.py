"""Gene sets as an embedding of genes, so that targets that no cell measures have one too."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from cellxpert.errors import MetricError
from cellxpert.metrics.checks import unit_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["gene_set_embedding", "read_gmt"]


def read_gmt(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read gene sets from a GMT file: per line a name, a description and genes, separated by tabs.

    Parameters
    ----------
    path
        The file, plain or compressed (``.gz``). Weights after a comma (Enrichr's ``"STAT1,1.0"``) are dropped.

    Returns
    -------
    dict
        Name -> genes, in the order of the file.

    Raises
    ------
    MetricError
        If the file is no GMT or names a set twice.
    """
    path = Path(path)
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    sets: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, *fields = line.split("\t")
        if not fields or name in sets:
            found = f"line {number}: " + (f"{name!r} again" if name in sets else "no tab")
            raise MetricError(str(path), found=found, fix="give a GMT file")
        genes = (field.partition(",")[0].strip() for field in fields[1:])
        sets[name] = tuple(dict.fromkeys(gene for gene in genes if gene))
    return sets


def gene_set_embedding(
    gene_sets: Mapping[str, Collection[str]],
    genes: Sequence[str],
    *,
    n_components: int | None = None,
    min_size: int = 2,
    max_size: int | None = 500,
) -> np.ndarray:
    """Embed genes by the sets that they belong to, so that genes of the same rare sets are alike.

    A gene's row has, for each of its sets, log(genes in any set / genes in the set), and length 1: the dot product of two rows is
    the cosine of the genes' weighted memberships. Deterministic.

    Parameters
    ----------
    gene_sets
        Name -> genes.
    genes
        Genes to embed, without duplicates; measured or not.
    n_components
        None: coordinates that keep all those cosines, as many as genes to embed at most. A number: the leading singular vectors of
        all genes of the sets, rows made to length 1 again; genes can then be alike without a set in common.
    min_size, max_size
        Sets with fewer or more genes are not used: the largest say little.

    Returns
    -------
    numpy.ndarray
        Genes x dimensions; zeros for a gene that is in no set.

    Raises
    ------
    MetricError
        If no set is left, a gene is there twice, or there are fewer sets or genes than components.
    """
    if len(set(genes)) < len(genes) or not len(genes):
        raise MetricError("genes", found="a name twice, or none", fix="give each gene once")
    used = [set(members) for members in gene_sets.values()]
    used = [members for members in used if min_size <= len(members) <= (max_size or len(members))]
    if not used:
        raise MetricError(
            "gene_sets", found=f"no set of {min_size} to {max_size} genes", fix="give other sets or sizes"
        )
    known = sorted(set().union(*used))
    place = {gene: i for i, gene in enumerate(known)}
    # sorted: the order of a Python set of names changes from run to run
    columns = [sorted(place[gene] for gene in members) for members in used]
    idf = np.log(len(known) / np.array([len(members) for members in used]))
    shape = (len(known), len(used))
    rows, of_set = np.concatenate(columns), np.repeat(np.arange(len(used)), [len(c) for c in columns])
    incidence = _unit(sp.csr_array((idf[of_set], (rows, of_set)), shape=shape))
    wanted = np.array([place.get(gene, -1) for gene in genes])
    if n_components is None:
        asked = incidence[np.maximum(wanted, 0)].toarray() * (wanted >= 0)[:, None]
        # principal axes of the rows: rotates them, and drops what all of them lack
        left, values, _ = np.linalg.svd(asked, full_matrices=False)
        kept = values > 1e-9 * values[0]
        kept[0] = True
        embedding = (left * values)[:, kept] * asked.any(axis=1)[:, None]  # rounding must give no direction
        return _signed(embedding)
    return _leading(incidence, n_components)[np.maximum(wanted, 0)] * (wanted >= 0)[:, None]


def _leading(incidence: sp.csr_array, n_components: int) -> np.ndarray:
    from scipy.sparse.linalg import svds

    if not 1 <= n_components < min(incidence.shape):
        found = f"{n_components} of {incidence.shape[0]} genes and {incidence.shape[1]} sets"
        raise MetricError("metrics.gene_set_embedding(n_components=)", found=found, fix="ask for fewer")
    # a fixed start, or ARPACK would draw one
    left, values, _ = svds(incidence, k=n_components, v0=np.ones(min(incidence.shape)))
    order = np.argsort(-values, kind="stable")
    scores = _signed(left[:, order] * values[order])
    return unit_rows(np.where(np.abs(scores) > 1e-9, scores, 0))


def _unit(matrix: sp.csr_array) -> sp.csr_array:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sp.csr_array(sp.diags_array(1 / np.where(norms > 0, norms, 1)) @ matrix)


def _signed(scores: np.ndarray) -> np.ndarray:
    """Of each component, make the largest absolute value positive: singular vectors have no sign of their own."""
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    return scores * np.where(largest < 0, -1, 1)
