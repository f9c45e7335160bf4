from __future__ import annotations

from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets_union import UNION, Part, Union, capped, side_by_side
from benchmarks.methods import UNION as METHODS
from benchmarks.registry import Options
from benchmarks.tasks.union import TASK, annotate_all, term_scores

B, NAIVE_B, CD4, CD4_NAIVE, NK = "CL:0000236", "CL:0000788", "CL:0000624", "CL:0000895", "CL:0000623"
GENES = [f"t{k}_{i}" for k in range(3) for i in range(20)]


def _cells(names: tuple[str, ...], seed: int, genes: list[str], n: int = 90) -> anndata.AnnData:
    """Type i has many counts of genes "t<i>", whatever it is called."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % len(names)
    rate = np.array([[8.0 if gene.startswith(f"t{k}") else 0.4 for gene in genes] for k in kind])
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.int32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], genes
    adata.obs["kind"] = np.array(names)[kind]
    return adata


def _part(
    name: str, names: tuple[str, ...], seed: int, genes: list[str] = GENES, family: str = "", n: int = 90
) -> Part:
    def read(data_dir: Path | None) -> anndata.AnnData:
        return _cells(names, seed, genes, n)

    return Part(name=name, file="", read=read, label_key="kind", family=family)


TOY = Union(
    name="toy",
    parts=(
        _part("one", ("B cells", "CD4 T cells", "NK cells"), 0),
        _part("two", ("B.Naive", "CD4 T cells", "NK"), 1, GENES[::-1]),
    ),
    per_label=25,
)


def test_at_most_so_many_cells_of_a_label() -> None:
    labels = np.array(["a"] * 40 + ["b"] * 4)
    rows = capped(labels, 10)
    assert list(labels[rows]) == ["a"] * 10 + ["b"] * 4
    assert list(rows) == sorted(set(rows))
    assert list(rows) == list(capped(labels, 10))


def test_genes_of_at_least_half_of_the_sets() -> None:
    sets = [["g1", "g2", "g3"], ["g2", "g1"], ["g3", "g4"], ["g4", "g1"]]
    cells = []
    for i, genes in enumerate(sets):
        adata = anndata.AnnData(sp.csr_matrix(np.full((2, len(genes)), i + 1)))
        adata.obs_names, adata.var_names = [f"s{i}:c0", f"s{i}:c1"], genes
        cells.append(adata)
    whole = side_by_side(cells)
    assert list(whole.var_names) == ["g1", "g2", "g3", "g4"]
    assert list(side_by_side(cells[:3]).var_names) == ["g1", "g2", "g3"]
    expected = np.array([[1, 1, 1, 0], [2, 2, 0, 0], [0, 0, 3, 3], [4, 0, 0, 4]])
    np.testing.assert_array_equal(whole.X.toarray(), np.repeat(expected, 2, axis=0))
    assert list(whole.obs_names[:3]) == ["s0:c0", "s0:c1", "s1:c0"]


def test_cells_and_sides_of_a_union() -> None:
    cells, train, test = TOY.load(None)
    assert cells.n_obs == 150
    assert sorted([*train, *test]) == list(range(150))
    sizes = cells.obs.iloc[test].groupby(["set", "label"], observed=True).size()
    assert set(sizes) == {5}
    assert len(sizes) == 6
    one = _cells(("B cells", "CD4 T cells", "NK cells"), 0, GENES)
    for name in cells.obs_names[cells.obs["set"] == "one"][:5]:
        row = one[name.partition(":")[2]]
        np.testing.assert_array_equal(cells[name, GENES].X.toarray(), row.X.toarray())
        assert cells.obs.loc[name, "label"] == row.obs["kind"].iloc[0]


def test_a_cell_of_two_sets_of_a_family_is_taken_once() -> None:
    names = ("B cells", "NK cells", "CD4 T cells")
    part = partial(_part, names=names, seed=0)
    for family, n_more in (("f", 30), ("", 120)):
        union = Union(name="toy", parts=(part("one", family=family), part("two", family=family, n=120)))
        cells, _, _ = union.load(None)
        assert cells.obs["set"].value_counts().to_dict() == {"one": 90, "two": n_more}


def test_scores_by_hand() -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    labels = np.array(["B.Naive", "B.Naive", "CD4", "NK"])
    truth = np.array([NAIVE_B, NAIVE_B, CD4, NK])
    predicted = np.array([B, NAIVE_B, NK, NK])
    scores = term_scores(truth, predicted, labels)
    assert scores["term_accuracy"] == 2 / 4
    assert scores["contradictions"] == pytest.approx(1 / 4)  # NK for CD4
    assert scores["macro_compatible"] == pytest.approx((1 + 0 + 1) / 3)
    assert scores["hierarchical_f1"] < 1
    perfect = term_scores(truth, truth, labels)
    assert perfect["macro_hierarchical_f1"] == perfect["hierarchical_f1"] == 1
    assert perfect["contradictions"] == 0
    silent = term_scores(truth, np.full(4, ""), labels)
    assert silent["contradictions"] == 1
    assert silent["macro_hierarchical_f1"] == 0


@pytest.mark.parametrize("method", ["cellxpert-nano-terms", "cellxpert-nano-names", "logistic_regression"])
def test_methods_tell_types_apart_in_whatever_words(method: str) -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    found, *coarser = annotate_all(TOY, method=method, seed=0, options=Options(quick=True))
    assert [other.method for other in coarser] == [f"{method}-back-off"] * method.endswith("terms")
    assert all(other.metrics["contradictions"] <= found.metrics["contradictions"] for other in coarser)
    assert found.metrics["contradictions"] < 0.05
    assert found.metrics["n_labels"] == 5
    assert found.metrics["n_terms"] == 4  # both words for natural killer cells
    assert found.metrics["accuracy"] < 0.9  # which of two words is a matter of chance


def test_a_hundred_and_sixty_labels_that_overlap() -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    from cellxpert.ontology import CellOntology

    ontology = CellOntology()
    kinds = sorted(ontology.descendants("CL:0000542"), key=lambda term: (ontology.depth(term), term))[:160]
    has = np.array([[other in ontology.ancestors(term) | {term} for other in kinds] for term in kinds])
    rate = np.where(has, 12.0, 0.05)  # a gene of its own, and those of what it is a kind of

    def part(name: str, first: int, last: int) -> Part:
        def read(data_dir: Path | None) -> anndata.AnnData:
            which = np.repeat(np.arange(first, last), 5)
            adata = anndata.AnnData(sp.csr_matrix(np.random.default_rng(first).poisson(rate[which]).astype(np.int32)))
            adata.obs_names = [f"c{i}" for i in range(adata.n_obs)]
            adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
            adata.obs["kind"] = [ontology.name(kinds[i]) for i in which]
            return adata

        return Part(name=name, file="", read=read, label_key="kind")

    union = Union(name="many", parts=(part("one", 0, 85), part("two", 75, 160)))
    found, _ = annotate_all(union, method="cellxpert-nano-terms", seed=0, options=Options(quick=True))
    assert found.metrics["n_labels"] == found.metrics["n_terms"] == 160
    assert found.metrics["contradictions"] < 0.05
    assert found.metrics["term_accuracy"] > 0.5  # a cell of a coarse label may be of a finer one


def test_the_union_of_real_sets(real_data: Path) -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    from cellxpert.ontology import match_labels

    cells, train, test = UNION.load(real_data)
    names = cells.obs["label"].unique()
    assert len(names) > 100
    assert set(cells.obs["label"].iloc[test]) <= set(cells.obs["label"].iloc[train])
    assert cells.obs.groupby(["set", "label"], observed=True).size().max() == UNION.per_label
    assert (match_labels(names)["term"] != "").all()
    bmmc = cells.obs_names[cells.obs["set"].str.startswith("bmmc_cite")].str.partition(":").get_level_values(2)
    assert bmmc.is_unique


def test_cases_and_report(tmp_path: Path) -> None:
    full = TASK.cases(Options())
    assert {case.method for case in full} == set(METHODS)
    assert {case.seed for case in full if case.method == "cellxpert-nano-terms"} == {0, 1, 2}
    assert all("CELLXPERT_DATA" in case.missing for case in full)
    assert {case.data for case in TASK.cases(Options(quick=True))} == {"pbmc68k"}
    row = partial(dict, data="toy", split="s", seed=0, seconds=1.0, mib=9.0)
    rows = [
        row(method=method, metric=metric, value=value)
        for method, value in (("logistic_regression", 0.9), ("majority", 0.5))
        for metric in ("accuracy", "contradictions", "macro_f1")
    ] + [row(method="majority", metric="n_labels", value=117.0)]
    text = TASK.report(pd.DataFrame(rows))
    assert "## toy, s (117 labels)" in text
    assert "| `logistic_regression` | **0.900** | **0.900** | – |" in text
    assert all(path.exists() for path in TASK.plot(pd.DataFrame(rows), tmp_path / "union"))
