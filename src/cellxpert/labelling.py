"""Between the user's object and the labels of a model: what they are decided from, and where they are written.

Letters: N cells, C labels.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from cellxpert import keys
from cellxpert.checkpoint import TrainedState
from cellxpert.data import setup as setups
from cellxpert.data.calibration import Calibration
from cellxpert.data.cells import Cells
from cellxpert.data.components import label_inputs
from cellxpert.data.obs import MISSING_TEXT, as_categories
from cellxpert.data.tokens import Tokens, shown_features
from cellxpert.data.write import forget_obs, forget_obsm, record, recorded, write_obs, write_obsm
from cellxpert.errors import CellxPertWarning, ConfigError, NoLabelsError
from cellxpert.nn.heads import LabelHead
from cellxpert.ontology import CellOntology, match_labels
from cellxpert.tasks.annotate import Annotation, Evidence, LabelOptions
from cellxpert.tasks.recalibrate import recalibrate

__all__ = [
    "allowed",
    "annotation_table",
    "calibrated_on",
    "describe_labels",
    "evidence",
    "head_inputs",
    "require_free_columns",
    "require_labels",
    "terms_of",
    "write_annotation",
]

Data = AnnData | MuData
LEAST_LABELLED, MAX_LABELLED = 50, 2000
"""Fewest labelled cells to learn from, and how many are used of more."""


def require_labels(state: TrainedState) -> TrainedState:
    """Return the model, if it learned labels; raise ``NoLabelsError`` if not."""
    if state.labels:
        return state
    key, nothing = state.setup.labels_key, state.setup.unlabeled_category
    found, fix = "the model was trained without labels", "set up a labels_key, and train"
    if key is not None:
        found = f"every cell that the model was trained on is {nothing!r} in obs[{key!r}]"
        fix = "label some of these cells, set up the object again, and train"
    raise NoLabelsError("annotate", found=found, fix=fix)


def terms_of(state: TrainedState, *, needed: bool = False) -> tuple[str, ...] | None:
    """Return the term of each label, ``""`` for none; None, or a ``ConfigError`` if they are needed, if no label has one."""
    known = {term.label: term.term for term in state.setup.label_terms}
    terms = tuple(known.get(label, "") for label in state.labels)
    if needed and not any(terms):
        found, fix = "labels without ontology terms", "train with setup_mudata(..., label_terms='auto')"
        raise ConfigError("annotate(back_off=)", found=found, fix=fix)
    return terms if any(terms) else None


def evidence(
    state: TrainedState,
    data: Data,
    tokens: Tokens,
    *,
    logits_NC: npt.NDArray[np.float32],
    tissue_NC: npt.NDArray[np.float32] | None = None,
    clusters_key: str | None = None,
) -> Evidence:
    """Gather what labels are decided from."""
    modality_V, distance_N = state.vocabulary.role_of_feature, None
    if state.calibration is not None and state.network.labels is not None:
        scale_MK = state.network.labels.scale_MK.double().cpu().numpy()
        distance_N = state.calibration.types.distances(tokens, scale_MK=scale_MK, modality_V=modality_V)
        logits_NC = logits_NC + state.calibration.absent(tokens, _magnitude_weights(state.network.labels))
        if tissue_NC is not None and state.network.tissues is not None:
            tissue_NC = tissue_NC + state.calibration.absent(tokens, _magnitude_weights(state.network.tissues))
    cluster_N = None
    if clusters_key is not None:
        values = Cells.open(data, setups.query_setup(state.setup, data)).obs(clusters_key)
        values = values.astype(object).mask(values.isin(MISSING_TEXT))
        cluster_N = pd.factorize(values, sort=True)[0].astype(np.int64)
    return Evidence(
        logits_NC=logits_NC,
        shown_N=shown_features(tokens, modality_V),
        distance_N=distance_N,
        cluster_N=cluster_N,
        tissue_NC=None if state.tissues is None else tissue_NC,
    )


def calibrated_on(
    state: TrainedState,
    data: Data,
    found: Evidence,
    *,
    key: str,
    inputs_NX: sparse.csr_matrix,
    trained_N: npt.NDArray[np.bool_] | None,
) -> tuple[Calibration, Evidence]:
    """Learn from the cells that have a label in a column, without those that trained the model; of many, evenly spaced ones count.

    Raises
    ------
    ConfigError
        If they are too few, the column is an earlier answer, or the model could not be calibrated itself.
    """
    where, nothing = f"annotate(calibration_key={key!r})", state.setup.unlabeled_category
    if recorded(data, "annotate", key=key):
        fix = "give a column of labels that were made without a model"
        raise ConfigError(where, found="labels that annotate() wrote: it would confirm itself", fix=fix)
    if state.calibration is None:
        was = "a model whose labels are not calibrated: too few labelled cells were left to measure on"
        raise ConfigError(where, found=was, fix="train with more labelled cells, or leave calibration_key out")
    labels = as_categories(Cells.open(data, setups.query_setup(state.setup, data)).obs(key), key=key, missing=nothing)
    given_N = (labels != nothing).to_numpy()
    counted_N = given_N if trained_N is None else given_N & ~trained_N
    may = _meant(state, sorted(set(labels[counted_N])))
    rows = np.flatnonzero(counted_N)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_LABELLED)).astype(np.int64))]
    learned_L = labels.iloc[rows].isin(may).to_numpy()
    new = sorted(set(labels[counted_N]) - set(may))
    if learned_L.sum() < LEAST_LABELLED:
        was = f"{given_N.sum()} labelled cells, of which {given_N.sum() - counted_N.sum()} trained the model"
        was += f"; {learned_L.sum()} of {len(rows)} others are of types that it learned"
        hint = f"rename {new[:5]} to names like {list(state.labels)[:5]}, or label" if new else "label"
        raise ConfigError(where, found=was, fix=f"{hint} {LEAST_LABELLED} cells or more, or leave calibration_key out")
    if new:
        warnings.warn(
            f"{where}: {(~learned_L).sum()} of {len(rows)} labelled cells are of types that were not learned, e.g. {new[:5]}. No cell "
            "is given these names; the confidence of others falls where such a type is probable. Rename them where they are "
            f"other words for types such as {list(state.labels)[:5]}.",
            CellxPertWarning,
            stacklevel=3,
        )
    none_C = np.zeros(len(state.labels), bool)
    return recalibrate(
        state.calibration,
        found,
        inputs_NX=inputs_NX,
        rows=rows,
        allowed_LC=np.stack([may.get(label, none_C) for label in labels.iloc[rows]]),
        type_C=state.setup.types_of(state.labels),
    )


def head_inputs(state: TrainedState, tokens: Tokens, vector_ND: npt.NDArray[np.float32]) -> sparse.csr_matrix:
    """What the label head reads of all cells; what was not measured stands at its usual value."""
    head, calibration = state.network.labels, state.calibration
    assert head is not None
    return label_inputs(
        tokens,
        np.arange(tokens.n_cells),
        vector_ND.astype(np.float64),
        scale_MK=head.scale_MK.double().cpu().numpy(),
        modality_V=state.vocabulary.role_of_feature,
        image=head.image is not None,
        # the same for all cells tells them not apart
        usual_GV=calibration.usual(tokens) if calibration is not None and len(tokens.measured_features) > 1 else None,
    )


def _meant(state: TrainedState, names: list[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which of the learned labels (C,) cells of these names may have; names of types that were not learned are left out.

    A name that was not learned means the labels that are kinds of its ontology term, or, of a finer one, those that it is a kind of.
    """
    learned = dict(zip(state.labels, allowed(state), strict=True))
    may = {name: learned[name] for name in names if name in learned}
    terms, others = terms_of(state), [name for name in names if name not in learned]
    if terms is None or not others:
        return may
    ontology = CellOntology()
    table = match_labels(others, ontology=ontology)
    for name, term in table["term"][table["term"] != ""].items():
        below = np.array([t != "" and ontology.is_a(t, term) for t in terms])
        meant = below if below.any() else np.array([t != "" and ontology.is_a(term, t) for t in terms])
        if meant.any():
            may[str(name)] = meant
    return may


def _magnitude_weights(head: LabelHead) -> npt.NDArray[np.float64]:
    return head.magnitude.weight[:-1].detach().double().cpu().numpy()


def describe_labels(
    state: TrainedState,
    options: LabelOptions,
    *,
    calibration: Calibration | None,
    columns: dict[str, str | None],
    ontology: CellOntology | None,
) -> dict[str, Any]:
    """Return plain values that say what was asked of labels, and what they rest on; ``columns`` of ``obs`` by the argument that named them."""
    asked = {name: value for name, value in asdict(options).items() if value is not None}
    asked["calibrated_on"] = "nothing" if calibration is None else calibration.source
    if calibration is not None:
        asked |= {"temperature": calibration.temperature, "n_calibrated": calibration.n_cells}
    asked |= {name: key for name, key in columns.items() if key is not None}
    if ontology is not None:
        asked["ontology_version"] = ontology.version
    if state.tissues is not None:
        asked["tissues"] = list(state.tissues.names)
    return asked


def allowed(state: TrainedState) -> npt.NDArray[np.bool_]:
    """Which labels a cell of each label may have, as in training."""
    from cellxpert.training.label_task import allowed_labels  # lightning takes seconds to import

    return allowed_labels(state.labels, state.setup.label_terms)


def annotation_table(result: Annotation, index: pd.Index) -> pd.DataFrame:
    """Return an annotation, one row per cell."""
    columns = {
        "label": result.labels,
        "confidence": result.confidence,
        "reason": result.reason,
        "ood": result.ood,
        "uncertainty": result.uncertainty,
    }
    if result.terms is not None:
        columns["ontology_term_id"] = result.terms
    if result.sets_NC is not None:
        columns["set_size"] = result.sets_NC.sum(axis=1)
    if result.tissue is not None and result.tissue_confidence is not None:
        columns |= {"tissue": result.tissue, "tissue_confidence": result.tissue_confidence}
    return pd.DataFrame(columns, index=index)


def _label_columns(key: str) -> dict[str, str]:
    """Name in ``obs`` of each column of :func:`annotation_table`."""
    return {
        "label": key,
        "confidence": keys.confidence_key(key),
        "reason": keys.reason_key(key),
        "ood": keys.ood_key(key),
        "uncertainty": keys.uncertainty_key(key),
        "ontology_term_id": keys.ontology_key(key),
        "set_size": keys.set_size_key(key),
        "tissue": keys.tissue_key(key),
        "tissue_confidence": keys.tissue_confidence_key(key),
    }


def require_free_columns(state: TrainedState, data: Data, key: str) -> None:
    """Refuse to write labels over columns that no earlier call wrote under the key, or that the setup reads.

    Raises
    ------
    ConfigError
        If there are any.
    """
    if not isinstance(key, str) or not key:
        raise ConfigError("annotate(key_added=)", found=repr(key), fix="give the name of a column")
    names, setup = [*_label_columns(key).values()], setups.query_setup(state.setup, data)
    read = {setup.batch_key, setup.labels_key, setup.tissue_key, setup.perturbation_key}
    here = set(data.obs).union(*(adata.obs.columns for adata in getattr(data, "mod", {}).values()))
    # names that begin with ours are nobody else's
    own = key == keys.LABEL or recorded(data, "annotate", key=key)
    taken = [name for name in names if name in read or (name in here and not own)]
    if taken:
        found = f"columns of obs that the setup reads, or that annotate() did not write: {taken}"
        raise ConfigError(f"annotate(key_added={key!r})", found=found, fix="choose another name, or rename them")


def write_annotation(data: Data, result: Annotation, *, key: str, entry: dict[str, Any]) -> None:
    """Write labels and what comes with them, and the record of the call; what an earlier call alone wrote goes."""
    table = annotation_table(result, data.obs_names)
    for column, name in _label_columns(key).items():
        if column not in table:
            forget_obs(data, name)
        elif column in {"label", "reason", "ontology_term_id", "tissue"}:
            write_obs(data, name, pd.Series(pd.Categorical(table[column].astype(str)), index=data.obs_names))
        else:
            write_obs(data, name, table[column])
    write_obsm(data, keys.proba_key(key), result.probabilities)
    if result.sets_NC is None:
        forget_obsm(data, keys.sets_key(key))
    else:
        write_obsm(data, keys.sets_key(key), result.sets_NC)
    record(data, "annotate", key=key, entry=entry | {"classes": list(result.classes)})
