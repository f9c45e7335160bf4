"""What the labels of an object mean: found in the Cell Ontology or given, and recorded with the setup."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
from anndata import AnnData
from mudata import MuData

from cellxpert import keys
from cellxpert.data import setup as setups
from cellxpert.data.cells import Cells
from cellxpert.data.record import LabelTerm
from cellxpert.errors import CellxPertWarning, ConfigError
from cellxpert.ontology import CellOntology, match_labels

__all__ = ["name_terms", "whole_setup"]

_MAX_SHOWN = 20


@contextmanager
def whole_setup(data: AnnData | MuData) -> Iterator[None]:
    """Set an object up in several steps: if one fails, what was recorded before is there again."""
    uns = getattr(data, "uns", {})  # no object at all is for the first step to refuse
    before = uns.get(keys.INFO)
    try:
        yield
    except BaseException:
        if before is None:
            uns.pop(keys.INFO, None)
        else:
            uns[keys.INFO] = before
        raise


def name_terms(data: AnnData | MuData, label_terms: str | Mapping[str, str] | pd.DataFrame | None) -> None:
    """Add the terms of its labels to the setup of an object.

    Raises
    ------
    ConfigError
        If there is no label column, or ``label_terms`` is something else.
    OntologyError
        If a term is unknown or obsolete.
    OntologyMissingError
        If the package with the ontology is not installed.

    Warns
    -----
    CellxPertWarning
        To the caller of the setup: labels without a term, and labels whose term is coarser than they are.
    """
    if label_terms is None:
        return
    setup = setups.read_setup(data)
    labels = Cells.open(data, setup).labels()
    if labels is None:
        raise ConfigError("label_terms=", found="no labels_key", fix="name the column of the labels: labels_key=")
    names = sorted(set(labels) - {setup.unlabeled_category})
    table = _table(names, label_terms)
    terms = tuple(
        LabelTerm(label=name, term=row.term, exact=row.how != "general")
        for name, row in zip(table.index, table.itertuples(), strict=True)
        if row.term
    )
    setups.record_terms(data, terms)
    for text in _findings(table):
        warnings.warn(text, CellxPertWarning, stacklevel=3)


def _table(names: list[str], label_terms: object) -> pd.DataFrame:
    """One row per label of the object, as ``match_labels`` makes it."""
    if isinstance(label_terms, str):
        if label_terms != "auto":
            found = repr(label_terms)
            raise ConfigError("label_terms=", found=found, fix="pass 'auto', or a mapping from label to term")
        return match_labels(names)
    if isinstance(label_terms, pd.DataFrame):
        if not {"term", "how"} <= set(label_terms.columns):
            found = f"a table with the columns {list(label_terms.columns)[:5]}"
            raise ConfigError(
                "label_terms=", found=found, fix="pass the table of cellxpert.ontology.match_labels(labels)"
            )
        given, how = label_terms["term"].to_dict(), label_terms["how"].to_dict()
    elif isinstance(label_terms, Mapping):
        given, how = dict(label_terms), {}
    else:
        raise ConfigError(
            "label_terms=", found=repr(label_terms)[:80], fix="pass 'auto', or a mapping from label to term"
        )
    ontology = CellOntology()
    rows = []
    for name in names:
        term = str(given.get(name, ""))
        rows.append((term, ontology.name(term) if term else "", str(how.get(name, "given")) if term else ""))
    return pd.DataFrame(rows, index=names, columns=["term", "name", "how"])


def _findings(table: pd.DataFrame) -> list[str]:
    """What to say of labels that are not what a term says."""
    without = [repr(name) for name in table.index[table["term"] == ""]]
    coarser = [f"{name!r} ({term})" for name, term in table.loc[table["how"] == "general", "name"].items()]
    texts = []
    if without:
        texts.append(
            f"labels without a term of the Cell Ontology: {_shown(without)}; each stands for itself alone. "
            "Give their terms: label_terms={label: term}"
        )
    if coarser:
        texts.append(f"labels that are finer than the nearest term: {_shown(coarser)}; each stands for itself alone")
    return texts


def _shown(names: list[str]) -> str:
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
