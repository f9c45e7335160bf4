"""Scores of predicted perturbations, by ``cellxpert.metrics``, whose tests compare them with cell-eval, pertpy and plain loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from cellxpert import metrics

__all__ = ["Panel", "auroc", "causal_scores", "list_scores", "panel_scores"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Profiles of the conditions that are scored together, all conditions x genes.

    Parameters
    ----------
    prediction_PG, truth_PG
        Predicted and true mean profiles.
    prediction_reference_PG, truth_reference_PG
        Means of control cells that methods have, and of others that they have not.
    shared_PG
        Mean of the training conditions' profiles, on the level of the prediction.
    t_PG
        What ranks genes for the top 20: Welch's t of the true cells against the truth's control cells.
    """

    prediction_PG: np.ndarray
    truth_PG: np.ndarray
    prediction_reference_PG: np.ndarray
    truth_reference_PG: np.ndarray
    shared_PG: np.ndarray
    t_PG: np.ndarray


def panel_scores(panel: Panel, *, exclude: np.ndarray | None, strong: np.ndarray | None = None) -> dict[str, float]:
    """Return means over conditions; with the prefix ``strong_`` those over a subset (ranks are still among all conditions)."""
    predicted = panel.prediction_PG - panel.prediction_reference_PG
    true = panel.truth_PG - panel.truth_reference_PG
    profiles = {"exclude": exclude}
    to_control = {
        "prediction_reference": panel.prediction_reference_PG,
        "truth_reference": panel.truth_reference_PG,
    }
    to_shared = {"prediction_reference": panel.shared_PG, "truth_reference": panel.shared_PG}
    top = ~metrics.top_genes(panel.t_PG, exclude=exclude)
    prediction, truth = panel.prediction_PG, panel.truth_PG
    scores = {
        "pds_cosine": metrics.discrimination_score(predicted, true, **profiles),
        "pds_l1": metrics.discrimination_score(predicted, true, distance="l1", **profiles),
        "pearson_delta": metrics.pearson_delta(prediction, truth, **to_control, **profiles),
        "pearson_delta_pert": metrics.pearson_delta(prediction, truth, **to_shared, **profiles),
        "pearson_delta_top20": metrics.pearson_delta(prediction, truth, **to_control, exclude=top),
        "centroid_accuracy": metrics.centroid_accuracy(prediction, truth, **profiles),
        "rmse": metrics.rmse(prediction, truth, **profiles),
        "mse_top20": metrics.mse(prediction, truth, exclude=top),
    }
    result = {name: float(values.mean()) for name, values in scores.items()}
    interval = metrics.bootstrap_interval(scores["pds_cosine"])
    result |= {"pds_cosine_low": interval["low"], "pds_cosine_high": interval["high"]}
    if strong is not None and strong.any():
        result |= {f"strong_{name}": float(values[strong].mean()) for name, values in scores.items()}
    return result


def causal_scores(panel: Panel, *, up_PG: np.ndarray, down_PG: np.ndarray, target_PG: np.ndarray) -> dict[str, float]:
    """Leak to genes upstream of the targets, and AUROC of downstream against upstream; ``_net`` of the panel's mean effect.

    All perturbed cells may share a shift, which moves genes of every kind.
    """
    effect = panel.prediction_PG - panel.prediction_reference_PG
    unrelated = ~up_PG & ~down_PG & ~target_PG
    found = {}
    for suffix, values in (("", effect), ("_net", effect - effect.mean(axis=0))):
        if np.abs(values[up_PG]).any() and np.abs(values[unrelated]).any():
            leak = metrics.ancestor_leak(values, ancestor_PG=up_PG, unrelated_PG=unrelated)
            found[f"ancestor_leak{suffix}"] = leak["mean"]
            area = metrics.descendant_auroc(values, descendant_PG=down_PG, ancestor_PG=up_PG)
            found[f"descendant_auroc{suffix}"] = area["mean"]
    return found


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has the larger score; ties count half. Both kinds must occur."""
    n, ranks = int(positive.sum()), rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def list_scores(scores_QG: np.ndarray, lists_QG: np.ndarray) -> dict[str, np.ndarray]:
    """Judge rankings of genes by the genes that truly respond, one row per target.

    Parameters
    ----------
    scores_QG
        Larger: more likely to respond.
    lists_QG
        Booleans: genes that do.

    Returns
    -------
    dict
        Per target: ``auroc``; ``auroc_gain``, what it is above the mean of the other targets' rankings on this target's list;
        ``specificity``, the share of the other rankings that fit this list worse (ties half, 0.5: none);
        ``precision_at_50``. All targets must have been held out together, or rankings of the others know this list.
    """
    # areas[i, j]: ranking i on list j
    areas = np.array([[auroc(scores, positive) for positive in lists_QG] for scores in scores_QG])
    own, n = np.diagonal(areas), len(areas)
    worse = (areas < own).sum(axis=0) + ((areas == own).sum(axis=0) - 1) / 2
    first = np.argsort(-scores_QG, axis=1, kind="stable")[:, :50]
    return {
        "auroc": own,
        "auroc_gain": own - (areas.sum(axis=0) - own) / max(n - 1, 1),
        "specificity": worse / max(n - 1, 1) if n > 1 else np.full(n, 0.5),
        "precision_at_50": np.take_along_axis(lists_QG, first, axis=1).mean(axis=1),
    }
