"""What a batch does to answers, against plain loops; who is told, and who is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cellxpert.batch import IGNORE
from cellxpert.nn import Network
from cellxpert.nn.batches import Batches
from cellxpert.nn.cell import magnitude_scale

N_FEATURES, N_BINS = 30, 7


def _draw(module: torch.nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(generator=generator)


@pytest.fixture
def told(small_config):
    """Return a network that knows three batches, which differ."""
    network = Network(small_config, feature_modality=[0] * N_FEATURES, n_bins=N_BINS, n_batches=3).eval()
    _draw(network.batches)
    return network


def test_shifts_and_tilts_are_a_plain_loop() -> None:
    batches = Batches(8, n_batches=3, n_features=5)
    _draw(batches)
    generator = torch.Generator().manual_seed(0)
    query_BQ = torch.tensor([[4, 0, -1], [2, 2, 1], [0, 3, 4], [1, 0, -1]])
    query_BQD, level_BQK = (torch.randn(4, 3, n, generator=generator) for n in (8, 6))
    batch_B = torch.tensor([2, IGNORE, 0, 2])
    shifted, added = batches.queries(query_BQD, batch_B), batches.answers(query_BQ, batch_B, level_BQK)
    for b, batch in enumerate(batch_B.tolist()):
        for q, feature in enumerate(query_BQ[b].tolist()):
            if batch == IGNORE:
                assert torch.equal(shifted[b, q], query_BQD[b, q])
                assert not added[b, q].any()
                continue
            assert torch.equal(shifted[b, q], query_BQD[b, q] + batches.shift.weight[batch])
            if feature >= 0:
                torch.testing.assert_close(added[b, q], batches.tilt.weight[batch, feature] * level_BQK[b, q])


def test_a_new_network_answers_as_one_that_knows_no_batches(small_config, make_batch) -> None:
    plain, told = (
        Network(small_config, feature_modality=[0] * N_FEATURES, n_bins=N_BINS, n_batches=n).eval() for n in (0, 3)
    )
    batch = make_batch([5, 9], n_queries=6)
    expected, found = plain(batch), told(dataclasses.replace(batch, batch_B=torch.tensor([2, 0])))
    for name in ("cell_BD", "masked_BQK", "whole_BQK"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name


@pytest.mark.parametrize("factors", [True, False])
def test_the_decoder_is_told_and_the_encoder_is_not(small_config, make_batch, factors) -> None:
    config = small_config if factors else dataclasses.replace(small_config, n_factors=0)
    told = Network(config, feature_modality=[0] * N_FEATURES, n_bins=N_BINS, n_batches=3).eval()
    _draw(told.batches)
    batch = make_batch([5, 9, 4], n_queries=6)
    nothing, unknown, some = (
        told(dataclasses.replace(batch, batch_B=code))
        for code in (None, torch.full((3,), IGNORE), torch.tensor([1, IGNORE, 2]))
    )
    assert torch.equal(nothing.cell_BD, some.cell_BD)
    for name in ("masked_BQK", "whole_BQK"):
        expected, found = getattr(nothing, name), getattr(some, name)
        assert torch.equal(getattr(unknown, name), expected)
        assert torch.equal(found[1], expected[1])
        assert (found[[0, 2]] - expected[[0, 2]]).abs().amax((1, 2)).min() > 0.01
    with torch.no_grad():  # without the shifts, the tilts are all that is left, along the features' magnitudes
        told.batches.shift.weight.zero_()
        tilted = told(dataclasses.replace(batch, batch_B=torch.tensor([1, IGNORE, 2])))
    query_BQ = batch.masked.query_BQ
    level_BQK = told.factors.tilted(query_BQ) if factors else magnitude_scale(N_BINS).expand(3, 6, -1)
    for b, code in ((0, 1), (2, 2)):
        tilt_Q1 = told.batches.tilt.weight[code, query_BQ[b]][:, None]
        for name in ("masked_BQK", "whole_BQK"):
            moved = getattr(tilted, name)[b] - getattr(nothing, name)[b]
            torch.testing.assert_close(moved, tilt_Q1 * level_BQK[b], atol=1e-5, rtol=1e-4)


def test_a_prepared_memory_keeps_the_batches(told, make_batch) -> None:
    batch = dataclasses.replace(make_batch([5, 9, 4], n_queries=6), batch_B=torch.tensor([2, 0, IGNORE]))
    with torch.no_grad():
        memory = told.memory(told.encode(batch))
        expected = told.decode(batch.masked, memory)
        prepared = told.prepare(memory)
        torch.testing.assert_close(told.decode(batch.masked, prepared), expected)
        for b in range(3):  # a memory of one context serves all rows, and so does its batch
            alone = told.decode(batch.masked, prepared.cells(slice(b, b + 1)))
            torch.testing.assert_close(alone[b], expected[b], atol=1e-5, rtol=1e-4)


def test_batches_learn_and_move_with_the_batch(told, make_batch) -> None:
    batch = dataclasses.replace(make_batch([5, 9], n_queries=6), batch_B=torch.tensor([2, 0]))
    assert torch.equal(batch.to("cpu").batch_B, batch.batch_B)
    told(batch).masked_BQK.square().sum().backward()
    for weight in told.batches.parameters():
        moved = weight.grad.abs().sum(1) > 0
        assert moved.tolist() == [True, False, True]
