"""Objects that cannot be read are refused, with the line that mends them."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from cellxpert.data.cells import Cells
from cellxpert.data.objects import check_anndata, check_columns, check_mudata, check_object, refuse_view
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.errors import (
    DuplicateNamesError,
    EmptyDataError,
    MuDataError,
    ObjectTypeError,
    ViewError,
)

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning")  # mudata 0.3


def anndata(cells=4, features=3):
    cells = [f"cell{i}" for i in range(cells)] if isinstance(cells, int) else list(cells)
    features = [f"gene{i}" for i in range(features)] if isinstance(features, int) else list(features)
    adata = ad.AnnData(np.ones((len(cells), len(features)), dtype="float32"))
    adata.obs_names, adata.var_names = pd.Index(cells, dtype=object), pd.Index(features, dtype=object)
    return adata


class SpatialData:
    """Stands for the class of another library."""


SpatialData.__module__ = "spatialdata._core"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "None"),
        ("pbmc.h5ad", r"anndata\.read_h5ad\('pbmc\.h5ad'\)"),
        (Path("pbmc.h5mu"), r"mudata\.read_h5mu\('pbmc\.h5mu'\)"),
        (np.ones((2, 2)), r"anndata\.AnnData\(X"),
        (pd.DataFrame({"a": [1]}), "DataFrame"),
        (SpatialData(), r"setup_spatialdata\(sdata, table_key='table'\)$"),
        ([1, 2], "builtins.list"),
    ],
)
def test_other_objects_are_refused(data, message):
    for check in (check_object, check_anndata, check_mudata):
        with pytest.raises(ObjectTypeError, match=message):
            check(data)


def test_the_two_kinds_are_not_mixed_up():
    with pytest.raises(ObjectTypeError, match="setup_mudata"):
        check_anndata(md.MuData({"rna": anndata()}))
    with pytest.raises(ObjectTypeError, match="setup_anndata"):
        check_mudata(anndata())


@pytest.mark.parametrize(("shape", "message"), [((0, 3), "0 cells"), ((3, 0), "0 features")])
def test_empty_objects(shape, message):
    with pytest.raises(EmptyDataError, match=message):
        check_anndata(anndata(*shape))
    with pytest.raises(EmptyDataError, match=message):
        check_mudata(md.MuData({"rna": anndata(*shape)}))


def test_no_modalities():
    mdata = md.MuData({"rna": anndata()})
    del mdata.mod["rna"]
    with pytest.raises(EmptyDataError, match="no modalities"):
        check_mudata(mdata)


def test_an_empty_modality_beside_a_full_one_is_fine():
    check_mudata(md.MuData({"rna": anndata(), "atac": anndata(0, ["p0"])}))


def test_shared_features_and_nested_objects():
    with pytest.raises(MuDataError, match="axis=1"):
        check_mudata(md.MuData({"a": anndata(), "b": anndata(["x"])}, axis=1))
    nested = md.MuData({"rna": anndata()})
    nested.mod["inner"] = md.MuData({"atac": anndata()})
    with pytest.raises(MuDataError, match=r"mdata\['inner'\]: MuData instead"):
        check_mudata(nested)
    absent = md.MuData({"rna": anndata()})
    absent.mod["adt"] = None
    with pytest.raises(MuDataError, match=r"NoneType[\s\S]*del mdata\.mod\['adt'\]"):
        check_mudata(absent)


def test_features_changed_behind_the_mudata():
    mdata = md.MuData({"rna": anndata()})
    mdata.mod["rna"] = mdata["rna"][:, :2].copy()
    with pytest.raises(MuDataError, match=r"3 features, its modalities have 2[\s\S]*update"):
        check_mudata(mdata)
    mdata.update()
    check_mudata(mdata)


@pytest.mark.filterwarnings("ignore::UserWarning")  # anndata says that the names are not unique
def test_duplicated_names():
    with pytest.raises(
        DuplicateNamesError, match=r"adata\.var_names: 1 names[\s\S]*\['a'\][\s\S]*var_names_make_unique"
    ):
        check_anndata(anndata(2, ["a", "b", "a"]))
    with pytest.raises(DuplicateNamesError, match=r"adata\.obs_names[\s\S]*obs_names_make_unique"):
        check_anndata(anndata(["x", "x"]))
    mdata = md.MuData({"rna": anndata(2, ["a", "a"]), "atac": anndata(2)})
    with pytest.raises(DuplicateNamesError, match=r"mdata\['rna'\]\.var_names"):
        check_mudata(mdata)


@pytest.mark.filterwarnings("ignore::UserWarning")  # mudata says that the names are not unique
def test_the_same_feature_in_two_modalities_is_fine():
    check_mudata(md.MuData({"rna": anndata(2, ["CD3E", "CD4"]), "protein": anndata(2, ["CD4", "CD8"])}))


def test_views():
    adata, mdata = anndata(), md.MuData({"rna": anndata()})
    refuse_view(adata, "annotate")
    refuse_view(mdata, "annotate")
    with pytest.raises(ViewError, match=r"annotate: a view of 2 cells[\s\S]*adata\.copy\(\), or pass inplace=False"):
        refuse_view(adata[:2], "annotate")
    with pytest.raises(ViewError, match=r"mdata = mdata\.copy\(\)$"):
        refuse_view(mdata[:2], "setup_mudata")


def notes_of(mdata, **keys):
    modalities = tuple(ModalitySetup(role=r, name=r) for r in ("rna", "atac") if r in mdata.mod)
    return check_columns(Cells.open(mdata, Setup(modalities=modalities, **keys)))


def both(n=12):
    mdata = md.MuData({"rna": anndata(n), "atac": anndata(n, ["p0", "p1"])})
    mdata.obs["batch"] = ["a", "b"] * (n // 2)
    mdata.obs["label"] = ["x"] * (n // 2) + ["y"] * (n // 2)
    return mdata


def test_good_columns_give_no_notes():
    assert notes_of(both(), batch_key="batch", labels_key="label") == []
    assert notes_of(both()) == []


def test_labels_worth_a_note():
    mdata = both()
    mdata.obs["rare"] = ["z"] + ["x"] * 5 + ["y"] * 6
    mdata.obs["one"] = "x"
    mdata.obs["none"] = "Unknown"
    assert notes_of(mdata, labels_key="rare") == ["obs['rare']: 1 labels have fewer than 3 cells, e.g. ['z']"]
    assert "1 labels besides 'Unknown'" in notes_of(mdata, labels_key="one")[0]
    assert "0 labels besides 'Unknown'" in notes_of(mdata, labels_key="none")[0]


def test_labels_that_are_missing_values_in_words_are_reported():
    mdata = both()
    mdata.obs["word"] = ["nan"] + ["x"] * 5 + ["y"] * 6
    (note,) = notes_of(mdata, labels_key="word")
    assert "1 cells have a label such as 'nan'" in note


def test_confounded_batches_are_reported():
    mdata = both()
    (note,) = notes_of(mdata, batch_key="label", labels_key="label")
    assert "no label occurs in two batches" in note
    mdata.obs["single"] = "s"
    assert notes_of(mdata, batch_key="single") == ["obs['single'] has one batch only"]
    mdata.obs["tiny"] = ["t"] + ["u"] * 11
    assert "1 batches have fewer than 3 cells" in notes_of(mdata, batch_key="tiny")[0]


def test_batches_without_a_common_modality_are_reported():
    cells = [f"cell{i}" for i in range(12)]
    apart = md.MuData({"rna": anndata(cells[:6]), "atac": anndata(cells[6:], ["p0"])})
    apart.obs["batch"] = ["a" if c in cells[:6] else "b" for c in apart.obs_names]
    (note,) = notes_of(apart, batch_key="batch")
    assert "share no modality" in note
    linked = md.MuData({"rna": anndata(cells[:7]), "atac": anndata(cells[6:], ["p0"])})
    linked.obs["batch"] = ["a" if c in cells[:6] else "b" for c in linked.obs_names]
    assert notes_of(linked, batch_key="batch") == []


def test_cells_without_any_modality_of_the_setup_are_reported():
    cells = [f"cell{i}" for i in range(6)]
    mdata = md.MuData({"rna": anndata(cells[:5]), "adt": anndata(cells, ["x"])})
    (note,) = check_columns(Cells.open(mdata, Setup(modalities=(ModalitySetup(role="rna", name="rna"),))))
    assert note == "1 cells have none of the modalities ['rna'], e.g. ['cell5']"


@pytest.mark.parametrize(
    "spell", [lambda n: f"{n}-1", str.upper, lambda n: f"adt_{n}", lambda n: f"Adt#{n.upper()}"], ids="abcd"
)
def test_modalities_whose_cells_differ_in_spelling_only_are_reported(spell):
    cells = [f"c{i}" for i in range(6)]
    mdata = md.MuData({"rna": anndata(cells), "atac": anndata(map(spell, cells[::-1]), ["p0"])})
    (note,) = notes_of(mdata)
    assert (
        f"share no cell, yet their names differ by a prefix, a suffix or case only, e.g. 'c0' and {spell('c0')!r}"
        in note
    )


def test_modalities_of_other_cells_are_fine():
    cells = [f"cell_{i}" for i in range(12)]
    assert notes_of(md.MuData({"rna": anndata(cells[:6]), "atac": anndata(cells[6:], ["p0"])})) == []
    assert (
        notes_of(md.MuData({"rna": anndata(cells[:11]), "atac": anndata(cells[11:], ["p0"])})) == []
    )  # "cell" is no name
    one_in_both = md.MuData({"rna": anndata(["c0", "c1", "c2"]), "atac": anndata(["c0", "c1-1", "c2-1"], ["p0"])})
    assert notes_of(one_in_both) == []


def test_a_label_that_may_mean_unknown_is_reported():
    mdata = both()
    mdata.obs["case"] = ["unknown"] * 4 + ["x"] * 4 + ["y"] * 4
    (note,) = notes_of(mdata, labels_key="case")
    assert "'unknown' is read as a label" in note
    assert "pass unlabeled_category='unknown'" in note
    assert notes_of(mdata, labels_key="case", unlabeled_category="unknown") == []
