"""Perturbed cells against the truth that they come with."""

from __future__ import annotations

import mudata
import numpy as np
import pytest

from cellxpert.datasets import synthetic

SMALL = {"n_genes": 80, "n_types": 2, "n_batches": 1, "spatial_dims": 0, "n_peaks": 0, "n_proteins": 0}
SCREEN = {"n_perturbations": 6, "n_pairs": 3}
QUIET = {"noise": 0, "dispersion": 0, "depth": 10, "n_types": 1}


def _observed(mdata, *, leave_out=None):
    """Observed change of every gene's log-rate under each perturbation, and its standard error (both P, G)."""
    truth = mdata.uns["truth"]
    rate = mdata["rna"].X.toarray() / truth["cells"]["depth"].to_numpy()[:, None]
    label = mdata.obs["perturbation"].astype(str).to_numpy()
    kept = np.ones(len(label), dtype=bool) if leave_out is None else ~leave_out

    def log_mean(rows):
        mean = rate[rows].mean(axis=0)
        return np.log(mean), rate[rows].std(axis=0) / mean / np.sqrt(rows.sum())

    control, control_error = log_mean((label == "control") & kept)
    changes, errors = [], []
    for name in truth["perturbation"]["names"]:
        treated, error = log_mean((label == name) & kept)
        changes.append(treated - control)
        errors.append(np.hypot(error, control_error))
    return np.array(changes), np.array(errors)


def _targets(mdata):
    """Which genes each label names (P, G)."""
    truth = mdata.uns["truth"]
    labels = truth["perturbation"]["genes"]
    return np.array([[gene in label.split("+") for gene in truth["genes"]] for label in labels])


def test_labels_and_shapes():
    mdata = synthetic(n_cells=600, **SMALL, **SCREEN, escape=0.2)
    truth = mdata.uns["truth"]["perturbation"]
    names = list(truth["names"])
    single, pairs = names[:6], names[6:]
    assert [name.count("+") for name in names] == [0] * 6 + [1] * 3
    assert all(set(name.split("+")) <= set(single) for name in pairs)
    assert list(truth["genes"]) == names
    assert set(mdata.obs["perturbation"].cat.categories) == {"control", *names}
    counts = mdata.obs["perturbation"].value_counts()
    assert counts["control"] == 240
    assert set(counts[names]) == {40}
    for key in ("effect", "additive_effect", "direct", "indirect", "ancestors"):
        assert truth[key].shape == (9, 80)
    assert truth["stress"].shape == (80,)
    assert _targets(mdata).sum(axis=1).tolist() == [1] * 6 + [2] * 3


def test_counts_of_quiet_cells_change_as_the_truth_says():
    effects = {"interaction": 0.8, "stress_effect": 0.5}
    mdata = synthetic(n_cells=6000, **(SMALL | QUIET), **SCREEN, **effects, control_fraction=0.3)
    truth = mdata.uns["truth"]["perturbation"]
    change, error = _observed(mdata)
    assert np.median(error) < 0.03
    assert (np.abs(change - truth["effect"]) < 5 * error).all()
    # Without interaction or stress in the truth, the same counts contradict it.
    assert (np.abs(change - truth["additive_effect"]) > 5 * error)[6:].any(axis=1).all()
    assert (np.abs(change - (truth["effect"] - truth["stress"])) > 5 * error).any(axis=1).all()
    # Held genes stay where they are held, stressed or not, in pairs as alone.
    np.testing.assert_allclose(truth["effect"][_targets(mdata)], -3, atol=1e-12)


def test_many_noisy_cells_agree_with_the_truth():
    mdata = synthetic(n_cells=9000, **SMALL, **SCREEN, interaction=0.8, control_fraction=0.3, dropout=0.2)
    truth = mdata.uns["truth"]["perturbation"]
    change, error = _observed(mdata)
    targets, effect = _targets(mdata), truth["effect"]
    reached = truth["direct"] | truth["indirect"]
    assert not (reached & targets).any()
    for p in range(len(effect)):
        rest = ~targets[p]
        assert np.corrcoef(change[p, rest], effect[p, rest])[0, 1] > 0.9
    large = np.abs(effect) > 0.4
    assert large[reached].sum() > 50
    np.testing.assert_array_equal(np.sign(change[large]), np.sign(effect[large]))
    # A knock-out moves neither the genes above it nor those that have nothing to do with it.
    assert not effect[truth["ancestors"]].any()
    still = ~reached & ~targets
    assert still[truth["ancestors"]].all()
    assert truth["ancestors"].sum() > 3
    score = change[still] / error[still]
    assert np.abs(score).max() < 5
    assert np.std(score) == pytest.approx(1, abs=0.25)
    assert np.abs(change[reached] / error[reached]).max() > 10


@pytest.mark.parametrize("stress", [0.0, 0.5])
@pytest.mark.parametrize("interaction", [0.0, 0.8])
def test_pairs_are_additive_unless_there_is_interaction(interaction, stress):
    mdata = synthetic(n_cells=60, **SMALL, n_perturbations=8, n_pairs=4, interaction=interaction, stress_effect=stress)
    truth = mdata.uns["truth"]["perturbation"]
    row = {name: i for i, name in enumerate(truth["names"])}
    own = truth["effect"] - truth["stress"]
    np.testing.assert_array_equal(truth["effect"][:8], truth["additive_effect"][:8])
    for name in truth["names"][8:]:
        one, other = (own[row[gene]] for gene in name.split("+"))
        additive = one + other + truth["stress"]
        np.testing.assert_allclose(truth["additive_effect"][row[name]], additive, atol=1e-12)
        extra = truth["effect"][row[name]] - additive
        reached = [(truth["direct"] | truth["indirect"])[row[gene]] for gene in name.split("+")]
        common = reached[0] & reached[1]
        assert common.any()
        np.testing.assert_allclose(np.abs(extra), interaction * common, atol=1e-12)


def test_stress_and_escape_leave_labels_and_network_as_they_are():
    plain = synthetic(n_cells=900, **SMALL, **SCREEN)
    other = synthetic(n_cells=900, **SMALL, **SCREEN, interaction=0.8, stress_effect=0.5, escape=0.3)
    assert plain.obs.equals(other.obs)
    assert plain.uns["truth"]["regulation"].equals(other.uns["truth"]["regulation"])
    for key in ("names", "direct", "indirect", "ancestors"):
        np.testing.assert_array_equal(plain.uns["truth"]["perturbation"][key], other.uns["truth"]["perturbation"][key])
    assert not plain.uns["truth"]["perturbation"]["stress"].any()
    assert "escaped" not in plain.uns["truth"]["cells"]


def test_escaped_cells_are_as_control():
    mdata = synthetic(n_cells=9000, **(SMALL | QUIET), **SCREEN, stress_effect=0.5, escape=0.4, control_fraction=0.3)
    escaped = mdata.uns["truth"]["cells"]["escaped"].to_numpy()
    label = mdata.obs["perturbation"].astype(str).to_numpy()
    assert escaped.sum() == round(0.4 * 6300)
    assert not escaped[label == "control"].any()
    shares = [escaped[label == name].mean() for name in mdata.uns["truth"]["perturbation"]["names"]]
    assert 0.3 < min(shares) <= max(shares) < 0.5
    change, error = _observed(mdata, leave_out=~escaped & (label != "control"))
    assert (np.abs(change) < 5 * error).all()
    change, error = _observed(mdata, leave_out=escaped)
    effect = mdata.uns["truth"]["perturbation"]["effect"]
    assert (np.abs(change - effect) < 5 * error).all()
    diluted, error = _observed(mdata)
    strong = np.abs(effect) > 1
    assert (np.abs(diluted) < np.abs(effect))[strong].all()


def test_peaks_follow_a_pair():
    mdata = synthetic(
        n_cells=4000, **(SMALL | QUIET | {"n_peaks": 60}), **SCREEN, interaction=0.8, control_fraction=0.3
    )
    truth = mdata.uns["truth"]
    gene = {name: i for i, name in enumerate(truth["genes"])}
    counts = mdata["atac"].X.toarray()
    label = mdata.obs["perturbation"].astype(str).to_numpy()
    followed = [(peak, gene[name]) for peak, name in enumerate(truth["peaks"]["gene"]) if name]
    control = counts[label == "control"]
    for p, name in enumerate(truth["perturbation"]["names"]):
        treated = counts[label == name]
        for peak, g in followed:
            totals = np.array([treated[:, peak].sum(), control[:, peak].sum()])
            change = np.log(totals[0] / len(treated)) - np.log(totals[1] / len(control))
            # Poisson counts of cells whose depths vary by a fifth
            error = np.sqrt((1 / np.maximum(totals, 1)).sum() + 0.05 / len(treated) + 0.05 / len(control))
            assert totals[0] == 0 or abs(change - 0.8 * truth["perturbation"]["effect"][p, g]) < 5 * error


def test_the_truth_of_perturbations_is_written_and_read(tmp_path):
    mdata = synthetic(n_cells=80, **SMALL, **SCREEN, interaction=0.8, stress_effect=0.5, escape=0.3)
    with mudata.set_options(pull_on_update=False):
        mdata.write_h5mu(tmp_path / "s.h5mu")
        mdata.write_zarr(tmp_path / "s.zarr")
        readers = (mudata.read_h5mu(tmp_path / "s.h5mu"), mudata.read_zarr(tmp_path / "s.zarr"))
    truth = mdata.uns["truth"]
    for again in readers:
        read = again.uns["truth"]
        assert set(read["perturbation"]) == set(truth["perturbation"])
        for key, value in truth["perturbation"].items():
            np.testing.assert_array_equal(np.asarray(read["perturbation"][key], dtype=value.dtype), value)
            assert value.dtype == object or read["perturbation"][key].dtype == value.dtype
        np.testing.assert_array_equal(read["cells"]["escaped"], truth["cells"]["escaped"])
        assert read["cells"]["escaped"].dtype == bool
