from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellxpert.datasets import synthetic
from cellxpert.errors import PlotError
from cellxpert.pl.read import column, coordinates, mask, matrix


@pytest.fixture(scope="module")
def mdata():
    """Half of the cells have RNA, in which alone there is a UMAP and a column of its own."""
    found = synthetic(n_cells=40, n_genes=20, n_peaks=5, n_proteins=3, missing={"rna": 0.5})
    rna = found["rna"]
    rna.obsm["X_umap"] = np.arange(rna.n_obs * 3, dtype=float).reshape(-1, 3)
    rna.obs["leiden"] = pd.Categorical([str(i % 3) for i in range(rna.n_obs)])
    return found


def test_a_modality_is_spread_over_the_objects_cells_by_name(mdata):
    points, labels = coordinates(mdata, "umap"), column(mdata, "leiden")
    rna = mdata["rna"]
    assert points.shape == (40, 2)
    assert len(labels) == 40
    for i, name in enumerate(mdata.obs_names):
        if name in rna.obs_names:
            row = rna.obs_names.get_loc(name)
            assert list(points[i]) == list(rna.obsm["X_umap"][row, :2])
            assert labels[i] == rna.obs["leiden"].iloc[row]
        else:
            assert np.isnan(points[i]).all()
            assert pd.isna(labels[i])


def test_matrices_have_all_their_columns(mdata):
    rna = mdata["rna"]
    found = matrix(mdata, "umap", fix="make it")
    assert found.shape == (40, 3)
    there = mdata.obs_names.isin(rna.obs_names)
    assert np.isnan(found[~there]).all()
    np.testing.assert_array_equal(found[there], rna[mdata.obs_names[there]].obsm["X_umap"])
    assert matrix(mdata, "X_umap", fix="make it", n_columns=1).shape == (40, 1)
    with pytest.raises(PlotError, match=r"(?s)obsm\['typo'\].*X_umap.*make it"):
        matrix(mdata, "typo", fix="make it")


def test_the_object_comes_before_its_modalities(mdata):
    np.testing.assert_array_equal(coordinates(mdata, "spatial"), mdata.obsm["spatial"][:, :2])
    assert column(mdata, "cell_type").notna().all()


def test_presence_masks_are_no_coordinates(mdata):
    with pytest.raises(PlotError, match=r"sc\.tl\.umap"):
        coordinates(mdata, "rna")


def test_arrays_in_place_of_objects():
    points = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(coordinates(points, "anything"), points[:, :2])
    assert list(column(points, ["a", "b", "a", None]).isna()) == [False, False, False, True]
    for bad in (np.arange(4.0), np.ones((4, 1))):
        with pytest.raises(PlotError, match="shape"):
            coordinates(bad, "x")
    with pytest.raises(PlotError, match="3 values for 4 cells"):
        column(points, [1, 2, 3])
    with pytest.raises(PlotError, match="plain array"):
        column(points, "kind")


def test_missing_names_are_told_with_those_there(adata):
    with pytest.raises(PlotError, match=r"obs\['typo'\].*'kind'"):
        column(adata, "typo")
    with pytest.raises(PlotError, match=r"obsm\['X_pca'\].*X_umap"):
        coordinates(adata, "X_pca")


def test_mask(adata):
    assert mask(adata, "held_out", "x").sum() == 30
    assert list(mask(np.ones((3, 2)), [True, None, 0], "x")) == [True, False, False]
    with pytest.raises(PlotError, match="other than True"):
        mask(adata, "kind", "emphasis")
