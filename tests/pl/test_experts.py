from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellxpert import pl
from cellxpert.datasets import synthetic
from cellxpert.errors import PlotError


def _ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


@pytest.fixture
def routed(adata):
    usage = np.random.default_rng(0).dirichlet(np.full(5, 0.5), size=60)
    usage[40:] = [1, 0, 0, 0, 0]
    adata.obsm["cellxpert_experts"] = usage.astype(np.float32)
    return adata


def _means(adata, groupby):
    usage, labels = adata.obsm["cellxpert_experts"].astype(float), list(adata.obs[groupby])
    return {
        name: [
            sum(u[k] for u, x in zip(usage, labels, strict=True) if x == name) / labels.count(name) for k in range(5)
        ]
        for name in ("T", "B", "NK")
    }


def test_fields_are_means_and_bars_effective_numbers_of_experts(routed):
    before = routed.copy()
    ax = pl.expert_routing(routed, "kind", title="mine")
    means = [*_means(routed, "kind").values(), routed.obsm["cellxpert_experts"].astype(float).mean(axis=0)]
    assert np.asarray(ax.images[0].get_array()) == pytest.approx(np.array(means))
    assert _ticks(ax.yaxis) == ["T (20)", "B (20)", "NK (20)", "all cells (60)"]
    assert _ticks(ax.xaxis) == ["0", "1", "2", "3", "4"]
    assert ax.images[0].get_clim() == (0, 1)  # NK cells use one expert alone
    assert ax.get_title(loc="left") == "mine"
    beside = ax.child_axes[0]
    expected = [np.exp(-sum(p * np.log(p) for p in row if p > 0)) for row in means]
    assert [bar.get_width() for bar in beside.patches] == pytest.approx(expected)
    assert [bar.get_y() + bar.get_height() / 2 for bar in beside.patches] == pytest.approx([0, 1, 2, 3])
    assert beside.patches[2].get_width() == pytest.approx(1)
    assert beside.get_xlim() == (0, 5)
    assert ax.get_ylim() == beside.get_ylim() == (3.5, -0.5)
    pd.testing.assert_frame_equal(routed.obs, before.obs)
    assert list(routed.uns) == list(before.uns)


def test_even_use_counts_every_expert(routed):
    routed.obsm["mine"] = np.full((60, 8), 1 / 8)
    ax = pl.expert_routing(routed, "kind", key="mine")
    assert [bar.get_width() for bar in ax.child_axes[0].patches] == pytest.approx([8] * 4)
    routed.obsm["one"] = np.ones((60, 1))
    assert [bar.get_width() for bar in pl.expert_routing(routed, "kind", key="one").child_axes[0].patches] == [1] * 4


def test_cells_without_a_label_or_usage_are_left_out(routed):
    routed.obs["kind"] = routed.obs["kind"].where(np.arange(60) > 4)
    ax = pl.expert_routing(routed, "kind")
    assert _ticks(ax.yaxis) == ["T (15)", "B (20)", "NK (20)", "all cells (55)"]
    assert np.asarray(ax.images[0].get_array())[3] == pytest.approx(routed.obsm["cellxpert_experts"][5:].mean(axis=0))
    mdata = synthetic(n_cells=40, n_genes=20, n_peaks=5, n_proteins=3, missing={"rna": 0.5})
    rna = mdata["rna"]
    rna.obsm["cellxpert_experts"] = np.full((rna.n_obs, 3), 1 / 3)
    assert _ticks(pl.expert_routing(mdata, "cell_type").yaxis)[-1] == f"all cells ({rna.n_obs})"


def test_many_types_and_experts(routed):
    routed.obsm["cellxpert_experts"] = np.random.default_rng(0).dirichlet(np.ones(64), size=60)
    names = [f"CD{i % 40}+/CD45RA+ quite a long name" for i in range(60)]
    figure = pl.expert_routing(routed, names, return_fig=True)
    for _ in range(2):
        figure.draw_without_rendering()
    ax = figure.axes[0]
    for labels in (ax.get_yticklabels(), ax.get_xticklabels()):
        boxes = [t.get_window_extent() for t in labels]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len(ax.get_yticklabels()) == 41
    everything = ax.get_tightbbox()
    assert everything.x0 >= 0
    assert everything.x1 <= figure.bbox.x1


def test_what_cannot_be_drawn(routed, adata):
    with pytest.raises(PlotError, match=r"(?s)obsm\['other'\].*model that has experts"):
        pl.expert_routing(routed, "kind", key="other")
    with pytest.raises(PlotError, match=r"obs\['typo'\]"):
        pl.expert_routing(routed, "typo")
    with pytest.raises(PlotError, match="no cell with a label"):
        pl.expert_routing(routed, [None] * 60)
    routed.obsm["cellxpert_experts"] = routed.obsm["cellxpert_experts"] * 2
    with pytest.raises(PlotError, match="rows that sum to 1"):
        pl.expert_routing(routed, "kind")
    with pytest.raises(PlotError, match="ndarray"):
        pl.expert_routing(np.ones((3, 2)), "kind")
