"""Pictures: read an AnnData, a MuData, a result or arrays, draw, return the Axes; nothing is written to the object.

Every function takes ``ax`` (draw there), ``show`` (open a window; never otherwise), ``save`` (write a file) and ``return_fig``
(return the Figure instead of the Axes).
"""

from __future__ import annotations

from cellxpert.pl.calibration import calibration
from cellxpert.pl.colors import label_colors
from cellxpert.pl.confusion import confusion_matrix
from cellxpert.pl.dotplot import label_dotplot
from cellxpert.pl.embedding import embedding
from cellxpert.pl.experts import expert_routing
from cellxpert.pl.history import training_history
from cellxpert.pl.overview import annotation_overview
from cellxpert.pl.perturbation_chains import trace, trajectory
from cellxpert.pl.perturbation_effects import top_genes, volcano
from cellxpert.pl.perturbation_similarity import similarity
from cellxpert.pl.rejection import novelty_curve, risk_coverage
from cellxpert.pl.report import annotation_report
from cellxpert.pl.spatial import tissue
from cellxpert.pl.spatial_statistics import neighborhood_enrichment, variogram

__all__ = [
    "annotation_overview",
    "annotation_report",
    "calibration",
    "confusion_matrix",
    "embedding",
    "expert_routing",
    "label_colors",
    "label_dotplot",
    "neighborhood_enrichment",
    "novelty_curve",
    "risk_coverage",
    "similarity",
    "tissue",
    "top_genes",
    "trace",
    "training_history",
    "trajectory",
    "variogram",
    "volcano",
]
