"""Many questions about the same sites in the same contexts: the decoder's answers, what no pass changes computed once.

The function is that of :class:`~cellxpert.nn.decoder.Decoder`; only the work differs:

* A context's keys and values are prepared once, and all its chains read them as if they were one cell's.
* Keys and values of movable values are functions of (site, bin) alone: looked up, layer by layer.
* A query is the same in every pass, and values never enter it: what it reads of the memory in the first layer is computed
  once, and merged with what it reads of the values by the log-sum-exps of the two.
* Chains may ask different numbers of questions. Rows are worked through in portions small enough to stay in cache.

Shape suffixes: N contexts, C chains, R rows (questions of all chains end to end), A chains of a portion, G groups of rows,
P places of a grid, L tokens of one context, M sites, E pairs of a site and a bin, K bins, D width, H heads, X width of
a head, Q queries of a group, F pairs of a context and a site, Y layers, Z keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cellxpert.config import HEAD_WIDTH
from cellxpert.nn.decoder import Decoder, PreparedMemory

__all__ = ["Reader", "Sites"]

N_ROWS = 1024
"""Rows of one portion: enough for full speed of the matrix products, few enough for their outputs to stay in cache."""
MAX_SCORES = 2**19
"""Attention scores computed at once, for the same reason."""
MAX_KEPT = 2**25
"""Numbers in the keys and values that a portion of chains keeps while it is drawn in order."""

Choose = Callable[[int, Tensor, Tensor], Tensor]
"""(place, the chains A that are asked there, their answers (A, D)) -> bins (A)."""


@dataclass(frozen=True, kw_only=True)
class Sites:
    """The movable sites as the decoder sees them, whatever is asked and whatever their values are."""

    query_MD: Tensor
    """Queries."""
    value_MKD: Tensor
    """Tokens of movable values: site, bin."""


@dataclass(frozen=True)
class _Grid:
    """Rows of groups of different sizes, laid out as a rectangle; padding repeats some row and is dropped again."""

    n_groups: int
    longest: int
    row_P: Tensor | None
    place_R: Tensor | None

    @classmethod
    def of(cls, group_R: Tensor, n_groups: int) -> _Grid:
        """Lay out rows whose groups ascend."""
        count_G = torch.bincount(group_R, minlength=n_groups)
        longest, n_rows = int(count_G.max()), len(group_R)
        if n_groups * longest == n_rows:
            return cls(n_groups, longest, None, None)
        start_G = count_G.cumsum(0) - count_G
        row_GQ = start_G[:, None] + torch.arange(longest, device=group_R.device)
        place_R = group_R * longest + torch.arange(n_rows, device=group_R.device) - start_G[group_R]
        return cls(n_groups, longest, row_GQ.clamp(max=n_rows - 1).flatten(), place_R)

    def spread(self, x_R: Tensor) -> Tensor:
        """(R, ...) to (G, Q, ...)."""
        x_P = x_R if self.row_P is None else x_R.index_select(0, self.row_P)
        return x_P.unflatten(0, (self.n_groups, self.longest))

    def pack(self, x_GQ: Tensor) -> Tensor:
        """(G, Q, ...) to (R, ...)."""
        x_P = x_GQ.flatten(0, 1)
        return x_P if self.place_R is None else x_P.index_select(0, self.place_R)


def _heads(x_RD: Tensor) -> Tensor:
    return x_RD.unflatten(-1, (-1, HEAD_WIDTH))


def _hidden(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a term of the scores."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True)
class _Contexts:
    """Keys and values of contexts, the shortest first, so that little of any stretch of them is padding."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    """(N, H, L, X), per layer."""
    length_N: Tensor
    """Tokens of each (on the CPU)."""
    mask_NL: Tensor | None
    order_N: Tensor | None
    """Which of the contexts given stands here; None: as given."""

    @classmethod
    def of(cls, memory: PreparedMemory) -> _Contexts:
        """Sort the contexts of a memory."""
        pairs = tuple((k.contiguous(), v.contiguous()) for k, v in zip(memory.keys, memory.values, strict=True))
        n_contexts, _, longest, _ = memory.keys[0].shape
        if memory.mask_BL is None:
            return cls(pairs, torch.full((n_contexts,), longest, device="cpu"), None, None)
        place_L = torch.arange(1, longest + 1, device=memory.mask_BL.device)
        length_N = (memory.mask_BL * place_L).amax(1)  # up to the last token, wherever padding is
        order_N = length_N.argsort(stable=True)
        whole = cls(pairs, length_N.cpu(), memory.mask_BL, order_N)
        return whole.some(order_N)

    @property
    def n(self) -> int:
        """Number of contexts."""
        return len(self.length_N)

    def some(self, at_G: Tensor) -> _Contexts:
        """Return some of them in some order; a view where they stand side by side."""
        first = int(at_G[0])
        side_by_side = bool((at_G == torch.arange(first, first + len(at_G), device=at_G.device)).all())
        at = slice(first, first + len(at_G)) if side_by_side else at_G
        return _Contexts(
            tuple((key[at].contiguous(), value[at].contiguous()) for key, value in self.pairs),
            self.length_N[at if side_by_side else at_G.cpu()],
            None if self.mask_NL is None else self.mask_NL[at],
            self.order_N,
        )

    def without_first_layer(self) -> _Contexts:
        """Return the contexts without what nothing reads any more."""
        key, value = self.pairs[0]
        return replace(self, pairs=((key[:, :, :0].clone(), value[:, :, :0].clone()), *self.pairs[1:]))

    def of_chains(self, n_chains: int) -> Tensor:
        """Return where each chain's context stands; chains of one context come together."""
        copies, rest = divmod(n_chains, self.n)
        assert not rest, f"{n_chains} chains of {self.n} contexts"
        rank_N = torch.arange(self.n, device=self.pairs[0][0].device)
        rank_N = rank_N if self.order_N is None else self.order_N.argsort()
        return rank_N.repeat_interleave(copies)

    def read(self, layer: int, query_NHQX: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries read of their contexts, and the log-sum-exps of their scores."""
        longest, hidden_N11L = int(self.length_N.max()), None
        key_NHLX, value_NHLX = (x[:, :, :longest] for x in self.pairs[layer])
        if self.mask_NL is not None and not (seen_NL := self.mask_NL[:, :longest]).all():
            hidden_N11L = _hidden(seen_NL, key_NHLX.dtype)[:, None, None]
        reads, sums = [], []
        for some_NHQX in query_NHQX.split(max(1, MAX_SCORES // key_NHLX[..., 0].numel()), dim=2):
            scores_NHQL = (some_NHQX * HEAD_WIDTH**-0.5) @ key_NHLX.transpose(2, 3)
            if hidden_N11L is not None:
                scores_NHQL += hidden_N11L
            # the largest weight is exp(largest score - log-sum-exp)
            highest_NHQ = scores_NHQL.amax(-1)
            weights_NHQL = scores_NHQL.softmax(-1)
            reads.append(weights_NHQL @ value_NHLX)
            sums.append(highest_NHQ - weights_NHQL.amax(-1).log())
        return torch.cat(reads, dim=2), torch.cat(sums, dim=2)


def _read_values(
    query_AHQX: Tensor, kv_ZAHMX: Tensor, lse_AHQ: Tensor, *, mask_AQM: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what queries read of their chains' values, and the weight that is left for the memory, (A, H, Q, 1).

    The memory is one more token here, whose score is the log-sum-exp of all its scores.
    """
    scores_AHQM = (query_AHQX * HEAD_WIDTH**-0.5) @ kv_ZAHMX[0].transpose(2, 3)
    if mask_AQM is not None:
        scores_AHQM += mask_AQM[:, None]
    weights = torch.cat([scores_AHQM, lse_AHQ[..., None]], dim=-1).softmax(-1)
    return weights[..., :-1] @ kv_ZAHMX[1], weights[..., -1:]


class Reader:
    """Answers of a decoder about fixed sites in fixed contexts. Weights and contexts are read once, here.

    Parameters
    ----------
    decoder
        In evaluation mode.
    memory
        The contexts, prepared. One serves any number of chains; with several, the chains of a context stand together.
    sites
        Queries and values.
    """

    def __init__(self, decoder: Decoder, memory: PreparedMemory, sites: Sites) -> None:
        assert not decoder.training, "the decoder must be in evaluation mode"
        self.decoder, self.contexts = decoder, _Contexts.of(memory)
        (self.n_sites, self.width), self.n_bins = sites.query_MD.shape, sites.value_MKD.shape[1]
        with torch.no_grad():
            self.table_YZHEX = self._value_table(sites.value_MKD.flatten(0, 1))
            self.query_MD = sites.query_MD
            first = decoder.layers[0]
            self.first_MHX = _heads(first.query(first.norm(self.query_MD)))
            self.read_FHX, self.lse_FH = self._first_layer()
        self.contexts = self.contexts.without_first_layer()

    def _value_table(self, value_ED: Tensor) -> Tensor:
        """Keys and values of every (site, bin) in every layer, (Y, Z, H, E, X)."""
        token_ED = self.decoder.value_norm(value_ED)
        rows = [layer.value_kv(token_ED).unflatten(-1, (2, -1, HEAD_WIDTH)) for layer in self.decoder.layers]
        return torch.stack([x.permute(1, 2, 0, 3) for x in rows])

    def _first_layer(self) -> tuple[Tensor, Tensor]:
        """What the query of every (context, site) reads of the memory in the first layer, and its log-sum-exp."""
        query_HMX = self.first_MHX.transpose(0, 1)
        n_heads, longest = self.contexts.pairs[0][0].shape[1:3]
        found = []
        for at_G in torch.arange(self.contexts.n).split(max(1, MAX_SCORES // (n_heads * longest * self.n_sites))):
            query_GHMX = query_HMX.expand(len(at_G), -1, -1, -1)
            read = self.contexts.some(at_G.to(query_HMX.device)).read(0, query_GHMX)
            found.append([x.transpose(1, 2).flatten(0, 1) for x in read])
        read_FHX, lse_FH = (torch.cat(x) for x in zip(*found, strict=True))
        return read_FHX, lse_FH

    def _values(self, x_AM: Tensor, site_AM: Tensor) -> Tensor:
        """Look up keys and values, (Y, Z, A, H, M, X)."""
        n_heads, n_entries = self.table_YZHEX.shape[2:4]
        head_H1 = torch.arange(n_heads, device=x_AM.device)[:, None] * n_entries
        index_AHM = (site_AM * self.n_bins + x_AM)[:, None] + head_H1
        return self.table_YZHEX.flatten(2, 3).index_select(2, index_AHM.flatten()).unflatten(2, index_AHM.shape)

    @torch.no_grad()
    def answers(self, site_R: Tensor, x_CM: Tensor, visible_RM: Tensor, *, count_C: Tensor) -> Tensor:
        """Answer any number of questions per chain.

        Parameters
        ----------
        site_R
            Sites that are asked for (int64): those of a chain together, the chains in their order.
        x_CM
            Bins of the chains (int64).
        visible_RM
            Values that each question sees (bool).
        count_C
            Number of questions of each chain (int64).

        Returns
        -------
        Answers after the decoder's final norm, (R, D).
        """
        n_rows, context_C = len(site_R), self.contexts.of_chains(len(x_CM))
        chain_R = torch.repeat_interleave(torch.arange(len(x_CM), device=x_CM.device), count_C)
        order_R = None
        if self.contexts.order_N is not None:
            order_R = context_C[chain_R].argsort(stable=True)
            site_R, chain_R, visible_RM = site_R[order_R], chain_R[order_R], visible_RM[order_R]
        out_RD = self.query_MD.new_empty(n_rows, self.width)
        for start in range(0, n_rows, N_ROWS):
            rows = slice(start, min(start + N_ROWS, n_rows))
            chain_A, group_R = chain_R[rows].unique_consecutive(return_inverse=True)
            context_R = context_C[chain_R[rows]]
            out_RD[rows if order_R is None else order_R[rows]] = self._portion(
                site_R[rows],
                context_R,
                self._values(x_CM[chain_A], torch.arange(self.n_sites, device=x_CM.device)),
                contexts=self.contexts.some(context_R.unique_consecutive()),
                by_chain=_Grid.of(group_R, len(chain_A)),
                visible_RM=visible_RM[rows],
            )
        return out_RD

    def _portion(
        self,
        site_R: Tensor,
        context_R: Tensor,
        kv_YZAHMX: Tensor,
        *,
        contexts: _Contexts,
        by_chain: _Grid,
        visible_RM: Tensor | None,
    ) -> Tensor:
        """Answer questions of the chains A, which have these values; ``visible_RM`` says who sees which (None: all of them).

        ``contexts`` are those of the rows, in their order.
        """
        by_context = _Grid.of(context_R.unique_consecutive(return_inverse=True)[1], contexts.n)
        row_R = context_R * self.n_sites + site_R
        x_RD, counted_R = self.query_MD[site_R], torch.ones_like(site_R, dtype=torch.bool)
        mask_AQM = None if visible_RM is None else by_chain.spread(_hidden(visible_RM, kv_YZAHMX.dtype))
        for number, (layer, kv_ZAHMX) in enumerate(zip(self.decoder.layers, kv_YZAHMX, strict=True)):
            if number == 0:
                query_RHX, read_RHX, lse_RH = self.first_MHX[site_R], self.read_FHX[row_R], self.lse_FH[row_R]
            else:
                query_RHX = _heads(layer.query(layer.norm(x_RD)))
                found = contexts.read(number, by_context.spread(query_RHX).transpose(1, 2))
                read_RHX, lse_RH = (by_context.pack(x.transpose(1, 2)) for x in found)
            query_AHQX, lse_AHQ = (by_chain.spread(x).transpose(1, 2) for x in (query_RHX, lse_RH))
            found = _read_values(query_AHQX, kv_ZAHMX, lse_AHQ, mask_AQM=mask_AQM)
            value_RHX, left_RH1 = (by_chain.pack(x.transpose(1, 2)) for x in found)
            x_RD = x_RD + layer.out((value_RHX + left_RH1 * read_RHX).flatten(1))
            x_RD = layer.feed_forward(x_RD, counted_R)[0]
        return self.decoder.norm(x_RD)

    @torch.no_grad()
    def in_order(self, x_CM: Tensor, order_CM: Tensor, *, start_C: Tensor, choose: Choose) -> None:
        """Answer about site after site of each chain's order, given the sites before it.

        Parameters
        ----------
        x_CM, order_CM
            Bins, of which those before the start are read, and the order.
        start_C
            First place of each chain's order that is asked for.
        choose
            Called at every place with its number, the chains that are asked and their answers (A, D); returns the sites'
            new bins, which later places see.
        """
        n_chains, n_sites = x_CM.shape
        context_C = self.contexts.of_chains(n_chains)
        # whoever starts first stands first (all chains of a context together), so that those at work are a slice
        first_C = start_C
        if self.contexts.n > 1:
            earliest_N = torch.full_like(context_C, n_sites).scatter_reduce_(0, context_C, start_C, "amin")
            first_C = earliest_N[context_C] * self.contexts.n + context_C
        copies = 1 if self.contexts.n == 1 else n_chains // self.contexts.n
        n_kept = 2 * len(self.decoder.layers) * self.width * n_sites
        step = max(1, MAX_KEPT // (n_kept * copies)) * copies
        for chain_A in first_C.argsort(stable=True).split(step):
            self._draw(
                x_CM[chain_A].gather(1, order_CM[chain_A]),
                order_CM[chain_A],
                start_C[chain_A],
                context_A=context_C[chain_A],
                choose=lambda place, asked, answers, chain_A=chain_A: choose(place, chain_A[asked], answers),
            )

    def _draw(self, x_AP: Tensor, site_AP: Tensor, start_A: Tensor, *, context_A: Tensor, choose: Choose) -> None:
        """Draw a portion of the chains; bins, sites, keys and values stand in the order of the draws."""
        at_N, number_A = context_A.unique_consecutive(return_inverse=True)
        contexts = self.contexts.some(at_N)
        kv_YZAHPX = self._values(x_AP, site_AP)
        for place in range(int(start_A.min()), x_AP.shape[1]):
            asked_A = (start_A <= place).nonzero()[:, 0]
            n = int(asked_A[-1]) + 1
            answer_AD = self._portion(
                site_AP[:n, place],
                context_A[:n],
                kv_YZAHPX[:, :, :n, :, :place],
                contexts=contexts.some(number_A[:n].unique_consecutive()),
                by_chain=_Grid(n, 1, None, None),
                visible_RM=None,
            )
            bin_A1 = choose(place, asked_A, answer_AD[asked_A])[:, None]
            kv_YZAHPX[:, :, asked_A, :, place] = self._values(bin_A1, site_AP[asked_A, place, None])[..., 0, :]
