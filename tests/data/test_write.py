"""Results in the whole object and in each modality, by name."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

from cellxpert.data.write import record, require_writable, write_obs, write_obsm
from cellxpert.errors import MuDataError, ViewError


@pytest.fixture
def mosaic() -> MuData:
    a = ad.AnnData(np.ones((3, 2), np.float32), obs=pd.DataFrame(index=["c1", "c2", "c3"]))
    b = ad.AnnData(np.ones((3, 1), np.float32), obs=pd.DataFrame(index=["c4", "c3", "c1"]))
    a.var_names, b.var_names = ["g1", "g2"], ["p1"]
    return MuData({"rna": a, "protein": b})


def test_rows_follow_the_names(mosaic: MuData) -> None:
    value = {name: float(i) for i, name in enumerate(mosaic.obs_names)}
    write_obsm(mosaic, "X_x", np.array([[value[n]] for n in mosaic.obs_names], np.float32))
    for part in (mosaic, *mosaic.mod.values()):
        assert part.obsm["X_x"].ravel().tolist() == [value[n] for n in part.obs_names]


def test_categories_are_those_in_use_and_stale_colours_go(mosaic: MuData) -> None:
    label = {"c1": "A", "c2": "B", "c3": "A", "c4": "C"}
    for part in (mosaic, mosaic["protein"]):
        part.uns["type_colors"] = ["#000000"]
    write_obs(mosaic, "type", pd.Series([label[n] for n in mosaic.obs_names], index=mosaic.obs_names, dtype="category"))
    assert list(mosaic["protein"].obs["type"]) == ["C", "A", "A"]
    assert list(mosaic["protein"].obs["type"].cat.categories) == ["A", "C"]
    assert "type_colors" not in mosaic.uns
    assert "type_colors" not in mosaic["protein"].uns


def test_nothing_is_written_where_a_row_map_is_stale(mosaic: MuData) -> None:
    require_writable(mosaic, "call")
    mosaic.mod["protein"] = mosaic["protein"][:2].copy()
    values = pd.Series(1.0, index=mosaic.obs_names)
    for call in (
        lambda: require_writable(mosaic, "call"),
        lambda: write_obsm(mosaic, "X_x", np.zeros((4, 1), np.float32)),
        lambda: write_obs(mosaic, "score", values),
    ):
        with pytest.raises(MuDataError, match="protein"):
            call()
    for part in (mosaic, *mosaic.mod.values()):
        assert "X_x" not in part.obsm
        assert "score" not in part.obs


def test_views_are_not_writable(mosaic: MuData) -> None:
    with pytest.raises(ViewError, match="call"):
        require_writable(mosaic[:2], "call")


def test_records_add_up_and_need_no_groups(mosaic: MuData) -> None:
    record(mosaic, "annotate", key="a/b", entry={"seed": 1})
    record(mosaic, "annotate", key="other", entry={"seed": 2})
    assert mosaic.uns["cellxpert_info"]["annotate"] == {"a_b": {"seed": 1}, "other": {"seed": 2}}
