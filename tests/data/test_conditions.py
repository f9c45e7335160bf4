"""Names of conditions say which genes were set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellxpert.data.conditions import DOSES, genes_of

GENE = st.from_regex(r"[A-Z][A-Z0-9\-]{0,7}", fullmatch=True).filter(
    lambda g: g.lower() not in {"control", "ctrl", "non-targeting", "nt", "nontargeting"}
)


@given(
    genes=st.lists(GENE, min_size=1, max_size=4),
    control=st.sampled_from(["control", "ctrl", "NT", "0 nM"]),
    data=st.data(),
)
def test_any_order_repetition_spacing_and_stand_in_for_no_gene(genes, control, data):
    """The genes that went into a name come out of it, sorted and once, whatever else is in it."""
    parts = [*genes, *data.draw(st.lists(st.sampled_from([*genes, control, "ctrl", "Non-Targeting", ""]), max_size=3))]
    parts = data.draw(st.permutations(parts))
    pad = data.draw(st.sampled_from(["", " "]))
    name = f"{pad}+{pad}".join(parts)
    assert genes_of(name, control) == tuple(sorted(set(genes)))


@pytest.mark.parametrize("control", ["control", "ctrl", "GATA1+KLF1", "vehicle"])
def test_the_control_sets_nothing_whatever_it_is_called(control):
    assert genes_of(control, control) == ()


@pytest.mark.parametrize(
    ("condition", "genes"),
    [
        ("KLF1", ("KLF1",)),
        ("KLF1+ctrl", ("KLF1",)),
        ("ctrl+KLF1", ("KLF1",)),
        ("KLF1+NT", ("KLF1",)),
        ("NT5E", ("NT5E",)),  # only a whole part stands for no gene
        ("NKX2-1+HLA-A", ("HLA-A", "NKX2-1")),
        ("ctrl+non-targeting", ()),
    ],
)
def test_examples(condition, genes):
    assert genes_of(condition, "control") == genes


def test_one_dose_takes_a_gene_away_and_its_opposite_doubles_it():
    assert DOSES == {"knockout": -1.0, "knockdown": -1.0, "overexpression": 1.0}
