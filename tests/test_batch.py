from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import torch

from cellxpert.batch import Batch, Intervention, Questions


@pytest.fixture
def batch() -> Batch:
    """Two packed cells with 3 and 2 tokens of a vocabulary of 5 features, and two questions each; a gene is set in the first."""
    questions = Questions(query_BQ=torch.tensor([[0, 1], [2, -1]]), target_BQ=torch.tensor([[3, 0], [1, -100]]))
    return Batch(
        feature_T=torch.tensor([5, 2, 4, 5, 0]),
        bin_T=torch.tensor([0, 7, 9, 0, 1]),
        lengths_B=torch.tensor([3, 2]),
        masked=questions,
        label_B=torch.tensor([0, -100]),
        row_B=torch.tensor([11, 4]),
        measured_PV=torch.ones(1, 5, dtype=torch.bool),
        pattern_B=torch.tensor([0, 0]),
        hidden_feature_H=torch.tensor([0, 1]),
        hidden_cell_H=torch.tensor([0, 0]),
        blank_B=torch.tensor([False, False]),
        intervention=Intervention(
            feature_BI=torch.tensor([[3], [-1]]),
            target_BI=torch.tensor([[0], [-1]]),
            dose_BI=torch.tensor([[-1.0], [0.0]]),
            before=True,
        ),
    )


def tensors(obj: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a dataclass and of those inside it, by path."""
    found = {}
    for field in fields(obj):
        value = getattr(obj, field.name)
        if isinstance(value, torch.Tensor):
            found[prefix + field.name] = value
        elif is_dataclass(value):
            found |= tensors(value, f"{prefix}{field.name}.")
    return found


def test_a_batch_knows_its_cells(batch):
    assert batch.n_cells == 2
    assert batch.lengths_B.sum() == len(batch.feature_T)


def test_moving_takes_every_tensor_but_lengths_and_rows(batch):
    moved = tensors(batch.to("meta"))
    assert moved.keys() == tensors(batch).keys()
    assert {"masked.query_BQ", "measured_PV", "intervention.dose_BI"} <= moved.keys()
    assert batch.to("meta").intervention.before
    stay = {"lengths_B", "row_B"}
    assert {name for name, x in moved.items() if x.device.type == "cpu"} == stay
    assert {name for name, x in moved.items() if x.device.type == "meta"} == moved.keys() - stay


def test_moving_leaves_the_original_alone(batch):
    before = {name: x.clone() for name, x in tensors(batch).items()}
    same = tensors(batch.to("cpu"))
    assert all(torch.equal(x, before[name]) for name, x in same.items())
    batch.to("meta")
    assert all(x.device.type == "cpu" for x in tensors(batch).values())


def test_questions_move_on_their_own(batch):
    moved = batch.masked.to("meta")
    assert moved.query_BQ.device.type == "meta"
    assert moved.value_bin_BM is None
