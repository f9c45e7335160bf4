"""One transformer over single-cell and spatial multi-omics.

>>> import cellxpert as cx

Public names are loaded when they are first used, so that importing cellxpert costs neither torch nor matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellxpert import config, datasets, errors, metrics, ontology, pl, steering
    from cellxpert.genome.kmers import peaks_to_kmers
    from cellxpert.model import CellxPert
    from cellxpert.tasks.integrate import ImputeResult
    from cellxpert.tasks.response import PerturbResult

    __version__: str

__all__ = [
    "CellxPert",
    "ImputeResult",
    "PerturbResult",
    "__version__",
    "config",
    "datasets",
    "errors",
    "metrics",
    "ontology",
    "peaks_to_kmers",
    "pl",
    "steering",
]
_PLACES = {
    "CellxPert": "cellxpert.model",
    "ImputeResult": "cellxpert.tasks.integrate",
    "PerturbResult": "cellxpert.tasks.response",
    "peaks_to_kmers": "cellxpert.genome.kmers",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    if name == "__version__":
        from importlib.metadata import version

        return version("cellxpert")
    from importlib import import_module

    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    return import_module(f"cellxpert.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
