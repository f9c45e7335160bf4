"""Roles of features: what a matrix can be, and what is derived of one."""

from __future__ import annotations

__all__ = ["MEASURED", "MODALITIES", "NICHE"]

MEASURED = ("rna", "atac", "protein")
"""Roles that a modality can play."""
NICHE = "niche"
"""Role of what a cell's neighbours have: mean magnitudes of one modality."""
MODALITIES = (*MEASURED, NICHE)
"""All roles, in the order of their features."""
