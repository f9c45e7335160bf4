from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert import pl
from cellxpert.errors import PlotError


def _ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def _small(ax):
    return next(t.get_text() for t in ax.texts if t.get_fontsize() == 8.5)


def _result(effects, *, targets=None, genes=None, r_hat=None):
    """A result of the given effects (n_perturbations, n_genes)."""
    names = [f"p{i}" for i in range(len(effects))]
    genes = [f"g{i}" for i in range(np.shape(effects)[1])] if genes is None else genes
    targets = targets or {}
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "perturbation": name,
                    "group": "all",
                    "variable": genes,
                    "effect": effect,
                    "se": 0.1,
                    "is_target": [g in targets.get(name, ()) for g in genes],
                }
            )
            for name, effect in zip(names, effects, strict=True)
        ],
        ignore_index=True,
    )
    r_hat = np.ones(len(names)) if r_hat is None else np.asarray(r_hat)
    conditions = pd.DataFrame({"perturbation": names, "group": "all", "r_hat": r_hat, "converged": r_hat <= 1.01})
    return SimpleNamespace(table=table, conditions=conditions)


def _cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_cells_are_cosines_without_the_targets_of_any(perturbed):
    ax = pl.similarity(perturbed)
    names = [name.removesuffix("*") for name in _ticks(ax.yaxis)]
    assert _ticks(ax.xaxis) == _ticks(ax.yaxis)
    assert set(names) == {"GATA1", "GATA1+KLF1", "SPI1"}
    rows = perturbed.table[~perturbed.table["variable"].isin(["GATA1", "KLF1", "SPI1"])]
    effect = {name: rows.loc[rows["perturbation"] == name, "effect"].tolist() for name in names}
    expected = np.array([[_cosine(effect[a], effect[b]) for b in names] for a in names])
    assert np.asarray(ax.images[0].get_array()) == pytest.approx(expected)
    written = {tuple(map(int, t.get_position())): t.get_text() for t in ax.texts if t.get_fontsize() == 7}
    assert {place: float(text.replace("−", "-")) for place, text in written.items()} == {
        (j, i): pytest.approx(expected[i, j], abs=0.0051) for i in range(3) for j in range(3)
    }
    assert ax.images[0].get_clim() == (-1, 1)
    assert ax.images[0].get_cmap().name.startswith("RdBu")
    assert _small(ax) == "6 genes; 3 perturbed left out\n* chains did not converge"
    assert [name for name in _ticks(ax.yaxis) if name.endswith("*")] == ["SPI1*"]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 12))
def test_the_matrix_is_the_plain_loop_s(seed, n, n_genes):
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(n, n_genes))
    ax = pl.similarity(_result(effects), return_fig=True).axes[0]
    order = [int(name[1:]) for name in _ticks(ax.yaxis)]
    assert sorted(order) == list(range(n))
    expected = [[_cosine(effects[i], effects[j]) for j in order] for i in order]
    assert np.asarray(ax.images[0].get_array()) == pytest.approx(np.array(expected), abs=1e-12)


def test_perturbations_that_do_alike_lie_beside_one_another(perturbed):
    rng = np.random.default_rng(0)
    kinds = np.array([0, 1, 2] * 4)
    effects = np.eye(3)[kinds] @ rng.normal(size=(3, 40)) + 0.1 * rng.normal(size=(12, 40))
    ax = pl.similarity(_result(effects))
    found = kinds[[int(name[1:]) for name in _ticks(ax.yaxis)]]
    assert (np.diff(found) != 0).sum() == 2  # three blocks
    assert not (np.diff(kinds) == 0).any()  # not the order that they came in


def test_a_perturbation_without_effect_is_grey_and_last(perturbed):
    effects = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.5, 0.0, 0.6]])
    ax = pl.similarity(_result(effects))
    assert _ticks(ax.yaxis)[-1] == "p0"
    shown = np.ma.masked_invalid(ax.images[0].get_array())
    assert np.ma.getmaskarray(shown)[2].all()
    assert not np.ma.getmaskarray(shown)[:2, :2].any()
    assert "grey: no effect at all" in _small(ax)
    assert sum(t.get_fontsize() == 7 for t in ax.texts) == 4


def test_genes_without_an_effect_in_one_are_left_out_for_all(perturbed):
    effects = np.array([[1.0, 2.0, np.nan], [2.0, 1.0, 5.0]])
    ax = pl.similarity(_result(effects))
    assert ax.images[0].get_array()[0, 1] == pytest.approx(0.8)
    assert _small(ax) == "2 genes; 0 perturbed left out"


def test_what_cannot_be_compared(perturbed):
    with pytest.raises(PlotError, match="1 perturbation"):
        pl.similarity(_result([[1.0, 2.0]]))
    with pytest.raises(PlotError, match="no gene with an effect"):
        pl.similarity(_result([[1.0], [2.0]], targets={"p0": ["g0"]}))
    with pytest.raises(PlotError, match=r"(?s)'al' is not there.*'all'"):
        pl.similarity(perturbed, group="al")


def test_many_perturbations_get_no_numbers_and_very_many_no_names(perturbed):
    rng = np.random.default_rng(0)
    some = pl.similarity(_result(rng.normal(size=(13, 5))))
    assert len(_ticks(some.yaxis)) == 13
    assert len(some.texts) == 1  # the lines above
    many = pl.similarity(_result(rng.normal(size=(90, 5))))
    assert _ticks(many.yaxis) == []
    assert many.images[0].get_array().shape == (90, 90)


def test_title_and_scale(perturbed):
    figure = pl.similarity(perturbed, title="mine", colorbar=False, return_fig=True)
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "mine"
    assert not ax.child_axes
    (scale,) = pl.similarity(perturbed).child_axes
    assert scale.get_ylabel() == "cosine similarity"
    assert scale.get_ylim() == (-1, 1)


def test_names_are_neither_cut_off_nor_written_over(perturbed):
    rng = np.random.default_rng(0)
    result = _result(rng.normal(size=(20, 5)))
    longer = {f"p{i}": f"ENSG0000010214{i}+ENSG0000010514{i}" for i in range(20)}
    result = SimpleNamespace(
        table=result.table.replace({"perturbation": longer}),
        conditions=result.conditions.replace({"perturbation": longer}),
    )
    figure = pl.similarity(result, return_fig=True)
    for _ in range(2):  # matplotlib's layout settles at the second time
        figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert min(box.x0 for box in boxes) >= 0
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
    assert min(t.get_window_extent().y0 for t in figure.axes[0].get_xticklabels()) >= 0
