"""A label head moved towards labelled cells of another kind, against a plain minimisation and a law that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from cellxpert.data.calibration import Calibration, quantiles_of
from cellxpert.data.cell_types import Components, TypeModel
from cellxpert.metrics import ece, ece_floor
from cellxpert.tasks import recalibrate as module
from cellxpert.tasks.annotate import LABELLED, Evidence, LabelOptions, annotate
from cellxpert.tasks.recalibrate import recalibrate


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    types = TypeModel(Components(np.zeros(2), np.eye(2)), np.zeros((3, 2)), np.eye(2), np.ones(3), np.ones(3))
    score = np.arange(1, 101) / 100
    return Calibration(
        source="out-of-fold",
        n_cells=100,
        temperature=2.0,
        confidence_Q=quantiles_of(score),
        distance_Q=quantiles_of(score),
        surprise_Q=quantiles_of(score),
        steady_V=np.ones(2),
        least_features=3,
        types=types,
    )


def drawn(
    n: int, *, seed: int, factor: float = 1.0, bias: np.ndarray | float = 0.0, slope: float = 0.0
) -> tuple[Evidence, sparse.csr_matrix, np.ndarray]:
    """Cells whose probabilities are softmax(z / (2 factor) + bias + slope * (first input, 0, 0)), their inputs and their labels."""
    rng = np.random.default_rng(seed)
    logits, inputs = (6 * rng.normal(size=(n, 3))).astype(np.float32), rng.normal(size=(n, 2)) + 1
    proba = softmax(logits / (2 * factor) + bias + slope * inputs[:, :1] * np.array([1, 0, 0]), axis=1)
    label = (rng.random(n)[:, None] > proba.cumsum(axis=1)).sum(axis=1)
    cells = Evidence(logits_NC=logits, shown_N=np.full(n, 9), distance_N=rng.chisquare(4, n))
    return cells, sparse.csr_matrix(inputs), label


def own(label: np.ndarray) -> np.ndarray:
    return np.eye(3, dtype=bool)[label]


def probabilities(known: Calibration, cells: Evidence) -> np.ndarray:
    return softmax(cells.logits_NC.astype(float) / known.temperature, axis=1)


@pytest.mark.parametrize(("seed", "words"), [(0, False), (1, True), (2, False)])
def test_the_moved_head_is_that_of_a_plain_minimisation(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch, seed: int, words: bool
) -> None:
    monkeypatch.setattr(module, "BIAS_SPREADS", (0.5, 2.0))
    monkeypatch.setattr(module, "WEIGHT_SPREADS", (1.5,))
    cells, inputs, label = drawn(40, seed=seed, factor=1.7, bias=np.array([1.0, 0.0, -0.5]), slope=2.0)
    rows = np.random.default_rng(seed).choice(40, 25, replace=False)
    allowed = own(label[rows])
    if words:
        allowed[allowed[:, 0], 1] = True  # what is called 0 may be 1
    centred = inputs.toarray() - inputs.toarray()[rows].mean(axis=0)
    centred /= np.sqrt((centred[rows] ** 2).sum(axis=1).mean())

    def moved(x: np.ndarray, cell: int) -> list[float]:
        """Logits of a cell: temperature, three biases, and two weights for each label."""
        z, f = cells.logits_NC[cell].tolist(), centred[cell].tolist()
        return [z[c] / 2 / math.exp(x[0]) + x[1 + c] + sum(f[j] * x[4 + 2 * c + j] for j in (0, 1)) for c in range(3)]

    def miss(logits: list[float], may: np.ndarray) -> float:
        odds = [math.exp(v) for v in logits]
        return -math.log(sum(o for o, m in zip(odds, may, strict=True) if m) / sum(odds))

    def fit(some: list[int], bias: float, weight: float) -> np.ndarray:
        def loss(x: np.ndarray) -> float:
            x = np.concatenate([x, np.zeros(10 - len(x))])
            prior = x[0] ** 2 + sum(b**2 for b in x[1:4]) / bias**2
            prior += sum(w**2 for w in x[4:]) / weight**2 if weight else 0
            return prior / 2 + sum(miss(moved(x, rows[i]), allowed[i]) for i in some)

        found = minimize(loss, np.zeros(10 if weight else 4), method="BFGS", options={"gtol": 1e-5}).x
        return np.concatenate([found, np.zeros(10 - len(found))])

    def left_out(bias: float, weight: float) -> list[list[float]]:
        fits = [fit([i for i in range(25) if i % 5 != fold], bias, weight) for fold in range(5)]
        return [moved(fits[i % 5], rows[i]) for i in range(25)]

    def total(logits: list[list[float]]) -> float:
        return sum(miss(row, may) for row, may in zip(logits, allowed, strict=True))

    bias = min((0.5, 2.0), key=lambda b: total(left_out(b, 0)))
    weight = min((0.0, 1.5), key=lambda w: total(left_out(bias, w)))
    aside = np.array(left_out(bias, weight))
    rest = min(np.exp(np.arange(-2, 2, 0.002)), key=lambda t: total((aside / t).tolist()) + math.log(t) ** 2 / 2)
    best = fit(list(range(25)), bias, weight)
    expected = softmax(np.array([moved(best, cell) for cell in range(40)]) / rest, axis=1)
    found, read = recalibrate(calibration, cells, inputs_NX=inputs, rows=rows, allowed_LC=allowed, type_C=np.arange(3))
    assert np.allclose(probabilities(found, read), expected, atol=5e-3)
    aside = softmax(aside / rest, axis=1)
    assert np.allclose(found.confidence_Q, quantiles_of(aside.max(axis=1)), atol=5e-3)
    assert np.allclose(found.surprise_Q, quantiles_of(1 - (aside * allowed).sum(axis=1)), atol=5e-3)
    assert np.array_equal(found.distance_Q, quantiles_of(cells.distance_N[rows]))
    assert (found.n_cells, found.source) == (25, "labelled cells")


def test_other_cells_are_calibrated_and_labelled_better(calibration: Calibration) -> None:
    """What the head did not know, of frequencies and of an input, is learned of 200 cells."""
    cells, inputs, label = drawn(4000, seed=0, factor=2.5, bias=np.array([0.0, 0.0, -1.5]), slope=3.0)
    rows = np.arange(200)
    found, read = recalibrate(
        calibration, cells, inputs_NX=inputs, rows=rows, allowed_LC=own(label[rows]), type_C=np.arange(3)
    )
    scores = {}
    for name, proba in (("before", probabilities(calibration, cells)), ("after", probabilities(found, read))):
        right, sure = (proba.argmax(axis=1) == label)[200:], proba.max(axis=1)[200:]
        scores[name] = (right.mean(), ece(sure, right), ece_floor(sure, n_draws=20))
    assert scores["after"][0] > scores["before"][0] + 0.15
    assert scores["before"][1] > 0.2
    assert scores["after"][1] < scores["after"][2] + 0.03


def test_the_share_that_was_asked_for_keeps_a_label_and_has_it_in_its_set(calibration: Calibration) -> None:
    cells, inputs, label = drawn(4000, seed=1, factor=3.0, slope=1.0)
    rows = np.arange(1000)
    found, read = recalibrate(
        calibration, cells, inputs_NX=inputs, rows=rows, allowed_LC=own(label[rows]), type_C=np.arange(3)
    )
    options = LabelOptions(set_coverage=0.8)
    table = annotate(read, classes=("0", "1", "2"), unlabeled_category="?", calibration=found, options=options)
    assert (
        abs((table.reason == LABELLED)[1000:].mean() - 0.95**2) < 0.03
    )  # confidence and distance are independent here
    assert abs(table.sets_NC[np.arange(4000), label][1000:].mean() - 0.8) < 0.03


def test_inputs_that_tell_nothing_are_not_used(calibration: Calibration) -> None:
    """Of a head that is right already little moves, whatever else is read."""
    cells, _, label = drawn(400, seed=4)
    noise = sparse.csr_matrix(np.random.default_rng(0).normal(size=(400, 60)))
    found, read = recalibrate(
        calibration, cells, inputs_NX=noise, rows=np.arange(100), allowed_LC=own(label[:100]), type_C=np.arange(3)
    )
    before, after = probabilities(calibration, cells), probabilities(found, read)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() > 0.9
    assert found.temperature == pytest.approx(2, rel=0.5)


def test_few_cells_that_are_all_right_do_not_make_it_certain(calibration: Calibration) -> None:
    cells, inputs, _ = drawn(50, seed=2)
    right = own(cells.logits_NC.argmax(axis=1))
    found, _ = recalibrate(
        calibration, cells, inputs_NX=inputs, rows=np.arange(50), allowed_LC=right, type_C=np.arange(3)
    )
    assert 0.05 < found.temperature < 2


def test_inputs_that_do_not_differ_are_no_error(calibration: Calibration) -> None:
    cells, _, label = drawn(300, seed=5)
    same = sparse.csr_matrix(np.ones((300, 2)))
    some = np.arange(60)
    for allowed in (own(label[some]), own(label[some]) & (some != 7)[:, None]):  # one is of a new type
        found, read = recalibrate(
            calibration, cells, inputs_NX=same, rows=some, allowed_LC=allowed, type_C=np.arange(3)
        )
        assert found.n_cells == allowed.any(axis=1).sum()
        assert np.isfinite(read.logits_NC).all()
    assert np.isfinite(read.learned_N).all()


# --- cells of types that were not learned -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_types_that_were_not_learned_are_as_probable_as_a_plain_minimisation_says(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "WEIGHT_SPREADS", (0.5, 2.0))
    cells, inputs, label = drawn(40, seed=seed)
    rows = np.random.default_rng(seed).choice(40, 25, replace=False)
    new = np.random.default_rng(seed).random(40) < expit(2 * inputs.toarray()[:, 1] - 3)
    allowed = own(label[rows]) & ~new[rows][:, None]
    centred = inputs.toarray() - inputs.toarray()[rows].mean(axis=0)
    centred /= np.sqrt((centred[rows] ** 2).sum(axis=1).mean())
    features = []
    for cell in range(40):
        top = max(softmax(cells.logits_NC[cell].astype(float) / 2))
        features.append([math.log((1 - top) / top), math.log(cells.distance_N[cell])])
    features = np.array(features)
    features = np.hstack([(features - features[rows].mean(axis=0)) / features[rows].std(axis=0), centred])

    def odds(x: np.ndarray, cell: int) -> float:
        """Log-odds of a learned type: of either side a bias and a weight per feature, spread alike about 0, count as one of twice the variance."""
        return x[0] + sum(f * w for f, w in zip(features[cell], x[1:], strict=True))

    def fit(some: list[int], spread: float) -> np.ndarray:
        def loss(x: np.ndarray) -> float:
            x = np.concatenate([x, np.zeros(5 - len(x))])
            prior = x[0] ** 2 / (2 * 16) + (sum(w**2 for w in x[1:]) / (2 * spread**2) if spread else 0)
            return prior / 2 + sum(math.log1p(math.exp(-odds(x, rows[i]) * (-1) ** new[rows[i]])) for i in some)

        found = minimize(loss, np.zeros(5 if spread else 1), method="BFGS", options={"gtol": 1e-6}).x
        return np.concatenate([found, np.zeros(5 - len(found))])

    def aside(spread: float) -> list[float]:
        fits = [fit([i for i in range(25) if i % 5 != fold], spread) for fold in range(5)]
        return [1 / (1 + math.exp(-odds(fits[i % 5], rows[i]))) for i in range(25)]

    def miss(of: list[float]) -> float:
        return -sum(math.log(1 - p if new[row] else p) for p, row in zip(of, rows, strict=True))

    spread = min((0.0, 0.5, 2.0), key=lambda s: miss(aside(s)))
    best = fit(list(range(25)), spread)
    found, read = recalibrate(calibration, cells, inputs_NX=inputs, rows=rows, allowed_LC=allowed, type_C=np.arange(3))
    assert np.allclose(read.learned_N, [expit(odds(best, cell)) for cell in range(40)], atol=5e-3)
    # of the others all is as if the new ones had not been there, but for what is left to their labels
    kept = allowed.any(axis=1)
    alone, moved = recalibrate(
        calibration, cells, inputs_NX=inputs, rows=rows[kept], allowed_LC=allowed[kept], type_C=np.arange(3)
    )
    assert np.allclose(probabilities(found, read), probabilities(alone, moved))
    assert moved.learned_N is None
    assert (found.n_cells, alone.n_cells) == (kept.sum(), kept.sum())
    assert found.confidence_Q[-1] < max(np.array(aside(spread))[kept]) + 5e-3
    assert (found.confidence_Q <= alone.confidence_Q).all()


def test_confidence_is_right_where_new_types_are_frequent(calibration: Calibration) -> None:
    """A quarter of the cells is of a type that the head did not learn, which an input tells apart."""
    cells, inputs, label = drawn(4000, seed=6)
    new = np.random.default_rng(6).random(4000) < expit(3 * inputs.toarray()[:, 1] - 5)
    rows, allowed = np.arange(200), own(label) & ~new[:, None]
    table = {}
    for name, some in (("left out", rows[~new[:200]]), ("counted", rows)):
        found, read = recalibrate(
            calibration, cells, inputs_NX=inputs, rows=some, allowed_LC=allowed[some], type_C=np.arange(3)
        )
        table[name] = annotate(
            read,
            classes=("0", "1", "2"),
            unlabeled_category="?",
            calibration=found,
            options=LabelOptions(unknown=False),
        )
    right = (table["counted"].labels == label.astype(str))[200:] & ~new[200:]
    error = {name: ece(answer.confidence[200:], right) for name, answer in table.items()}
    assert error["left out"] > 0.15
    assert error["counted"] < ece_floor(table["counted"].confidence[200:], n_draws=20) + 0.03
    rest = table["counted"].probabilities.sum(axis=1)[200:]
    assert roc_auc_score(new[200:], -rest) > 0.85
    assert rest.mean() == pytest.approx((~new[200:]).mean(), abs=0.05)


def test_what_is_given_is_left_alone(calibration: Calibration) -> None:
    cells, inputs, label = drawn(60, seed=3)
    before, kept, read = cells.logits_NC.copy(), calibration.confidence_Q.copy(), inputs.copy()
    recalibrate(calibration, cells, inputs_NX=inputs, rows=np.arange(60), allowed_LC=own(label), type_C=np.arange(3))
    assert np.array_equal(cells.logits_NC, before)
    assert np.array_equal(calibration.confidence_Q, kept)
    assert (inputs != read).nnz == 0
    assert (calibration.temperature, calibration.source) == (2.0, "out-of-fold")
