"""What is timed: our code and a rival in one process, in turn, on one thread, in CPU seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from benchmarks.measure import interleaved, measured, ratio
from benchmarks.registry import Measurement
from benchmarks.speed import flops, inputs, ours, rivals
from cellxpert.config import ModelConfig, preset
from cellxpert.nn.experts import Dense, Experts

__all__ = ["embed", "experts", "matmul", "tokenise", "train"]

OURS = "cellxpert-base"
PEAK_SHAPES = ((1024, 1024, 1024), (4096, 256, 1024), (2048, 512, 2048))
"""(rows, inner, columns) of the matrix products among which the machine's peak is sought; outputs stay under 32 MiB."""

Seconds = dict[str, list[float]]


def matmul() -> tuple[Callable[[], object], int]:
    """Return the fastest fp32 matrix product of this machine (for this number of threads) and its operations."""
    functions, operations = {}, {}
    for rows, inner, columns in PEAK_SHAPES:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        out, name = torch.empty(rows, columns), f"{rows}x{inner}x{columns}"
        functions[name] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
        operations[name] = 2 * rows * inner * columns
    seconds = interleaved(functions, repeats=15)
    best = max(functions, key=lambda name: operations[name] / statistics.median(seconds[name]))
    repeat = math.ceil(0.3e9 * 20 / operations[best])  # some 60 ms, so that the clock's grain does not count

    def peak() -> None:
        for _ in range(repeat):
            functions[best]()

    return peak, operations[best] * repeat


def _rows(
    seconds: Seconds, n_cells: int, extra: dict[str, dict[str, float]], cost: tuple[float, float]
) -> list[Measurement]:
    """Return the cells per CPU second of every method, and what else was found out about it."""
    return [
        Measurement(
            method=method,
            metrics={"cells_per_cpu_s": n_cells / statistics.median(took)} | extra.get(method, {}),
            seconds=cost[0],
            mib=cost[1],
        )
        for method, took in seconds.items()
    ]


def tokenise(*, n_detected: int, n_cells: int, repeats: int) -> list[Measurement]:
    """Counts -> tokens: our global and per-cell bins, and scGPT's procedure. Every detected gene is in the vocabulary.

    Ours starts from the object of the user (rows, matching of names); the rival's from its matrix.
    """
    from cellxpert.data.cells import Cells
    from cellxpert.data.setup import setup_anndata
    from cellxpert.data.tokens import tokenize
    from cellxpert.data.vocabulary import Vocabulary

    config = preset("base").tokens
    with measured() as cost:
        adata = inputs.random_counts(n_cells, n_genes=config.n_genes, n_detected=n_detected)
        cells = Cells.open(adata, setup_anndata(adata))
        functions: dict[str, Callable[[], object]] = {}
        for name, binning in (("cellxpert-global-bins", "global"), ("cellxpert-per-cell-bins", "per_cell")):
            tokens = ModelConfig(tokens=config).replace(binning=binning).tokens
            vocabulary = Vocabulary.fit(cells, tokens, train_rows=np.arange(n_cells))
            functions[name] = lambda v=vocabulary, t=tokens: tokenize(cells, v, t)
        rng, ids = np.random.default_rng(0), np.arange(adata.n_vars)
        functions["scgpt_binning"] = lambda: rivals.per_cell_digitize(adata.X, ids, n_bins=config.n_bins, rng=rng)
        seconds = interleaved(functions, repeats=repeats)
    slow = seconds["scgpt_binning"]
    extra = {n: {"speed_vs_scgpt_binning": ratio(slow, took)} for n, took in seconds.items() if n != "scgpt_binning"}
    return _rows(seconds, n_cells, extra, (cost.seconds, cost.mib))


def _versus(seconds: Seconds, operations: int, peak_operations: int) -> dict[str, dict[str, float]]:
    """Our speed against each rival's, and against the machine's peak."""
    mine, peak = seconds[OURS], seconds.pop("peak")
    shares = [operations / m / (peak_operations / p) for m, p in zip(mine, peak, strict=True)]
    found = {f"speed_vs_{name}": ratio(took, mine) for name, took in seconds.items() if name != OURS}
    found["share_of_peak"] = statistics.median(shares)
    found["gflop_per_cpu_s"] = operations / statistics.median(mine) / 1e9
    found["peak_gflop_per_cpu_s"] = peak_operations / statistics.median(peak) / 1e9
    return {OURS: found}


def embed(*, length: int, n_cells: int, repeats: int) -> list[Measurement]:
    """Cell vectors of cells of ``length`` tokens by ``base``, and forward passes of the rivals.

    Geneformer's own forward pass has a language-model head over all tokens; ``geneformer_v1_body`` is it without.
    """
    config = preset("base")
    with measured() as cost, torch.inference_mode():
        network = ours.network_of(config).eval()
        batch = inputs.inference_batch(n_cells, length=length, config=config)
        ids = torch.randint(0, config.tokens.n_genes, (n_cells, length))
        geneformer = rivals.geneformer_v1().eval()
        dense = rivals.DenseBert(config, decoder=False).eval()
        peak, peak_operations = matmul()
        seconds = interleaved(
            {
                OURS: lambda: network.encode(batch).cell_BD,
                "geneformer_v1": lambda: geneformer(input_ids=ids),
                "geneformer_v1_body": lambda: geneformer.bert(input_ids=ids),
                "dense_bert": lambda: dense(ids),
                "peak": peak,
            },
            repeats=repeats,
        )
    extra = _versus(seconds, flops.encoder_flops(config.network, [length] * n_cells), peak_operations)
    return _rows(seconds, n_cells, extra, (cost.seconds, cost.mib))


def train(*, length: int, n_cells: int, repeats: int) -> list[Measurement]:
    """Training steps (forward, backward, AdamW; 15 % hidden) of ``base`` and of the rivals."""
    with measured() as cost:
        config = preset("base")
        batch = inputs.training_batch(n_cells, length=length, config=config)
        functions = {OURS: ours.training_step(batch)}
        for method in ("geneformer_v1", "dense_bert"):
            functions[method] = rivals.training_step(method, length=length, n_cells=n_cells)
        functions["peak"], peak_operations = matmul()
        seconds = interleaved(functions, repeats=repeats)
    extra = _versus(seconds, ours.step_flops(config, batch), peak_operations)
    return _rows(seconds, n_cells, extra, (cost.seconds, cost.mib))


class _FeedForward(nn.Module):
    """One interface for both feed-forwards; the router's statistics are made, as in training."""

    def __init__(self, body: Experts | Dense) -> None:
        super().__init__()
        self.body = body

    def step(self, x_TD: torch.Tensor) -> None:
        """Forward and backward."""
        x_TD.grad = None
        for weight in self.parameters():
            weight.grad = None
        out = (
            self.body(x_TD, torch.ones(len(x_TD), dtype=torch.bool))
            if isinstance(self.body, Experts)
            else self.body(x_TD)
        )
        (out[0] if isinstance(out, tuple) else out).sum().backward()


def experts(*, n_tokens: int, repeats: int) -> list[Measurement]:
    """Forward and backward of the experts of ``base`` and of a dense feed-forward of equal active operations."""
    shape = preset("base").network
    torch.manual_seed(0)
    with measured() as cost:
        sparse = Experts(
            shape.width, shape.expert_hidden, n_experts=shape.n_experts, experts_per_token=shape.experts_per_token
        )
        for weight in sparse.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        modules = {
            "cellxpert-experts": _FeedForward(sparse.train()),
            "dense_feed_forward": _FeedForward(Dense(shape.width, shape.experts_per_token * shape.expert_hidden)),
        }
        x_TD = torch.randn(n_tokens, shape.width, requires_grad=True)
        seconds = interleaved({name: lambda m=m: m.step(x_TD) for name, m in modules.items()}, repeats=repeats)
    slower = ratio(seconds["cellxpert-experts"], seconds["dense_feed_forward"])
    return [
        Measurement(
            method=name,
            metrics={"tokens_per_cpu_s": n_tokens / statistics.median(took)}
            | ({"time_vs_dense_feed_forward": slower} if name == "cellxpert-experts" else {}),
            seconds=cost.seconds,
            mib=cost.mib,
        )
        for name, took in seconds.items()
    ]
