"""The features a model reads: their names, order, bins, and how they are found in another object.

Features are laid out modality by modality (:data:`~cellxpert.data.roles.MODALITIES`) and by name within a modality, whatever their order in the
object, and are numbered 0 ... V - 1.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cellxpert.data.binning import (
    TRANSFORMS,
    Transform,
    bin_means,
    digitize,
    fit_edges,
    magnitudes,
    quantile_bins,
)
from cellxpert.data.roles import MEASURED, MODALITIES, NICHE
from cellxpert.data.selection import select_features
from cellxpert.errors import VocabularyError

if TYPE_CHECKING:
    from cellxpert.config import TokenConfig
    from cellxpert.data.cells import Cells

__all__ = ["FeatureBlock", "ImageScale", "Vocabulary"]

_FIT_VALUES = 20_000_000
"""Non-zero values per modality from which bins are fitted; with more, evenly spaced training cells are taken."""
_CHUNK = 1024


@dataclass(frozen=True)
class FeatureBlock:
    """The features of one modality.

    Parameters
    ----------
    role
        One of :data:`~cellxpert.data.roles.MODALITIES`.
    names
        Feature names, sorted.
    ids
        Ensembl ids without versions ("" where unknown), or None.
    edges
        Edges between bins 1 ... n_bins - 1 of magnitudes, of shape (n_bins - 2,); infinite behind the last bin in use.
    bin_means
        Magnitude that each bin decodes to, of shape (n_bins,).
    counts
        Mean value of each feature over the training cells that have the modality, of shape (n_features,).
    transform
        How values become magnitudes.
    genome
        Genome build of peaks; None where it is not known, and for other features.
    """

    role: str
    names: tuple[str, ...]
    ids: tuple[str, ...] | None
    edges: npt.NDArray[np.float64]
    bin_means: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]
    transform: Transform
    genome: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; infinite edges are left out, and so is a genome that is not known."""
        out = {
            "role": self.role,
            "transform": self.transform,
            "names": list(self.names),
            "ids": None if self.ids is None else list(self.ids),
            "edges": self.edges[np.isfinite(self.edges)].tolist(),
            "bin_means": self.bin_means.tolist(),
            "counts": self.counts.tolist(),
        }
        return out if self.genome is None else out | {"genome": self.genome}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureBlock:
        """Rebuild a block; :meth:`Vocabulary.from_dict` checks it."""
        means = np.asarray(data["bin_means"], dtype=np.float64)
        edges = np.full(len(means) - 2, np.inf)
        edges[: len(data["edges"])] = data["edges"]
        return cls(
            role=data["role"],
            names=tuple(data["names"]),
            ids=None if data["ids"] is None else tuple(data["ids"]),
            edges=edges,
            bin_means=means,
            counts=np.asarray(data["counts"], dtype=np.float64),
            transform=data["transform"],
            genome=data.get("genome"),
        )


@dataclass(frozen=True)
class ImageScale:
    """Mean and standard deviation of each image feature over the training cells."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def fit(cls, image_NF: npt.NDArray[np.float64]) -> ImageScale:
        """Take them from training cells; a feature that does not vary has a deviation of 1."""
        image_NF = image_NF[np.isfinite(image_NF).all(axis=1)]
        deviation_F = image_NF.std(axis=0)
        deviation_F = np.where(deviation_F > 1e-12 * (1 + np.abs(image_NF.mean(axis=0))), deviation_F, 1.0)
        return cls(tuple(image_NF.mean(axis=0).tolist()), tuple(deviation_F.tolist()))

    def standardise(self, image_NF: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Return features of mean 0 and deviation 1 among the training cells."""
        return ((image_NF - np.array(self.mean)) / np.array(self.deviation)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The features that a model reads, and their bins.

    Parameters
    ----------
    blocks
        One per modality, in the order of :data:`~cellxpert.data.roles.MODALITIES`.
    n_bins
        Number of bins, zero's included.
    binning
        ``"global"`` or ``"per_cell"``.
    place
        Whether places of cells are read.
    image
        Scale of the image features; None where there are none.
    niche_of
        Role of the modality that niches are means of; None without niches.
    """

    blocks: tuple[FeatureBlock, ...]
    n_bins: int
    binning: str
    place: bool = False
    image: ImageScale | None = None
    niche_of: str | None = None

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def roles(self) -> tuple[str, ...]:
        """Modalities that have features."""
        return tuple(block.role for block in self.blocks)

    @property
    def n_features(self) -> int:
        """Number of features V; also the id of [CLS]."""
        return sum(len(block.names) for block in self.blocks)

    @property
    def n_image(self) -> int:
        """Number of image features."""
        return 0 if self.image is None else len(self.image.mean)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all features; a name may occur in several modalities."""
        return tuple(name for block in self.blocks for name in block.names)

    @functools.cached_property
    def role_of_feature(self) -> npt.NDArray[np.int8]:
        """Modality of each feature as an index into :data:`~cellxpert.data.roles.MODALITIES`, of shape (V,)."""
        codes = [MODALITIES.index(block.role) for block in self.blocks]
        return np.repeat(codes, [len(block.names) for block in self.blocks]).astype(np.int8)

    def block(self, role: str) -> FeatureBlock:
        """Return the features of one modality."""
        return self.blocks[self.roles.index(role)]

    def offset(self, role: str) -> int:
        """Return the id of a modality's first feature."""
        return sum(len(block.names) for block in self.blocks[: self.roles.index(role)])

    def decode(self, feature: npt.ArrayLike, bins: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the magnitude of each (feature id, bin); the arrays broadcast."""
        table = self.levels(len(MODALITIES))
        return table[self.role_of_feature[np.asarray(feature)], np.asarray(bins)]

    def levels(self, n_modalities: int) -> npt.NDArray[np.float64]:
        """Return the magnitude of every bin, a row for each of the first :data:`~cellxpert.data.roles.MODALITIES`."""
        table = np.zeros((n_modalities, self.n_bins))
        for block in self.blocks:
            table[MODALITIES.index(block.role)] = block.bin_means
        return table

    @classmethod
    def fit(cls, cells: Cells, config: TokenConfig, *, train_rows: npt.ArrayLike) -> Vocabulary:
        """Choose features and fit bins, on training cells only.

        Parameters
        ----------
        cells
            The cells of an object that was set up.
        config
            Number of features and bins.
        train_rows
            Rows (in ``obs_names``) of the training cells.

        Warns
        -----
        CellxPertWarning
            If no training cell has one of the modalities (it is left out), or if the features asked for exceed
            ``max_tokens - 1`` (each modality's number is cut in proportion).
        """
        rows = np.asarray(train_rows, dtype=np.int64)
        blocks = []
        for role, choice in select_features(cells, config, train_rows=rows).items():
            present = rows[cells.present(role)[rows]]
            transform = cells.transform(role)
            edges, means = _fit_bins(
                cells, role, rows=present, columns=choice.columns, transform=transform, config=config
            )
            names, ids = cells.feature_names(role), cells.feature_ids(role)
            blocks.append(
                FeatureBlock(
                    role=role,
                    names=tuple(str(n) for n in names[choice.columns]),
                    ids=None if ids is None else tuple(str(i) for i in ids[choice.columns]),
                    edges=edges,
                    bin_means=means,
                    counts=choice.means,
                    transform=transform,
                    genome=None if role == NICHE else cells.setup.modality(role).genome,
                )
            )
        space, place, image = cells.space, False, None
        if space is not None:
            place = config.place and space.place_NX is not None
            if config.image and space.image_NF is not None and np.isfinite(space.image_NF[rows]).all(axis=1).any():
                image = ImageScale.fit(space.image_NF[rows])
        niche_of = space.source if space is not None and any(b.role == NICHE for b in blocks) else None
        return cls(tuple(blocks), config.n_bins, config.binning, place, image, niche_of)

    def match(self, cells: Cells, role: str, *, min_overlap: float = 0.3) -> npt.NDArray[np.int64]:
        """Find the features of one modality in another object: by name, else genes by Ensembl id and peaks by place.

        Parameters
        ----------
        cells
            The cells of the other object.
        role
            A modality of both.
        min_overlap
            Least share of this vocabulary's features, and of the training counts they carry, that must be found.

        Returns
        -------
        For every column of the object's matrix its feature id, or -1.

        Raises
        ------
        FeatureOverlapError
            If too few features are found.
        DuplicateNamesError
            If two columns are the same feature.
        GenomeError
            If peaks are of another genome build.

        Warns
        -----
        CellxPertWarning
            If less than 80 % are found, if names and Ensembl ids contradict each other, or if genomes have other names.
        """
        from cellxpert.data.matching import match_features

        block = self.block(role)
        local = match_features(
            block,
            names=cells.feature_names(role),
            ids=cells.feature_ids(role),
            genome=None if role == NICHE else cells.setup.modality(role).genome,
            peaks=(self.niche_of if role == NICHE else role) == "atac",
            min_overlap=min_overlap,
        )
        return np.where(local >= 0, local + self.offset(role), -1)

    def hash(self) -> str:
        """Return the sha256 of the vocabulary's canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; through JSON and back they give the same vocabulary, bit for bit."""
        out = {"n_bins": self.n_bins, "binning": self.binning, "blocks": [block.to_dict() for block in self.blocks]}
        if self.niche_of is not None:
            out["niche_of"] = self.niche_of
        if self.place:
            out["place"] = True
        if self.image is not None:
            out["image"] = {"mean": list(self.image.mean), "deviation": list(self.image.deviation)}
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary.

        Raises
        ------
        VocabularyError
            If an entry is missing, unknown, or contradicts another.
        """
        known = {"n_bins", "binning", "blocks"}, {f.name for f in dataclasses.fields(FeatureBlock)}
        try:
            said = {
                k: v for k, v in data.items() if k not in {"place", "image", "niche_of"}
            }  # there only where they are read
            for entry, names in [(said, known[0]), *((b, known[1]) for b in data["blocks"])]:
                if set(entry) | ({"genome"} & names) != names:
                    raise VocabularyError(
                        "vocabulary", found=f"entries {sorted(entry)}", fix=f"expected {sorted(names)}"
                    )
            image = None
            if "image" in data:
                image = ImageScale(*(tuple(float(x) for x in data["image"][k]) for k in ("mean", "deviation")))
            blocks = tuple(FeatureBlock.from_dict(b) for b in data["blocks"])
            return cls(blocks, data["n_bins"], data["binning"], data.get("place", False), image, data.get("niche_of"))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, VocabularyError):
                raise
            raise VocabularyError("vocabulary", found=repr(error), fix="restore the file from its source") from error


def _validate(vocabulary: Vocabulary) -> None:
    def require(condition: object, found: str) -> None:
        if not condition:
            raise VocabularyError("vocabulary", found=found, fix="restore the vocabulary that the model was saved with")

    order = [MODALITIES.index(role) if role in MODALITIES else -1 for role in vocabulary.roles]
    require(order and min(order) >= 0 and order == sorted(set(order)), f"modalities {vocabulary.roles}")
    require(vocabulary.binning in {"global", "per_cell"}, f"binning {vocabulary.binning!r}")
    require(isinstance(vocabulary.n_bins, int) and 3 <= vocabulary.n_bins <= 256, f"{vocabulary.n_bins!r} bins")
    require(vocabulary.place in (True, False), f"place {vocabulary.place!r}")
    niche = (NICHE in vocabulary.roles, vocabulary.niche_of in MEASURED)
    require(niche in ((True, True), (False, False)), f"niches of {vocabulary.niche_of!r}")
    if vocabulary.image is not None:
        scale = np.array([vocabulary.image.mean, vocabulary.image.deviation], dtype=np.float64)
        require(np.isfinite(scale).all() and (scale[1] > 0).all(), "image features without a scale")
    for block in vocabulary.blocks:
        n, where = len(block.names), f"modality {block.role!r}"
        require(n > 0 and list(block.names) == sorted(set(block.names)), f"{where}: names unsorted or repeated")
        require(block.ids is None or len(block.ids) == n, f"{where}: {n} names, another number of ids")
        require(
            block.counts.shape == (n,) and np.isfinite(block.counts).all(), f"{where}: counts not finite, or not {n}"
        )
        require(block.edges.shape == (vocabulary.n_bins - 2,), f"{where}: {block.edges.shape} edges")
        require(block.bin_means.shape == (vocabulary.n_bins,), f"{where}: {block.bin_means.shape} bin means")
        require(
            np.isfinite(block.bin_means).all() and (np.diff(block.bin_means) >= 0).all(), f"{where}: bin means fall"
        )
        require((block.edges[1:] >= block.edges[:-1]).all(), f"{where}: edges fall")
        require(block.genome is None or isinstance(block.genome, str), f"{where}: genome {block.genome!r}")
        require(block.transform in TRANSFORMS, f"{where}: transform {block.transform!r}")


def _fit_bins(
    cells: Cells,
    role: str,
    *,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    transform: Transform,
    config: TokenConfig,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Edges and bin means over the non-zero training values of the chosen features."""
    from cellxpert.data.tokens import gather, scales

    position = np.full(len(cells.feature_names(role)), -1, np.int64)
    position[columns] = np.arange(len(columns))
    sample = cells.matrix_rows(role, rows[: min(len(rows), _CHUNK)])
    step = max(1, -(-(sample.nnz * len(rows)) // (max(sample.shape[0], 1) * _FIT_VALUES)))
    rows = rows[::step]
    values, bins = [], []
    for begin in range(0, len(rows), _CHUNK):
        matrix = cells.matrix_rows(role, rows[begin : begin + _CHUNK])
        picked = gather(matrix, position=position, n_features=len(columns))
        scale = scales(matrix, picked, transform=transform)
        values.append(magnitudes(picked.value, picked.start, scale, transform=transform))
        if config.binning == "per_cell":
            bins.append(quantile_bins(picked.value, picked.start, n_bins=config.n_bins))
    magnitude = np.concatenate(values)
    edges = fit_edges(magnitude, n_bins=config.n_bins)
    if config.binning == "per_cell":
        bin_of = np.concatenate(bins)
    else:
        ones = np.ones(1)
        bin_of = digitize(magnitude, [0, len(magnitude)], ones, transform="counts", edges=edges)
    return edges, bin_means(magnitude, bin_of, n_bins=config.n_bins)
