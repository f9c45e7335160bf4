"""Whether predicted effects of a perturbation go down a regulatory network, or leak up it.

What is read off unperturbed cells is how the others look where a gene is low, and there its regulators are low as well. Cutting
the gene does nothing to them. Genes upstream of the target tell the two apart, where the network is known.

Letters: P perturbations, G genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellxpert.errors import MetricError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ancestor_leak", "descendant_auroc"]


def ancestor_leak(effect_PG: ArrayLike, *, ancestor_PG: ArrayLike, unrelated_PG: ArrayLike) -> dict[str, Any]:
    """Mean size of the effect on genes upstream of the target, divided by that on genes unrelated to it.

    About 1 where effects leave both alone (only noise is left), above 1 where they leak to regulators. A shift that all
    perturbed cells share moves both kinds: take it off before, or compare with the ratio of the true effects.

    Parameters
    ----------
    effect_PG
        Change of each gene under each perturbation (perturbations x genes), predicted or observed. The scale cancels.
    ancestor_PG
        Which genes are upstream of a target of the perturbation.
    unrelated_PG
        Which genes are neither targets nor upstream or downstream of one. Genes in neither mask are not looked at.

    Returns
    -------
    dict
        ``values``, one per perturbation: NaN where it has no ancestors or no unrelated genes, or where no gene of either kind
        moves (0 / 0); infinity where only ancestors move. ``n``: perturbations with a value. ``mean``: mean over these.

    Raises
    ------
    MetricError
        If shapes differ, a gene is in both masks, its effect is not finite, or no perturbation has a value.
    """
    effect, ancestor, unrelated = _checked(effect_PG, ancestor_PG=ancestor_PG, unrelated_PG=unrelated_PG)
    values = np.full(len(effect), np.nan)
    for p in np.flatnonzero(ancestor.any(axis=1) & unrelated.any(axis=1)):
        up, none = effect[p, ancestor[p]].mean(), effect[p, unrelated[p]].mean()
        if none > 0:
            values[p] = up / none
        elif up > 0:
            values[p] = np.inf
    return _summary(values, "metrics.ancestor_leak")


def descendant_auroc(effect_PG: ArrayLike, *, descendant_PG: ArrayLike, ancestor_PG: ArrayLike) -> dict[str, Any]:
    """AUROC of telling genes downstream of the target from those upstream of it by the size of the effect.

    The probability that a random descendant moves more than a random ancestor, ties counting half: 1 for effects that only go
    down the network, 0.5 where the direction of regulation plays no part.

    Parameters
    ----------
    effect_PG
        Change of each gene under each perturbation (perturbations x genes), predicted or observed. The scale cancels.
    descendant_PG
        Which genes are downstream of a target of the perturbation, directly or not; the targets themselves are not.
    ancestor_PG
        Which genes are upstream of one.

    Returns
    -------
    dict
        ``values``, one per perturbation: NaN where it has no ancestors or no descendants. ``n``: perturbations with a value.
        ``mean``: mean over these.

    Raises
    ------
    MetricError
        If shapes differ, a gene is in both masks, its effect is not finite, or no perturbation has a value.
    """
    effect, descendant, ancestor = _checked(effect_PG, descendant_PG=descendant_PG, ancestor_PG=ancestor_PG)
    values = np.full(len(effect), np.nan)
    for p in np.flatnonzero(descendant.any(axis=1) & ancestor.any(axis=1)):
        down, up = effect[p, descendant[p]], np.sort(effect[p, ancestor[p]])
        below, not_above = np.searchsorted(up, down, side="left"), np.searchsorted(up, down, side="right")
        values[p] = (below + not_above).mean() / (2 * len(up))
    return _summary(values, "metrics.descendant_auroc")


def _checked(effect_PG: ArrayLike, **masks: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Absolute effects and both masks."""
    effect = np.abs(np.asarray(effect_PG, dtype=np.float64))
    checked = {name: np.asarray(mask) for name, mask in masks.items()}
    for name, mask in checked.items():
        if effect.ndim != 2 or mask.shape != effect.shape:
            found = f"shapes {effect.shape} and {mask.shape}"
            raise MetricError(f"effect_PG, {name}", found=found, fix="give perturbations x genes for both")
        if not np.isin(mask, [0, 1]).all():
            raise MetricError(name, found="values other than True and False", fix="give one truth value per gene")
    first, second = (mask.astype(bool) for mask in checked.values())
    if n_both := int((first & second).sum()):
        raise MetricError(", ".join(checked), found=f"{n_both} genes in both", fix="a gene is of one kind")
    if n_bad := int((~np.isfinite(effect) & (first | second)).sum()):
        raise MetricError("effect_PG", found=f"{n_bad} values that are not finite", fix="leave these genes out")
    return effect, first, second


def _summary(values: np.ndarray, where: str) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    if not len(known):
        fix = "give perturbations whose targets have genes of both kinds, with effects on them"
        raise MetricError(where, found=f"none of {len(values)} perturbations has a value", fix=fix)
    return {"mean": float(known.mean()), "n": len(known), "values": values}
