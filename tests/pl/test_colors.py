from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import is_color_like, to_rgb

from cellxpert.errors import PlotError
from cellxpert.pl import label_colors
from cellxpert.pl.colors import MISSING_COLOR, PALETTE, labels_in_order


def test_a_label_has_one_colour_whatever_the_order():
    first = label_colors(["T", "B", "NK"])
    assert first == label_colors(["NK", "NK", "T"], ["B"])
    assert first == label_colors(pd.Categorical(["T", "B", "NK"], categories=["T", "NK", "B", "unused"]))
    assert list(label_colors(pd.Categorical(["T", "B"], categories=["T", "B"]))) == ["T", "B"]  # order of the legend


def test_unknown_is_grey_and_last_and_missing_labels_get_none():
    colors = label_colors(pd.Series(["z", None, "Unknown", "a", np.nan]))
    assert list(colors) == ["a", "z", "Unknown"]
    assert colors["Unknown"] == MISSING_COLOR
    assert colors["a"] == PALETTE[0]
    assert label_colors(["Unknown", "a"], unknown=None)["Unknown"] != MISSING_COLOR


def test_given_colours_are_kept_and_not_given_twice():
    colors = label_colors(["a", "b", "c"], palette={"b": PALETTE[0], "other": PALETTE[1]})
    assert colors["b"] == PALETTE[0].lower()
    assert len({c.lower() for c in colors.values()}) == 3
    with pytest.raises(PlotError, match="'no colour' for 'a'"):
        label_colors(["a"], palette={"a": "no colour"})


def test_a_hundred_labels_have_a_hundred_colours():
    colors = label_colors([f"type {i:03d}" for i in range(100)])
    assert all(is_color_like(c) for c in colors.values())
    assert len({c.lower() for c in colors.values()}) == 100
    assert tuple(colors.values())[:20] == PALETTE


def _oklab(linear: np.ndarray) -> np.ndarray:
    to_lms = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    to_lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.0259040, 0.78277177, -0.80867577],
    ]
    return np.cbrt(np.clip(linear, 0, 1) @ np.transpose(to_lms)) @ np.transpose(to_lab)


@pytest.mark.parametrize(
    "sight",
    [
        np.eye(3),
        # Machado, Oliveira and Fernandes 2009, severity 1: protanopia, deuteranopia
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["normal", "protanopia", "deuteranopia"],
)
def test_the_first_twenty_colours_are_apart_for_all_eyes(sight):
    rgb = np.array([to_rgb(c) for c in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = _oklab(linear @ np.transpose(sight))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(20, k=1)]
    assert apart.min() > 0.055  # the nearest two of matplotlib's tab10 are 0.007 apart to a deuteranope
    assert np.linalg.norm(seen - _oklab(np.ones(3)), axis=-1).min() > 0.15  # and none is lost on white


def test_labels_in_order():
    assert labels_in_order(["b", "a", None]) == ["a", "b"]
    both = pd.Categorical(["b", "a"], categories=["b", "a", "c"])
    assert labels_in_order(both, both) == ["b", "a"]
    assert labels_in_order(both, pd.Categorical(["a"])) == ["a", "b"]
    assert labels_in_order([2, 10, 1]) == [1, 2, 10]
