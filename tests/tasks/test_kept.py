"""Conditions on disk are what they were, bit for bit; a folder belongs to one screen."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from cellxpert.errors import ResumeError
from cellxpert.tasks import kept
from cellxpert.tasks.kept import Part

SCREEN = {"model": "abc", "perturbations": [["JAK2", "(0.0,)"]], "settings": {"kappa": None, "weight": 1.0}}


def part(name="JAK2+é/ü") -> Part:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"variable": ["a", "b/c", "é"], "effect": rng.random(3), "is_target": [True, False, False]})
    table.loc[1, "effect"] = np.nan
    return Part(
        key=(name, "T/cell"),
        table=table,
        condition={"perturbation": name, "n_cells": 3, "seen": True, "r_hat": math.inf, "kappa": math.nan},
        baselines=pd.DataFrame({"baseline": ["no_change"] * 2, "effect": [0.0, 0.1]}),
        trajectory=pd.DataFrame({"arm": ["null"], "step": np.arange(1), "distance": np.nan, "burn_in": [False]}),
        expression={"start": rng.random((3, 2)).astype(np.float32), "null": np.full((3, 2), np.nan, np.float32)},
        latent={"start": rng.random((3, 4)).astype(np.float32)},
        cells=["c1", "c/2", "ç"],
        draws={"effect": rng.random((2, 3, 2)), "genes": np.array(["a", "é"])},
    )


def test_a_condition_is_read_back_as_it_was(tmp_path):
    one = part()
    kept.write(tmp_path, (3, 1), one)
    found = kept.read(tmp_path, (3, 1))
    assert found.key == one.key
    assert found.cells == one.cells
    np.testing.assert_equal(found.condition, one.condition)
    for name in ("table", "baselines", "trajectory"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(one, name), check_exact=True)
    for name in ("expression", "latent", "draws"):
        mine, other = getattr(one, name), getattr(found, name)
        assert list(mine) == list(other)
        for key, values in mine.items():
            assert values.dtype == other[key].dtype
            np.testing.assert_array_equal(values, other[key])
    assert {p.name for p in tmp_path.iterdir()} == {"condition-00003-001.json", "condition-00003-001.npz"}


def test_what_was_not_finished_is_not_there(tmp_path):
    assert kept.read(tmp_path, (0, 0)) is None
    assert kept.read(None, (0, 0)) is None
    kept.write(None, (0, 0), part())  # nowhere
    kept.write(tmp_path, (0, 0), part())
    (tmp_path / "condition-00000-000.json").unlink()  # interrupted between the two files
    assert kept.read(tmp_path, (0, 0)) is None


def test_files_appear_whole(tmp_path, monkeypatch):
    """A write that fails leaves nothing that would be read."""

    def fail(*args, **named):
        raise OSError("disk full")

    monkeypatch.setattr(kept.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        kept.write(tmp_path, (0, 0), part())
    assert kept.read(tmp_path, (0, 0)) is None


def test_a_folder_belongs_to_one_screen(tmp_path):
    folder = tmp_path / "new" / "screen"
    kept.open_folder(folder, SCREEN)
    kept.open_folder(folder, SCREEN | {"perturbations": [("JAK2", "(0.0,)")]})  # a tuple is a list in JSON
    other = SCREEN | {"settings": {"kappa": 0.1, "weight": 1.0}, "seed": 3}
    with pytest.raises(ResumeError, match="seed, settings differ") as caught:
        kept.open_folder(folder, other)
    assert "Fix: ask for the same as before, or name an empty folder" in str(caught.value)
    assert json.loads((folder / "screen.json").read_text())["model"] == "abc"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ResumeError, match="a file"):
        kept.open_folder(tmp_path / "x", SCREEN)
