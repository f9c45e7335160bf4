"""The vocabulary: fitted on training cells, independent of column order, exact through JSON."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellxpert.config import TokenConfig
from cellxpert.data.cells import Cells
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.data.roles import MEASURED as MODALITIES
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import VocabularyError

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning")  # mudata 0.3

SETUP = Setup(modalities=tuple(ModalitySetup(role=role, name=role) for role in MODALITIES))
CONFIG = TokenConfig(n_genes=25, n_peaks=12, n_proteins=10, n_bins=12)
TRAIN = np.arange(0, 80, 2)


def modality(prefix, n_features, mean, seed):
    rng = np.random.default_rng(seed)
    values = rng.poisson(rng.lognormal(mean, 1, n_features), size=(80, n_features))
    var = pd.DataFrame(index=pd.Index([f"{prefix}{j:03d}" for j in range(n_features)], dtype=object))
    if prefix == "g":
        var["gene_ids"] = [f"ENSG{j:011d}.{j % 7}" for j in range(n_features)]
    obs = pd.DataFrame(index=pd.Index([f"c{i}" for i in range(80)], dtype=object))
    return ad.AnnData(sparse.csr_matrix(values.astype(np.float32)), obs=obs, var=var)


def mudata_of(order=None):
    mods = {"rna": modality("g", 40, 0, 0), "atac": modality("p", 20, -1, 1), "protein": modality("a", 10, 3, 2)}
    if order is not None:
        mods = {
            name: adata[:, np.random.default_rng(order).permutation(adata.n_vars)].copy()
            for name, adata in mods.items()
        }
    with md.set_options(pull_on_update=False):
        return md.MuData(mods)


def fit(config=CONFIG, order=None, rows=TRAIN):
    return Vocabulary.fit(Cells.open(mudata_of(order), SETUP), config, train_rows=rows)


def test_layout():
    vocabulary = fit()
    assert vocabulary.roles == MODALITIES
    assert [len(b.names) for b in vocabulary.blocks] == [25, 12, 10]
    assert vocabulary.n_features == 47
    assert [vocabulary.offset(r) for r in MODALITIES] == [0, 25, 37]
    np.testing.assert_array_equal(vocabulary.role_of_feature, [0] * 25 + [1] * 12 + [2] * 10)
    for block in vocabulary.blocks:
        assert list(block.names) == sorted(block.names)
    assert vocabulary.names[25:37] == vocabulary.block("atac").names
    genes = vocabulary.block("rna")
    assert genes.ids == tuple(f"ENSG{int(name[1:]):011d}" for name in genes.names)
    assert vocabulary.block("atac").ids is None


@pytest.mark.parametrize("binning", ["global", "per_cell"])
def test_bins_of_training_cells_decode_to_their_mean(binning):
    config = TokenConfig(n_genes=25, n_peaks=12, n_proteins=10, n_bins=12, binning=binning)
    vocabulary = fit(config)
    cells = Cells.open(mudata_of(), SETUP)
    block = vocabulary.block("rna")
    dense = cells.matrix_rows("rna", TRAIN).toarray()
    columns = [cells.feature_names("rna").tolist().index(name) for name in block.names]
    magnitude = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))[:, columns]
    np.testing.assert_allclose(block.counts, dense[:, columns].mean(axis=0))
    if binning == "global":
        bins = np.where(magnitude > 0, 1 + np.searchsorted(block.edges, magnitude, side="right"), 0)
        share = np.bincount(bins[bins > 0], minlength=12)[1:] / (bins > 0).sum()
        assert abs(share - 1 / 11).max() < 0.02
        for b in range(1, 12):
            assert block.bin_means[b] == pytest.approx(magnitude[bins == b].mean())
            assert vocabulary.decode(0, b) == block.bin_means[b]
    else:
        assert magnitude[magnitude > 0].min() < block.bin_means[1] < block.bin_means[-1] < magnitude.max()
    np.testing.assert_array_equal(vocabulary.decode([0, 30], 0), 0)


def test_decode_uses_the_features_modality():
    vocabulary = fit()
    decoded = vocabulary.decode([[3], [30], [40]], np.arange(12))
    for row, role in zip(decoded, MODALITIES, strict=True):
        np.testing.assert_array_equal(row, vocabulary.block(role).bin_means)


@pytest.mark.parametrize("binning", ["global", "per_cell"])
def test_order_of_columns_changes_no_bit(binning):
    config = TokenConfig(n_genes=25, n_peaks=12, n_proteins=7, n_bins=12, binning=binning)
    assert len({fit(config, order=order).hash() for order in (None, 1, 2, 3)}) == 1


def test_held_out_cells_are_not_read():
    mdata = mudata_of()
    for adata in mdata.mod.values():
        dense = adata.X.toarray()
        dense[1::2] = 77
        adata.X = sparse.csr_matrix(dense)
    changed = Vocabulary.fit(Cells.open(mdata, SETUP), CONFIG, train_rows=TRAIN)
    assert changed.hash() == fit().hash()
    assert fit(rows=np.arange(80)).hash() != changed.hash()


def genes_of(n):
    """The n most variable genes."""
    return set(fit(dataclasses.replace(CONFIG, n_genes=n)).block("rna").names)


def kept_genes(conditions, *, n_genes, held_out="control"):
    """Genes kept where training cells have these conditions, and all held-out cells another one."""
    mdata = mudata_of()
    condition = np.full(80, "control", dtype=object)
    condition[TRAIN[: len(conditions)]] = conditions
    condition[1::2] = held_out
    mdata.obs["guide"] = pd.Series(condition, index=[f"c{i}" for i in range(80)])
    cells = Cells.open(mdata, dataclasses.replace(SETUP, perturbation_key="guide"))
    return Vocabulary.fit(cells, dataclasses.replace(CONFIG, n_genes=n_genes), train_rows=TRAIN).block("rna").names


@pytest.mark.parametrize("by_id", [False, True])
def test_perturbed_genes_are_kept_however_few_genes_are(by_id):
    *required, unseen = sorted(genes_of(40) - genes_of(12))[:4]
    ids = mudata_of()["rna"].var["gene_ids"].str.split(".").str[0]
    a, b, c = ids[required] if by_id else required
    names = kept_genes([f"{a}+{b}", f"{c}+ctrl", "no such gene"], n_genes=6, held_out=unseen)
    assert set(names) == set(required) | genes_of(3)  # the other places go to the most variable
    assert list(names) == sorted(names)


def test_of_more_perturbed_genes_than_there_is_room_for_the_most_variable_are_kept():
    genes = sorted(genes_of(40))[::3]
    n = next(n for n in range(4, 41) if len(genes_of(n) & set(genes)) == 4)
    names = kept_genes(genes, n_genes=4)
    assert set(names) == genes_of(n) & set(genes) != genes_of(4)


def test_large_training_sets_are_thinned_evenly(monkeypatch):
    import cellxpert.data.vocabulary as module

    full = fit(rows=np.arange(80))
    cells = Cells.open(mudata_of(), SETUP)
    monkeypatch.setattr(module, "_FIT_VALUES", cells.matrix_rows("rna", np.arange(80)).nnz // 2)
    thinned = fit(rows=np.arange(80))
    assert thinned.names == full.names
    # RNA has twice the values allowed: bins come from every other cell; the smaller modalities are read in full
    assert thinned.block("rna").edges.tobytes() != full.block("rna").edges.tobytes()
    assert thinned.block("atac").edges.tobytes() == full.block("atac").edges.tobytes()


def test_chunks_do_not_matter(monkeypatch):
    import cellxpert.data.vocabulary as module

    truth = fit().hash()
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert fit().hash() == truth


@pytest.mark.parametrize("config", [CONFIG, TokenConfig(n_bins=50, binning="per_cell")])
def test_json_round_trip_is_exact(config):
    vocabulary = fit(config)
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict(), allow_nan=False)))
    assert again.hash() == vocabulary.hash()
    for a, b in zip(vocabulary.blocks, again.blocks, strict=True):
        assert (a.role, a.names, a.ids, a.transform) == (b.role, b.names, b.ids, b.transform)
        for field in ("edges", "bin_means", "counts"):
            assert getattr(a, field).tobytes() == getattr(b, field).tobytes()
    assert not np.isfinite(fit().block("atac").edges).all()  # unused bins are part of the test


DAMAGES = {
    "missing entry": lambda d: d.pop("n_bins"),
    "unknown entry": lambda d: d.update(extra=1),
    "unknown entry of a block": lambda d: d["blocks"][0].update(extra=1),
    "other number of bins": lambda d: d.update(n_bins=13),
    "n_bins as text": lambda d: d.update(n_bins="12"),
    "binning": lambda d: d.update(binning="other"),
    "role": lambda d: d["blocks"][0].update(role="dna"),
    "order of modalities": lambda d: d["blocks"].reverse(),
    "no modalities": lambda d: d["blocks"].clear(),
    "names unsorted": lambda d: d["blocks"][0]["names"].reverse(),
    "names repeated": lambda d: d["blocks"][0]["names"].__setitem__(1, d["blocks"][0]["names"][0]),
    "a name lost": lambda d: d["blocks"][0]["names"].pop(),
    "an id lost": lambda d: d["blocks"][0]["ids"].pop(),
    "means fall": lambda d: d["blocks"][0]["bin_means"].reverse(),
    "too many edges": lambda d: d["blocks"][0]["edges"].extend([9.0] * 12),
    "edges fall": lambda d: d["blocks"][0]["edges"].reverse(),
    "transform": lambda d: d["blocks"][0].update(transform="sqrt"),
    "genome": lambda d: d["blocks"][0].update(genome=38),
    "not a dictionary": lambda d: d["blocks"].__setitem__(0, 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_vocabularies_are_refused(damage):
    data = copy.deepcopy(fit().to_dict())
    DAMAGES[damage](data)
    with pytest.raises(VocabularyError):
        Vocabulary.from_dict(data)


def test_a_build_is_kept_where_it_is_known():
    plain = fit()
    assert "genome" not in plain.to_dict()["blocks"][1]
    setup = dataclasses.replace(
        SETUP,
        modalities=tuple(dataclasses.replace(m, genome="hg38" if m.role == "atac" else None) for m in SETUP.modalities),
    )
    built = Vocabulary.fit(Cells.open(mudata_of(), setup), CONFIG, train_rows=TRAIN)
    assert [block.genome for block in built.blocks] == [None, "hg38", None]
    again = Vocabulary.from_dict(json.loads(json.dumps(built.to_dict())))
    assert again.block("atac").genome == "hg38"
    assert again.hash() == built.hash() != plain.hash()


def test_kmers_are_read_as_logs():
    adata = modality("p", 20, 2, 1)
    adata.var_names = ["".join(word) for word in itertools.islice(itertools.product("ACGT", repeat=4), 20)]
    setup = Setup(modalities=(ModalitySetup(role="atac"),))
    vocabulary = Vocabulary.fit(Cells.open(adata, setup), CONFIG, train_rows=TRAIN)
    assert vocabulary.block("atac").transform == "log"
    assert fit().block("atac").transform == "counts"


def test_match_gives_ids_of_the_whole_vocabulary():
    vocabulary = fit()
    cells = Cells.open(mudata_of(order=5), SETUP)
    for role in MODALITIES:
        columns = vocabulary.match(cells, role)
        names = cells.feature_names(role)
        for name, feature in zip(names, columns, strict=True):
            assert (feature < 0) == (name not in vocabulary.block(role).names)
            assert feature < 0 or (
                vocabulary.names[feature] == name and vocabulary.role_of_feature[feature] == MODALITIES.index(role)
            )


def test_versioned_ids_match_other_versions():
    mdata = mudata_of()
    rna = mdata["rna"]
    rna.var_names = [f"ENSG{int(name[1:]):011d}.42" for name in rna.var_names]
    columns = fit().match(Cells.open(mdata, SETUP), "rna")
    assert sorted(columns[columns >= 0]) == list(range(25))
