from __future__ import annotations

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from cellxpert import pl
from cellxpert.errors import PlotError
from cellxpert.pl.figure import begin, finish, new_figure


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr(pyplot, "show", lambda: calls.append(1))
    return calls


def test_figures_that_are_written_or_taken_are_not_kept_open(tmp_path, shown):
    for i in range(3):
        pl.confusion_matrix(["a", "b"], ["a", "a"], save=tmp_path / f"{i}.png")
    assert len(list(tmp_path.iterdir())) == 3
    assert isinstance(pl.confusion_matrix(["a"], ["a"], return_fig=True), Figure)
    assert not pyplot.get_fignums()
    assert not shown


def test_other_figures_are_pyplots_so_that_notebooks_display_them(shown):
    ax = pl.confusion_matrix(["a"], ["a"])
    assert pyplot.get_fignums() == [ax.figure.number]
    assert not shown
    pl.confusion_matrix(["a"], ["a"], show=True)
    assert shown == [1]


def test_given_axes_are_drawn_on():
    figure, (first, second) = pyplot.subplots(1, 2)
    assert pl.confusion_matrix(["a"], ["a"], ax=second) is second
    assert not first.images
    assert second.images
    assert pl.confusion_matrix(["a"], ["a"], ax=first, return_fig=True) is figure
    inner = pyplot.figure().subfigures(1, 2)[0].subplots()
    assert pl.confusion_matrix(["a"], ["a"], ax=inner, return_fig=True) is inner.figure.figure
    with pytest.raises(PlotError, match="ndarray"):
        pl.confusion_matrix(["a"], ["a"], ax=pyplot.subplots(1, 2)[1])


def test_begin_and_finish(tmp_path, shown):
    options = {"show": False, "save": None, "return_fig": True}
    ax = begin(None, figsize=(2, 3), **options)
    assert tuple(ax.figure.get_size_inches()) == (2, 3)
    assert finish("drawn", figure=ax.figure, **options) is ax.figure
    assert finish("drawn", figure=ax.figure, show=True, save=tmp_path / "x.pdf", return_fig=False) == "drawn"
    assert (tmp_path / "x.pdf").stat().st_size > 0
    assert shown == [1]
    assert new_figure(figsize=(2, 2), show=False, save=None, return_fig=False).number in pyplot.get_fignums()


def test_the_backend_stays(tmp_path):
    before = pyplot.get_backend()
    pl.confusion_matrix(["a"], ["a"], save=tmp_path / "x.svg")
    assert pyplot.get_backend() == before
