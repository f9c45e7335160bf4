"""What is measured on a GPU: backends of attention agree, and how fast and how large ``base`` is.

Every function takes the device, so that its code runs (slowly, and on the backends that are there) on a CPU in the tests.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.measure import interleaved, measured, ratio
from benchmarks.registry import Measurement
from benchmarks.speed import flops, inputs, ours, rivals
from benchmarks.speed.step import step_of
from cellxpert.config import preset
from cellxpert.nn.attention import Layout, available_backends, self_attention
from cellxpert.training.objectives import total_loss
from cellxpert.training.optimizers import build_optimizer

__all__ = ["backends_agree", "embed", "ragged", "train"]

MATMUL = 8192
"""Side of the square matrices whose bf16 product is the peak that MFU is relative to."""


def _clock(device: str) -> Callable[[], float]:
    """Return a clock that waits for the device."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


@contextlib.contextmanager
def _memory(device: str, found: dict[str, float]):
    """Note the most memory that torch held on the device, MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    found["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else math.nan


def _peak(device: str, size: int = MATMUL) -> tuple[Callable[[], object], int]:
    """Return a bf16 matrix product and its operations."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b, 2 * size**3


def _method(backend: str) -> str:
    return f"cellxpert-base-{backend}"


def backends_agree(*, device: str, lengths: tuple[int, ...], repeats: int) -> list[Measurement]:
    """Largest difference of every attention backend from the fp32 reference, and of the vectors of whole networks."""
    generator = torch.Generator().manual_seed(0)
    rows, layout = [], Layout.of(torch.tensor(lengths), device)
    qkv = torch.randn(sum(lengths), 3, 4, 64, generator=generator).to(device)
    truth = self_attention(qkv, layout, backend="reference")
    config = preset("base")
    batch = inputs.inference_batch(len(lengths), length=min(lengths), config=config)
    with measured() as cost, torch.inference_mode():
        network = ours.network_of(config).eval().to(device)
        vectors = network.encode(batch.to(device)).cell_BD
        for backend in available_backends(device, torch.bfloat16):
            got = self_attention(qkv.bfloat16(), layout, backend=backend).float()
            config_b = replace(config, network=replace(config.network, attention=backend))
            other = ours.network_of(config_b).eval().to(device)
            with torch.autocast(device, dtype=torch.bfloat16):
                theirs = other.encode(batch.to(device)).cell_BD
            metrics = {
                "attention_max_abs_difference": (got - truth).abs().max().item(),
                "vector_min_cosine": torch.cosine_similarity(vectors, theirs).min().item(),
            }
            rows.append((_method(backend), metrics))
    return [Measurement(method=name, metrics=metrics, seconds=cost.seconds, mib=cost.mib) for name, metrics in rows]


def _report(
    seconds: dict[str, list[float]],
    extra: dict[str, dict[str, float]],
    *,
    n_cells: int,
    operations: int,
    peak_operations: int,
) -> list[Measurement]:
    """Cells per second of each method, model operations over the measured peak of ours, and speed-ups of ours."""
    peak = seconds.pop("peak")
    rows = []
    for method, took in seconds.items():
        metrics = {"cells_per_s": n_cells / statistics.median(took)} | extra.get(method, {})
        if method.startswith("cellxpert"):
            metrics["mfu"] = statistics.median(
                operations / t / (peak_operations / p) for t, p in zip(took, peak, strict=True)
            )
            metrics["model_tflop_per_s"] = operations / statistics.median(took) / 1e12
            metrics["peak_tflop_per_s"] = peak_operations / statistics.median(peak) / 1e12
            metrics |= {f"speed_vs_{name}": ratio(other, took) for name, other in seconds.items() if name != method}
        rows.append(Measurement(method=method, metrics=metrics, seconds=sum(took), mib=math.nan))
    return rows


def embed(*, device: str, length: int, n_cells: int, repeats: int, matmul: int = MATMUL) -> list[Measurement]:
    """Cell vectors in bf16 by every backend that is fit for it, and Geneformer V1's forward pass (up to 2,048 tokens)."""
    config, functions, extra = preset("base"), {}, {}
    batch = inputs.inference_batch(n_cells, length=length, config=config).to(device)
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        for backend in available_backends(device, torch.bfloat16):
            if backend == "reference":
                continue
            shape = replace(config, network=replace(config.network, attention=backend))
            network = ours.network_of(shape).eval().to(device)
            functions[_method(backend)] = lambda n=network: n.encode(batch).cell_BD
            with _memory(device, extra.setdefault(_method(backend), {})):
                functions[_method(backend)]()
        if length <= 2048:
            rival = rivals.geneformer_v1().eval().to(device)
            ids = torch.randint(0, config.tokens.n_genes, (n_cells, length), device=device)
            functions["geneformer_v1"] = lambda: rival(input_ids=ids)
        functions["peak"], peak_operations = _peak(device, matmul)
        seconds = interleaved(functions, repeats=repeats, clock=_clock(device))
    operations = flops.encoder_flops(config.network, [length] * n_cells)
    return _report(seconds, extra, n_cells=n_cells, operations=operations, peak_operations=peak_operations)


def train(*, device: str, length: int, n_cells: int, repeats: int, matmul: int = MATMUL) -> list[Measurement]:
    """Training steps (bf16 mixed, 15 % hidden, AdamW) by every backend that is fit for it."""
    config, functions, extra = preset("base"), {}, {}
    batch = inputs.training_batch(n_cells, length=length, config=config)
    operations = ours.step_flops(config, batch)
    batch = batch.to(device)
    for backend in available_backends(device, torch.bfloat16):
        if backend == "reference":
            continue
        shape = replace(config, network=replace(config.network, attention=backend))
        network = ours.network_of(shape).train().to(device)
        optimizer, _ = build_optimizer(network, config.training, n_steps=1000)

        def loss(network=network):
            with torch.autocast(device, dtype=torch.bfloat16):
                return total_loss(network(batch), batch, config=config.training)[0]

        functions[_method(backend)] = step_of(loss, optimizer)
        with _memory(device, extra.setdefault(_method(backend), {})):
            functions[_method(backend)]()
    functions["peak"], peak_operations = _peak(device, matmul)
    seconds = interleaved(functions, repeats=repeats, clock=_clock(device))
    return _report(seconds, extra, n_cells=n_cells, operations=operations, peak_operations=peak_operations)


def ragged(*, device: str, longest: int, n_cells: int, repeats: int, matmul: int = MATMUL) -> list[Measurement]:
    """Attention alone, bf16, forward: variable-length kernels against padded SDPA on cells of unequal length."""
    lengths = np.random.default_rng(0).integers(longest // 8, longest + 1, size=n_cells)
    layout = Layout.of(torch.from_numpy(lengths), device)
    qkv = torch.randn(int(lengths.sum()), 3, 4, 64, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        functions: dict[str, Callable[[], object]] = {
            _method(b): lambda b=b: self_attention(qkv, layout, backend=b)
            for b in available_backends(device, torch.bfloat16)
            if b != "reference"
        }
        functions["peak"], peak_operations = _peak(device, matmul)
        seconds = interleaved(functions, repeats=repeats, clock=_clock(device))
    operations = sum(4 * int(n) ** 2 * 256 for n in lengths)
    return _report(seconds, {}, n_cells=n_cells, operations=operations, peak_operations=peak_operations)
