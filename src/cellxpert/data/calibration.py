"""What labels of a trained model can be trusted with: measured on cells that were not used for them.

Letters: N cells, V features, C labels, T types, Q quantiles, G groups of cells with the same features measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellxpert.data.cell_types import Components, TypeModel
from cellxpert.data.tokens import Tokens

__all__ = ["Calibration", "Tissues", "choose", "quantiles_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEVELS = np.linspace(0.0, 1.0, 201)
"""Levels of the quantiles that are kept."""
_ARRAYS = ("confidence_Q", "distance_Q", "surprise_Q", "steady_V")


def quantiles_of(value_N: Floats) -> Floats:
    """Return the quantiles that are kept of a score, (Q,): of its values, none in between."""
    return np.quantile(value_N, LEVELS, method="inverted_cdf").astype(np.float64)


def choose(probability_NC: Floats, type_C: Ints) -> tuple[Ints, Floats]:
    """Choose the most probable type of each cell, and the most probable of the words for it.

    Parameters
    ----------
    probability_NC
        Probability of each label.
    type_C
        Which type each label is a word for, as codes below C: labels with the same code share its probability between them.

    Returns
    -------
    label_N
        Index of the label.
    probability_N
        Probability of its type.
    """
    total_NT = probability_NC @ np.eye(len(type_C))[type_C]
    best_N = total_NT.argmax(axis=1)
    label_N = np.where(type_C == best_N[:, None], probability_NC, -1.0).argmax(axis=1)
    return label_N, total_NT[np.arange(len(best_N)), best_N]


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Tissues that a model tells apart."""

    names: tuple[str, ...]
    temperature: float = 1.0
    """What their logits are divided by."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What was measured on labelled cells that the label head had not seen.

    ``source`` says which: ``"out-of-fold"`` (training cells, by heads fitted to the others), ``"left-out batches"`` (the same, whole
    batches at a time), ``"validation"``, or ``"labelled cells"`` of the object that is annotated.
    """

    source: Literal["out-of-fold", "left-out batches", "validation", "labelled cells"]
    n_cells: int
    temperature: float
    """What logits are divided by."""
    confidence_Q: Floats
    """Quantiles of the probability of the most probable type."""
    surprise_Q: Floats
    """Quantiles of 1 - the probability of the true label."""
    distance_Q: Floats
    """Quantiles of the squared distance to the nearest label's mean."""
    steady_V: Floats
    """1 for features that were measured in every training cell: where one is not, it stands at its usual value; 0 for the others."""
    least_features: int
    """Half the features that the poorest 1 % of training cells show, 1 at least."""
    types: TypeModel

    def threshold(self, score: Literal["confidence", "surprise", "distance"], level: float) -> float:
        """Return the value of a score that a share ``level`` of the cells does not exceed, or, of confidence, falls below at most."""
        kept_Q = getattr(self, f"{score}_Q")
        # rounded as a guarantee of coverage needs: cells of a confidence below, and of another score above, are refused
        place = round(level * (len(kept_Q) - 1), 9)
        return float(kept_Q[min(int(np.floor(place) if score == "confidence" else np.ceil(place)), len(kept_Q) - 1)])

    def rank(self, score: Literal["confidence", "distance"], value_N: Floats) -> Floats:
        """Return which share of the kept quantiles cells surpass in doubt: less confidence, more distance (N,).

        It goes on beyond the last of them, so that no two cells of different scores are alike there.
        """
        kept_Q, limit = getattr(self, f"{score}_Q"), self.threshold(score, float(score == "distance"))
        if score == "confidence":
            beyond_N, n_N = value_N / max(limit, 1e-12), len(kept_Q) - np.searchsorted(kept_Q, value_N, side="right")
        else:
            beyond_N, n_N = limit / np.maximum(value_N, 1e-12), np.searchsorted(kept_Q, value_N, side="left")
        return np.where(n_N == len(kept_Q), len(kept_Q) - beyond_N, n_N) / len(kept_Q)

    def absent(self, tokens: Tokens, weight_VC: Floats) -> npt.NDArray[np.float32]:
        """Return what features that were not measured add to logits (N, C): they stand at what is usual, not at zero."""
        return (self.usual(tokens) @ weight_VC).astype(np.float32)[tokens.pattern]

    def usual(self, tokens: Tokens) -> Floats:
        """Return what stands for features that the cells of each pattern did not measure (G, V), 0 for the others."""
        return ~tokens.measured_features * self.types.components.usual_V * self.steady_V

    def to_arrays(self, *, components: bool = True) -> dict[str, Floats]:
        """Return all arrays by name, those of the components too or not."""
        types = self.types
        shared = {"usual_V": types.components.usual_V, "direct_VP": types.components.direct_VP} if components else {}
        return (
            {name: getattr(self, name) for name in _ARRAYS}
            | shared
            | {
                "mean_CP": types.mean_CP,
                "root_PP": types.root_PP,
                "n_C": types.n_C,
                "spread_C": types.spread_C,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all that is no array."""
        return {name: getattr(self, name) for name in ("source", "n_cells", "temperature", "least_features")}

    @classmethod
    def of(
        cls, settings: dict[str, Any], arrays: Mapping[str, npt.ArrayLike], *, components: Components | None = None
    ) -> Calibration:
        """Rebuild from :meth:`to_dict` and :meth:`to_arrays`; ``components`` stand in for those that were left out."""
        arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        if components is None or "direct_VP" in arrays:
            components = Components(usual_V=arrays["usual_V"], direct_VP=arrays["direct_VP"])
        types = TypeModel(components, arrays["mean_CP"], arrays["root_PP"], arrays["n_C"], arrays["spread_C"])
        return cls(
            source=settings["source"],
            n_cells=int(settings["n_cells"]),
            temperature=float(settings["temperature"]),
            least_features=int(settings["least_features"]),
            types=types,
            **{name: arrays[name] for name in _ARRAYS},
        )

    def rounded(self) -> Calibration:
        """Return it as it is after it went through a file, where arrays are float32: saving must change no answer.

        Components that are rounded already stay the same object: adapters share their model's, which are then not saved twice.
        """
        arrays = {name: array.astype(np.float32) for name, array in self.to_arrays().items()}
        known = self.types.components
        if all(np.array_equal(arrays[name], getattr(known, name)) for name in ("usual_V", "direct_VP")):
            arrays = {name: array for name, array in arrays.items() if name not in {"usual_V", "direct_VP"}}
        return Calibration.of(self.to_dict(), arrays, components=known)
