"""Tokens depend on a cell's own values only: not on format, order of features, chunk, or other cells."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellxpert.config import TokenConfig
from cellxpert.data.cells import Cells
from cellxpert.data.record import ModalitySetup, Setup
from cellxpert.data.roles import MEASURED as MODALITIES
from cellxpert.data.roles import NICHE
from cellxpert.data.tokens import shown_features, tokenize
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import CellxPertWarning, FeatureOverlapError, NotCountsError, QueryError, VocabularyError

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning")  # mudata 0.3

SETUP = Setup(modalities=tuple(ModalitySetup(role=role, name=role) for role in MODALITIES))
SIZES = {"rna": 30, "atac": 20, "protein": 8}
N = 40
CONFIGS = {
    f"{binning}-{zeros}": TokenConfig(n_genes=22, n_peaks=15, n_proteins=8, n_bins=11, binning=binning, zeros=zeros)
    for binning in ("global", "per_cell")
    for zeros in ("drop", "keep")
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def modality(role, rows=None, form=sparse.csr_matrix, dtype="float32"):
    rng = np.random.default_rng(MODALITIES.index(role))
    n = SIZES[role]
    values = rng.poisson(rng.lognormal(0, 1, n), size=(N, n))
    values[5] = 0  # an empty cell
    rows = np.arange(N) if rows is None else np.asarray(rows)
    return ad.AnnData(
        form(values[rows].astype(dtype)),
        obs=pd.DataFrame(index=pd.Index([f"c{i:02d}" for i in rows], dtype=object)),
        var=pd.DataFrame(index=pd.Index([f"{role}{j:02d}" for j in range(n)], dtype=object)),
    )


def mudata_of(**modalities):
    with md.set_options(pull_on_update=False):
        return md.MuData(modalities)


def full(form=sparse.csr_matrix, dtype="float32"):
    return mudata_of(**{role: modality(role, form=form, dtype=dtype) for role in MODALITIES})


def cells_of(mdata, setup=SETUP):
    return Cells.open(mdata, setup)


def fitted(config):
    return Vocabulary.fit(cells_of(full()), config, train_rows=np.arange(0, N, 2))


def as_dict(tokens, cells):
    """Name of the cell -> its tokens."""
    return {
        cells.obs_names[row]: (
            tokens.feature[a:b].tolist(),
            tokens.bin[a:b].tolist(),
            tokens.measured_features[pattern].tolist(),
        )
        for row, a, b, pattern in zip(tokens.rows, tokens.start[:-1], tokens.start[1:], tokens.pattern, strict=True)
    }


def tokens_of(mdata, vocabulary, config, **kwargs):
    cells = cells_of(mdata, kwargs.pop("setup", SETUP))
    return as_dict(tokenize(cells, vocabulary, config, **kwargs), cells)


def plain(values, names, block, config):
    """Tokens of one cell in one modality, by loops."""
    found = {str(name): float(x) for name, x in zip(names, values, strict=True) if name in block.names}
    total, logs = sum(values), sum(np.log1p(x) for x in found.values()) / max(len(found), 1)
    transform = {
        "log": lambda x: np.log1p(1e4 * x / total),
        "counts": lambda x: x,
        "clr": lambda x: np.log1p(x / np.exp(logs)),
    }
    nonzero = sorted(x for x in found.values() if x)
    out = []
    for i, name in enumerate(block.names):
        if name not in found or (found[name] == 0 and config.zeros == "drop"):
            continue
        x = found[name]
        if x == 0:
            b = 0
        elif config.binning == "per_cell":
            rank = sum(y <= x for y in nonzero) - 1
            last = len(nonzero) - 1
            b = 1 + rank * (config.n_bins - 2) // last if last else config.n_bins - 1
        else:
            b = 1 + sum(edge <= transform[block.transform](x) for edge in block.edges)
        out.append((i, b))
    return out


@each_config
def test_tokens_equal_a_loop(config):
    vocabulary, mdata = fitted(config), full()
    cells = cells_of(mdata)
    tokens = tokenize(cells, vocabulary, config)
    assert tokens.feature.dtype == np.int32
    assert tokens.bin.dtype == np.uint8
    assert tokens.n_cells == N
    assert tokens.measured_features.shape == (1, vocabulary.n_features)
    assert tokens.measured_features.all()
    for i in range(N):
        truth = []
        for role in MODALITIES:
            values = cells.matrix_rows(role, np.array([i])).toarray()[0]
            truth += [
                (vocabulary.offset(role) + f, b)
                for f, b in plain(values, cells.feature_names(role), vocabulary.block(role), config)
            ]
        a, b = tokens.start[i : i + 2]
        assert list(zip(tokens.feature[a:b].tolist(), tokens.bin[a:b].tolist(), strict=True)) == truth
    assert tokens.lengths[5] == (vocabulary.n_features if config.zeros == "keep" else 0)


@each_config
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array, np.asarray])
def test_every_format_gives_the_same_tokens(config, form, dtype):
    vocabulary = fitted(config)
    assert tokens_of(full(form, dtype), vocabulary, config) == tokens_of(full(), vocabulary, config)


def test_backed_file_view_and_copy_give_the_same_tokens(tmp_path):
    config, setup = CONFIGS["global-drop"], Setup(modalities=(ModalitySetup(role="rna"),))
    adata = modality("rna")
    cells = Cells.open(adata, setup)
    vocabulary = Vocabulary.fit(cells, config, train_rows=np.arange(N))
    truth = as_dict(tokenize(cells, vocabulary, config), cells)
    adata.write_h5ad(tmp_path / "a.h5ad")
    order = np.random.default_rng(0).permutation(N)
    for other in (ad.read_h5ad(tmp_path / "a.h5ad", backed="r"), adata[order], adata[order].copy(), adata[:, ::-1]):
        cells = Cells.open(other, setup)
        assert as_dict(tokenize(cells, vocabulary, config), cells) == truth


@each_config
def test_order_of_features_and_modalities_changes_no_bit(config):
    vocabulary = fitted(config)
    truth = tokens_of(full(), vocabulary, config)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        mods = {role: modality(role) for role in rng.permutation(MODALITIES)}
        mods = {role: adata[:, rng.permutation(adata.n_vars)].copy() for role, adata in mods.items()}
        mods = {role: adata[rng.permutation(N)].copy() for role, adata in mods.items()}
        assert tokens_of(mudata_of(**mods), vocabulary, config) == truth
        again = Vocabulary.fit(cells_of(mudata_of(**{r: a[[f"c{i:02d}" for i in range(N)]].copy() for r, a in mods.items()})),
                               config, train_rows=np.arange(0, N, 2))  # fmt: skip
        assert again.hash() == vocabulary.hash()


@settings(deadline=None, max_examples=25)
@given(data=st.data(), chunk_size=st.integers(1, 50), name=st.sampled_from(sorted(CONFIGS)))
def test_rows_and_chunks_do_not_matter(data, chunk_size, name):
    config = CONFIGS[name]
    rows = data.draw(st.lists(st.integers(0, N - 1), max_size=30))
    vocabulary, cells = fitted(config), cells_of(full())
    truth = as_dict(tokenize(cells, vocabulary, config), cells)
    tokens = tokenize(cells, vocabulary, config, rows=rows, chunk_size=chunk_size)
    assert tokens.rows.tolist() == rows
    assert tokens.start[-1] == len(tokens.feature) == len(tokens.bin)
    found = as_dict(tokens, cells)
    assert found == {name: truth[name] for name in found}


@each_config
@pytest.mark.parametrize("seed", range(3))
def test_mosaic_equals_tokens_dropped(config, seed):
    """A cell that lacks a modality has the tokens of the complete cell without that modality's."""
    vocabulary = fitted(config)
    complete = tokens_of(full(), vocabulary, config)
    rng = np.random.default_rng(seed)
    kept = {role: np.flatnonzero(rng.random(N) < 0.6) for role in MODALITIES}
    mdata = mudata_of(**{role: modality(role, rows=rng.permutation(rows)) for role, rows in kept.items()})
    found = tokens_of(mdata, vocabulary, config, chunk_size=7)
    assert set(found) == {f"c{i:02d}" for i in np.unique(np.concatenate(list(kept.values())))}
    for name, (features, bins, measured) in found.items():
        roles = [k for k, role in enumerate(MODALITIES) if int(name[1:]) in kept[role]]
        allowed = np.isin(vocabulary.role_of_feature, roles)
        pairs = [(f, b) for f, b in zip(*complete[name][:2], strict=True) if allowed[f]]
        assert list(zip(features, bins, strict=True)) == pairs
        assert measured == allowed.tolist()


@pytest.mark.parametrize("zeros", ["drop", "keep"])
def test_missing_features_are_absent_tokens(zeros):
    """Of a panel without some peaks only their tokens vanish (magnitudes of peaks do not depend on other peaks)."""
    config = CONFIGS[f"global-{zeros}"]
    vocabulary = fitted(config)
    complete = tokens_of(full(), vocabulary, config)
    block = vocabulary.block("atac")
    gone = {block.names[j] for j in np.argsort(block.counts)[:3]}
    atac = modality("atac")
    extra = atac[:, :2].copy()
    extra.var_names = ["new1", "new2"]
    panel = ad.concat([extra, atac[:, ~atac.var_names.isin(gone)]], axis=1)
    found = tokens_of(mudata_of(rna=modality("rna"), atac=panel, protein=modality("protein")), vocabulary, config)
    ids = {vocabulary.names.index(name) for name in gone}
    for name, (features, bins, measured) in found.items():
        pairs = [(f, b) for f, b in zip(*complete[name][:2], strict=True) if f not in ids]
        assert list(zip(features, bins, strict=True)) == pairs
        assert {i for i, m in enumerate(measured) if not m} == ids


def test_object_with_fewer_modalities():
    config = CONFIGS["global-drop"]
    vocabulary = fitted(config)
    complete = tokens_of(full(), vocabulary, config)
    setup = Setup(modalities=(ModalitySetup(role="protein"),))
    cells = Cells.open(modality("protein"), setup)
    first = vocabulary.offset("protein")
    for name, (features, bins, _) in as_dict(tokenize(cells, vocabulary, config), cells).items():
        pairs = [(f, b) for f, b in zip(*complete[name][:2], strict=True) if f >= first]
        assert list(zip(features, bins, strict=True)) == pairs


def test_a_modality_that_the_vocabulary_lacks_is_named():
    config, cells = CONFIGS["global-drop"], cells_of(full())
    rna = Setup(modalities=(ModalitySetup(role="rna", name="rna"),))
    vocabulary = Vocabulary.fit(cells_of(full(), rna), config, train_rows=np.arange(N))
    with pytest.warns(CellxPertWarning, match="no features of atac, protein"):
        tokens = tokenize(cells, vocabulary, config)
    assert as_dict(tokens, cells) == tokens_of(full(), vocabulary, config, setup=rna)


def test_nothing_in_common_is_refused():
    config = CONFIGS["global-drop"]
    rna = Setup(modalities=(ModalitySetup(role="rna"),))
    protein = Setup(modalities=(ModalitySetup(role="protein"),))
    cells = Cells.open(modality("rna"), rna)
    vocabulary = Vocabulary.fit(cells, config, train_rows=np.arange(N))
    with pytest.raises(QueryError, match="protein"):
        tokenize(Cells.open(modality("protein"), protein), vocabulary, config)
    with pytest.raises(VocabularyError, match="per_cell"):
        tokenize(cells, vocabulary, CONFIGS["per_cell-drop"])
    intensity = Setup(modalities=(ModalitySetup(role="rna", counts="intensity"),))
    with pytest.raises(NotCountsError, match="'arcsinh' here, by 'log'"):
        tokenize(Cells.open(modality("rna"), intensity), vocabulary, config)
    few = modality("rna")[:, :7]
    with pytest.raises(FeatureOverlapError):
        tokenize(Cells.open(few, rna), vocabulary, config, min_overlap=0.9)
    with pytest.warns(CellxPertWarning, match="absent tokens"):
        tokenize(Cells.open(few, rna), vocabulary, config, min_overlap=0.01)


def test_unused_columns_do_not_matter_to_proteins_and_fractions_are_read():
    config = CONFIGS["global-drop"]
    setup = Setup(modalities=(ModalitySetup(role="protein", counts="fractional"),))
    adata = modality("protein")
    adata.X = adata.X * np.float32(0.37)
    vocabulary = Vocabulary.fit(Cells.open(adata, setup), config, train_rows=np.arange(N))
    more = ad.concat([adata, modality("rna")[:, :3]], axis=1)
    one, two = Cells.open(adata, setup), Cells.open(more, setup)
    assert as_dict(tokenize(one, vocabulary, config), one) == as_dict(tokenize(two, vocabulary, config), two)


def test_no_cells():
    config = CONFIGS["global-keep"]
    tokens = tokenize(cells_of(full()), fitted(config), config, rows=[])
    assert (tokens.n_cells, len(tokens.feature), tokens.start.tolist()) == (0, 0, [0])


@each_config
def test_features_that_a_cell_shows_are_counted(config):
    """Zeros that are tokens do not count, nor what is said of neighbours."""
    vocabulary = fitted(config)
    tokens = tokenize(cells_of(full()), vocabulary, config)
    modality_V = vocabulary.role_of_feature.astype(np.int64)
    niche = [*MODALITIES, NICHE].index(NICHE)
    for of_neighbours in (False, True):
        if of_neighbours:
            modality_V[::3] = niche
        expected = []
        for i in range(tokens.n_cells):
            here = range(tokens.start[i], tokens.start[i + 1])
            expected.append(sum(tokens.bin[k] > 0 and modality_V[tokens.feature[k]] != niche for k in here))
        assert shown_features(tokens, modality_V).tolist() == expected
        assert expected[5] == 0  # the empty cell


@pytest.mark.skipif("CELLXPERT_DATA" not in os.environ, reason="CELLXPERT_DATA names no folder of real data")
@pytest.mark.parametrize("binning", ["global", "per_cell"])
def test_real_counts_permuted_and_reformatted(binning):
    adata = ad.read_h5ad(Path(os.environ["CELLXPERT_DATA"]) / "pbmc_facs_zheng2017.h5ad")[:400].copy()
    setup, config = Setup(modalities=(ModalitySetup(role="rna"),)), TokenConfig(n_genes=500, binning=binning)
    cells = Cells.open(adata, setup)
    vocabulary = Vocabulary.fit(cells, config, train_rows=np.arange(300))
    truth = tokenize(cells, vocabulary, config)
    order = np.random.default_rng(0).permutation(adata.n_vars)
    other = adata[:, order].copy()
    other.X = sparse.csc_matrix(other.X.astype(np.float64))
    cells = Cells.open(other, setup)
    assert Vocabulary.fit(cells, config, train_rows=np.arange(300)).hash() == vocabulary.hash()
    found = tokenize(cells, vocabulary, config, chunk_size=33)
    for field in ("feature", "bin", "start"):
        assert getattr(found, field).tobytes() == getattr(truth, field).tobytes()
    # mean decoded magnitude of a cell is close to the true one
    if binning == "global":
        dense = cells.matrix_rows("rna", np.arange(400)).toarray()
        magnitude = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
        columns = vocabulary.match(cells, "rna")
        decoded = vocabulary.decode(truth.feature, truth.bin)
        cell = np.repeat(np.arange(400), truth.lengths)
        exact = np.zeros((400, vocabulary.n_features))
        exact[:, columns[columns >= 0]] = magnitude[:, columns >= 0]
        assert np.abs(decoded - exact[cell, truth.feature]).mean() < 0.05
