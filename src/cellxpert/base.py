"""What is done to an object before a model is made of it."""

from __future__ import annotations

from collections.abc import Mapping

from anndata import AnnData
from mudata import MuData

from cellxpert.data import setup as setups

__all__ = ["SetupMethods"]


class SetupMethods:
    """The class methods of a model that say what objects hold."""

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
        perturbation_key: str | None = None,
        control_category: str = "control",
        perturbation_type: str = "knockout",
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
        perturbation_key, control_category, perturbation_type
            Column of ``obs`` with the condition of each cell: ``control_category``, or the genes that were set, joined
            by ``"+"``; and what was done to them: ``"knockout"``, ``"knockdown"`` or ``"overexpression"``. Training then
            learns what doing this does.
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
            perturbation_key=perturbation_key,
            control_category=control_category,
            perturbation_type=perturbation_type,
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
        perturbation_key: str | None = None,
        control_category: str = "control",
        perturbation_type: str = "knockout",
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
        batch_key, labels_key, unlabeled_category, perturbation_key, control_category, perturbation_type, counts
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
            perturbation_key=perturbation_key,
            control_category=control_category,
            perturbation_type=perturbation_type,
            counts=counts,
        )
