"""Methods under test: ours and the rivals, each behind the same ``fit`` and ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import anndata
import mudata
import numpy as np

if TYPE_CHECKING:
    from benchmarks.data_sets_spatial import Tissue

__all__ = [
    "ANNOTATION",
    "LABEL_LOSSES",
    "PERTURBATION",
    "SPATIAL",
    "TRANSFER",
    "UNION",
    "UNKNOWN",
    "Annotator",
    "Entry",
    "Labeller",
    "Prediction",
    "Predictor",
    "make",
    "make_labeller",
    "make_predictor",
]


@dataclass(frozen=True)
class Prediction:
    """Labels of the cells asked for, the probability of each label, and how strange each cell is.

    ``novelty`` is higher for stranger cells, on any scale; None where a method has nothing but ``1 - confidence``.
    """

    labels: np.ndarray
    confidence: np.ndarray
    novelty: np.ndarray | None = None


class Annotator(Protocol):
    """A method that learns labels from cells. Made before the clock starts: imports belong into its module."""

    def fit(self, cells: anndata.AnnData | mudata.MuData, labels: np.ndarray) -> None:
        """Learn from raw counts in ``X`` and one label (text) per cell.

        Methods whose :class:`Entry` is ``multimodal`` get a MuData with ``rna`` and ``prot``, all others an AnnData of RNA.
        """

    def predict(self, cells: anndata.AnnData | mudata.MuData) -> Prediction:
        """Label other cells, given as in ``fit``."""


class Labeller(Protocol):
    """A method that labels all cells of a tissue, of which some have a label."""

    def label(self, adata: anndata.AnnData, labels: np.ndarray, tissue: Tissue) -> Prediction:
        """Label all cells, coordinates in ``obsm["spatial"]``; ``labels`` is "" where the label is not known."""


class Predictor(Protocol):
    """A method that predicts what perturbations do.

    One that also has ``predict_cells(condition) -> cells x genes`` is asked for single cells where these are scored.
    """

    def fit(self, adata: anndata.AnnData, conditions: np.ndarray, *, control: str) -> None:
        """Learn from perturbed and control cells.

        ``X`` has raw counts, ``layers["log1p"]`` the scale that predictions are asked in; ``conditions`` says per cell what
        was perturbed (targets joined by ``+``) or ``control``. Where conditions are cell types of stimulated cells,
        ``obs["cell_type"]`` has the type of every cell.
        """

    def predict(self, conditions: Sequence[str]) -> np.ndarray:
        """Return the mean profile of the cells of each condition, conditions x genes, on the scale of the training cells."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a method is. Its class is called with ``seed`` and ``quick``.

    Parameters
    ----------
    module, maker
        Module and name in it.
    seeded
        Whether its result depends on the seed; if not it is run once.
    multimodal
        Whether it reads RNA and protein; it is run on data that have both.
    needs
        Modules that must be there beside the dependency group ``benchmark``: those of ``benchmark-annotation``.
    """

    module: str
    maker: str
    seeded: bool = False
    multimodal: bool = False
    needs: tuple[str, ...] = ()

    def missing(self) -> str:
        """Why the method cannot be run in this environment; empty when it can."""
        lacking = [module for module in self.needs if find_spec(module) is None]
        return f"{', '.join(lacking)} not installed (dependency group benchmark-annotation)" if lacking else ""


_OURS, _BASELINES, _MULTIMODAL = (f"benchmarks.methods.{name}" for name in ("ours", "baselines", "multimodal"))

LABEL_LOSSES: Mapping[str, Entry] = {
    f"cellxpert-nano-{loss}": Entry(module=_OURS, maker=f"nano_{loss}", seeded=True)
    for loss in ("weighted", "plain", "ldam")
}
"""Ours with other label losses than the preset's: methods of the task ``annotation`` that are run once per split, without folds."""

ANNOTATION: Mapping[str, Entry] = (
    {f"cellxpert-{name}": Entry(module=_OURS, maker=name, seeded=True) for name in ("nano", "mini")}
    | {
        f"cellxpert-{name.replace('_', '-')}": Entry(module=_OURS, maker=name, seeded=True, multimodal=True)
        for name in ("nano_rna_protein", "mini_rna_protein")
    }
    | LABEL_LOSSES
    | {
        name: Entry(module=_BASELINES, maker=name)
        for name in (
            "logistic_regression",
            "svd_logistic_regression",
            "svd_logistic_regression_unscaled",
            "knn",
            "nearest_centroid",
            "majority",
        )
    }
    | {
        name: Entry(module=_MULTIMODAL, maker=name, multimodal=True)
        for name in (
            "logistic_regression_rna_protein",
            "svd_logistic_regression_rna_protein",
            "nearest_centroid_rna_protein",
            "logistic_regression_protein",
            "nearest_centroid_protein",
        )
    }
    | {
        "celltypist": Entry(module="benchmarks.methods.celltypist", maker="celltypist", needs=("celltypist",)),
        "scanvi": Entry(module="benchmarks.methods.scanvi", maker="scanvi", seeded=True, needs=("scvi",)),
    }
)
"""Methods of the task ``annotation``."""

UNKNOWN: Mapping[str, Entry] = {
    name: ANNOTATION[name] for name in ("cellxpert-nano", "cellxpert-mini", "logistic_regression", "celltypist")
} | {name: Entry(module="benchmarks.methods.novelty", maker=name) for name in ("knn_distance", "mahalanobis")}
"""Methods of the task ``unknown``."""

TRANSFER: Mapping[str, Entry] = {
    name: entry for name, entry in ANNOTATION.items() if not entry.multimodal and name not in LABEL_LOSSES
}
"""Methods of the task ``transfer``."""

UNION: Mapping[str, Entry] = {
    f"cellxpert-{name.replace('_', '-')}": Entry(module="benchmarks.methods.union", maker=name, seeded=True)
    for name in ("nano_terms", "nano_names")
} | {name: ANNOTATION[name] for name in ("logistic_regression", "svd_logistic_regression", "majority")}
"""Methods of the task ``union``."""

SPATIAL: Mapping[str, Entry] = {
    f"cellxpert-{name.replace('_', '-')}": Entry(module="benchmarks.methods.spatial", maker=name)
    for name in ("nano", "mini", "nano_no_space", "nano_no_niche", "nano_no_place", "nano_image", "nano_plain")
} | {
    name: Entry(module="benchmarks.methods.spatial", maker=name)
    for name in (
        "logistic_regression",
        "logistic_regression_counts",
        "logistic_regression_niche",
        "knn",
        "nearest_centroid",
        "spatial_neighbors",
        "majority",
    )
}
"""Methods of the task ``spatial``; every split has a seed of its own."""

PERTURBATION: Mapping[str, Entry] = {
    name: Entry(module="benchmarks.methods.perturbation", maker=name)
    for name in (
        "control_mean",
        "perturbed_mean",
        "perturbed_mean_cells",
        "target_only",
        "linear",
        "knn",
        "linear_gene_sets",
        "knn_gene_sets",
        "knn_gene_sets_shrunk",
        "kernel_gene_sets",
        "anchor_mean",
        "same_condition",
        "same_condition_shrunk",
        "additive",
        "matching_mean",
        "linear_members",
        "gauss_conditional",
        "control_stratified",
        "type_control",
        "mean_shift",
        "nearest_type_shift",
        "latent_shift",
        "random_medoid",
    )
} | {
    f"cellxpert-{name.replace('_', '-')}": Entry(module="benchmarks.methods.ours_perturbation", maker=name, seeded=True)
    for name in ("learned", "learned_gene_sets", "anchored", "zero_shot", "stimulus")
}
"""Methods of the task ``perturbation``; which of them a data set is given to is said in ``data_sets_perturbation.py``."""


def make(entry: Entry, *, seed: int, quick: bool) -> Annotator:
    """Import a method and make it."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick)


def make_labeller(entry: Entry, *, seed: int, quick: bool) -> Labeller:
    """Import a method of the task ``spatial`` and make it."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick)


def make_predictor(entry: Entry, *, seed: int, quick: bool, gene_sets: Mapping[str, Sequence[str]]) -> Predictor:
    """Import a method of the task ``perturbation`` and make it; ``gene_sets`` is what it may know of genes beforehand."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick, gene_sets=gene_sets)
