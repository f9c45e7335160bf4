"""What users write, and what it means; whatever means nothing is refused with a line that mends it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellxpert.errors import GeneError, InterventionError
from cellxpert.tasks.interventions import Request, parse

KNOWN = {"JAK2", "STAT1", "GATA1", "A+B", "IRF1"}


def read(genes, *, default="knockout"):
    return parse(genes, known=KNOWN, default=default, n_bins=50)


@pytest.mark.parametrize(
    ("kind", "fold", "bin_", "suffix"),
    [
        ("knockout", 0.0, None, ""),
        ("knockdown", 0.2, None, "(knockdown)"),
        (("knockdown", 0.3), 0.3, None, "(knockdown 0.3)"),
        ("overexpression", 2.0, None, "(overexpression)"),
        (("fold", 1.5), 1.5, None, "(fold 1.5)"),
        (["fold", 0], 0.0, None, ""),  # a knockout by another name
        (("fold", np.float32(4)), 4.0, None, "(fold 4)"),
        (("bin", 40), math.nan, 40, "(bin 40)"),
        (("bin", np.int64(0)), math.nan, 0, "(bin 0)"),
    ],
    ids=str,
)
def test_every_kind(kind, fold, bin_, suffix):
    (request,) = read({"JAK2": kind})
    assert request.name == f"JAK2{suffix}"
    assert request.genes == ("JAK2",)
    np.testing.assert_equal(request.fold, (fold,))
    assert request.bins == (bin_,)


def test_forms_of_one_perturbation():
    pair = Request(name="JAK2+STAT1", genes=("JAK2", "STAT1"), fold=(0.0, 0.0), bins=(None, None))
    for form in (" JAK2 + STAT1 ", "JAK2+ctrl+STAT1", {"JAK2": "knockout", "STAT1": "knockout"}, ["JAK2+STAT1"]):
        assert read(form) == (pair,)
    for form in ("STAT1+JAK2", {"STAT1": "knockout", "JAK2": "knockout"}):  # named as it was written
        assert read(form) == (replace(pair, name="STAT1+JAK2"),)
    assert pair.condition == read("STAT1+JAK2")[0].condition == "JAK2+STAT1"
    assert read("JAK2+ctrl") == read("JAK2") == read(np.str_("JAK2"))
    (mixed,) = read({"STAT1": ("fold", 2.0), "GATA1": "knockout"})
    assert mixed.name == "STAT1(fold 2)+GATA1"
    assert mixed.genes == ("GATA1", "STAT1")
    assert mixed.fold == (0.0, 2.0)
    (plus,) = read("A+B")  # a gene of this name
    assert plus.genes == ("A+B",)


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Index, pd.Series, iter, lambda x: dict.fromkeys(x).keys()])
def test_forms_of_a_screen(form):
    assert [r.name for r in read(form(["STAT1", "JAK2"]))] == ["STAT1", "JAK2"]


def test_sets_have_one_order():
    assert [r.name for r in read({"STAT1", "JAK2", "IRF1"})] == ["IRF1", "JAK2", "STAT1"]


def test_the_registered_kind_is_the_default_and_is_not_named():
    assert read("JAK2", default="overexpression")[0].fold == (2.0,)
    assert read({"JAK2": "knockdown"}, default="knockdown")[0].name == "JAK2"
    assert read({"JAK2": "knockout"}, default="knockdown")[0].name == "JAK2(knockout)"


@pytest.mark.parametrize("kind", ["knockout", "knockdown", "overexpression"])
def test_what_was_registered_has_the_dose_of_the_training_cells(kind):
    """-1 for what takes a gene away (a knock-down as far as it went), 1 for what doubles it."""
    from cellxpert.data.conditions import DOSES

    assert read("JAK2", default=kind)[0].doses(kind) == (DOSES[kind],)


@pytest.mark.parametrize(
    ("kind", "registered", "dose"),
    [
        (("fold", 1.0), "knockout", 0.0),
        (("fold", 1.0), "knockdown", 0.0),
        (("knockdown", 0.3), "knockout", -0.7),
        (("knockdown", 0.6), "knockdown", -0.5),
        ("knockout", "knockdown", -1.25),
        ("overexpression", "knockdown", 1.0),
        (("fold", 8.0), "overexpression", 3.0),
        (("fold", 0.5), "overexpression", -0.5),
    ],
    ids=str,
)
def test_doses(kind, registered, dose):
    (found,) = read({"JAK2": kind})[0].doses(registered)
    assert found == pytest.approx(dose, abs=1e-12)


def test_a_bin_has_no_dose():
    assert math.isnan(read({"JAK2": ("bin", 3)})[0].doses("knockout")[0])


@given(st.floats(0, 10), st.floats(0, 10))
def test_doses_grow_with_the_fold(low, high):
    low, high = sorted((low, high))
    one, other = (Request("x", ("x",), (f,), (None,)).doses("knockdown")[0] for f in (low, high))
    assert one <= other


@pytest.mark.parametrize(
    "genes",
    [
        3,
        None,
        "",
        [],
        {},
        [""],
        [{}],
        "JAK2+JAK2",
        "ctrl+nt",
        ["JAK2", "JAK2"],
        ["JAK2+STAT1", "STAT1+JAK2"],
        [("JAK2", "STAT1")],
        [3],
        {"JAK2": "silence"},
        {"JAK2": None},
        {"JAK2": 0.3},
        {"JAK2": ("knockout", "overexpression")},
        {"JAK2": ("knockdown", -0.1)},
        {"JAK2": ("knockdown", 1.0)},
        {"JAK2": ("knockdown", math.nan)},
        {"JAK2": ("fold", -1.0)},
        {"JAK2": ("fold", math.inf)},
        {"JAK2": ("fold", "2")},
        {"JAK2": ("fold", True)},
        {"JAK2": ("fold", 2.0, 3.0)},
        {"JAK2": ("bin", 50)},
        {"JAK2": ("bin", -1)},
        {"JAK2": ("bin", 1.5)},
        {"JAK2": ("bin", math.nan)},
        {"JAK2": ("dose", 1.0)},
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(genes):
    with pytest.raises(InterventionError) as caught:
        read(genes)
    assert caught.value.code == "CX502"
    assert "Fix: " in str(caught.value)


def test_unknown_genes_are_refused_with_the_nearest_name():
    with pytest.raises(GeneError, match=r"'Jak2'.*\n.*\nFix: did you mean 'JAK2'\?"):
        read("Jak2")
    with pytest.raises(GeneError, match="use one of"):
        read(["JAK2", "zzzzzz"])
    with pytest.raises(GeneError, match="7"):
        read({7: "knockout"})


def test_a_long_list_takes_no_time():
    many = [f"G{i}" for i in range(20_000)]
    assert len(parse(many, known=set(many), default="knockout", n_bins=50)) == 20_000
