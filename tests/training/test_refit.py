"""Fitted responses against planted ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cellxpert.batch import Intervention
from cellxpert.config import NetworkConfig
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens
from cellxpert.nn.network import Network
from cellxpert.training.refit import MIN_CONDITIONS, refit_responses, refit_usual

N_FOLLOW = N_NEVER = 10
PER_CONDITION = 30


@dataclass
class Planted:
    """A network that is a factor model and nothing else, and cells that follow it: some features, so much, others never."""

    network: Network
    tokens: Tokens
    assigned: Assigned

    @property
    def rows(self) -> np.ndarray:
        return np.arange(self.tokens.n_cells)

    def fit(self, rows: np.ndarray | None = None) -> np.ndarray:
        refit_responses(self.network, self.tokens, rows=self.rows if rows is None else rows, assigned=self.assigned)
        return self.responses.copy()

    @property
    def responses(self) -> np.ndarray:
        return self.network.factors.intervention.response_V.numpy()


def _planted(strength: float, *, n_genes: int = 40, n_bins: int = 64) -> Planted:
    """Genes are knocked out one at a time; features after them follow with a strength, and the last ones never."""
    rng = np.random.default_rng(0)
    n_features, n_factors = n_genes + N_FOLLOW + N_NEVER, 6
    config = NetworkConfig(
        width=64,
        encoder_layers=1,
        decoder_layers=1,
        n_experts=2,
        expert_hidden=8,
        decoder_hidden=8,
        n_factors=n_factors,
    )
    network = Network(config, feature_modality=[0] * n_features, n_bins=n_bins, n_targets=n_genes).eval()
    grid, deviation = np.linspace(0, 4, n_bins), 0.4
    log_p = np.tile(-((grid - 2) ** 2) / (2 * deviation**2), (n_features, 1))
    loading = 0.3 * rng.normal(size=(n_features, n_factors))
    loading[:n_genes] = 0.6 * rng.choice([-1, 1], (n_genes, 1)) * np.eye(n_factors)[rng.integers(0, 6, n_genes)]
    network.set_bin_prior(torch.from_numpy(log_p))
    with torch.no_grad():
        for weight in (*network.bins.linear.parameters(), *network.factors.intervention.parameters()):
            weight.zero_()
    ones = torch.ones(n_features)
    network.factors.start_from(
        level_MK=torch.from_numpy(grid[None]).float(),
        cap_V=9 * ones,
        centre_V=2 * ones,
        deviation_V=deviation * ones,
        loading_VR=torch.from_numpy(loading).float(),
        unique_V=torch.from_numpy(1 - (loading**2).sum(axis=1)).float().clamp(min=0.1),
    )
    follows = np.repeat([strength, 0.0], [n_genes + N_FOLLOW, N_NEVER])
    gene_N = np.repeat(np.arange(-5, n_genes), PER_CONDITION).clip(min=-1)
    mean_NV = np.full((len(gene_N), n_features), 2.0)
    usual = network.blank_means(None)
    for gene in range(n_genes):
        effect = network.blank_means(_knocked_out(gene)) - usual
        mean_NV[gene_N == gene] += follows * effect.numpy()
    bins = np.rint((mean_NV + deviation * rng.normal(size=mean_NV.shape)) / grid[1]).clip(0, n_bins - 1).astype(int)
    bins[gene_N[:, None] == np.arange(n_features)] = 0
    measured = np.ones((n_genes + 1, n_features), bool)
    measured[np.arange(n_genes), np.arange(n_genes)] = False
    cell, feature = np.nonzero(bins)
    tokens = Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins > 0).sum(axis=1))],
        rows=np.arange(len(bins)),
        pattern=np.where(gene_N < 0, n_genes, gene_N).astype(np.int32),
        measured_features=measured,
    )
    dose = np.where(gene_N < 0, 0, -1)[:, None].astype(np.float32)
    return Planted(network, tokens, Assigned(gene_N[:, None], gene_N[:, None], dose))


def _knocked_out(gene: int) -> Intervention:
    return Intervention(
        feature_BI=torch.tensor([[gene]]),
        target_BI=torch.tensor([[-1]]),
        dose_BI=torch.tensor([[-1.0]]),
        before=True,
    )


def test_features_that_follow_respond_and_those_that_never_do_respond_less() -> None:
    weak, strong = _planted(1.0).fit(), _planted(2.0).fit()
    for found in (weak, strong):
        follow, never = found[-N_NEVER - N_FOLLOW : -N_NEVER], found[-N_NEVER:]
        assert never.max() < 0.5 * follow.min()
        assert (found >= 0).all()
    for found, truth in ((weak, 1.0), (strong, 2.0)):
        assert found[-N_NEVER - N_FOLLOW : -N_NEVER].mean() == pytest.approx(truth, rel=0.3)


def test_what_goes_the_other_way_is_not_carried_over() -> None:
    assert not _planted(-1.0).fit().any()


def test_values_are_compared_with_what_the_network_says_where_nothing_was_done() -> None:
    planted = _planted(1.0)
    before = {k: v.clone() for k, v in planted.network.state_dict().items()}
    refit_usual(planted.network)
    after = planted.network.state_dict()
    assert {k for k, v in after.items() if not v.equal(before[k])} == {"factors.intervention.log_usual_VK"}
    log_p = planted.network.bins.prior.weight[: planted.network.n_features].log_softmax(-1)
    np.testing.assert_allclose(
        planted.network.factors.intervention.log_usual_VK.exp(), log_p.exp().detach(), rtol=0, atol=1e-6
    )


def test_only_responses_change_and_a_second_fit_replaces_the_first() -> None:
    """Effects are compared with those of a full response, whatever was fitted before."""
    planted = _planted(1.0)
    before = {k: v.clone() for k, v in planted.network.state_dict().items()}
    first = planted.fit()
    after = planted.network.state_dict()
    assert {k for k, v in after.items() if not v.equal(before[k])} == {"factors.intervention.response_V"}
    np.testing.assert_array_equal(planted.fit(), first)


def test_responses_come_from_training_cells_with_one_gene_set() -> None:
    planted = _planted(1.0)
    training = planted.rows[::2]
    first = planted.fit(training)
    # the others hold anything
    other = _planted(1.0)
    other.tokens.bin[np.repeat(np.isin(other.rows, training, invert=True), other.tokens.lengths)] = 1
    np.testing.assert_array_equal(other.fit(training), first)
    # cells with two genes: neither conditions nor controls
    pairs = _planted(1.0)
    two = pairs.assigned.feature_NI[:, 0] == 7
    wide = {
        name: np.concatenate([x, np.where(two[:, None], 3, -1)], axis=1) for name, x in vars(pairs.assigned).items()
    }
    wide["dose_NI"] = np.concatenate([pairs.assigned.dose_NI, -two[:, None].astype(np.float32)], axis=1)
    pairs.assigned = Assigned(**wide)
    without = _planted(1.0)
    np.testing.assert_array_equal(pairs.fit(), without.fit(without.rows[~two]))


@pytest.mark.parametrize("enough", [False, True])
def test_few_conditions_leave_responses_alone(enough: bool) -> None:
    planted = _planted(1.0)
    kept = planted.assigned.feature_NI[:, 0] < MIN_CONDITIONS - 1 + enough
    with torch.no_grad():
        planted.network.factors.intervention.response_V.fill_(0.7)
    found = planted.fit(planted.rows[kept])
    assert (found == np.float32(0.7)).all() == (not enough)


def test_networks_without_interventions_are_left_alone() -> None:
    planted = _planted(1.0)
    for part in ("intervention", "factors"):
        setattr(planted.network.factors if part == "intervention" else planted.network, part, None)
        before = {k: v.clone() for k, v in planted.network.state_dict().items()}
        refit_responses(planted.network, planted.tokens, rows=planted.rows, assigned=planted.assigned)
        assert all(v.equal(before[k]) for k, v in planted.network.state_dict().items())
