"""A step of training against the same computed by hand."""

from __future__ import annotations

import pytest
import torch

import cellxpert as cx
from cellxpert.batch import Batch
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import tokenize
from cellxpert.training.objectives import LabelObjective, bins_loss, label_loss, router_losses, total_loss
from cellxpert.training.plan import TrainingPlan


@pytest.fixture
def batch(trained: cx.CellxPert) -> Batch:
    import numpy as np

    state = trained._state
    cells = Cells.open(trained._data, read_setup(trained._data))
    tokens = tokenize(cells, state.vocabulary, state.config.tokens, rows=np.arange(12))
    collator = Collator(tokens, n_features=state.vocabulary.n_features, n_bins=50, n_queries=16)
    return collator(np.arange(12), rng=np.random.default_rng(0), labels=np.arange(12) % len(state.labels))


def test_loss_is_the_weighted_sum_of_its_terms(trained: cx.CellxPert, batch: Batch) -> None:
    config = trained._state.config.training
    output = trained._state.network(batch)
    labels = LabelObjective(weight_C=torch.linspace(0.5, 1.5, 6), smoothing=0.1)
    loss, terms = total_loss(output, batch, config=config, labels=labels)
    routers = router_losses(output.routers)
    expected = (
        config.bins_weight * bins_loss(output.masked_BQK, batch.masked)
        + config.cell_weight * bins_loss(output.whole_BQK, batch.whole)
        + config.label_weight * label_loss(output.label_BC, batch.label_B, labels)
        + config.importance_weight * routers["importance"]
        + config.load_weight * routers["load"]
        + config.router_z_weight * routers["router_z"]
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(terms) == {"bins", "cell", "label", "importance", "load", "router_z"}


def _plan(trained: cx.CellxPert, labels: LabelObjective) -> TrainingPlan:
    return TrainingPlan(trained._state.network, trained._state.config.training, labels=labels, n_steps=10, seed=0)


def test_optimizer_covers_every_parameter_once(trained: cx.CellxPert) -> None:
    plan = _plan(trained, LabelObjective())
    groups = plan.configure_optimizers()["optimizer"].param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    trainable = [p for p in trained._state.network.parameters() if p.requires_grad]
    assert sorted(ids) == sorted(id(p) for p in trainable)
    assert plan.configure_optimizers()["lr_scheduler"]["interval"] == "step"
    assert isinstance(plan.network, torch.nn.Module)


def test_how_labels_count_moves_with_the_network_and_is_in_no_checkpoint(trained: cx.CellxPert) -> None:
    labels = LabelObjective(
        weight_C=torch.ones(6), margin_C=torch.arange(6.0), allowed_CC=torch.eye(6, dtype=torch.bool), smoothing=0.2
    )
    plan = _plan(trained, labels)
    buffers, names = dict(plan.named_buffers()), ("weight_C", "margin_C", "allowed_CC")
    for name in names:
        assert buffers[name] is getattr(plan.labels, name) is getattr(labels, name)
        assert name not in plan.state_dict()
    assert plan.labels.smoothing == 0.2
    plain = _plan(trained, LabelObjective()).labels
    assert all(getattr(plain, name) is None for name in names)
