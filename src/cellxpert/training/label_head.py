"""The label head is fitted to its optimum after training, and calibrated on cells that it has not seen.

With the network fixed, the head is a multinomial logistic regression on a cell's binned magnitudes, its vector and image features: a
convex problem, so that a solver finds what a few hundred steps of gradient descent do not. The network below was learned without
labels, so that heads fitted to some of the training cells are honest about the others.

Shape suffixes: N cells, X inputs, D width, V features, C labels, F image features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.special import softmax

from cellxpert.config import LabelLoss
from cellxpert.data.calibration import Calibration, choose, quantiles_of
from cellxpert.data.cell_types import Components, TypeModel, find_components, n_replicated
from cellxpert.data.collate import Collator
from cellxpert.data.components import MAX_CELLS, label_inputs
from cellxpert.data.loaders import inference_batches
from cellxpert.data.splits import folds_of
from cellxpert.data.tokens import Tokens, shown_features
from cellxpert.nn.heads import LabelHead
from cellxpert.nn.network import Network
from cellxpert.training.objectives import class_margins, class_weights
from cellxpert.training.regression import fit_regression, fit_temperature

__all__ = ["LEAST_CALIBRATED", "Labelled", "calibrate_label_head", "fit_label_head"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse penalties (scikit-learn's C) that are tried, strongest first."""
USUAL_PENALTY = 0.1
"""The one that is taken where cells are too few to choose."""
N_FOLDS = 3
DENSE_SHARE, MAX_DENSE = 0.02, 5e7
"""Share of non-zero inputs from which they are read as a dense matrix, and its largest size."""
LEAST_SHARED = 0.9
"""Least share of cells whose label other batches have too, for batches to be left out whole."""
LEAST_CALIBRATED = 50
"""Fewest cells that a calibration is made of."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """Training cells and what is said of them."""

    rows: Ints
    """Cells, all with a label."""
    code_N: Ints
    """Code of each one's label."""
    allowed_CC: Bools
    """What a cell with a label may be: its row. The identity, where no label contains another."""
    batch_N: npt.NDArray[np.object_] | None = None
    """Batch of each cell; None: not known."""
    label_loss: LabelLoss = "plain"
    seed: int = 0

    @property
    def type_C(self) -> Ints:
        """Code of the type that each label is a word for: labels that contain one another are words for one."""
        return (self.allowed_CC & self.allowed_CC.T).argmax(axis=1)

    def take(self, chosen: Ints) -> Labelled:
        """Return some of the cells."""
        batch_N = None if self.batch_N is None else self.batch_N[chosen]
        return Labelled(
            rows=self.rows[chosen],
            code_N=self.code_N[chosen],
            allowed_CC=self.allowed_CC,
            batch_N=batch_N,
            label_loss=self.label_loss,
            seed=self.seed,
        )


@torch.no_grad()
def fit_label_head(
    network: Network,
    collator: Collator,
    cells: Labelled,
    *,
    head: LabelHead | None = None,
    components: Components | None = None,
) -> Calibration | None:
    """Fit a head of a trained network, in place: to binned magnitudes, cell vectors, and image features.

    Penalty and temperature are those of the smallest loss on the cells of other folds; of more than ``MAX_CELLS`` cells, a sample decides.
    The head, fitted to all cells, has the penalty per cell that the heads of the folds had: with less, as an equal inverse penalty would
    mean, it would be surer than the temperature was measured for.

    Parameters
    ----------
    network
        The network, in evaluation mode on the CPU; all but the head stays.
    collator
        Tokens of the cells.
    cells
        Training cells with labels. With fewer than two labels nothing is done.
    head
        Its label head (None), or its tissue head.
    components
        Components to tell labels in; those of the cells if None.

    Returns
    -------
    The calibration; None where labels or cells are too few.
    """
    head = network.labels if head is None else head
    if head is None or len(np.unique(cells.code_N)) < 2:
        return None
    inputs_NX = _inputs(network, head, collator, cells.rows)
    rng = np.random.default_rng([cells.seed, 2])
    some = np.arange(len(cells.rows))
    if len(some) > MAX_CELLS:
        some = np.sort(rng.choice(some, MAX_CELLS, replace=False))
    reading = _Reading(head, collator.tokens, components=components, seed=cells.seed)
    inverse_penalty, calibration = _cross_fit(reading, inputs_NX[some], cells.take(some))
    if calibration is not None:
        inverse_penalty *= (1 - 1 / N_FOLDS) * len(some) / len(cells.rows)
    _write(network, head, _regression(inputs_NX, cells, inverse_penalty=inverse_penalty))
    return calibration


@torch.no_grad()
def calibrate_label_head(
    network: Network, collator: Collator, cells: Labelled, *, validation: Labelled, components: Components | None = None
) -> Calibration | None:
    """Calibrate the label head of a network that labels trained: of its probabilities only validation cells tell.

    Where types lie is not the network's, so that training cells tell of distances. None where either cells are too few.
    """
    head = network.labels
    if head is None or len(validation.rows) < LEAST_CALIBRATED or len(np.unique(cells.code_N)) < 2:
        return None
    folds = _folds(cells)
    if folds is None:
        return None
    reading = _Reading(head, collator.tokens, components=components, seed=cells.seed)
    types = _Types.fit(reading, cells, folds.fold_N)
    logits = [network.encode(batch).label_BC for _, batch in inference_batches(collator, validation.rows)]
    order = np.concatenate([rows for rows, _ in inference_batches(collator, validation.rows)])
    place = np.searchsorted(validation.rows, order)
    logits_NC = np.empty((len(place), network.n_labels))
    logits_NC[place] = torch.cat(logits).double().numpy()
    allowed_NC = validation.allowed_CC[validation.code_N]
    temperature, _ = fit_temperature(logits_NC, allowed_NC)
    return _calibration(
        "validation",
        logits_NC,
        allowed_NC,
        type_C=validation.type_C,
        temperature=temperature,
        distance_N=types.distance_N[folds.known_N],
        steady_V=_steady(reading.tokens, cells.rows),
        least_features=_least_features(reading, cells.rows),
        types=types.whole,
    )


class _Reading:
    """How a label head reads cells."""

    def __init__(self, head: LabelHead, tokens: Tokens, *, components: Components | None, seed: int) -> None:
        self.scale_MK = head.scale_MK.double().numpy()
        self.modality_V = head.modality_V.numpy()[:-1]
        self.tokens, self.components, self.seed, self.n_labels = tokens, components, seed, head.cell.out_features

    def points(self, components: Components, rows: Ints) -> Floats:
        return components.project(self.tokens, rows, scale_MK=self.scale_MK, modality_V=self.modality_V)

    def find(self, rows: Ints) -> Components:
        if self.components is not None:
            return self.components
        return find_components(self.tokens, rows, scale_MK=self.scale_MK, modality_V=self.modality_V, seed=self.seed)

    def types(self, components: Components, cells: Labelled) -> TypeModel:
        return TypeModel.fit(components, self.points(components, cells.rows), cells.code_N, n_labels=self.n_labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Types:
    """Labels as Gaussians: of all cells, and of all but those of each fold."""

    whole: TypeModel
    others: list[TypeModel]
    distance_N: Floats
    """Distance of each cell to the nearest label of the other folds."""

    @classmethod
    def fit(cls, reading: _Reading, cells: Labelled, fold_N: Ints) -> _Types:
        parts = [(np.flatnonzero(fold_N != f), np.flatnonzero(fold_N == f)) for f in range(N_FOLDS)]
        found, components = reading.find(cells.rows), [reading.find(cells.rows[others]) for others, _ in parts]
        if reading.components is None:
            n = min(c.direct_VP.shape[1] for c in components)
            shorter = [c.first(n) for c in components]
            variance_SFP = [
                np.stack(
                    [
                        reading.points(c, cells.rows[part[side]]).var(axis=0)
                        for c, part in zip(shorter, parts, strict=True)
                    ]
                )
                for side in (0, 1)
            ]
            n = n_replicated(*variance_SFP)
            found, components = found.first(n), [c.first(n) for c in components]
        others = [reading.types(c, cells.take(rest)) for c, (rest, _) in zip(components, parts, strict=True)]
        distance_N = np.zeros(len(fold_N))
        for types, (_, here) in zip(others, parts, strict=True):
            distance_N[here] = types.distance(reading.points(types.components, cells.rows[here]))
        return cls(whole=reading.types(found, cells), others=others, distance_N=distance_N)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Folds:
    fold_N: Ints
    known_N: Bools
    """Cells of whose label other folds can tell something."""
    by_batch: bool


def _folds(cells: Labelled) -> _Folds | None:
    """Deal cells out, whole batches where these share their labels; None where too few cells have a label that other folds know."""
    for batch_N in (cells.batch_N, None):
        by_batch = batch_N is not None and len(np.unique(batch_N)) >= N_FOLDS
        fold_N = folds_of(cells.code_N, groups=batch_N if by_batch else None, n_folds=N_FOLDS, seed=cells.seed)
        known_N, shared_N = np.zeros(len(fold_N), bool), np.zeros(len(fold_N), bool)
        least = len(cells.allowed_CC)
        for fold in range(N_FOLDS):
            seen_C = np.bincount(cells.code_N[fold_N != fold], minlength=len(cells.allowed_CC)) > 0
            here = fold_N == fold
            known_N[here] = (cells.allowed_CC[cells.code_N[here]] & seen_C).any(axis=1)
            shared_N[here] = seen_C[cells.code_N[here]]
            least = min(least, int(seen_C.sum()))
        # a head cannot be blamed for names that only the batches left out use
        if by_batch and shared_N.mean() < LEAST_SHARED:
            continue
        if least >= 2 and known_N.sum() >= LEAST_CALIBRATED:
            return _Folds(fold_N=fold_N, known_N=known_N, by_batch=by_batch)
    return None


def _cross_fit(
    reading: _Reading, inputs_NX: sparse.csr_matrix | Floats, cells: Labelled
) -> tuple[float, Calibration | None]:
    """Fit heads to all folds but one, and choose the penalty that is best for the one; no calibration where cells are too few."""
    folds = _folds(cells)
    if folds is None:
        return USUAL_PENALTY, None
    fold_N, known_N = folds.fold_N, folds.known_N
    allowed_NC = cells.allowed_CC[cells.code_N]
    best: tuple[float, float, float, Floats] | None = None
    starts: list[Floats | None] = [None] * N_FOLDS
    for inverse_penalty in PENALTIES:
        logits_NC = np.zeros(allowed_NC.shape)
        for fold in range(N_FOLDS):
            others, here = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
            fitted = _regression(
                inputs_NX[others], cells.take(others), inverse_penalty=inverse_penalty, start=starts[fold]
            )
            starts[fold] = fitted
            logits_NC[here] = inputs_NX[here] @ fitted[:-1] + fitted[-1]
        temperature, loss = fit_temperature(logits_NC[known_N], allowed_NC[known_N])
        if best is not None and loss >= best[0]:
            break
        best = loss, inverse_penalty, temperature, logits_NC
    assert best is not None
    types = _Types.fit(reading, cells, fold_N)
    calibration = _calibration(
        "left-out batches" if folds.by_batch else "out-of-fold",
        best[3][known_N],
        allowed_NC[known_N],
        type_C=cells.type_C,
        temperature=best[2],
        distance_N=types.distance_N[known_N],
        steady_V=_steady(reading.tokens, cells.rows),
        least_features=_least_features(reading, cells.rows),
        types=types.whole,
    )
    return best[1], calibration


def _calibration(
    source: str,
    logits_NC: Floats,
    allowed_NC: Bools,
    *,
    type_C: Ints,
    temperature: float,
    distance_N: Floats,
    steady_V: Floats,
    least_features: int,
    types: TypeModel,
) -> Calibration:
    probability_NC = softmax(logits_NC / temperature, axis=1)
    _, confidence_N = choose(probability_NC, type_C)
    return Calibration(
        source=source,
        n_cells=len(logits_NC),
        temperature=temperature,
        confidence_Q=quantiles_of(confidence_N),
        surprise_Q=quantiles_of(1 - np.where(allowed_NC, probability_NC, 0.0).sum(axis=1)),
        distance_Q=quantiles_of(distance_N),
        steady_V=steady_V,
        least_features=least_features,
        types=types,
    ).rounded()


def _steady(tokens: Tokens, rows: Ints) -> Floats:
    """Say with 1 which features were measured in all of the cells."""
    return tokens.measured_features[np.unique(tokens.pattern[rows])].all(axis=0).astype(np.float64)


def _least_features(reading: _Reading, rows: Ints) -> int:
    return max(1, int(np.quantile(shown_features(reading.tokens, reading.modality_V)[rows], 0.01) // 2))


def _regression(
    inputs_NX: sparse.csr_matrix | Floats,
    cells: Labelled,
    *,
    inverse_penalty: float,
    start: Floats | None = None,
) -> Floats:
    n_labels = len(cells.allowed_CC)
    count_C = np.bincount(cells.code_N, minlength=n_labels)
    weight_C = class_weights(count_C.tolist(), cells.label_loss)
    margin_C = class_margins(count_C.tolist()) if cells.label_loss == "ldam" else None
    weight_N = None
    if weight_C is not None:
        weight_N = weight_C.double().numpy()[cells.code_N]
        weight_N = weight_N / weight_N.mean()
    return fit_regression(
        inputs_NX,
        cells.allowed_CC[cells.code_N],
        inverse_penalty=inverse_penalty,
        weight_N=weight_N,
        margin_C=None if margin_C is None else margin_C.double().numpy(),
        start=start,
    )


def _inputs(network: Network, head: LabelHead, collator: Collator, rows: Ints) -> sparse.csr_matrix | Floats:
    """What a head reads of cells, one row each: magnitudes, cell vector, image features."""
    tokens = collator.tokens
    vector_ND = np.zeros((tokens.n_cells, network.config.width))
    for chosen, batch in inference_batches(collator, rows):
        vector_ND[chosen] = network.encode(batch).cell_BD.double().numpy()
    scale_MK, modality_V = head.scale_MK.double().numpy(), head.modality_V.numpy()[:-1]
    has_image = head.image is not None
    inputs_NX = label_inputs(tokens, rows, vector_ND[rows], scale_MK=scale_MK, modality_V=modality_V, image=has_image)
    # dense products are several times as fast unless nearly all is zero
    if inputs_NX.nnz > DENSE_SHARE * np.prod(inputs_NX.shape) and np.prod(inputs_NX.shape) < MAX_DENSE:
        return inputs_NX.toarray()
    return inputs_NX


def _write(network: Network, head: LabelHead, weight_XC: Floats) -> None:
    weight = torch.from_numpy(weight_XC).float()
    at = network.n_features + network.config.width
    head.magnitude.weight[: network.n_features] = weight[: network.n_features]
    head.cell.weight.copy_(weight[network.n_features : at].T)
    if head.image is not None:
        head.image.weight.copy_(weight[at:-1].T)
    head.cell.bias.copy_(weight[-1])
