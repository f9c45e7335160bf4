from __future__ import annotations

import hashlib

import mudata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.datasets import synthetic
from cellxpert.errors import DatasetError

MODALITIES = ["rna", "atac", "protein"]


def test_default_object():
    mdata = synthetic()
    assert list(mdata.mod) == MODALITIES
    assert mdata.n_obs == 300
    assert [mdata[m].n_vars for m in MODALITIES] == [120, 150, 12]
    assert list(mdata.obs.columns) == ["cell_type", "batch", "section"]
    assert mdata.var_names.is_unique
    for name in MODALITIES:
        part = mdata[name]
        assert part.obs_names.equals(mdata.obs_names)
        assert part.obs.equals(mdata.obs)
        assert all(dtype == "category" for dtype in part.obs.dtypes)
        assert part.X.dtype == np.float32
        assert part.X.format == "csr"
        assert (part.X.data > 0).all()
        np.testing.assert_array_equal(part.X.data, np.rint(part.X.data))
        np.testing.assert_array_equal(part.obsm["spatial"], mdata.obsm["spatial"])


def test_same_seed_same_object_and_other_seed_another():
    kwargs = {"n_cells": 60, "n_genes": 40, "n_perturbations": 2, "missing": {"atac": 0.4}}
    first, again, other = synthetic(**kwargs), synthetic(**kwargs), synthetic(**kwargs, seed=1)
    for name in MODALITIES:
        assert (first[name].X != again[name].X).nnz == 0
        assert first[name].obs.equals(again[name].obs)
    assert (first["rna"].X != other["rna"].X).nnz > 0


def _fingerprint(mdata):
    """Hash of all that an object without pairs, interaction, stress and escape holds."""
    digest = hashlib.sha256()

    def take(value):
        if isinstance(value, pd.DataFrame):
            for name in value.columns:
                take(str(name))
                take(value[name].to_numpy())
            take(np.array(value.index, dtype=object))
        elif isinstance(value, dict):
            for key in sorted(value):
                digest.update(key.encode())
                take(value[key])
        elif isinstance(value, str):
            digest.update(value.encode())
        else:
            value = np.asarray(value)
            if value.dtype.kind == "f":  # rounded: the last bits are the processor's
                digest.update((np.round(value, 6) + 0.0).astype("<f8").tobytes())
            elif value.dtype.kind in "bi":
                digest.update(value.astype("<i8").tobytes())
            else:
                digest.update("\n".join(map(str, value)).encode())
            digest.update(str(value.shape).encode())

    for name, part in {"all": mdata, **mdata.mod}.items():
        take(name)
        take(part.obs.astype(str))
        take(dict(part.obsm).get("spatial", 0))
        if name != "all":
            take(np.array(part.var_names, dtype=object))
            take(part.X.toarray())
    truth = dict(mdata.uns["truth"])
    if "perturbation" in truth:
        truth["perturbation"] = {key: truth["perturbation"][key] for key in ("names", "effect", "direct", "indirect")}
    take(truth)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"n_cells": 60, "n_genes": 40}, "846d977f68213795532cf79e4dc5473d832e45fdee5e64ffcc3a5a45bdb9cbc8"),
        (
            {
                "n_cells": 2100,
                "n_genes": 30,
                "n_peaks": 20,
                "n_proteins": 4,
                "n_perturbations": 4,
                "missing": {"rna": 0.3},
                "spatial_dims": 3,
                "n_sections": 2,
                "dropout": 0.2,
                "seed": 7,
            },
            "2713d9102422f7cffe33be2285ef656a6d66fcd0044525942fa3fe867669bd13",
        ),
        (
            {
                "n_cells": 90,
                "n_genes": 60,
                "n_peaks": 0,
                "n_types": 1,
                "n_batches": 1,
                "spatial_dims": 0,
                "n_perturbations": 6,
                "noise": 0,
                "dispersion": 0,
                "seed": 3,
            },
            "8d2370c148eb7f6801cd637e119f1321bd2fc9079cc9ecbb86f326b6d8830f67",
        ),
    ],
)
def test_a_seed_gives_the_object_that_was_recorded(kwargs, expected):
    assert _fingerprint(synthetic(**kwargs)) == expected


def test_a_modality_does_not_depend_on_the_others():
    many, few = synthetic(n_cells=80), synthetic(n_cells=80, n_peaks=0, n_proteins=5, missing={"rna": 0.2})
    kept = few["rna"].obs_names
    assert (many["rna"][kept].X != few["rna"].X).nnz == 0
    assert list(few.mod) == ["rna", "protein"]


@settings(deadline=None, max_examples=15)
@given(
    shares=st.tuples(*[st.floats(0, 0.66)] * 3),
    n_cells=st.integers(5, 60),
    seed=st.integers(0, 1000),
)
def test_missing_shares_are_exact_and_no_cell_is_empty(shares, n_cells, seed):
    missing = dict(zip(MODALITIES, shares, strict=True))
    mdata = synthetic(n_cells=n_cells, n_genes=24, n_peaks=10, n_proteins=3, missing=missing, seed=seed)
    full = synthetic(n_cells=n_cells, n_genes=24, n_peaks=10, n_proteins=3, seed=seed)
    assert list(mdata.obs_names) == list(full.obs_names)
    assert mdata.obs.equals(full.obs)
    seen = np.zeros(n_cells, dtype=int)
    for name in MODALITIES:
        rows = mdata.obsmap[name].astype(np.int64) - 1
        assert (rows >= 0).sum() == mdata[name].n_obs == n_cells - round(shares[MODALITIES.index(name)] * n_cells)
        seen += rows >= 0
        for cell in np.flatnonzero(rows >= 0):
            assert mdata[name].obs_names[rows[cell]] == mdata.obs_names[cell]
        values = full[name][mdata[name].obs_names]
        assert (values.X != mdata[name].X).nnz == 0
        np.testing.assert_array_equal(values.obsm["spatial"], mdata[name].obsm["spatial"])
    assert (seen >= 1).all()


def test_truth_is_written_and_read(tmp_path):
    mdata = synthetic(n_cells=60, n_genes=40, n_perturbations=2, missing={"rna": 0.5}, spatial_dims=3, n_sections=2)
    with mudata.set_options(pull_on_update=False):
        mdata.write_h5mu(tmp_path / "s.h5mu")
        mdata.write_zarr(tmp_path / "s.zarr")
        readers = (mudata.read_h5mu(tmp_path / "s.h5mu"), mudata.read_zarr(tmp_path / "s.zarr"))
    for again in readers:
        truth, read = mdata.uns["truth"], again.uns["truth"]
        assert set(read) == set(truth)
        np.testing.assert_array_equal(read["perturbation"]["effect"], truth["perturbation"]["effect"])
        assert list(read["genes"]) == list(mdata["rna"].var_names)
        pd.testing.assert_frame_equal(read["cells"], truth["cells"], check_index_type=False)
        assert list(read["regulation"]["target"]) == list(truth["regulation"]["target"])
        assert again.obsm["spatial"].shape == (60, 3)


def test_network_has_no_cycle_and_direct_and_indirect_effects_follow_its_paths():
    truth = synthetic(n_cells=20, n_perturbations=5).uns["truth"]
    genes = list(truth["genes"])
    children: dict[str, set[str]] = {gene: set() for gene in genes}
    for regulator, target in truth["regulation"][["regulator", "target"]].to_numpy():
        children[regulator].add(target)

    def descendants(gene: str, path: tuple[str, ...] = ()) -> set[str]:
        assert gene not in path
        return children[gene].union(*(descendants(child, (*path, gene)) for child in children[gene]))

    found = truth["perturbation"]
    for i, knocked in enumerate(found["names"]):
        reached = descendants(knocked)
        assert {g for g, yes in zip(genes, found["direct"][i], strict=True) if yes} == children[knocked]
        assert {g for g, yes in zip(genes, found["indirect"][i], strict=True) if yes} == reached - children[knocked]
        effect = dict(zip(genes, found["effect"][i], strict=True))
        assert {g for g, size in effect.items() if size != 0} <= reached | {knocked}
        assert all(abs(effect[g]) > 0 for g in children[knocked])
    assert found["indirect"].any()


def test_a_knock_out_does_to_counts_what_the_truth_says():
    quiet = {"noise": 0, "n_types": 1, "n_batches": 1, "spatial_dims": 0, "n_peaks": 0, "n_proteins": 0}
    mdata = synthetic(n_cells=4000, n_genes=60, n_perturbations=3, depth=10, dispersion=0, **quiet)
    truth = mdata.uns["truth"]
    counts = mdata["rna"].X.toarray()
    depth = truth["cells"]["depth"].to_numpy()
    group = mdata.obs["perturbation"].astype(str).to_numpy()
    assert (group == "control").sum() == 1600
    control = group == "control"
    for name, expected in zip(truth["perturbation"]["names"], truth["perturbation"]["effect"], strict=True):
        treated = group == name
        totals = counts[treated].sum(axis=0), counts[control].sum(axis=0)
        change = np.log(totals[0] / depth[treated].sum()) - np.log(totals[1] / depth[control].sum())
        error = np.sqrt(1 / totals[0] + 1 / totals[1])  # of the logarithm of a ratio of Poisson counts
        assert (np.abs(change - expected) < 5 * error).all()
        assert expected[list(truth["genes"]).index(name)] == -3.0


def test_types_batches_peaks_and_proteins_follow_the_truth():
    mdata = synthetic(
        n_cells=3000, n_genes=40, n_peaks=30, n_proteins=10, spatial_dims=0, depth=10, noise=0, dispersion=0
    )
    truth = mdata.uns["truth"]
    depth = truth["cells"]["depth"].to_numpy()
    rna = mdata["rna"].X.toarray()
    kind, batch = mdata.obs["cell_type"].cat.codes.to_numpy(), mdata.obs["batch"].cat.codes.to_numpy()
    for t in range(4):
        for b in range(2):
            rows = (kind == t) & (batch == b)
            total = rna[rows].sum(axis=0)
            expected = truth["base"] + truth["type_effect"][t] + truth["batch_effect"][b]
            assert (np.abs(np.log(total / depth[rows].sum()) - expected) < 5 / np.sqrt(total)).all()
    for name, key in (("atac", "peaks"), ("protein", "proteins")):
        values = mdata[name].X.toarray()
        gene_of = truth[key]["gene"].to_numpy()
        assert (gene_of == "").sum() == len(gene_of) // 5
        groups = [(batch == 0) & (kind == t) for t in range(4)]
        for column, gene in enumerate(gene_of):
            expected = 0.8 * truth["type_effect"][:, list(truth["genes"]).index(gene)] if gene else np.zeros(4)
            total = np.array([values[rows, column].sum() for rows in groups])
            observed = np.log(total / [rows.sum() for rows in groups])
            # Poisson counts of about 375 cells, whose depths vary by a fifth
            error = np.sqrt(1 / total + 0.05 / 375)
            assert (np.abs((observed - expected) - (observed - expected).mean()) < 5 * error).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_neighbours_are_of_one_type_more_often_than_by_chance(dims):
    mdata = synthetic(n_cells=300, spatial_dims=dims, n_sections=2)
    place, truth = mdata.obsm["spatial"], mdata.uns["truth"]
    assert place.shape == (300, dims)
    kind, section = mdata.obs["cell_type"].to_numpy(), mdata.obs["section"].to_numpy()
    same, share = [], []
    for cell in range(300):
        others = np.flatnonzero((section == section[cell]) & (np.arange(300) != cell))
        near = others[np.argsort(((place[others] - place[cell]) ** 2).sum(axis=1))[:8]]
        same.append((kind[near] == kind[cell]).mean())
        share.append((kind[near] == truth["niche"]["sender"]).mean())
    assert np.mean(same) > 0.4  # 0.25 by chance
    np.testing.assert_allclose(truth["cells"]["niche_share"], share)


def test_neighbours_act_on_the_genes_that_the_truth_names():
    quiet = {"noise": 0, "n_batches": 1, "n_peaks": 0, "n_proteins": 0, "depth": 20, "dispersion": 0, "type_effect": 0}
    mdata = synthetic(n_cells=3000, n_genes=40, n_types=3, niche_effect=1.0, **quiet)
    truth = mdata.uns["truth"]
    # Without other effects, a gene that stands above none follows the share of senders around the cell exactly.
    share = truth["cells"]["niche_share"].to_numpy()
    counts = mdata["rna"].X.toarray() / truth["cells"]["depth"].to_numpy()[:, None]
    for gene in np.flatnonzero(truth["niche"]["shift"]):
        if truth["genes"][gene] in set(truth["regulation"]["target"]):
            continue
        expected = np.exp(truth["base"][gene] + share)
        assert counts[:, gene].mean() == pytest.approx(expected.mean(), rel=0.05)
        assert counts[share > 0.5, gene].mean() == pytest.approx(expected[share > 0.5].mean(), rel=0.1)
    assert set(truth["niche"]["shift"]) == {0.0, 1.0}


def test_dropout_loses_the_share_asked_for():
    kept = synthetic(depth=20).mod["rna"].X
    lost = synthetic(depth=20, dropout=0.3).mod["rna"].X
    assert lost.nnz / kept.nnz == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_cells": 1}, "n_cells"),
        ({"n_genes": 2.5}, "n_genes"),
        ({"n_types": 500}, "n_types"),
        ({"spatial_dims": 1}, "0, 2 or 3"),
        ({"depth": 0}, "positive"),
        ({"dropout": 1.0}, "dropout"),
        ({"control_fraction": 1.0}, "control_fraction"),
        ({"noise": -0.1}, "noise"),
        ({"n_perturbations": 120}, "genes act on others"),
        ({"n_pairs": -1}, "n_pairs"),
        ({"n_pairs": 1}, "only 0 pairs of the 0 genes"),
        ({"n_perturbations": 4, "n_pairs": 7}, "n_pairs"),
        ({"n_regulators": 0}, "whole number from 1 to 113"),
        ({"n_regulators": 114}, "whole number from 1 to 113"),
        ({"n_regulators": 2.0}, "n_regulators"),
        ({"interaction": -1}, "interaction"),
        ({"stress_effect": float("nan")}, "stress_effect"),
        ({"escape": 1.0}, "escape"),
        ({"missing": {"atax": 0.1}}, "atax"),
        ({"missing": {"atac": 1.0}}, "shares in"),
        ({"missing": {"rna": 0.9, "atac": 0.9, "protein": 0.9}}, "sum to at least 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(DatasetError, match=message):
        synthetic(**kwargs)
