from __future__ import annotations

import re

import anndata as ad
import h5py
import numpy as np
import pytest

import cellxpert as cx
from cellxpert.errors import CellxPertWarning, OntologyError
from cellxpert.ontology import CellOntology, match_labels
from cellxpert.ontology.abbreviations import CONTEXTS, MISLEADING, PHRASES

CD4, CD8 = "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell"
NAIVE_CD4, NAIVE_CD8 = (f"naive thymus-derived {kind}" for kind in (CD4, CD8))
CD14, CD16 = "CD14-positive, CD16-negative classical monocyte", "CD14-low, CD16-positive monocyte"
REVIEWED = {
    "pbmc3k.h5ad": {
        "B cells": "B cell",
        "CD14+ Monocytes": CD14,
        "CD4 T cells": CD4,
        "CD8 T cells": CD8,
        "Dendritic cells": "dendritic cell",
        "FCGR3A+ Monocytes": CD16,
        "Megakaryocytes": "megakaryocyte",
        "NK cells": "natural killer cell",
    },
    "pbmc_facs_zheng2017.h5ad": {
        "CD14+ Monocyte": CD14,
        "CD19+ B": "B cell, CD19-positive",
        "CD34+": "hematopoietic precursor cell",
        "CD4+ T Helper2": "T-helper 2 cell",
        "CD4+/CD25 T Reg": "CD4-positive, CD25-positive, alpha-beta regulatory T cell",
        "CD4+/CD45RA+/CD25- Naive T": NAIVE_CD4,
        "CD4+/CD45RO+ Memory": "CD4-positive, alpha-beta memory T cell, CD45RO-positive",
        "CD56+ NK": "natural killer cell",
        "CD8+ Cytotoxic T": "CD8-positive, alpha-beta cytotoxic T cell",
        "CD8+/CD45RA+ Naive Cytotoxic": NAIVE_CD8,
    },
    "pancreas_2protocols_2307x8634.h5ad": {
        "acinar": "pancreatic acinar cell",
        "activated_stellate": "pancreatic stellate cell",
        "alpha": "pancreatic A cell",
        "beta": "type B pancreatic cell",
        "delta": "pancreatic D cell",
        "ductal": "pancreatic ductal cell",
        "endothelial": "endothelial cell",
        "epsilon": "pancreatic epsilon cell",
        "gamma": "pancreatic PP cell",
        "macrophage": "macrophage",
        "mast": "mast cell",
        "quiescent_stellate": "pancreatic stellate cell",
        "schwann": "Schwann cell",
        "t_cell": "T cell",
    },
    "bmmc_multiome_neurips2021_set1.h5mu": {
        "B1 B": "B-1 B cell",
        "CD14+ Mono": CD14,
        "CD16+ Mono": CD16,
        "CD4+ T activated": f"activated {CD4}",
        "CD4+ T naive": NAIVE_CD4,
        "CD8+ T": CD8,
        "Erythroblast": "erythroblast",
        "G/M prog": "granulocyte monocyte progenitor cell",
        "HSC": "hematopoietic stem cell",
        "ID2-hi myeloid prog": "myeloid lineage restricted progenitor cell",
        "ILC": "innate lymphoid cell",
        "Lymph prog": "lymphoid lineage restricted progenitor cell",
        "MK/E prog": "megakaryocyte-erythroid progenitor cell",
        "NK": "natural killer cell",
        "Naive CD20+ B": "naive B cell",
        "Normoblast": "erythroblast",
        "Plasma cell": "plasma cell",
        "Proerythroblast": "proerythroblast",
        "Transitional B": "transitional stage B cell",
        "cDC2": "CD1c-positive myeloid dendritic cell",
        "pDC": "plasmacytoid dendritic cell",
    },
    "bmmc_cite_neurips2021_set2.h5mu": {
        "B1 B IGKC+": "B-1 B cell",
        "B1 B IGKC-": "B-1 B cell",
        "CD14+ Mono": CD14,
        "CD16+ Mono": CD16,
        "CD4+ T CD314+ CD45RA+": CD4,
        "CD4+ T activated": f"activated {CD4}",
        "CD4+ T activated CD194+": f"activated {CD4}",
        "CD4+ T activated CD279+": f"activated {CD4}",
        "CD4+ T activated integrinB7+": f"activated {CD4}",
        "CD4+ T naive": NAIVE_CD4,
        "CD8 T CD49f+": CD8,
        "CD8 T CD57+ CD45RA+": CD8,
        "CD8 T CD57+ CD45RA+ CD127-": CD8,
        "CD8 T CD57+ CD45RA+ TGIT+": CD8,
        "CD8 T CD57+ CD45RO+": CD8,
        "CD8 T CD69+ CD45RA+": CD8,
        "CD8 T CD69+ CD45RO+": CD8,
        "CD8 T TIGIT+ CD45RA+": CD8,
        "CD8 T TIGIT+ CD45RO+": CD8,
        "CD8+ T naive": NAIVE_CD8,
        "CD8+ T naive CD127+ CD26+ CD101+": NAIVE_CD8,
        "CD8+ T naive CD127+ CD26- CD101-": NAIVE_CD8,
        "Erythroblast": "erythroblast",
        "G/M prog": "granulocyte monocyte progenitor cell",
        "HSC": "hematopoietic stem cell",
        "ID2-hi myeloid prog": "myeloid lineage restricted progenitor cell",
        "ILC": "innate lymphoid cell",
        "ILC1": "ILC1",
        "Lymph prog": "lymphoid lineage restricted progenitor cell",
        "MAIT": "mucosal-associated invariant T cell",
        "MK/E prog": "megakaryocyte-erythroid progenitor cell",
        "NK": "natural killer cell",
        "NK CD158e1+": "natural killer cell",
        "Naive CD20+ B IGKC+": "naive B cell",
        "Naive CD20+ B IGKC-": "naive B cell",
        "Normoblast": "erythroblast",
        "Plasmablast": "plasmablast",
        "Proerythroblast": "proerythroblast",
        "Reticulocyte": "reticulocyte",
        "T reg": "regulatory T cell",
        "Transitional B": "transitional stage B cell",
        "cDC2": "CD1c-positive myeloid dendritic cell",
        "gdT CD158b+ CD11c+": "gamma-delta T cell",
        "gdT CD56+": "gamma-delta T cell",
        "gdT TCRVD2+": "gamma-delta T cell",
        "gdT Vd1 CD57+": "gamma-delta T cell",
        "pDC": "plasmacytoid dendritic cell",
    },
    "teaseq_pbmc_1262.h5mu": {
        "B.Activated": "B cell",
        "B.Naive": "naive B cell",
        "DC.Myeloid": "myeloid dendritic cell",
        "Mono.CD14": CD14,
        "Mono.CD16": CD16,
        "NK": "natural killer cell",
        "Platelets": "platelet",
        "T.CD4.Memory": "CD4-positive, alpha-beta memory T cell",
        "T.CD4.Naive": NAIVE_CD4,
        "T.CD8.Effector": f"effector {CD8}",
        "T.CD8.Naive": NAIVE_CD8,
    },
    "cite_pbmc10k_6661.h5mu": {
        "B": "B cell",
        "CD14 Mono": CD14,
        "CD16 Mono": CD16,
        "CD4 T": CD4,
        "CD8 T": CD8,
        "DC": "dendritic cell",
        "NK": "natural killer cell",
    },
    "tcell_subtypes_861x1011.h5ad": {
        "CD4-T-naive": NAIVE_CD4,
        "CD4-TCM": f"central memory {CD4}",
        "CD4-TEM": f"effector memory {CD4}",
        "CD8-T-KLRG1pos-effector": f"effector {CD8}",
        "CD8-T-naive": NAIVE_CD8,
        "CD8-TCM": f"central memory {CD8}",
        "MAIT": "mucosal-associated invariant T cell",
    },
    "pbmc8k_7480x200.h5ad": {
        "B-cells": "B cell",
        "CD4+ T-cells": CD4,
        "CD8+ T-cells": CD8,
        "Erythrocytes": "erythrocyte",
        "HSC": "hematopoietic stem cell",
        "Monocytes": "monocyte",
        "NA": "",
        "NK cells": "natural killer cell",
    },
    "snareseq_cortex_10309.h5mu": {"Ast": "astrocyte", "Endo": "endothelial cell", "Mic": "microglial cell"}
    | {"OPC": "oligodendrocyte precursor cell", "Peri": "pericyte"}
    | dict.fromkeys(
        [
            "Clau",
            "E2Rasgrf2",
            "E3Rmst",
            "E3Rorb",
            "E4Il1rapl2",
            "E4Thsd7a",
            "E5Galnt14",
            "E5Parm1",
            "E5Sulf1",
            "E5Tshz2",
        ],
        "",
    )
    | dict.fromkeys(["E6Tle4", "InN", "InP", "InS", "InV", "Mis", "OliI", "OliM"], ""),
}
"""File -> label -> name of the right term, checked by hand; "" for what must stay unmatched."""


def labels_of(path) -> list[str]:
    with h5py.File(path) as file:
        column = file["mod/rna/obs/cell_type" if "mod" in file else "obs/cell_type"]
        values = column["categories"][:] if isinstance(column, h5py.Group) else np.unique(column[:])
        return [value.decode() for value in values]


def how(label, ontology, **others):
    row = match_labels([label, *others.pop("beside", [])], ontology=ontology, **others).iloc[0]
    return row["term"], row["how"]


@pytest.mark.parametrize("file", sorted(REVIEWED))
def test_labels_of_real_data_get_the_terms_that_were_reviewed(real, real_data, file):
    labels = labels_of(real_data / file)
    table = match_labels(labels, ontology=real)
    assert dict(zip(table.index, table["name"], strict=True)) == REVIEWED[file]
    assert [real.name(term) if term else "" for term in table["term"]] == list(table["name"])


def test_labels_of_the_bundled_data(real):
    labels = cx.datasets.pbmc68k().obs["bulk_labels"]
    table = match_labels(labels, ontology=real)
    expected = REVIEWED["pbmc_facs_zheng2017.h5ad"] | {"Dendritic": "dendritic cell"}
    assert table["name"].to_dict() == {label: expected[label] for label in labels.unique()}


def test_labels_agree_with_the_ids_that_their_authors_gave(real, real_data):
    """Also written otherwise than in the ontology."""
    obs = ad.read_h5ad(real_data / "merfish_brain_1000x1122.h5ad").obs
    truth = obs.drop_duplicates("cell_type").set_index("cell_type")["cell_type_ontology_term_id"].astype(str)
    assert len(truth) == 21
    for write in (
        str,
        lambda s: s if s.endswith(")") else f"{s}s",
        lambda s: s.title().replace(" ", "_"),
        lambda s: " ".join(s.split()[::-1]),
    ):
        table = match_labels([write(name) for name in truth.index], ontology=real)
        assert table["term"].tolist() == truth.tolist()
    ids = match_labels(truth, ontology=real)
    assert set(ids["how"]) == {"id"}
    assert ids["name"].tolist() == truth.index.tolist()


def test_every_name_of_the_ontology_is_found_however_it_is_written(real):
    names = {real.name(term): term for term in real.terms}
    exact = match_labels(names, ontology=real)
    assert exact["term"].tolist() == list(names.values())
    assert set(exact["how"]) == {"name"}
    plain = match_labels([name.lower().replace(" ", "_") for name in names], ontology=real)
    rows = zip(names.items(), plain["term"], plain["how"], strict=True)
    other = {name: found for (name, right), term, found in rows if term != right}
    # what the field means otherwise, and pairs whose names differ by a prime or the order of their markers
    assert {name for name, found in other.items() if found != "ambiguous"} == {
        "acinar cell",
        "PP cell",
        "CD14-positive monocyte",
    }
    assert len(other) == 9


def test_phrases_are_of_the_ontology(real):
    for table in [PHRASES, *(table for _, table in CONTEXTS)]:
        for terms in table.values():
            assert all(term in real for term in ((terms,) if isinstance(terms, str) else terms))
    known = {synonym for term in real.terms for synonym in real.synonyms(term)}
    assert known >= MISLEADING


@pytest.mark.parametrize(
    ("label", "term", "found"),
    [
        ("X:T", "X:T", "id"),
        ("T cell", "X:T", "name"),
        ("nerve cell", "X:neuron", "synonym"),
        ("T-Cells", "X:T", "normalised"),
        (" t_lymphocytes ", "X:T", "normalised"),
        ("cells, motile", "X:motile", "normalised"),
        ("CD4+ alpha-beta T", "X:CD4", "normalised"),
        ("αβ CD4 T", "X:CD4", "normalised"),
        ("CD4pos T", "X:CD4", "abbreviation"),
        ("Mono", "X:mono", "abbreviation"),
        ("CD8 T 3", "X:CD8", "general"),
        ("T CD4+ CD57+ CD27- Vd2", "X:CD4", "general"),
        ("activated B", "X:B", "general"),
        ("CD4-", "", ""),
        ("CD4- T", "X:T", "general"),
        ("CD4+ CD8- T", "X:CD4", "general"),
        ("CD57+", "", ""),
        ("Doublets", "", ""),
        ("non-T", "", ""),
        ("T/B doublet", "", ""),
        ("", "", ""),
        ("7", "", ""),
    ],
)
def test_how_a_label_is_read(blood, label, term, found):
    assert how(label, blood) == (term, found)


def test_given_labels_that_do_not_occur_are_told(blood):
    with pytest.warns(CellxPertWarning, match=r"no label is \['T Cell'\]"):
        table = match_labels(["T cell", 3], given={"T Cell": "X:CD4", "3": "X:B"}, ontology=blood)
    assert table["term"].tolist() == ["X:T", "X:B"]  # a number is found as text


def test_given_terms_win_and_must_exist(blood):
    table = match_labels(
        ["T cell", "odd", "B cell"], given={"T cell": "X:CD4", "odd": "X:B", "B cell": ""}, ontology=blood
    )
    assert table["term"].tolist() == ["X:CD4", "X:B", ""]
    assert set(table["how"]) == {"given"}
    assert table["name"].tolist() == ["CD4-positive, alpha-beta T cell", "B cell", ""]
    with pytest.raises(OntologyError, match="X:old is obsolete"):
        match_labels(["a"], given={"a": "X:old"}, ontology=blood)


def test_ids_that_are_none_are_an_error(real):
    assert how("CL_0000084", real) == ("CL:0000084", "id")
    for label in ("CL:0000003", "CL:9999999"):
        with pytest.raises(OntologyError, match=label):
            match_labels(["T cell", label], ontology=real)


def test_two_terms_of_equal_standing_are_not_chosen_between():
    twins = CellOntology.from_terms({"X:1": ("one", [], ["twin", "Twins"]), "X:2": ("two", [], ["twin"])})
    table = match_labels(["twin", "TWIN", "one"], ontology=twins)
    assert table["term"].tolist() == ["", "", "X:1"]
    assert table["how"].tolist() == ["ambiguous", "ambiguous", "name"]
    assert table["name"].tolist() == ["one or two", "one or two", "one"]


def test_a_name_wins_over_another_terms_synonym():
    ontology = CellOntology.from_terms({"X:1": ("red cell", [], []), "X:2": ("blue cell", [], ["red cell", "red"])})
    assert match_labels(["red cell", "Red", "reds"], ontology=ontology)["term"].tolist() == ["X:1", "X:1", "X:1"]


def test_what_a_word_means_depends_on_the_tissue(real):
    assert how("alpha", real) == ("", "")
    assert how("alpha", real, beside=["beta"]) == ("CL:0000171", "abbreviation")
    assert how("acinar", real) == ("CL:0000622", "normalised")
    assert how("HSC", real) == ("CL:0000037", "abbreviation")
    assert how("HSC", real, beside=["Hepatocytes", "Kupffer cells"]) == ("", "ambiguous")
    assert how("endo", real) == ("", "")
    assert how("Endo", real, beside=["Astro", "Oligo"]) == ("CL:0000115", "abbreviation")


AZIMUTH = {
    "CD4 CTL": "CL:0000934",
    "CD4 Naive": "CL:0000895",
    "CD4 TCM": "CL:0000904",
    "CD4 TEM": "CL:0000905",
    "CD8 Naive": "CL:0000900",
    "CD8 TCM": "CL:0000907",
    "CD8 TEM": "CL:0000913",
    "MAIT": "CL:0000940",
    "NK": "CL:0000623",
    "NK_CD56bright": "CL:0000938",
    "Treg": "CL:0000815",
    "gdT": "CL:0000798",
    "B memory": "CL:0000787",
    "B naive": "CL:0000788",
    "Plasmablast": "CL:0000980",
    "CD16 Mono": "CL:0002396",
    "pDC": "CL:0000784",
    "cDC2": "CL:0002399",
    "HSPC": "CL:0008001",
    "Platelet": "CL:0000233",
    "ILC": "CL:0001065",
}
"""Labels of a much used PBMC reference that the sets above lack, and terms for them."""


@pytest.mark.parametrize(
    "write",
    [str, lambda s: re.sub(r"(CD\d+) ", r"\1+ ", s), lambda s: f"{s} cells", lambda s: ".".join(s.split()[::-1])],
)
def test_labels_of_a_blood_atlas(real, write):
    table = match_labels([write(label) for label in AZIMUTH], ontology=real)
    assert table["term"].tolist() == list(AZIMUTH.values())
    assert match_labels(["CD4+ Th17", "NKT", "Doublet", "other T"], ontology=real)["term"].tolist() == [
        "CL:0000899",
        "CL:0000814",
        "",
        "",
    ]


def test_misleading_synonyms_and_codes_of_atlases_match_nothing(real):
    assert set(match_labels(["VIP", "Vip Gaba", "LAMP5", "GM", "IPC", "E-1"], ontology=real)["how"]) == {""}
    assert real.name(how("CD16+ monocytes", real)[0]) == CD16
    assert real.name(how("DC2", real)[0]) == "CD1c-positive myeloid dendritic cell"


def test_the_table_has_each_label_once_in_its_order(blood):
    table = match_labels(np.array(["B", "T", "B", None], dtype=object), ontology=blood)
    assert table.index.tolist() == ["B", "T", ""]
    assert table.index.name == "label"
    assert table.columns.tolist() == ["term", "name", "how"]
    assert len(match_labels([], ontology=blood)) == 0
