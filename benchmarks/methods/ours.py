"""CellxPert as its documentation says: set up, train on the training cells, annotate the others."""

from __future__ import annotations

import anndata
import lightning.pytorch  # noqa: F401 - its import takes seconds, which are not training
import mudata
import numpy as np
import scanpy  # noqa: F401 - as above

import cellxpert as cx
from benchmarks.methods import Prediction

__all__ = [
    "Ours",
    "mini",
    "mini_rna_protein",
    "nano",
    "nano_plain",
    "nano_ldam",
    "nano_rna_protein",
    "nano_weighted",
]

LABEL = "label"


def _mudata(cells: anndata.AnnData | mudata.MuData) -> mudata.MuData:
    if isinstance(cells, mudata.MuData):
        return cells
    with mudata.set_options(pull_on_update=False):  # what the next mudata does by default
        return mudata.MuData({"rna": cells})


class Ours:
    """One preset, its own number of epochs, trained on all training cells. The test cells are first seen in ``predict``.

    ``label_loss`` is the preset's where it is None.
    """

    def __init__(self, preset: str, *, seed: int, quick: bool, label_loss: str | None = None) -> None:
        config = cx.config.preset(preset)
        self.config = config if label_loss is None else config.replace(label_loss=label_loss)
        self.seed, self.quick = seed, quick

    def fit(self, cells: anndata.AnnData | mudata.MuData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        mdata = _mudata(cells.copy())
        mdata["rna"].obs[LABEL] = labels
        modalities = {"rna": "rna"} | ({"protein": "prot"} if "prot" in mdata.mod else {})
        cx.CellxPert.setup_mudata(mdata, **modalities, labels_key=LABEL)
        self.model = cx.CellxPert(mdata, config=self.config, seed=self.seed)
        self.model.train(max_epochs=1 if self.quick else None, train_size=1.0, progress_bar=False)

    def predict(self, cells: anndata.AnnData | mudata.MuData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        table = self.model.annotate(_mudata(cells), inplace=False, unknown=False)
        novelty, distance = table["uncertainty"].to_numpy(), table["ood"].to_numpy()
        return Prediction(table["label"].to_numpy(dtype=str), table["confidence"].to_numpy(), novelty, distance)

    def predict_calibrated(self, cells: anndata.AnnData, known: np.ndarray) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        cells = cells.copy()
        cells.obs["known"] = known
        table = self.model.annotate(cells, inplace=False, unknown=False, calibration_key="known")
        return Prediction(table["label"].to_numpy(dtype=str), table["confidence"].to_numpy())

    def refuses(self, cells: anndata.AnnData | mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Annotator`: for any of the reasons that ``annotate`` has."""
        return (self.model.annotate(_mudata(cells), inplace=False)["reason"] != "labelled").to_numpy()


def nano(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``."""
    return Ours("nano", seed=seed, quick=quick)


def mini(*, seed: int, quick: bool) -> Ours:
    """Preset ``mini``."""
    return Ours("mini", seed=seed, quick=quick)


def nano_rna_protein(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``, given RNA and protein: the cells that it gets decide what it reads."""
    return Ours("nano", seed=seed, quick=quick)


def mini_rna_protein(*, seed: int, quick: bool) -> Ours:
    """Preset ``mini``, given RNA and protein."""
    return Ours("mini", seed=seed, quick=quick)


def nano_weighted(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``, cells weighed by the inverse frequency of their label."""
    return Ours("nano", seed=seed, quick=quick, label_loss="weighted")


def nano_plain(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``, cells weighed by the effective number of their label."""
    return Ours("nano", seed=seed, quick=quick, label_loss="plain")


def nano_ldam(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``, rarer labels with larger margins."""
    return Ours("nano", seed=seed, quick=quick, label_loss="ldam")
