"""Rows are found by name, whatever the order, form or storage of the modalities."""

from __future__ import annotations

import hashlib
import pickle

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellxpert.data.cells import Cells, modality_rows
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.errors import (
    BackedFileError,
    CategoryError,
    MissingValuesError,
    ModalityError,
    MuDataError,
    ObjectTypeError,
    ObsConflictError,
    ObsKeyError,
)

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning")  # mudata 0.3

FORMS = (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array, np.asarray)
DTYPES = ("float32", "float64", "int32", "uint16")


def value(cell: str, feature: str) -> int:
    """Truth that needs no bookkeeping: the value follows from the two names; about half are zero."""
    digest = hashlib.sha256(f"{cell}/{feature}".encode()).digest()
    return digest[0] % 9 if digest[1] % 2 else 0


def matrix(cells, features):
    out = np.zeros((len(cells), len(features)))
    for i, cell in enumerate(cells):
        for j, feature in enumerate(features):
            out[i, j] = value(cell, feature)
    return out


def modality(cells, features, form=sparse.csr_matrix, dtype="float32"):
    adata = ad.AnnData(
        form(matrix(cells, features).astype(dtype)),
        obs=pd.DataFrame(index=pd.Index(list(cells), dtype=object)),
        var=pd.DataFrame(index=pd.Index(list(features), dtype=object)),
    )
    adata.layers["twice"] = form((2 * matrix(cells, features)).astype(dtype))
    return adata


def mudata_of(**modalities):
    with md.set_options(pull_on_update=False):
        return md.MuData(modalities)


RNA = ModalitySetup(role="rna", name="rna")
ATAC = ModalitySetup(role="atac", name="atac")
PAIR = Setup(modalities=(RNA, ATAC))
GENES, PEAKS = [f"g{i}" for i in range(6)], [f"p{i}" for i in range(9)]
ALL = [f"cell{i}" for i in range(12)]


def check(cells: Cells) -> None:
    """Every value of every cell against the names."""
    for role in cells.roles:
        here = np.flatnonzero(cells.present(role))
        rows = np.concatenate([here[::-1], here[:2]])  # reversed, with repetitions
        block = cells.matrix_rows(role, rows)
        truth = matrix(cells.obs_names[rows], cells.feature_names(role))
        np.testing.assert_array_equal(block.toarray(), truth)
        twin = sparse.csr_matrix(truth)
        np.testing.assert_array_equal(block.indices, twin.indices)
        np.testing.assert_array_equal(block.data, twin.data)


def mosaic(order_rna, order_atac, form=sparse.csr_matrix):
    return mudata_of(rna=modality(order_rna, GENES, form), atac=modality(order_atac, PEAKS, form))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_order_form_and_absence(data):
    form = data.draw(st.sampled_from(FORMS))
    dtype = data.draw(st.sampled_from(DTYPES))
    subsets = st.lists(st.sampled_from(ALL), min_size=1, unique=True)
    in_rna, in_atac = data.draw(subsets), data.draw(subsets)
    mdata = mudata_of(rna=modality(in_rna, GENES, form, dtype), atac=modality(in_atac, PEAKS, form, dtype))
    cells = Cells.open(mdata, PAIR)
    assert cells.n_cells == len(set(in_rna) | set(in_atac))
    assert set(cells.obs_names[cells.present("rna")]) == set(in_rna)
    assert set(cells.obs_names[cells.present("atac")]) == set(in_atac)
    check(cells)
    chosen = data.draw(st.lists(st.sampled_from(list(mdata.obs_names)), min_size=1, unique=True))
    view = mdata[chosen]
    for part in (view, view.copy()):
        found = Cells.open(part, PAIR)
        assert set(found.obs_names) == set(chosen)
        check(found)


def test_absent_cells_of_an_unsigned_map_are_absent():
    mdata = mosaic(ALL[:8], ALL[4:])
    assert mdata.obsmap["rna"].dtype.kind == "u"
    rows = modality_rows(mdata, "rna")
    assert rows.dtype == np.int64
    assert rows.min() == -1
    by_name = {name: i for i, name in enumerate(mdata["rna"].obs_names)}
    assert rows.tolist() == [by_name.get(name, -1) for name in mdata.obs_names]


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_files(form, backed, tmp_path):
    mdata = mosaic(ALL[:8], ALL[:3:-1], form)
    mdata.write_h5mu(tmp_path / "m.h5mu")
    again = md.read_h5mu(tmp_path / "m.h5mu", backed="r") if backed else md.read_h5mu(tmp_path / "m.h5mu")
    check(Cells.open(again, PAIR))
    check(Cells.open(again[["cell7", "cell5", "cell0"]], PAIR))
    if backed:
        again.file.close()


def test_a_backed_anndata_and_its_view(tmp_path):
    modality(ALL, GENES).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    setup = Setup(modalities=(ModalitySetup(role="rna"),))
    check(Cells.open(adata, setup))
    check(Cells.open(adata[[7, 2, 5]], setup))
    check(Cells.open(adata[:, ["g4", "g1"]], setup))
    cells = Cells.open(adata, setup)
    adata.file.close()
    (tmp_path / "a.h5ad").unlink()
    with pytest.raises(BackedFileError, match=r"a\.h5ad"):
        cells.matrix_rows("rna", np.array([0]))


def test_views_of_an_anndata_are_read_in_their_order():
    adata = modality(ALL, GENES)
    setup = Setup(modalities=(ModalitySetup(role="rna"),))
    view = adata[["cell9", "cell2"], ["g5", "g0"]]
    cells = Cells.open(view, setup)
    assert list(cells.obs_names) == ["cell9", "cell2"]
    check(cells)
    assert view.is_view


def test_the_layer_of_the_setup_is_read():
    mdata = mosaic(ALL, ALL)
    layered = ModalitySetup(role="rna", name="rna", layer="twice")
    cells = Cells.open(mdata, Setup(modalities=(layered, ATAC)))
    rows = np.arange(12)
    np.testing.assert_array_equal(cells.matrix_rows("rna", rows).toarray(), 2 * matrix(cells.obs_names, GENES))
    assert cells.counts("rna") == "integer"


def test_modalities_changed_behind_the_mudata_are_noticed():
    mdata = mosaic(ALL, ALL)
    mdata.mod["rna"] = mdata["rna"][::-1].copy()
    with pytest.raises(MuDataError, match=r"12 cells are mapped[\s\S]*mdata\.update\(\)"):
        Cells.open(mdata, PAIR)
    mdata.update()
    check(Cells.open(mdata, PAIR))

    shrunk = mosaic(ALL, ALL)
    shrunk.mod["rna"] = shrunk["rna"][:5].copy()
    with pytest.raises(MuDataError, match=r"row 12 in a modality of 5 cells"):
        Cells.open(shrunk, PAIR)

    grown = mosaic(ALL[:6], ALL[:6])
    grown.mod["rna"] = modality(ALL, GENES)
    with pytest.raises(MuDataError, match="6 of the modality's 12 cells"):
        Cells.open(grown, PAIR)

    added = mudata_of(rna=modality(ALL, GENES))
    added.mod["atac"] = modality(ALL, PEAKS)
    with pytest.raises(MuDataError, match="no row map"):
        Cells.open(added, PAIR)


def test_what_is_not_there_is_named():
    with pytest.raises(ModalityError, match=r"no modality 'atac'[\s\S]*\['rna'\]"):
        Cells.open(mudata_of(rna=modality(ALL, GENES)), PAIR)
    with pytest.raises(ModalityError, match="AnnData"):
        Cells.open(modality(ALL, GENES), PAIR)
    with pytest.raises(ModalityError, match="protein"):
        Cells.open(mosaic(ALL, ALL), PAIR).counts("protein")
    with pytest.raises(ObjectTypeError):
        Cells.open({"rna": 1}, PAIR)


def test_asking_for_absent_cells_is_a_mistake_in_the_program():
    cells = Cells.open(mosaic(ALL[:8], ALL), PAIR)
    absent = np.flatnonzero(~cells.present("rna"))
    with pytest.raises(AssertionError):
        cells.matrix_rows("rna", absent[:1])


def test_nothing_of_the_object_changes():
    mdata = mosaic(ALL[:8], ALL[:3:-1], sparse.csc_matrix)

    def fingerprint():
        parts = [a for m in mdata.mod.values() for a in (m.X.data, m.X.indices, m.X.indptr)]
        frames = [mdata.obs, mdata.var, *(m.obs for m in mdata.mod.values()), *(m.var for m in mdata.mod.values())]
        return hashlib.sha256(pickle.dumps([*parts, *frames, dict(mdata.uns)])).hexdigest()

    before = fingerprint()
    cells = Cells.open(mdata, PAIR)
    check(cells)
    cells.feature_ids("rna")
    assert fingerprint() == before
    assert type(mdata["rna"].X) is sparse.csc_matrix


def test_ensembl_ids_come_from_names_or_columns_without_versions():
    setup = Setup(modalities=(ModalitySetup(role="rna"),))
    plain = modality(ALL[:2], ["CD3E", "ACTB"])
    assert Cells.open(plain, setup).feature_ids("rna") is None
    plain.var["gene_ids"] = ["ENSG00000198851.9", "ENSG00000075624"]
    assert Cells.open(plain, setup).feature_ids("rna").tolist() == ["ENSG00000198851", "ENSG00000075624"]
    named = modality(ALL[:2], ["ENSMUSG00000032093.7", "lacZ"])
    named.var["gene_ids"] = ["not an id", ""]
    assert Cells.open(named, setup).feature_ids("rna").tolist() == ["ENSMUSG00000032093", ""]
    peaks = Setup(modalities=(ModalitySetup(role="atac"),))
    assert Cells.open(named, peaks).feature_ids("atac") is None


def labelled(rna=None, atac=None, everyone=None, key="kind"):
    mdata = mosaic(ALL[:8], ALL[:3:-1])  # rna has cells 0-7, atac 11-4
    if rna is not None:
        mdata["rna"].obs[key] = rna
    if atac is not None:
        mdata["atac"].obs[key] = atac
    if everyone is not None:
        mdata.obs[key] = everyone
    return Cells.open(mdata, Setup(modalities=(RNA, ATAC), labels_key=key, batch_key=key))


def test_columns_are_put_together_by_cell():
    truth = {name: f"type{i % 3}" for i, name in enumerate(ALL)}
    cells = labelled([truth[c] for c in ALL[:8]], [truth[c] for c in ALL[:3:-1]])
    assert cells.labels().to_dict() == truth
    assert list(cells.labels().index) == list(cells.obs_names)
    partial = [truth[c] if i < 3 else None for i, c in enumerate(ALL[:8])]
    cells = labelled(partial, [truth[c] for c in ALL[:3:-1]])
    assert cells.batches is not None
    assert cells.labels().to_dict() == {**truth, "cell3": "Unknown"}
    with pytest.raises(MissingValuesError, match=r"1 cells without a value, e\.g\. \['cell3'\]"):
        cells.batches()
    cells = labelled(partial, None, pd.Series(truth))
    assert cells.batches().to_dict() == truth


def test_conditions_are_text_and_complete():
    truth = {name: ("control", "KLF1", "KLF1+GATA1")[i % 3] for i, name in enumerate(ALL)}
    mdata = mosaic(ALL[:8], ALL[:3:-1])
    mdata["rna"].obs["guide"] = pd.Categorical([truth[c] for c in ALL[:8]])
    mdata["atac"].obs["guide"] = [truth[c] for c in ALL[:3:-1]]
    cells = Cells.open(mdata, Setup(modalities=(RNA, ATAC), perturbation_key="guide"))
    assert cells.conditions().to_dict() == truth
    assert Cells.open(mdata, PAIR).conditions() is None
    mdata["rna"].obs["guide"] = [None] + [truth[c] for c in ALL[1:8]]
    with pytest.raises(MissingValuesError, match="1 cells"):
        Cells.open(mdata, Setup(modalities=(RNA, ATAC), perturbation_key="guide")).conditions()


def test_modalities_that_disagree_are_an_error():
    with pytest.raises(ObsConflictError, match=r"4 cells differ, e\.g\. 'cell4': 'a' before, 'b' here"):
        labelled(["a"] * 8, ["b"] * 8).labels()
    with pytest.raises(ObsConflictError, match=r"mdata\.obs\['kind'\]"):
        labelled(["a"] * 8, None, ["b"] * 12).labels()


def test_columns_that_only_the_mudata_has():
    cells = labelled(everyone=[f"b{i}" for i in range(12)])
    assert cells.batches().tolist() == [f"b{i}" for i in range(12)]
    mdata = mosaic(ALL[:8], ALL[:3:-1])
    mdata.obs["rna:donor"] = "d1"  # as mudata 0.3 copies it
    cells = Cells.open(mdata, Setup(modalities=(RNA, ATAC), batch_key="donor"))
    assert set(cells.batches()) == {"d1"}


def test_a_missing_column_is_named_with_its_likeliest_spelling():
    cells = labelled(["a"] * 8, ["a"] * 8, key="Batch")
    with pytest.raises(ObsKeyError, match=r"no column 'batch'[\s\S]*did you mean 'Batch'\?"):
        cells.obs("batch")
    assert Cells.open(mosaic(ALL, ALL), PAIR).batches() is None
    assert Cells.open(mosaic(ALL, ALL), PAIR).labels() is None


def test_labels_of_mixed_types_are_refused():
    with pytest.raises(CategoryError, match="types"):
        labelled(everyone=pd.array([1, "1"] * 6, dtype=object)).labels()


def test_repr_counts_cells():
    assert repr(Cells.open(mosaic(ALL[:8], ALL[4:]), PAIR)) == "Cells(12 cells; rna: 8, atac: 8)"
