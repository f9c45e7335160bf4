"""The task ``objectives``: every variant is what its name says, test cells are nobody's training cells, and scores are in their ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.data_sets_integration import BATCH, SYNTHETIC
from benchmarks.registry import Options
from benchmarks.tasks import objectives as task
from benchmarks.tasks.objectives import METRICS, TASK, VARIANTS, train_and_ask


def test_variants_change_one_thing_at_a_time() -> None:
    names = list(VARIANTS)
    assert not any(VARIANTS["none"].values())
    for name in names[1:]:
        assert VARIANTS[name]["batches"]
        said = {"modality_dropout": "dropout", "contrast_weight": "contrast", "adversary_weight": "adversary"}
        for setting, word in said.items():
            value = VARIANTS[name][setting]
            assert (f"{word} {value:g}" in name) == (value > 0)


def test_a_fifth_of_each_batch_is_held_out() -> None:
    loaded = SYNTHETIC.load(None)
    mdata, test = task._split(loaded)
    assert sorted(test) == np.flatnonzero(mdata.obs["part"] == "test").tolist()
    share = (mdata.obs["part"] == "test").groupby(mdata.obs[BATCH].astype(str)).mean()
    assert share.between(0.15, 0.25).all()
    assert "part" not in loaded.mdata.obs


def test_correlations_are_means_over_features_that_vary() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 3))
    truth[:, 1] = 2.0
    said = np.stack([3 * truth[:, 0] + 1, truth[:, 0], -truth[:, 2]], axis=1)
    assert task._pearson(truth, said) == pytest.approx(0.0, abs=1e-12)  # 1, left out, -1


def test_what_is_read_off_vectors_that_say_it() -> None:
    kind, batch = np.arange(60) % 3, (np.arange(60) // 3) % 2
    latent = np.concatenate([np.eye(3)[kind], np.random.default_rng(0).normal(size=(60, 2))], axis=1)
    scores = task._read_off(latent, np.arange(0, 60, 5), batch.astype(str), kind.astype(str))
    assert scores["type_macro_f1"] == 1.0
    assert scores["batch_accuracy"] < 0.9


@pytest.mark.parametrize("variant", ["none", "batch told, dropout 0.3, adversary 1"])
def test_a_variant_is_scored_in_full(variant: str, tmp_path: Path) -> None:
    (found,) = train_and_ask(SYNTHETIC, variant=variant, seed=0, options=Options(quick=True))
    assert found.method == variant
    assert set(found.metrics) == set(METRICS)
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert 0 <= found.metrics["foscttm"] <= 1
    assert found.metrics["bins"] > 0
    rows = [
        {
            "data": "synthetic",
            "split": "fifth",
            "seed": 0,
            "method": variant,
            "metric": m,
            "value": v,
            "seconds": 1.0,
            "mib": 1.0,
        }
        for m, v in found.metrics.items()
    ]
    assert f"`{variant}`" in TASK.report(pd.DataFrame(rows))
    assert all(path.exists() for path in TASK.plot(pd.DataFrame(rows), tmp_path / "objectives"))
