"""What the perturbations of a call share; a fingerprint that differs wherever a result could."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellxpert.data.collate import Collator
from cellxpert.tasks.bins import bins_at


def test_results_are_about_genes_on_the_usual_scale(make_job, screened):
    job, vocabulary = make_job("gene_00"), screened._state.vocabulary
    assert job.genes == vocabulary.block("rna").names
    assert job.place_G.tolist() == list(range(44))
    for b in (0, 7, 49):
        assert job.level_VK[3, b].item() == pytest.approx(vocabulary.block("rna").bin_means[b], rel=1e-5)
        assert job.level_VK[46, b].item() == pytest.approx(vocabulary.block("protein").bin_means[b], rel=1e-5)


def test_results_are_scaled_to_target_sum(make_job, small):
    """log1p of ten times the counts per 10,000; proteins are no counts."""
    plain, larger = make_job("gene_00"), make_job("gene_00", settings=replace(small, target_sum=1e5))
    one, ten = (np.expm1(job.level_VK.numpy()[:44]) for job in (plain, larger))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-4)
    assert (larger.level_VK[44:] == plain.level_VK[44:]).all()
    row = np.array([2])
    expected = larger.level_VK.numpy()[np.arange(50), bins_at(larger.collator, row, np.arange(50))]
    np.testing.assert_allclose(larger.reported.levels(row).toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(larger.observed.levels(row).toarray(), plain.observed.levels(row).toarray())


def test_magnitudes_of_cells_of_which_nothing_is_known(make_job, subjects):
    job = make_job("gene_00", subjects=replace(subjects, condition=None, group=None), target="zero-shot")
    assert job.observed is None
    row = np.array([4])
    assert (job.reported.levels(row) != make_job("gene_00").reported.levels(row)).nnz == 0


def test_genes_that_are_features(make_job):
    job = make_job(["gene_06+gene_01", "gene_00"])
    assert job.features == {"gene_00": 0, "gene_01": 1, "gene_06": 6}
    assert job.own(job.requests[0]) == [1, 6]
    assert job.gene_features["gene_43"] == 43
    assert len(job.gene_features) == 44
    assert job.n_conditions == 2


def test_fingerprints(make_job, subjects, small):
    """Whatever can change a result changes it; what cannot does not."""
    embedding = pd.DataFrame(np.eye(3), index=["gene_00", "gene_01", "gene_05"])
    plain = make_job("gene_00").fingerprint("model")
    assert make_job(["gene_00"], folder=Path("elsewhere"), n_chains=np.int64(2)).fingerprint("model") == plain
    cells = subjects.collator.tokens
    other_bins = replace(cells, bin=np.where(np.arange(len(cells.bin)) == 5, 1, cells.bin).astype(np.uint8))
    changed = {
        "model": make_job("gene_00").fingerprint("other"),
        "request": make_job("gene_01").fingerprint("model"),
        "dose": make_job({"gene_00": ("fold", 0.5)}).fingerprint("model"),
        "nearly the same dose": make_job({"gene_00": ("fold", 0.5 + 1e-12)}).fingerprint("model"),
        "steps": make_job("gene_00", n_steps=21).fingerprint("model"),
        "chains": make_job("gene_00", n_chains=3).fingerprint("model"),
        "seed": make_job("gene_00", seed=1).fingerprint("model"),
        "target": make_job("gene_00", target="zero-shot").fingerprint("model"),
        "settings": make_job("gene_00", settings=replace(small, n_movable=7)).fingerprint("model"),
        "regulators": make_job("gene_00", regulators={"gene_00": ["gene_03"]}).fingerprint("model"),
        "embedding": make_job("gene_00", embedding=embedding).fingerprint("model"),
        "embedded otherwise": make_job("gene_00", embedding=embedding + 1e-9).fingerprint("model"),
    }
    for name, value in {
        "group": ["a"] * len(subjects.names),
        "names": [f"{n}-1" for n in subjects.names],
        "known": ~np.zeros(len(subjects.names), bool),
        "condition": ["gene_01" if c == "gene_00" else c for c in subjects.condition],
        "collator": Collator(other_bins, n_features=50, n_bins=50),
    }.items():
        others = replace(subjects, **({"group": None} | {name: value}))
        changed[name] = make_job("gene_00", subjects=others).fingerprint("model")
    texts = [str(f) for f in (plain, *changed.values())]
    assert len(set(texts)) == len(texts), [n for n, f in changed.items() if f == plain]
