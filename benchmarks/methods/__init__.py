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
    "INTEGRATION",
    "LABEL_LOSSES",
    "PERTURBATION",
    "SPATIAL",
    "TRANSFER",
    "UNION",
    "UNKNOWN",
    "Annotator",
    "Entry",
    "IntegrationEntry",
    "Integrator",
    "Labeller",
    "Prediction",
    "Predictor",
    "make",
    "make_integrator",
    "make_labeller",
    "make_predictor",
]


@dataclass(frozen=True)
class Prediction:
    """Labels of the cells asked for, the probability of each label, and how strange each cell is.

    ``novelty`` is higher for stranger cells, on any scale; None where a method has nothing but ``1 - confidence``. ``distance`` is
    a second one, of a method that has two.
    """

    labels: np.ndarray
    confidence: np.ndarray
    novelty: np.ndarray | None = None
    distance: np.ndarray | None = None


class Annotator(Protocol):
    """A method that learns labels from cells. Made before the clock starts: imports belong into its module.

    One that also has ``refuses(cells) -> booleans`` is asked which cells it would leave without a label, by its own settings, and one
    that has ``predict_calibrated(cells, known) -> Prediction`` is told the labels of some of them ("" for the others).
    """

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


class Integrator(Protocol):
    """A method that finds one space for the cells of all batches and modalities.

    One that also has ``embed_modality(mdata, modality) -> cells x dimensions`` is asked where other cells lie, given with all their
    modalities and batches, when it reads that modality alone; one that has ``impute(modality, features) -> cells x features`` is asked
    for values of the cells that it was given, all of them, on the scale of ``methods/integration.py:magnitudes`` (None: it cannot);
    one that has ``tell(labels)`` is told the truth first, and is a control.
    """

    def integrate(self, mdata: mudata.MuData) -> np.ndarray | None:
        """Return vectors of all cells, in the order of ``obs_names``; None where the method only imputes.

        Each modality has raw counts in ``X``, ``obs["batch"]`` the batch of each cell, and nothing else. Cells may lack a modality.
        """


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
        Modules that must be there beside the dependency group ``benchmark``: those of ``group``.
    """

    module: str
    maker: str
    seeded: bool = False
    multimodal: bool = False
    needs: tuple[str, ...] = ()
    group: str = "benchmark-annotation"

    def missing(self) -> str:
        """Why the method cannot be run in this environment; empty when it can."""
        lacking = [module for module in self.needs if find_spec(module) is None]
        return f"{', '.join(lacking)} not installed (dependency group {self.group})" if lacking else ""


@dataclass(frozen=True, kw_only=True)
class IntegrationEntry(Entry):
    """A method of the task ``integration``.

    Parameters
    ----------
    reads
        Modalities that a data set must have.
    needs_batches
        Whether it is run only where there are batches.
    mosaics_only
        Whether it only imputes: there is nothing to impute where all cells have all modalities.
    """

    reads: tuple[str, ...] = ("rna",)
    needs_batches: bool = False
    mosaics_only: bool = False
    group: str = "benchmark-integration"


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

CALIBRATION: Mapping[str, Entry] = {
    name: ANNOTATION[name]
    for name in ("cellxpert-nano", "logistic_regression", "svd_logistic_regression", "nearest_centroid")
}
"""Methods of the task ``calibration``."""

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
    for name in ("learned", "learned_gene_sets", "anchored", "zero_shot", "zero_shot_preset", "stimulus")
}
"""Methods of the task ``perturbation``; which of them a data set is given to is said in ``data_sets_perturbation.py``."""


_LINEAR, _GRAPH, _SCVI, _OURS_INTEGRATION = (
    f"benchmarks.methods.{name}"
    for name in ("integration", "integration_graph", "integration_scvi", "ours_integration")
)
_SCIB = ("scib_metrics",)

INTEGRATION: Mapping[str, IntegrationEntry] = {
    "pca_rna": IntegrationEntry(module=_LINEAR, maker="pca_rna", needs=_SCIB),
    "pca_protein": IntegrationEntry(module=_LINEAR, maker="pca_protein", reads=("prot",), needs=_SCIB),
    "pca_atac": IntegrationEntry(module=_LINEAR, maker="pca_atac", reads=("atac",), needs=_SCIB),
    "pca_concat": IntegrationEntry(module=_LINEAR, maker="pca_concat", reads=("rna", "other"), needs=_SCIB),
    "pca_concat_logistic": IntegrationEntry(
        module=_LINEAR, maker="pca_concat_logistic", reads=("rna", "other"), needs_batches=True
    ),
    "cca": IntegrationEntry(module=_LINEAR, maker="cca", reads=("rna", "other"), needs=_SCIB),
    "harmony_rna": IntegrationEntry(
        module=_GRAPH, maker="harmony_rna", needs_batches=True, needs=(*_SCIB, "harmonypy", "muon")
    ),
    "harmony_concat": IntegrationEntry(
        module=_GRAPH,
        maker="harmony_concat",
        reads=("rna", "other"),
        needs_batches=True,
        needs=(*_SCIB, "harmonypy", "muon"),
    ),
    "wnn": IntegrationEntry(module=_GRAPH, maker="wnn", reads=("rna", "other"), needs=(*_SCIB, "harmonypy", "muon")),
    "scvi": IntegrationEntry(module=_SCVI, maker="scvi_rna", seeded=True, needs=(*_SCIB, "scvi")),
    "totalvi": IntegrationEntry(
        module=_SCVI, maker="totalvi", seeded=True, reads=("rna", "prot"), needs=(*_SCIB, "scvi")
    ),
    "multivi": IntegrationEntry(
        module=_SCVI, maker="multivi", seeded=True, reads=("rna", "atac"), needs=(*_SCIB, "scvi")
    ),
    "shuffled": IntegrationEntry(module=_LINEAR, maker="shuffled", needs=_SCIB),
    "labels": IntegrationEntry(module=_LINEAR, maker="labels", needs=_SCIB),
    "impute_mean": IntegrationEntry(module=_LINEAR, maker="impute_mean", reads=("rna", "other"), mosaics_only=True),
    "impute_ridge": IntegrationEntry(module=_LINEAR, maker="impute_ridge", reads=("rna", "other"), mosaics_only=True),
    "impute_knn": IntegrationEntry(module=_LINEAR, maker="impute_knn", reads=("rna", "other"), mosaics_only=True),
    "cellxpert-nano": IntegrationEntry(module=_OURS_INTEGRATION, maker="nano", seeded=True, needs=_SCIB),
    "cellxpert-nano-latent": IntegrationEntry(module=_OURS_INTEGRATION, maker="nano_latent", seeded=True, needs=_SCIB),
}
"""Methods of the task ``integration``; ``"other"`` among what one reads is whatever modality there is beside the RNA."""


def make(entry: Entry, *, seed: int, quick: bool) -> Annotator:
    """Import a method and make it."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick)


def make_integrator(entry: IntegrationEntry, *, seed: int, quick: bool) -> Integrator:
    """Import a method of the task ``integration`` and make it."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick)


def make_labeller(entry: Entry, *, seed: int, quick: bool) -> Labeller:
    """Import a method of the task ``spatial`` and make it."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick)


def make_predictor(entry: Entry, *, seed: int, quick: bool, gene_sets: Mapping[str, Sequence[str]]) -> Predictor:
    """Import a method of the task ``perturbation`` and make it; ``gene_sets`` is what it may know of genes beforehand."""
    return getattr(import_module(entry.module), entry.maker)(seed=seed, quick=quick, gene_sets=gene_sets)
