"""Ways to take a trained model to other labels: all weights, small changes to them, or a new label head alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata
import lightning.pytorch  # noqa: F401 - its import takes seconds, which are not training
import numpy as np
import peft  # noqa: F401 - as above
import scanpy  # noqa: F401 - as above
from safetensors import safe_open

import cellxpert as cx
from benchmarks.methods import Prediction

__all__ = ["LABEL", "NAME", "WAYS", "Sizes", "Way", "adapt", "answers", "bytes_of", "labelled", "sizes_of"]

LABEL, NAME = "label", "adapted"
_STILL = 1e-12
"""Learning rate of an adapter that does nothing."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model is adapted.

    Parameters
    ----------
    method
        ``"lora"`` or ``"prompts"``: an adapter learns. None: all weights.
    label_gradient
        Share of the label objective's gradient that reaches what is below the label head.
    head_alone
        Whether nothing but the label head is fitted: an adapter of rank 1 that does not move for one epoch.
    """

    method: str | None = None
    label_gradient: float = 0.0
    head_alone: bool = False


WAYS: Mapping[str, Way] = {
    "full": Way(),
    "lora": Way(method="lora"),
    "prompts": Way(method="prompts"),
    "full-steered": Way(label_gradient=1.0),
    "lora-steered": Way(method="lora", label_gradient=1.0),
    "prompts-steered": Way(method="prompts", label_gradient=1.0),
    "head": Way(method="lora", head_alone=True),
}
"""Ways of the task ``adapters``; ``-steered``: labels steer what is learned."""


@dataclass(frozen=True)
class Sizes:
    """What an adapter is beside its model.

    Parameters
    ----------
    trained_share
        Parameters that gradient descent trains, of all.
    stored_share
        Numbers that the adapter holds (its own, and the whole label head, which a solver fits), per parameter of the model.
    file_share
        Size of its folder, of the folder of the model without adapters.
    file_mib
        Size of its folder, MiB.
    """

    trained_share: float
    stored_share: float
    file_share: float
    file_mib: float


def bytes_of(folder: Path) -> int:
    """Size of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def labelled(cells: anndata.AnnData, labels: np.ndarray) -> anndata.AnnData:
    """Return a copy of cells that is set up with labels."""
    cells = cells.copy()
    cells.obs[LABEL] = labels
    cx.CellxPert.setup_anndata(cells, labels_key=LABEL)
    return cells


def adapt(base: Path, way: Way, cells: anndata.AnnData, *, seed: int, quick: bool) -> cx.CellxPert:
    """Load a saved model, and adapt it to cells that are set up; an adapter is called :data:`NAME`."""
    model = cx.CellxPert.load(base, cells)
    if way.method is not None:
        model.add_adapter(NAME, method=way.method, rank=1 if way.head_alone else 8, seed=seed)
    model.finetune(
        cells,
        adapter=None if way.method is None else NAME,
        max_epochs=1 if way.head_alone or quick else None,
        learning_rate=_STILL if way.head_alone else None,
        label_gradient=way.label_gradient,
        train_size=1.0,
        seed=seed,
        progress_bar=False,
    )
    return model


def answers(model: cx.CellxPert, cells: anndata.AnnData) -> Prediction:
    """Label all cells."""
    table = model.annotate(cells, inplace=False, unknown=False)
    return Prediction(table["label"].to_numpy(dtype=str), table["confidence"].to_numpy())


def sizes_of(model: cx.CellxPert, base: Path, folder: Path) -> Sizes:
    """Save the adapter in use into a folder that is not there yet, and compare it with the saved model."""
    model.save_adapter(folder)
    summary = cx.CellxPert.load(base).load_adapter(folder)
    with safe_open(folder / "adapter.safetensors", framework="numpy") as file:
        stored = sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 - no mapping
    n_bytes = bytes_of(folder)
    return Sizes(
        trained_share=summary.share,
        stored_share=stored / summary.n_parameters,
        file_share=n_bytes / bytes_of(base),
        file_mib=n_bytes / 2**20,
    )
