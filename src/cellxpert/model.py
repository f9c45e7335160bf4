"""The model class: AnnData or MuData in, results written where scanpy and squidpy look for them. It translates only."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import keys
from cellxpert.checkpoint import TrainedState, load_state, save_state, weights_hash
from cellxpert.config import ModelConfig
from cellxpert.config import preset as named_preset
from cellxpert.data import setup as setups
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.tokens import Tokens, tokenize
from cellxpert.data.write import record, require_writable, write_obs, write_obsm
from cellxpert.errors import CellxPertWarning, ConfigError, NoLabelsError, NotTrainedError
from cellxpert.tasks.annotate import Annotation, annotate
from cellxpert.tasks.embed import embed

if TYPE_CHECKING:
    from cellxpert.training.run import Learned

__all__ = ["CellxPert"]

Data = AnnData | MuData


class CellxPert:
    """One transformer over single-cell multi-omics.

    Parameters
    ----------
    mdata
        MuData or AnnData that :meth:`setup_mudata` or :meth:`setup_anndata` was called on. It is not copied and not changed.
    preset
        Size of the network and settings of its training: ``"nano"``, ``"mini"``, ``"base"`` or ``"paper"``.
    config
        Settings in place of a preset's, e.g. ``cx.config.preset("mini").replace(n_genes=500)``.
    seed
        Seed of the weights, the split and the training; None is 0.

    Raises
    ------
    NotSetUpError
        If no setup is recorded in the object.

    Examples
    --------
    >>> import cellxpert as cx
    >>> mdata = cx.datasets.pbmc68k()
    >>> cx.CellxPert.setup_mudata(mdata, rna="rna", labels_key="bulk_labels")
    >>> model = cx.CellxPert(mdata, preset="nano")
    >>> model.train(max_epochs=20)  # doctest: +SKIP
    >>> model.annotate()  # doctest: +SKIP
    """

    def __init__(
        self, mdata: Data, *, preset: str = "mini", config: ModelConfig | None = None, seed: int | None = None
    ) -> None:
        self._setup = setups.read_setup(mdata)
        Cells.open(mdata, self._setup)
        self._data: Data | None = mdata
        self._config = named_preset(preset) if config is None else config
        self._seed = 0 if seed is None else int(seed)
        self._state: TrainedState | None = None
        self._learned: Learned | None = None
        self._device = "cpu"

    # --- setup ---

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        *,
        rna: str | None = None,
        atac: str | None = None,
        protein: str | None = None,
        layers: Mapping[str, str | None] | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str = "Unknown",
        counts: str | Mapping[str, str] = "auto",
    ) -> None:
        """Say which modality of a MuData plays which role, check all of its values, and record that.

        Parameters
        ----------
        mdata
            The object, not a view. Any cell may lack any modality.
        rna, atac, protein
            Names in ``mdata.mod`` of the modalities that play these roles; at least one.
        layers
            Per role, the layer that holds its counts, e.g. ``{"rna": "counts"}``; ``X`` by default.
        batch_key, labels_key
            Columns of ``obs`` with batches and labels.
        unlabeled_category
            Label of cells whose type is not known.
        counts
            ``"auto"`` requires raw counts; ``"fractional"`` allows corrected ones, ``"intensity"`` imaging intensities.

        Raises
        ------
        CellxPertError
            Its kind and message say what is wrong, where, and which line mends it.

        Notes
        -----
        **Writes** ``mdata.uns["cellxpert_info"]["setup"]``, nothing else.
        """
        setups.setup_mudata(
            mdata,
            rna=rna,
            atac=atac,
            protein=protein,
            layers=layers,
            batch_key=batch_key,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            counts=counts,
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        modality: str = "rna",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str = "Unknown",
        counts: str = "auto",
    ) -> None:
        """Say what the matrix of one AnnData holds, check all of its values, and record that.

        Parameters
        ----------
        adata
            The object, not a view.
        modality
            Role of its matrix: ``"rna"``, ``"atac"`` or ``"protein"``.
        layer
            Layer that holds the counts; None for ``X``.
        batch_key, labels_key, unlabeled_category, counts
            As in :meth:`setup_mudata`.

        Raises
        ------
        CellxPertError
            As in :meth:`setup_mudata`.

        Notes
        -----
        **Writes** ``adata.uns["cellxpert_info"]["setup"]``, nothing else.
        """
        setups.setup_anndata(
            adata,
            modality=modality,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            counts=counts,
        )

    def view_setup(self) -> str:
        """Return what the model reads: roles, layers, features, labels, and the cells of each modality in each batch."""
        if self._data is None:
            return f"no object attached; the setup was\n{self._setup.to_dict()}"
        return setups.summary(self._setup, self._data)

    # --- training ---

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        precision: str | None = None,
        batch_size: int | None = None,
        train_size: float = 0.9,
        split_key: str | None = None,
        early_stopping: bool = False,
        seed: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        progress_bar: bool = True,
    ) -> None:
        """Choose features and bins on the training cells, and train. Called again, it goes on with the same ones.

        The label metrics of :attr:`history` are those of the label head while training, before it is fitted to its optimum
        (``label_gradient=0``).

        Parameters
        ----------
        max_epochs
            Passes over the training cells; the preset's by default.
        accelerator
            ``"auto"``: CUDA where there is one, else the CPU. ``"mps"`` on request only.
        devices
            ``"auto"``: one device, even where more are visible.
        precision
            Lightning's name; None: float32 on the CPU, bfloat16 mixed on CUDA.
        batch_size
            Cells per step; the preset's by default.
        train_size
            Share of cells to train on; the others (stratified by label) measure the validation loss. 1 trains on all.
        split_key
            Column of ``obs`` that says ``"train"``, ``"validation"`` or ``"test"``, or that names groups (donors),
            of which ``train_size`` are trained on, whole groups on one side. Test cells are not used at all.
            A label that no training cell has is not learned, and its cells are in no validation metric of labels.
        early_stopping
            Stop when the validation loss has not improved for ``patience`` epochs, and keep the best weights.
        seed
            Seed of this run; the model's by default.
        resume
            Folder for the state of the run: written after every epoch, and continued from if it holds one.
            A resumed run equals an uninterrupted one.
        progress_bar
            Show progress.

        Raises
        ------
        ConfigError
            If the model was loaded: a saved model keeps no split, so that training could not go on with the same cells.
        SplitError
            If the split leaves no training cell, or its column does not fit: values such as ``"val"`` and ``"test"``
            without ``"train"`` are not taken for donors.
        ResumeError
            If the folder holds a run with other settings, features, labels or cells.
        DeviceError
            If the accelerator is not there or its memory is not enough.
        TrainingDivergedError
            If the loss is not finite; the weights of the last whole epoch are kept.

        Warns
        -----
        CellxPertWarning
            If labels occur in validation or test cells only; with their names and numbers of cells.
        """
        from cellxpert.training.run import TrainArguments, train_network  # lightning takes seconds to import

        if self._state is not None and self._learned is None:
            raise ConfigError(
                "train()", found="a model that was loaded", fix="make a new one: CellxPert(mdata), then train() it"
            )
        setups.validate(self._own_data(), self._setup)  # the object may have changed since its setup
        cells = Cells.open(self._own_data(), self._setup)
        arguments = TrainArguments(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            batch_size=batch_size,
            train_size=train_size,
            split_key=split_key,
            early_stopping=early_stopping,
            seed=self._seed if seed is None else int(seed),
            resume=resume,
            progress_bar=progress_bar,
        )
        self._learned = train_network(cells, self._config, arguments, previous=self._learned, seed=self._seed)
        self._state = TrainedState(
            config=self._config,
            setup=self._setup,
            vocabulary=self._learned.vocabulary,
            labels=self._learned.labels,
            network=self._learned.network,
            history=self._learned.history,
            seed=self._seed,
        )
        self._state.network.to(self._device)

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained."""
        return self._state is not None

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metrics of training, one table by epoch for each; kept by :meth:`save`."""
        table = self._trained().history
        return {name: table[[name]].dropna() for name in table.columns}

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the model knows."""
        return self._trained().labels

    @property
    def device(self) -> str:
        """Where results are computed."""
        return self._device

    def to_device(self, device: str) -> None:
        """Compute results elsewhere.

        Parameters
        ----------
        device
            ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

        Raises
        ------
        DeviceError
            If the device is not there.
        """
        from cellxpert.training.fit import resolve_accelerator

        resolve_accelerator(device.split(":")[0])
        self._device = device
        if self._state is not None:
            self._state.network.to(device)

    # --- results ---

    def get_latent(
        self,
        mdata: Data | None = None,
        *,
        key_added: str = keys.LATENT,
        inplace: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray | None:
        """Compute cell vectors.

        Parameters
        ----------
        mdata
            MuData or AnnData to read; the model's own by default. Features are found by name, whatever their order; features and
            modalities that it lacks are absent, not zero. A view needs ``inplace=False``.
        key_added
            Entry of ``obsm``.
        inplace
            Write; False returns the array and writes nothing.
        batch_size
            Most cells per pass; None: as many as fit 4,096 tokens. It does not change the vectors.

        Returns
        -------
        With ``inplace=False`` a float32 array of shape (n_cells, width), in the order of ``obs_names``.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        FeatureOverlapError
            If less than 30 % of the features, or of their counts, are found.

        Notes
        -----
        **Writes** ``obsm[key_added]`` (float32) of the object and of each of its modalities, and a record in
        ``uns["cellxpert_info"]["get_latent"]``.
        """
        started = time.perf_counter()
        data, tokens = self._read(mdata, "get_latent", inplace=inplace)
        vectors, _ = self._embed(tokens, batch_size)
        if not inplace:
            return vectors
        write_obsm(data, key_added, vectors)
        record(data, "get_latent", key=key_added, entry=self._record(tokens, started))
        return None

    def get_latent_representation(self, mdata: Data | None = None, *, batch_size: int | None = None) -> np.ndarray:
        """Return cell vectors, under scvi-tools' name for it: :meth:`get_latent` with ``inplace=False``.

        Parameters
        ----------
        mdata, batch_size
            As in :meth:`get_latent`.
        """
        vectors = self.get_latent(mdata, inplace=False, batch_size=batch_size)
        assert vectors is not None
        return vectors

    def annotate(
        self,
        mdata: Data | None = None,
        *,
        key_added: str = keys.LABEL,
        inplace: bool = True,
        unknown: bool = True,
        return_proba: bool = False,
        batch_size: int | None = None,
    ) -> pd.DataFrame | None:
        """Name the type of every cell. The object needs no label column.

        Parameters
        ----------
        mdata
            MuData or AnnData to read; the model's own by default. See :meth:`get_latent`.
        key_added
            Column of ``obs``; the other names follow from it.
        inplace
            Write; False returns a table and writes nothing.
        unknown
            Give cells in which nothing of the vocabulary was seen the unlabeled category, with confidence 0, in place
            of a label.
        return_proba
            Return the probabilities of all labels.
        batch_size
            As in :meth:`get_latent`.

        Returns
        -------
        With ``inplace=False`` a table with the columns ``label`` and ``confidence``; with ``return_proba`` a table with
        one column per label. The index is ``obs_names``.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        NoLabelsError
            If it was trained without labels, or none of its training cells had one.

        Notes
        -----
        **Writes** ``obs[key_added]`` (categorical, no unused categories), ``obs["cellxpert_confidence"]`` (float32, the
        largest probability), ``obsm["cellxpert_proba"]`` (float32 of shape (n_cells, n_labels)), and a record in
        ``uns["cellxpert_info"]["annotate"]`` whose ``classes`` name its columns.
        """
        started = time.perf_counter()
        state = self._trained()
        if not state.labels:
            key, nothing = state.setup.labels_key, state.setup.unlabeled_category
            found, fix = "the model was trained without labels", "set up a labels_key, and train"
            if key is not None:
                found = f"every cell that the model was trained on is {nothing!r} in obs[{key!r}]"
                fix = "label some of these cells, set up the object again, and train"
            raise NoLabelsError("annotate", found=found, fix=fix)
        data, tokens = self._read(mdata, "annotate", inplace=inplace)
        result = annotate(
            self._embed(tokens, batch_size)[1],
            classes=state.labels,
            unknown=(tokens.lengths == 0) & unknown,
            unlabeled_category=self._setup.unlabeled_category,
        )
        if inplace:
            self._write_annotation(data, result, key=key_added)
            entry = self._record(tokens, started) | {"classes": list(result.classes), "unknown": unknown}
            record(data, "annotate", key=key_added, entry=entry)
        if return_proba:
            return pd.DataFrame(result.probabilities, index=data.obs_names, columns=list(result.classes))
        if inplace:
            return None
        return pd.DataFrame({"label": result.labels, "confidence": result.confidence}, index=data.obs_names)

    @staticmethod
    def _write_annotation(data: Data, result: Annotation, *, key: str) -> None:
        labels = pd.Series(pd.Categorical(result.labels.astype(str)), index=data.obs_names)
        write_obs(data, key, labels)
        write_obs(data, keys.confidence_key(key), pd.Series(result.confidence, index=data.obs_names))
        write_obsm(data, keys.proba_key(key), result.probabilities)

    # --- files ---

    def save(self, dir_path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder of JSON and safetensors; the data are not saved.

        Parameters
        ----------
        dir_path
            Folder to make. It appears whole or not at all.
        overwrite
            Replace a saved model that is there.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        OutputExistsError
            If the folder is there.
        """
        save_state(self._trained(), dir_path, overwrite=overwrite)

    @classmethod
    def load(cls, dir_path: str | os.PathLike[str], mdata: Data | None = None) -> CellxPert:
        """Read a model that :meth:`save` wrote.

        Parameters
        ----------
        dir_path
            The folder.
        mdata
            MuData or AnnData for methods that are called without one; its features are found by name.

        Raises
        ------
        CheckpointError
            If the folder is missing, damaged, or of a newer format.
        """
        state = load_state(dir_path)
        model = cls.__new__(cls)
        model._data, model._config, model._seed = mdata, state.config, state.seed
        model._setup = state.setup if mdata is None else setups.query_setup(state.setup, mdata)
        model._state, model._learned, model._device = state, None, "cpu"
        return model

    def __repr__(self) -> str:
        network = self._config.network
        lines = [
            f"CellxPert: width {network.width}, {network.encoder_layers} encoder and {network.decoder_layers} decoder"
            f" layers, {network.n_experts} experts",
            f"modalities: {', '.join(self._setup.roles)}",
        ]
        if self._state is None:
            return "\n".join([*lines, "not trained: call train()"])
        state = self._state
        lines.append(f"trained {len(state.history)} epochs: {state.network.n_parameters():,} parameters")
        lines.append(f"features: {state.vocabulary.n_features}; labels: {len(state.labels)}")
        return "\n".join(lines)

    # --- inside ---

    def _trained(self) -> TrainedState:
        if self._state is None:
            raise NotTrainedError("CellxPert", found="a model that was not trained", fix="call model.train() first")
        return self._state

    def _own_data(self) -> Data:
        if self._data is None:
            raise NotTrainedError("CellxPert", found="no object attached", fix="call CellxPert.load(dir_path, mdata)")
        return self._data

    def _read(self, data: Data | None, call: str, *, inplace: bool) -> tuple[Data, Tokens]:
        """Check an object and turn its cells into tokens."""
        state = self._trained()
        own = data is None or data is self._data
        data = self._own_data() if data is None else data
        setup = replace(setups.query_setup(self._setup, data), batch_key=None, labels_key=None)
        if inplace:
            require_writable(data, f"{call}(inplace=True)")
        notes = setups.validate(data, setup)
        for note in () if own else notes:
            warnings.warn(note, CellxPertWarning, stacklevel=3)
        tokens = tokenize(Cells.open(data, setup), state.vocabulary, state.config.tokens)
        if n_empty := int((tokens.lengths == 0).sum()):
            text = f"{n_empty} of {tokens.n_cells} cells have no counts in the model's features; their results mean nothing"
            warnings.warn(text, CellxPertWarning, stacklevel=3)
        return data, tokens

    def _embed(self, tokens: Tokens, batch_size: int | None) -> tuple[np.ndarray, np.ndarray]:
        state = self._trained()
        collator = Collator(
            tokens,
            n_features=state.vocabulary.n_features,
            n_bins=state.vocabulary.n_bins,
            zeros=state.config.tokens.zeros,
            shuffle_positions=state.config.network.position,
            seed=state.seed,
        )
        return embed(state.network, collator, batch_size=batch_size, device=self._device)

    def _record(self, tokens: Tokens, started: float) -> dict[str, Any]:
        """Plain values that say how a result came about."""
        from importlib.metadata import version

        state = self._trained()
        return {
            "version": version("cellxpert"),
            "weights_hash": weights_hash(state.network),
            "vocabulary_hash": state.vocabulary.hash(),
            "seed": state.seed,
            "feature_overlap": float(tokens.measured_features.any(axis=0).mean()),
            "device": self._device,
            "seconds": round(time.perf_counter() - started, 3),
        }
