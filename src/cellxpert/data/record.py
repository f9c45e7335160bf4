"""The record of a setup: which matrix plays which role, and which columns of ``obs`` mean what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cellxpert.data.vocabulary import MODALITIES
from cellxpert.errors import ModalityError, NotSetUpError

__all__ = ["ModalitySetup", "Setup"]

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


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an object holds. Stored in ``uns["cellxpert_info"]["setup"]`` and in every checkpoint."""

    modalities: tuple[ModalitySetup, ...]
    """In the order of :data:`~cellxpert.data.vocabulary.MODALITIES`."""
    batch_key: str | None = None
    labels_key: str | None = None
    unlabeled_category: str = "Unknown"
    perturbation_key: str | None = None
    control_category: str = "control"
    perturbation_type: str = "knockout"
    """What was done to the genes that a condition names."""
    notes: tuple[str, ...] = ()
    """What the checks found worth a warning."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that are played."""
        return tuple(m.role for m in self.modalities)

    def modality(self, role: str) -> ModalitySetup:
        """Return the matrix that plays a role."""
        for m in self.modalities:
            if m.role == role:
                return m
        raise ModalityError("setup", found=f"no modality with the role {role!r}", fix=f"use one of {list(self.roles)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values that HDF5, Zarr and JSON can hold; what is None is left out."""
        out: dict[str, Any] = {
            "modalities": {
                m.role: {k: v for k in ("name", "layer", "counts") if (v := getattr(m, k)) is not None}
                for m in self.modalities
            },
            "unlabeled_category": self.unlabeled_category,
        }
        out |= {k: v for k in ("batch_key", "labels_key") if (v := getattr(self, k)) is not None}
        if self.perturbation_key is not None:
            out |= {k: getattr(self, k) for k in _PERTURBATION}
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
                for role in MODALITIES
                if role in data["modalities"]
            )
            names = ("batch_key", "labels_key", "unlabeled_category", *_PERTURBATION)
            texts = {k: str(data[k]) for k in names if k in data}
            notes = tuple(str(n) for n in np.atleast_1d(data.get("notes", ())))
        except (KeyError, TypeError, AttributeError) as error:
            raise NotSetUpError(
                "the stored setup", found=repr(error), fix="call setup_mudata or setup_anndata again"
            ) from error
        return cls(modalities=modalities, notes=notes, **texts)
