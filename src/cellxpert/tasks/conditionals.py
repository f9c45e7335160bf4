"""The network as the sampler's model: conditionals of movable features in the context of one cell.

Shape suffixes: C chains, Q queries, M movable features, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellxpert.batch import Batch, Questions
from cellxpert.nn.decoder import PreparedMemory
from cellxpert.nn.network import Network

__all__ = ["NetworkConditionals"]


class NetworkConditionals:
    """Answers ``cellxpert.steering.Conditionals`` from a network; the context is read once.

    Parameters
    ----------
    network
        A network in evaluation mode: router noise and dropout would bias the law that is sampled.
    context
        One cell without its movable features, or as many as there are chains (rows of one chain together, see below).
    feature_M
        Ids of the movable features.
    """

    def __init__(self, network: Network, context: Batch, feature_M: Tensor) -> None:
        assert not network.training, "the network must be in evaluation mode"
        self.network, self.feature_M = network, feature_M
        self.n_sites, self.n_bins = len(feature_M), network.n_bins
        with torch.no_grad():
            self.memory = network.prepare(network.memory(network.encode(context)))

    @torch.no_grad()
    def log_prob(self, query_CQ: Tensor, x_CM: Tensor, visible_CQM: Tensor) -> Tensor:
        """Return log p(bin of the queried feature | context, visible values), (C, Q, K).

        With a context per chain, rows that exceed them in number are rows of one chain after another.
        """
        n_rows = len(x_CM)
        questions = Questions(
            query_BQ=self.feature_M[query_CQ],
            value_feature_BM=self.feature_M.expand(n_rows, -1),
            value_bin_BM=x_CM,
            visible_BQM=visible_CQM,
        )
        logits_CQK = self.network.decode(questions, self._memory(n_rows))
        return logits_CQK.log_softmax(-1)

    def _memory(self, n_rows: int) -> PreparedMemory:
        n_contexts = len(self.memory.keys[0])
        if n_contexts in {1, n_rows}:
            return self.memory
        copies, rest = divmod(n_rows, n_contexts)
        assert not rest, f"{n_rows} rows of {n_contexts} contexts"
        mask_BL = self.memory.mask_BL
        return PreparedMemory(
            keys=tuple(x.repeat_interleave(copies, dim=0) for x in self.memory.keys),
            values=tuple(x.repeat_interleave(copies, dim=0) for x in self.memory.values),
            mask_BL=None if mask_BL is None else mask_BL.repeat_interleave(copies, dim=0),
        )
