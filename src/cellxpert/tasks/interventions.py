"""What a user asks to be done to genes, in one form: names, kinds and doses, checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from cellxpert.data.conditions import DOSES, SEPARATOR, Kind, genes_of
from cellxpert.data.obs import closest
from cellxpert.errors import GeneError, InterventionError

__all__ = ["Request", "parse"]

_EXAMPLES = "'knockout', 'knockdown', ('knockdown', 0.3), 'overexpression', ('fold', 2.0) or ('bin', 40)"
_USUAL: Mapping[str, float] = {"knockout": 0.0, "knockdown": 0.2, "overexpression": 2.0}
"""What a gene's expression is multiplied by, where no amount is given."""


MAX_FOLD = 1000.0
"""Largest factor that a gene's expression can be multiplied by."""


@dataclass(frozen=True)
class Request:
    """One perturbation: all of its genes are set in the same cell."""

    name: str
    """Genes in the order in which they were written; what stands for no gene is left out."""
    genes: tuple[str, ...]
    """Sorted."""
    fold: tuple[float, ...]
    """What each gene's expression is multiplied by; NaN where a bin is given."""
    bins: tuple[int | None, ...]
    """Bin that a gene is set to, whatever it was."""

    @property
    def condition(self) -> str:
        """The name whatever the order: what :class:`cellxpert.tasks.reference.Observed` calls cells in which this was done."""
        return SEPARATOR.join(sorted(self.name.split(SEPARATOR)))

    def doses(self, kind: Kind) -> tuple[float, ...]:
        """Change of each gene on the scale that effects are learned on: -1 takes it away, 1 doubles it.

        ``kind`` is the registered one: asking for it gives the dose that the training cells had, and less of it in proportion.
        NaN for a gene that is set to a bin.
        """
        scale = DOSES[kind] / _plain(_USUAL[kind])
        return tuple(_plain(f) * scale if (f < 1) == (_USUAL[kind] < 1) else _plain(f) for f in self.fold)

    def is_usual(self, kind: Kind) -> bool:
        """Say whether all genes are set as in cells of which ``kind`` is registered."""
        return self.bins == (None,) * len(self.genes) and self.fold == (_USUAL[kind],) * len(self.genes)


def _plain(fold: float) -> float:
    return fold - 1 if fold < 1 else math.log2(fold)


def parse(genes: Any, *, known: Collection[str], default: str, n_bins: int) -> tuple[Request, ...]:
    """Read what :meth:`cellxpert.CellxPert.perturb` takes.

    Parameters
    ----------
    genes
        A name (``"JAK2"``, or ``"JAK2+STAT1"`` for both together), a mapping of genes that are set together to what is done
        to each, or several of these: a screen. The entries of a set are sorted.
    known
        Genes that can be set.
    default
        What is done to a gene of which nothing is said.
    n_bins
        Number of bins.

    Returns
    -------
    One request per perturbation, in the order given and named as it was written.

    Raises
    ------
    GeneError
        If a gene is unknown; the closest known name is offered.
    InterventionError
        If nothing is asked for, a kind or dose means nothing, a gene is set twice, or a perturbation occurs twice.
    """
    if isinstance(genes, str | Mapping):
        entries = [genes]
    elif isinstance(genes, Iterable):
        entries = sorted(genes) if isinstance(genes, set | frozenset) else list(genes)
    else:
        raise InterventionError("perturb(genes)", found=repr(genes), fix="give a name, a mapping, or a list of these")
    if not entries or any(isinstance(entry, str | Mapping) and not entry for entry in entries):
        raise InterventionError("perturb(genes)", found=repr(genes), fix="name at least one gene")
    requests = tuple(_request(entry, known=known, default=default, n_bins=n_bins) for entry in entries)
    if twice := sorted(name for name, n in Counter(r.condition for r in requests).items() if n > 1):
        raise InterventionError("perturb(genes)", found=f"{twice[:5]} asked for twice", fix="list each once")
    return requests


def _request(entry: Any, *, known: Collection[str], default: str, n_bins: int) -> Request:
    if isinstance(entry, str):
        parts = [entry] if entry in known else [p.strip() for p in entry.split(SEPARATOR)]
        if len(set(parts)) < len(parts):
            raise InterventionError("perturb(genes)", found=f"a gene twice in {entry!r}", fix="name each gene once")
        kept = parts if len(parts) == 1 else genes_of(entry, "")
        wanted: dict[str, Any] = dict.fromkeys((p for p in parts if p in kept), default)
        if not wanted:
            raise InterventionError("perturb(genes)", found=f"no gene in {entry!r}", fix="name at least one gene")
    elif isinstance(entry, Mapping):
        wanted = dict(entry)
    else:
        found = f"{entry!r}, a {type(entry).__name__}"
        raise InterventionError("perturb(genes)", found=found, fix="give names of genes, or mappings from name to kind")
    for gene in wanted:
        if gene not in known:
            near = closest(str(gene), sorted(known))
            fix = f"did you mean {near!r}?" if near else f"use one of {sorted(known)[:5]} ..."
            raise GeneError(
                "perturb(genes)", found=f"{gene!r} is no gene that the model reads or was trained on", fix=fix
            )
    dose = {gene: _dose(gene, kind, n_bins=n_bins) for gene, kind in wanted.items()}
    usual = _USUAL[default], None
    name = SEPARATOR.join(g + ("" if dose[g] == usual else _suffix(kind)) for g, kind in wanted.items())
    order = tuple(sorted(wanted))
    return Request(name=name, genes=order, fold=tuple(dose[g][0] for g in order), bins=tuple(dose[g][1] for g in order))


def _suffix(kind: Any) -> str:
    """What of a perturbation's name says how a gene was set, where that is not the usual way: else it is named as its cells are."""
    return f"({kind})" if isinstance(kind, str) else f"({kind[0]} {kind[1]:g})"


def _dose(gene: str, kind: Any, *, n_bins: int) -> tuple[float, int | None]:
    if isinstance(kind, str) and kind in _USUAL:
        return _USUAL[kind], None
    pair = isinstance(kind, tuple | list) and len(kind) == 2 and isinstance(kind[0], str)
    if pair and isinstance(kind[1], Real) and not isinstance(kind[1], bool) and math.isfinite(kind[1]):
        what, amount = kind[0], float(kind[1])
        if what == "bin" and amount == int(amount) and 0 <= amount < n_bins:
            return math.nan, int(amount)
        if what == "fold" and 0 <= amount <= MAX_FOLD:
            return amount, None
        if what == "knockdown" and 0 <= amount < 1:
            return amount, None
    fix = f"use {_EXAMPLES}; a fold is at most {MAX_FOLD:g}, a bin less than {n_bins}"
    raise InterventionError(f"perturb({gene!r})", found=repr(kind), fix=fix)
