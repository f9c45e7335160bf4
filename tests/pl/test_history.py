from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from cellxpert import pl
from cellxpert.errors import PlotError


def _lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.lines}


def _history():
    epoch = pd.RangeIndex(5, name="epoch")
    return {
        "loss_train": pd.DataFrame({"loss_train": [5.0, 4, 3, 2, 1]}, index=epoch),
        "loss_validation": pd.DataFrame({"loss_validation": [6.0, 5, 4, 3, 2]}, index=epoch),
        "val_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5],
        "lr": pd.Series([1e-3] * 5),
    }


def test_one_panel_per_quantity_training_and_validation_together():
    axes = pl.training_history(_history())
    assert [ax.get_title(loc="left") for ax in axes] == ["loss", "accuracy", "lr"]
    lines = _lines(axes[0])
    assert list(lines["training"]) == [5, 4, 3, 2, 1]
    assert list(lines["validation"]) == [6, 5, 4, 3, 2]
    assert list(_lines(axes[1])) == ["validation"]
    assert axes[2].get_legend() is None
    assert axes[0].get_xlabel() == "epoch"


@pytest.mark.parametrize(
    ("name", "title", "phase"),
    [
        ("train_loss", "loss", "training"),
        ("train_loss_epoch", "loss", "training"),
        ("loss_bins_train", "loss bins", "training"),
        ("val/loss", "loss", "validation"),
        ("validation_macro_f1", "macro f1", "validation"),
        ("train", "train", "training"),
        ("restrain", "restrain", None),
    ],
)
def test_names_of_quantities(name, title, phase):
    (ax,) = pl.training_history({name: [1, 2]})
    assert ax.get_title(loc="left") == title
    assert (phase is None) == (ax.get_legend() is None)
    if phase:
        assert list(_lines(ax)) == [phase]


def test_a_data_frame_and_a_choice_of_quantities():
    table = pd.DataFrame({"loss_train": [2.0, 1.0], "lr": [1.0, 1.0]}, index=[3, 4])
    (ax,) = pl.training_history(table, ["loss"])
    assert list(ax.lines[0].get_xdata()) == [3, 4]
    own = pyplot.subplots()[1]
    assert pl.training_history(table, ["lr"], ax=own) is own


def test_what_is_not_a_number_is_marked():
    (ax,) = pl.training_history({"loss_train": [3.0, np.nan, np.inf, 1.0]})
    assert [tuple(p) for p in ax.collections[0].get_offsets()] == [(1, 0), (2, 0)]
    assert np.isnan(ax.lines[0].get_ydata()[1:3]).all()
    assert "not a number" in [t.get_text() for t in ax.get_legend().texts]


def test_validation_every_few_epochs_is_joined_not_marked():
    (ax,) = pl.training_history({"loss_validation": [3.0, np.nan, 2.0, np.nan, 1.0]})
    assert list(ax.lines[0].get_xdata()) == [0, 2, 4]
    assert not ax.collections


def test_nothing_to_draw():
    with pytest.raises(PlotError, match="no values"):
        pl.training_history({})
    with pytest.raises(PlotError, match="no values"):
        pl.training_history({"loss_train": []})
    with pytest.raises(PlotError, match="typo"):
        pl.training_history(_history(), ["typo"])
    with pytest.raises(PlotError, match="3 quantities"):
        pl.training_history(_history(), ax=pyplot.subplots()[1])
