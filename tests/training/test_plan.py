"""A step of training against the same computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import cellxpert as cx
from cellxpert.batch import IGNORE, Batch
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import tokenize
from cellxpert.nn.network import Network
from cellxpert.training.objectives import (
    LabelObjective,
    bins_loss,
    contrast_loss,
    label_loss,
    router_losses,
    total_loss,
)
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


# --- cells by single modalities ----------------------------------------------------------------------------------------


@pytest.fixture
def two_modalities() -> tuple[Network, Batch]:
    """A network of RNA and proteins, and cells with some of both, but one."""
    network = Network.from_config(
        cx.config.preset("nano").replace(n_bins=9), feature_modality=[0] * 8 + [2] * 6, n_labels=0, seed=0
    ).eval()
    cells = [[0, 3, 9], [1, 2, 8, 13], [2, 5], [4, 10, 11]]
    feature = [f for cell in cells for f in (14, *cell)]
    bins = [b for cell in cells for b in (0, *[1 + f % 8 for f in cell])]
    lengths = torch.tensor([1 + len(cell) for cell in cells])
    return network, Batch(feature_T=torch.tensor(feature), bin_T=torch.tensor(bins), lengths_B=lengths)


def _of_weights(network: Network, **weights: float) -> TrainingPlan:
    config = cx.config.preset("nano").replace(**weights).training
    return TrainingPlan(network, config, labels=LabelObjective(), n_steps=10, seed=0)


def test_contrast_is_of_cells_read_by_one_modality_alone(two_modalities: tuple[Network, Batch]) -> None:
    network, batch = two_modalities
    output = _of_weights(network, contrast_weight=0.5)._output(batch, seed=0)
    alone = []
    for cells in ([[0, 3], [1, 2], [4]], [[9], [8, 13], [10, 11]]):
        vectors = []
        for cell in cells:
            own = Batch(
                feature_T=torch.tensor([14, *cell]),
                bin_T=torch.tensor([0, *[1 + f % 8 for f in cell]]),
                lengths_B=torch.tensor([1 + len(cell)]),
            )
            vectors.append(network.encode(own).cell_BD[0])
        alone.append(torch.stack(vectors))
    for found, expected in zip(output.alone, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    config = _of_weights(network, contrast_weight=0.5).config
    loss, terms = total_loss(output, batch, config=config)
    routers = total_loss(replace(output, alone=None), batch, config=config)[0]
    assert terms["contrast"].item() == pytest.approx(contrast_loss(*alone).item(), rel=1e-4)
    assert (loss - routers).item() == pytest.approx(0.5 * terms["contrast"].item(), rel=1e-4)


def test_no_contrast_costs_nothing(two_modalities: tuple[Network, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = two_modalities
    calls, encode = [], network.encode
    monkeypatch.setattr(network, "encode", lambda batch: calls.append(batch) or encode(batch))
    assert _of_weights(network)._output(batch, seed=0).alone is None
    assert len(calls) == 1
    assert _of_weights(network, contrast_weight=1.0)._output(batch, seed=0).alone is not None
    assert len(calls) == 4


# --- an adversary ------------------------------------------------------------------------------------------------------


def test_an_adversary_pushes_the_encoder_away_from_the_batch(two_modalities: tuple[Network, Batch]) -> None:
    """The gradient of its term is that of the classifier's loss for the classifier, and the negative for what is below."""
    batch = replace(two_modalities[1], batch_B=torch.tensor([0, 1, 1, IGNORE]))
    config = cx.config.preset("nano").replace(n_bins=9, dropout=0.0)
    network = Network.from_config(config, feature_modality=[0] * 8 + [2] * 6, n_labels=0, n_batches=2, seed=0)
    plan = _of_weights(network, adversary_weight=0.7)
    network.eval()  # no router noise; the plan itself trains
    output = plan._output(batch, seed=0)
    loss, terms = total_loss(output, batch, config=plan.config)
    rest = total_loss(replace(output, batch_BG=None), batch, config=plan.config)[0]
    hidden = plan.adversary.hidden(output.cell_BD)
    plain = F.cross_entropy(plan.adversary.out(F.gelu(hidden))[:3], batch.batch_B[:3])
    assert terms["adversary"].item() == pytest.approx(plain.item(), rel=1e-5)
    for weight, sign in ((network.cell.gate, -0.7), (plan.adversary.out.weight, 0.7)):
        found = torch.autograd.grad(loss - rest, weight, retain_graph=True)[0]
        expected = torch.autograd.grad(plain, weight, retain_graph=True)[0]
        torch.testing.assert_close(found, sign * expected, atol=1e-6, rtol=1e-3)
    plan.eval()
    assert plan._output(batch, seed=0).batch_BG is None


def test_an_adversary_learns_with_the_network_and_is_no_part_of_it(two_modalities: tuple[Network, Batch]) -> None:
    assert _of_weights(two_modalities[0], adversary_weight=1.0).adversary is None  # no batches
    config = cx.config.preset("nano").replace(n_bins=9)
    network = Network.from_config(config, feature_modality=[0] * 8 + [2] * 6, n_labels=0, n_batches=2, seed=0)
    assert _of_weights(network).adversary is None
    plan = _of_weights(network, adversary_weight=1.0)
    ids = [id(p) for group in plan.configure_optimizers()["optimizer"].param_groups for p in group["params"]]
    trainable = [p for part in (network, plan.adversary) for p in part.parameters() if p.requires_grad]
    assert sorted(ids) == sorted(map(id, trainable))
    assert not any("adversary" in name for name in network.state_dict())
