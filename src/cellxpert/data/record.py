"""The record of a setup: which matrix plays which role, and which columns of ``obs`` mean what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellxpert.data.roles import MEASURED, NICHE
from cellxpert.errors import ModalityError, NotSetUpError

__all__ = ["LabelTerm", "ModalitySetup", "Setup", "SpatialSetup"]

_PERTURBATION = ("perturbation_key", "control_category", "perturbation_type")


@dataclass(frozen=True, kw_only=True)
class ModalitySetup:
    """One matrix and the role it plays."""

    role: str
    """``"rna"``, ``"atac"`` or ``"protein"``."""
    name: str | None = None
    """Name in ``mdata.mod``; None for an AnnData."""
    layer: str | None = None
    """Name in ``layers``; None for ``X``."""
    counts: Literal["integer", "fractional", "intensity"] = "integer"
    """What the values are; anything but integers was asked for by name."""
    genome: str | None = None
    """Genome build of peaks, as :func:`~cellxpert.genome.builds.genome_of` gives it."""


@dataclass(frozen=True, kw_only=True)
class SpatialSetup:
    """Where cells are, and what is around them."""

    spatial_key: str | None = None
    """``obsm`` array with coordinates in two or three dimensions; None: places are not known."""
    library_key: str | None = None
    """Column of ``obs`` with the section of each cell; None: all are of one."""
    neighbors_key: str | None = None
    """``obsp`` graph of neighbours; None: the nearest by coordinates."""
    n_neighbors: int = 10
    """How many nearest neighbours make a niche."""
    image_key: str | None = None
    """``obsm`` array with image features."""

    @property
    def has_niche(self) -> bool:
        """Whether neighbours are known."""
        return self.spatial_key is not None or self.neighbors_key is not None


@dataclass(frozen=True, kw_only=True)
class LabelTerm:
    """What a label means."""

    label: str
    term: str
    """Its term of the Cell Ontology."""
    exact: bool = True
    """Whether the label means all cells of the term, not just some kind of them."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an object holds. Stored in ``uns["cellxpert_info"]["setup"]`` and in every checkpoint."""

    modalities: tuple[ModalitySetup, ...]
    """In the order of :data:`~cellxpert.data.roles.MEASURED`."""
    batch_key: str | None = None
    labels_key: str | None = None
    tissue_key: str | None = None
    unlabeled_category: str = "Unknown"
    perturbation_key: str | None = None
    control_category: str = "control"
    perturbation_type: str = "knockout"
    """What was done to the genes that a condition names."""
    spatial: SpatialSetup | None = None
    """None: nothing is said of where cells are."""
    label_terms: tuple[LabelTerm, ...] = ()
    """Labels whose meaning is known."""
    notes: tuple[str, ...] = ()
    """What the checks found worth a warning."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that are played."""
        return tuple(m.role for m in self.modalities)

    @property
    def token_roles(self) -> tuple[str, ...]:
        """Roles that features can have: those that are played, and the niche where neighbours are known."""
        niche = self.spatial is not None and self.spatial.has_niche
        return (*self.roles, NICHE) if niche else self.roles

    def modality(self, role: str) -> ModalitySetup:
        """Return the matrix that plays a role."""
        for m in self.modalities:
            if m.role == role:
                return m
        raise ModalityError("setup", found=f"no modality with the role {role!r}", fix=f"use one of {list(self.roles)}")

    def with_terms_of(self, other: Setup) -> Setup:
        """Return it with what another setup knows of labels that it does not know itself."""
        terms = {term.label: term for term in (*other.label_terms, *self.label_terms)}
        return replace(self, label_terms=tuple(terms.values()))

    def types_of(self, labels: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the code of the type that each label is a word for: labels that mean all cells of one term share theirs."""
        term_of = {term.label: term.term for term in self.label_terms if term.exact}
        first: dict[str, int] = {}
        return np.array([first.setdefault(term_of[x], i) if x in term_of else i for i, x in enumerate(labels)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values that HDF5, Zarr and JSON can hold; what is None is left out."""
        out: dict[str, Any] = {
            "modalities": {
                m.role: {k: v for k in ("name", "layer", "counts", "genome") if (v := getattr(m, k)) is not None}
                for m in self.modalities
            },
            "unlabeled_category": self.unlabeled_category,
        }
        out |= {k: v for k in ("batch_key", "labels_key", "tissue_key") if (v := getattr(self, k)) is not None}
        if self.perturbation_key is not None:
            out |= {k: getattr(self, k) for k in _PERTURBATION}
        if self.spatial is not None:
            out["spatial"] = {k: v for k, v in asdict(self.spatial).items() if v is not None}
        if self.label_terms:  # no label is a key: it may hold any character
            out["label_terms"] = {
                "labels": [t.label for t in self.label_terms],
                "terms": [t.term for t in self.label_terms],
                "exact": [int(t.exact) for t in self.label_terms],
            }
        return out | ({"notes": list(self.notes)} if self.notes else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setup:
        """Rebuild the record from :meth:`to_dict`, also after it went through a file.

        Raises
        ------
        NotSetUpError
            If the record is incomplete.
        """
        try:
            modalities = tuple(
                ModalitySetup(role=role, **{k: str(v) for k, v in data["modalities"][role].items()})
                for role in MEASURED
                if role in data["modalities"]
            )
            names = ("batch_key", "labels_key", "tissue_key", "unlabeled_category", *_PERTURBATION)
            texts = {k: str(data[k]) for k in names if k in data}
            notes = tuple(str(n) for n in np.atleast_1d(data.get("notes", ())))
            spatial = None
            if "spatial" in data:
                said = dict(data["spatial"])
                n_neighbors = int(said.pop("n_neighbors"))
                spatial = SpatialSetup(n_neighbors=n_neighbors, **{k: str(v) for k, v in said.items()})
            said = {k: np.atleast_1d(v).tolist() for k, v in data.get("label_terms", {}).items()}
            label_terms = (
                tuple(
                    LabelTerm(label=str(label), term=str(term), exact=bool(exact))
                    for label, term, exact in zip(*(said[k] for k in ("labels", "terms", "exact")), strict=True)
                )
                if said
                else ()
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NotSetUpError(
                "the stored setup", found=repr(error), fix="call setup_mudata or setup_anndata again"
            ) from error
        return cls(modalities=modalities, notes=notes, spatial=spatial, label_terms=label_terms, **texts)
