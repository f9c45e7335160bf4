from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from benchmarks.data_sets import DataSet, Route
from benchmarks.methods.adapting import WAYS
from benchmarks.registry import Options
from benchmarks.tasks.adapters import PAIRS, RIVALS, SETTINGS, TASK, Setting, adapted, few, sizes

GENES = [f"t{k}_{i}" for k in range(3) for i in range(20)]


def _cells(names: tuple[str, ...], seed: int, n: int = 150) -> anndata.AnnData:
    """Type i has many counts of genes "t<i>", whatever it is called."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % len(names)
    rate = np.array([[8.0 if gene.startswith(f"t{k}") else 0.4 for gene in GENES] for k in kind])
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.int32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], GENES
    adata.obs["label"] = np.array(names)[kind]
    return adata


def _route() -> Route:
    source = DataSet(name="source", label_key="label", splits=(), make=lambda: _cells(("a", "b", "c"), 0))
    target = DataSet(name="target", label_key="label", splits=(), make=lambda: _cells(("x", "y", "z"), 1))
    return Route(name="from-source", sources=(source,), target=target)


def test_few_cells_are_drawn_per_type() -> None:
    labels = np.array(["a"] * 50 + ["b"] * 3 + ["c"] * 30)
    rows = np.setdiff1d(np.arange(len(labels)), [0, 1, 60])
    drawn = few(labels, rows, per_type=20, seed=0)
    assert {name: int((labels[drawn] == name).sum()) for name in "abc"} == {"a": 20, "b": 3, "c": 20}
    assert set(drawn) <= set(rows)
    assert list(drawn) == sorted(set(drawn))
    assert list(drawn) != list(few(labels, rows, per_type=20, seed=1))
    assert few(labels, rows, per_type=None, seed=0) is rows


# labels that steer are calibrated on validation cells, of which there are none here
pytestmark = pytest.mark.filterwarnings("ignore:the .* labels are not calibrated")


@pytest.fixture(scope="module")
def measured_ways() -> dict[str, dict[str, float]]:
    """Metrics of every method on the toy pair, whose target has other names."""
    found = adapted(_route(), Setting(name="few", per_type=20), seed=0, options=Options(quick=True))
    return {measurement.method: dict(measurement.metrics) for measurement in found}


def test_every_way_learns_the_labels_of_the_target(measured_ways: dict[str, dict[str, float]]) -> None:
    assert list(measured_ways) == [*WAYS, *RIVALS]
    assert all(metrics["macro_f1"] > 0.95 for metrics in measured_ways.values())


def test_sizes_of_what_is_learned(measured_ways: dict[str, dict[str, float]]) -> None:
    share = {method: metrics.get("trained_share") for method, metrics in measured_ways.items()}
    assert share["full"] == share["full-steered"] == 1
    assert 0 < share["prompts"] < share["lora"] < 0.2
    assert share["head"] is share["logistic_regression"] is share["from-scratch"] is None
    for method in ("lora", "prompts", "lora-steered"):
        metrics = measured_ways[method]
        assert metrics["trained_share"] < metrics["stored_share"]  # the label head's magnitudes are fitted, not trained
        assert 0 < metrics["file_share"] < 1


def test_sizes_are_those_of_the_tensors() -> None:
    import cellxpert as cx

    (lora, prompts) = sizes(_route(), "nano", options=Options(quick=True))
    assert [lora.method, prompts.method] == ["lora", "prompts"]
    width, n_prompts, n_labels = cx.config.preset("nano").network.width, 16, 3
    added = n_prompts * width
    head = (width + 1) * n_labels  # what is trained of it
    n_parameters = (added + head) / prompts.metrics["trained_share"]
    stored = prompts.metrics["stored_share"] * n_parameters
    assert n_parameters == pytest.approx(round(n_parameters), abs=1e-6)
    assert stored == pytest.approx(round(stored), abs=1e-6)
    assert added + head + len(GENES) * n_labels <= stored <= added + head + (len(GENES) + 1) * n_labels + 100
    assert prompts.metrics["file_share"] < lora.metrics["file_share"]


def test_cases() -> None:
    full = TASK.cases(Options())
    assert len({case.key for case in full}) == len(full) == len(PAIRS) * len(SETTINGS) * 3 + 3
    assert all("CELLXPERT_DATA" in case.missing for case in full)
    assert not any(case.missing for case in TASK.cases(Options(quick=True)))


def test_report(tmp_path: Path) -> None:
    rows = [
        {
            "data": "toy",
            "split": split,
            "seed": 0,
            "method": method,
            "metric": metric,
            "value": value,
            "seconds": 1.0,
            "mib": 9.0,
        }
        for split, metric in (
            ("from-a/all", "macro_f1"),
            ("from-a/all", "accuracy"),
            ("sizes/mini", "trained_share"),
        )
        for method, value in (("lora", 0.9), ("head", 0.5))
    ]
    text = TASK.report(pd.DataFrame(rows))
    assert "## toy, from-a, all" in text
    assert "| `lora` | **0.900** | **0.900** | – |" in text
    assert "## Sizes, mini" in text
    assert "| `head` | **0.5000** | – |" in text
    assert all(path.exists() for path in TASK.plot(pd.DataFrame(rows), tmp_path / "adapters"))
