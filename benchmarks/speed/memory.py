"""Peak memory of training, each method in a process of its own: ``python -m benchmarks.speed.memory METHOD BATCH``."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import ROOT, peak_mib

if TYPE_CHECKING:
    from benchmarks.registry import Measurement

__all__ = ["main", "training_memory"]

OURS = "cellxpert-base"
STEPS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a few steps and print ``{"imported": MiB, "peak": MiB}``. A process imports what its method needs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("batch", type=Path, help="our batch (see inputs.save_batch)")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--cells", type=int, default=4)
    args = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    if args.method == OURS:
        from benchmarks.speed import inputs, ours

        imported = peak_mib()
        step = ours.training_step(inputs.load_batch(args.batch))
    else:
        from benchmarks.speed import rivals

        imported = peak_mib()
        step = rivals.training_step(args.method, length=args.length, n_cells=args.cells)
    for _ in range(STEPS):
        step()
    print(json.dumps({"imported": imported, "peak": peak_mib()}))


def training_memory(*, length: int, n_cells: int) -> list[Measurement]:
    """Peak resident memory of a training process of ``base`` and of its rivals: whole, and what it added to its imports."""
    from benchmarks.registry import Measurement  # this module's imports count as every method's memory
    from benchmarks.speed.inputs import save_batch, training_batch
    from cellxpert.config import preset

    start, found = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.npz"
        save_batch(training_batch(n_cells, length=length, config=preset("base")), path)
        for method in (OURS, "geneformer_v1", "dense_bert"):
            command = [sys.executable, "-m", "benchmarks.speed.memory", method, str(path)]
            command += ["--length", str(length), "--cells", str(n_cells)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            found[method] = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for method, memory in found.items():
        metrics = {"peak_mib": memory["peak"], "added_mib": memory["peak"] - memory["imported"]}
        if method == OURS:
            for rival, its in found.items():
                if rival != method:
                    metrics[f"memory_vs_{rival}"] = memory["peak"] / its["peak"]
                    metrics[f"added_memory_vs_{rival}"] = metrics["added_mib"] / (its["peak"] - its["imported"])
        rows.append(Measurement(method=method, metrics=metrics, seconds=time.perf_counter() - start, mib=math.nan))
    return rows


if __name__ == "__main__":
    main()
