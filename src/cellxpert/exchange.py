"""Between the user's object and a trained model: cells are read and become tokens, results are written and recorded.

Letters: N cells, D width.
"""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import keys
from cellxpert.checkpoint import TrainedState, weights_hash
from cellxpert.data import setup as setups
from cellxpert.data.cells import Cells
from cellxpert.data.collate import Collator
from cellxpert.data.obs import as_categories
from cellxpert.data.perturbations import without_targets
from cellxpert.data.record import Setup, SpatialSetup
from cellxpert.data.roles import NICHE
from cellxpert.data.tokens import Tokens, measured_tokens, tokenize
from cellxpert.data.write import (
    forget_obsm,
    record,
    recorded,
    require_writable,
    write_layer,
    write_obsm,
)
from cellxpert.errors import CellxPertWarning, ConfigError, SpatialError
from cellxpert.nn.network import Network
from cellxpert.tasks.propagate import Around
from cellxpert.tasks.response import PerturbResult
from cellxpert.tasks.screens import Asked, Subjects

__all__ = [
    "around",
    "collate",
    "describe",
    "on_cpu",
    "progress",
    "read",
    "require_free_latent",
    "require_free_layers",
    "subjects_of",
    "write_perturbation",
]

Data = AnnData | MuData


def read(
    state: TrainedState,
    data: Data,
    *,
    setup: Setup,
    call: str,
    inplace: bool,
    own: bool,
    roles: Collection[str] | None = None,
) -> Tokens:
    """Check an object in full, and turn its cells into tokens.

    Parameters
    ----------
    state
        The model.
    data
        The object.
    setup
        The model's setup, for what the object does not say itself.
    call
        Name of the method that reads, for messages.
    inplace
        Whether the method will write into the object.
    own
        Whether the object is the one that the model was made with, whose findings were told at its setup.
    roles
        Modalities to read, without niches, if the object has all of them: how much is known of the others does not matter, and
        cells may have none. All if None.

    Warns
    -----
    CellxPertWarning
        To the caller of the method: what the checks found, and cells of which nothing is read.
    """
    setup = replace(setups.query_setup(setup, data), batch_key=None, labels_key=None, tissue_key=None)
    if inplace:
        require_writable(data, f"{call}(inplace=True)")
    notes = setups.validate(data, setup)
    for note in () if own else (*notes, *_other_space(state.setup.spatial, setup.spatial)):
        warnings.warn(note, CellxPertWarning, stacklevel=4)
    some = bool(roles) and set(roles) <= set(setup.roles)
    if some:
        setup = replace(setup, modalities=tuple(m for m in setup.modalities if m.role in roles), spatial=None)
    tokens = tokenize(Cells.open(data, setup), state.vocabulary, state.config.tokens)
    if some:
        return tokens
    if n_empty := int((measured_tokens(tokens, state.vocabulary) == 0).sum()):
        text = f"{n_empty} of {tokens.n_cells} cells have no counts in the model's features; their results mean nothing"
        warnings.warn(text, CellxPertWarning, stacklevel=4)
    return tokens


def _other_space(trained: SpatialSetup | None, here: SpatialSetup | None) -> list[str]:
    """What to say where an object's neighbours are not chosen as those of the cells that were trained on."""
    if trained is None or here is None or not (trained.has_niche and here.has_niche):
        return []
    notes = []
    if trained.library_key is not None and here.library_key is None:
        notes.append(
            f"the model was trained with sections (obs[{trained.library_key!r}]); here all cells count as one section, "
            "so set the object up with library_key= if they are not"
        )
    if (trained.neighbors_key is None) != (here.neighbors_key is None):
        notes.append(
            "niches are of nearest neighbours here and of a given graph where the model was trained, or the reverse"
        )
    elif here.neighbors_key is None and trained.n_neighbors != here.n_neighbors:
        notes.append(
            f"niches are of {here.n_neighbors} neighbours here, of {trained.n_neighbors} where the model was trained"
        )
    return notes


def collate(state: TrainedState, tokens: Tokens) -> Collator:
    """Return the maker of the model's batches."""
    return Collator(
        tokens,
        n_features=state.vocabulary.n_features,
        n_bins=state.vocabulary.n_bins,
        zeros=state.config.tokens.zeros,
        shuffle_positions=state.config.network.position,
        seed=state.seed,
    )


def subjects_of(
    state: TrainedState, cells: Cells, tokens: Tokens, *, groupby: str | None, known: npt.NDArray[np.bool_] | None
) -> Subjects:
    """Say what is known of each cell that a perturbation starts from or is compared with.

    Parameters
    ----------
    state, cells, tokens
        The model, the object's cells, and their tokens.
    groupby
        Column with the groups.
    known
        Which cells the model was trained on, if it was on this object: only these are compared with.
    """
    conditions = cells.conditions()
    if conditions is not None and state.perturbations is not None:
        tokens = without_targets(tokens, state.perturbations.assign(conditions, state.vocabulary))
    return Subjects(
        collator=collate(state, tokens),
        names=[str(name) for name in cells.obs_names],
        control=cells.setup.control_category,
        condition=None if conditions is None else list(conditions),
        known=known,
        group=None if groupby is None else list(as_categories(cells.obs(groupby), key=groupby)),
    )


def around(state: TrainedState, cells: Cells) -> Around:
    """Say what every cell's niche is, and whose.

    Raises
    ------
    SpatialError
        If the model reads no niches of genes, or the object does not say who is next to whom.
    """
    fix = "set up spatial_key= or neighbors_key=, make a model of it, and train"
    if NICHE not in state.vocabulary.roles:
        raise SpatialError("perturb(propagate=True)", found="a model that reads no niches", fix=fix)
    if state.vocabulary.binning == "per_cell":
        found = "binning='per_cell': what a change of magnitude does to bins is not known"
        raise ConfigError("perturb(propagate=True)", found=found, fix="train with binning='global'")
    if NICHE not in cells.token_roles or cells.space is None:
        raise SpatialError("perturb(propagate=True)", found="an object without neighbours", fix=fix)
    if not state.vocabulary.niche_of == cells.space.source == "rna":
        found = f"niches of {cells.space.source} here, of {state.vocabulary.niche_of} in the model: only those of genes follow"
        raise SpatialError("perturb(propagate=True)", found=found, fix=fix)
    block, matched = state.vocabulary.block(NICHE), state.vocabulary.match(cells, NICHE, min_overlap=0.0)
    column_V = np.full(len(block.names), -1)
    column_V[matched[matched >= 0] - state.vocabulary.offset(NICHE)] = np.flatnonzero(matched >= 0)
    level_NV = np.zeros((cells.n_cells, len(block.names)), np.float32)
    for rows in np.array_split(np.arange(cells.n_cells), cells.n_cells // 1024 + 1):
        level_NV[np.ix_(rows, column_V >= 0)] = cells.matrix_rows(NICHE, rows)[:, column_V[column_V >= 0]].toarray()
    assert cells.space.graph_NN is not None
    return Around(graph_NN=cells.space.graph_NN, level_NV=level_NV)


def on_cpu(network: Network) -> Network:
    """Return the network, or a copy of it, where chains are run."""
    device = next(network.parameters()).device
    return network if device.type == "cpu" else copy.deepcopy(network).to("cpu")


@contextlib.contextmanager
def progress(name: str, total: int, *, show: bool) -> Iterator[Callable[[], None]]:
    """Show how many of a number of steps are done, on a terminal or in a notebook; gives what to call after each."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=name, disable=None if show else True) as bar:
        yield lambda: bar.update()


def describe(state: TrainedState, tokens: Tokens, *, started: float, device: str) -> dict[str, Any]:
    """Return plain values that say how a result came about."""
    from importlib.metadata import version

    return {
        "version": version("cellxpert"),
        "weights_hash": weights_hash(state.network),
        "vocabulary_hash": state.vocabulary.hash(),
        "seed": state.seed,
        "feature_overlap": float(tokens.measured_features.any(axis=0).mean()),
        "device": device,
        "seconds": round(time.perf_counter() - started, 3),
    }


def require_free_layers(
    data: Data, cells: Cells, names: Sequence[str], *, role: str, call: str, key: str, usual: str
) -> None:
    """Refuse to write layers over one that the setup reads, or over others than those of an earlier call.

    Parameters
    ----------
    data, cells
        The object, and its cells.
    names
        The layers; the first has the name that was asked for.
    role
        The modality.
    call, key
        Of the record that an earlier call left.
    usual
        A name that nobody else gives to layers.

    Raises
    ------
    ConfigError
        If there is one.
    """
    if role not in cells.roles:
        return
    own = names[0] == usual or recorded(data, call, key=key)
    layers, read = cells.adata(role).layers, cells.setup.modality(role).layer
    if taken := [name for name in names if name == read or (name in layers and not own)]:
        found = f"layers of {cells.where(role)} that hold something else: {taken}"
        raise ConfigError(f"{call}, name of the layer", found=found, fix="choose another name")


def require_free_latent(data: Data, key: str) -> None:
    """Refuse to write the vectors of predicted cells over an array that no earlier call with this key wrote.

    Raises
    ------
    ConfigError
        If there is one.
    """
    name = keys.perturbed_latent_key(key)
    if key != keys.PERTURBED and name in data.obsm and not recorded(data, "perturb", key=key):
        found = f"obsm[{name!r}], which holds something else, is where vectors of the predicted cells go"
        raise ConfigError(f"perturb(key_added={key!r})", found=found, fix="choose another name")


def write_perturbation(
    data: Data,
    cells: Cells,
    result: PerturbResult,
    *,
    asked: Asked,
    state: TrainedState,
    key: str,
    entry: dict[str, Any],
) -> None:
    """Write the tables and the record of the call; for one perturbation also its predicted cells, NaN elsewhere.

    What an earlier call wrote under the key goes, so that the tables and the cells belong together.
    """
    if recorded(data, "perturb", key=key):
        _forget(data, cells, key)
    tables = {name: getattr(result, name) for name in ("table", "conditions", "baselines")}
    if result.surroundings is not None:
        tables["surroundings"] = result.surroundings
    settings = {name: value for name, value in asdict(asked.settings).items() if value is not None}
    arguments = {
        "genes": list(result.perturbations),
        "n_steps": int(asked.n_steps),
        "n_chains": int(result.conditions["n_chains"].iloc[0]),
        "seed": asked.seed,
        "propagate": result.surroundings is not None,
        "target_embedding": asked.embedding is not None,
        "steering": settings,
    }
    if asked.groupby is not None:
        arguments["groupby"] = asked.groupby
    if asked.regulators is not None:
        pairs = [(gene, name) for gene, names in asked.regulators.items() for name in sorted(names)]
        tables["regulators"] = pd.DataFrame(pairs, columns=["gene", "regulator"])
    # readers of HDF5 and Zarr want text as index
    tables = {name: table.set_axis(table.index.astype(str)) for name, table in tables.items()}
    record(data, "perturb", key=key, entry=entry | arguments | tables)
    if len(result.perturbations) > 1 or "rna" not in cells.roles:
        return
    index, conditions = pd.Index(data.obs_names.astype(str)), list(result.expression)
    # start cells come last: what is predicted of them stays where they are also next to those of another group
    reached = [result.reached[c] for c in conditions if c in result.reached]
    names = [*(r["cells"] for r in reached), *(result.cells[c] for c in conditions)]
    row_N = np.concatenate([index.get_indexer(list(cells)) for cells in names])
    latent_ND = np.concatenate([*(r["latent"] for r in reached), *(result.latent[c]["perturbed"] for c in conditions)])
    level_NG = np.concatenate(
        [*(r["perturbed"] for r in reached), *(result.expression[c]["perturbed"] for c in conditions)]
    )
    row_N, latent_ND, level_NG = _once(row_N, latent_ND, level_NG, n_reached=sum(len(r["cells"]) for r in reached))
    vectors = np.full((cells.n_cells, latent_ND.shape[1]), np.nan, np.float32)
    vectors[row_N] = latent_ND
    write_obsm(data, keys.perturbed_latent_key(key), vectors)
    matched = state.vocabulary.match(cells, "rna")
    column_V = np.full(state.vocabulary.n_features, -1)
    column_V[matched[matched >= 0]] = np.flatnonzero(matched >= 0)
    offset = state.vocabulary.offset("rna")
    write_layer(
        data,
        key,
        level_NG,
        modality=cells.setup.modality("rna").name,
        rows=cells.rows("rna")[row_N],
        columns=column_V[offset : offset + len(result.genes)],
    )


def _once(
    row_N: npt.NDArray[np.int64],
    latent_ND: npt.NDArray[np.float32],
    level_NG: npt.NDArray[np.float32],
    *,
    n_reached: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Keep of cells that occur twice those that are start cells; cells next to those of several groups are left out."""
    reached, start = row_N[:n_reached], row_N[n_reached:]
    rows, counts = np.unique(reached, return_counts=True)
    kept = np.concatenate([np.isin(reached, rows[counts == 1]) & ~np.isin(reached, start), np.ones(len(start), bool)])
    return row_N[kept], latent_ND[kept], level_NG[kept]


def _forget(data: Data, cells: Cells, key: str) -> None:
    """Remove the predicted cells of an earlier call."""
    forget_obsm(data, keys.perturbed_latent_key(key))
    if "rna" in cells.roles:
        cells.adata("rna").layers.pop(key, None)
