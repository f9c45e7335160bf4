"""The network: tensors in, tensors out; it never sees AnnData."""

from __future__ import annotations

from cellxpert.nn.network import Network

__all__ = ["Network"]
