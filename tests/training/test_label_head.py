"""The fitted label head and its calibration against scikit-learn and loops over cells that are held out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from cellxpert.config import NetworkConfig
from cellxpert.data.calibration import Calibration, quantiles_of
from cellxpert.data.cell_types import PRIOR_CELLS, Components, find_components
from cellxpert.data.collate import Collator
from cellxpert.data.loaders import inference_batches
from cellxpert.data.record import LabelTerm, ModalitySetup, Setup
from cellxpert.data.splits import folds_of
from cellxpert.data.tokens import Tokens, shown_features
from cellxpert.nn.network import Network
from cellxpert.training import label_head, regression
from cellxpert.training.label_head import (
    LEAST_CALIBRATED,
    N_FOLDS,
    PENALTIES,
    USUAL_PENALTY,
    Labelled,
    calibrate_label_head,
    fit_label_head,
)

N_BINS, N_FEATURES, N_IMAGE, WIDTH = 8, 30, 4, 64
MODALITY = np.array([0] * 20 + [1] * 10)


@dataclass
class Told:
    """Cells of three labels, and a network with a head that nothing has fitted."""

    network: Network
    collator: Collator
    code_N: np.ndarray
    batch_N: np.ndarray

    @property
    def tokens(self) -> Tokens:
        return self.collator.tokens

    def labelled(self, rows: np.ndarray | None = None, *, batches: bool = False, **said: object) -> Labelled:
        rows = np.arange(self.tokens.n_cells) if rows is None else rows
        cells = Labelled(rows=rows, code_N=self.code_N[rows], allowed_CC=np.eye(self.network.n_labels, dtype=bool))
        return replace(cells, **{"batch_N": self.batch_N[rows] if batches else None} | said)


def _told(n_cells: int = 180, *, strength: float = 0.35, n_labels: int = 3, image: bool = False) -> Told:
    """Labels raise the rates of some features by a strength; three batches; every fifth cell lacks the second modality."""
    rng = np.random.default_rng(0)
    codes, batches = np.arange(n_cells) % 3, rng.permutation(np.arange(n_cells) % 4)
    batches = np.where(batches == 3, 0, batches)
    rate = np.full((n_cells, N_FEATURES), 0.3) + strength * (np.arange(N_FEATURES) % 3 == codes[:, None])
    bins = rng.integers(1, N_BINS, rate.shape) * (rng.random(rate.shape) < rate)
    pattern = (np.arange(n_cells) % 5 == 0).astype(np.int32)
    measured = np.stack([np.ones(N_FEATURES, bool), MODALITY == 0])
    bins *= measured[pattern]
    cell, feature = np.nonzero(bins)
    images = (rng.normal(size=(n_cells, N_IMAGE)) + codes[:, None]).astype(np.float32)
    images[::7] = np.nan
    tokens = Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins > 0).sum(axis=1))],
        rows=np.arange(n_cells),
        pattern=pattern,
        measured_features=measured,
        image=images if image else None,
    )
    config = NetworkConfig(
        width=WIDTH, encoder_layers=1, decoder_layers=1, n_experts=2, expert_hidden=8, decoder_hidden=8, n_factors=0
    )
    network = Network(
        config,
        feature_modality=MODALITY.tolist(),
        n_bins=N_BINS,
        n_labels=n_labels,
        n_image=N_IMAGE if image else 0,
        generator=torch.Generator().manual_seed(0),
    ).eval()
    scale = np.outer([1.0, 0.6], np.r_[0, np.linspace(1, 2, N_BINS - 1)])
    if network.labels is not None:
        network.labels.start_from(torch.from_numpy(scale))
    collator = Collator(tokens, n_features=N_FEATURES, n_bins=N_BINS)
    return Told(network, collator, codes, np.array(["a", "b", "c"], object)[batches])


def _encoded(told: Told) -> tuple[np.ndarray, np.ndarray]:
    """Cell vectors and logits of all cells."""
    vectors, logits = np.zeros((told.tokens.n_cells, WIDTH)), np.zeros((told.tokens.n_cells, told.network.n_labels))
    with torch.no_grad():
        for rows, batch in inference_batches(told.collator, np.arange(told.tokens.n_cells)):
            encoded = told.network.encode(batch)
            vectors[rows], logits[rows] = encoded.cell_BD.numpy(), encoded.label_BC.numpy()
    return vectors, logits


def _inputs(told: Told) -> np.ndarray:
    """What the head reads, cell by cell and token by token."""
    tokens, scale = told.tokens, told.network.labels.scale_MK.double().numpy()
    magnitudes = np.zeros((tokens.n_cells, N_FEATURES))
    for i in range(tokens.n_cells):
        for k in range(tokens.start[i], tokens.start[i + 1]):
            magnitudes[i, tokens.feature[k]] = scale[MODALITY[tokens.feature[k]], tokens.bin[k]]
    parts = [magnitudes, _encoded(told)[0]]
    if tokens.image is not None:
        parts.append(np.where(np.isnan(tokens.image), 0.0, tokens.image))
    return np.concatenate(parts, axis=1)


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let solvers go on until nothing is left to gain."""
    monkeypatch.setattr(regression, "TOLERANCE", 1e-8)
    monkeypatch.setattr(regression, "MAX_ITERATIONS", 3000)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Scores of single cells whose quantiles are kept: confidence, surprise, distance."""
    seen: list[np.ndarray] = []

    def spy(value_N: np.ndarray) -> np.ndarray:
        seen.append(value_N.copy())
        return quantiles_of(value_N)

    monkeypatch.setattr(label_head, "quantiles_of", spy)
    return seen


def _logistic(inverse_penalty: float) -> LogisticRegression:
    return LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=5000)


# --- the head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [False, True])
def test_logits_are_inputs_times_coefficients(monkeypatch: pytest.MonkeyPatch, image: bool) -> None:
    told = _told(image=image)
    coefficients: list[np.ndarray] = []

    def spy(*given: object, **said: object) -> np.ndarray:
        coefficients.append(regression.fit_regression(*given, **said))
        return coefficients[-1]

    monkeypatch.setattr(label_head, "fit_regression", spy)
    fit_label_head(told.network, told.collator, told.labelled())
    inputs, last = _inputs(told), coefficients[-1]
    assert last.shape == (N_FEATURES + WIDTH + N_IMAGE * image + 1, 3)
    expected = np.zeros((len(inputs), 3))
    for i, cell in enumerate(inputs):
        for c in range(3):
            expected[i, c] = sum(x * w for x, w in zip(cell, last[:-1, c], strict=True)) + last[-1, c]
    assert np.allclose(_encoded(told)[1], expected, atol=1e-4)


@pytest.mark.parametrize("label_loss", ["plain", "weighted"])
@pytest.mark.parametrize("image", [False, True])
def test_probabilities_are_those_of_logistic_regression(
    monkeypatch: pytest.MonkeyPatch, precise: None, label_loss: str, image: bool
) -> None:
    """All cells that are given are fitted to, also those that a calibration leaves out, and no others.

    The penalty is that of the folds per cell: of the loss of a cell, not of the sum over cells, which are half as many again.
    """
    monkeypatch.setattr(label_head, "PENALTIES", (0.1,))
    told = _told(image=image)
    rows = np.flatnonzero((told.code_N < 2) | (np.arange(180) % 4 == 0))
    fit_label_head(told.network, told.collator, told.labelled(rows, label_loss=label_loss))
    inputs, codes = _inputs(told), told.code_N
    weight = None
    if label_loss == "weighted":
        weight = (1 / np.bincount(codes[rows]))[codes[rows]]
        weight /= weight.mean()
    truth = _logistic(0.1 * 2 / 3).fit(inputs[rows], codes[rows], sample_weight=weight).predict_proba(inputs)
    assert np.abs(softmax(_encoded(told)[1], axis=1) - truth).max() < 1e-3


def test_only_the_head_changes_and_a_second_fit_is_the_first() -> None:
    told = _told()
    before = {k: v.clone() for k, v in told.network.state_dict().items()}
    first = fit_label_head(told.network, told.collator, told.labelled())
    after = {k: v.clone() for k, v in told.network.state_dict().items()}
    changed = {k for k, v in after.items() if not v.equal(before[k])}
    assert changed == {"labels.cell.weight", "labels.cell.bias", "labels.magnitude.weight"}
    assert not after["labels.magnitude.weight"][N_FEATURES].any()  # of no feature: [CLS] and padding
    second = fit_label_head(told.network, told.collator, told.labelled())
    assert all(v.equal(after[k]) for k, v in told.network.state_dict().items())
    assert all(np.array_equal(a, second.to_arrays()[k]) for k, a in first.to_arrays().items())


@pytest.mark.parametrize("n_labels", [0, 1, 3])
def test_nothing_is_done_with_fewer_than_two_labels(n_labels: int) -> None:
    told = _told(n_labels=n_labels)
    told.code_N[:] = 0
    before = {k: v.clone() for k, v in told.network.state_dict().items()}
    cells = told.labelled()
    assert fit_label_head(told.network, told.collator, cells) is None
    assert calibrate_label_head(told.network, told.collator, cells, validation=cells) is None
    assert all(v.equal(before[k]) for k, v in told.network.state_dict().items())


def test_coarse_labels_are_marginal_targets(precise: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells called by the coarse label 0, of which 1 and 2 are kinds, get the kind that they look like, and no surprise."""
    monkeypatch.setattr(label_head, "PENALTIES", (0.1,))
    told = _told(strength=0.6)
    kind = np.where(told.code_N == 0, 1, told.code_N)  # kinds 1 and 2 only
    told.code_N = np.where(np.arange(180) % 4 == 0, 0, kind)
    allowed = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 1]], bool)
    found = fit_label_head(told.network, told.collator, told.labelled(allowed_CC=allowed))
    logits = _encoded(told)[1]
    assert (logits.argmax(axis=1) == kind)[told.code_N == 0].mean() > 0.9
    assert found.surprise_Q[40] < 1e-6  # a quarter of the cells can be wrong in nothing
    exact = fit_label_head(told.network, told.collator, told.labelled())
    assert exact.surprise_Q[40] > 1e-3


def test_words_for_one_type_have_its_code() -> None:
    from cellxpert.ontology import CellOntology, label_targets

    known = {"X:T": ("T cell", [], []), "X:CD4": ("CD4 T cell", ["X:T"], [])}
    terms, exact = ["X:T", "X:CD4", "X:T", "", "X:CD4", "X:T", ""], [True, True, True, True, True, False, True]
    allowed = label_targets(terms, CellOntology.from_terms(known, version="v"), exact=exact)
    cells = Labelled(rows=np.arange(7), code_N=np.arange(7), allowed_CC=allowed)
    assert cells.type_C.tolist() == [0, 1, 0, 3, 1, 5, 6]
    said = tuple(
        LabelTerm(label=str(i), term=t, exact=e) for i, (t, e) in enumerate(zip(terms, exact, strict=True)) if t
    )
    setup = Setup(modalities=(ModalitySetup(role="rna", name="rna"),), label_terms=said)
    assert setup.types_of([str(i) for i in range(7)]).tolist() == cells.type_C.tolist()


# --- the calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [False, True])
def test_scores_are_those_of_heads_fitted_to_the_other_folds(
    monkeypatch: pytest.MonkeyPatch, precise: None, scores: list[np.ndarray], batches: bool
) -> None:
    """Against scikit-learn, fold by fold; the temperature is the best of a grid on the same cells."""
    monkeypatch.setattr(label_head, "PENALTIES", (0.3,))
    told = _told()
    cells = told.labelled(batches=batches, seed=4)
    found = fit_label_head(told.network, told.collator, cells)
    assert found.source == ("left-out batches" if batches else "out-of-fold")
    assert found.n_cells == 180
    folds = folds_of(told.code_N, n_folds=N_FOLDS, seed=4, groups=cells.batch_N)
    inputs, logits = _inputs(told), np.zeros((180, 3))
    for fold in range(N_FOLDS):
        others, here = folds != fold, folds == fold
        logits[here] = _logistic(0.3).fit(inputs[others], told.code_N[others]).decision_function(inputs[here])

    def right(temperature: float) -> np.ndarray:
        return softmax(logits / temperature, axis=1)[np.arange(180), told.code_N]

    grid = np.exp(np.linspace(-3, 3, 601))
    best = grid[np.argmin([-np.log(right(t)).mean() for t in grid])]
    assert found.temperature == pytest.approx(best, rel=0.02)
    confidence, surprise, _ = scores
    assert np.allclose(confidence, softmax(logits / found.temperature, axis=1).max(axis=1), atol=2e-3)
    assert np.allclose(surprise, 1 - right(found.temperature), atol=2e-3)
    assert np.allclose(found.confidence_Q, quantiles_of(confidence), rtol=1e-6)
    assert np.allclose(found.surprise_Q, quantiles_of(surprise), rtol=1e-5, atol=1e-7)


def test_the_own_label_of_a_cell_does_not_influence_its_scores(
    monkeypatch: pytest.MonkeyPatch, scores: list[np.ndarray]
) -> None:
    """Other labels in one batch: confidence and distance of its cells stay to the last bit, and those of the others move.

    Whole batches are the folds, so that these do not depend on labels; penalty and temperature, of which all cells tell, are fixed.
    """
    monkeypatch.setattr(label_head, "PENALTIES", (0.1,))
    monkeypatch.setattr(label_head, "fit_temperature", lambda *_: (1.0, 0.0))
    told = _told()
    fit_label_head(told.network, told.collator, told.labelled(batches=True))
    mine = told.batch_N == "b"
    told.code_N[mine] = np.random.default_rng(1).permutation(told.code_N[mine])
    fit_label_head(told.network, told.collator, told.labelled(batches=True))
    assert [len(score) for score in scores] == [180] * 6
    confidence, _, distance, other_confidence, _, other_distance = scores
    assert np.array_equal(confidence[mine], other_confidence[mine])
    assert np.array_equal(distance[mine], other_distance[mine])
    assert np.abs(confidence[~mine] - other_confidence[~mine]).max() > 1e-3
    assert np.abs(distance[~mine] - other_distance[~mine]).max() > 1e-3


def test_labels_that_mean_nothing_are_found_out() -> None:
    """A head can learn random labels by heart; what is recorded says that it knows nothing of other cells."""
    told = _told(n_cells=120, strength=0.0)
    told.code_N = np.random.default_rng(0).integers(0, 3, 120)
    found = fit_label_head(told.network, told.collator, told.labelled())
    assert found.confidence_Q.max() < 0.6
    assert np.median(found.surprise_Q) == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("strength", [0.1, 0.35, 0.6])
def test_the_penalty_is_the_one_with_the_smallest_loss_out_of_fold(
    monkeypatch: pytest.MonkeyPatch, precise: None, strength: float
) -> None:
    """The loss is taken at each penalty's best temperature; from the strongest on, the first minimum counts."""
    told = _told(strength=strength)
    used: list[tuple[int, float]] = []

    def spy(inputs: object, *given: object, **said: object) -> np.ndarray:
        used.append((inputs.shape[0], said["inverse_penalty"]))
        return regression.fit_regression(inputs, *given, **said)

    monkeypatch.setattr(label_head, "fit_regression", spy)
    fit_label_head(told.network, told.collator, told.labelled())
    assert used[-1][0] == 180  # the last fit is to all cells
    folds = folds_of(told.code_N, n_folds=N_FOLDS, seed=0)
    inputs, losses = _inputs(told), []
    for penalty in PENALTIES:
        logits = np.zeros((180, 3))
        for fold in range(N_FOLDS):
            others, here = folds != fold, folds == fold
            fitted = LogisticRegression(C=penalty, tol=1e-6, max_iter=5000).fit(inputs[others], told.code_N[others])
            logits[here] = fitted.decision_function(inputs[here])
        log_p = [
            np.log(softmax(logits / t, axis=1))[np.arange(180), told.code_N] for t in np.exp(np.arange(-3, 3, 0.02))
        ]
        losses.append(-max(p.mean() for p in log_p))
    first = next((k for k in range(len(losses) - 1) if losses[k + 1] >= losses[k]), len(losses) - 1)
    chosen = [penalty for penalty in PENALTIES if used[-1][1] == pytest.approx(penalty * 2 / 3)]
    assert losses[PENALTIES.index(chosen[0])] <= losses[first] + 1e-3


def test_batches_that_are_too_few_are_no_folds() -> None:
    """With two batches cells are dealt out one by one, and the calibration does not claim otherwise."""
    told = _told()
    two = np.where(told.batch_N == "c", "b", told.batch_N)
    found = fit_label_head(told.network, told.collator, told.labelled(batch_N=two))
    plain = fit_label_head(told.network, told.collator, told.labelled())
    assert found.source == plain.source == "out-of-fold"
    assert np.array_equal(found.confidence_Q, plain.confidence_Q)


def test_distances_are_of_cells_that_neither_components_nor_means_have_seen(scores: list[np.ndarray]) -> None:
    """Cells like the others lie as far as a chi-square says; in-sample distances would be smaller."""
    told = _told(n_cells=900)
    found = fit_label_head(told.network, told.collator, told.labelled())
    n = found.types.components.direct_VP.shape[1]
    assert n >= 2
    distance = scores[2]
    scale, modality = told.network.labels.scale_MK.double().numpy(), MODALITY
    inside = found.types.distances(told.tokens, scale_MK=scale, modality_V=modality)
    assert np.mean(distance) > np.mean(inside)
    assert np.median(distance) == pytest.approx(chi2(n).median(), rel=0.2)
    assert found.types.n_C.tolist() == [300, 300, 300]


def test_components_that_are_given_are_kept(scores: list[np.ndarray]) -> None:
    told = _told()
    scale = told.network.labels.scale_MK.double().numpy()
    own = find_components(told.tokens, np.arange(50), scale_MK=scale, modality_V=MODALITY, seed=3).first(6)
    found = fit_label_head(told.network, told.collator, told.labelled(batches=True), components=own)
    assert np.allclose(found.types.components.direct_VP, own.direct_VP, atol=1e-6)
    point = own.project(told.tokens, np.arange(180), scale_MK=scale, modality_V=MODALITY)
    folds = folds_of(told.code_N, n_folds=N_FOLDS, seed=0, groups=told.batch_N)
    for fold in range(N_FOLDS):
        others, here = folds != fold, folds == fold
        mean = np.stack([point[others & (told.code_N == c)].mean(axis=0) for c in range(3)])
        residual = point[others] - mean[told.code_N[others]]
        precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residual).covariance_)
        away = point[here][:, None] - mean
        own = np.einsum("np,pq,nq->n", residual, precision, residual)
        code = told.code_N[others]
        spread = (np.bincount(code, own) / own.mean() + PRIOR_CELLS) / (np.bincount(code) + PRIOR_CELLS)
        expected = (np.einsum("ncp,pq,ncq->nc", away, precision, away) / np.sqrt(spread)).min(axis=1)
        assert np.allclose(scores[2][here], expected, rtol=1e-3)


def test_a_label_that_one_batch_alone_has_is_learned_and_tells_nothing(scores: list[np.ndarray]) -> None:
    """Heads fitted to the other batches cannot know it, so that its cells are left out of what is measured."""
    told = _told(n_labels=4)
    own = (told.batch_N == "b") & (told.code_N == 1)
    told.code_N[own] = 3
    cells = told.labelled(batches=True)
    found = fit_label_head(told.network, told.collator, cells)
    assert found.n_cells == 180 - own.sum()
    assert [len(score) for score in scores] == [180 - own.sum()] * 3
    assert found.types.n_C[3] == own.sum()
    probability = softmax(_encoded(told)[1], axis=1)[:, 3]
    assert probability[own].mean() > 3 * probability[~own].mean()
    # called by it or by something that others have: then they tell
    allowed = np.eye(4, dtype=bool)
    allowed[3, 1] = True
    assert fit_label_head(told.network, told.collator, replace(cells, allowed_CC=allowed)).n_cells == 180


@pytest.mark.parametrize("n_cells", [LEAST_CALIBRATED - 1, LEAST_CALIBRATED])
def test_too_few_cells_have_no_calibration_and_the_usual_penalty(precise: None, n_cells: int) -> None:
    told = _told()
    rows = np.arange(n_cells)
    found = fit_label_head(told.network, told.collator, told.labelled(rows))
    if n_cells >= LEAST_CALIBRATED:
        assert isinstance(found, Calibration)
        assert found.n_cells == n_cells
        return
    assert found is None
    inputs = _inputs(told)
    truth = _logistic(USUAL_PENALTY).fit(inputs[rows], told.code_N[rows]).predict_proba(inputs)
    assert np.abs(softmax(_encoded(told)[1], axis=1) - truth).max() < 1e-3


def test_batches_with_labels_of_their_own_are_not_left_out() -> None:
    """Where the others have one label only, no head can be fitted to them."""
    told = _told()
    told.code_N = np.where(told.batch_N == "a", told.code_N, 0)
    found = fit_label_head(told.network, told.collator, told.labelled(batches=True))
    assert found.source == "out-of-fold"
    assert (_encoded(told)[1].argmax(axis=1) == told.code_N).mean() > 0.6


def test_few_features_are_half_of_what_poor_cells_show() -> None:
    told = _told()
    found = fit_label_head(told.network, told.collator, told.labelled())
    counts = sorted(
        sum(told.tokens.bin[k] > 0 for k in range(a, b))
        for a, b in zip(told.tokens.start[:-1], told.tokens.start[1:], strict=True)
    )
    assert counts == sorted(shown_features(told.tokens, MODALITY))
    assert found.least_features == max(1, int(np.quantile(counts, 0.01) // 2))


def test_of_many_cells_a_sample_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is fitted to all of them, with the penalty per cell that the folds of the sample had."""
    monkeypatch.setattr(label_head, "MAX_CELLS", 90)
    monkeypatch.setattr(label_head, "PENALTIES", (0.1,))
    told, seen = _told(), []

    def spy(inputs: object, *given: object, **said: object) -> np.ndarray:
        seen.append((inputs.shape[0], said["inverse_penalty"]))
        return regression.fit_regression(inputs, *given, **said)

    monkeypatch.setattr(label_head, "fit_regression", spy)
    found = fit_label_head(told.network, told.collator, told.labelled())
    assert found.n_cells == 90
    assert seen[:-1] == [(60, 0.1)] * N_FOLDS
    assert seen[-1] == (180, pytest.approx(0.1 * 60 / 180))


def test_cells_that_do_not_differ_are_no_error() -> None:
    """A run does not end in one after all its epochs."""
    told = _told()
    first = slice(told.tokens.start[0], told.tokens.start[1])
    same = np.tile(told.tokens.feature[first], 180)
    tokens = replace(
        told.tokens,
        feature=same,
        bin=np.full(len(same), 3, np.uint8),
        start=np.arange(181) * (first.stop - first.start),
        pattern=np.zeros(180, np.int32),
    )
    found = fit_label_head(told.network, Collator(tokens, n_features=N_FEATURES, n_bins=N_BINS), told.labelled())
    assert np.allclose(found.distance_Q, 0)
    assert np.allclose(found.confidence_Q, 1 / 3, atol=0.02)


# --- heads that labels trained -----------------------------------------------------------------------------------------


def _trained() -> Told:
    """A network whose head says something, and not quite the truth."""
    told = _told(n_cells=240)
    fit_label_head(told.network, told.collator, told.labelled(np.arange(0, 240, 2)))
    return told


def test_validation_cells_tell_of_a_head_that_labels_trained(scores: list[np.ndarray]) -> None:
    told = _trained()
    train, validation = told.labelled(np.arange(0, 240, 2)), told.labelled(np.arange(1, 240, 2))
    before = {k: v.clone() for k, v in told.network.state_dict().items()}
    fitted = scores[2].copy()
    scores.clear()
    found = calibrate_label_head(told.network, told.collator, train, validation=validation)
    assert all(v.equal(before[k]) for k, v in told.network.state_dict().items())
    assert (found.source, found.n_cells) == ("validation", 120)
    logits, codes = _encoded(told)[1][1::2], told.code_N[1::2]
    grid = np.exp(np.linspace(-3, 3, 601))
    losses = [-np.log(softmax(logits / t, axis=1))[np.arange(120), codes].mean() for t in grid]
    assert found.temperature == pytest.approx(grid[np.argmin(losses)], rel=0.011)
    probability = softmax(logits / found.temperature, axis=1)
    assert np.allclose(scores[0], probability.max(axis=1), atol=1e-5)
    assert np.allclose(scores[1], 1 - probability[np.arange(120), codes], atol=1e-5)
    assert np.array_equal(scores[2], fitted)  # distances are of training cells, as where the head is fitted


def test_calibration_needs_enough_cells_of_either_kind() -> None:
    told = _trained()
    train, rows = np.arange(0, 240, 2), np.arange(1, 240, 2)
    for few_train, few_validation, calibrated in ((120, 50, True), (120, 49, False), (49, 50, False)):
        found = calibrate_label_head(
            told.network,
            told.collator,
            told.labelled(train[:few_train]),
            validation=told.labelled(rows[:few_validation]),
        )
        assert (found is not None) == calibrated


def test_some_of_the_cells() -> None:
    cells = _told().labelled(np.arange(10, 30), batches=True, label_loss="ldam", seed=5)
    some = cells.take(np.array([3, 7]))
    assert some.rows.tolist() == [13, 17]
    assert some.code_N.tolist() == [13 % 3, 17 % 3]
    assert some.batch_N.tolist() == [cells.batch_N[3], cells.batch_N[7]]
    assert (some.label_loss, some.seed) == ("ldam", 5)
    assert some.allowed_CC is cells.allowed_CC
    assert replace(cells, batch_N=None).take(np.array([1])).batch_N is None


def test_components_that_other_folds_do_not_find_again_are_left_out() -> None:
    """The calibration's are the first principal components of all cells, up to the first that half of whose variance was chance."""
    told = _told(n_cells=66)
    found = fit_label_head(told.network, told.collator, told.labelled()).types.components
    scale = told.network.labels.scale_MK.double().numpy()

    def components(rows: np.ndarray) -> Components:
        return find_components(told.tokens, rows, scale_MK=scale, modality_V=MODALITY, seed=0)

    ratios, folds = [], folds_of(told.code_N, n_folds=N_FOLDS, seed=0)
    for fold in range(N_FOLDS):
        others, here = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        part = components(others)
        new, old = (part.project(told.tokens, r, scale_MK=scale, modality_V=MODALITY) for r in (here, others))
        ratios.append(new.var(axis=0) / old.var(axis=0))
    n = found.direct_VP.shape[1]
    ratio = np.mean(ratios, axis=0)
    assert 2 <= n < len(ratio)
    assert ratio[n] < 0.5
    assert (ratio[2:n] >= 0.5).all()
    assert np.allclose(found.direct_VP, components(np.arange(66)).direct_VP[:, :n], atol=1e-6)
