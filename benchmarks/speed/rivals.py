"""Plain forms of what others do, of their published sizes, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from benchmarks.speed.flops import active_decoder_parameters, active_encoder_parameters
from benchmarks.speed.step import step_of
from cellxpert.config import ModelConfig, preset

__all__ = [
    "GENEFORMER_VOCABULARY",
    "DenseBert",
    "MaskedBert",
    "active_parameters",
    "geneformer_v1",
    "per_cell_digitize",
    "training_step",
]

GENEFORMER_VOCABULARY = 25_426
"""25,424 genes, <pad> and <mask> (Theodoris et al. 2023)."""


def per_cell_digitize(
    counts: sp.csr_matrix, ids: np.ndarray, *, n_bins: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Counts -> tokens the way that scGPT publishes (Cui et al. 2024, Methods), written from the description.

    All cells: scale to 10,000, log1p, a dense matrix. Then cell by cell: quantile edges of its non-zero values, a value that
    several edges share gets one of their bins at random, and the non-zero bins become tokens.

    Parameters
    ----------
    counts
        Counts of the vocabulary's genes.
    ids
        Id of each gene.
    n_bins
        Number of bins, zero's included.
    rng
        Source of the ties' bins.

    Returns
    -------
    Ids and bins of each cell's tokens.
    """
    scale = 1e4 / np.asarray(counts.sum(axis=1)).ravel()
    dense = (sp.diags_array(scale) @ counts).log1p().toarray()
    cells = []
    for row in dense:
        expressed = np.flatnonzero(row)
        values = row[expressed]
        edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
        high, low = np.digitize(values, edges), np.digitize(values, edges, right=True)
        bins = np.zeros(len(row), np.int64)
        bins[expressed] = np.clip(np.ceil(low + rng.random(len(values)) * (high - low)), 1, n_bins - 1)
        tokens = np.flatnonzero(bins)
        cells.append((ids[tokens], bins[tokens]))
    return cells


def geneformer_v1(*, seed: int = 0) -> BertForMaskedLM:
    """Return a BERT of the first Geneformer's size: 6 layers, 256 wide, 4 heads, 10.3 M parameters; SDPA attention."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=GENEFORMER_VOCABULARY,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=2048,
        hidden_act="relu",
        hidden_dropout_prob=0.02,
        attention_probs_dropout_prob=0.02,
        attn_implementation="sdpa",
    )
    return BertForMaskedLM(config)


class DenseBert(nn.Module):
    """A dense BERT that spends as many parameters on a token as one of our networks does.

    Same width, heads and number of encoder layers; the feed-forward is widened until the active parameters are equal.
    Its head gives bins, and is only computed where something was hidden: no 25,000-way output, unlike Geneformer's.

    Parameters
    ----------
    config
        Ours.
    decoder
        Count the decoder's parameters too (training); the encoder's alone otherwise (embedding).
    """

    def __init__(self, config: ModelConfig, *, decoder: bool) -> None:
        super().__init__()
        network = config.network
        width, layers = network.width, network.encoder_layers
        active = active_encoder_parameters(network) + (active_decoder_parameters(network) if decoder else 0)
        hidden = round((active / layers - 4 * width**2) / (2 * width))
        torch.manual_seed(0)
        shape = BertConfig(
            vocab_size=config.tokens.n_genes + 2,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=network.n_heads,
            intermediate_size=hidden,
            max_position_embeddings=config.tokens.max_tokens,
            hidden_dropout_prob=network.dropout,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        self.body = BertModel(shape, add_pooling_layer=False)
        self.head = nn.Linear(width, config.tokens.n_bins)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return token vectors, or with ``labels`` (-100: not hidden) the loss."""
        vectors = self.body(input_ids=input_ids).last_hidden_state
        if labels is None:
            return vectors
        hidden = labels >= 0
        return nn.functional.cross_entropy(self.head(vectors[hidden]), labels[hidden])


def active_parameters(config: ModelConfig) -> int:
    """Parameters of a BERT whose tokens meet as many matrix weights as ours do, encoder and decoder."""
    width = config.network.width
    embeddings = (config.tokens.n_genes + config.tokens.n_bins + 1) * width
    return active_encoder_parameters(config.network) + active_decoder_parameters(config.network) + embeddings


class MaskedBert(nn.Module):
    """A masked model of bins, BERT-style: a token is a gene and a bin, one of the bins being the mask; one answer per token.

    As wide as ours, with as many layers as encoder and decoder together; the feed-forward is widened until all parameters are
    as many as asked for. Its head is computed for the tokens asked for alone.

    Parameters
    ----------
    config
        Ours.
    n_parameters
        Parameters altogether.
    length
        Tokens (learned positions).
    """

    def __init__(self, config: ModelConfig, *, n_parameters: int, length: int) -> None:
        super().__init__()
        network, self.n_features, self.n_bins = config.network, config.tokens.n_genes, config.tokens.n_bins
        layers, width = network.encoder_layers + network.decoder_layers, network.width
        rest = n_parameters - (self.n_features + self.n_bins + 3 + length) * width - self.n_bins * (width + 1)
        hidden = round((rest / layers - 4 * width**2 - 9 * width) / (2 * width + 1))  # with biases and norms
        torch.manual_seed(0)
        shape = BertConfig(
            vocab_size=self.n_features,
            type_vocab_size=self.n_bins + 1,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=network.n_heads,
            intermediate_size=hidden,
            max_position_embeddings=length,
            attn_implementation="sdpa",
        )
        self.body = BertModel(shape, add_pooling_layer=False)
        self.head = nn.Linear(width, self.n_bins)

    def forward(self, id_1L: Tensor, bin_1L: Tensor, asked: Tensor) -> Tensor:
        """Return logits over bins of the tokens asked for, (asked, bins)."""
        vectors_1LD = self.body(input_ids=id_1L, token_type_ids=bin_1L).last_hidden_state
        return self.head(vectors_1LD[0, asked])


def training_step(method: str, *, length: int, n_cells: int) -> Callable[[], None]:
    """Return one training step of a rival: 15 % of the tokens masked, dropout on, AdamW.

    Parameters
    ----------
    method
        ``"geneformer_v1"`` or ``"dense_bert"`` (of the active size of ``base``).
    length, n_cells
        Tokens per cell, and cells.
    """
    config = preset("base")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, config.tokens.n_genes, (n_cells, length), generator=generator)
    hidden = torch.rand(ids.shape, generator=generator) < 0.15
    shown = ids.masked_fill(hidden, 1)
    if method == "geneformer_v1":
        model = geneformer_v1().train()
        labels = ids.masked_fill(~hidden, -100)
        loss = lambda: model(input_ids=shown, labels=labels).loss
    else:
        model = DenseBert(config, decoder=True).train()
        labels = (ids % config.tokens.n_bins).masked_fill(~hidden, -100)
        loss = lambda: model(shown, labels)
    return step_of(loss, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))
