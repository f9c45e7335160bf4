"""What is done to an object before a model is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert.data import setup as setups
from cellxpert.data.tables import region_key, require_coordinates, table_of
from cellxpert.terms import name_terms, whole_setup

if TYPE_CHECKING:
    from spatialdata import SpatialData

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
        tissue_key: str | None = None,
        unlabeled_category: str = "Unknown",
        label_terms: str | Mapping[str, str] | pd.DataFrame | None = None,
        perturbation_key: str | None = None,
        control_category: str = "control",
        perturbation_type: str = "knockout",
        counts: str | Mapping[str, str] = "auto",
        spatial_key: str | None = None,
        library_key: str | None = None,
        neighbors_key: str | None = None,
        n_neighbors: int = 10,
        image_key: str | None = None,
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
        tissue_key
            Column of ``obs`` with the tissue of each cell, which a head of its own then learns to name.
        unlabeled_category
            Label of cells whose type is not known.
        label_terms
            What labels mean, as terms of the Cell Ontology: ``"auto"`` finds them by name, a mapping (or the table that
            ``cellxpert.ontology.match_labels`` returns) gives them. A cell with a coarse label ("T cell") may then be of any finer
            label ("CD8 T cell") in training, and predicted labels have terms. None: labels are names, and exclude one another.
        perturbation_key, control_category, perturbation_type
            Column of ``obs`` with the condition of each cell: ``control_category``, or the genes that were set, joined
            by ``"+"``; and what was done to them: ``"knockout"``, ``"knockdown"`` or ``"overexpression"``. Training then
            learns what doing this does.
        counts
            ``"auto"`` requires raw counts; ``"fractional"`` allows corrected ones, ``"intensity"`` imaging intensities.
        spatial_key
            ``obsm`` array with coordinates in 2-D or 3-D, in any unit; of the modalities first, then of the MuData. Cells are
            then read with their place and their niche: the mean of what their neighbours have.
        library_key
            Column of ``obs`` with the section (slide, field of view) of each cell: cells of two sections are no neighbours, and each
            section has a scale of its own. None: all cells are of one.
        neighbors_key
            Graph of neighbours in place of the nearest by coordinates: its name in ``obsp``, or squidpy's ``key_added``
            (``"spatial"`` for ``obsp["spatial_connectivities"]``).
        n_neighbors
            How many nearest neighbours make a niche.
        image_key
            ``obsm`` array with image features of each cell.

        Raises
        ------
        CellxPertError
            Its kind and message say what is wrong, where, and which line mends it.

        Notes
        -----
        **Writes** ``mdata.uns["cellxpert_info"]["setup"]``, nothing else.
        """
        with whole_setup(mdata):
            setups.setup_mudata(
                mdata,
                rna=rna,
                atac=atac,
                protein=protein,
                layers=layers,
                batch_key=batch_key,
                labels_key=labels_key,
                tissue_key=tissue_key,
                unlabeled_category=unlabeled_category,
                perturbation_key=perturbation_key,
                control_category=control_category,
                perturbation_type=perturbation_type,
                counts=counts,
                spatial=setups.spatial_setup(
                    spatial_key=spatial_key,
                    library_key=library_key,
                    neighbors_key=neighbors_key,
                    n_neighbors=n_neighbors,
                    image_key=image_key,
                ),
            )
            name_terms(mdata, label_terms)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        modality: str = "rna",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        tissue_key: str | None = None,
        unlabeled_category: str = "Unknown",
        label_terms: str | Mapping[str, str] | pd.DataFrame | None = None,
        perturbation_key: str | None = None,
        control_category: str = "control",
        perturbation_type: str = "knockout",
        counts: str = "auto",
        spatial_key: str | None = None,
        library_key: str | None = None,
        neighbors_key: str | None = None,
        n_neighbors: int = 10,
        image_key: str | None = None,
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
        batch_key, labels_key, tissue_key, unlabeled_category, label_terms, perturbation_key, control_category, perturbation_type, counts
            As in :meth:`setup_mudata`.
        spatial_key, library_key, neighbors_key, n_neighbors, image_key
            As in :meth:`setup_mudata`.

        Raises
        ------
        CellxPertError
            As in :meth:`setup_mudata`.

        Notes
        -----
        **Writes** ``adata.uns["cellxpert_info"]["setup"]``, nothing else.
        """
        with whole_setup(adata):
            setups.setup_anndata(
                adata,
                modality=modality,
                layer=layer,
                batch_key=batch_key,
                labels_key=labels_key,
                tissue_key=tissue_key,
                unlabeled_category=unlabeled_category,
                perturbation_key=perturbation_key,
                control_category=control_category,
                perturbation_type=perturbation_type,
                counts=counts,
                spatial=setups.spatial_setup(
                    spatial_key=spatial_key,
                    library_key=library_key,
                    neighbors_key=neighbors_key,
                    n_neighbors=n_neighbors,
                    image_key=image_key,
                ),
            )
            name_terms(adata, label_terms)

    @classmethod
    def setup_spatialdata(
        cls,
        sdata: SpatialData,
        *,
        table_key: str,
        modality: str = "rna",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        tissue_key: str | None = None,
        unlabeled_category: str = "Unknown",
        label_terms: str | Mapping[str, str] | pd.DataFrame | None = None,
        perturbation_key: str | None = None,
        control_category: str = "control",
        perturbation_type: str = "knockout",
        counts: str = "auto",
        spatial_key: str | None = "spatial",
        library_key: str | None = None,
        neighbors_key: str | None = None,
        n_neighbors: int = 10,
        image_key: str | None = None,
    ) -> None:
        """Say what the matrix of one table of a SpatialData holds, check all of its values, and record that.

        The table is then what is read and written wherever the SpatialData is given: ``CellxPert(sdata)``,
        ``model.annotate(sdata)``. Its rows, its ``uns["spatialdata_attrs"]`` and all other elements stay as they are.

        Parameters
        ----------
        sdata
            The object.
        table_key
            Name in ``sdata.tables``.
        spatial_key
            ``obsm`` array of the table with coordinates, all in one coordinate system; None for none.
        library_key
            Column with the section of each cell; by default the table's ``region_key``, if it names several regions.
        modality, layer, batch_key, labels_key, tissue_key, unlabeled_category, label_terms, perturbation_key, control_category, perturbation_type, counts
            As in :meth:`setup_anndata`.
        neighbors_key, n_neighbors, image_key
            As in :meth:`setup_mudata`.

        Raises
        ------
        ObjectTypeError
            If there is no such table.
        SpatialError
            If the table has no coordinates; the message has the line that takes them from the regions.
        CellxPertError
            As in :meth:`setup_mudata`.

        Notes
        -----
        **Writes** ``sdata.tables[table_key].uns["cellxpert_info"]["setup"]``, nothing else.
        """
        table = table_of(sdata, table_key)
        if spatial_key is not None:
            require_coordinates(table, spatial_key, table_key=table_key)
        if library_key is None and (spatial_key or neighbors_key):
            library_key = region_key(table)
        with whole_setup(table):
            setups.setup_anndata(
                table,
                modality=modality,
                layer=layer,
                batch_key=batch_key,
                labels_key=labels_key,
                tissue_key=tissue_key,
                unlabeled_category=unlabeled_category,
                perturbation_key=perturbation_key,
                control_category=control_category,
                perturbation_type=perturbation_type,
                counts=counts,
                spatial=setups.spatial_setup(
                    spatial_key=spatial_key,
                    library_key=library_key,
                    neighbors_key=neighbors_key,
                    n_neighbors=n_neighbors,
                    image_key=image_key,
                ),
            )
            name_terms(table, label_terms)
