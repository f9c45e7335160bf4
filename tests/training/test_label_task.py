"""What a run is told of labels, against cells picked by hand; finishing against fitting and calibrating directly."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cellxpert as cx
from cellxpert.batch import IGNORE
from cellxpert.config import TrainingConfig
from cellxpert.data.calibration import Calibration
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.record import LabelTerm
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import tokenize
from cellxpert.training.label_head import Labelled, calibrate_label_head, fit_label_head
from cellxpert.training.label_task import LabelTask, allowed_labels
from cellxpert.training.objectives import class_margins, class_weights

CLASSES = ("B cell", "T cell", "CD8 T", "effector CD8 T", "odd")
TERMS = (
    LabelTerm(label="T cell", term="CL:0000084"),
    LabelTerm(label="CD8 T", term="CL:0000625"),
    LabelTerm(label="effector CD8 T", term="CL:0000625", exact=False),
    LabelTerm(label="B cell", term="CL:0000236"),
    LabelTerm(label="not a class", term="CL:0000542"),
)


def test_a_label_may_be_itself_and_its_kinds() -> None:
    """A label that means only some cells of its term stands for itself alone, and coarser ones for it too."""
    found = allowed_labels(CLASSES, TERMS)
    expected = {name: {name} for name in CLASSES}
    expected["T cell"] |= {"CD8 T", "effector CD8 T"}
    expected["CD8 T"] |= {"effector CD8 T"}
    assert {
        name: {CLASSES[c] for c in np.flatnonzero(row)} for name, row in zip(CLASSES, found, strict=True)
    } == expected


@pytest.mark.parametrize("terms", [(), TERMS[-1:]])
def test_labels_without_terms_are_exact(terms: tuple[LabelTerm, ...]) -> None:
    found = allowed_labels(CLASSES, terms)
    assert found.dtype == bool
    assert np.array_equal(found, np.eye(5))


def _object(*, batches: bool) -> ad.AnnData:
    adata = ad.AnnData(np.random.default_rng(0).poisson(3.0, (24, 5)).astype(np.float32))
    adata.obs_names = pd.Index([f"c{i}" for i in range(24)], dtype=object)
    adata.var_names = pd.Index([f"g{j}" for j in range(5)], dtype=object)
    kinds = ["T cell", "B cell", None, "CD8 T", "Unknown", "B cell", "rare", "T cell"]
    adata.obs["kind"] = pd.Categorical(kinds * 3)
    adata.obs["run"] = pd.Categorical(list("aabbaabb") * 3)
    cx.CellxPert.setup_anndata(adata, labels_key="kind", batch_key="run" if batches else None)
    return adata


@pytest.mark.parametrize("batches", [False, True])
def test_labels_of_an_object_are_read(batches: bool) -> None:
    """Cells without a label, and with one that the model does not have, are ignored."""
    adata = _object(batches=batches)
    cells = Cells.open(adata, replace(read_setup(adata), label_terms=TERMS))
    task = LabelTask.of(cells, CLASSES, train_rows=np.arange(cells.n_cells))
    assert task.code_N.tolist() == [1, 0, IGNORE, 2, IGNORE, 0, IGNORE, 1] * 3
    assert np.array_equal(task.allowed_CC, allowed_labels(CLASSES, TERMS))
    assert (task.batch_N is None) == (not batches)
    assert not batches or task.batch_N.tolist() == list("aabbaabb") * 3


def test_a_label_that_no_training_cell_has_counts_as_none() -> None:
    """A head that knew it from before weighs it 0: a validation batch of nothing else would have the loss 0 / 0."""
    adata = _object(batches=False)
    cells, rows = Cells.open(adata, read_setup(adata)), np.arange(1, 24)
    rows = rows[adata.obs["kind"].to_numpy()[rows] != "T cell"]
    task = LabelTask.of(cells, CLASSES, train_rows=rows)
    assert task.code_N.tolist() == [IGNORE, 0, IGNORE, 2, IGNORE, 0, IGNORE, IGNORE] * 3


def test_nothing_to_learn() -> None:
    adata = _object(batches=False)
    assert LabelTask.of(Cells.open(adata, read_setup(adata)), (), train_rows=np.arange(adata.n_obs)) is None
    cells = Cells.open(adata, replace(read_setup(adata), labels_key=None))
    assert LabelTask.of(cells, CLASSES, train_rows=np.arange(cells.n_cells)) is None


@pytest.mark.parametrize("label_loss", ["plain", "weighted", "balanced", "ldam"])
@pytest.mark.parametrize("marginal", [False, True])
def test_labels_count_by_how_often_training_cells_have_them(label_loss: str, marginal: bool) -> None:
    code = np.array([0, 0, 0, 1, 2, 2, IGNORE, 1, 1, 1])
    allowed = np.eye(4, dtype=bool)
    allowed[0, 2] = marginal
    task = LabelTask(code_N=code, allowed_CC=allowed)
    objective = task.objective(np.arange(7), TrainingConfig(label_loss=label_loss, label_smoothing=0.05))
    counts = [3, 1, 2, 0]
    weights = class_weights(counts, label_loss)
    if weights is None:
        assert objective.weight_C is None
    else:
        assert torch.equal(objective.weight_C, weights)
    if label_loss == "ldam":
        assert torch.equal(objective.margin_C, class_margins(counts))
    else:
        assert objective.margin_C is None
    assert (objective.allowed_CC is None) == (not marginal)
    if marginal:
        assert np.array_equal(objective.allowed_CC.numpy(), allowed)
    assert objective.smoothing == 0.05


def _same(a: Calibration | None, b: Calibration | None) -> bool:
    if a is None or b is None:
        return a is b
    arrays = b.to_arrays()
    return a.to_dict() == b.to_dict() and all(np.array_equal(x, arrays[name]) for name, x in a.to_arrays().items())


@pytest.mark.parametrize(("fit_labels", "steered"), [(True, False), (False, True), (True, True), (False, False)])
def test_the_head_is_fitted_to_training_cells_and_calibrated_on_new_ones(
    trained: cx.CellxPert, fit_labels: bool, steered: bool
) -> None:
    """Where labels trained what is below the head, training cells are not new to it: validation cells tell."""
    state = trained._state
    cells = Cells.open(trained._data, read_setup(trained._data))
    tokens = tokenize(cells, state.vocabulary, state.config.tokens)
    collator = Collator(tokens, n_features=state.vocabulary.n_features, n_bins=50)
    task = LabelTask.of(cells, state.labels, train_rows=np.arange(cells.n_cells))
    task.code_N[::9] = IGNORE
    task = replace(task, batch_N=np.array(list("vwxyz") * len(task.code_N), object)[: len(task.code_N)])
    rows = {"train": np.flatnonzero(np.arange(cells.n_cells) % 2 > 0)}
    rows["validation"] = np.flatnonzero(np.arange(cells.n_cells) % 2 == 0)
    found_in, expected_in = deepcopy(state.network).eval(), deepcopy(state.network).eval()
    before = {k: v.clone() for k, v in found_in.state_dict().items()}
    found = task.finish(
        found_in,
        collator,
        rows,
        settings=TrainingConfig(label_loss="balanced"),
        seed=7,
        fit_labels=fit_labels,
        steered=steered,
    )

    def known(part: str) -> Labelled:
        here = np.array([row for row in rows[part] if row % 9])
        return Labelled(
            rows=here,
            code_N=task.code_N[here],
            allowed_CC=np.eye(6, dtype=bool),
            batch_N=task.batch_N[here],
            label_loss="balanced",
            seed=7,
        )

    expected = None
    if fit_labels:
        expected = fit_label_head(expected_in, collator, known("train"))
        assert expected.source == "left-out batches"
    if steered:
        expected = calibrate_label_head(expected_in, collator, known("train"), validation=known("validation"))
        assert expected.source == "validation"
    assert _same(found, expected)
    assert (found is None) == (not fit_labels and not steered)
    expected_weights = expected_in.state_dict()
    assert all(v.equal(expected_weights[k]) for k, v in found_in.state_dict().items())
    assert fit_labels == any(not v.equal(before[k]) for k, v in found_in.state_dict().items())


def test_components_that_labels_were_told_in_before_are_kept(trained: cx.CellxPert) -> None:
    state = trained._state
    cells = Cells.open(trained._data, read_setup(trained._data))
    tokens = tokenize(cells, state.vocabulary, state.config.tokens)
    collator = Collator(tokens, n_features=state.vocabulary.n_features, n_bins=50)
    components = state.calibration.types.components
    rows = {"train": np.arange(0, cells.n_cells, 2), "validation": np.arange(1, cells.n_cells, 2)}
    for how in ({"fit_labels": True, "steered": False}, {"fit_labels": False, "steered": True}):
        found = LabelTask.of(cells, state.labels, train_rows=np.arange(cells.n_cells), components=components).finish(
            deepcopy(state.network).eval(), collator, rows, settings=TrainingConfig(), seed=0, **how
        )
        assert np.array_equal(found.types.components.direct_VP, components.direct_VP)
        anew = LabelTask.of(cells, state.labels, train_rows=np.arange(cells.n_cells)).finish(
            deepcopy(state.network).eval(), collator, rows, settings=TrainingConfig(), seed=0, **how
        )
        assert not np.array_equal(anew.types.components.usual_V, components.usual_V)
