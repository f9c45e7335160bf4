"""The network as the sampler's model: conditionals of movable features in the context of one cell, or of many.

Shape suffixes: C chains, A some of them, Q queries, R rows (questions of all chains end to end), M movable features,
K bins, D width, F factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellxpert.batch import Batch
from cellxpert.nn.factors import Evidence, Factors
from cellxpert.nn.network import Network
from cellxpert.nn.reader import Reader, Sites
from cellxpert.steering.conditionals import Choose

__all__ = ["NetworkConditionals"]

N_ROWS = 2**12
"""Rows whose answers become probabilities at once."""


class _Tilt:
    """What the network's factors add to the logits, from tables of the movable features."""

    def __init__(self, factors: Factors, evidence: Evidence, feature_M: Tensor) -> None:
        self.factors, self.evidence, self.feature_M = factors, evidence, feature_M
        bin_K = torch.arange(factors.level_MK.shape[1], device=feature_M.device)
        shape = (len(feature_M), len(bin_K))
        self.e_MK = factors.deviations(feature_M[:, None].expand(shape), bin_K.expand(shape))
        self.read_MF = factors.read(feature_M)
        self.expected = factors.expected(feature_M.expand(len(evidence.sum_BR), -1), evidence)

    def terms(self, site_R: Tensor, bin_R: Tensor, context_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what one value of each row adds to the two sums of the factors, (R, F) each."""
        e_R, precision_RF = self.e_MK[site_R, bin_R], self.read_MF[site_R] ** 2
        if self.expected is None:
            return e_R[:, None] * self.read_MF[site_R], precision_RF
        e_R = e_R - self.expected.moved_BM[context_R, site_R]
        more_RF = self.expected.spread_BM[context_R, site_R, None] * precision_RF
        return e_R[:, None] * self.read_MF[site_R] + more_RF * self.expected.z_BR[context_R], precision_RF + more_RF

    def sums(self, x_CM: Tensor, visible_RM: Tensor, chain_R: Tensor, *, context_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return what visible values add to the two sums of the factors, (R, F) each."""
        seen_RM = visible_RM.to(self.read_MF.dtype)
        first, last = int(chain_R[0]), int(chain_R[-1]) + 1
        e_CM = self.e_MK.gather(1, x_CM[first:last].T).T
        if self.expected is not None:
            e_CM = e_CM - self.expected.moved_BM[context_C[first:last]]
        sum_RF, precision_RF = (seen_RM * e_CM[chain_R - first]) @ self.read_MF, seen_RM @ self.read_MF**2
        if self.expected is None:
            return sum_RF, precision_RF
        context_R = context_C[chain_R]
        more_RF = (seen_RM * self.expected.spread_BM[context_R]) @ self.read_MF**2
        return sum_RF + more_RF * self.expected.z_BR[context_R], precision_RF + more_RF

    def __call__(self, site_R: Tensor, context_R: Tensor, sums: tuple[Tensor, Tensor]) -> Tensor:
        """Return what is added to the logits, (R, K)."""
        evidence = self.evidence.rows(context_R)
        tilt_R1K = self.factors.tilt(
            self.feature_M[site_R, None],
            evidence,
            sum_BQR=(evidence.sum_BR + sums[0])[:, None],
            precision_BQR=(evidence.precision_BR + sums[1])[:, None],
        )
        return tilt_R1K[:, 0]


class NetworkConditionals:
    """Answers ``cellxpert.steering.Conditionals`` from a network; contexts and weights are read once, at the start.

    It also answers different numbers of questions per chain and site after site (``cellxpert.steering.Packed``), so that a
    move costs what it changes. Kept are, per context, keys and values of its tokens in all layers but the first, and two vectors
    per movable feature; for all contexts together, the keys and values of every (feature, bin) in every layer.

    Parameters
    ----------
    network
        A network in evaluation mode: router noise and dropout would bias the law that is sampled.
    context
        Cells without their movable features: one, which serves all chains, or several, each with equally many chains
        (those of the first cell come first).
    feature_M
        Ids of the movable features.
    """

    @torch.no_grad()
    def __init__(self, network: Network, context: Batch, feature_M: Tensor) -> None:
        assert not network.training, "the network must be in evaluation mode"
        self.network, self.feature_M, self.n_contexts = network, feature_M, context.n_cells
        self.n_sites, self.n_bins = len(feature_M), network.n_bins
        memory = network.prepare(network.memory(network.encode(context)))
        self.reader = Reader(network.decoder, memory, self._sites())
        self.tilt = None
        if network.factors is not None and memory.evidence is not None:
            self.tilt = _Tilt(network.factors, memory.evidence, feature_M)

    def _sites(self) -> Sites:
        """Queries and values as the decoder sees them: the one place that says so."""
        bin_K = torch.arange(self.n_bins, device=self.feature_M.device)
        shape = (self.n_sites, self.n_bins)
        embedding = self.network.embedding
        return Sites(
            query_MD=embedding.queries(self.feature_M),
            value_MKD=embedding.tokens(self.feature_M[:, None].expand(shape), bin_K.expand(shape)),
        )

    def log_prob(self, query_CQ: Tensor, x_CM: Tensor, visible_CQM: Tensor) -> Tensor:
        """Return log p(bin of the queried feature | context, visible values), (C, Q, K)."""
        n_chains, n_queries = query_CQ.shape
        visible_RM = visible_CQM.expand(n_chains, -1, -1).flatten(0, 1)
        count_C = torch.full((n_chains,), n_queries, device=x_CM.device)
        log_p_RK = self.log_prob_packed(query_CQ.flatten(), x_CM, visible_RM, count_C=count_C)
        return log_p_RK.unflatten(0, (n_chains, n_queries))

    @torch.no_grad()
    def log_prob_packed(self, site_R: Tensor, x_CM: Tensor, visible_RM: Tensor, *, count_C: Tensor) -> Tensor:
        """Return log p(bin of the site | context, visible values), (R, K), of ``count_C`` questions per chain."""
        answer_RD = self.reader.answers(site_R, x_CM, visible_RM, count_C=count_C)
        chain_R = torch.repeat_interleave(torch.arange(len(x_CM), device=x_CM.device), count_C)
        context_C = self._context(len(x_CM))
        context_R = context_C[chain_R]
        log_p_RK = answer_RD.new_empty(len(site_R), self.n_bins)
        for start in range(0, len(site_R), N_ROWS):
            rows = slice(start, start + N_ROWS)
            sums = (
                None
                if self.tilt is None
                else self.tilt.sums(x_CM, visible_RM[rows], chain_R[rows], context_C=context_C)
            )
            log_p_RK[rows] = self._log_prob(site_R[rows], answer_RD[rows], context_R[rows], sums=sums)
        return log_p_RK

    @torch.no_grad()
    def in_order(self, x_CM: Tensor, order_CM: Tensor, *, start_C: Tensor, choose: Choose) -> None:
        """Ask for site after site of each chain's order, from ``start_C`` on, given those before it and their new values."""
        n_chains, context_C, sums = len(x_CM), self._context(len(x_CM)), None
        if self.tilt is not None:
            shown_CM = torch.zeros_like(x_CM, dtype=torch.bool)
            shown_CM.scatter_(1, order_CM, torch.arange(x_CM.shape[1], device=x_CM.device) < start_C[:, None])
            sums = self.tilt.sums(x_CM, shown_CM, torch.arange(n_chains, device=x_CM.device), context_C=context_C)

        def choose_bins(place: int, chain_A: Tensor, answer_AD: Tensor) -> Tensor:
            site_A = order_CM[chain_A, place]
            of_chains = None if sums is None else (sums[0][chain_A], sums[1][chain_A])
            bin_A = choose(place, chain_A, self._log_prob(site_A, answer_AD, context_C[chain_A], sums=of_chains))
            if self.tilt is not None and sums is not None:
                for total, term in zip(sums, self.tilt.terms(site_A, bin_A, context_C[chain_A]), strict=True):
                    total[chain_A] += term
            return bin_A

        self.reader.in_order(x_CM, order_CM, start_C=start_C, choose=choose_bins)

    def _context(self, n_chains: int) -> Tensor:
        """Context of each chain."""
        contexts = torch.arange(self.n_contexts, device=self.feature_M.device)
        return contexts.repeat_interleave(n_chains // self.n_contexts)

    def _log_prob(
        self, site_R: Tensor, answer_RD: Tensor, context_R: Tensor, *, sums: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        logits_RK = self.network.bins(answer_RD, self.feature_M[site_R])
        if self.tilt is not None and sums is not None:
            logits_RK = logits_RK + self.tilt(site_R, context_R, sums)
        return logits_RK.log_softmax(-1)
