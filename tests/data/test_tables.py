"""The table of a SpatialData stands for it; nothing else of it changes."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cellxpert as cx
from cellxpert.data.tables import region_key, require_coordinates, table_of
from cellxpert.errors import ObjectTypeError, SpatialError

with warnings.catch_warnings(action="ignore"):  # of libraries that spatialdata imports
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import ShapesModel, TableModel


def circles(n_cells, seed):
    xy = np.random.default_rng(seed).uniform(0, 100, (n_cells, 2))
    return ShapesModel.parse(xy, geometry=0, radius=1.0, index=np.arange(n_cells)), xy


@pytest.fixture
def sdata():
    """Two regions of thirty cells each, one table; the rows of the table are mixed."""
    shapes, xys = zip(*(circles(30, seed) for seed in (0, 1)), strict=True)
    order = np.random.default_rng(2).permutation(60)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(np.repeat(["left", "right"], 30)[order]),
            "cell_id": np.tile(np.arange(30), 2)[order],
            "kind": pd.Categorical(np.tile(["x", "y"], 30)),
        },
        index=[f"n{i}" for i in range(60)],
    )
    counts = np.random.default_rng(3).poisson(2.0, (60, 8)).astype("float32") + 1
    table = ad.AnnData(counts, obs=obs, obsm={"spatial": np.concatenate(xys)[order]})
    table.var_names = [f"gene{i}" for i in range(8)]
    table = TableModel.parse(table, region=["left", "right"], region_key="region", instance_key="cell_id")
    return spatialdata.SpatialData(shapes={"left": shapes[0], "right": shapes[1]}, tables={"cells": table})


def test_tables_by_name(sdata):
    table = sdata.tables["cells"]
    assert table_of(sdata) is table
    assert table_of(sdata, "cells") is table
    assert table_of(table) is table
    with pytest.raises(ObjectTypeError, match="did you mean 'cells'"):
        table_of(sdata, "cell")
    with pytest.raises(ObjectTypeError, match="SpatialData"):
        table_of(table, "cells")
    sdata.tables["more"] = table.copy()
    with pytest.raises(ObjectTypeError, match=r"tables \['cells', 'more'\](.|\n)*table_key='cells'"):
        table_of(sdata)
    cx.CellxPert.setup_spatialdata(sdata, table_key="cells")
    assert table_of(sdata) is sdata.tables["cells"]


def test_setup_reads_sections_from_the_regions_and_changes_nothing_else(sdata):
    table = sdata.tables["cells"]
    attrs, names, obs = dict(table.uns["spatialdata_attrs"]), list(table.obs_names), table.obs.copy()
    assert region_key(table) == "region"
    cx.CellxPert.setup_spatialdata(sdata, table_key="cells", labels_key="kind", n_neighbors=4)
    said = table.uns["cellxpert_info"]["setup"]
    assert said["spatial"] == {"spatial_key": "spatial", "library_key": "region", "n_neighbors": 4}
    assert dict(table.uns["spatialdata_attrs"]) == attrs
    assert list(table.obs_names) == names
    pd.testing.assert_frame_equal(table.obs, obs)
    TableModel().validate(table)


def test_one_region_is_no_column_of_sections(sdata):
    table = sdata.tables["cells"][sdata.tables["cells"].obs["region"] == "left"].copy()
    assert region_key(table) is None
    assert region_key(ad.AnnData(np.ones((2, 2)))) is None


def test_absent_coordinates_come_with_the_line_that_makes_them(sdata):
    table = sdata.tables["cells"]
    expected = table.obsm.pop("spatial")
    with pytest.raises(SpatialError) as caught:
        cx.CellxPert.setup_spatialdata(sdata, table_key="cells")
    lines = caught.value.fix.split("\n", 1)[1]
    exec(lines, {"sdata": sdata, "spatialdata": spatialdata, "numpy": np})
    np.testing.assert_allclose(table.obsm["spatial"], expected)
    with pytest.raises(SpatialError, match="one row per cell"):
        require_coordinates(ad.AnnData(np.ones((2, 2))), "spatial", table_key="cells")


def test_tables_that_are_all_set_up_are_not_guessed_among(sdata):
    sdata.tables["more"] = sdata.tables["cells"].copy()
    for name in ("cells", "more"):
        cx.CellxPert.setup_spatialdata(sdata, table_key=name)
    with pytest.raises(ObjectTypeError, match=r"all set up(.|\n)*sdata\.tables\['cells'\]"):
        cx.CellxPert(sdata)
