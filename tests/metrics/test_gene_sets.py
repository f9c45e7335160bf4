from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from cellxpert import metrics
from cellxpert.errors import MetricError

SETS = {"x": ["A", "B"], "y": ["B", "C", "D"], "z": ["A", "B", "E"], "all": list("ABCDE"), "one": ["F"]}


def cosines(genes):
    """Weighted memberships, plain: log(genes in any set / genes in the set); 'one' is too small to be used."""
    used = [members for name, members in SETS.items() if name != "one"]
    rows = np.array([[np.log(5 / len(members)) * (gene in members) for members in used] for gene in genes])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return rows @ rows.T


def test_all_dimensions_keep_the_cosines():
    genes = ["E", "unknown", "A", "C", "F", "B"]
    embedding = metrics.gene_set_embedding(SETS, genes)
    np.testing.assert_allclose(embedding @ embedding.T, cosines(genes), atol=1e-12)
    np.testing.assert_array_equal(embedding[[1, 4]], np.zeros((2, embedding.shape[1])))
    assert embedding.shape[1] <= len(genes)


def test_few_dimensions_are_the_leading_singular_vectors():
    rng = np.random.default_rng(0)
    names = [f"g{i:02d}" for i in range(40)]
    sets = {f"s{i}": list(rng.choice(names, rng.integers(3, 15), replace=False)) for i in range(30)}
    known = sorted({g for members in sets.values() for g in members})
    rows = np.array([[np.log(len(known) / len(m)) * (g in m) for m in sets.values()] for g in known])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    expected = left[:, :6] * values[:6]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = metrics.gene_set_embedding(sets, [*known, "unknown"], n_components=6)
    np.testing.assert_allclose(got[:-1] @ got[:-1].T, expected @ expected.T, atol=1e-8)
    np.testing.assert_array_equal(got[-1], np.zeros(6))
    # a gene's row does not depend on the others asked for
    np.testing.assert_array_equal(metrics.gene_set_embedding(sets, known[5:9], n_components=6), got[5:9])


def test_sizes_and_names_are_respected():
    assert (metrics.gene_set_embedding(SETS, ["C", "E"], max_size=2) == 0).all()
    with pytest.raises(MetricError, match="no set of 6 to 500"):
        metrics.gene_set_embedding(SETS, ["A"], min_size=6)
    with pytest.raises(MetricError, match="twice"):
        metrics.gene_set_embedding(SETS, ["A", "A"])
    with pytest.raises(MetricError, match="ask for fewer"):
        metrics.gene_set_embedding(SETS, ["A"], n_components=4)


def test_the_same_in_every_process():
    """The order of a set of names depends on the process."""
    code = (
        "import json; from cellxpert import metrics\n"
        "sets = {'s%d' % i: {'g%d' % (j * j % 31) for j in range(i, i + 12)} for i in range(20)}\n"
        "genes = ['g%d' % i for i in range(31)]\n"
        "print(json.dumps([metrics.gene_set_embedding(sets, genes, n_components=n).tolist() for n in (None, 5)]))"
    )
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
            ).stdout
        )
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_read_gmt(tmp_path):
    text = "S1\thttp://somewhere\tA\tB\tA\nS 2 (GO:1)\t\tC,1.0\tD,0.5\t\n\n"
    expected = {"S1": ("A", "B"), "S 2 (GO:1)": ("C", "D")}
    (tmp_path / "a.gmt").write_text(text)
    (tmp_path / "b.gmt.gz").write_bytes(gzip.compress(text.encode()))
    assert metrics.read_gmt(tmp_path / "a.gmt") == metrics.read_gmt(str(tmp_path / "b.gmt.gz")) == expected
    (tmp_path / "c.gmt").write_text("S1\tx\tA\nS1\tx\tB\n")
    with pytest.raises(MetricError, match="line 2: 'S1' again"):
        metrics.read_gmt(tmp_path / "c.gmt")
    (tmp_path / "d.gmt").write_text("no tabs here\n")
    with pytest.raises(MetricError, match="no tab"):
        metrics.read_gmt(tmp_path / "d.gmt")


def test_real_gene_sets_put_a_pathway_together(real_data):
    sets = metrics.read_gmt(real_data / "vocab" / "c2.cp.reactome.v6.2.symbols.gmt")
    genes = ["IFNGR1", "IFNGR2", "JAK2", "STAT1", "MYC", "PDCD1LG2"]
    embedding = metrics.gene_set_embedding(sets, genes)
    similarity = embedding @ embedding.T
    assert len(sets) == 674
    assert similarity[0, 1:4].min() > similarity[0, 4:].max()
