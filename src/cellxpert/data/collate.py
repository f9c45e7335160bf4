"""Tokens of chosen cells -> :class:`cellxpert.batch.Batch`: laid out, masked, and with questions for the decoder.

Everything is done for all cells of a batch at once. Legend: B cells, N tokens of all cells end to end, Q queries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from cellxpert.batch import IGNORE, Batch, Intervention, Questions
from cellxpert.data.binning import ragged
from cellxpert.data.drawn import Drawn
from cellxpert.data.draws import distinct, ragged_permutation
from cellxpert.data.modalities import HiddenModalities
from cellxpert.data.perturbations import Assigned
from cellxpert.data.tokens import Tokens

__all__ = ["Collator"]

Ints = npt.NDArray[np.int64]
_NO_VALUES, _CAUSAL = 0.4, 0.3
"""Shares of cells whose queries see no movable values, and those earlier in a random order; the others leave one out."""
_PAD_TO = 8
_WITHHELD = 0.1
"""Share of training cells whose batch is not told."""


class Collator:
    """Makes batches of chosen cells.

    Called with a generator it makes training batches: for each cell a share of the tokens, drawn uniformly from
    ``mask_ratio``, is removed from the context, and two sets of questions are asked. ``masked``: hidden features and
    features measured as zero, whose true bins are also the movable values; per cell a query sees none of these (40 %), those
    earlier in a random order (30 %), or a random half of all but its own (30 %). ``whole``: features with and without
    expression, drawn from all of the cell. Called without, it makes inference batches: all tokens, no questions.

    Parameters
    ----------
    tokens
        Tokens of many cells.
    n_features
        Number of features V of the vocabulary, also the id of [CLS].
    n_bins
        Number of bins, zero's included.
    layout
        ``"packed"``: cells end to end; ``"padded"``: all as long as the longest, rounded up to a multiple of 8.
    mask_ratio
        Range of the hidden share.
    n_queries, n_cell_queries
        Queries per cell in ``masked`` and in ``whole``; fewer if V is smaller. A cell with too few features to ask for has
        padded ones.
    zeros
        Whether measured zeros are tokens (``"keep"``: queries of ``masked`` are hidden tokens only) or not (``"drop"``:
        up to half of them are hidden tokens, the others features measured as zero).
    shuffle_positions
        Lay tokens out in random order, and say the place of each, for networks with learned positions: anew at every call
        with a generator, else by one order of the vocabulary that ``seed`` decides.
    seed
        Seed of that order.
    whole
        Ask the ``whole`` questions.
    assigned
        Genes that are set from outside in each cell of ``tokens``, or None. ``tokens`` do not hold these genes there
        (:func:`~cellxpert.data.perturbations.without_targets`).
    blank
        Share of training cells of which nothing is shown: what holds for any cell, and all that an intervention does, is
        learned from these. Their labels and whole-cell questions do not count.
    batches
        Code of the batch of every cell of ``tokens``, negative where it is unknown, or None. In training batches a tenth of the
        cells count as unknown.
    modality_V
        Modality of each feature, as place in ``MODALITIES``; needed to hide modalities.
    modality_dropout
        Share of the training cells with two or more measured modalities of which one, whole, is hidden and asked for in ``masked``,
        and nothing else of these cells.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        n_features: int,
        n_bins: int,
        layout: Literal["packed", "padded"] = "packed",
        mask_ratio: tuple[float, float] = (0.05, 0.5),
        n_queries: int = 64,
        n_cell_queries: int = 32,
        zeros: Literal["drop", "keep"] = "drop",
        shuffle_positions: bool = False,
        seed: int = 0,
        whole: bool = True,
        assigned: Assigned | None = None,
        blank: float = 0.0,
        batches: Ints | None = None,
        modality_V: Ints | None = None,
        modality_dropout: float = 0.0,
    ) -> None:
        assert layout in {"packed", "padded"}, layout
        assert zeros in {"drop", "keep"}, zeros
        assert tokens.measured_features.shape[1] == n_features, "tokens of another vocabulary"
        self.tokens, self.n_features, self.n_bins = tokens, n_features, n_bins
        self.layout, self.mask_ratio, self.n_queries = layout, mask_ratio, min(n_queries, n_features)
        self.n_cell_queries = min(n_cell_queries, n_features)
        self.zeros, self.shuffle_positions, self.whole = zeros, shuffle_positions, whole
        self.assigned, self.blank, self.batches = assigned, blank, batches
        self._hiding = HiddenModalities(tokens.measured_features, modality_V=modality_V, share=modality_dropout)
        measured = self._hiding.scope_SV
        self._rank = np.cumsum(measured, axis=1) - 1  # place of each feature among those measured, per pattern
        self._n_measured = measured.sum(axis=1)
        self._measured = np.zeros(measured.shape, np.int64)  # and the feature at each place
        for row, features in zip(self._measured, measured, strict=True):
            row[: features.sum()] = np.flatnonzero(features)
        self._span = n_features + 1
        self._place = np.random.default_rng(seed).permutation(n_features)

    def __call__(
        self, rows: npt.ArrayLike, *, rng: np.random.Generator | None = None, labels: npt.ArrayLike | None = None
    ) -> Batch:
        """Make a batch.

        Parameters
        ----------
        rows
            Cells, as positions in ``tokens``, of shape (B,).
        rng
            Source of masks, questions and orders; None for inference.
        labels
            Label code of every cell of ``tokens`` (not only of the batch's); negative where there is none.

        Returns
        -------
        The batch; ``row_B`` are rows in ``obs_names``.
        """
        rows = np.asarray(rows, dtype=np.int64)
        drawn = self._draw(rows, rng)
        hidden_B, gone_B = np.zeros(len(rows), np.int64), np.full(len(rows), -1)
        masked = whole = blank_B = None
        shown = drawn
        if rng is not None:
            lengths_B = drawn.lengths_B
            ratio_B = rng.uniform(*self.mask_ratio, size=len(rows))
            hidden_B = np.minimum(np.maximum(np.rint(ratio_B * lengths_B), 1), np.maximum(lengths_B - 1, 0)).astype(
                np.int64
            )
            if self.blank:
                blank_B = rng.random(len(rows)) < self.blank
                hidden_B = np.where(blank_B, lengths_B, hidden_B)
            gone_B = self._hiding.choose(drawn.pattern_B, rng)
            gone_B = gone_B if blank_B is None else np.where(blank_B, -1, gone_B)
            asked, shown = self._hiding.divide(drawn, gone_B)
            masked = self._masked(asked, np.where(gone_B >= 0, asked.lengths_B, hidden_B), rng)
            hidden_B = np.where(gone_B >= 0, 0, hidden_B)
            whole = self._whole(drawn, rng) if self.whole else None
            if blank_B is not None and whole is not None:
                whole.target_BQ[torch.from_numpy(blank_B)] = IGNORE
        batch = self._lay_out(
            shown, hidden_B, rows=rows, shuffled=rng is not None, parts=(masked, whole), labels=labels
        )
        batch = self._say_what_is_shown(batch, shown, hidden_B, rows=rows, blank_B=blank_B, whole_B=gone_B >= 0)
        if self.batches is not None and rng is not None:
            told_B = rng.random(len(rows)) >= _WITHHELD
            batch = replace(batch, batch_B=batch.batch_B.masked_fill(torch.from_numpy(~told_B), IGNORE))
        return batch

    def context(self, rows: npt.ArrayLike, hidden_V: npt.NDArray[np.bool_]) -> Batch:
        """Make a batch of cells without some features, whatever their value, and without questions."""
        rows = np.asarray(rows, dtype=np.int64)
        drawn = self._draw(rows, None)
        kept = drawn.only(~hidden_V[drawn.feature_N])
        nothing_B = np.zeros(len(rows), np.int64)
        batch = self._lay_out(kept, nothing_B, rows=rows, shuffled=False, parts=(None, None), labels=None)
        if self.zeros == "keep":
            return batch
        pattern, pattern_B = np.unique(drawn.pattern_B, return_inverse=True)
        shown_PV = self.tokens.measured_features[pattern] & ~hidden_V
        return replace(batch, measured_PV=torch.from_numpy(shown_PV), pattern_B=torch.from_numpy(pattern_B.reshape(-1)))

    def _say_what_is_shown(
        self,
        batch: Batch,
        drawn: Drawn,
        hidden_B: Ints,
        *,
        rows: Ints,
        blank_B: npt.NDArray[np.bool_] | None,
        whole_B: npt.NDArray[np.bool_],
    ) -> Batch:
        """Say which zeros were measured, which features are hidden, and which genes are set from outside.

        Where a whole modality is hidden (``whole_B``) it counts as not measured, so that none of its features is hidden beside.
        """
        if self.assigned is not None:
            intervention = Intervention(
                feature_BI=torch.from_numpy(self.assigned.feature_NI[rows]),
                target_BI=torch.from_numpy(self.assigned.target_NI[rows]),
                dose_BI=torch.from_numpy(self.assigned.dose_NI[rows]),
            )
            batch = replace(batch, intervention=intervention)
        if blank_B is not None:
            label_B = batch.label_B
            if label_B is not None:
                label_B = label_B.masked_fill(torch.from_numpy(blank_B), IGNORE)
            batch = replace(batch, blank_B=torch.from_numpy(blank_B), label_B=label_B)
        if self.zeros == "keep":
            return batch
        token = drawn.order_N[drawn.rank_N < hidden_B[drawn.cell_N]]
        feature, cell = [drawn.feature_N[token]], [drawn.cell_N[token]]
        if batch.masked is not None and batch.masked.target_BQ is not None:
            # hidden zeros are those that are asked for
            asked_BQ = (batch.masked.target_BQ == 0).numpy() & ~whole_B[:, None]
            feature.append(batch.masked.query_BQ.numpy()[asked_BQ])
            cell.append(np.nonzero(asked_BQ)[0])
        pattern, pattern_B = np.unique(drawn.pattern_B, return_inverse=True)
        return replace(
            batch,
            measured_PV=torch.from_numpy(self._hiding.scope_SV[pattern]),
            pattern_B=torch.from_numpy(pattern_B.reshape(-1)),
            hidden_feature_H=torch.from_numpy(np.concatenate(feature)),
            hidden_cell_H=torch.from_numpy(np.concatenate(cell)),
        )

    def _draw(self, rows: Ints, rng: np.random.Generator | None) -> Drawn:
        lengths = self.tokens.start[rows + 1] - self.tokens.start[rows]
        start = ragged(lengths)
        cell_N = np.repeat(np.arange(len(rows)), lengths)
        place_N = np.arange(start[-1]) - start[cell_N]
        at_N = self.tokens.start[rows][cell_N] + place_N
        feature_N = self.tokens.feature[at_N].astype(np.int64)
        if rng is not None:
            order_N = ragged_permutation(start, rng=rng)
        elif self.shuffle_positions:
            order_N = np.lexsort((self._place[feature_N], cell_N))
        else:
            order_N = np.arange(len(at_N))
        bin_N = self.tokens.bin[at_N].astype(np.int64)
        return Drawn(feature_N, bin_N, cell_N, start, order_N, place_N, self.tokens.pattern[rows].astype(np.int64))

    def _masked(self, drawn: Drawn, hidden_B: Ints, rng: np.random.Generator) -> Questions:
        """Hidden tokens first (the random order begins with them), then measured zeros."""
        width = self.n_queries
        if self.zeros == "keep":
            n_hidden_B, n_zero_B = np.minimum(hidden_B, width), np.zeros_like(hidden_B)
        else:
            n_zeros_B = self._n_measured[drawn.pattern_B] - drawn.lengths_B
            n_hidden_B = np.minimum(hidden_B, width // 2)
            n_zero_B = np.minimum(width - n_hidden_B, n_zeros_B)
            n_hidden_B = np.minimum(hidden_B, width - n_zero_B)
        query_BQ = np.full((len(hidden_B), width), -1, np.int64)
        target_BQ = np.full_like(query_BQ, IGNORE)
        chosen_N = drawn.rank_N < n_hidden_B[drawn.cell_N]
        token = drawn.order_N[chosen_N]
        query_BQ[drawn.cell_N[chosen_N], drawn.rank_N[chosen_N]] = drawn.feature_N[token]
        target_BQ[drawn.cell_N[chosen_N], drawn.rank_N[chosen_N]] = drawn.bin_N[token]
        self._ask_zeros(drawn, query_BQ, target_BQ, first_B=n_hidden_B, n_B=n_zero_B, rng=rng)
        return Questions(
            query_BQ=torch.from_numpy(query_BQ),
            target_BQ=torch.from_numpy(target_BQ),
            value_feature_BM=torch.from_numpy(query_BQ.copy()),
            value_bin_BM=torch.from_numpy(np.where(query_BQ < 0, 0, target_BQ)),
            visible_BQM=torch.from_numpy(_visibility(query_BQ >= 0, rng)),
            rate_B2=None if self.zeros == "keep" else _rates((n_zero_B, n_zeros_B), (n_hidden_B, drawn.lengths_B)),
        )

    def _whole(self, drawn: Drawn, rng: np.random.Generator) -> Questions:
        """Expressed features of the whole cell, then features measured as zero."""
        width, n_cells = self.n_cell_queries, len(drawn.pattern_B)
        query_BQ = np.full((n_cells, width), -1, np.int64)
        target_BQ = np.full_like(query_BQ, IGNORE)
        expressed = drawn.order_N[drawn.bin_N[drawn.order_N] > 0]
        n_expressed_B = np.bincount(drawn.cell_N[expressed], minlength=n_cells)
        n_zeros_B = self._n_measured[drawn.pattern_B] - n_expressed_B
        n_first_B = np.minimum(n_expressed_B, np.maximum(width // 2, width - n_zeros_B))
        n_rest_B = np.minimum(width - n_first_B, n_zeros_B)
        _ask_tokens(
            drawn,
            expressed,
            n_expressed_B,
            query_BQ,
            target_BQ,
            first_B=np.zeros_like(n_first_B),
            n_B=n_first_B,
            rng=rng,
        )
        if self.zeros == "keep":
            silent = drawn.order_N[drawn.bin_N[drawn.order_N] == 0]
            _ask_tokens(drawn, silent, n_zeros_B, query_BQ, target_BQ, first_B=n_first_B, n_B=n_rest_B, rng=rng)
        else:
            self._ask_zeros(drawn, query_BQ, target_BQ, first_B=n_first_B, n_B=n_rest_B, rng=rng)
        return Questions(
            query_BQ=torch.from_numpy(query_BQ),
            target_BQ=torch.from_numpy(target_BQ),
            rate_B2=_rates((n_rest_B, n_zeros_B), (n_first_B, n_expressed_B)),
        )

    def _ask_zeros(
        self, drawn: Drawn, query_BQ: Ints, target_BQ: Ints, *, first_B: Ints, n_B: Ints, rng: np.random.Generator
    ) -> None:
        """Write ``n_B`` random features that were measured and are no tokens, from column ``first_B`` on.

        The j-th such feature is found without listing them: with tokens at places e_0 < e_1 < ... among the measured features,
        it is at place j + (number of k with e_k - k <= j).
        """
        n_measured_B = self._n_measured[drawn.pattern_B]
        draw_BQ = distinct(n_measured_B - drawn.lengths_B, n_B, width=query_BQ.shape[1], rng=rng)
        cell, column = np.nonzero(np.arange(query_BQ.shape[1]) < n_B[:, None])
        j = draw_BQ[cell, column]
        # features measured as zero before each token, plus a span for each cell before its own: ascending
        skipped_N = (
            self._rank[drawn.pattern_B[drawn.cell_N], drawn.feature_N] - drawn.rank_N + drawn.cell_N * self._span
        )
        place = j + np.searchsorted(skipped_N, j + cell * self._span, side="right") - drawn.start[cell]
        query_BQ[cell, first_B[cell] + column] = self._measured[drawn.pattern_B[cell], place]
        target_BQ[cell, first_B[cell] + column] = 0

    def _lay_out(
        self,
        drawn: Drawn,
        hidden_B: Ints,
        *,
        rows: Ints,
        shuffled: bool,
        parts: tuple[Questions | None, Questions | None],
        labels: npt.ArrayLike | None,
    ) -> Batch:
        """Put [CLS] before the tokens that are not hidden, in vocabulary order or in the order drawn."""
        kept_N = drawn.rank_N >= hidden_B[drawn.cell_N]
        if shuffled and not self.shuffle_positions:
            shown_N = np.zeros(len(kept_N), np.bool_)
            shown_N[drawn.order_N[kept_N]] = True
            token = np.flatnonzero(shown_N)
        else:
            token = drawn.order_N[kept_N]
        lengths_B = 1 + drawn.lengths_B - hidden_B
        longest = int(lengths_B.max(initial=1))
        pad_length = -(-longest // _PAD_TO) * _PAD_TO if self.layout == "padded" else None
        begin = ragged(lengths_B)
        at_B = begin[:-1] if pad_length is None else np.arange(len(rows)) * pad_length
        n_places = int(begin[-1]) if pad_length is None else len(rows) * pad_length
        cell = drawn.cell_N[token]
        within = np.arange(len(token)) - (begin[:-1] - np.arange(len(rows)))[cell] + 1
        feature_T, bin_T = np.full(n_places, -1, np.int64), np.zeros(n_places, np.int64)
        feature_T[at_B] = self.n_features
        feature_T[at_B[cell] + within] = drawn.feature_N[token]
        bin_T[at_B[cell] + within] = drawn.bin_N[token]
        position = None
        if self.shuffle_positions:
            position = np.zeros(n_places, np.int64)
            position[at_B[cell] + within] = within
        return Batch(
            feature_T=torch.from_numpy(feature_T),
            bin_T=torch.from_numpy(bin_T),
            lengths_B=torch.from_numpy(lengths_B),
            pad_length=pad_length,
            position_T=None if position is None else torch.from_numpy(position),
            masked=parts[0],
            whole=parts[1],
            label_B=None if labels is None else _codes(labels, rows),
            row_B=torch.from_numpy(self.tokens.rows[rows]),
            place_BX=None if self.tokens.place is None else torch.from_numpy(self.tokens.place[rows]),
            image_BF=None if self.tokens.image is None else torch.from_numpy(self.tokens.image[rows]),
            batch_B=None if self.batches is None else _codes(self.batches, rows),
        )


def _codes(code_N: npt.ArrayLike, rows: Ints) -> torch.Tensor:
    code = np.asarray(code_N, dtype=np.int64)[rows]
    return torch.from_numpy(np.where(code < 0, IGNORE, code))


def _rates(zero: tuple[Ints, Ints], nonzero: tuple[Ints, Ints]) -> torch.Tensor:
    """Share that was asked for, of (number asked, number there) per cell; 1 where there is nothing to ask for.

    With a share r of all features hidden, zeros and others alike, these are r times what one of the hidden ones is asked
    with: r is common to both columns and cancels in the losses.
    """
    shares = [np.where(asked > 0, asked / np.maximum(there, 1), 1.0) for asked, there in (zero, nonzero)]
    return torch.from_numpy(np.stack(shares, axis=1).astype(np.float32))


def _ask_tokens(
    drawn: Drawn,
    token: Ints,
    count_B: Ints,
    query_BQ: Ints,
    target_BQ: Ints,
    *,
    first_B: Ints,
    n_B: Ints,
    rng: np.random.Generator,
) -> None:
    """Write ``n_B`` of the tokens listed (in a random order, cell by cell) from column ``first_B`` on.

    The random order also decided what is hidden; beginning at a random place of it makes each choice uniform over the cell.
    """
    turn_B = rng.integers(0, np.maximum(count_B, 1))
    cell, column = np.nonzero(np.arange(query_BQ.shape[1]) < n_B[:, None])
    chosen = token[ragged(count_B)[cell] + (turn_B[cell] + column) % count_B[cell]]
    query_BQ[cell, first_B[cell] + column] = drawn.feature_N[chosen]
    target_BQ[cell, first_B[cell] + column] = drawn.bin_N[chosen]


def _visibility(real_BQ: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which movable values each query sees, of shape (B, Q, Q): value m if ``mark[m] < limit[q]``; never its own."""
    n_cells, width = real_BQ.shape
    kind_B = rng.random(n_cells)
    order_BQ = rng.permuted(np.tile(np.arange(width, dtype=np.int16), (n_cells, 1)), axis=1)
    causal_B1 = ((kind_B >= _NO_VALUES) & (kind_B < _NO_VALUES + _CAUSAL))[:, None]
    none_B1 = (kind_B < _NO_VALUES)[:, None]
    # a random order's lower half is a random half
    mark_BM = np.where(causal_B1, order_BQ, order_BQ // np.int16(max(-(-width // 2), 1)))
    limit_BQ = np.where(causal_B1, order_BQ, np.int16(1))
    mark_BM = np.where(real_BQ, mark_BM, np.int16(np.iinfo(np.int16).max)).astype(np.int16)
    limit_BQ = np.where(real_BQ & ~none_B1, limit_BQ, np.int16(0)).astype(np.int16)
    visible = mark_BM[:, None, :] < limit_BQ[:, :, None]
    diagonal = np.arange(width)
    visible[:, diagonal, diagonal] = False
    return visible
