"""Names of the conditions of perturbed cells, and what they say was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["DOSES", "Kind", "genes_of"]

Kind = Literal["knockout", "knockdown", "overexpression"]
DOSES: Mapping[str, float] = {"knockout": -1.0, "knockdown": -1.0, "overexpression": 1.0}
"""Dose of a registered condition, on the scale of the effects that are learned from it: -1 takes a gene away, 1 doubles it."""
SEPARATOR = "+"
"""Between the genes of a condition that has several."""
_CONTROL_PARTS = frozenset({"control", "ctrl", "non-targeting", "nt", "nontargeting"})
"""Parts of a combined name that stand for no gene (``"GATA1+ctrl"``)."""


def genes_of(condition: str, control: str) -> tuple[str, ...]:
    """Return the genes of a condition; none for the control.

    >>> genes_of("KLF1+GATA1", "control"), genes_of("KLF1+ctrl", "control"), genes_of("control", "control")
    (('GATA1', 'KLF1'), ('KLF1',), ())
    """
    if condition == control:
        return ()
    parts = [part.strip() for part in condition.split(SEPARATOR)]
    return tuple(sorted({p for p in parts if p and p != control and p.lower() not in _CONTROL_PARTS}))
