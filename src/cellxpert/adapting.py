"""What a model does with adapters: small changes to its weights, each with labels of its own, that are switched at will."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from mudata import MuData

from cellxpert.adapters import Adapter, AdapterSummary, read_adapter, require_name, write_adapter
from cellxpert.checkpoint import TrainedState, components_of, weights_hash
from cellxpert.config import AdapterConfig, ModelConfig
from cellxpert.data.splits import TrainedOn
from cellxpert.errors import AdapterError, CellxPertWarning, ConfigError
from cellxpert.files import folder_of, staged_folder
from cellxpert.nn.network import Network
from cellxpert.state import StateMethods
from cellxpert.training.adapters import (
    DEFAULT_TARGETS,
    HEAD,
    first_tensors,
    inject,
    merged,
    n_trainable,
    require_same_answers,
)
from cellxpert.training.start import make_network

if TYPE_CHECKING:
    from cellxpert.training.run import Learned

__all__ = ["AdapterMethods", "adapted_state"]

N_PROMPTS = 16
"""Learned tokens of an adapter that is not told their number."""


class AdapterMethods(StateMethods):
    """The methods of a model that adapt it to cells of one's own, while its weights stay."""

    _config: ModelConfig
    _seed: int
    _learned: Learned | None
    _merged: tuple[str, ...] = ()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the model's adapters."""
        return tuple(adapter.name for adapter in self._adapters)

    @property
    def active_adapter(self) -> str | None:
        """Name of the adapter in use; None for the model itself."""
        return self._active

    def add_adapter(
        self,
        name: str = "default",
        *,
        method: Literal["lora", "prompts"] = "lora",
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        n_prompts: int | None = None,
        seed: int | None = None,
    ) -> AdapterSummary:
        """Add an adapter, to be trained by :meth:`finetune` while the model's own weights stay as they are.

        It changes no result before it is trained, and is not in use before.

        Parameters
        ----------
        name
            Name of the adapter, of letters, digits, ``_``, ``-`` and ``.``.
        method
            ``"lora"``: updates of low rank to weights (Hu et al. 2021). ``"prompts"``: learned tokens that the encoder reads
            beside a cell's own (Lester et al. 2021); far fewer parameters, and less that they can change.
        rank
            Rank of the updates. An expert's is ``rank / experts_per_token``: the experts that read one token share it.
        alpha
            Updates are scaled by ``alpha / rank``; None: twice the rank.
        targets
            Weights that are updated, by their names or the ends of these; each has to fit at least one. None: the projections
            of all attention (``"qkv"``, ``"out"``, ``"query"``, ``"memory_kv"``, ``"value_kv"``) and the feed-forwards and experts
            (``"up"``, ``"down"``).
        n_prompts
            Number of learned tokens, 16 by default; for ``"prompts"`` only.
        seed
            Seed of the first weights; the model's by default.

        Returns
        -------
        How many parameters train, the label head's included.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        AdapterError
            If the name is taken or cannot be one, or a target names no weight.
        ConfigError
            If a setting has a value that it cannot have, or belongs to the other method.
        """
        base = self._base_state()
        self._require_free(name, "add_adapter")
        config = _config(method, rank=rank, alpha=alpha, targets=targets, n_prompts=n_prompts)
        adapter = Adapter(
            name=name,
            config=config,
            tensors=first_tensors(base.network, config, seed=self._seed if seed is None else int(seed)),
            labels=base.labels,
            setup=base.setup,
            history=base.history.iloc[:0],
            base_hash=weights_hash(base.network),
            vocabulary_hash=base.vocabulary.hash(),
            calibration=base.calibration,
            steered=base.steered,
        )
        self._adapters = (*self._adapters, adapter)
        return self._summary(adapter)

    def set_adapter(self, name: str | None) -> None:
        """Use an adapter, or the model itself.

        Parameters
        ----------
        name
            The adapter; None for the model itself.

        Raises
        ------
        AdapterError
            If there is no such adapter.
        """
        base = self._base_state()
        state = base if name is None else adapted_state(base, self._adapter(name))
        self._use(name, state, base=base)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter. If it is in use, the model itself is from then on.

        Parameters
        ----------
        name
            The adapter.

        Raises
        ------
        AdapterError
            If there is no such adapter.
        """
        gone = self._adapter(name)
        if self._active == name:
            self.set_adapter(None)
        self._adapters = tuple(adapter for adapter in self._adapters if adapter is not gone)

    def merge_adapter(self, name: str | None = None) -> None:
        """Make the adapted weights, and the adapter's labels, the model's own. The adapter is then gone.

        Parameters
        ----------
        name
            The adapter; None: the one in use, or the only one.

        Raises
        ------
        AdapterError
            If there is no such adapter, or there are others, which would be left without the weights that they belong to.

        Warns
        -----
        CellxPertWarning
            If the model names tissues: their head was fitted to the vectors before the merge.
        """
        base, adapter = self._base_state(), self._adapter_or_only(name, "merge_adapter")
        if others := [other for other in self.adapters if other != adapter.name]:
            fix = f"save_adapter() what you want to keep, then remove_adapter({others[0]!r})"
            raise AdapterError("merge_adapter", found=f"other adapters of the same weights: {others[:5]}", fix=fix)
        network = _with_head(base, adapter)
        require_same_answers(inject(network, adapter.config, adapter.tensors), network, adapter.config)
        state = self._trained() if self._active == adapter.name else adapted_state(base, adapter)
        if base.tissues is not None:
            fix = "finetune() on cells with tissues fits it anew"
            text = f"merge_adapter: tissues are named by a head that was fitted to the vectors before the merge; {fix}"
            warnings.warn(text, CellxPertWarning, stacklevel=2)
        self._adapters, self._merged = (), (*self._merged, adapter.name)
        self._config = state.config
        self._use(None, state, base=state)

    def save_adapter(
        self, dir_path: str | os.PathLike[str], name: str | None = None, *, overwrite: bool = False
    ) -> None:
        """Write an adapter to a folder of JSON and safetensors. It is loaded on the same model, which is not in it.

        Parameters
        ----------
        dir_path
            Folder to make. It appears whole or not at all.
        name
            The adapter; None: the one in use, or the only one.
        overwrite
            Replace a saved adapter that is there.

        Raises
        ------
        AdapterError
            If there is no such adapter.
        OutputExistsError
            If the folder is there.
        """
        adapter = self._adapter_or_only(name, "save_adapter")
        target = folder_of(dir_path, "save_adapter")
        with staged_folder(target, overwrite=overwrite, marker="adapter.safetensors", what="saved adapter") as folder:
            write_adapter(adapter, folder, components=components_of(self._base_state()))

    def load_adapter(self, dir_path: str | os.PathLike[str], *, name: str | None = None) -> AdapterSummary:
        """Read an adapter that :meth:`save_adapter` wrote, and use it.

        Parameters
        ----------
        dir_path
            The folder.
        name
            A name in place of the adapter's own.

        Returns
        -------
        How many parameters train where it is fine-tuned further.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        AdapterError
            If the adapter was trained on other weights or features, or its name is taken.
        CheckpointError
            If the folder is missing, damaged, or of a newer format.
        """
        base = self._base_state()
        adapter = read_adapter(folder_of(dir_path, "load_adapter"), components=components_of(base))
        if name is not None:
            adapter = replace(adapter, name=name)
        self._require_free(adapter.name, "load_adapter")
        _require_base(adapter, base, str(dir_path))
        state = adapted_state(base, adapter)
        self._adapters = (*self._adapters, adapter)
        self._use(adapter.name, state, base=base)
        return self._summary(adapter)

    # --- inside ---

    def _adapter(self, name: str) -> Adapter:
        """Find an adapter."""
        for adapter in self._adapters:
            if adapter.name == name:
                return adapter
        found, fix = f"no adapter {name!r}; there are {list(self.adapters)}", "call model.add_adapter() first"
        if name in self._merged:
            found, fix = f"{name!r} was merged: its weights are the model's own", "nothing is left to do"
        elif near := difflib.get_close_matches(str(name), self.adapters, n=1):
            fix = f"use {near[0]!r}"
        elif self._adapters:
            fix = "use one of these, or call model.add_adapter() first"
        raise AdapterError("adapter", found=found, fix=fix)

    def _adapter_or_only(self, name: str | None, call: str) -> Adapter:
        """Find an adapter, by default the one in use or the only one."""
        name = self._active if name is None else name
        if name is not None:
            return self._adapter(name)
        if len(self._adapters) == 1:
            return self._adapters[0]
        if self._merged and not self._adapters:
            return self._adapter(self._merged[-1])
        found = f"no name, and the adapters {list(self.adapters)}"
        raise AdapterError(call, found=found, fix="name one" if self._adapters else "call model.add_adapter() first")

    def _require_free(self, name: object, call: str) -> None:
        if require_name(name) in self.adapters:
            fix = f"choose another name, or call model.remove_adapter({name!r})"
            raise AdapterError(f"{call}(name=)", found=f"there is an adapter {name!r} already", fix=fix)

    def _require_no_adapters(self, call: str) -> None:
        """Refuse what would change the weights that adapters belong to."""
        if self._adapters:
            raise AdapterError(
                call,
                found=f"it would change the weights that adapters belong to: {list(self.adapters)[:5]}",
                fix=f"call model.finetune(adapter={self.adapters[0]!r}), or merge_adapter() or remove_adapter() first",
            )

    def _use(self, name: str | None, state: TrainedState, *, base: TrainedState) -> None:
        self._active, self._state = name, state
        self._base = None if name is None else base
        state.network.to(self._device)

    def _settle(self, learned: Learned) -> None:
        """Make what was learned the model's state."""
        self._learned = learned
        self._state = TrainedState(
            config=self._config,
            setup=self._setup,
            vocabulary=learned.vocabulary,
            labels=learned.labels,
            network=learned.network,
            history=learned.history,
            seed=self._seed,
            perturbations=learned.perturbations,
            calibration=learned.calibration,
            tissues=learned.tissues,
            batches=learned.batches,
            integration=learned.integration,
            steered=learned.steered,
            trained_on=TrainedOn.of(learned.split),
        )
        self._state.network.to(self._device)

    def _settle_adapter(self, adapter: Adapter, learned: Learned) -> None:
        """Keep what an adapter learned, and use it."""
        assert learned.tensors is not None
        base = self._base_state()
        tuned = replace(
            adapter,
            tensors=learned.tensors,
            labels=learned.labels,
            setup=self._setup,
            history=learned.history,
            calibration=learned.calibration,
            steered=learned.steered,
        )
        self._adapters = tuple(tuned if other is adapter else other for other in self._adapters)
        self._learned = learned
        self._use(tuned.name, _state_of(base, tuned, learned.network), base=base)

    def _take_adapters(self, adapters: tuple[Adapter, ...], active: str | None) -> None:
        """Take over what a saved model had."""
        self._adapters = adapters
        self.set_adapter(active)

    def _trained_cells(self, data: AnnData | MuData) -> npt.NDArray[np.bool_] | None:
        """Which cells of the object it was trained on, an adapter in use too; None where that is not known."""
        if self._learned is not None and data is self._data:
            return TrainedOn.of(self._learned.split).known(data.obs_names)
        trained_on = self._trained().trained_on
        return None if trained_on is None else trained_on.known(data.obs_names)

    def _summary(self, adapter: Adapter) -> AdapterSummary:
        network = _with_head(self._base_state(), adapter)
        own = sum(x.numel() for name, x in adapter.tensors.items() if not name.startswith(HEAD))
        return AdapterSummary(adapter.name, n_trainable(network, adapter.tensors), network.n_parameters() + own)


def adapted_state(base: TrainedState, adapter: Adapter) -> TrainedState:
    """Return the model that an adapter makes of its base: a plain network, with the adapter's labels and setup."""
    return _state_of(base, adapter, merged(_with_head(base, adapter), adapter.config, adapter.tensors))


def _state_of(base: TrainedState, adapter: Adapter, network: Network) -> TrainedState:
    config = base.config
    if adapter.config.method == "prompts":
        config = config.replace(n_prompts=adapter.config.n_prompts)
    return replace(
        base,
        config=config,
        setup=adapter.setup,
        labels=adapter.labels,
        network=network,
        history=adapter.history,
        calibration=adapter.calibration,
        steered=adapter.steered,
    )


def _with_head(base: TrainedState, adapter: Adapter) -> Network:
    """Return the base's network, or a copy of it with a label head of the shape that the adapter's has."""
    if len(adapter.labels) == base.network.n_labels:
        return base.network
    network = make_network(
        base.config,
        base.vocabulary,
        labels=adapter.labels,
        perturbations=base.perturbations,
        tissues=base.tissues,
        batches=base.batches,
        seed=base.seed,
    )
    weights = {name: x for name, x in base.network.state_dict().items() if not name.startswith(HEAD)}
    network.load_state_dict(weights, strict=False)  # all but the head
    return network.eval()


def _require_base(adapter: Adapter, base: TrainedState, where: str) -> None:
    """Refuse an adapter of other weights or features."""
    fix = (
        "load the model that the adapter was trained on, as it was then (its config.json has that weights_hash), "
        "and call load_adapter() on it"
    )
    if adapter.vocabulary_hash != base.vocabulary.hash():
        found = f"an adapter of a model with other features (vocabulary {adapter.vocabulary_hash[:12]})"
        raise AdapterError(where, found=found, fix=fix)
    if adapter.base_hash != (here := weights_hash(base.network)):
        found = f"an adapter of weights {adapter.base_hash[:12]}; this model has {here[:12]}"
        raise AdapterError(where, found=found, fix=fix)


def _config(
    method: Literal["lora", "prompts"],
    *,
    rank: int,
    alpha: float | None,
    targets: Sequence[str] | None,
    n_prompts: int | None,
) -> AdapterConfig:
    if method == "prompts":
        if alpha is not None or targets is not None:
            raise ConfigError("add_adapter(method='prompts')", found="alpha or targets", fix="give n_prompts only")
        return AdapterConfig(method=method, targets=(), n_prompts=N_PROMPTS if n_prompts is None else n_prompts)
    if n_prompts is not None:
        raise ConfigError(f"add_adapter(method={method!r})", found="n_prompts", fix="pass method='prompts'")
    if isinstance(targets, str):
        raise ConfigError("add_adapter(targets=)", found=repr(targets), fix=f"pass a list: [{targets!r}]")
    return AdapterConfig(
        method=method,
        rank=rank,
        alpha=2 * rank if alpha is None else alpha,
        targets=DEFAULT_TARGETS if targets is None else tuple(targets),
    )
