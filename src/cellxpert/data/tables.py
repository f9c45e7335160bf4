"""The table of a SpatialData: an AnnData that annotates regions; nothing else of the object is read or written."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from cellxpert import keys
from cellxpert.data.obs import closest
from cellxpert.errors import ObjectTypeError, SpatialError

__all__ = ["region_key", "require_coordinates", "table_of"]

_ATTRS = "spatialdata_attrs"


def _is_spatialdata(data: Any) -> bool:
    return type(data).__module__.split(".")[0] == "spatialdata" and hasattr(data, "tables")


def table_of(data: Any, table_key: str | None = None) -> Any:
    """Return the table of a SpatialData; any other object as it is.

    Parameters
    ----------
    data
        The object.
    table_key
        Name of the table; None: the one that was set up, or the only one.

    Raises
    ------
    ObjectTypeError
        If a name was given and the object has no such table, or if none was given and several could be meant.
    """
    if not _is_spatialdata(data):
        if table_key is None:
            return data
        kind = type(data).__qualname__
        raise ObjectTypeError("sdata", found=kind, fix="give a SpatialData, or call setup_anndata or setup_mudata")
    names = list(data.tables)
    if table_key is None:
        ready = [name for name in names if keys.SETUP in data.tables[name].uns.get(keys.INFO, {})] or names
        if len(ready) != 1:
            found = f"a SpatialData with the tables {names}"
            fix = f"call cellxpert.CellxPert.setup_spatialdata(sdata, table_key={(names or ['table'])[0]!r}) first"
            if len(ready) > 1 and keys.SETUP in data.tables[ready[0]].uns.get(keys.INFO, {}):
                found, fix = (
                    f"the tables {ready} are all set up",
                    f"give the one that is meant: sdata.tables[{ready[0]!r}]",
                )
            raise ObjectTypeError("sdata", found=found, fix=fix)
        return data.tables[ready[0]]
    if table_key not in names:
        near = closest(str(table_key), names)
        fix = f"did you mean {near!r}?" if near else f"use one of {names}" if names else "add a table to it"
        raise ObjectTypeError(f"sdata.tables[{table_key!r}]", found="no such table", fix=fix)
    return data.tables[table_key]


def region_key(table: AnnData) -> str | None:
    """Return the column that says which region each cell is of, if it names several regions."""
    key = table.uns.get(_ATTRS, {}).get("region_key")
    return str(key) if key in table.obs and table.obs[key].nunique() > 1 else None


def require_coordinates(table: AnnData, key: str, *, table_key: str) -> None:
    """Raise ``SpatialError``, with the line that makes them, if a table lacks its coordinates."""
    if key in table.obsm:
        return
    attrs, where = table.uns.get(_ATTRS, {}), f"sdata.tables[{table_key!r}]"
    region, instance = attrs.get("region_key"), attrs.get("instance_key")
    fix = f"put them there: {where}.obsm[{key!r}] = ..., one row per cell"
    if region in table.obs and instance in table.obs:
        fix = (
            f"take the centroids of the regions:\n"
            f"table = {where}\n"
            f"table.obsm[{key!r}] = numpy.zeros((table.n_obs, 2))\n"
            f"for region, rows in table.obs.groupby({region!r}, observed=True).indices.items():\n"
            f"    xy = spatialdata.get_centroids(sdata[region]).compute()\n"
            f"    table.obsm[{key!r}][rows] = xy.loc[table.obs[{instance!r}].iloc[rows], ['x', 'y']].to_numpy()"
        )
    found = f"no coordinates; obsm has {sorted(table.obsm)}"
    raise SpatialError(f"{where}.obsm[{key!r}]", found=found, fix=fix)
