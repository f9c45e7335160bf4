"""The record of a setup survives JSON and every file format."""

from __future__ import annotations

import json

import anndata as ad
import mudata as md
import numpy as np
import pytest

from cellxpert.data.record import LabelTerm, ModalitySetup, Setup
from cellxpert.errors import ModalityError, NotSetUpError

FULL = Setup(
    modalities=(
        ModalitySetup(role="rna", name="gex", layer="counts"),
        ModalitySetup(role="protein", name="adt", counts="intensity"),
    ),
    batch_key="donor/site",
    labels_key="T/NK",
    unlabeled_category="?",
    notes=("two\nlines", "one"),
)
PERTURBED = Setup(
    modalities=(ModalitySetup(role="rna"),),
    perturbation_key="guide/1",
    control_category="N/A",
    perturbation_type="overexpression",
)
TERMS = Setup(
    modalities=(ModalitySetup(role="rna"),),
    labels_key="type",
    label_terms=(
        LabelTerm(label="T/NK", term="CL:0000542"),
        LabelTerm(label="γδ T, 日本 \U0001f9ec", term="CL:0000798", exact=False),
        LabelTerm(label="x" * 3000, term="CL:0000236"),
    ),
)
ONE_TERM = Setup(modalities=(ModalitySetup(role="rna"),), label_terms=(LabelTerm(label="a/b", term="CL:0000236"),))
BARE = Setup(modalities=(ModalitySetup(role="atac"),))
BUILT = Setup(modalities=(ModalitySetup(role="atac", genome="GRCz11"),))


@pytest.mark.parametrize("setup", [FULL, PERTURBED, TERMS, ONE_TERM, BARE, BUILT])
def test_round_trips(setup, tmp_path):
    assert Setup.from_dict(json.loads(json.dumps(setup.to_dict()))) == setup
    adata = ad.AnnData(np.ones((2, 3), dtype="float32"), uns={"info": {"setup": setup.to_dict()}})
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert Setup.from_dict(ad.read_h5ad(tmp_path / "a.h5ad").uns["info"]["setup"]) == setup
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({"rna": adata})
        mdata.uns["info"] = {"setup": setup.to_dict()}
        mdata.write_h5mu(tmp_path / "m.h5mu")
        assert Setup.from_dict(md.read_h5mu(tmp_path / "m.h5mu").uns["info"]["setup"]) == setup


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")  # anndata's default, soon to change
@pytest.mark.parametrize("setup", [FULL, PERTURBED, TERMS, ONE_TERM, BARE, BUILT])
def test_round_trips_through_zarr(setup, tmp_path):
    pytest.importorskip("zarr")
    adata = ad.AnnData(np.ones((2, 3), dtype="float32"), uns={"info": {"setup": setup.to_dict()}})
    adata.write_zarr(tmp_path / "a.zarr")
    assert Setup.from_dict(ad.read_zarr(tmp_path / "a.zarr").uns["info"]["setup"]) == setup


def test_names_are_values_and_never_keys():
    def names(tree):
        return {k for k, v in tree.items()} | {n for v in tree.values() if isinstance(v, dict) for n in names(v)}

    assert not names(FULL.to_dict()) & {"gex", "adt", "counts/x", "donor/site", "T/NK"}
    assert not names(TERMS.to_dict()) & {t.label for t in TERMS.label_terms}
    assert not names(PERTURBED.to_dict()) & {"guide/1", "N/A", "overexpression"}


def test_records_of_before_there_were_perturbations_are_read():
    old = {"modalities": {"rna": {"counts": "integer"}}, "unlabeled_category": "Unknown"}
    assert Setup.from_dict(old) == Setup(modalities=(ModalitySetup(role="rna"),))
    assert Setup.from_dict(old).to_dict() == old


def test_what_another_setup_knows_of_labels_is_added_and_never_wins():
    own = LabelTerm(label="a/b", term="CL:0000236")
    other = Setup(
        modalities=(), label_terms=(LabelTerm(label="a/b", term="CL:0000084"), LabelTerm(label="c", term="CL:0000084"))
    )
    found = ONE_TERM.with_terms_of(other)
    assert set(found.label_terms) == {own, other.label_terms[1]}
    assert found.modalities == ONE_TERM.modalities
    assert ONE_TERM.with_terms_of(BARE) == ONE_TERM
    assert BARE.with_terms_of(ONE_TERM).label_terms == (own,)


@pytest.mark.parametrize(
    "terms", [{"labels": ["a"]}, {"labels": ["a", "b"], "terms": ["CL:1"], "exact": [1, 1]}, 3, {"labels": 1}]
)
def test_broken_terms_are_an_error(terms):
    with pytest.raises(NotSetUpError, match="again"):
        Setup.from_dict(BARE.to_dict() | {"label_terms": terms})


def test_roles():
    assert FULL.roles == ("rna", "protein")
    assert FULL.modality("protein").name == "adt"
    with pytest.raises(ModalityError, match=r"'atac'[\s\S]*\['rna', 'protein'\]"):
        FULL.modality("atac")


def test_the_order_of_modalities_is_fixed():
    shuffled = FULL.to_dict()
    shuffled["modalities"] = dict(reversed(shuffled["modalities"].items()))
    assert Setup.from_dict(shuffled) == FULL


@pytest.mark.parametrize(
    "record", [{}, {"modalities": 3}, {"modalities": {"rna": {"size": 1}}}, {"modalities": {"rna": 1}}]
)
def test_a_broken_record_is_an_error(record):
    with pytest.raises(NotSetUpError, match="again"):
        Setup.from_dict(record)
