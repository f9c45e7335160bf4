from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers", reason="the rivals of the speed task need transformers (group 'benchmark')")

from benchmarks.measure import ROOT
from benchmarks.registry import Options
from benchmarks.speed import cases, flops, gpu, inputs, ours, rivals, sampling
from benchmarks.speed.step import step_of
from benchmarks.tasks.speed import BARS, TASK

from cellxpert.config import ModelConfig, NetworkConfig, TokenConfig, preset

SMALL = ModelConfig(
    tokens=TokenConfig(n_genes=200),
    network=NetworkConfig(width=64, encoder_layers=2, decoder_layers=2, n_experts=4, expert_hidden=32, pooling="cls"),
).replace(n_queries=16, attention="reference")


def _counted(function) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("feed_forward", ["experts", "dense"])
def test_encoder_flops_are_those_that_torch_counts(feed_forward: str) -> None:
    config = SMALL.replace(feed_forward=feed_forward)
    network = ours.network_of(config).eval()
    batch = inputs.inference_batch(3, length=50, config=config)
    assert flops.encoder_flops(config.network, [50] * 3) == _counted(lambda: network.encode(batch))


def test_decoder_flops_are_those_that_torch_counts() -> None:
    network = ours.network_of(SMALL).eval()
    batch = inputs.training_batch(3, length=50, config=SMALL)
    with torch.no_grad():
        encoded = network.encode(batch)
    lengths = batch.lengths_B.tolist()
    n_whole = batch.whole.query_BQ.shape[1]
    masked = flops.decoder_flops(SMALL.network, n_memory=lengths, n_queries=16, n_values=16, n_bins=50)
    assert masked == _counted(lambda: network.decode(batch.masked, network.memory(encoded)))
    whole = flops.decoder_flops(SMALL.network, n_memory=[0] * 3, n_queries=n_whole, n_values=0, n_bins=50)
    assert whole == _counted(lambda: network.decode_cell(batch.whole.query_BQ, encoded))
    assert ours.step_flops(SMALL, batch) == 3 * (flops.encoder_flops(SMALL.network, lengths) + masked + whole)


def test_the_rivals_have_their_sizes() -> None:
    assert sum(p.numel() for p in rivals.geneformer_v1().parameters()) == pytest.approx(10.3e6, rel=0.01)
    config = preset("base")
    for decoder in (False, True):
        dense = rivals.DenseBert(config, decoder=decoder)
        layers = sum(p.numel() for n, p in dense.body.encoder.named_parameters() if p.ndim == 2)
        active = flops.active_encoder_parameters(config.network)
        active += flops.active_decoder_parameters(config.network) if decoder else 0
        assert layers == pytest.approx(active, rel=1e-3)


def test_the_masked_model_has_the_parameters_asked_for() -> None:
    config = preset("base")
    for n_parameters in (ours.network_of(SMALL).n_parameters(), rivals.active_parameters(config), 26_300_000):
        bert = rivals.MaskedBert(config, n_parameters=max(n_parameters, 5_000_000), length=300)
        found = sum(p.numel() for p in bert.parameters())
        assert found == pytest.approx(max(n_parameters, 5_000_000), rel=2e-3)


def test_the_rivals_sampler_moves_as_it_should() -> None:
    """Two passes and four passes are the same chain; conditionals do not see what is hidden."""
    moved = []
    for careful in (True, False):
        bert = rivals.MaskedBert(SMALL, n_parameters=400_000, length=20).eval()
        with torch.no_grad():
            bert.head.weight.mul_(3)
            chain = sampling.SamplerOfBert(bert, length=20, n_sites=6, size=2)
            seen = []
            for _ in range(15):
                chain.step(careful=careful)
                seen.append(chain.bin_1L.clone())
            hidden = torch.tensor([1, 4])
            other = chain.bin_1L.clone()
            other[0, hidden] = (other[0, hidden] + 7) % 50
            torch.testing.assert_close(chain.conditionals(chain.bin_1L, hidden), chain.conditionals(other, hidden))
        moved.append(torch.cat(seen))
    assert torch.equal(*moved)
    assert len(moved[0].unique(dim=0)) > 2
    assert torch.equal(moved[0][:, 6:], moved[0][:1, 6:].expand(15, -1))


def test_per_cell_digitize_keeps_order_and_fills_bins_evenly() -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(np.arange(1, 491)).astype(np.float64)
    dense = np.zeros((2, 600))
    dense[0, :490], dense[1, 100:590] = values, values[::-1]
    ids = np.arange(1000, 1600)
    for row, (token, bins) in zip(
        dense, rivals.per_cell_digitize(sp.csr_matrix(dense), ids, n_bins=50, rng=rng), strict=True
    ):
        np.testing.assert_array_equal(token, ids[np.flatnonzero(row)])
        assert (np.diff(bins[np.argsort(row[row > 0])]) >= 0).all()
        assert bins.min() == 1
        assert bins.max() == 49
        assert np.bincount(bins, minlength=50)[2:49].std() < 1


def test_inputs_have_the_sizes_asked_for() -> None:
    adata = inputs.random_counts(7, n_genes=100, n_detected=23)
    assert (np.diff(adata.X.indptr) == 23).all()
    assert adata.X.has_canonical_format
    assert adata.X.data.min() >= 1
    batch = inputs.training_batch(3, length=101, config=SMALL)
    assert batch.lengths_B.tolist() == [86] * 3  # 15 of 100 tokens are hidden
    assert batch.masked.query_BQ.shape == (3, 16)
    assert inputs.inference_batch(3, length=101, config=SMALL).lengths_B.tolist() == [101] * 3


def test_batches_survive_the_way_to_another_process(tmp_path: Path) -> None:
    batch = inputs.training_batch(3, length=50, config=SMALL)
    inputs.save_batch(batch, tmp_path / "batch.npz")
    again = inputs.load_batch(tmp_path / "batch.npz")
    for one, other in ((batch, again), (batch.masked, again.masked), (batch.whole, again.whole)):
        for field in fields(one):
            value = getattr(one, field.name)
            if value is None or field.name in {"masked", "whole"}:
                continue
            torch.testing.assert_close(value, getattr(other, field.name), rtol=0, atol=0)


def test_routers_send_tokens_to_different_experts() -> None:
    network = ours.network_of(SMALL).eval()
    encoded = network.encode(inputs.inference_batch(2, length=100, config=SMALL))
    for router in encoded.routers:
        assert router.count_E.min() > 0
        assert router.count_E.max() < 2 * router.count_E.mean()  # trained ones: 1.3 to 2.8


def test_training_steps_reduce_the_loss() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    x = torch.randn(20, 3)
    losses = []

    def loss() -> torch.Tensor:
        value = (layer(x) - x.sum(1, keepdim=True)).square().mean()
        losses.append(value.item())
        return value

    step = step_of(loss, torch.optim.AdamW(layer.parameters(), lr=0.1))
    for _ in range(20):
        step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments", "method", "metrics"),
    [
        ("tokenise", {"n_detected": 50, "n_cells": 32}, "cellxpert-per-cell-bins", {"speed_vs_scgpt_binning"}),
        (
            "embed",
            {"length": 32, "n_cells": 1},
            "cellxpert-base",
            {"speed_vs_geneformer_v1", "speed_vs_dense_bert", "share_of_peak"},
        ),
        ("experts", {"n_tokens": 64}, "cellxpert-experts", {"time_vs_dense_feed_forward"}),
    ],
)
def test_cases_measure_both_sides(function: str, arguments: dict[str, int], method: str, metrics: set[str]) -> None:
    found = {m.method: m.metrics for m in getattr(cases, function)(**arguments, repeats=1)}
    assert metrics <= set(found[method])
    assert len(found) > 1
    assert all(value > 0 for values in found.values() for value in values.values())


@pytest.mark.slow
def test_sampling_measures_both_sides() -> None:
    found = {m.method: m.metrics for m in sampling.steps(length=32, n_sites=6, n_chains=2, size=2, repeats=1)}
    bars = {metric for split, _, metric, *_ in BARS if split.startswith("steps")}
    assert bars <= set(found["cellxpert-base"])
    assert len(found) == 6
    assert all(value > 0 for values in found.values() for value in values.values())
    found = {m.method: m.metrics for m in sampling.pseudo_likelihood(length=32, n_sites=8, n_timed=2, repeats=1)}
    bars = {metric for split, _, metric, *_ in BARS if split.startswith("pseudo")}
    assert bars <= set(found["cellxpert-base"])
    # passes that were not timed count too
    assert found["bert_masked_passes"]["cells_per_cpu_s"] < found["cellxpert-base"]["cells_per_cpu_s"]


@pytest.mark.slow
def test_memory_of_training(tmp_path: Path) -> None:
    inputs.save_batch(inputs.training_batch(1, length=32, config=preset("base")), tmp_path / "batch.npz")
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src")]))
    command = [sys.executable, "-m", "benchmarks.speed.memory", "cellxpert-base", str(tmp_path / "batch.npz")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)
    weights_mib = 4 * ours.network_of(preset("base")).n_parameters() / 2**20
    assert memory["peak"] > memory["imported"] + 4 * weights_mib  # weights, gradients, AdamW's two moments


def test_every_bar_belongs_to_a_case() -> None:
    splits = {case.split for case in TASK.cases(Options())}
    assert {split for split, *_ in BARS} <= splits
    assert TASK.threads == 1


def test_gpu_code_runs_on_the_cpu() -> None:
    (sdpa, reference) = gpu.backends_agree(device="cpu", lengths=(3, 1, 7), repeats=1)
    for found in (sdpa, reference):
        assert found.metrics["attention_max_abs_difference"] < 0.05
        assert found.metrics["vector_min_cosine"] > 0.99
    for measure, arguments in ((gpu.embed, {"length": 16}), (gpu.train, {"length": 16}), (gpu.ragged, {"longest": 16})):
        first = measure(device="cpu", n_cells=2, repeats=1, matmul=64, **arguments)[0]
        assert first.method == "cellxpert-base-sdpa"
        assert first.metrics["mfu"] > 0
        assert math.isnan(first.metrics.get("peak_device_mib", math.nan))
