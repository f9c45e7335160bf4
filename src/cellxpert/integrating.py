"""What a model does with cells that lack modalities or come in batches: one space for all, and what is missing filled in."""

from __future__ import annotations

import contextlib
import copy
import os
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import exchange, keys
from cellxpert.adapting import AdapterMethods
from cellxpert.checkpoint import TrainedState
from cellxpert.data import setup as setups
from cellxpert.data.cells import Cells
from cellxpert.data.integration import Integration
from cellxpert.data.record import Setup
from cellxpert.data.roles import MEASURED, MODALITIES
from cellxpert.data.tables import table_of
from cellxpert.data.tokens import Tokens
from cellxpert.data.write import record, write_layer, write_obsm
from cellxpert.errors import CellxPertWarning, ConfigError, ModalityError, NotTrainedError, ObsKeyError, QueryError
from cellxpert.tasks.integrate import ImputeResult, impute, integrate

__all__ = ["IntegrationMethods"]

Data = AnnData | MuData
NEW_BATCHES = ("error", "fit", "ignore")
MAX_COVERAGE = 0.99
"""From the lowest to the highest level of errors that is kept."""
SCALES = {
    "log": "log1p of counts per 10,000",
    "clr": "centred log-ratio, zeros kept",
    "counts": "log1p of the share in 1,000 of what the cell shows in the model's peaks",
    "arcsinh": "arcsinh of a fifth of the intensity",
    "none": "as measured",
}
"""What the magnitudes of each transform are."""


class IntegrationMethods(AdapterMethods):
    """The methods of a model that integrate, impute, and place new cells beside the old ones."""

    def integrate(
        self,
        mdata: Data | None = None,
        *,
        key_added: str = keys.INTEGRATED,
        modalities: Collection[str] | None = None,
        per_modality: bool = False,
        new_batches: str = "error",
        inplace: bool = True,
    ) -> np.ndarray | dict[str, np.ndarray] | None:
        """Place cells in one space, whichever modalities they have and whichever batch they are of.

        A cell's place is what a factor model expects of its factors given what was measured in it (a missing modality says nothing),
        minus what its batch adds to cells of its kind. Both were fitted to the training cells, without labels; the network's
        cell vectors have no part in it. So a place depends on its own cell and batch alone.

        Parameters
        ----------
        mdata
            MuData or AnnData to read; the model's own by default. See :meth:`get_latent`.
        key_added
            Entry of ``obsm``.
        modalities
            Roles to read (``["rna"]``); all by default. The others are taken for missing, whatever is in them.
        per_modality
            Also place cells by each modality alone, in ``obsm[f"{key_added}_{role}"]``.
        new_batches
            What to do with batches that the model was not trained on. ``"error"``: refuse them. ``"fit"``: estimate from these cells what
            each adds; at least 20 of each are needed, and what they have in common and no other batch has is lost. ``"ignore"``: leave in
            what they add. A model that was trained on one batch takes nothing out of any. Batches are known by name: another
            laboratory's ``"1"`` is not this one's (the record lists ``known_batches``).
        inplace
            Write; False returns the array and writes nothing.

        Returns
        -------
        With ``inplace=False`` a float32 array of shape (n_cells, n_coordinates), in the order of ``obs_names``; with ``per_modality`` a
        dict of such arrays by key. Cells without any of the modalities are NaN.

        Raises
        ------
        NotTrainedError
            If the model was not trained, or was saved without a space.
        QueryError
            If there are new batches, or the object does not say of which batch its cells are.
        FewCellsError
            If a new batch has less than 20 cells.
        ModalityError
            If the model or the object has no such modality.
        ConfigError
            If ``new_batches`` is none of the three.

        Warns
        -----
        CellxPertWarning
            If ``new_batches="fit"`` and the model knows one batch alone, with which nothing can be compared.

        Notes
        -----
        **Writes** ``obsm[key_added]`` (float32) of the object and of each of its modalities, and a record in
        ``uns["cellxpert_info"]["integrate"]``.

        Factors of data with gaps: Rubin & Thayer (1982); batches: Korsunsky et al. (2019); new ones: Kang et al. (2021).
        """
        started = time.perf_counter()
        state, space = _require_integration(self._trained())
        if new_batches not in NEW_BATCHES:
            raise ConfigError("integrate(new_batches=)", found=repr(new_batches), fix=f"use one of {list(NEW_BATCHES)}")
        asked = (modalities,) if isinstance(modalities, str) else modalities
        data, tokens = self._read(mdata, "integrate", inplace=inplace, roles=asked)
        roles = _chosen_roles(state, tokens, modalities)
        readings = {key_added: roles} | ({f"{key_added}_{role}": (role,) for role in roles} if per_modality else {})
        batch_N = _batches_of(state, data, setup=self._setup_for(data), new_batches=new_batches)
        if space.shifts is None and new_batches == "fit":
            text = (
                'integrate(new_batches="fit"): the model was trained on one batch, so that nothing is taken out of any; train it on '
                'two or more (batch_key=), or pass new_batches="ignore"'
            )
            warnings.warn(text, CellxPertWarning, stacklevel=2)
        found, new = integrate(
            space,
            tokens,
            modality_V=_modality_V(state),
            batch_N=batch_N,
            readings=list(readings.values()),
            new_batches=new_batches,
        )
        arrays = dict(zip(readings, found, strict=True))
        if not inplace:
            return arrays if per_modality else arrays[key_added]
        known = () if batch_N is None or space.shifts is None else sorted(set(batch_N) & set(space.shifts.names))
        entry = {
            "modalities": list(roles),
            "new_batches": new_batches,
            "known_batches": list(known),
            "unknown_batches": list(new),
        }
        for key, array in arrays.items():
            write_obsm(data, key, array)
        record(data, "integrate", key=key_added, entry=self._record(tokens, started) | entry)
        return None

    def impute(
        self,
        modality: str,
        mdata: Data | None = None,
        *,
        layer_added: str = keys.IMPUTED,
        coverage: float = 0.9,
        inplace: bool = True,
    ) -> ImputeResult | None:
        """Say what a modality is expected to be, from the cell's other modalities alone.

        Parameters
        ----------
        modality
            Role of the modality (``"protein"``), or its name in the MuData. It is not looked at in cells that have it, so that their
            layer can be compared with what was measured.
        mdata
            MuData or AnnData to read; the model's own by default. It may lack the modality altogether.
        layer_added
            Name of the layer.
        coverage
            Share of cells like the training cells whose magnitude shall be between the lower and the upper limit, for each feature; 0.99 at
            most.
        inplace
            Write; False returns the result and writes nothing.

        Returns
        -------
        With ``inplace=False`` an :class:`~cellxpert.ImputeResult`: tables of the expected magnitude and its limits, for all cells.

        Raises
        ------
        NotTrainedError
            If the model was not trained, or saved by a version that did not impute.
        ModalityError
            If the model has no such modality, or the object no other.
        QueryError
            If too few of the training cells had the modality beside another.
        ConfigError
            If ``coverage`` is no share, or above 0.99.

        Notes
        -----
        **Writes**, where the object has the modality, ``layers[layer_added]``, ``layers[f"{layer_added}_lower"]`` and ``..._upper`` of it
        (float32, NaN for features that the model does not read); and, for all cells, ``obsm[f"{layer_added}_{role}"]`` of the
        object (float32 of shape (n_cells, n_features)), the features' names in the record
        ``uns["cellxpert_info"]["impute"][f"{layer_added}_{role}"]``.

        Magnitudes are log1p of counts scaled to 10,000 (RNA), the centred log-ratio that keeps zeros (protein), and log1p of a peak's
        share in 1,000 of what the cell shows in the model's peaks (ATAC).
        """
        started = time.perf_counter()
        state, space = _require_integration(self._trained())
        if not (isinstance(coverage, int | float) and 0 < coverage <= MAX_COVERAGE):
            fix = f"give a share of at most {MAX_COVERAGE}, such as 0.9: rarer errors are not known"
            raise ConfigError("impute(coverage=)", found=repr(coverage), fix=fix)
        data, tokens = self._read(mdata, "impute", inplace=inplace)
        here = setups.query_setup(self._setup_for(data), data)
        role = _imputed_role(state, space, tokens, modality, setups_of=(state.setup, self._setup, here))
        if inplace:
            names = [f"{layer_added}{end}" for end in ("", "_lower", "_upper")]
            exchange.require_free_layers(
                data,
                Cells.open(data, here),
                names,
                role=role,
                call="impute",
                key=f"{layer_added}_{role}",
                usual=keys.IMPUTED,
            )
        values = impute(space, tokens, role=role, modality_V=_modality_V(state), coverage=coverage)
        result = _impute_result(state, tokens, values, role=role, coverage=coverage, index=data.obs_names)
        if not inplace:
            return result
        entry = self._record(tokens, started) | {"modality": role, "coverage": coverage, "scale": result.scale}
        _write_imputed(data, result, state=state, setup=self._setup_for(data), key=layer_added, entry=entry)
        return None

    @classmethod
    def map_query(
        cls,
        reference: Any,
        query: Data,
        *,
        key_added: str = keys.INTEGRATED,
        new_batches: str = "fit",
        labels: bool = True,
    ) -> Any:
        """Place new cells beside those that a model was trained on, and label them, without training.

        Parameters
        ----------
        reference
            A trained model, or the folder of one.
        query
            MuData or AnnData with other cells; its features may be in another order, features and modalities may be missing. A batch
            column like the reference's is used if it is there; else all of the query counts as one new batch.
        key_added, new_batches
            As in :meth:`integrate`.
        labels
            Also :meth:`annotate`, where the reference knows labels.

        Returns
        -------
        A model with the query as its object, for further calls.

        Raises
        ------
        CellxPertError
            As in :meth:`load`, :meth:`integrate` and :meth:`annotate`.

        Warns
        -----
        CellxPertWarning
            As in :meth:`integrate`: of a reference of one batch, pass ``new_batches="ignore"``.

        Notes
        -----
        **Writes** into ``query`` what :meth:`integrate` and :meth:`annotate` write. Compare with the reference's own
        ``obsm[key_added]``: they are one space.
        """
        query = table_of(query)
        if isinstance(reference, str | os.PathLike):
            model = cls.load(reference, query)  # type: ignore[attr-defined]
        elif isinstance(reference, cls):
            model = reference._with_data(query)
        else:
            found = f"a reference of type {type(reference).__name__}"
            raise ConfigError(
                "map_query", found=found, fix="give a trained model, or the folder that model.save() wrote"
            )
        model.integrate(key_added=key_added, new_batches=new_batches)
        if labels and model._trained().labels:
            model.annotate()
        return model

    # --- inside ---

    def _with_data(self, data: Data) -> Any:
        """The same model with another object, which it was not trained on."""
        model = copy.copy(self)
        model._data, model._learned = data, None
        model._setup = setups.query_setup(self._trained().setup, data)
        return model

    def _read(
        self, data: Data | None, call: str, *, inplace: bool, roles: Collection[str] | None = None
    ) -> tuple[Data, Tokens]:
        """Check an object and turn its cells into tokens; of some of its modalities alone, if roles are named."""
        state = self._trained()
        data = self._own_data() if data is None else table_of(data)
        tokens = exchange.read(
            state,
            data,
            setup=self._setup_for(data),
            call=call,
            inplace=inplace,
            own=data is self._data,
            roles=roles,
        )
        return data, tokens

    def _setup_for(self, data: Data) -> Setup:
        """How the model's own object is read, or one that it was not made with: that may have what the own one lacks."""
        return self._setup if data is self._data or self._state is None else self._state.setup

    def _record(self, tokens: Tokens, started: float) -> dict[str, Any]:
        entry = exchange.describe(self._trained(), tokens, started=started, device=self._device)
        return entry if self._active is None else entry | {"adapter": self._active}


def _require_integration(state: TrainedState) -> tuple[TrainedState, Integration]:
    """Return the model and its space; raise ``NotTrainedError`` if it was saved without."""
    if state.integration is None:
        found = "a model that was saved without a space"
        raise NotTrainedError("integrate", found=found, fix="train it again, or fine-tune it: model.finetune(mdata)")
    return state, state.integration


def _modality_V(state: TrainedState) -> npt.NDArray[np.int64]:
    return state.vocabulary.role_of_feature.astype(np.int64)


def _roles_here(state: TrainedState, tokens: Tokens) -> tuple[str, ...]:
    """Modalities, niches not among them, that some cell has."""
    measured_V, modality_V = tokens.measured_features.any(axis=0), _modality_V(state)
    return tuple(role for role in MEASURED if measured_V[modality_V == MODALITIES.index(role)].any())


def _chosen_roles(state: TrainedState, tokens: Tokens, modalities: Collection[str] | None) -> tuple[str, ...]:
    """Return the modalities to read, in their fixed order; raise ``ModalityError`` for one that no cell has."""
    here = _roles_here(state, tokens)
    if modalities is None:
        return here
    asked = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    if not asked or (lacking := [role for role in asked if role not in here]):
        found = f"{lacking if asked else 'none'} asked for; model and object share {list(here)}"
        raise ModalityError("integrate(modalities=)", found=found, fix=f"use some of {list(here)}")
    return tuple(role for role in here if role in asked)


def _batches_of(state: TrainedState, data: Data, *, setup: Setup, new_batches: str) -> npt.NDArray[np.object_] | None:
    """Return the batch of each cell, as the model's space knows batches; None if it knows none.

    Raises
    ------
    QueryError
        If the object does not say, and new batches are refused.
    """
    if state.integration is None or state.integration.shifts is None:
        return None
    here = setups.query_setup(setup, data)
    batches = Cells.open(data, here).batches()
    if batches is None and here.batch_key is None:  # set up without one, which may be there all the same
        with contextlib.suppress(ObsKeyError):
            batches = Cells.open(data, replace(here, batch_key=state.setup.batch_key)).batches()
    if batches is not None:
        return batches.astype(str).to_numpy(dtype=object)
    if new_batches == "error":
        raise QueryError(
            "integrate",
            found=f"no batches in an object; the model was trained on batches of obs[{state.setup.batch_key!r}]",
            fix='add that column, and name it where the object is set up; or pass new_batches="fit" (all cells are one new batch) or "ignore"',
        )
    return np.full(data.n_obs, "(query)", dtype=object)


def _imputed_role(
    state: TrainedState, space: Integration, tokens: Tokens, modality: str, *, setups_of: Collection[Setup]
) -> str:
    """Return the role of a modality that is named by its role or by its name in the object.

    Raises
    ------
    ModalityError
        If there is none, or the object has nothing else.
    QueryError
        If it is not known how well other modalities tell it.
    """
    names = {m.name: m.role for setup in setups_of for m in setup.modalities if m.name is not None}
    roles = [r for r in state.vocabulary.roles if r in MEASURED]
    role = names.get(modality, modality) if isinstance(modality, str) else ""
    if role not in roles:
        raise ModalityError("impute", found=f"no modality {modality!r} in the model", fix=f"use one of {roles}")
    if not set(_roles_here(state, tokens)) - {role}:
        fix = f"give cells with another of {roles}"
        raise ModalityError("impute", found=f"cells with nothing but {role} to impute it from", fix=fix)
    if role not in space.told:
        raise QueryError(
            "impute",
            found=f"too few training cells with {role} beside another modality",
            fix="train on cells that have both: modalities that never meet tell nothing of one another",
        )
    return role


def _impute_result(
    state: TrainedState,
    tokens: Tokens,
    values: list[npt.NDArray[np.float32]],
    *,
    role: str,
    coverage: float,
    index: pd.Index,
) -> ImputeResult:
    block, modality_V = state.vocabulary.block(role), _modality_V(state)
    measured_G = tokens.measured_features[:, modality_V == MODALITIES.index(role)].any(axis=1)
    tables = [pd.DataFrame(array, index=index, columns=list(block.names)) for array in values]
    return ImputeResult(
        modality=role,
        scale=SCALES[block.transform],
        coverage=coverage,
        expected=tables[0],
        lower=tables[1],
        upper=tables[2],
        measured=pd.Series(measured_G[tokens.pattern], index=index),
    )


def _write_imputed(
    data: Data, result: ImputeResult, *, state: TrainedState, setup: Setup, key: str, entry: dict[str, Any]
) -> None:
    """Write all cells to ``obsm``, and the cells that have the modality to layers of it."""
    role = result.modality
    array_key = f"{key}_{role}"
    data.obsm[array_key] = result.expected.to_numpy()
    record(data, "impute", key=array_key, entry=entry | {"features": list(result.expected.columns)})
    cells = Cells.open(data, setups.query_setup(setup, data))
    if role not in cells.roles:
        return
    matched, offset = state.vocabulary.match(cells, role, min_overlap=0.0), state.vocabulary.offset(role)
    column_F = np.full(len(result.expected.columns), -1)
    column_F[matched[matched >= 0] - offset] = np.flatnonzero(matched >= 0)
    for name, table in (("", result.expected), ("_lower", result.lower), ("_upper", result.upper)):
        write_layer(
            data,
            f"{key}{name}",
            table.to_numpy(),
            modality=cells.setup.modality(role).name,
            rows=cells.rows(role),
            columns=column_F,
        )
