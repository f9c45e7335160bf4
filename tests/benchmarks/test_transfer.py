from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets import TRANSFER, DataSet, Route
from benchmarks.methods import TRANSFER as METHODS
from benchmarks.registry import Options
from benchmarks.tasks.transfer import TASK, annotate_other, terms_of, transfer_scores

B, CD4, CD4_NAIVE, CD8, NK, MONOCYTE = (
    "CL:0000236",
    "CL:0000624",
    "CL:0000895",
    "CL:0000625",
    "CL:0000623",
    "CL:0002057",
)


def _cells(names: tuple[str, ...], genes: list[str], seed: int, n: int = 90) -> anndata.AnnData:
    """Type i has many counts of genes "t<i>", whatever it is called."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % len(names)
    rate = np.array([[8.0 if g.startswith(f"t{k}") else 0.4 for g in genes] for k in kind])
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.int32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], genes
    adata.obs["label"] = np.array(names)[kind]
    return adata


GENES = [f"t{k}_{i}" for k in range(3) for i in range(20)]


def _route() -> Route:
    """Sources with coarse names; one has a gene more, in the target the genes are in another order."""
    first = DataSet(
        name="first",
        label_key="label",
        splits=(),
        make=lambda: _cells(("B cells", "CD4 T cells", "NK cells"), [*GENES, "more"], 0),
    )
    second = DataSet(
        name="second",
        label_key="label",
        splits=(),
        make=lambda: _cells(("B cells", "CD4 T cells", "NK cells"), GENES, 1),
    )
    names = ("CD19+ B", "CD4+/CD45RA+/CD25- Naive T", "CD56+ NK")
    target = DataSet(name="target", label_key="label", splits=(), make=lambda: _cells(names, GENES[::-1], 2))
    return Route(name="toy", sources=(first, second), target=target)


def test_sources_and_target_have_the_shared_genes_in_one_order() -> None:
    seen, asked = _route().load(None)
    assert list(seen.var_names) == list(asked.var_names) == GENES[::-1]
    assert seen.shape == (180, 60)
    assert seen.obs_names.is_unique
    first = _cells(("B cells", "CD4 T cells", "NK cells"), [*GENES, "more"], 0)
    assert (seen[:90].X != first[:, GENES[::-1]].X).nnz == 0
    assert list(seen.obs["label"][:3]) == ["B cells", "CD4 T cells", "NK cells"]
    assert _route().missing(None) == ""
    assert "CELLXPERT_DATA" in TRANSFER[0].missing(None)


def test_scores_by_hand() -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    truth = np.array([CD4_NAIVE, CD4_NAIVE, B, MONOCYTE])
    predicted = np.array([CD4, CD8, B, NK])
    scores = transfer_scores(truth, predicted, [CD4, CD8, B, NK])
    assert scores["compatible"] == pytest.approx(2 / 4)  # CD4 for naive CD4; B for B
    assert scores["compatible_known"] == pytest.approx(2 / 3)  # no training term is near the monocyte
    assert scores["macro_compatible_known"] == pytest.approx((1 / 2 + 1) / 2)
    perfect = transfer_scores(truth, truth, [B])
    assert perfect["hierarchical_f1"] == 1
    assert perfect["error_distance"] == 0
    assert scores["hierarchical_f1"] < 1


def test_labels_to_terms() -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    assert list(terms_of(np.array(["B cells", "CD4 T cells", "B cells", "nonsense"]))) == [B, CD4, B, ""]


def test_a_method_is_scored_through_the_ontology() -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    (measurement,) = annotate_other(_route(), method="logistic_regression", seed=0, options=Options(quick=True))
    assert measurement.metrics["compatible"] > 0.95  # though no name is shared
    assert measurement.metrics["compatible"] == pytest.approx(measurement.metrics["compatible_known"])
    (worse,) = annotate_other(_route(), method="majority", seed=0, options=Options(quick=True))
    assert worse.metrics["macro_compatible_known"] == pytest.approx(1 / 3)
    assert worse.metrics["hierarchical_f1"] < measurement.metrics["hierarchical_f1"]


def test_labels_of_the_target_all_are_terms(real_data: Path) -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    seen, asked = TRANSFER[1].load(real_data)
    for side in (seen, asked):
        assert (terms_of(side.obs["label"].to_numpy(dtype=str)) != "").all()
    assert not set(seen.obs["label"]) & set(asked.obs["label"])


def test_cases_and_report(tmp_path: Path) -> None:
    full = TASK.cases(Options())
    assert len(full) == len(TRANSFER) * len(METHODS)
    assert {case.data for case in TASK.cases(Options(quick=True))} == {"pbmc68k"}
    rows = [
        {
            "data": "toy",
            "split": "s",
            "seed": 0,
            "method": method,
            "metric": metric,
            "value": value,
            "seconds": 1.0,
            "mib": 9.0,
        }
        for method, value in (("knn", 0.9), ("majority", 0.5))
        for metric in ("hierarchical_f1", "compatible", "compatible_known", "error_distance")
    ]
    text = TASK.report(pd.DataFrame(rows))
    assert "| `knn` | **0.900** | – |" in text
    assert all(path.exists() for path in TASK.plot(pd.DataFrame(rows), tmp_path / "transfer"))
