"""Estimators against ArviZ, closed forms and loops; what is stuck or constant is told."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import matplotlib
import numpy as np
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from cellxpert.steering import BlockMH, Schedule, Streams, Target, run
from cellxpert.steering import diagnostics as d

from .conftest import STATES


@pytest.fixture(scope="module")
def az():
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # told once a day
        import arviz
    return arviz


def ar1(phi, *, shape=(4, 20_000), seed=0):
    """Stationary autoregression with standard normal margins."""
    noise = np.random.default_rng(seed).normal(size=shape) * np.sqrt(1 - phi**2)
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], noise, axis=1)


# --- test 14 of the sampler's tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_size_and_error_of_an_autoregression_have_their_closed_form(phi):
    draws = ar1(phi)
    share = (1 - phi) / (1 + phi)
    for kind in ("bulk", "mean"):
        assert d.ess(draws, kind=kind) / draws.size == pytest.approx(share, rel=0.15)
    assert d.mcse(draws) == pytest.approx(1 / np.sqrt(share * draws.size), rel=0.08)
    assert d.rhat(draws) < 1.01
    assert d.convergence(draws).trusted()


def test_size_of_antithetic_chains_exceeds_their_number():
    draws = ar1(-0.5)
    assert d.ess(draws, kind="mean") / draws.size == pytest.approx(3, rel=0.15)


BAD = {
    "shifted": lambda x: x + np.array([0.0, 0, 0, 0.8])[:, None],
    "trending": lambda x: x + np.linspace(0, 1.5, x.shape[1]),
    "rescaled": lambda x: x * np.array([1.0, 1, 1, 3])[:, None],
}


@pytest.mark.parametrize("bad", BAD)
def test_chains_that_disagree_are_seen(bad):
    good = ar1(0.5, shape=(4, 2000))
    assert d.rhat(good) < 1.01
    assert d.rhat(BAD[bad](good)) > 1.05
    assert not d.convergence(BAD[bad](good)).trusted()


def test_a_rescaled_chain_is_seen_by_the_folded_draws_alone():
    scores = d._normal_scores(d._split(BAD["rescaled"](ar1(0.0))[None]))
    assert d._rhat(scores)[0] < 1.01


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    chains=st.integers(2, 5),
    draws=st.integers(4, 60),
    kind=st.sampled_from(["autoregression", "walk", "bins", "coin", "heavy", "mirrored"]),
)
def test_estimators_are_those_of_arviz(az, seed, chains, draws, kind):
    rng, shape = np.random.default_rng(seed), (chains, draws, 3)
    x = {
        "autoregression": lambda: ar1(0.7, shape=shape, seed=seed),
        "walk": lambda: rng.normal(size=shape).cumsum(axis=1),
        "bins": lambda: rng.integers(0, 50, shape),
        "coin": lambda: rng.random(shape) < 0.3,
        "heavy": lambda: rng.standard_cauchy(shape),
        "mirrored": lambda: rng.normal(size=shape) * (-1.0) ** np.arange(draws)[:, None],
    }[kind]()
    found = d.convergence(x)
    for q in np.flatnonzero(found.varies):
        one = x[..., q].astype(float)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # its folded R-hat may be 0 / 0
            truth = {
                "rhat": az.rhat(one),
                "ess_bulk": az.ess(one),
                "ess_tail": az.ess(one, method="tail"),
                "mcse": az.mcse(one),
            }
        for name, value in truth.items():
            assert getattr(found, name)[q] == pytest.approx(np.ravel(value)[0], rel=1e-9), name
        assert d.ess(x, kind="mean")[q] == pytest.approx(float(az.ess(one, method="mean")), rel=1e-9)
        assert found.mean[q] == pytest.approx(one.mean())


def test_one_chain_has_sizes_as_arviz_says_but_no_rhat(az):
    x = ar1(0.6, shape=(1, 300))
    assert np.isnan(d.rhat(x))
    assert d.ess(x) == pytest.approx(float(az.ess(x)), rel=1e-9)


# --- what has no answer ----------------------------------------------------------------------------------------------


def test_what_never_changes_has_no_rhat_no_size_and_no_error():
    x = np.random.default_rng(0).normal(size=(4, 50, 3))
    x[..., 1] = 7
    found = d.convergence(x)
    assert found.varies.tolist() == [True, False, True]
    for name in ("rhat", "ess_bulk", "ess_tail", "mcse"):
        assert np.isnan(getattr(found, name)).tolist() == [False, True, False]
    assert found.mean[1] == 7
    assert found.trusted(ess=1).tolist()[1] is False
    assert found.worst == (found.rhat[[0, 2]].max(), found.ess_bulk[[0, 2]].min(), found.ess_tail[[0, 2]].min())
    assert np.isnan(d.convergence(x[..., [1]]).worst).all()


def test_chains_stuck_at_different_values_are_infinitely_far_apart():
    x = np.repeat(np.array([[0.0], [1.0], [1.0], [5.0]]), 40, axis=1)
    assert d.rhat(x) == np.inf
    assert not d.convergence(x).trusted(ess=0)


def test_an_even_coin_is_judged_although_its_folded_draws_are_constant():
    x = np.tile([0.0, 1.0], (4, 50))
    assert np.isfinite(d.rhat(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_draw_that_is_not_finite_is_told_and_spoils_its_quantity_alone(bad):
    x = np.random.default_rng(0).normal(size=(4, 50, 2))
    alone = d.rhat(x[..., 0])
    x[2, 10, 1] = bad
    for function in (d.rhat, d.ess, d.mcse):
        assert np.isnan(function(x)).tolist() == [False, True]
    assert d.rhat(x)[0] == alone


def test_too_few_draws_and_wrong_shapes():
    assert np.isnan(d.rhat(np.random.default_rng(0).normal(size=(4, 3)))).all()
    with pytest.raises(AssertionError, match="chains, draws"):
        d.ess(np.zeros(5))


def test_many_quantities_are_taken_some_at_a_time_and_keep_their_shape(monkeypatch):
    x = np.random.default_rng(0).integers(0, 5, (3, 20, 4, 6))
    whole = d.convergence(x)
    assert whole.rhat.shape == whole.mean.shape == (4, 6)
    monkeypatch.setattr(d, "AT_ONCE", 5)
    parts = d.convergence(x)
    assert np.array_equal(parts.rhat, whole.rhat)
    assert np.array_equal(parts.ess_tail, whole.ess_tail)
    assert d.rhat(x[..., 1, 2]) == whole.rhat[1, 2]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(models):
    target = Target(model=models["inconsistent"], order_CM=torch.tensor([[2, 0, 3, 1]]).expand(6, -1), n_clamped=1)
    schedule = Schedule(n_steps=47, burn_in=10, thin=4, adapt=False)
    return run(BlockMH(size=1), target, STATES[[5] * 6], schedule=schedule, streams=Streams(0, 6))


FREE = [True, True, False, True]


def test_summary_of_a_run_is_loops(trace):
    found = d.diagnose(trace, free_M=FREE)
    accepted = trace.accepted_TC.tolist()

    def share(rows):
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)

    assert (found.n_chains, found.n_draws, found.size) == (6, 11, 1)
    assert found.acceptance_burn_in == pytest.approx(share(accepted[:10]))
    assert found.acceptance == pytest.approx((share(accepted[10:33]), share(accepted[33:])))
    moved = [m for row in trace.moved_CM.tolist() for m, free in zip(row, FREE, strict=True) if free]
    assert found.moved == pytest.approx(sum(moved) / len(moved))
    assert d.diagnose(trace).moved == pytest.approx(found.moved * 0.75)
    assert found.n_still == sum(len({int(x) for x in trace.x_RCM[..., m].flatten()}) == 1 for m in (0, 1, 3))
    assert found.sites.varies[2] == np.False_
    for m in (0, 1, 3):
        chains = np.array([[int(x[c, m]) for x in trace.x_RCM] for c in range(6)])
        assert found.sites.mean[m] == pytest.approx(chains.mean())
        assert found.sites.ess_bulk[m] == pytest.approx(d.ess(chains))
    log_density = np.array([[float(row[c]) for row in trace.log_density_TC[10:]] for c in range(6)])
    assert found.log_density.rhat == d.rhat(log_density)


def test_a_run_without_burn_in_has_no_acceptance_there(models):
    target = Target(model=models["consistent"], order_CM=torch.tensor([[2, 0, 3, 1]]))
    short = run(BlockMH(size=1), target, STATES[:1], schedule=Schedule(n_steps=1), streams=Streams(0, 1))
    found = d.diagnose(short)
    assert np.isnan(found.acceptance_burn_in)
    assert np.isnan(found.acceptance[0])
    assert np.isnan(found.sites.rhat).all()


def test_inference_data_holds_every_number_where_it_belongs(az, trace):
    extra = np.random.default_rng(0).normal(size=(6, 11, 2))
    data = d.to_inference_data(
        trace,
        thin=4,
        features=["A", "B", "C", "D"],
        quantities={"score": extra, "count": extra[..., 0]},
        dims={"score": ["gene set"]},
        coords={"gene set": ["up", "down"]},
    )
    assert isinstance(data, az.InferenceData)
    assert data.posterior.sizes == {"chain": 6, "draw": 11, "feature": 4, "gene set": 2}
    for c, r in ((0, 0), (3, 7), (5, 10)):
        step = 10 + 4 * r + 3
        here = {"chain": c, "draw": r}
        for m, name in enumerate("ABCD"):
            assert data.posterior.bins.sel(feature=name)[here] == trace.x_RCM[r, c, m]
        assert data.posterior.log_density[here] == trace.log_density_TC[step, c]
        assert data.posterior.score.sel({"gene set": "down"})[here] == extra[c, r, 1]
        assert data.posterior["count"][here] == extra[c, r, 0]
        assert data.sample_stats.log_alpha[here] == trace.log_alpha_TC[step, c]
        window = trace.accepted_TC[step - 3 : step + 1, c].double().mean()
        assert data.sample_stats.acceptance[here] == pytest.approx(window.item())
    assert az.rhat(data, var_names=["score"]).score.values.tolist() == pytest.approx(d.rhat(extra).tolist())
    assert az.summary(data, var_names=["score"], round_to="none").ess_bulk.tolist() == pytest.approx(d.ess(extra))


def test_inference_data_of_draws_alone(az):
    effect = np.random.default_rng(0).normal(size=(2, 5, 3))
    given = {"effect": effect, "log_density": effect[..., 0]}
    data = d.inference_data(given, dims={"effect": ["gene"]}, coords={"gene": ["A", "B", "C"]})
    assert data.groups() == ["posterior"]
    assert data.posterior.effect.sel(gene="C", chain=1, draw=4) == effect[1, 4, 2]
    assert data.posterior.log_density.dims == ("chain", "draw")
    assert d.inference_data({"effect": effect}).posterior.effect.dims == ("chain", "draw", "effect_dim_0")


def test_inference_data_refuses_what_does_not_fit(trace):
    with pytest.raises(AssertionError, match="not one every 3"):
        d.to_inference_data(trace, thin=3)
    with pytest.raises(AssertionError, match="score"):
        d.to_inference_data(trace, thin=4, quantities={"score": np.zeros((11, 6))})


def test_inference_data_of_arviz_without_that_class_is_a_tree(az, trace, monkeypatch):
    monkeypatch.delattr(az, "InferenceData")
    tree = d.to_inference_data(trace, thin=4)
    assert isinstance(tree, xarray.DataTree)
    assert tree["posterior"]["log_density"].shape == (6, 11)


def test_arviz_is_loaded_late_silently_and_changes_no_settings(tmp_path):
    """In a fresh process and with no record that ArviZ has made its announcement today; every warning is an error."""
    code = """
        import sys, warnings
        import torch
        from cellxpert.steering import *
        from cellxpert.steering.diagnostics import to_inference_data
        assert "arviz" not in sys.modules and "xarray" not in sys.modules
        import logging
        import matplotlib.pyplot as plt, numpy as np, pandas as pd

        class Even:
            n_sites, n_bins = 2, 2
            def log_prob(self, query, x, visible):
                return torch.full((*query.shape, 2), 0.5).double().log()

        def settings():
            table = pd.describe_option(_print_desc=False)
            return dict(plt.rcParams), table, list(warnings.filters), np.geterr(), list(logging.root.handlers)

        x = torch.zeros(2, 2, dtype=torch.int64)
        target = Target(model=Even(), order_CM=torch.tensor([[0, 1]]).expand(2, -1))
        trace = run(BlockMH(size=1), target, x, schedule=Schedule(n_steps=3), streams=Streams(0, 2))
        before = settings()
        to_inference_data(trace)
        assert settings() == before
        assert "arviz" in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={"XDG_CACHE_HOME": str(tmp_path), "MPLCONFIGDIR": matplotlib.get_cachedir(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
