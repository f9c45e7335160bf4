"""Every name that cellxpert reads or writes in ``obs``, ``obsm`` and ``uns``: none is typed twice."""

from __future__ import annotations

__all__ = [
    "EXPERTS",
    "INFO",
    "LABEL",
    "LATENT",
    "PERTURBED",
    "SETUP",
    "confidence_key",
    "perturbed_latent_key",
    "proba_key",
]

INFO = "cellxpert_info"
"""``uns`` entry with the setup and one record per call. Not ``"cellxpert"``: ``sc.pp.neighbors(key_added="cellxpert")`` writes there."""
SETUP = "setup"
"""Entry of ``uns[INFO]`` that :meth:`cellxpert.CellxPert.setup_mudata` writes."""
LATENT = "X_cellxpert"
"""Default ``obsm`` key of the cell vectors, float32 of shape (n_cells, width)."""
LABEL = "cellxpert_label"
"""Default ``obs`` key of predicted labels, categorical."""
EXPERTS = "cellxpert_experts"
"""Default ``obsm`` key of how much each expert reads of a cell, float32 of shape (n_cells, n_experts)."""
PERTURBED = "cellxpert_perturbed"
"""Default ``layers`` key of predicted expression, and name of the record of a prediction."""


def perturbed_latent_key(key: str = PERTURBED) -> str:
    """Name of the ``obsm`` array with the cell vectors that belong to ``layers[key]``.

    >>> perturbed_latent_key()
    'X_cellxpert_perturbed'
    """
    return f"X_{key}"


def _stem(key: str) -> str:
    return key.removesuffix("_label")


def confidence_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column that holds the confidence of the labels in ``obs[key]``.

    >>> confidence_key()
    'cellxpert_confidence'
    """
    return f"{_stem(key)}_confidence"


def proba_key(key: str = LABEL) -> str:
    """Name of the ``obsm`` array that holds the class probabilities behind ``obs[key]``.

    >>> proba_key()
    'cellxpert_proba'
    """
    return f"{_stem(key)}_proba"
