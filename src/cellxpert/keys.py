"""Every name that cellxpert reads or writes in ``obs``, ``obsm`` and ``uns``: none is typed twice."""

from __future__ import annotations

__all__ = [
    "EXPERTS",
    "IMPUTED",
    "INFO",
    "INTEGRATED",
    "LABEL",
    "LATENT",
    "PERTURBED",
    "SETUP",
    "confidence_key",
    "ontology_key",
    "ood_key",
    "perturbed_latent_key",
    "proba_key",
    "reason_key",
    "set_size_key",
    "sets_key",
    "tissue_confidence_key",
    "tissue_key",
    "uncertainty_key",
]

INFO = "cellxpert_info"
"""``uns`` entry with the setup and one record per call. Not ``"cellxpert"``: ``sc.pp.neighbors(key_added="cellxpert")`` writes there."""
SETUP = "setup"
"""Entry of ``uns[INFO]`` that :meth:`cellxpert.CellxPert.setup_mudata` writes."""
LATENT = "X_cellxpert"
"""Default ``obsm`` key of the cell vectors, float32 of shape (n_cells, width)."""
INTEGRATED = "X_cellxpert_integrated"
"""Default ``obsm`` key of places in the integrated space, float32 of shape (n_cells, n_coordinates)."""
IMPUTED = "cellxpert_imputed"
"""Default ``layers`` key of what a modality is expected to be."""
LABEL = "cellxpert_label"
"""Default ``obs`` key of predicted labels, categorical."""
EXPERTS = "cellxpert_experts"
"""Default ``obsm`` key of how much each expert reads of a cell, float32 of shape (n_cells, n_experts); rows sum to 1."""
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


def reason_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column that says why a cell has no label in ``obs[key]``, or that it has one ("labelled").

    >>> reason_key()
    'cellxpert_reason'
    """
    return f"{_stem(key)}_reason"


def ood_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column with the out-of-distribution score behind ``obs[key]``; higher is stranger.

    >>> ood_key()
    'cellxpert_ood'
    """
    return f"{_stem(key)}_ood"


def uncertainty_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column with one doubt for both reasons, confidence and distance, behind ``obs[key]``.

    >>> uncertainty_key()
    'cellxpert_uncertainty'
    """
    return f"{_stem(key)}_uncertainty"


def ontology_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column with the ontology term of the labels in ``obs[key]``.

    >>> ontology_key()
    'cellxpert_label_ontology_term_id'
    """
    return f"{key}_ontology_term_id"


def tissue_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column with the tissue of cells, beside their labels in ``obs[key]``.

    >>> tissue_key()
    'cellxpert_tissue'
    """
    return f"{_stem(key)}_tissue"


def tissue_confidence_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column that holds the confidence of the tissues.

    >>> tissue_confidence_key()
    'cellxpert_tissue_confidence'
    """
    return f"{tissue_key(key)}_confidence"


def set_size_key(key: str = LABEL) -> str:
    """Name of the ``obs`` column that counts the labels in each cell's conformal set.

    >>> set_size_key()
    'cellxpert_set_size'
    """
    return f"{_stem(key)}_set_size"


def sets_key(key: str = LABEL) -> str:
    """Name of the ``obsm`` array with the conformal sets behind ``obs[key]``, bool of shape (n_cells, n_classes).

    >>> sets_key()
    'cellxpert_sets'
    """
    return f"{_stem(key)}_sets"
