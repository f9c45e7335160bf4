"""What chains say of every feature: of those that moved directly, of the others by asking for them.

Shape suffixes: N cells, J replicates, C = N * J chains, M movable features, V features, Q queries, K bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellxpert.batch import Intervention, Questions
from cellxpert.nn.decoder import Memory, PreparedMemory
from cellxpert.tasks.arms import Arm, Population, for_cells
from cellxpert.tasks.bins import with_bins

__all__ = ["Outcome", "Readout"]

Floats = npt.NDArray[np.float32]
Outcome = tuple[Floats, Floats]
"""Mean magnitudes and mean scaled counts of all features, (N, V) each; NaN where a feature was not asked for."""
N_FOLDS = 4
"""Parts in which the features that stay are asked for: each from a context that does not hold it."""
AT_ONCE = 2**21
"""Numbers in the answers to one portion of questions."""


class Readout:
    """Reads the cells once, whatever states are asked about.

    Parameters
    ----------
    population
        The cells, and what moves in them.
    asked_V
        Features to ask for (those that move are not).
    """

    @torch.no_grad()
    def __init__(self, population: Population, *, asked_V: npt.NDArray[np.bool_]) -> None:
        self.population = population
        network = population.network
        asked = np.flatnonzero(asked_V & ~population.hidden_V)
        self.folds: list[tuple[Tensor, Memory]] = []
        for fold in range(min(N_FOLDS, len(asked))):
            feature_Q = asked[fold::N_FOLDS]
            hidden_V = population.hidden_V.copy()
            hidden_V[feature_Q] = True
            context = population.collator.context(population.rows, hidden_V)
            self.folds.append((torch.from_numpy(feature_Q), network.memory(network.encode(context))))

    @torch.no_grad()
    def means(self, x_NJM: Tensor, intervention: Intervention | None) -> Outcome:
        """Return what states expect of the features that stay, mean over the replicates."""
        network, n_cells = self.population.network, len(x_NJM)
        level_NV = np.full((n_cells, network.n_features), np.nan, np.float32)
        count_NV = level_NV.copy()
        for feature_Q, memory in self.folds:
            prepared = network.prepare(memory)
            if intervention is not None:
                prepared = self._told(prepared, intervention)
            p_NQK = self._answers(feature_Q, prepared, x_NJM)
            level_QK = self.population.level_VK[feature_Q]
            at = feature_Q.numpy()  # numpy takes a tensor of one number for that number
            level_NV[:, at] = (p_NQK * level_QK).sum(-1).numpy()
            count_NV[:, at] = (p_NQK * level_QK.expm1()).sum(-1).numpy()
        return level_NV, count_NV

    def _told(self, memory: PreparedMemory, intervention: Intervention) -> PreparedMemory:
        """Return the memory told of an intervention."""
        factors = self.population.network.factors
        assert factors is not None, "interventions act on factors"
        assert memory.evidence is not None, "interventions act on factors"
        evidence = factors.intervene(memory.evidence, for_cells(intervention, len(memory.keys[0])))
        return PreparedMemory(keys=memory.keys, values=memory.values, mask_BL=memory.mask_BL, evidence=evidence)

    def _answers(self, feature_Q: Tensor, memory: PreparedMemory, x_NJM: Tensor) -> Tensor:
        """Return p(bin | context, all that moves), mean over replicates, (N, Q, K)."""
        network, (n_cells, n_replicates, n_sites) = self.population.network, x_NJM.shape
        answers, step = [], max(1, AT_ONCE // (len(feature_Q) * network.n_bins))
        for start in range(0, n_cells, step):
            part = slice(start, min(start + step, n_cells))
            cells, n_part = memory.cells(part), part.stop - start
            total = torch.zeros(n_part, len(feature_Q), network.n_bins)
            for x_NM in x_NJM[part].unbind(1):
                questions = Questions(
                    query_BQ=feature_Q.expand(n_part, -1),
                    value_feature_BM=self.population.feature_M.expand(n_part, -1),
                    value_bin_BM=x_NM,
                    visible_BQM=torch.ones(1, 1, n_sites, dtype=torch.bool),
                )
                total += network.decode(questions, cells).softmax(-1)
            answers.append(total / n_replicates)
        return torch.cat(answers)

    def outcome(self, arm: Arm, intervention: Intervention | None) -> Outcome:
        """Return mean magnitudes and counts after an arm: of what moved over all draws, of what stays given the last ones."""
        population = self.population
        x_NJM = arm.x_DCM[-1].long().unflatten(0, (len(population.rows), population.n_replicates))
        outcome = self.means(x_NJM, intervention)
        for value_NV, mean_NM in zip(outcome, arm.mean_NMY.unbind(-1), strict=True):
            value_NV[:, population.feature_M.numpy()] = mean_NM.numpy()
        return outcome

    def drawn(self, arm: Arm, start_NV: Floats) -> Floats:
        """Return the start cells' magnitudes (N, V) with the last state of their first chain in place of their own."""
        population = self.population
        feature_M = population.feature_M.numpy()
        x_NM = arm.x_DCM[-1, :: population.n_replicates].long().numpy()
        drawn_NV = start_NV.copy()
        drawn_NV[:, feature_M] = population.level_VK.numpy()[feature_M, x_NM]
        return drawn_NV

    @torch.no_grad()
    def latent(self, arm: Arm) -> Floats:
        """Return the vectors (N, width) of the start cells with the last state of their first chain."""
        population = self.population
        x_NM = arm.x_DCM[-1, :: population.n_replicates].long().numpy()
        batch = with_bins(population.collator, population.rows, population.feature_M.numpy(), bin_NM=x_NM)
        return population.network.encode(batch).cell_BD.float().numpy()
