"""A setup checks everything, records what it was told, and changes nothing else."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellxpert import keys
from cellxpert.data.cells import Cells
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.data.setup import presence, query_setup, read_setup, setup_anndata, setup_mudata, summary, validate
from cellxpert.errors import (
    CategoryError,
    CellxPertWarning,
    ConfigError,
    ControlError,
    DuplicateNamesError,
    GenomeError,
    LayerError,
    MissingValuesError,
    ModalityError,
    MuDataError,
    NotCountsError,
    NotSetUpError,
    ObjectTypeError,
    ObsKeyError,
    ViewError,
)

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning")  # mudata 0.3


def anndata(cells, features, seed=0):
    rng = np.random.default_rng(seed)
    # the first feature is in every cell
    adata = ad.AnnData(
        sparse.csr_matrix(
            rng.poisson(2, (len(cells), len(features))).astype("float32") + np.eye(1, len(features), dtype="float32")
        )
    )
    adata.obs_names, adata.var_names = pd.Index(cells, dtype=object), pd.Index(features, dtype=object)
    return adata


CELLS = [f"cell{i}" for i in range(12)]


def trio(**obs):
    """RNA of cells 0-7, ATAC of 4-11, protein of all, in three orders."""
    mdata = md.MuData(
        {
            "gex": anndata(CELLS[:8], ["CD3E", "MS4A1", "NKG7"]),
            "peaks": anndata(CELLS[:3:-1], ["chr1:1-50", "chr1:100-150"], 1),
            "adt": anndata(CELLS, ["CD3", "CD19"], 2),
        }
    )
    known = {"batch": ["a", "b"] * 6, "label": ["T"] * 6 + ["B"] * 5 + ["Unknown"], "guide": ["control", "CD3E"] * 6}
    for name, values in (known | obs).items():
        mdata.obs[name] = pd.Series(values, index=CELLS)
    return mdata


ROLES = {"rna": "gex", "atac": "peaks", "protein": "adt"}


def fingerprint(data):
    parts = []
    for adata in data.mod.values() if isinstance(data, md.MuData) else [data]:
        parts += [adata.X.data, adata.X.indices, adata.X.indptr, adata.obs, adata.var, dict(adata.layers)]
    parts += [data.obs, data.var, [np.asarray(v) for v in data.obsm.values()]]
    uns = {k: v for k, v in data.uns.items() if k != keys.INFO}
    return hashlib.sha256(pickle.dumps([*parts, uns])).hexdigest()


def test_the_record_says_what_was_said():
    mdata = trio()
    mdata["gex"].layers["counts"] = mdata["gex"].X.copy()
    setup = setup_mudata(
        mdata, **ROLES, layers={"rna": "counts"}, batch_key="batch", labels_key="label", counts={"protein": "intensity"}
    )
    assert setup == Setup(
        modalities=(
            ModalitySetup(role="rna", name="gex", layer="counts"),
            ModalitySetup(role="atac", name="peaks"),
            ModalitySetup(role="protein", name="adt", counts="intensity"),
        ),
        batch_key="batch",
        labels_key="label",
    )
    assert read_setup(mdata) == setup
    assert mdata.uns[keys.INFO][keys.SETUP] == setup.to_dict()


def test_nothing_else_of_the_object_changes():
    mdata = trio()
    mdata.uns["mine"] = {"a": 1}
    mdata.uns[keys.INFO] = {"other": 1}
    shared = mdata.uns[keys.INFO]
    before = fingerprint(mdata)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state must stay as it is
    setup_mudata(mdata, **ROLES, batch_key="batch", labels_key="label")
    assert fingerprint(mdata) == before
    assert mdata.uns[keys.INFO]["other"] == 1
    assert shared == {"other": 1}, "a dict that others may share was written to"
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    adata = anndata(CELLS, ["A", "B"])
    before = fingerprint(adata)
    setup_anndata(adata)
    assert fingerprint(adata) == before


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_the_record_survives_files(tmp_path):
    mdata = trio(label=["T"] * 6 + ["B"] * 6)
    with pytest.warns(CellxPertWarning, match="confounded"):
        setup = setup_mudata(mdata, **ROLES, labels_key="label", batch_key="label")
    assert len(setup.notes) == 1
    mdata.write_h5mu(tmp_path / "m.h5mu")
    assert read_setup(md.read_h5mu(tmp_path / "m.h5mu")) == setup
    backed = md.read_h5mu(tmp_path / "m.h5mu", backed="r")
    assert read_setup(backed) == setup
    assert validate(backed, setup) == setup.notes
    backed.file.close()
    adata = anndata(CELLS, ["A", "B"])
    setup = setup_anndata(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    assert read_setup(ad.read_h5ad(tmp_path / "a.h5ad")) == setup
    assert read_setup(ad.read_zarr(tmp_path / "a.zarr")) == setup


def test_a_copy_and_a_view_keep_their_setup():
    mdata = trio()
    setup = setup_mudata(mdata, **ROLES)
    assert read_setup(mdata[:3]) == setup
    assert read_setup(mdata[:3].copy()) == setup
    assert validate(mdata[2:9], setup) == ()


def test_views_are_refused_because_the_record_would_be_lost():
    with pytest.raises(ViewError, match=r"mdata = mdata\.copy\(\)"):
        setup_mudata(trio()[:5], **ROLES)
    with pytest.raises(ViewError, match=r"adata = adata\.copy\(\)"):
        setup_anndata(anndata(CELLS, ["A", "B"])[:5])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({}, ModalityError, r"no modality was named; mdata has \['gex', 'peaks', 'adt'\]"),
        ({"rna": "gexx"}, ModalityError, r"pass rna='gex'"),
        ({"rna": "qqq"}, ModalityError, r"use one of \['gex', 'peaks', 'adt'\]"),
        ({"rna": "gex", "atac": "gex"}, ModalityError, "two roles"),
        ({"rna": "gex", "layers": "counts"}, ConfigError, r"pass layers=\{'rna': 'counts'\}"),
        ({"rna": "gex", "layers": {"gex": "counts"}}, ConfigError, "the key is the role: 'rna'"),
        ({"rna": "gex", "layers": {"atac": "counts"}}, ConfigError, r"use one of \['rna'\]"),
        ({"rna": "gex", "layers": {"rna": "counts"}}, LayerError, "no layer 'counts'"),
        ({"rna": "gex", "counts": "raw"}, ConfigError, "'fractional'"),
        ({"rna": "gex", "counts": {"rna": "raw"}}, ConfigError, "'raw'"),
        ({"rna": "gex", "batch_key": "Batch"}, ObsKeyError, "did you mean 'batch'"),
        ({"rna": "gex", "labels_key": "celltype"}, ObsKeyError, "no column 'celltype'"),
        ({"rna": "gex", "labels_key": 3}, ConfigError, "name of a column"),
        ({"rna": "gex", "labels_key": ""}, ConfigError, "name of a column"),
        ({"rna": "gex", "unlabeled_category": ""}, ConfigError, "Unknown"),
        ({"rna": "gex", "perturbation_key": 3}, ConfigError, r"perturbation_key=[\s\S]*name of a column"),
        ({"rna": "gex", "perturbation_key": "guides"}, ObsKeyError, "did you mean 'guide'"),
        ({"rna": "gex", "control_category": ""}, ConfigError, "control_category="),
        ({"rna": "gex", "control_category": None}, ConfigError, "control_category="),
        ({"rna": "gex", "perturbation_type": "deletion"}, ConfigError, r"'knockdown', 'overexpression'\]"),
        ({"rna": "gex", "perturbation_type": ["knockout"]}, ConfigError, "perturbation_type="),
        ({"rna": "gex", "perturbation_key": "guide", "control_category": "NT"}, ControlError, "no cell is 'NT'"),
    ],
)
def test_what_cannot_be_is_refused(arguments, kind, message):
    mdata = trio()
    with pytest.raises(kind, match=message):
        setup_mudata(mdata, **arguments)
    assert keys.INFO not in mdata.uns


def test_an_anndata_has_one_role():
    adata = anndata(CELLS, ["A", "B"])
    assert setup_anndata(adata, modality="protein").roles == ("protein",)
    with pytest.raises(ConfigError, match=r"\['rna', 'atac', 'protein'\]"):
        setup_anndata(adata, modality="gex")
    with pytest.raises(ObjectTypeError):
        setup_anndata(trio())
    with pytest.raises(ObjectTypeError):
        setup_mudata(adata, rna="rna")


def test_values_of_every_modality_are_checked():
    mdata = trio()
    mdata["peaks"].X.data[-1] = 0.5
    with pytest.raises(NotCountsError, match=r"mdata\['peaks'\]\.X"):
        setup_mudata(mdata, **ROLES)
    setup_mudata(mdata, rna="gex", protein="adt")  # a modality without a role is not read


def test_columns_are_checked():
    with pytest.raises(MissingValuesError, match="1 cells without a value"):
        setup_mudata(trio(batch=["a"] * 11 + [None]), **ROLES, batch_key="batch")
    with pytest.raises(CategoryError, match="types"):
        setup_mudata(trio(batch=[1] * 6 + ["1"] * 6), **ROLES, batch_key="batch")
    setup_mudata(trio(label=["T"] * 6 + ["B"] * 5 + [None]), **ROLES, labels_key="label")


def test_a_stale_object_is_noticed():
    mdata = trio()
    mdata.mod["gex"] = mdata["gex"][::-1].copy()
    with pytest.raises(MuDataError, match="update"):
        setup_mudata(mdata, **ROLES)


def test_findings_are_warned_about_and_recorded():
    mdata = trio()
    mdata["gex"].X.data[mdata["gex"].X.indptr[3] : mdata["gex"].X.indptr[4]] = 0
    with pytest.warns(CellxPertWarning, match="1 of 8 cells have no value above zero") as caught:
        setup = setup_mudata(mdata, rna="gex", protein="adt")
    assert [str(w.message) for w in caught] == list(setup.notes)


PERTURBED = {"perturbation_key": "guide", "control_category": "NT", "perturbation_type": "knockdown"}


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_perturbations_are_recorded_and_survive_files(tmp_path):
    mdata = trio(guide=["NT", "CD3E", "CD3E+MS4A1"] * 4)
    setup = setup_mudata(mdata, **ROLES, **PERTURBED)
    assert (setup.perturbation_key, setup.control_category, setup.perturbation_type) == tuple(PERTURBED.values())
    assert setup.notes == ()
    mdata.write_h5mu(tmp_path / "m.h5mu")
    assert read_setup(md.read_h5mu(tmp_path / "m.h5mu")) == read_setup(mdata) == setup
    adata = anndata(CELLS, ["CD3E", "MS4A1"])
    adata.obs["guide"] = ["NT", "CD3E", "CD3E+MS4A1"] * 4
    setup = setup_anndata(adata, **PERTURBED)
    assert setup.perturbation_type == "knockdown"
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    assert read_setup(ad.read_h5ad(tmp_path / "a.h5ad")) == setup
    assert read_setup(ad.read_zarr(tmp_path / "a.zarr")) == setup


def test_without_perturbations_nothing_is_said_of_them():
    mdata = trio()
    setup = setup_mudata(mdata, **ROLES, control_category="NT", perturbation_type="knockdown")
    assert setup.perturbation_key is None
    assert not set(mdata.uns[keys.INFO][keys.SETUP]) & set(PERTURBED)


@pytest.mark.parametrize(
    ("guides", "fix"),
    [
        (["Control", "CD3E"], "pass control_category='Control'"),
        (["non-targeting", "CD3E"], "pass control_category='CD3E'"),  # nothing like it: the first that there is
    ],
)
def test_a_control_that_no_cell_has_is_refused_with_the_line_that_mends_it(guides, fix):
    adata = anndata(CELLS, ["CD3E", "MS4A1"])
    adata.obs["guide"] = guides * 6
    with pytest.raises(ControlError, match=rf"obs\['guide'\]: no cell is 'control'[\s\S]*Fix: {fix}"):
        setup_anndata(adata, perturbation_key="guide")
    assert keys.INFO not in adata.uns


def test_every_cell_needs_a_condition():
    with pytest.raises(MissingValuesError, match="1 cells without a value"):
        setup_mudata(trio(guide=["control"] * 11 + [None]), **ROLES, perturbation_key="guide")


def test_an_object_of_controls_alone_is_read_and_told():
    adata = anndata(CELLS, ["CD3E", "MS4A1"])
    adata.obs["guide"] = "control"
    with pytest.warns(CellxPertWarning, match=r"obs\['guide'\]: every cell is 'control'"):
        setup = setup_anndata(adata, perturbation_key="guide")
    assert len(setup.notes) == 1


def test_the_summary_counts_conditions():
    mdata = trio(guide=["NT", "CD3E", "CD3E+MS4A1", "NT"] * 3)
    text = summary(setup_mudata(mdata, **ROLES, **PERTURBED), mdata)
    assert "perturbations: obs['guide'], 2 conditions (knockdown), 6 cells 'NT'" in text
    assert "perturbations" not in summary(setup_mudata(mdata, **ROLES), mdata)


def test_a_query_without_the_column_is_read_without_perturbations():
    setup = setup_mudata(trio(), **ROLES, perturbation_key="guide")
    assert query_setup(setup, trio()).perturbation_key == "guide"
    bare = trio()
    del bare.obs["guide"]
    assert query_setup(setup, bare).perturbation_key is None


def test_objects_without_a_setup():
    with pytest.raises(NotSetUpError, match=r"setup_mudata\(mdata, rna='gex'\)"):
        read_setup(trio())
    with pytest.raises(NotSetUpError, match=r"setup_anndata\(adata\)"):
        read_setup(anndata(CELLS, ["A"]))


def test_presence_counts_cells():
    mdata = trio()
    setup = setup_mudata(mdata, **ROLES, batch_key="batch")
    table = presence(Cells.open(mdata, setup))
    expected = {
        (role, batch): sum(b == batch and c in set(mdata[name].obs_names) for c, b in mdata.obs["batch"].items())
        for role, name in ROLES.items()
        for batch in "ab"
    }
    assert {k: table.loc[k] for k in expected} == expected
    assert table.loc["cells"].tolist() == [6, 6]


def test_the_summary_tells_what_will_be_read():
    mdata = trio()
    mdata["gex"].layers["counts"] = mdata["gex"].X.copy()
    setup = setup_mudata(mdata, **ROLES, layers={"rna": "counts"}, batch_key="batch", labels_key="label")
    text = summary(setup, mdata)
    assert "12 cells" in text
    assert "layers['counts']" in text
    assert "obs['label'], 2 labels, 1 cells 'Unknown'" in text
    assert "obs['batch'], 2 batches" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("a ", "b "))}
    assert rows == {"a": ["4", "4", "6", "6"], "b": ["4", "4", "6", "6"]}
    bare = summary(setup_mudata(mdata, protein="adt"), mdata)
    assert "labels: none" in bare
    assert "batches: none" in bare


def test_a_query_is_read_as_the_model_was_unless_it_says_otherwise():
    setup = setup_mudata(trio(), **ROLES, batch_key="batch", labels_key="label")
    query = trio()
    assert query_setup(setup, query) == setup
    part = md.MuData({"gex": query["gex"].copy()})
    found = query_setup(setup, part)
    assert found.roles == ("rna",)
    assert found.batch_key is None
    assert found.labels_key is None
    validate(part, found)
    single = query_setup(setup, query["gex"])
    assert single.modalities == (ModalitySetup(role="rna"),)
    Cells.open(query["gex"], single)
    own = setup_mudata(query, protein="adt", labels_key="batch")
    assert query_setup(setup, query) == own
    with pytest.raises(ModalityError, match="none of the modalities"):
        query_setup(setup, md.MuData({"x": anndata(CELLS, ["A"])}))


def test_a_query_without_the_layer_of_the_model_is_told_to_name_its_counts():
    mdata = trio()
    mdata["gex"].layers["counts"] = mdata["gex"].X.copy()
    setup = setup_mudata(mdata, **ROLES, layers={"rna": "counts"})
    call = r"call cellxpert\.CellxPert\.setup_mudata\(mdata, rna='gex', layers=\{'rna': \.\.\.\}\)"
    with pytest.raises(LayerError, match=rf"query\['gex'\]: no layer 'counts'[\s\S]*{call}"):
        query_setup(setup, trio())
    with pytest.raises(LayerError, match=r"setup_anndata\(adata, layer=\.\.\.\)"):
        query_setup(setup, trio()["gex"])
    query = trio()
    own = setup_mudata(query, protein="adt")
    assert query_setup(setup, query) == own
    assert query_setup(setup, mdata) == setup


def test_names_are_checked():
    mdata = md.MuData({"rna": anndata(CELLS, ["ENSG00000000001.1", "ENSG00000000001.2", "ENSG00000000002"])})
    with pytest.raises(DuplicateNamesError, match=r"mdata\['rna'\]\.var_names"):
        setup_mudata(mdata, rna="rna")
    genes = anndata(CELLS, ["CD3E", "MS4A1"])
    with pytest.warns(CellxPertWarning, match="2 of 2 peaks are not named"):
        setup = setup_anndata(genes, modality="atac")
    assert len(read_setup(genes).notes) == len(setup.notes) == 1


def test_a_model_of_one_matrix_reads_a_mudata():
    setup = setup_anndata(anndata(CELLS, ["A", "B"]))
    mdata = md.MuData({"rna": anndata(CELLS, ["A", "B"])})
    assert query_setup(setup, mdata).modalities == (ModalitySetup(role="rna", name="rna"),)


def test_the_build_of_peaks_is_recorded():
    far = ["chr17:83000000-83000500", "chr22:100-200"]  # hg38 alone has both
    adata = anndata(CELLS, far)
    assert setup_anndata(adata, modality="atac").modalities == (ModalitySetup(role="atac", genome="hg38"),)
    assert read_setup(adata).modality("atac").genome == "hg38"
    assert "\ngenome of the peaks: hg38\n" in summary(read_setup(adata), adata)
    said = anndata(CELLS, ["chr1:1-5", "chr1:7-9"])
    assert setup_anndata(said, modality="atac").modality("atac").genome is None
    said.var["genome"] = "GRCm38"
    assert setup_anndata(said, modality="atac").modality("atac").genome == "mm10"
    adata.uns["genome"] = "hg19"
    with pytest.raises(GenomeError, match=r"adata\.uns\['genome'\]: 'hg19', but"):
        setup_anndata(adata, modality="atac")
    with pytest.raises(GenomeError, match=r"mdata\['peaks'\]\.uns"):
        setup_mudata(md.MuData({"peaks": adata}), atac="peaks")
    genes = anndata(CELLS, ["A", "B"])
    genes.var["genome"] = "GRCh38"
    assert setup_anndata(genes).modalities == (ModalitySetup(role="rna"),)


def test_a_query_has_a_build_of_its_own():
    model = setup_anndata(anndata(CELLS, ["chr17:83000000-83000500", "chr22:100-200"]), modality="atac")
    query = anndata(CELLS, ["chr1:1-5"])
    assert query_setup(model, query).modality("atac").genome is None
    query.uns["genome"] = "mm9"
    assert query_setup(model, query).modality("atac").genome == "mm9"


def test_names_that_modalities_share():
    """A gene and a protein of one name are two features; the same values under both are a copy, which is told."""
    rna, adt = anndata(CELLS, ["CD4", "CD19", "ACTB"], seed=1), anndata(CELLS, ["CD4", "CD19"], seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mudata
        mdata = md.MuData({"rna": rna, "adt": adt})
    setup = setup_mudata(mdata, rna="rna", protein="adt")
    assert setup.notes == ()
    cells = Cells.open(mdata, setup)
    assert set(cells.feature_names("rna")) & set(cells.feature_names("protein")) == {"CD4", "CD19"}
    assert (cells.matrix_rows("rna", np.arange(12)).toarray() == rna.X.toarray()).all()
    assert (cells.matrix_rows("protein", np.arange(12)).toarray() == adt.X.toarray()).all()
    rna = rna.copy()
    rna.X = sparse.csr_matrix(np.column_stack([adt.X.toarray()[:, 0], rna.X.toarray()[:, 1:]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mdata = md.MuData({"rna": rna, "adt": adt})
    with pytest.warns(CellxPertWarning, match=r"hold 1 features with the same names and values, e\.g\. \['CD4'\]"):
        setup_mudata(mdata, rna="rna", protein="adt")


BUILDS = {
    "snareseq_cortex_10309.h5mu": "mm10",
    "scicar_a549_2641.h5mu": "hg19",
    "scicar_kidney_554.h5mu": "mm10",
    "bmmc_multiome_neurips2021_set1.h5mu": "hg38",
}


@pytest.mark.parametrize("file", sorted(BUILDS))
def test_builds_of_real_peaks(file):
    """No object says its own build; where its peaks end does."""
    folder = os.environ.get("CELLXPERT_DATA")
    if not folder or not (Path(folder) / file).exists():
        pytest.skip(f"needs {file} in the folder that CELLXPERT_DATA names")
    setup = setup_anndata(md.read_h5mu(Path(folder) / file)["atac"], modality="atac")
    assert setup.modality("atac").genome == BUILDS[file]
    assert setup.notes == ()


FILES = {"pbmc3k.h5ad": {}, "teaseq_pbmc_1262.h5mu": {"rna": "rna", "protein": "prot"}}


@pytest.mark.parametrize("file", sorted(FILES))
def test_real_counts_pass(file):
    folder = os.environ.get("CELLXPERT_DATA")
    if not folder or not (Path(folder) / file).exists():
        pytest.skip(f"needs {file} in the folder that CELLXPERT_DATA names")
    warnings.filterwarnings("ignore", "Cannot join columns", UserWarning)  # mudata: genes named like proteins
    data = (md.read_h5mu if file.endswith("h5mu") else ad.read_h5ad)(Path(folder) / file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setup = setup_mudata(data, **FILES[file]) if FILES[file] else setup_anndata(data)
    assert setup.notes == ()
