"""Data to start with: real cells that need no network, and synthetic cells whose truth is known."""

from __future__ import annotations

from cellxpert.datasets.pbmc68k import pbmc68k
from cellxpert.datasets.synthetic import synthetic

__all__ = ["pbmc68k", "synthetic"]
