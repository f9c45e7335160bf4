"""Labels as terms of the Cell Ontology: what they are called, what they are kinds of, and what follows for probabilities.

The ontology comes with the optional package ``cellxgene-ontology-guide`` and is read from disk, never from the network.
"""

from __future__ import annotations

from cellxpert.ontology.graph import CellOntology
from cellxpert.ontology.matching import match_labels
from cellxpert.ontology.rollup import BackedOff, back_off, label_targets, roll_up

__all__ = ["BackedOff", "CellOntology", "back_off", "label_targets", "match_labels", "roll_up"]
