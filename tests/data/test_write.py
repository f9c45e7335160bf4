"""Results in the whole object and in each modality, by name."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

from cellxpert.data.write import forget_obs, forget_obsm, record, require_writable, write_layer, write_obs, write_obsm
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


def test_what_was_written_is_forgotten_everywhere_and_nothing_else(mosaic: MuData) -> None:
    for key in ("score", "mine"):
        write_obs(mosaic, key, pd.Series(1.0, index=mosaic.obs_names))
        write_obsm(mosaic, f"X_{key}", np.zeros((4, 1), np.float32))
    forget_obsm(mosaic, "X_score")
    for part in (mosaic, *mosaic.mod.values()):
        assert "score" in part.obs
        assert "X_score" not in part.obsm
    forget_obs(mosaic, "score")
    forget_obs(mosaic, "score")  # what is gone already is no error
    forget_obsm(mosaic, "X_score")
    for part in (mosaic, *mosaic.mod.values()):
        assert "score" not in part.obs
        assert "mine" in part.obs
        assert "X_mine" in part.obsm


def test_nothing_is_written_where_a_row_map_is_stale(mosaic: MuData) -> None:
    require_writable(mosaic, "call")
    mosaic.mod["protein"] = mosaic["protein"][:2].copy()
    values = pd.Series(1.0, index=mosaic.obs_names)
    for call in (
        lambda: require_writable(mosaic, "call"),
        lambda: write_obsm(mosaic, "X_x", np.zeros((4, 1), np.float32)),
        lambda: write_obs(mosaic, "score", values),
        lambda: forget_obs(mosaic, "kept"),
    ):
        with pytest.raises(MuDataError, match="protein"):
            call()
    for part in (mosaic, *mosaic.mod.values()):
        assert "X_x" not in part.obsm
        assert "score" not in part.obs


@pytest.mark.parametrize("modality", ["rna", None])
def test_a_layer_holds_what_was_predicted_and_nan_elsewhere(mosaic: MuData, modality: str | None) -> None:
    """Cells and features are put by their rows and columns, in any order; those that are not there are left out."""
    data = mosaic if modality else mosaic["rna"]
    before = data["rna"].X.copy() if modality else data.X.copy()
    rows, columns = np.array([2, -1, 0]), np.array([-1, 1, 0, -1])
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_layer(data, "x", values, modality=modality, rows=rows, columns=columns)
    layer = mosaic["rna"].layers["x"]
    expected = np.full((3, 2), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if row >= 0 and column >= 0:
                expected[row, column] = values[i, j]
    np.testing.assert_array_equal(layer, expected)
    assert layer.dtype == np.float32
    assert np.isfinite(layer).sum() == 4
    np.testing.assert_array_equal(mosaic["rna"].X, before)
    assert "x" not in mosaic["protein"].layers
    write_layer(data, "x", values, modality=modality, rows=np.full(3, -1), columns=columns)
    assert np.isnan(mosaic["rna"].layers["x"]).all()  # a second prediction replaces the first


def test_views_are_not_writable(mosaic: MuData) -> None:
    with pytest.raises(ViewError, match="call"):
        require_writable(mosaic[:2], "call")


def test_records_add_up_and_need_no_groups(mosaic: MuData) -> None:
    record(mosaic, "annotate", key="a/b", entry={"seed": 1})
    record(mosaic, "annotate", key="other", entry={"seed": 2})
    assert mosaic.uns["cellxpert_info"]["annotate"] == {"a_b": {"seed": 1}, "other": {"seed": 2}}
