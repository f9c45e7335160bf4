"""What the field writes for types of cells, where the Cell Ontology has other words. Data only; read by ``matching.py``.

Phrases are compared as ``matching.py`` reads labels: word order, case, plurals, separators and the word "cell" do not
count, and "CD4" is "CD4+". Several terms for a phrase: it is ambiguous, and stays unmatched.
"""

from __future__ import annotations

__all__ = ["CONTEXTS", "MISLEADING", "PHRASES", "WORDS"]

WORDS = {
    # blood and marrow
    "dc": "dendritic",
    "mono": "monocyte",
    "mk": "megakaryocyte",
    "mega": "megakaryocyte",
    "nk": "natural killer",
    "nkt": "natural killer t",
    "ilc": "innate lymphoid",
    "lymph": "lymphoid",
    "prog": "progenitor",
    "progen": "progenitor",
    "gc": "germinal center",
    "fcgr3a+": "cd16+",
    # T cells
    "gdt": "gamma delta t",
    "gd": "gamma delta",
    "abt": "alpha beta t",
    "ab": "alpha beta",
    "treg": "regulatory t",
    "reg": "regulatory",
    "tn": "naive t",
    "tcm": "central memory t",
    "tem": "effector memory t",
    "tscm": "stem memory t",
    "ctl": "cytotoxic t",
    "th": "t helper",
    "tfh": "follicular helper t",
    "eff": "effector",
    "mem": "memory",
    # anywhere
    "endoth": "endothelial",
    "epi": "epithelial",
    "fibro": "fibroblast",
    "macro": "macrophage",
}
"""Short word -> the words it stands for, wherever it occurs in a label."""

PHRASES: dict[str, str | tuple[str, ...]] = {
    # T cells. CD4 and CD8 T cells are alpha-beta T cells unless a label says otherwise (see matching.py).
    # CD45RA+ and CD25- is how naive ones are sorted, and "thymus-derived" is what the ontology calls them.
    "naive CD4 alpha-beta T": "CL:0000895",
    "naive CD4 CD45RA alpha-beta T": "CL:0000895",
    "naive CD4 CD45RA CD25- alpha-beta T": "CL:0000895",
    "naive CD8 alpha-beta T": "CL:0000900",
    "naive CD8 CD45RA alpha-beta T": "CL:0000900",
    "naive cytotoxic CD8 alpha-beta T": "CL:0000900",
    "naive cytotoxic CD8 CD45RA alpha-beta T": "CL:0000900",
    "regulatory CD4 alpha-beta T": "CL:0000792",  # the ontology names CD25 too, which is what they are sorted by
    "regulatory CD4 CD25 alpha-beta T": "CL:0000792",
    "stem memory CD4 alpha-beta T": "CL:0020033",
    "stem memory CD8 alpha-beta T": "CL:0020034",
    "CD4 alpha-beta T helper 1": "CL:0000545",
    "CD4 alpha-beta T helper 2": "CL:0000546",
    "CD4 alpha-beta T helper 17": "CL:0000899",
    "follicular helper CD4 alpha-beta T": "CL:0002038",
    "MAIT": "CL:0000940",
    # innate lymphoid cells
    "CD56bright natural killer": "CL:0000938",
    "CD56dim natural killer": "CL:0000939",
    "CD56 natural killer": "CL:0000623",  # all of them in human blood, more or less
    # B cells
    "naive CD20 B": "CL:0000788",  # as all of them are
    # monocytes. Beside CD16+ ones, CD14+ monocytes are the classical ones. Those are kinds of "CD14-positive monocyte", but
    # so is, in the ontology, "CD14-low, CD16-positive monocyte": the general term would make one label a kind of the other.
    "CD14 monocyte": "CL:0002057",
    "CD14": "CL:0002057",
    "CD16 monocyte": "CL:0002396",  # the synonym "CD16+ monocyte" is at the intermediate ones
    "CD14 CD16 monocyte": "CL:0002397",
    # dendritic cells. The synonyms "DC1" and "DC2" are older than today's use, in which pDC are neither.
    "cDC1": "CL:0002394",
    "DC1": "CL:0002394",
    "cDC2": "CL:0002399",
    "DC2": "CL:0002399",
    "ASDC": "CL:0017009",
    # progenitors
    "HSC": "CL:0000037",
    "HSPC": "CL:0008001",
    "CD34": "CL:0008001",  # cells sorted by CD34 from blood or marrow
    "CLP": "CL:0000051",
    "CMP": "CL:0000049",
    "GMP": "CL:0000557",
    "LMPP": "CL:0000936",
    "MK/E progenitor": "CL:0000050",
    "MEMP": "CL:0000050",
    "G/M progenitor": "CL:0000557",
    "lymphoid progenitor": "CL:0000838",
    "myeloid progenitor": "CL:0000839",
    # erythroid
    "erythroid": "CL:0000764",
    "ery": "CL:0000764",
    # outside the blood, where the short form has one meaning
    "OPC": "CL:0002453",
    "astro": "CL:0000127",
    "oligo": "CL:0000128",
    "microglia": "CL:0000129",
    "VLMC": "CL:4023051",
    "glut neuron": "CL:0000679",
    "gaba neuron": "CL:0000617",
}
"""Phrase -> term."""

CONTEXTS: tuple[tuple[tuple[str, ...], dict[str, str | tuple[str, ...]]], ...] = (
    (
        # islets: Greek letters mean hormones, and ducts and stellate cells are those of the pancreas
        ("alpha", "beta", "delta", "gamma", "epsilon", "PP", "acinar"),
        {
            "alpha": "CL:0000171",
            "beta": "CL:0000169",
            "delta": "CL:0000173",
            "gamma": "CL:0002275",
            "PP": "CL:0002275",
            "epsilon": "CL:0005019",
            "acinar": "CL:0002064",
            "ductal": "CL:0002079",
            "stellate": "CL:0002410",
        },
    ),
    (
        # liver: HSC may be its stellate cells or, in the fetus, blood stem cells
        ("hepatocyte", "cholangiocyte", "Kupffer", "LSEC"),
        {"HSC": ("CL:0000037", "CL:0000632"), "stellate": "CL:0000632"},
    ),
    (
        # brain
        ("astrocyte", "astro", "ast", "oligodendrocyte", "oligo", "OPC", "microglia", "micro", "mic", "neuron", "VLMC"),
        {
            "ast": "CL:0000127",
            "endo": "CL:0000115",
            "mic": "CL:0000129",
            "micro": "CL:0000129",
            "MGC": "CL:0000129",
            "peri": "CL:0000669",
            "SMC": "CL:0000192",
            "excitatory": "CL:0000679",
            "inhibitory": "CL:0000617",
        },
    ),
)
"""Tissues: phrases of which two or more among the labels betray it, and what its phrases mean there. Before ``PHRASES``."""

MISLEADING = frozenset({"ARC", "CD16+ monocyte", "DC1", "DC2", "IPC", "LC"})
"""Synonyms of the ontology that the field uses for other cells too, or instead: they match nothing by themselves."""
