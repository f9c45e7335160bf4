from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from cellxpert.pl.labels import write_labels


def _axes():
    ax = Figure(figsize=(6, 5), layout="constrained").subplots()
    ax.set(xlim=(-1, 1), ylim=(0, 1))
    return ax


def _boxes(written):
    """Of the words alone: an annotation's own extent includes its line."""
    written[0].figure.draw_without_rendering()
    return np.array([Text.get_window_extent(t).extents for t in written])


def _meet(a, b):
    return bool((np.maximum(a[:2], b[:2]) < np.minimum(a[2:], b[2:])).all())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.01, 0.1, 1.0]))
def test_names_cover_neither_one_another_nor_the_frame(seed, n_names, spread):
    """Even where all points lie almost at one place."""
    rng = np.random.default_rng(seed)
    points = spread * rng.uniform([-0.9, 0.1], [0.9, 0.9], (n_names, 2)) + (1 - spread) * np.array([0.0, 0.5])
    ax = _axes()
    ax.scatter(*points.T)
    limits = ax.get_xlim(), ax.get_ylim()
    names = [f"GENE{i:03d}" for i in range(n_names)]
    written = write_labels(ax, points, names, clear_of=points)
    boxes = _boxes(written)
    assert [t.get_text() for t in written] == names
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    assert len(ax.texts) == n_names
    assert not any(_meet(boxes[i], boxes[j]) for i in range(n_names) for j in range(i))
    frame = np.array(ax.bbox.extents)
    assert (boxes[:, :2] >= frame[:2] - 1).all()
    assert (boxes[:, 2:] <= frame[2:] + 1).all()


def test_a_name_stands_right_of_its_point_if_nothing_is_there():
    ax = _axes()
    (name,) = write_labels(ax, np.array([[0.0, 0.5]]), ["HBB"], clear_of=np.array([[0.0, 0.5]]))
    x, y = ax.transData.transform((0.0, 0.5))
    x0, y0, x1, y1 = _boxes([name])[0]
    assert x < x0 < x + 12
    assert (y0 + y1) / 2 == pytest.approx(y, abs=2)
    assert name.arrow_patch is None
    assert tuple(name.xy) == pytest.approx((0.0, 0.5))


def test_a_name_gives_way_to_points_and_then_has_a_line():
    ax = _axes()
    crowd = np.stack(np.meshgrid(np.linspace(-0.25, 0.25, 30), np.linspace(0.42, 0.58, 30)), axis=-1).reshape(-1, 2)
    points = np.array([[0.0, 0.5]])
    (name,) = write_labels(ax, points, ["HBB"], clear_of=np.concatenate([points, crowd]))
    x0, y0, x1, y1 = _boxes([name])[0]
    seen = ax.transData.transform(crowd)
    assert not ((seen > [x0, y0]) & (seen < [x1, y1])).all(axis=1).any()
    assert name.arrow_patch is not None


def test_a_name_near_the_edge_turns_inwards():
    ax = _axes()
    points = np.array([[0.98, 0.99], [-0.98, 0.01]])
    boxes = _boxes(write_labels(ax, points, ["HLA-DRB1", "MT-ND4L"], clear_of=points))
    assert boxes[0, 2] < ax.bbox.x1
    assert boxes[0, 3] < ax.bbox.y1
    assert boxes[1, 0] > ax.bbox.x0


def test_names_that_find_no_place_are_left_out():
    """Two hundred names cannot stand around one point."""
    ax = _axes()
    points = np.tile([[0.0, 0.5]], (200, 1))
    written = write_labels(ax, points, [f"GENE{i:03d}" for i in range(200)], clear_of=points)
    boxes = _boxes(written)
    assert 20 < len(written) < 200
    assert written[0].get_text() == "GENE000"
    assert not any(_meet(boxes[i], boxes[j]) for i in range(len(boxes)) for j in range(i))
    assert len(ax.texts) == len(written)


def test_no_names():
    ax = _axes()
    assert write_labels(ax, np.empty((0, 2)), [], clear_of=np.empty((0, 2))) == []
