"""The whole network: encoder over a cell's tokens, decoder that answers questions, heads.

Notable choices: pre-norm blocks without biases, heads of 64, sparse experts in the encoder only, a decoder whose queries and
values are isolated from one another, all weights drawn in one place from one generator.

Shape suffixes: B cells, T tokens of all cells end to end, W the same with prompts, L tokens of the longest cell, Q queries,
M movable values, D width, K bins, C labels, V features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cellxpert.batch import Batch, Intervention, Output, Questions, RouterStats
from cellxpert.config import ModelConfig, NetworkConfig
from cellxpert.nn.attention import Layout, pad
from cellxpert.nn.batches import Batches
from cellxpert.nn.cell import CellHead, CellQueries, magnitude_scale
from cellxpert.nn.decoder import Decoder, Memory, PreparedMemory, Values
from cellxpert.nn.embedding import Embedding
from cellxpert.nn.encoder import Encoded, Encoder
from cellxpert.nn.factors import Evidence, Factors
from cellxpert.nn.heads import BinHead, LabelHead
from cellxpert.nn.prompts import Prompts
from cellxpert.nn.surroundings import Surroundings

__all__ = ["Network"]

EMBEDDING_STD = 0.1
"""Initial scale of embeddings: large enough for the first branches not to drown them, small enough to be moved."""


class Network(nn.Module):
    """One network for all tasks.

    Parameters
    ----------
    config
        Shape of the network.
    feature_modality
        Modality of each of the V features, as small integers.
    n_bins
        Number of magnitude bins.
    n_labels
        Number of labels; 0 for a network without a label head.
    n_tissues
        Number of tissues; 0 for a network without a tissue head.
    n_targets
        Number of genes that were perturbed in training cells; 0 for a network that has seen none.
    n_batches
        Number of batches that the decoder can be told of; 0 for none.
    place, n_image
        Whether places of cells are read, and how many image features.
    max_tokens
        Longest sequence, [CLS] included (the number of learned positions, where the network has them).
    generator
        Source of the initial weights; a new one seeded with 0 if None. The global generator is never touched.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        feature_modality: Sequence[int] | Tensor,
        n_bins: int,
        n_labels: int = 0,
        n_tissues: int = 0,
        n_targets: int = 0,
        n_batches: int = 0,
        place: bool = False,
        n_image: int = 0,
        max_tokens: int = 4096,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.n_features, self.n_bins, self.n_labels = len(feature_modality), n_bins, n_labels
        width = config.width
        with torch.random.fork_rng(devices=[]):  # torch draws weights that are redrawn below; the caller's state stays
            self.embedding = Embedding(
                feature_modality, n_bins=n_bins, width=width, n_positions=max_tokens if config.position else 0
            )
            self.surroundings = Surroundings(width, place=place, n_image=n_image) if place or n_image else None
            self.encoder = Encoder(config)
            modality_V = torch.as_tensor(feature_modality, dtype=torch.int64, device="cpu")
            self.cell = CellHead(width, modality_V=modality_V, n_bins=n_bins, pooling=config.pooling)
            self.cell_queries = CellQueries(width, modality_V=modality_V, n_bins=n_bins)
            self.decoder = Decoder(config)
            self.bins = BinHead(width, n_features=self.n_features, n_bins=n_bins)
            self.factors = (
                Factors(modality_V, n_bins=n_bins, n_factors=config.n_factors, n_targets=n_targets)
                if config.n_factors
                else None
            )
            head = partial(
                LabelHead,
                width,
                modality_V=modality_V,
                n_bins=n_bins,
                n_image=n_image,
                dropout=config.label_dropout,
                gradient=config.label_gradient,
            )
            self.labels = head(n_labels=n_labels) if n_labels else None
            self.tissues = head(n_labels=n_tissues) if n_tissues else None
            if self.tissues is not None:
                self.tissues.requires_grad_(requires_grad=False)  # fitted after training
            self.prompts = Prompts(config.n_prompts, width) if config.n_prompts else None
            self.batches = Batches(width, n_batches=n_batches, n_features=self.n_features) if n_batches else None
        _draw_weights(self, generator if generator is not None else torch.Generator().manual_seed(0))

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        feature_modality: Sequence[int] | Tensor,
        n_labels: int,
        seed: int,
        n_targets: int = 0,
        n_tissues: int = 0,
        n_batches: int = 0,
        place: bool = False,
        n_image: int = 0,
    ) -> Network:
        """Make the network of a whole configuration, its weights drawn from ``seed``."""
        return cls(
            config.network,
            feature_modality=feature_modality,
            n_bins=config.tokens.n_bins,
            n_labels=n_labels,
            n_targets=n_targets,
            n_tissues=n_tissues,
            n_batches=n_batches,
            place=place,
            n_image=n_image,
            max_tokens=config.tokens.max_tokens,
            generator=torch.Generator().manual_seed(seed),
        )

    def n_parameters(self) -> int:
        """Count the parameters."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def set_bin_prior(self, log_frequency_VK: Tensor) -> None:
        """Start the bias of each (feature, bin) at the log frequency of that bin, e.g. among the training cells."""
        assert log_frequency_VK.shape == (self.n_features, self.n_bins), log_frequency_VK.shape
        self.bins.prior.weight[: self.n_features] = log_frequency_VK.to(self.bins.prior.weight)

    def encode(self, batch: Batch) -> Encoded:
        """Read cells. Padding is dropped first, so a vector does not depend on the layout or on the company."""
        layout = Layout.of(batch.lengths_B, batch.feature_T.device)
        ids = [batch.feature_T, batch.bin_T, batch.position_T]
        if batch.pad_length is not None and batch.pad_length * batch.n_cells != len(layout.cell_T):
            keep_T = layout.slot_T(batch.pad_length)
            ids = [None if x is None else x[keep_T] for x in ids]
        if self.config.position and ids[2] is None:
            ids[2] = layout.offset_T
        tokens_TD = self.embedding.tokens(*ids)
        if self.surroundings is not None:
            around_BD = self.surroundings(batch.place_BX, batch.image_BF, blank_B=batch.blank_B)
            if around_BD is not None:
                tokens_TD = tokens_TD.index_add(0, layout.start_B, around_BD.to(tokens_TD.dtype))
        if self.prompts is None:
            tokens_TD, routers = self.encoder(tokens_TD, layout)
        else:
            prompted = self.prompts(tokens_TD, layout)
            tokens_WD, routers = self.encoder(prompted.tokens_WD, prompted.layout, prompted.counted_W)
            tokens_TD = tokens_WD[prompted.own_T]
        cell_BD = self.cell(tokens_TD, layout, feature_T=ids[0], bin_T=ids[1])
        label_BC, tissue_BC = (
            None if head is None else head(cell_BD, layout, feature_T=ids[0], bin_T=ids[1], image_BF=batch.image_BF)
            for head in (self.labels, self.tissues)
        )
        lowest_BM = self.cell_queries.lowest(layout, feature_T=ids[0], bin_T=ids[1])
        evidence = None
        if self.factors is not None:
            with torch.autocast(tokens_TD.device.type, enabled=False):
                evidence = self.factors.evidence(batch, layout, feature_T=ids[0], bin_T=ids[1])
        return Encoded(
            tokens_TD=tokens_TD,
            cell_BD=cell_BD,
            lowest_BM=lowest_BM,
            label_BC=label_BC,
            tissue_BC=tissue_BC,
            layout=layout,
            routers=routers,
            evidence=evidence,
            batch_B=batch.batch_B,
        )

    def memory(self, encoded: Encoded) -> Memory:
        """Return the memory of all tokens of the context."""
        return Memory(
            tokens_BLD=pad(encoded.tokens_TD, encoded.layout),
            mask_BL=encoded.layout.mask_BL(),
            evidence=encoded.evidence,
            batch_B=encoded.batch_B,
        )

    def prepare(self, memory: Memory) -> PreparedMemory:
        """Compute what all passes over one memory share; :meth:`decode` takes it in the memory's place."""
        return self.decoder.prepare(memory)

    def decode(self, questions: Questions, memory: Memory | PreparedMemory) -> Tensor:
        """Return logits over bins (B, Q, K). A memory of one context serves all B rows of the questions.

        Cells whose batch the memory says are answered for as cells of that batch, others as cells of any.
        """
        return self._decode(questions, memory)[0]

    def decode_cell(self, query_BQ: Tensor, encoded: Encoded) -> Tensor:
        """Return logits over bins (B, Q, K) of features, from the cells' vectors and depths alone."""
        return self._decode_cell(query_BQ, encoded)[0]

    @torch.no_grad()
    def blank_means(
        self, intervention: Intervention | None, *, clamped: tuple[Sequence[int], Sequence[int]] = ((), ())
    ) -> Tensor:
        """Return the mean (V,) of every feature, as factors read it, in a cell of which nothing is known but an intervention.

        ``clamped`` names features and the bins that they are observed at.
        """
        assert self.factors is not None
        level_VK = self.factors.levels(torch.arange(self.n_features, device=self.factors.centre_V.device))
        return (self.blank_log_prob(intervention, clamped=clamped).exp() * level_VK).sum(-1)

    @torch.no_grad()
    def blank_log_prob(
        self, intervention: Intervention | None, *, clamped: tuple[Sequence[int], Sequence[int]] = ((), ())
    ) -> Tensor:
        """Return log p of all bins of every feature (V, K) in the same cell."""
        assert self.factors is not None
        device = self.factors.centre_V.device
        blank = Batch(
            feature_T=torch.tensor([self.n_features], device=device),
            bin_T=torch.zeros(1, dtype=torch.int64, device=device),
            lengths_B=torch.tensor([1]),
            intervention=intervention,
        )
        query_1V = torch.arange(self.n_features, device=device)[None]
        values = {}
        if len(clamped[0]):
            feature, bins = (torch.tensor([list(x)], dtype=torch.int64, device=device) for x in clamped)
            visible = torch.ones(1, self.n_features, feature.shape[1], dtype=torch.bool, device=device)
            values = {"value_feature_BM": feature, "value_bin_BM": bins, "visible_BQM": visible}
        memory = self.memory(self.encode(blank))
        return self.decode(Questions(query_BQ=query_1V, **values), memory)[0].log_softmax(-1)

    def _decode_cell(self, query_BQ: Tensor, encoded: Encoded) -> tuple[Tensor, tuple[RouterStats, ...]]:
        queries_BQD = self.cell_queries(self._queries(query_BQ, encoded), encoded.cell_BD, encoded.lowest_BM)
        answers_BQD, routers = self.decoder(queries_BQD, None, counted_BQ=query_BQ >= 0)
        return self._answers(answers_BQD, query_BQ, encoded), routers

    def _queries(self, query_BQ: Tensor, told: Encoded | Memory | PreparedMemory) -> Tensor:
        query_BQD = self.embedding.queries(query_BQ)
        if self.batches is None or told.batch_B is None:
            return query_BQD
        return self.batches.queries(query_BQD, told.batch_B)

    def _answers(self, answers_BQD: Tensor, query_BQ: Tensor, told: Encoded | Memory | PreparedMemory) -> Tensor:
        logits_BQK = self.bins(answers_BQD, query_BQ)
        if self.batches is None or told.batch_B is None:
            return logits_BQK
        level_BQK = (
            magnitude_scale(self.n_bins).to(logits_BQK) if self.factors is None else self.factors.tilted(query_BQ)
        )
        return logits_BQK + self.batches.answers(query_BQ, told.batch_B, level_BQK)

    def _decode(self, questions: Questions, memory: Memory | PreparedMemory) -> tuple[Tensor, tuple[RouterStats, ...]]:
        query_BQ, values = questions.query_BQ, None
        if questions.value_feature_BM is not None and questions.value_feature_BM.shape[1]:
            feature_BM = questions.value_feature_BM
            assert questions.value_bin_BM is not None, "movable values need bins"
            assert questions.visible_BQM is not None, "movable values need to say who sees them"
            values = Values(
                tokens_BMD=self.embedding.tokens(feature_BM, questions.value_bin_BM),
                visible_BQM=questions.visible_BQM & (feature_BM >= 0)[:, None, :],
            )
        answers_BQD, routers = self.decoder(self._queries(query_BQ, memory), memory, values, counted_BQ=query_BQ >= 0)
        logits_BQK = self._answers(answers_BQD, query_BQ, memory)
        if self.factors is not None and memory.evidence is not None:
            logits_BQK = logits_BQK + self._tilt(questions, memory.evidence)
        return logits_BQK, routers

    def _tilt(self, questions: Questions, evidence: Evidence) -> Tensor:
        assert self.factors is not None
        with torch.autocast(questions.query_BQ.device.type, enabled=False):
            return self.factors(
                questions.query_BQ,
                evidence,
                value_feature_BM=questions.value_feature_BM,
                value_bin_BM=questions.value_bin_BM,
                visible_BQM=questions.visible_BQM,
            )

    def forward(self, batch: Batch) -> Output:
        """Read cells and answer what the batch asks."""
        encoded = self.encode(batch)
        routers, masked_BQK, whole_BQK = encoded.routers, None, None
        if batch.masked is not None:
            masked_BQK, more = self._decode(batch.masked, self.memory(encoded))
            routers += more
        if batch.whole is not None:
            whole_BQK, more = self._decode_cell(batch.whole.query_BQ, encoded)
            routers += more
        return Output(
            cell_BD=encoded.cell_BD,
            masked_BQK=masked_BQK,
            whole_BQK=whole_BQK,
            label_BC=encoded.label_BC,
            routers=routers,
        )


@torch.no_grad()
def _draw_weights(network: Network, generator: torch.Generator) -> None:
    """Give every parameter its first value.

    =========================================  =====================================================================
    norms                                      1
    embeddings, queries, prompts               normal, EMBEDDING_STD
    projections into a branch (q, k, v, up)    normal, 1 / sqrt(fan in)
    projections out of it (out, down)          the same / sqrt(2 * layers of this stack), so the stream does not grow
    routers                                    0: the noise alone chooses at first, evenly (Shazeer et al. 2017)
    bias of each (feature, bin); label bias    0
    cell: feature, gate                        normal, 0.02; 0.1
    cell queries: gain, depth                  normal, 0.02; 0
    labels, tissues: magnitudes and images     0
    surroundings, batches                      0
    bins, labels, tissues                      normal, 0.02
    factors: read, answer, zero                normal, 0.02
    intervention: direct and pair              normal, 0.1
    intervention: the rest                     0
    =========================================  =====================================================================
    """
    config = network.config
    depth = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    for name, weight in network.named_parameters():
        part, leaf, owner = name.split(".")[0], name.split(".")[-1], name.split(".")[-2]
        if owner.endswith("norm"):
            nn.init.ones_(weight)
        elif owner in {"router", "prior"} or leaf == "bias":
            nn.init.zeros_(weight)
        elif name == "cell.gate":
            nn.init.constant_(weight, 0.1)
        elif (
            name == "cell_queries.depth.weight"
            or part in {"surroundings", "batches"}
            or (part in {"labels", "tissues"} and owner in {"magnitude", "image"})
        ):
            nn.init.zeros_(weight)
        elif name == "cell.feature.weight":
            nn.init.normal_(weight, std=0.02, generator=generator)
        elif part == "factors" and "intervention" in name:
            if owner in {"direct", "pair"}:
                nn.init.normal_(weight, std=0.1, generator=generator)
            else:
                nn.init.zeros_(weight)
        elif part in {"cell_queries", "factors"} and leaf == "weight" and owner in {"gain", "read", "answer", "zero"}:
            nn.init.normal_(weight, std=0.02, generator=generator)
        elif part in {"embedding", "prompts"}:
            nn.init.normal_(weight, std=EMBEDDING_STD, generator=generator)
        elif part in {"bins", "labels", "tissues"}:
            nn.init.normal_(weight, std=0.02, generator=generator)
        else:
            # stacked experts are (expert, in, out), linear layers (out, in)
            std = weight.shape[1] ** -0.5
            if {leaf, owner} & {"out", "down"}:
                std /= (2 * depth[part]) ** 0.5
            nn.init.normal_(weight, std=std, generator=generator)
