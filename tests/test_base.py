"""The class methods that say what an object holds: those of the data path, under the model's name."""

from __future__ import annotations

import inspect

import pytest
from mudata import MuData

import cellxpert as cx
from cellxpert.base import SetupMethods
from cellxpert.data import setup as setups
from cellxpert.data.setup import read_setup
from cellxpert.errors import CellxPertWarning

SPACE = {n: p.default for n, p in inspect.signature(setups.spatial_setup).parameters.items()}
"""What is said of where cells are, and its defaults."""


@pytest.mark.parametrize("name", ["setup_mudata", "setup_anndata"])
def test_arguments_are_passed_on_as_they_are(name, monkeypatch):
    assert getattr(cx.CellxPert, name).__func__ is getattr(SetupMethods, name).__func__
    parameters = dict(inspect.signature(getattr(cx.CellxPert, name)).parameters)
    data = parameters.pop(next(iter(parameters)))
    given = {p: object() for p in parameters}
    seen, named = {}, []
    monkeypatch.setattr(setups, name, lambda first, **rest: seen.update(rest, **{data.name: first}))
    monkeypatch.setattr(setups, "spatial_setup", lambda **names: names)
    monkeypatch.setattr("cellxpert.base.name_terms", lambda first, terms: named.append((first, terms)))
    assert getattr(cx.CellxPert, name)("data", **given) is None
    assert named == [("data", given.pop("label_terms"))]
    space = {p: given.pop(p) for p in SPACE}
    assert seen == given | {data.name: "data", "spatial": space}


@pytest.mark.parametrize("name", ["setup_mudata", "setup_anndata"])
def test_defaults_are_those_of_the_data_path(name):
    ours, theirs = (inspect.signature(getattr(o, name)).parameters for o in (cx.CellxPert, setups))
    defaults = {n: p.default for n, p in theirs.items() if n != "spatial"}
    assert {n: p.default for n, p in ours.items()} == defaults | SPACE | {"label_terms": None}


def test_a_spatialdata_takes_what_an_anndata_takes():
    ours, theirs = (
        inspect.signature(getattr(cx.CellxPert, n)).parameters for n in ("setup_spatialdata", "setup_anndata")
    )
    assert set(ours) - {"sdata", "table_key"} == set(theirs) - {"adata"}
    assert ours["spatial_key"].default == "spatial"


def test_the_record_is_all_that_is_written(pbmc: MuData):
    before = {m: (list(a.obs), list(a.obsm), list(a.uns)) for m, a in pbmc.mod.items()}
    cx.CellxPert.setup_mudata(pbmc, rna="rna", labels_key="bulk_labels")
    assert read_setup(pbmc).labels_key == "bulk_labels"
    assert list(pbmc.uns) == ["cellxpert_info"]
    assert {m: (list(a.obs), list(a.obsm), list(a.uns)) for m, a in pbmc.mod.items()} == before


def test_warnings_point_at_the_caller(pbmc: MuData):
    adata = pbmc["rna"].copy()
    adata.obs["one"] = "A"
    with pytest.warns(CellxPertWarning) as caught:
        cx.CellxPert.setup_anndata(adata, labels_key="one")
    assert {w.filename for w in caught} == {__file__}
