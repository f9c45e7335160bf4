"""A factor model inside the network: what any set of visible magnitudes says about any feature, and what an intervention does.

Attention has to discover from scratch which features go together; a factor model starts from it. Magnitudes, standardised,
are x = loading z + noise with z ~ N(0, 1). Every visible magnitude adds evidence on z, so that for each query

    z = (sum of read(i) e_i + prior) / (1 + sum of read(i)^2),    e_i = (magnitude - usual magnitude) * scale,

over the features i that it sees: the posterior mean, with its precision taken as diagonal. Genes are read as counts of a usual cell
(on a log scale), whose noise does not hide what cells share. The answer tilts the query's usual distribution over bins:
logits += <answer, z> * magnitude of the bin + <zero, z> for bin 0. That magnitude is capped at what cells that have the feature
usually show: of a rare one, bins above were hardly seen, and the largest would take all of a strong tilt. It starts at the training
cells' principal components (:meth:`Factors.start_from`) and is trained with the rest. Sums over what is visible, of functions of
(feature, bin) alone: queries and values stay isolated from one another, as in :mod:`cellxpert.nn.decoder`.

An intervention tilts answers by what was learned of its genes, logits += shift * count of the bin (on a log scale, in a usual
cell): as a rate that changes tilts a law of counts. Genes that were never perturbed tilt by the z that their absence means, which
moves z itself (times how far each feature responds: what regulates a gene does not follow it).
It acts where the context was read before it (abduction, action, prediction) or shows nothing; a context that was read after it
says what it did. Visible values are compared with what they are expected to be after it: one step of Newton's, at the z of the
context, towards the mode of z given them. As far as they vary more than before it, their deviations say less, and z stays nearer
the context's.

Shape suffixes: B cells, T tokens, H hidden features, P patterns, Q queries, M movable values or modalities (at the levels),
V features, K bins, R factors, S directions of effects of perturbed genes, I interventions of a cell, G targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellxpert.batch import Batch, Intervention
from cellxpert.nn.attention import Layout
from cellxpert.nn.cell import magnitude_scale

__all__ = ["Evidence", "Expected", "Factors"]

MAX_LEVEL = 100.0
"""Above all magnitudes."""
LEAST_VARIANCE = 1e-6
N_CODES = 32
"""Directions in which effects of perturbed genes differ."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of the factors of each cell, before any movable value is seen."""

    sum_BR: Tensor
    """Sum of read * e over the context."""
    precision_BR: Tensor
    """Sum of read^2 over the context."""
    carried_BR: Tensor | None = None
    """Shift of z by genes that were never perturbed, times the precision that it is compared with; None: no intervention."""
    code_BS: Tensor | None = None
    """Sum of the codes of the perturbed genes, times their doses."""
    pair_BS: Tensor | None = None
    """Products of the codes of any two genes set together."""
    usual_B: Tensor | None = None
    """How much cells do of what interventions usually do: 1 with one that was learned, 0 without any that acts."""

    def rows(self, index_N: Tensor) -> Evidence:
        """Evidence of chosen cells, in this order, with repetition."""
        return Evidence(**{name: None if x is None else x[index_N] for name, x in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an intervention is expected to do to values, given the context."""

    moved_BM: Tensor
    """How far it moves e."""
    spread_BM: Tensor
    """Variance after it over that before it, less 1."""
    z_BR: Tensor
    """Mean of z given the context."""


class Factors(nn.Module):
    """See the module.

    Parameters
    ----------
    modality_V
        Modality of each feature.
    n_bins
        Number of bins.
    n_factors
        Number of factors R.
    n_targets
        Number of genes G that were perturbed in training cells; 0 leaves the intervention's part out.
    """

    level_MK: Tensor
    cap_V: Tensor
    centre_V: Tensor
    scale_V: Tensor
    modality_V: Tensor

    def __init__(self, modality_V: Tensor, *, n_bins: int, n_factors: int, n_targets: int = 0) -> None:
        super().__init__()
        n_features, n_modalities = len(modality_V), int(modality_V.max()) + 1
        self.read = nn.Embedding(n_features, n_factors)
        self.answer = nn.Embedding(n_features, n_factors)
        self.zero = nn.Embedding(n_features, n_factors)
        self.intervention = _Intervention(n_features, n_targets, n_bins) if n_targets else None
        self.register_buffer("level_MK", magnitude_scale(n_bins).expand(n_modalities, -1).clone())
        self.register_buffer("cap_V", torch.full((n_features,), MAX_LEVEL))
        self.register_buffer("centre_V", torch.zeros(n_features))
        self.register_buffer("scale_V", torch.ones(n_features))
        self.register_buffer("modality_V", modality_V, persistent=False)

    @torch.no_grad()
    def start_from(
        self,
        *,
        level_MK: Tensor,
        cap_V: Tensor,
        centre_V: Tensor,
        deviation_V: Tensor,
        loading_VR: Tensor,
        unique_V: Tensor,
    ) -> None:
        """Set bins' magnitudes, and begin at a factor model of the training cells.

        Parameters
        ----------
        level_MK
            Magnitude that each bin stands for.
        cap_V
            Largest magnitude of each feature that answers tilt.
        centre_V, deviation_V
            Mean and standard deviation of each feature's magnitude.
        loading_VR
            Loadings of the standardised magnitudes; missing factors stay 0.
        unique_V
            Variance that the factors leave, of a total of 1.
        """
        self.level_MK.copy_(level_MK)
        self.cap_V.copy_(cap_V)
        self.centre_V.copy_(centre_V)
        self.scale_V.copy_(1 / (deviation_V * unique_V.sqrt()))
        n = loading_VR.shape[1]
        for table in (self.read, self.answer, self.zero):
            table.weight.zero_()
        self.read.weight[:, :n] = loading_VR / unique_V.sqrt()[:, None]
        # tilting a distribution by s * magnitude moves its mean by s * variance
        self.answer.weight[:, :n] = loading_VR / deviation_V[:, None]

    def levels(self, feature_N: Tensor) -> Tensor:
        """Magnitudes of all bins of features, (..., K)."""
        return self.level_MK[self.modality_V[feature_N.clamp(min=0)]]

    def tilted(self, feature_N: Tensor) -> Tensor:
        """The same as far as answers tilt them."""
        return torch.minimum(self.levels(feature_N), self.cap_V[feature_N.clamp(min=0)][..., None])

    def deviations(self, feature_N: Tensor, bin_N: Tensor) -> Tensor:
        """Return e of (feature, bin) pairs; features below 0 give some number that the caller masks."""
        feature_N = feature_N.clamp(min=0)
        level_N = self.level_MK[self.modality_V[feature_N], bin_N.clamp(min=0)]
        return (level_N - self.centre_V[feature_N]) * self.scale_V[feature_N]

    def evidence(self, batch: Batch, layout: Layout, *, feature_T: Tensor, bin_T: Tensor) -> Evidence:
        """Sum up what the context says: its tokens, and the zeros among the features that were measured and are not hidden."""
        n_cells, n_features = len(layout.start_B), len(self.centre_V)
        read_VR = self.read.weight
        real_T = feature_T < n_features  # not [CLS]
        feature_T, bin_T, cell_T = feature_T[real_T], bin_T[real_T], layout.cell_T[real_T]
        e_T = self.deviations(feature_T, bin_T)
        sum_BR = read_VR.new_zeros(n_cells, read_VR.shape[1])
        precision_BR = sum_BR.clone()
        if batch.measured_PV is not None and batch.pattern_B is not None:
            zeros_V = self.deviations(torch.arange(n_features, device=feature_T.device), bin_T.new_zeros(n_features))
            e_T = e_T - zeros_V[feature_T]
            shown_PV = batch.measured_PV.to(read_VR.dtype)
            sum_BR = sum_BR + (shown_PV * zeros_V @ read_VR)[batch.pattern_B]
            precision_BR = precision_BR + (shown_PV @ read_VR**2)[batch.pattern_B]
            if batch.hidden_feature_H is not None and batch.hidden_cell_H is not None:
                hidden_HR = self.read(batch.hidden_feature_H)
                sum_BR = sum_BR.index_add(0, batch.hidden_cell_H, -zeros_V[batch.hidden_feature_H, None] * hidden_HR)
                precision_BR = precision_BR.index_add(0, batch.hidden_cell_H, -(hidden_HR**2))
            sum_BR = sum_BR.index_add(0, cell_T, e_T[:, None] * self.read(feature_T))
        else:
            token_TR = self.read(feature_T)
            sum_BR = sum_BR.index_add(0, cell_T, e_T[:, None] * token_TR)
            precision_BR = precision_BR.index_add(0, cell_T, token_TR**2)
        if batch.blank_B is not None:
            sum_BR, precision_BR = (x.masked_fill(batch.blank_B[:, None], 0.0) for x in (sum_BR, precision_BR))
        evidence = Evidence(sum_BR=sum_BR, precision_BR=precision_BR.clamp(min=0))
        if batch.intervention is None or self.intervention is None:
            return evidence
        return self.intervene(evidence, batch.intervention, blank_B=batch.blank_B)

    def intervene(self, evidence: Evidence, intervention: Intervention, *, blank_B: Tensor | None = None) -> Evidence:
        """Return the evidence of cells in which genes are set from outside; ``blank_B``: those whose context shows nothing."""
        assert self.intervention is not None
        feature_BI, target_BI, dose_BI = intervention.feature_BI, intervention.target_BI, intervention.dose_BI
        acts_B = dose_BI.new_ones(len(dose_BI))
        if not intervention.before:
            acts_B = acts_B * 0 if blank_B is None else blank_B.to(dose_BI.dtype)
        dose_BI = dose_BI * acts_B[:, None]
        zero_BI = self.deviations(feature_BI, torch.zeros_like(feature_BI))
        read_BIR = self.read(feature_BI.clamp(min=0))
        absent_BIR = read_BIR * zero_BI[..., None] / (1 + (read_BIR**2).sum(-1, keepdim=True))
        unseen_BI = (feature_BI >= 0) & (target_BI < 0)
        carried_BR = -(dose_BI[..., None] * absent_BIR * unseen_BI[..., None]).sum(1)
        code_BIS = self.intervention.code(target_BI.clamp(min=0)) * (target_BI >= 0)[..., None]
        if intervention.code_BIS is not None:
            code_BIS = code_BIS + intervention.code_BIS
        code_BIS = -dose_BI[..., None] * code_BIS  # codes are those of knock-outs, whose dose is -1
        code_BS = code_BIS.sum(1)
        acts_BI = (dose_BI != 0).to(dose_BI.dtype)
        usual_BI = acts_BI if intervention.usual_BI is None else acts_BI * intervention.usual_BI
        pair_BS = (code_BS**2 - (code_BIS**2).sum(1)) / 2
        return Evidence(
            sum_BR=evidence.sum_BR,
            precision_BR=evidence.precision_BR,
            carried_BR=carried_BR * (1 + evidence.precision_BR),
            code_BS=code_BS,
            pair_BS=pair_BS if intervention.pair_B is None else pair_BS * intervention.pair_B[:, None],
            usual_B=usual_BI.amax(1),
        )

    def shift(self, query_BQ: Tensor, evidence: Evidence) -> Tensor:
        """Return the tilt (B, Q) by what was learned of the perturbed genes."""
        part = self.intervention
        assert part is not None
        code_BQ = (part.direct(query_BQ) * evidence.code_BS[:, None]).sum(-1)
        pair_BQ = (part.pair(query_BQ) * evidence.pair_BS[:, None]).sum(-1)
        return code_BQ + pair_BQ + part.usual(query_BQ)[..., 0] * evidence.usual_B[:, None]

    def expected(self, value_feature_BM: Tensor, evidence: Evidence) -> Expected | None:
        """Return what the intervention is expected to do to values; None without one.

        Moments of two distributions are compared: what is usual, tilted by z of the context, and the same told of the intervention.
        A strong effect, or one on a gene that this cell lacks, is not its tilt times a variance, and what is not expected would be
        taken for another state of the cell. What a value says of z has a precision in proportion to its variance (the Fisher
        information of an exponential tilt): of a rare gene that is switched on, deviations are no longer rare.
        """
        if evidence.code_BS is None:
            return None
        assert self.intervention is not None
        feature_BM = value_feature_BM.clamp(min=0)
        context = {"sum_BQR": evidence.sum_BR[:, None], "precision_BQR": evidence.precision_BR[:, None]}
        before = Evidence(sum_BR=evidence.sum_BR, precision_BR=evidence.precision_BR)
        log_p_BMK = self.intervention.log_usual_VK[feature_BM] + self.tilt(feature_BM, before, **context)
        level_BMK = self.levels(feature_BM)
        told_BMK = log_p_BMK + self.shift(feature_BM, evidence)[..., None] * level_BMK
        mean_BM, variance_BM = _moments(log_p_BMK, level_BMK)
        told_BM, told_variance_BM = _moments(told_BMK, level_BMK)
        return Expected(
            moved_BM=(told_BM - mean_BM) * self.scale_V[feature_BM],
            spread_BM=told_variance_BM / variance_BM - 1,
            z_BR=evidence.sum_BR / (1 + evidence.precision_BR),
        )

    def forward(
        self,
        query_BQ: Tensor,
        evidence: Evidence,
        *,
        value_feature_BM: Tensor | None = None,
        value_bin_BM: Tensor | None = None,
        visible_BQM: Tensor | None = None,
    ) -> Tensor:
        """Return what is added to the logits, (B, Q, K)."""
        sum_BQR, precision_BQR = evidence.sum_BR[:, None], evidence.precision_BR[:, None]
        if value_feature_BM is not None and value_bin_BM is not None and visible_BQM is not None:
            read_BMR = self.read(value_feature_BM.clamp(min=0))
            seen_BQM = visible_BQM.to(read_BMR.dtype) * (value_feature_BM >= 0)[:, None]
            e_BM = self.deviations(value_feature_BM, value_bin_BM)
            if (expected := self.expected(value_feature_BM, evidence)) is not None:
                e_BM = e_BM - expected.moved_BM
                more_BQR = seen_BQM @ (expected.spread_BM[..., None] * read_BMR**2)
                sum_BQR = sum_BQR + more_BQR * expected.z_BR[:, None]
                precision_BQR = precision_BQR + more_BQR
            sum_BQR = sum_BQR + seen_BQM @ (e_BM[..., None] * read_BMR)
            precision_BQR = precision_BQR + seen_BQM @ read_BMR**2
        return self.tilt(query_BQ, evidence, sum_BQR=sum_BQR, precision_BQR=precision_BQR)

    def tilt(self, query_BQ: Tensor, evidence: Evidence, *, sum_BQR: Tensor, precision_BQR: Tensor) -> Tensor:
        """Return what is added to the logits, (B, Q, K), given the sums over context and visible values of each query."""
        query_BQ = query_BQ.clamp(min=0)
        answer_BQR, zero_BQR = self.answer(query_BQ), self.zero(query_BQ)
        if evidence.carried_BR is not None:
            response_BQ1 = self.intervention.response_V[query_BQ, None]
            sum_BQR = sum_BQR + response_BQ1 * evidence.carried_BR[:, None]
        z_BQR = sum_BQR / (1 + precision_BQR)
        shift_BQ, zero_BQ = (answer_BQR * z_BQR).sum(-1), (zero_BQR * z_BQR).sum(-1)
        at_zero_K = F.one_hot(query_BQ.new_zeros(()), self.level_MK.shape[1])
        tilt_BQK = shift_BQ[..., None] * self.tilted(query_BQ) + zero_BQ[..., None] * at_zero_K
        if evidence.code_BS is not None:
            tilt_BQK = tilt_BQK + self.shift(query_BQ, evidence)[..., None] * self.levels(query_BQ)
        return tilt_BQK


def _moments(logits_BMK: Tensor, level_BMK: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of magnitudes, (B, M)."""
    p_BMK = logits_BMK.softmax(-1)
    mean_BM = (p_BMK * level_BMK).sum(-1)
    return mean_BM, (p_BMK * (level_BMK - mean_BM[..., None]) ** 2).sum(-1).clamp(min=LEAST_VARIANCE)


class _Intervention(nn.Module):
    """What setting genes from outside does."""

    def __init__(self, n_features: int, n_targets: int, n_bins: int) -> None:
        super().__init__()
        self.usual = nn.Embedding(n_features, 1)
        self.code = nn.Embedding(n_targets, N_CODES)
        self.direct = nn.Embedding(n_features, N_CODES)
        self.pair = nn.Embedding(n_features, N_CODES)
        # how much of what pairs do beside their parts carries over to other pairs
        self.pair_gain: Tensor
        self.register_buffer("pair_gain", torch.ones(()))
        # how far each feature follows genes that were never perturbed: fitted after training (see training/refit.py)
        self.response_V: Tensor
        self.register_buffer("response_V", torch.ones(n_features))
        self.log_usual_VK: Tensor
        self.register_buffer("log_usual_VK", torch.zeros(n_features, n_bins))

    @torch.no_grad()
    def start_from(
        self,
        *,
        log_usual_VK: Tensor,
        usual_V: Tensor,
        code_GS: Tensor,
        direct_VS: Tensor,
        pair_VS: Tensor,
        pair_gain: float,
    ) -> None:
        """Begin at effects that were observed; missing directions stay 0.

        ``log_usual_VK`` are log frequencies of bins where nothing was done, which effects are told from.
        """
        self.log_usual_VK.copy_(log_usual_VK)
        self.pair_gain.fill_(pair_gain)
        self.usual.weight.copy_(usual_V[:, None])
        for table, values in ((self.code, code_GS), (self.direct, direct_VS), (self.pair, pair_VS)):
            table.weight.zero_()
            table.weight[:, : values.shape[1]] = values.to(table.weight)
