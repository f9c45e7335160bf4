"""CellxPert in the tasks ``integration`` and ``token-budget``, as its documentation says."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch  # noqa: F401 - its import takes seconds, which are not training
import mudata
import numpy as np
import scanpy  # noqa: F401 - as above

import cellxpert as cx
from benchmarks.data_sets_integration import BATCH
from benchmarks.methods import Prediction
from benchmarks.methods.integration import magnitudes

__all__ = ["ROLES", "Budgeted", "Latent", "Ours", "nano", "nano_latent"]

ROLES = {"rna": "rna", "prot": "protein", "atac": "atac"}
"""Modality of the data sets -> role of the setup."""
LABEL = "label"
FEW_EPOCHS = 3
"""Epochs before ``integrate``, which reads nothing of the network: longer training changes no figure of it."""


def _set_up(mdata: mudata.MuData, *, labels_key: str | None = None) -> None:
    named = {ROLES[name]: name for name in mdata.mod}
    batch_key = BATCH if BATCH in mdata.obs and mdata.obs[BATCH].nunique() > 1 else None
    cx.CellxPert.setup_mudata(mdata, **named, batch_key=batch_key, labels_key=labels_key)


class Latent:
    """Cell vectors as ``get_latent`` gives them."""

    def __init__(self, preset: str, *, seed: int, quick: bool) -> None:
        self.config, self.seed, self.quick = cx.config.preset(preset), seed, quick

    def _fit(self, mdata: mudata.MuData, *, max_epochs: int | None = None) -> None:
        with mudata.set_options(pull_on_update=False):
            self.mdata = mdata.copy()
        _set_up(self.mdata)
        self.model = cx.CellxPert(self.mdata, config=self.config, seed=self.seed)
        self.model.train(max_epochs=1 if self.quick else max_epochs, progress_bar=False)

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        self._fit(mdata)
        return self.model.get_latent(inplace=False)

    def embed_modality(self, mdata: mudata.MuData, modality: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        return self.model.get_latent(_alone(mdata, modality), inplace=False)


class Ours(Latent):
    """What ``integrate`` and ``impute`` say."""

    def integrate(self, mdata: mudata.MuData) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        self._fit(mdata, max_epochs=FEW_EPOCHS)
        return self.model.integrate(inplace=False)

    def embed_modality(self, mdata: mudata.MuData, modality: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Integrator`."""
        return self.model.integrate(_alone(mdata, modality), modalities=[ROLES[modality]], inplace=False)

    def impute(self, modality: str, features: Sequence[str]) -> np.ndarray:
        """Expected magnitudes; features that the model does not read are at their mean."""
        expected = self.model.impute(ROLES[modality], inplace=False).expected
        means = np.asarray(magnitudes(self.mdata[modality], modality, features).mean(axis=0)).ravel()
        values = expected.reindex(index=self.mdata.obs_names, columns=list(features)).to_numpy()
        return np.where(np.isnan(values), means, values)


def _alone(mdata: mudata.MuData, modality: str) -> mudata.MuData:
    """Return one modality of some cells, with their batches."""
    with mudata.set_options(pull_on_update=False):
        kept = mudata.MuData({modality: mdata[modality].copy()})
    kept.obs[BATCH] = mdata.obs[BATCH].loc[kept.obs_names]
    return kept


class Budgeted:
    """Preset ``nano`` with so many features of each modality; learns labels, and annotates."""

    def __init__(self, features: dict[str, int], *, seed: int, quick: bool) -> None:
        fields = {"rna": "n_genes", "prot": "n_proteins", "atac": "n_peaks"}
        self.config = cx.config.preset("nano").replace(**{fields[name]: n for name, n in features.items()})
        self.seed, self.quick = seed, quick

    def fit(self, cells: mudata.MuData, labels: np.ndarray) -> None:
        """See :class:`benchmarks.methods.Annotator`."""
        with mudata.set_options(pull_on_update=False):
            mdata = cells.copy()
        mdata.obs[LABEL] = labels
        _set_up(mdata, labels_key=LABEL)
        self.model = cx.CellxPert(mdata, config=self.config, seed=self.seed)
        self.model.train(max_epochs=1 if self.quick else None, train_size=1.0, progress_bar=False)

    def predict(self, cells: mudata.MuData) -> Prediction:
        """See :class:`benchmarks.methods.Annotator`."""
        table = self.model.annotate(cells, inplace=False, unknown=False)
        return Prediction(table["label"].to_numpy(dtype=str), table["confidence"].to_numpy())


def nano(*, seed: int, quick: bool) -> Ours:
    """Preset ``nano``, ``integrate``."""
    return Ours("nano", seed=seed, quick=quick)


def nano_latent(*, seed: int, quick: bool) -> Latent:
    """Preset ``nano``, ``get_latent``."""
    return Latent("nano", seed=seed, quick=quick)
