"""Cells as ragged arrays of (feature, bin) tokens, in the vocabulary's order.

A cell's tokens depend on its own values only: not on the order of the object's features, on the matrix's format, on the
chunk it was read in, or on other cells.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cellxpert.data.binning import digitize, quantile_bins, ragged
from cellxpert.data.gather import gather, scales
from cellxpert.data.roles import MODALITIES, NICHE
from cellxpert.data.vocabulary import Vocabulary
from cellxpert.errors import CellxPertWarning, NotCountsError, QueryError, SpatialError, VocabularyError

if TYPE_CHECKING:
    from cellxpert.config import TokenConfig
    from cellxpert.data.cells import Cells

__all__ = ["Tokens", "measured_tokens", "shown_features", "tokenize"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of many cells, [CLS] not among them: cell i has ``[start[i]:start[i + 1]]``.

    An absent feature (not in the object, or of a modality that the cell lacks) is no token; a measured zero is a token of
    bin 0 with ``zeros="keep"`` and none with ``"drop"``.
    """

    feature: npt.NDArray[np.int32]
    """Feature ids of all tokens, ascending within a cell."""
    bin: npt.NDArray[np.uint8]
    """Bins of all tokens."""
    start: npt.NDArray[np.int64]
    """Offsets of the cells' tokens, of shape (n_cells + 1,)."""
    rows: npt.NDArray[np.int64]
    """Row of each cell in ``obs_names``."""
    pattern: npt.NDArray[np.int32]
    """Index of each cell into ``measured_features``."""
    measured_features: npt.NDArray[np.bool_]
    """Which features were measured, of shape (n_patterns, V): one row per combination of modalities."""
    place: npt.NDArray[np.float32] | None = None
    """Place of each cell (see :class:`~cellxpert.data.space.Space`), of shape (n_cells, 3), NaN for cells without; None: not read."""
    image: npt.NDArray[np.float32] | None = None
    """Standardised image features of each cell, of shape (n_cells, F), NaN for cells without; None: not read."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.start) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per cell; 0 for a cell in which nothing of the vocabulary was seen."""
        return np.diff(self.start)


def tokenize(
    cells: Cells,
    vocabulary: Vocabulary,
    config: TokenConfig,
    *,
    rows: npt.ArrayLike | None = None,
    chunk_size: int = 512,
    min_overlap: float = 0.3,
) -> Tokens:
    """Turn cells into tokens.

    Parameters
    ----------
    cells
        The cells of an object that was set up.
    vocabulary
        Features and bins.
    config
        ``zeros`` says whether measured zeros are tokens; the bins are those of the vocabulary.
    rows
        Rows in ``obs_names``, in any order; all cells if None.
    chunk_size
        Cells read at once; it changes memory and time only.
    min_overlap
        See :meth:`Vocabulary.match`.

    Raises
    ------
    QueryError
        If the object has none of the vocabulary's modalities.
    VocabularyError
        If ``config`` asks for other bins than the vocabulary has.
    NotCountsError
        If a modality holds intensities here and counts in the vocabulary, or the reverse.
    FeatureOverlapError, DuplicateNamesError
        See :meth:`Vocabulary.match`.

    Warns
    -----
    CellxPertWarning
        If the object has a modality that the vocabulary lacks, or lacks the coordinates, neighbours or image features that the vocabulary
        has; also see :meth:`Vocabulary.match`.
    """
    roles = _shared_roles(cells, vocabulary, config)
    rows = np.arange(cells.n_cells) if rows is None else np.asarray(rows, dtype=np.int64)
    # niches add to a cell, which is read without them too
    least = {role: 0.0 if role == NICHE else min_overlap for role in roles}
    matched = {role: vocabulary.match(cells, role, min_overlap=least[role]) for role in roles}
    present = (
        np.stack([cells.present(role)[rows] for role in roles], axis=1)
        if len(rows)
        else np.zeros((0, len(roles)), bool)
    )
    combinations, pattern = np.unique(present, axis=0, return_inverse=True)
    measured = np.zeros((len(combinations), vocabulary.n_features), np.bool_)
    for k, role in enumerate(roles):
        here = matched[role][matched[role] >= 0]
        measured[np.ix_(combinations[:, k], here)] = True

    features, bins, lengths = [], [], []
    for begin in range(0, len(rows), max(chunk_size, 1)):
        chunk = slice(begin, begin + max(chunk_size, 1))
        feature, bin_, length = _chunk(
            cells, vocabulary, matched, rows=rows[chunk], present=present[chunk], keep_zeros=config.zeros == "keep"
        )
        features.append(feature)
        bins.append(bin_)
        lengths.append(length)
    return Tokens(
        feature=np.concatenate([*features, np.zeros(0, np.int32)]),
        bin=np.concatenate([*bins, np.zeros(0, np.uint8)]),
        start=ragged(np.concatenate([*lengths, np.zeros(0, np.int64)])),
        rows=rows,
        pattern=pattern.reshape(-1).astype(np.int32),
        measured_features=measured,
        place=_places(cells, vocabulary, rows),
        image=_images(cells, vocabulary, rows),
    )


def measured_tokens(tokens: Tokens, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Count each cell's tokens of what was measured in the cell itself, niches not among them."""
    if NICHE not in vocabulary.roles:
        return tokens.lengths
    cell_T = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
    return np.bincount(cell_T[tokens.feature < vocabulary.offset(NICHE)], minlength=tokens.n_cells)


def shown_features(tokens: Tokens, modality_V: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count the features that each cell shows: with a value above zero, measured in the cell itself."""
    counted_T = (tokens.bin > 0) & (modality_V[tokens.feature] != MODALITIES.index(NICHE))
    cell_T = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
    return np.bincount(cell_T[counted_T], minlength=tokens.n_cells)


def _places(cells: Cells, vocabulary: Vocabulary, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
    if not vocabulary.place:
        return None
    if cells.space is None or cells.space.place_NX is None:
        return np.full((len(rows), 3), np.nan, np.float32)
    return cells.space.place_NX[rows]


def _images(cells: Cells, vocabulary: Vocabulary, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
    if vocabulary.image is None:
        return None
    if cells.space is None or cells.space.image_NF is None:
        return np.full((len(rows), vocabulary.n_image), np.nan, np.float32)
    found = cells.space.image_NF
    if found.shape[1] != vocabulary.n_image:
        raise SpatialError(
            f"obsm[{cells.setup.spatial.image_key!r}]" if cells.setup.spatial else "obsm",
            found=f"{found.shape[1]} image features, the model reads {vocabulary.n_image}",
            fix="give the features that the model was trained with, in the same order",
        )
    return vocabulary.image.standardise(found[rows])


def _shared_roles(cells: Cells, vocabulary: Vocabulary, config: TokenConfig) -> list[str]:
    if (config.n_bins, config.binning) != (vocabulary.n_bins, vocabulary.binning):
        raise VocabularyError(
            "bins",
            found=f"{config.n_bins} {config.binning} bins asked for, the vocabulary has {vocabulary.n_bins} {vocabulary.binning}",
            fix="use the settings that the vocabulary was fitted with",
        )
    roles = [role for role in vocabulary.roles if role in cells.token_roles]
    if NICHE in roles and cells.space is not None and cells.space.source != vocabulary.niche_of:
        text = f"niches are of {cells.space.source} here and of {vocabulary.niche_of} in the vocabulary: cells are read without"
        warnings.warn(text, CellxPertWarning, stacklevel=3)
        roles.remove(NICHE)
    if not set(roles) - {NICHE}:
        raise QueryError("modalities", found=f"{cells.roles}", fix=f"set up one of {vocabulary.roles}")
    if extra := [role for role in cells.roles if role not in roles]:
        text = f"the vocabulary has no features of {', '.join(extra)}, which is not read"
        warnings.warn(text, CellxPertWarning, stacklevel=3)
    if lost := _lost_space(cells, vocabulary):
        text = f"the vocabulary has {', '.join(lost)}, which the object does not have: cells are read without"
        warnings.warn(text, CellxPertWarning, stacklevel=3)
    for role in roles:
        here, there = cells.transform(role), vocabulary.block(role).transform
        # k-mers and peaks differ too, and are told apart where features are matched
        if "arcsinh" in {here, there} and here != there:
            raise NotCountsError(
                f"modality {role}",
                found=f"magnitudes by {here!r} here, by {there!r} in the vocabulary",
                fix="set up the layer with the same kind of values, or pass counts= to the setup",
            )
    return roles


def _lost_space(cells: Cells, vocabulary: Vocabulary) -> list[str]:
    """What the vocabulary has of where cells are, and an object does not say."""
    here = cells.setup.spatial
    missing = {
        "niches": NICHE in vocabulary.roles and NICHE not in cells.token_roles,
        "coordinates": vocabulary.place and (here is None or here.spatial_key is None),
        "image features": vocabulary.image is not None and (here is None or here.image_key is None),
    }
    return [name for name, lost in missing.items() if lost]


def _chunk(
    cells: Cells,
    vocabulary: Vocabulary,
    matched: dict[str, npt.NDArray[np.int64]],
    *,
    rows: npt.NDArray[np.int64],
    present: npt.NDArray[np.bool_],
    keep_zeros: bool,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Features, bins and lengths of some cells: each modality's tokens, then laid side by side cell by cell."""
    parts = []
    lengths = np.zeros(present.shape, np.int64)
    for k, role in enumerate(matched):
        feature, bin_, lengths[present[:, k], k] = _modality(
            cells, vocabulary, role, rows=rows[present[:, k]], matched=matched[role], keep_zeros=keep_zeros
        )
        parts.append((feature, bin_))
    total = lengths.sum(axis=1)
    if len(parts) == 1:
        return *parts[0], total
    features, bins = np.empty(total.sum(), np.int32), np.empty(total.sum(), np.uint8)
    begin = ragged(lengths.ravel())[:-1].reshape(lengths.shape)  # cell by cell, modalities in order within a cell
    for k, (feature, bin_) in enumerate(parts):
        n = lengths[:, k]
        at = np.repeat(begin[:, k] - ragged(n)[:-1], n) + np.arange(len(feature))
        features[at], bins[at] = feature, bin_
    return features, bins, total


def _modality(
    cells: Cells,
    vocabulary: Vocabulary,
    role: str,
    *,
    rows: npt.NDArray[np.int64],
    matched: npt.NDArray[np.int64],
    keep_zeros: bool,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Features, bins and lengths of one modality's tokens in cells that have it."""
    block, offset = vocabulary.block(role), vocabulary.offset(role)
    matrix = cells.matrix_rows(role, rows)
    position = np.where(matched >= 0, matched - offset, -1)
    picked = gather(matrix, position=position, n_features=len(block.names), keep_zeros=keep_zeros)
    if vocabulary.binning == "per_cell":
        bins = quantile_bins(picked.value, picked.start, n_bins=vocabulary.n_bins)
    else:
        scale = scales(matrix, picked, transform=block.transform)
        bins = digitize(picked.value, picked.start, scale, transform=block.transform, edges=block.edges)
    return picked.feature + np.int32(offset), bins, np.diff(picked.start)
