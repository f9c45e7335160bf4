"""Factors against scikit-learn's and a plain loop's, errors on cells that were held out, batches against simulated ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mudata import MuData
from sklearn.decomposition import FactorAnalysis

import cellxpert as cx
from cellxpert.data.cells import Cells
from cellxpert.data.integration import NO_BATCH, FactorReading, Integration
from cellxpert.data.setup import read_setup
from cellxpert.data.tokens import Tokens, tokenize
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import ConfigError
from cellxpert.tasks.integrate import impute
from cellxpert.training import integration
from cellxpert.training.integration import fit_factors, fit_integration, integrate_cells

GRID = np.linspace(0, 8, 250)
LEVEL = np.array([GRID] * 4)
MODALITY = np.array([0] * 9 + [2] * 6)
N_FEATURES, N_TRUE = len(MODALITY), 3
NO_SHARES = np.zeros(4)


@dataclasses.dataclass(frozen=True)
class Truth:
    """Features as a mean, loadings on three factors, and noise."""

    usual: np.ndarray
    loading: np.ndarray
    unique: np.ndarray

    @classmethod
    def draw(cls, seed: int = 0) -> Truth:
        rng = np.random.default_rng(seed)
        loading = rng.normal(size=(N_FEATURES, N_TRUE)) * [0.45, 0.35, 0.25]
        return cls(rng.uniform(3.5, 4.5, N_FEATURES), loading, rng.uniform(0.1, 0.2, N_FEATURES))

    @property
    def covariance(self) -> np.ndarray:
        return self.loading @ self.loading.T + np.diag(self.unique)

    def cells(self, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(n, N_FEATURES)) * np.sqrt(self.unique)
        return self.usual + rng.normal(size=(n, N_TRUE)) @ self.loading.T + noise


def _tokens(value: np.ndarray) -> Tokens:
    """Of magnitudes, NaN where nothing was measured; the bins are so narrow that they lose next to nothing."""
    bins = np.where(np.isfinite(value), np.abs(GRID - np.nan_to_num(value)[..., None]).argmin(-1), -1)
    measured, pattern = np.unique(bins >= 0, axis=0, return_inverse=True)
    cell, feature = np.nonzero(bins > 0)
    return Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins > 0).sum(axis=1))],
        rows=np.arange(len(bins)),
        pattern=pattern.reshape(-1).astype(np.int32),
        measured_features=measured,
    )


def _binned(value: np.ndarray) -> np.ndarray:
    """Magnitudes as the bins give them back."""
    return np.where(np.isfinite(value), GRID[np.abs(GRID - np.nan_to_num(value)[..., None]).argmin(-1)], np.nan)


def _mosaic(value: np.ndarray, seed: int = 5) -> np.ndarray:
    """A third of the cells without the first modality, another third without the second."""
    part, value = np.random.default_rng(seed).permutation(len(value)) % 3, value.copy()
    value[np.ix_(part == 0, MODALITY == 0)] = np.nan
    value[np.ix_(part == 1, MODALITY == 2)] = np.nan
    return value


def _fit(value: np.ndarray, rows: np.ndarray | None = None, *, seed: int = 0) -> FactorReading:
    rows = np.arange(len(value)) if rows is None else rows
    return fit_factors(_tokens(value), rows, level_MK=LEVEL, share_M=NO_SHARES, modality_V=MODALITY, seed=seed)


def _space(value: np.ndarray, batch: np.ndarray | None = None, **kwargs: object) -> Integration:
    given = {"level_MK": LEVEL, "share_M": NO_SHARES, "modality_V": MODALITY, "batch_N": batch, "seed": 0}
    return fit_integration(_tokens(value), np.arange(len(value)), **(given | kwargs))


def _implied(reading: FactorReading) -> np.ndarray:
    return reading.loading_VR @ reading.loading_VR.T + np.diag(reading.unique_V)


def _log_likelihood(usual: np.ndarray, covariance: np.ndarray, value: np.ndarray) -> float:
    """Mean over cells of the log density of what was measured, one cell after the other."""
    total = 0.0
    for x in value:
        seen = np.isfinite(x)
        root = np.linalg.cholesky(covariance[np.ix_(seen, seen)])
        standard = np.linalg.solve(root, (x - usual)[seen])
        total -= 0.5 * (standard @ standard + seen.sum() * np.log(2 * np.pi)) + np.log(np.diag(root)).sum()
    return total / len(value)


def _plain_em(value: np.ndarray, reading: FactorReading, *, n_rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Rubin and Thayer's algorithm cell by cell, mean and loadings at once: mean and implied covariance."""
    usual, loading, unique = reading.usual_V.copy(), reading.loading_VR.copy(), reading.unique_V.copy()
    n = loading.shape[1]
    for _ in range(n_rounds):
        told = np.zeros((N_FEATURES, n + 1))
        moment, square, count = np.zeros((N_FEATURES, n + 1, n + 1)), np.zeros(N_FEATURES), np.zeros(N_FEATURES)
        for x in value:
            seen = np.isfinite(x)
            gain = loading[seen].T @ np.linalg.inv(loading[seen] @ loading[seen].T + np.diag(unique[seen]))
            z = gain @ (x - usual)[seen]
            second = np.eye(n) - gain @ loading[seen] + np.outer(z, z)
            both = np.block([[second, z[:, None]], [z[None], np.ones((1, 1))]])
            for v in np.flatnonzero(seen):
                told[v] += x[v] * np.r_[z, 1]
                moment[v] += both
                square[v] += x[v] ** 2
                count[v] += 1
        both = np.stack([np.linalg.solve(moment[v], told[v]) for v in range(N_FEATURES)])
        unique = (square - (both * told).sum(axis=1)) / count
        loading, usual = both[:, :n], both[:, n]
    return usual, loading @ loading.T + np.diag(unique)


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing draws loadings to 0, as in the textbook's model."""
    monkeypatch.setattr(integration, "PRIOR_CELLS", 1e-6)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many factors as there are, iterations until nothing moves, and noise of any size."""
    monkeypatch.setattr(integration, "LEAST_UNIQUE", 0.0)
    monkeypatch.setattr(integration, "N_FACTORS", N_TRUE)
    monkeypatch.setattr(integration, "N_ITERATIONS", 300)


# --- factors ---


def test_few_paired_cells_tell_more_of_other_cells_when_loadings_are_drawn_to_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside 60 cells with all modalities, 240 lack the first or the last; what they expect of new cells' last is compared."""
    errors: dict[float, list[float]] = {1e-6: [], 20.0: []}
    for seed in range(5):
        truth = Truth.draw()
        value, held_out = truth.cells(300, seed=seed), truth.cells(300, seed=100 + seed)
        value[np.ix_(np.arange(60, 180), MODALITY == 0)] = np.nan
        value[np.ix_(np.arange(180, 300), MODALITY == 2)] = np.nan
        for prior, found in errors.items():
            monkeypatch.setattr(integration, "PRIOR_CELLS", prior)
            reading = _fit(value)
            z = reading.factors(_tokens(held_out), modality_V=MODALITY, roles=["rna", "atac"])
            found.append(((reading.expected(z, MODALITY == 2) - _binned(held_out)[:, MODALITY == 2]) ** 2).mean())
    assert np.mean(errors[20.0]) < np.mean(errors[1e-6])


@pytest.mark.usefixtures("three")
def test_complete_cells_give_the_factors_of_scikit_learn() -> None:
    value = Truth.draw().cells(500, seed=1)
    found, x = _fit(value), _binned(value)
    other = FactorAnalysis(N_TRUE, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(x)
    np.testing.assert_allclose(found.usual_V, x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(_implied(found), other.get_covariance(), atol=1e-3)
    own = _log_likelihood(found.usual_V, _implied(found), x)
    assert own == pytest.approx(other.score(x), abs=1e-4)


def test_thirty_iterations_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "N_FACTORS", N_TRUE)
    value = Truth.draw().cells(500, seed=1)
    found, x = _fit(value), _binned(value)
    best = FactorAnalysis(N_TRUE, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(x).score(x)
    assert best - 0.02 < _log_likelihood(found.usual_V, _implied(found), x) <= best + 1e-6


@pytest.mark.parametrize("n_factors", [N_TRUE, 20])
@pytest.mark.parametrize("gaps", [False, True])
def test_no_iteration_makes_the_cells_less_likely(monkeypatch: pytest.MonkeyPatch, gaps: bool, n_factors: int) -> None:
    monkeypatch.setattr(integration, "N_FACTORS", n_factors)
    value = Truth.draw().cells(240, seed=2)
    value = _mosaic(value) if gaps else value
    x, likelihood = _binned(value), []
    for n in range(9):
        monkeypatch.setattr(integration, "N_ITERATIONS", n)
        found = _fit(value)
        likelihood.append(_log_likelihood(found.usual_V, _implied(found), x))
    assert (np.diff(likelihood) > -1e-9).all()
    if gaps or n_factors == N_TRUE:  # else the start has a factor for every direction
        assert likelihood[-1] - likelihood[0] > 0.01


@pytest.mark.usefixtures("three")
def test_cells_with_gaps_give_the_factors_of_a_plain_loop() -> None:
    value = _mosaic(Truth.draw().cells(120, seed=3))
    found, x = _fit(value), _binned(value)
    own = _log_likelihood(found.usual_V, _implied(found), x)
    usual, covariance = _plain_em(x, found, n_rounds=12)
    # the loop starts where ours ended, and finds nothing to mend
    assert own == pytest.approx(_log_likelihood(usual, covariance, x), abs=1e-3)
    np.testing.assert_allclose(found.usual_V, usual, atol=0.01)
    np.testing.assert_allclose(_implied(found), covariance, atol=0.01)


@pytest.mark.parametrize("gaps", [False, True])
def test_simulated_loadings_are_found(gaps: bool) -> None:
    """With gaps too, and also between modalities, though twenty factors are looked for where there are three."""
    truth = Truth.draw()
    value = truth.cells(3000, seed=4)
    found = _fit(_mosaic(value) if gaps else value)
    between = np.ix_(MODALITY == 0, MODALITY == 2)
    np.testing.assert_allclose(found.usual_V, truth.usual, atol=0.06)
    # three deviations of a variance of 1.3 over the 2,000 cells that have the feature
    np.testing.assert_allclose(_implied(found), truth.covariance, atol=0.13 if gaps else 0.1)
    correlation = np.corrcoef(_implied(found)[between].ravel(), truth.covariance[between].ravel())[0, 1]
    assert correlation > 0.97


def test_an_axis_counts_as_far_as_it_is_known() -> None:
    """Against conditional variances of the joint normal law: of each axis, given what each cell shows."""
    value = _mosaic(Truth.draw().cells(400, seed=5))
    found = _fit(value)
    coordinate = found.factors(_tokens(value), modality_V=MODALITY) @ found.stretch_RR
    axis = found.stretch_RR / np.linalg.norm(found.stretch_RR, axis=0)
    np.testing.assert_allclose(axis.T @ axis, np.eye(len(axis)), atol=1e-9)
    information = axis.T @ (found.loading_VR.T / found.unique_V) @ found.loading_VR @ axis
    np.testing.assert_allclose(information, np.diag(np.diag(information)), atol=1e-6 * information.max())
    known = np.zeros(len(axis))
    for row in value:
        shown = np.isfinite(row)
        loading = found.loading_VR[shown] @ axis
        known += np.diag(loading.T @ np.linalg.solve(loading @ loading.T + np.diag(found.unique_V[shown]), loading))
    np.testing.assert_allclose(coordinate.std(axis=0), (known / len(value)) ** 4, rtol=1e-6)


@pytest.mark.usefixtures("three")
def test_strength_is_not_length_and_doubt_is() -> None:
    """Three factors that are known well are about as long as one another; read by fewer features, the same factors are shorter."""
    truth = Truth.draw()
    sharp = dataclasses.replace(truth, unique=truth.unique / 10)
    whole, half = (_fit(x.cells(500, seed=5)) for x in (sharp, truth))
    lengths = [
        (f.factors(_tokens(x.cells(500, seed=5)), modality_V=MODALITY) @ f.stretch_RR).std(axis=0)
        for f, x in ((whole, sharp), (half, truth))
    ]
    strength = np.linalg.eigvalsh((whole.loading_VR.T / whole.unique_V) @ whole.loading_VR)
    assert strength.max() / strength.min() > 5
    assert lengths[0].max() / lengths[0].min() < 1.5
    assert (lengths[1] < 0.9 * lengths[0]).all()


def test_niches_and_features_of_few_cells_tell_no_factors() -> None:
    value = Truth.draw().cells(200, seed=6)
    value[:, 4] = np.where(np.arange(200) < 9, 7.0, 0.0)  # one cell less than enough
    modality = np.where(np.arange(N_FEATURES) >= 13, 3, MODALITY)
    found = fit_factors(_tokens(value), np.arange(200), level_MK=LEVEL, share_M=NO_SHARES, modality_V=modality, seed=0)
    assert not found.loading_VR[[4, 13, 14]].any()
    assert found.loading_VR[[0, 9]].any(axis=1).all()
    other = value.copy()
    other[:, 13:] = 4.0
    np.testing.assert_allclose(
        found.factors(_tokens(value), modality_V=modality), found.factors(_tokens(other), modality_V=modality)
    )


def test_a_modality_that_no_training_cell_has_says_nothing() -> None:
    value = Truth.draw().cells(100, seed=7)
    value[:60, MODALITY == 2] = np.nan
    found = _fit(value, np.arange(60))
    assert not found.loading_VR[MODALITY == 2].any()
    with_both, without = (found.factors(_tokens(v), modality_V=MODALITY) for v in (value[60:], value[60:, :]))
    assert np.array_equal(with_both, without)
    alone = found.factors(_tokens(value[60:]), modality_V=MODALITY, roles=["rna"])
    np.testing.assert_allclose(with_both, alone, atol=1e-12)


def test_counts_start_where_their_shares_are() -> None:
    """Two cells of one kind whose depth differs tenfold stand in one place."""
    rng = np.random.default_rng(0)
    kind = np.arange(200) % 2
    bins = rng.random((200, N_FEATURES)) < np.where(kind[:, None] == np.arange(N_FEATURES) % 2, 0.8, 0.2)
    value = np.where(bins, 1.0, 0.0)
    share = np.array([1.0, 0, 1.0, 0])
    found = fit_factors(_tokens(value), np.arange(200), level_MK=LEVEL, share_M=share, modality_V=MODALITY, seed=0)
    one, deeper = (found.factors(_tokens(value * k), modality_V=MODALITY) for k in (0.4, 4.0))
    np.testing.assert_allclose(one, deeper, atol=0.02)
    assert abs(np.corrcoef((one @ found.stretch_RR)[:, 0], kind)[0, 1]) > 0.9


# --- errors of imputation ---


def test_limits_hold_what_they_promise_in_other_cells() -> None:
    truth = Truth.draw()
    space = _space(_mosaic(truth.cells(1500, seed=8)))
    assert space.told == ("rna", "protein")
    held_out = truth.cells(800, seed=9)
    for role, code in (("rna", 0), ("protein", 2)):
        x = _binned(held_out)[:, code == MODALITY]
        for coverage in (0.5, 0.9):
            middle, lower, upper = impute(space, _tokens(held_out), role=role, modality_V=MODALITY, coverage=coverage)
            inside = ((lower <= x) & (x <= upper)).mean(axis=0)
            assert inside.mean() == pytest.approx(coverage, abs=0.03)
            # of each feature: three deviations of 800 held-out cells, and of the 500 that limits were found in
            assert np.abs(inside - coverage).max() < 3 * np.sqrt(coverage * (1 - coverage) * (1 / 800 + 1 / 500)) + 0.01
        # no better than the best there is: what the simulated Gaussian itself says of one modality given the other
        seen, asked = code != MODALITY, code == MODALITY
        gain = truth.covariance[np.ix_(asked, seen)] @ np.linalg.inv(truth.covariance[np.ix_(seen, seen)])
        best = truth.usual[asked] + (held_out - truth.usual)[:, seen] @ gain.T
        assert ((middle - x) ** 2).mean() < 1.1 * ((best - x) ** 2).mean()


def test_limits_of_few_cells_are_not_too_narrow() -> None:
    """Forty cells have both. Between the 2nd and the 38th of so many errors are not 90 % of new ones, but 36 of 41."""
    truth, inside = Truth.draw(), []
    for seed in range(8):
        value = truth.cells(200, seed=100 + seed)
        value[np.ix_(np.arange(200) >= 40, MODALITY == 2)] = np.nan
        space, held_out = _space(value), truth.cells(300, seed=200 + seed)
        limits = impute(space, _tokens(held_out), role="protein", modality_V=MODALITY, coverage=0.9)[1:]
        x = _binned(held_out)[:, MODALITY == 2]
        inside.append(((limits[0] <= x) & (x <= limits[1])).mean())
    assert 0.9 < np.mean(inside) < 0.96


def test_modalities_that_never_meet_are_not_told() -> None:
    value = _mosaic(Truth.draw().cells(300, seed=0))
    both = np.isfinite(value).all(axis=1)
    kept = value[~both | (np.cumsum(both) < integration.MIN_TOLD)]
    space = _space(kept)
    assert (space.told, space.error_QV) == ((), None)
    enough = value[~both | (np.cumsum(both) <= integration.MIN_TOLD)]
    assert _space(enough).told == ("rna", "protein")


def test_one_modality_is_not_told() -> None:
    value = np.where(MODALITY == 0, Truth.draw().cells(80, seed=0), np.nan)
    space = _space(value, np.array(["1", "2"] * 40, object))
    assert (space.told, space.error_QV) == ((), None)
    assert np.isfinite(space.coordinates(_tokens(value), modality_V=MODALITY)).all()


# --- the space as a whole ---


def _batches(n: int) -> np.ndarray:
    return np.array(["10", "9"] * n, object)[:n]


def test_batches_are_known_by_name_and_arrays_are_those_of_a_file() -> None:
    value = Truth.draw().cells(200, seed=0)
    space = _space(value, _batches(200))
    assert space.shifts is not None
    assert space.shifts.names == ("10", "9")
    for name, array in space.to_arrays().items():
        assert np.array_equal(array, array.astype(np.float32)), name
    again = _space(value, _batches(200))
    assert all(np.array_equal(x, again.to_arrays()[name]) for name, x in space.to_arrays().items())


def test_the_batch_goes_with_its_cells() -> None:
    """Cells of the second batch have more of every feature: with their names exchanged, so are the offsets."""
    value = Truth.draw().cells(300, seed=0)
    value[1::2] += 0.3
    spaces = [_space(value, batch) for batch in (_batches(300), np.array(["9", "10"] * 150, object))]
    offsets = [space.shifts.offset_BCR for space in spaces]
    np.testing.assert_allclose(offsets[0], offsets[1][::-1], atol=1e-5)
    point = spaces[0].coordinates(_tokens(value), modality_V=MODALITY)
    code = spaces[0].shifts.codes(_batches(300))
    gaps = [x[::2].mean(axis=0) - x[1::2].mean(axis=0) for x in (point, spaces[0].shifts.correct(point, code))]
    assert np.linalg.norm(gaps[1]) < 0.25 * np.linalg.norm(gaps[0])


@pytest.mark.parametrize("batch", [None, np.full(120, "one", object)])
def test_one_batch_adds_nothing(batch: np.ndarray | None) -> None:
    assert _space(Truth.draw().cells(120, seed=0), batch).shifts is None


def test_a_batch_of_cells_without_a_place_adds_nothing() -> None:
    value = Truth.draw().cells(90, seed=0)
    value[60:] = np.nan
    space = _space(value, np.array(["a"] * 30 + ["b"] * 30 + ["lost"] * 30, object))
    assert space.shifts.names == ("a", "b", "lost")
    np.testing.assert_allclose(space.shifts.offset_BCR[2], 0, atol=1e-7)


@pytest.mark.parametrize("n_cells", [1, 2, 5, 40])
@pytest.mark.parametrize("same", [False, True])
def test_few_cells_and_cells_that_are_all_alike(n_cells: int, same: bool) -> None:
    value = Truth.draw().cells(n_cells, seed=0)
    value = np.repeat(value[:1], n_cells, axis=0) if same else value
    space = _space(value, _batches(n_cells))
    point = space.coordinates(_tokens(value), modality_V=MODALITY)
    assert np.isfinite(point).all()
    if same or n_cells < integration.MIN_SEEN:
        assert not point.any()
    if space.shifts is not None:
        assert np.isfinite(space.shifts.correct(point, space.shifts.codes(_batches(n_cells)))).all()


def test_many_cells_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the seed decides, and that say much the same."""
    value = Truth.draw().cells(1200, seed=0)
    whole = _space(value)
    monkeypatch.setattr(integration, "MAX_CELLS", 500)
    some, other = _space(value), _space(value, seed=1)
    assert not np.array_equal(some.reading.usual_V, whole.reading.usual_V)
    assert not np.array_equal(some.reading.usual_V, other.reading.usual_V)
    np.testing.assert_allclose(_implied(some.reading), _implied(whole.reading), atol=0.1)


def test_a_sample_keeps_what_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few cells have both modalities, and few are of the last batch: of each so many stay that something can be told by them."""
    monkeypatch.setattr(integration, "MAX_CELLS", 300)
    value = Truth.draw().cells(3000, seed=0)
    alone = np.arange(3000) % 2 == 0
    value[np.ix_(alone, MODALITY == 0)] = np.nan
    value[np.ix_(~alone, MODALITY == 2)] = np.nan
    value[:40] = Truth.draw().cells(40, seed=1)
    batch = np.where(np.arange(3000) >= 2995, "rare", np.where(alone, "a", "b")).astype(object)
    for seed in range(4):
        space = _space(value, batch, seed=seed)
        assert space.told == ("rna", "protein")
        assert space.shifts.names == ("a", "b", "rare")
    drawn = integration._sample(_tokens(value), np.arange(3000), modality_V=MODALITY, batch_N=batch, seed=0)
    assert len(drawn) == len(set(drawn)) == 300
    assert {*range(40), *range(2995, 3000)} <= set(drawn)
    assert (np.diff(drawn) > 0).all()


def test_errors_rarer_than_cells_can_show_are_not_known() -> None:
    value = Truth.draw().cells(400, seed=0)
    value[np.ix_(np.arange(400) >= 60, MODALITY == 2)] = np.nan
    space = _space(value)
    asked = {"role": "protein", "modality_V": MODALITY}
    assert space.n_told == (60, 60)
    # a new error is above the largest of 60 once in 61 times, and below the least as often
    for coverage in (0.5, 0.9, 0.96):
        assert np.isfinite(impute(space, _tokens(value), coverage=coverage, **asked)).all()
    with pytest.raises(ConfigError, match="at most 0.96"):
        impute(space, _tokens(value), coverage=0.98, **asked)


def test_what_was_fitted_before_stays_where_features_are_lacking() -> None:
    truth = Truth.draw()
    before = _space(_mosaic(truth.cells(300, seed=0)), _batches(300))
    value = truth.cells(200, seed=1)
    lacking = np.where(MODALITY == 0, value, np.nan)
    names = np.array(["new", "newer"] * 100, object)
    kept = _space(lacking, names, before=before)
    for name in ("usual_V", "loading_VR", "unique_V", "stretch_RR"):
        assert np.array_equal(getattr(kept.reading, name), getattr(before.reading, name))
    assert kept.told == before.told
    assert np.array_equal(kept.error_QV, before.error_QV)
    assert kept.shifts.names == ("new", "newer")
    assert kept.shifts.codes(_batches(2)).tolist() == [NO_BATCH] * 2
    assert _space(lacking, None, before=before).shifts is None
    anew, fresh = _space(value, names, before=before), _space(value, names)
    assert all(np.array_equal(x, fresh.to_arrays()[name]) for name, x in anew.to_arrays().items())


# --- cells of an object ---


def _of_object(mdata: MuData, **config: object) -> tuple[Integration, Tokens, Vocabulary]:
    cells, tokens_of = Cells.open(mdata, read_setup(mdata)), cx.config.preset("nano").replace(**config).tokens
    rows = np.arange(0, mdata.n_obs, 2)
    vocabulary = Vocabulary.fit(cells, tokens_of, train_rows=rows)
    tokens = tokenize(cells, vocabulary, tokens_of)
    return integrate_cells(cells, vocabulary, tokens, rows=rows, seed=0, before=None), tokens, vocabulary


@pytest.fixture(scope="module")
def mdata() -> MuData:
    """Two batches in space, some without peaks."""
    mdata = cx.datasets.synthetic(n_cells=160, n_genes=30, n_peaks=30, n_proteins=0, missing={"atac": 0.2}, seed=0)
    cx.CellxPert.setup_mudata(mdata, rna="rna", atac="atac", batch_key="batch", spatial_key="spatial")
    return mdata


def test_zeros_that_are_tokens_change_no_place(mdata: MuData) -> None:
    found = []
    for zeros in ("drop", "keep"):
        space, tokens, vocabulary = _of_object(mdata, zeros=zeros)
        found.append(space.coordinates(tokens, modality_V=vocabulary.role_of_feature.astype(np.int64)))
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_only_peaks_are_shares_and_niches_are_not_read(mdata: MuData) -> None:
    space, tokens, vocabulary = _of_object(mdata)
    assert vocabulary.roles == ("rna", "atac", "niche")
    assert space.reading.share_M.tolist() == [0, 1, 0, 0]
    assert space.told == ("rna", "atac")
    modality = vocabulary.role_of_feature
    assert not space.reading.loading_VR[modality == 3].any()
    assert not space.error_QV[:, modality == 3].any()
    assert space.error_QV[:, modality < 3].any(axis=0).all()
    assert space.shifts.names == ("batch_0", "batch_1")


def test_bins_within_cells_stand_for_their_mean_magnitudes(mdata: MuData) -> None:
    space, tokens, vocabulary = _of_object(mdata, binning="per_cell")
    point = space.coordinates(tokens, modality_V=vocabulary.role_of_feature.astype(np.int64))
    assert np.isfinite(point).all()
    level = space.reading.level_MK[:2]
    np.testing.assert_allclose(level, [vocabulary.block(role).bin_means for role in ("rna", "atac")], rtol=1e-6)
