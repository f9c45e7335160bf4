"""Usage of experts against a plain loop over cells, layers and tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mudata import MuData

import cellxpert as cx
from cellxpert.batch import Batch
from cellxpert.config import preset
from cellxpert.data.collate import Collator
from cellxpert.data.tokens import Tokens
from cellxpert.errors import ConfigError
from cellxpert.nn import Network
from cellxpert.nn.attention import Layout, self_attention
from cellxpert.tasks.usage import expert_usage

LENGTHS = [5, 0, 1, 9, 3]


def _tokens(seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    features = [np.sort(rng.choice(12, n, replace=False)) for n in LENGTHS]
    start = np.cumsum([0, *(len(f) for f in features)])
    bins = [rng.integers(1, 6, n) for n in LENGTHS]
    return Tokens(
        feature=np.concatenate(features).astype(np.int32),
        bin=np.concatenate(bins).astype(np.uint8),
        start=start.astype(np.int64),
        rows=np.arange(len(LENGTHS)),
        measured_features=np.ones((1, 12), bool),
        pattern=np.zeros(len(LENGTHS), np.int32),
    )


def _network(**settings: object) -> Network:
    config = preset("nano").replace(n_bins=6, **settings)
    network = Network.from_config(config, feature_modality=[0] * 12, n_labels=0, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "router" in name:
                weight.normal_(generator=generator)
    return network.eval()


def _by_loop(network: Network, batch: Batch) -> np.ndarray:
    """One cell: every block by hand, every token's gates added one by one."""
    layout, n_tokens = Layout.of(batch.lengths_B), int(batch.lengths_B[0])
    x = network.embedding.tokens(batch.feature_T, batch.bin_T)
    if network.prompts is not None:
        x = torch.cat([x, network.prompts.weight])
        layout = Layout.of(batch.lengths_B + len(network.prompts.weight))
    usage, counted = np.zeros(network.config.n_experts), range(1, n_tokens) if n_tokens > 1 else range(1)
    for block in network.encoder.blocks:
        attended = self_attention(block.qkv(block.norm(x)).unflatten(-1, (3, -1, 64)), layout, backend="reference")
        branch = block.feed_forward
        routing = branch.experts.router(branch.norm(x + block.out(attended.flatten(1))))
        for t in counted:
            for gate, expert in zip(routing.gate_TS[t], routing.expert_TS[t], strict=True):
                usage[int(expert)] += float(gate) / len(counted) / len(network.encoder.blocks)
        x, _ = block(x, layout, layout.offset_T > 0)
    return usage


@pytest.mark.parametrize("n_prompts", [0, 3])
@torch.no_grad()
def test_usage_is_what_a_plain_loop_counts_whatever_the_batch(n_prompts):
    network, tokens = _network(n_prompts=n_prompts), _tokens()
    collator = Collator(tokens, n_features=12, n_bins=6)
    expected = np.stack([_by_loop(network, collator([i])) for i in range(len(LENGTHS))])
    for batch_size in (None, 1, 2):
        for layout in ("packed", "padded"):
            own = Collator(tokens, n_features=12, n_bins=6, layout=layout)
            found = expert_usage(network, own, batch_size=batch_size)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.1
    assert not network.encoder.blocks[0].feed_forward.experts.router._forward_hooks  # nothing is left behind


def test_experts_of_the_decoder_do_not_count_and_dense_models_have_none():
    tokens = _tokens()
    both, own = _network(decoder_experts=True), _network()
    own.load_state_dict(
        {name: x for name, x in both.state_dict().items() if not name.startswith("decoder")}, strict=False
    )
    found = [expert_usage(network, Collator(tokens, n_features=12, n_bins=6)) for network in (both, own)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ConfigError, match="without experts"):
        expert_usage(_network(feed_forward="dense"), Collator(tokens, n_features=12, n_bins=6))


def test_usage_is_written_to_the_object_and_its_modalities(trained: cx.CellxPert, pbmc: MuData) -> None:
    mdata = pbmc[:40].copy()
    assert trained.get_expert_usage(mdata) is None
    for part in (mdata, mdata["rna"]):
        usage = part.obsm["cellxpert_experts"]
        assert (usage.dtype, usage.shape) == (np.float32, (40, 4))
        np.testing.assert_allclose(usage.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        trained.get_expert_usage(mdata, inplace=False, batch_size=3), mdata.obsm["cellxpert_experts"], atol=1e-6
    )
    assert "adapter" not in mdata.uns["cellxpert_info"]["get_expert_usage"]["cellxpert_experts"]
