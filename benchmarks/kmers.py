"""Whether k-mers of peaks are better read as counts or as logs of shares, between depths and between peak calls.

Simulated cells of six types, in which peaks with other motifs are open; a nano model is trained on cells of one depth and one set of peaks,
and labels cells of another. ``python -m benchmarks.kmers`` prints the shares of right labels (a few minutes for each seed).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

import cellxpert as cx
from cellxpert.data.cells import Cells

N_TYPES, N_MOTIFS, N_PEAKS, N_BASES, K = 6, 12, 3000, 300, 4
DEPTH = 1500
"""Counts in peaks of a usual training cell."""

Ints = npt.NDArray[np.int64]


def simulator(rng: np.random.Generator, folder: Path) -> Callable[..., ad.AnnData]:
    """Write a genome of peaks with one of a few motifs each; return what draws cells by k-mers."""
    bases = np.array(list("ACGT"))
    motifs = rng.choice(bases, (N_MOTIFS, 8))
    motif_P = rng.integers(N_MOTIFS, size=N_PEAKS)
    sequence_PB = rng.choice(bases, (N_PEAKS, N_BASES))
    for p, m in enumerate(motif_P):
        for at in rng.integers(0, N_BASES - 8, 3):
            sequence_PB[p, at : at + 8] = motifs[m]
    fasta = folder / "genome.fa"
    fasta.write_text(">chr1\n" + "\n".join("".join(row) for row in sequence_PB) + "\n", encoding="ascii")
    activity_TM, base_P = rng.lognormal(0, 0.35, (N_TYPES, N_MOTIFS)), rng.lognormal(0, 1, N_PEAKS)

    def draw(n_cells: int, depth: float, peaks: Ints) -> ad.AnnData:
        kind = rng.integers(N_TYPES, size=n_cells)
        rate = base_P[peaks] * activity_TM[kind][:, motif_P[peaks]]
        rate *= (depth * rng.lognormal(0, 0.4, n_cells) / rate.sum(axis=1))[:, None]
        names = [f"chr1:{p * N_BASES}-{(p + 1) * N_BASES}" for p in peaks]
        obs = pd.DataFrame({"type": [f"type{t}" for t in kind]}, index=[f"cell{i}" for i in range(n_cells)])
        counts = sparse.csr_matrix(rng.poisson(rate).astype(np.int32))
        return cx.peaks_to_kmers(ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names)), fasta, k=K)

    return draw


def compare(seed: int, folder: Path) -> pd.DataFrame:
    """Share of right labels: a row per query, a column per way of reading."""
    rng = np.random.default_rng(seed)
    draw = simulator(rng, folder)
    order = rng.permutation(N_PEAKS)
    same, other = np.sort(order[: 2 * N_PEAKS // 3]), np.sort(order[N_PEAKS // 3 :])
    train = draw(1200, DEPTH, same)
    queries = {
        "same peaks, same depth": draw(600, DEPTH, same),
        "same peaks, a third of the depth": draw(600, DEPTH / 3, same),
        "same peaks, three times the depth": draw(600, 3 * DEPTH, same),
        "other peaks, same depth": draw(600, DEPTH, other),
        "other peaks, a third of the depth": draw(600, DEPTH / 3, other),
    }
    found: dict[str, dict[str, float]] = {}
    for transform in ("log", "counts"):
        with mock.patch.object(Cells, "transform", lambda _, __, transform=transform: transform):
            cells = train.copy()
            cx.CellxPert.setup_anndata(cells, modality="atac", labels_key="type")
            model = cx.CellxPert(cells, preset="nano", seed=0)
            model.train(max_epochs=5, progress_bar=False)
            found[transform] = {
                name: float(
                    (
                        model.annotate(query, unknown=False, inplace=False)["label"].astype(str) == query.obs["type"]
                    ).mean()
                )
                for name, query in queries.items()
            }
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    n_seeds = parser.parse_args().seeds
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        tables = []
        for seed in range(n_seeds):
            place = Path(folder) / str(seed)
            place.mkdir()
            tables.append(compare(seed, place))
    print((sum(tables) / n_seeds).round(3).to_string())


if __name__ == "__main__":
    main()
