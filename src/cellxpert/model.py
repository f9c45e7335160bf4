"""The model class: AnnData or MuData in, results written where scanpy and squidpy look for them. It translates only."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import exchange, keys, labelling
from cellxpert.base import SetupMethods
from cellxpert.checkpoint import TrainedState, components_of, load_adapters, load_state, weights_hash
from cellxpert.config import ModelConfig, SteeringConfig
from cellxpert.config import preset as named_preset
from cellxpert.data import setup as setups
from cellxpert.data.cells import Cells
from cellxpert.data.tables import table_of
from cellxpert.data.tokens import Tokens
from cellxpert.data.write import record, write_obsm
from cellxpert.errors import CellxPertWarning, ConfigError
from cellxpert.integrating import IntegrationMethods
from cellxpert.ontology import CellOntology
from cellxpert.tasks.annotate import LabelOptions, annotate
from cellxpert.tasks.checks import make_screen
from cellxpert.tasks.embed import embed
from cellxpert.tasks.perturb import screen
from cellxpert.tasks.propagate import with_surroundings
from cellxpert.tasks.response import PerturbResult
from cellxpert.tasks.screens import Asked
from cellxpert.tasks.usage import expert_usage

if TYPE_CHECKING:
    from cellxpert.training.run import Learned

__all__ = ["CellxPert"]

Data = AnnData | MuData
"""What results are written into; a SpatialData stands for its table."""


class CellxPert(SetupMethods, IntegrationMethods):
    """One transformer over single-cell multi-omics.

    Parameters
    ----------
    mdata
        MuData, AnnData or SpatialData that :meth:`setup_mudata`, :meth:`setup_anndata` or :meth:`setup_spatialdata` was called on.
        It is not copied and not changed. Of a SpatialData the table that was set up is meant, here and in all methods.
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
        mdata = table_of(mdata)
        self._setup = setups.read_setup(mdata)
        Cells.open(mdata, self._setup)
        self._data: Data | None = mdata
        self._config = named_preset(preset) if config is None else config
        self._seed = 0 if seed is None else int(seed)
        self._state: TrainedState | None = None
        self._learned: Learned | None = None
        self._device = "cpu"

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
            of which ``train_size`` are trained on, whole groups on one side. Test cells are not used at all, save where niches
            are read: there they are neighbours of training cells, unless the column names whole sections.
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
            If labels (with their numbers of cells) or batches occur in validation or test cells only, or labels were learned of too
            few cells to calibrate.
        """
        from cellxpert.training.run import TrainArguments, train_network  # lightning takes seconds to import

        self._require_no_adapters("train()")
        if self._state is not None and (self._learned is None or self._learned.network is not self._state.network):
            found = "a model that was loaded, or one without the adapter that it was fine-tuned with"
            raise ConfigError("train()", found=found, fix="make a new one: CellxPert(mdata), then train() it")
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
        self._settle(train_network(cells, self._config, arguments, previous=self._learned, seed=self._seed))

    def finetune(
        self,
        mdata: Data | None = None,
        *,
        adapter: str | None = None,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        precision: str | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        label_gradient: float | None = None,
        train_size: float = 0.9,
        split_key: str | None = None,
        early_stopping: bool = False,
        seed: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        progress_bar: bool = True,
    ) -> None:
        """Go on training a trained or loaded model, or an adapter of it, on cells that were set up on their own.

        Features and bins stay. Perturbed cells (``perturbation_key`` of the setup) teach what perturbing does; labels other than
        those that the model, or the adapter, knows make the label head anew. The model then belongs to these cells.

        Parameters
        ----------
        mdata
            MuData or AnnData that a setup was recorded in; the model's own by default.
        adapter
            Name of the adapter that trains, with a label head of its own, while all other weights stay as they are
            (:meth:`add_adapter`); it is in use afterwards. None: all weights train, of a model without adapters.
        learning_rate
            Peak of the learning rate; by default the preset's for an adapter, else a third of it.
        label_gradient
            Share of the label objective's gradient that reaches what is below the cell vector; as the model was trained by default.
            Above 0 labels steer what is learned. The label head is fitted to its optimum afterwards in any case.
        max_epochs, accelerator, devices, precision, batch_size, train_size, split_key, early_stopping, seed, resume, progress_bar
            As in :meth:`train`.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        AdapterError
            If there is no such adapter; if it is to learn of perturbed genes that the model has not seen; or, without ``adapter``,
            if there are any, which would be left without the weights that they belong to.
        NotSetUpError
            If no setup is recorded in the object.
        FeatureOverlapError
            If less than 30 % of the features, or of their counts, are found.
        SplitError, ResumeError, DeviceError, TrainingDivergedError
            As in :meth:`train`.

        Warns
        -----
        CellxPertWarning
            As in :meth:`train`.
        """
        from cellxpert.training.finetune import finetune_network
        from cellxpert.training.run import TrainArguments

        state, own = self._base_state(), None
        if adapter is None:
            self._require_no_adapters("finetune()")
        else:
            own = self._adapter(adapter)
        data = self._own_data() if mdata is None else table_of(mdata)
        setup = setups.read_setup(data).with_terms_of(state.setup)
        setups.validate(data, setup)
        rate = state.config.training.learning_rate / (3 if own is None else 1)
        config = state.config.replace(learning_rate=rate if learning_rate is None else learning_rate)
        if label_gradient is not None:
            config = config.replace(label_gradient=label_gradient)
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
        learned = finetune_network(
            Cells.open(data, setup),
            config,
            arguments,
            network=state.network,
            vocabulary=state.vocabulary,
            labels=state.labels if own is None else own.labels,
            perturbations=state.perturbations,
            seed=self._seed,
            adapter=None if own is None else own.config,
            tensors=None if own is None else own.tensors,
            components=components_of(state),
            tissues=state.tissues,
            batches=state.batches,
            integration=state.integration,
            calibration=state.calibration if own is None else own.calibration,
            steered=state.steered if own is None else own.steered,
        )
        self._data, self._setup = data, setup
        if own is None:
            self._settle(learned)
        else:
            self._settle_adapter(own, learned)

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
        vectors, *_ = self._embed(self._trained(), tokens, batch_size)
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

    def get_expert_usage(
        self,
        mdata: Data | None = None,
        *,
        key_added: str = keys.EXPERTS,
        inplace: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray | None:
        """Compute how much each expert reads of a cell: its share of the gates of the cell's tokens, a mean over encoder layers.

        Expert e of one layer has nothing to do with expert e of another: the columns tell cells apart, not functions.

        Parameters
        ----------
        mdata, inplace, batch_size
            As in :meth:`get_latent`.
        key_added
            Entry of ``obsm``.

        Returns
        -------
        With ``inplace=False`` a float32 array of shape (n_cells, n_experts) whose rows sum to 1, in the order of ``obs_names``.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        ConfigError
            If its encoder has no experts.

        Notes
        -----
        **Writes** ``obsm[key_added]`` (float32) of the object and of each of its modalities, and a record in
        ``uns["cellxpert_info"]["get_expert_usage"]``.
        """
        started = time.perf_counter()
        data, tokens = self._read(mdata, "get_expert_usage", inplace=inplace)
        state = self._trained()
        usage = expert_usage(state.network, exchange.collate(state, tokens), batch_size=batch_size, device=self._device)
        if not inplace:
            return usage
        write_obsm(data, key_added, usage)
        record(data, "get_expert_usage", key=key_added, entry=self._record(tokens, started))
        return None

    def annotate(
        self,
        mdata: Data | None = None,
        *,
        key_added: str = keys.LABEL,
        inplace: bool = True,
        unknown: bool = True,
        coverage: float = 0.9,
        back_off: float | None = None,
        set_coverage: float | None = None,
        clusters_key: str | None = None,
        calibration_key: str | None = None,
        return_proba: bool = False,
        batch_size: int | None = None,
    ) -> pd.DataFrame | None:
        """Name the type of every cell, or say why not. The object needs no label column.

        Probabilities are calibrated on training cells that the label head had not seen: of cells like these, about 80 % of the
        labels with a confidence of 0.8 are right. Cells of another donor, tissue or protocol need not be like these; where some
        of them have been labelled by hand, ``calibration_key`` learns from those.

        Parameters
        ----------
        mdata
            MuData or AnnData to read; the model's own by default. See :meth:`get_latent`.
        key_added
            Column of ``obs``; the other names follow from it.
        inplace
            Write; False returns a table and writes nothing.
        unknown
            Give cells the unlabeled category, with confidence 0, where a label is not to be trusted: ``"low_confidence"``,
            ``"out_of_distribution"`` (far from the cells of every label) or ``"few_genes"``. False labels every cell.
        coverage
            Share of cells like the training cells that keep a label: half of the others may be refused for low confidence, half
            as out of distribution. 1 refuses only cells of which nothing is seen.
        back_off
            A label that is less probable than this gives way to the finest type above it, in the Cell Ontology, that is not
            (reason ``"coarser"``; ``"low_confidence"`` where there is none). Needs ``label_terms`` of the setup.
        set_coverage
            Share of cells like the training cells whose true label shall be in their set of labels (conformal prediction).
        clusters_key
            Column of ``obs`` with clusters whose cells get one label: by their mean probabilities and median distance.
        calibration_key
            Column of ``obs`` with the labels of 50 cells or more of this object, drawn at random, and missing values for the others.
            The label head is moved towards them for this call, and what is promised of cells like the training cells (confidence,
            ``coverage``, ``set_coverage``, ``cellxpert_ood``) then holds for cells like these. Names are those of the model's labels
            or, where these have ontology terms, what :func:`cellxpert.ontology.match_labels` finds a term for: a coarser name means
            all labels that are kinds of it. From cells of types that were not learned it is learned how probable such a type is, of each
            cell, and labels have only the rest; leave none out. The model stays what it is; cells that it was trained on do not count.
        return_proba
            Return the probabilities of all labels.
        batch_size
            As in :meth:`get_latent`.

        Returns
        -------
        With ``inplace=False`` a table with the columns ``label``, ``confidence``, ``reason``, ``ood``, ``uncertainty`` and, where they are known,
        ``ontology_term_id``, ``set_size``, ``tissue`` and ``tissue_confidence``; with ``return_proba`` a table with one column per label. The index is ``obs_names``.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        NoLabelsError
            If it was trained without labels, or none of its training cells had one.
        ConfigError
            If a share is none, labels have no terms to back off to, sets or ``calibration_key`` are asked of a model that could not be
            calibrated, fewer than 50 labelled cells are there to calibrate on or a model labelled them, or a column of ``obs`` that would be written is there
            and is no result of an earlier call with this key.
        ObsKeyError
            If there is no column ``clusters_key`` or ``calibration_key``.
        OntologyMissingError
            With ``back_off``, and with ``set_coverage`` or ``calibration_key`` where labels have terms, if the package with the ontology
            is not installed.

        Warns
        -----
        CellxPertWarning
            If cells of ``calibration_key`` are of types that were not learned: no cell is given their names.

        Notes
        -----
        **Writes** to ``obs``: ``key_added`` (categorical, no unused categories), ``cellxpert_confidence`` (float32; the probability
        of the label, with that of all labels of the same ontology term), ``cellxpert_reason`` (categorical; ``"labelled"``, ``"coarser"`` or why not), ``cellxpert_ood`` (float32; the
        distance to the nearest label, 1 where 5 % of cells like the training cells are farther, NaN if the model is not calibrated),
        ``cellxpert_uncertainty`` (float32; the share of cells like the training cells that are surer of their label, or nearer to it,
        whichever is more; a ``coverage`` below 1 without ``back_off`` keeps cells up to ``(1 + coverage) / 2``),
        ``cellxpert_label_ontology_term_id`` (``"unknown"`` for none), ``cellxpert_set_size``, and ``cellxpert_tissue`` with
        ``cellxpert_tissue_confidence`` where the setup named a ``tissue_key``. To ``obsm``: ``cellxpert_proba``
        (float32 of shape (n_cells, n_labels); a row sums to 1, or to the probability that the cell's type was learned, where
        ``calibration_key`` has other types) and ``cellxpert_sets`` (bool, the same shape). And a record in
        ``uns["cellxpert_info"]["annotate"][key_added]`` whose ``classes`` name their columns.
        """
        started = time.perf_counter()
        state = labelling.require_labels(self._trained())
        options = LabelOptions(unknown=unknown, coverage=coverage, back_off=back_off, set_coverage=set_coverage)
        terms = labelling.terms_of(state, needed=back_off is not None)
        ontology = None if back_off is None else CellOntology()
        data, tokens = self._read(mdata, "annotate", inplace=inplace)
        if inplace:
            labelling.require_free_columns(state, data, key_added)
        vectors, logits, tissues = self._embed(state, tokens, batch_size)
        if state.tissues is not None and (base := self._base_state()) is not state:
            # their head was fitted to the vectors of the model itself
            *_, tissues = self._embed(base, tokens, batch_size)
        found = labelling.evidence(state, data, tokens, logits_NC=logits, tissue_NC=tissues, clusters_key=clusters_key)
        calibration = state.calibration
        if calibration_key is not None:
            known_N, inputs_NX = self._trained_cells(data), labelling.head_inputs(state, tokens, vectors)
            calibration, found = labelling.calibrated_on(
                state, data, found, key=calibration_key, inputs_NX=inputs_NX, trained_N=known_N
            )
        result = annotate(
            found,
            classes=state.labels,
            unlabeled_category=state.setup.unlabeled_category,
            calibration=calibration,
            options=options,
            label_terms=terms,
            type_C=state.setup.types_of(state.labels),
            allowed_CC=None if set_coverage is None else labelling.allowed(state),
            ontology=ontology,
            tissues=state.tissues,
        )
        if inplace:
            columns = {"clusters_key": clusters_key, "calibration_key": calibration_key}
            asked = labelling.describe_labels(
                state, options, calibration=calibration, columns=columns, ontology=ontology
            )
            labelling.write_annotation(data, result, key=key_added, entry=self._record(tokens, started) | asked)
        if return_proba:
            return pd.DataFrame(result.probabilities, index=data.obs_names, columns=list(result.classes))
        return None if inplace else labelling.annotation_table(result, data.obs_names)

    def perturb(
        self,
        genes: Any,
        n_steps: int = 200,
        *,
        mdata: Data | None = None,
        groupby: str | None = None,
        target: str = "auto",
        n_chains: int | None = None,
        seed: int | None = None,
        key_added: str = keys.PERTURBED,
        inplace: bool = True,
        steering: SteeringConfig | None = None,
        regulators: Mapping[str, Collection[str]] | pd.DataFrame | None = None,
        target_embedding: pd.DataFrame | None = None,
        propagate: bool = False,
        resume: str | os.PathLike[str] | None = None,
        progress_bar: bool = True,
    ) -> PerturbResult:
        """Predict how control cells respond when genes are perturbed.

        Every prediction is the difference between chains that are told of the perturbation and paired ones that are not
        (:mod:`cellxpert.steering`; arXiv:2605.00930), beside what trivial predictions say. See the user guide for what the
        targets mean and when not to trust them.

        Parameters
        ----------
        genes
            A gene (``"JAK2"``), genes that are set together (``"JAK2+STAT1"``, or a mapping such as
            ``{"GATA1": "knockout", "KLF1": ("fold", 2.0)}``), or a list of these: a screen, whose perturbations share their
            null. Kinds are ``"knockout"``, ``"knockdown"`` or ``("knockdown", share left)``, ``"overexpression"`` or
            ``("fold", factor)``, and ``("bin", b)`` (``"zero-shot"`` only). A gene without one gets the kind that was
            registered, else a knockout.
        n_steps
            Steps of each chain, half of them burn-in. Where the target is the model's own law, draws are independent and
            one is taken for every 25 steps.
        mdata
            Object with the control cells; the model's own by default. Where it does not say which cells are perturbed, all are
            control cells; of an object that the model was not trained on, all perturbed cells may become anchors.
        groupby
            Column of ``obs``: a prediction for the control cells of each of its categories, all of which must have some.
        target
            ``"learned"``: the law learned from perturbed cells. ``"anchored"``: the same, drawn to medoids of the observed
            perturbed training cells. ``"predicted"``: drawn to control medoids moved by a linear prediction.
            ``"zero-shot"``: the genes are held at what they are set to, all else follows from what genes say of one another,
            causes and consequences alike. ``"auto"``: ``"learned"`` where perturbed cells were trained on, else
            ``"zero-shot"``.
        n_chains
            Chains per start cell; 4 by default. With fewer than 2, R-hat of chains that steer is unknown (draws that do not depend on one
            another have none to be wrong).
        seed
            Seed of the chains; the model's by default.
        key_added
            Name of what is written.
        inplace
            Write; the result is returned in any case.
        steering
            How to sample; see :class:`cellxpert.config.SteeringConfig`.
        regulators
            Per gene, genes that act on it: they cannot respond to it (``"zero-shot"``: conditioning would move them too).
            Each perturbation then has a null of its own. A mapping, or a table as decoupler, CollecTRI and DoRothEA have it: a row
            for each regulator (column ``source``) of a gene (``target``). Its other columns are not read: signs and weights make no
            difference.
        target_embedding
            What is known of genes beside the data: a row per gene, perturbed ones and asked ones. What was learned of the perturbed
            carries over by similarity of rows (``cellxpert.metrics.gene_set_embedding`` makes one of gene sets).
        propagate
            Where niches are read, let them change with the perturbed cells: the cells next to these respond too
            (``result.surroundings``), more so the larger the share of their niche that is perturbed: of a group, at most ``n_cells``
            start cells are. One step: theirs do not change niches again. An association of cells with what is around them in this
            tissue, not a cause that was seen.
        resume
            Folder for finished conditions: written after each, continued from if it holds some of the same screen.
        progress_bar
            Show progress, on a terminal or in a notebook.

        Returns
        -------
        The result: ``table``, ``conditions``, ``baselines``, ``trajectory``, ``diagnostics``, ``to_anndata()``.

        Raises
        ------
        NotTrainedError
            If the model was not trained.
        GeneError
            If a gene is unknown, not measured where it is held, or nothing is known of what follows from it.
        InterventionError, ConfigError
            If a kind, a dose, a number or a combination of settings means nothing, or there is nothing to do.
        ControlError, FewCellsError
            If there are no control cells, too few in a group, or no perturbed ones where anchors are made of them.
        SpatialError
            With ``propagate``, if the model reads no niches of genes, or the object has none.
        ResumeError
            If the folder holds another screen.

        Warns
        -----
        CellxPertWarning
            If a gene is not expressed in the start cells, or chains have not converged (R-hat above 1.01, or unknown).

        Notes
        -----
        **Writes** ``uns["cellxpert_info"]["perturb"][key_added]`` (``table``, ``conditions``, ``baselines`` and the record of the
        call); for one perturbation also ``layers[key_added]`` of the RNA modality (log1p counts per 10,000 of the start cells,
        NaN elsewhere) and ``obsm["X_" + key_added]`` (their cell vectors, NaN elsewhere); with ``propagate`` also of the cells next to
        them.

        It computes on the CPU, wherever the model is.
        """
        started = time.perf_counter()
        state = self._trained()
        data, tokens = self._read(mdata, "perturb", inplace=inplace)
        asked = Asked(
            genes=genes,
            n_steps=n_steps,
            target=target,
            n_chains=n_chains,
            seed=self._seed if seed is None else seed,
            settings=SteeringConfig() if steering is None else steering,
            regulators=regulators,
            embedding=target_embedding,
            groupby=groupby,
            folder=None if resume is None else Path(resume),
        )
        cells = Cells.open(data, setups.query_setup(self._setup_for(data), data))
        if inplace:
            exchange.require_free_layers(
                data, cells, [key_added], role="rna", call="perturb", key=key_added, usual=keys.PERTURBED
            )
            exchange.require_free_latent(data, key_added)
        job = make_screen(
            asked,
            exchange.subjects_of(state, cells, tokens, groupby=groupby, known=self._trained_cells(data)),
            network=exchange.on_cpu(state.network),
            vocabulary=state.vocabulary,
            perturbations=state.perturbations,
        )
        around = exchange.around(state, cells) if propagate else None
        with exchange.progress("perturb", job.n_conditions, show=progress_bar) as advance:
            result = screen(job, model_hash=weights_hash(state.network), progress=advance)
        if around is not None:
            result = with_surroundings(job, result, around)
        for text in result.doubts:
            warnings.warn(f"perturb: {text}", CellxPertWarning, stacklevel=2)
        if inplace:
            entry = self._record(tokens, started) | {"device": "cpu"}
            exchange.write_perturbation(data, cells, result, asked=job.asked, state=state, key=key_added, entry=entry)
        return result

    # --- files ---

    @classmethod
    def load(cls, dir_path: str | os.PathLike[str], mdata: Data | None = None) -> CellxPert:
        """Read a model that :meth:`save` wrote, with its adapters.

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
        state, mdata = load_state(dir_path), table_of(mdata)
        model = cls.__new__(cls)
        model._data, model._config, model._seed = mdata, state.config, state.seed
        model._state, model._learned, model._device = state, None, "cpu"
        model._take_adapters(*load_adapters(dir_path, components=components_of(state)))
        setup = model._trained().setup
        model._setup = setup if mdata is None else setups.query_setup(setup, mdata)
        return model

    # --- inside ---

    def _embed(
        self, state: TrainedState, tokens: Tokens, batch_size: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state.network.to(self._device)
        return embed(state.network, exchange.collate(state, tokens), batch_size=batch_size, device=self._device)
