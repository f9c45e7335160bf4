from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import h5py
import mudata
import numpy as np
import pytest
import scipy.sparse as sp

from cellxpert.datasets import pbmc68k
from cellxpert.datasets.pbmc68k import recover_counts
from cellxpert.errors import DatasetError


@pytest.fixture(scope="module")
def mdata():
    return pbmc68k()


def test_counts_equal_a_plain_loop_over_the_file(mdata):
    path = Path(find_spec("scanpy").submodule_search_locations[0]) / "datasets" / "10x_pbmc68k_reduced.h5ad"
    with h5py.File(path) as file:
        data, indices, indptr = (file["raw.X"][name][:] for name in ("data", "indices", "indptr"))
    expected = np.zeros((700, 765))
    for cell in range(700):
        values = {int(indices[i]): math.expm1(float(data[i])) for i in range(indptr[cell], indptr[cell + 1])}
        unit = min(values.values())
        for gene, value in values.items():
            count = round(value / unit)
            assert abs(value / unit - count) < 1.5e-3 * count  # three decimals of a logarithm: unambiguous up to 300
            expected[cell, gene] = count
    x = mdata["rna"].X
    assert sp.issparse(x)
    assert x.format == "csr"
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.toarray(), expected)


def test_counts_agree_with_what_else_is_known_of_the_cells(mdata):
    rna = mdata["rna"]
    counts = rna.X.toarray()
    assert counts.max() == 259
    assert (counts.sum(axis=1) < rna.obs["n_counts"]).all()  # 765 genes are a part of all genes
    assert ((counts > 0).sum(axis=1) <= rna.obs["n_genes"]).all()
    b_cell = (rna.obs["bulk_labels"] == "CD19+ B").to_numpy()
    cd79a = counts[:, rna.var_names.get_loc("CD79A")]
    assert cd79a[b_cell].mean() > 10 * cd79a[~b_cell].mean()


def test_labels_are_categorical_in_object_and_modality(mdata):
    assert mdata.shape == (700, 765)
    assert list(mdata.mod) == ["rna"]
    for obs in (mdata.obs, mdata["rna"].obs):
        labels = obs["bulk_labels"]
        assert labels.dtype == "category"
        assert labels.notna().all()
        assert labels.value_counts().to_dict()["Dendritic"] == 240
        assert labels.cat.categories.size == labels.nunique() == 10
    assert mdata.obs.index.equals(mdata["rna"].obs.index)
    assert mdata.obs_names.is_unique
    assert mdata.var_names.is_unique


def test_written_and_read(mdata, tmp_path):
    with mudata.set_options(pull_on_update=False):
        mdata.write_h5mu(tmp_path / "pbmc.h5mu")
        again = mudata.read_h5mu(tmp_path / "pbmc.h5mu")
    np.testing.assert_array_equal(again["rna"].X.toarray(), mdata["rna"].X.toarray())
    assert again.obs["bulk_labels"].astype(str).equals(mdata.obs["bulk_labels"].astype(str))


def test_two_calls_share_nothing():
    first, second = pbmc68k(), pbmc68k()
    first["rna"].X.data[:] = 0
    first.obs["bulk_labels"] = "x"
    assert second["rna"].X.sum() > 0
    assert second.obs["bulk_labels"].nunique() == 10


def _logged(counts: np.ndarray, totals: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(np.round(np.log1p(1e4 * counts / totals[:, None]), 3).astype(np.float32))


def test_recover_counts_of_known_counts():
    counts = np.random.default_rng(0).poisson(2.0, (40, 30))
    counts[:, 0] = 1
    counts[7] = 0  # an empty cell
    totals = counts.sum(axis=1) + 500.0
    found = recover_counts(_logged(counts, totals), totals=totals)
    np.testing.assert_array_equal(found.toarray(), counts)


def test_recover_counts_refuses_what_it_cannot_prove():
    counts = np.array([[1, 2, 3], [2, 4, 6]])  # the second cell's smallest value is two counts
    totals = np.array([2000.0, 2000.0])
    with pytest.raises(DatasetError, match="3 of 6 values"):
        recover_counts(_logged(counts, totals), totals=totals)
    with pytest.raises(DatasetError, match="negative or not finite"):
        recover_counts(sp.csr_matrix([[np.nan, 1.0]]), totals=totals[:1])
    with pytest.raises(DatasetError, match="no whole count"):
        recover_counts(sp.csr_matrix([[1.0, 1.7]]), totals=totals[:1])
