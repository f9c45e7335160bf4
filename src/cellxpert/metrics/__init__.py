"""Scores as pure functions of arrays: how right labels, shared spaces and effects of perturbations are, and how far they can be trusted."""

from __future__ import annotations

from cellxpert.metrics import baselines
from cellxpert.metrics.annotation import (
    accuracy,
    annotation_scores,
    confusion,
    kappa,
    macro_f1,
    median_f1,
    per_class,
    weighted_f1,
)
from cellxpert.metrics.calibration import aurc, brier, ece, ece_floor, nll, reliability, risk_coverage, unseen_auroc
from cellxpert.metrics.causal import ancestor_leak, descendant_auroc
from cellxpert.metrics.gene_sets import gene_set_embedding, read_gmt
from cellxpert.metrics.hierarchy import error_distance, hierarchical_f1, hierarchical_scores, within_branch_accuracy
from cellxpert.metrics.integration import foscttm, imputation_scores, integration_scores, knn_transfer
from cellxpert.metrics.perturbation import (
    centroid_accuracy,
    de_overlap,
    discrimination_chance,
    discrimination_score,
    energy_distance,
    mae,
    mse,
    pearson_delta,
    rmse,
    systematic_variation,
)
from cellxpert.metrics.pseudobulk import (
    bootstrap_interval,
    centroids,
    noise_ceiling,
    perturbed_mean,
    t_scores,
    target_mask,
    top_genes,
)
from cellxpert.metrics.spatial import neighborhood_correlation, variogram

__all__ = [
    "ancestor_leak",
    "descendant_auroc",
    "accuracy",
    "annotation_scores",
    "aurc",
    "baselines",
    "bootstrap_interval",
    "brier",
    "centroid_accuracy",
    "centroids",
    "confusion",
    "de_overlap",
    "discrimination_chance",
    "discrimination_score",
    "ece",
    "ece_floor",
    "energy_distance",
    "error_distance",
    "foscttm",
    "gene_set_embedding",
    "hierarchical_f1",
    "hierarchical_scores",
    "imputation_scores",
    "integration_scores",
    "kappa",
    "knn_transfer",
    "macro_f1",
    "mae",
    "median_f1",
    "mse",
    "neighborhood_correlation",
    "nll",
    "noise_ceiling",
    "pearson_delta",
    "per_class",
    "perturbed_mean",
    "read_gmt",
    "reliability",
    "risk_coverage",
    "rmse",
    "systematic_variation",
    "t_scores",
    "target_mask",
    "top_genes",
    "unseen_auroc",
    "variogram",
    "weighted_f1",
    "within_branch_accuracy",
]
