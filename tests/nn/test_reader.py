"""What is computed once must be what the decoder would compute every time."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cellxpert.nn import reader
from cellxpert.nn.decoder import Decoder, Memory, PreparedMemory, Values
from cellxpert.nn.reader import Reader, Sites

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
N_SITES, N_BINS = 5, 3


class Setting:
    """A decoder with random weights, contexts, sites and chains."""

    def __init__(self, config, *, n_contexts=1, padded=False, copies=3, dtype=torch.float64):
        self.generator = torch.Generator().manual_seed(0)
        self.dtype = dtype
        self.decoder = Decoder(config).eval().to(dtype)
        for name, weight in self.decoder.named_parameters():
            drawn = self.normal(*weight.shape)
            weight.data = 1 + 0.3 * drawn if "norm" in name else drawn * weight.shape[-1] ** -0.5
        width, longest = config.width, 7
        mask = None
        if padded:  # the longest is not the last one
            lengths = torch.tensor([4, 7, 2, 6, 3, 5][:n_contexts])
            mask = torch.arange(longest) < lengths[:, None]
        self.memory = Memory(tokens_BLD=self.normal(n_contexts, longest, width), mask_BL=mask)
        self.sites = Sites(query_MD=self.normal(N_SITES, width), value_MKD=self.normal(N_SITES, N_BINS, width))
        self.n_contexts, self.copies, self.n_chains = n_contexts, copies, n_contexts * copies
        self.x = self.integers(N_BINS, (self.n_chains, N_SITES))
        self.reader = Reader(self.decoder, self.decoder.prepare(self.memory), self.sites)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def integers(self, high, shape):
        return torch.randint(0, high, shape, generator=self.generator)

    def plain(self, chain, site, seen, x=None):
        """One answer: the context alone, and only the values that are seen."""
        x = self.x if x is None else x
        context = chain // self.copies
        query = self.sites.query_MD[site]
        kept = slice(None) if self.memory.mask_BL is None else self.memory.mask_BL[context]
        memory = Memory(tokens_BLD=self.memory.tokens_BLD[context, kept][None])
        seen = torch.as_tensor(seen, dtype=torch.int64)
        tokens = self.sites.value_MKD[seen, x[chain, seen]]
        values = Values(tokens_BMD=tokens[None], visible_BQM=torch.ones(1, 1, len(seen), dtype=torch.bool))
        counted = torch.ones(1, 1, dtype=torch.bool)
        answer, _ = self.decoder(query.view(1, 1, -1), memory, values if len(seen) else None, counted_BQ=counted)
        return answer[0, 0]

    def ask(self, counts):
        """So many questions of each chain about sites, and with values seen, drawn at random; with what they should give."""
        site = self.integers(N_SITES, (sum(counts),))
        visible = torch.rand((sum(counts), N_SITES), generator=self.generator) < 0.5
        found = self.reader.answers(site, self.x, visible, count_C=torch.tensor(counts))
        chain = torch.arange(self.n_chains).repeat_interleave(torch.tensor(counts))
        expected = [
            self.plain(int(c), int(s), seen.nonzero()[:, 0]) for c, s, seen in zip(chain, site, visible, strict=True)
        ]
        return found, torch.stack(expected)


FORMS = {
    "one context": {},
    "contexts": {"n_contexts": 6, "copies": 1},
    "padded": {"n_contexts": 6, "copies": 2, "padded": True},
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def _counts(setting, kind):
    if kind == "even":
        return [3] * setting.n_chains
    return [(2, 0, 5, 1, 3)[c % 5] for c in range(setting.n_chains)]


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["even", "ragged"])
def test_answers_are_the_decoders(small_config, form, dtype, kind):
    setting = Setting(small_config, **form, dtype=dtype)
    found, expected = setting.ask(_counts(setting, kind))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert expected.std(0).mean() > 0.1  # answers do differ


@torch.no_grad()
@pytest.mark.parametrize(
    "shape", [{"decoder_layers": 1}, {"decoder_layers": 3, "width": 128}, {"decoder_experts": True}]
)
def test_other_shapes_of_decoder(small_config, shape):
    setting = Setting(dataclasses.replace(small_config, **shape), **FORMS["padded"])
    found, expected = setting.ask(_counts(setting, "ragged"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("limit", [1, 7])
def test_portions_change_nothing(small_config, form, limit, monkeypatch):
    monkeypatch.setattr(reader, "N_ROWS", limit)
    monkeypatch.setattr(reader, "MAX_SCORES", 20 * limit)
    setting = Setting(small_config, **form)
    found, expected = setting.ask(_counts(setting, "ragged"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_no_question_has_no_answer(small_config):
    setting = Setting(small_config)
    none = torch.zeros(0, dtype=torch.int64)
    found = setting.reader.answers(
        none, setting.x, torch.zeros(0, N_SITES, dtype=torch.bool), count_C=torch.zeros(3).long()
    )
    assert found.shape == (0, 64)


def _draw(setting, start):
    """Draw in order, each new bin made of the answer; return what was asked, and the bins at the end."""
    order = torch.stack([torch.randperm(N_SITES, generator=setting.generator) for _ in range(setting.n_chains)])
    x, asked = setting.x.clone(), []

    def choose(place, chain, answer):
        bins = (answer[:, 0] * 1e3).long() % N_BINS
        asked.extend(zip([place] * len(chain), chain.tolist(), answer, strict=True))
        x[chain, order[chain, place]] = bins
        return bins

    setting.reader.in_order(setting.x, order, start_C=torch.tensor(start), choose=choose)
    return order, asked, x


@torch.no_grad()
@pytest.mark.parametrize("kept", [1, 2**25])
@pytest.mark.parametrize("starts", ["all", "different"])
def test_in_order_each_answer_knows_the_values_before_it(small_config, form, kept, starts, monkeypatch):
    monkeypatch.setattr(reader, "MAX_KEPT", kept)
    setting = Setting(small_config, **form)
    start = [0 if starts == "all" else (3, 0, 5, 1, 4, 2, 5)[c % 7] for c in range(setting.n_chains)]
    order, asked, x = _draw(setting, start)
    places = [[place for place, chain, _ in asked if chain == c] for c in range(setting.n_chains)]
    assert places == [list(range(s, N_SITES)) for s in start]
    for place, chain, answer in asked:
        expected = setting.plain(chain, int(order[chain, place]), order[chain, :place], x)
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_contexts_must_fit(small_config):
    setting = Setting(small_config, n_contexts=3)
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(AssertionError, match="4 chains of 3 contexts"):
        setting.reader.answers(none, setting.x[:4], torch.zeros(0, N_SITES) > 0, count_C=torch.zeros(4).long())
    with pytest.raises(AssertionError, match="evaluation mode"):
        Reader(Decoder(small_config), setting.decoder.prepare(setting.memory), setting.sites)


# --- mutants: a cache that is stale or of another row must be seen ----------------------------------------------------


def _worst(setting):
    found, expected = setting.ask(_counts(setting, "ragged"))
    return (found - expected).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("cache", ["read_FHX", "lse_FH", "first_MHX", "query_MD", "table_YZHEX"])
def test_every_cache_is_read_and_a_stale_one_is_seen(small_config, cache):
    """Rows of another context, site or bin in the place of the right ones."""
    setting = Setting(small_config, **FORMS["padded"])
    assert _worst(setting) < 1e-12
    right = getattr(setting.reader, cache)
    setattr(setting.reader, cache, right.roll(1, dims=3 if cache == "table_YZHEX" else 0))
    assert _worst(setting) > 1e-3


@torch.no_grad()
def test_contexts_out_of_order_are_seen(small_config, monkeypatch):
    as_given = lambda self, n_chains: torch.arange(self.n).repeat_interleave(n_chains // self.n)
    monkeypatch.setattr(reader._Contexts, "of_chains", as_given)
    assert _worst(Setting(small_config, **FORMS["padded"])) > 1e-3


@torch.no_grad()
def test_keys_that_are_not_replaced_by_those_of_the_new_bin_are_seen(small_config):
    setting = Setting(small_config)
    real = setting.reader._values
    # the first call looks up the bins that chains begin with, later ones what was drawn
    setting.reader._values = lambda x, site: real(x if x.shape[1] > 1 else x * 0, site)
    order, asked, x = _draw(setting, [0] * setting.n_chains)
    differences = [
        (answer - setting.plain(chain, int(order[chain, place]), order[chain, :place], x)).abs().max()
        for place, chain, answer in asked
    ]
    assert max(differences) > 1e-3


def test_memory_is_not_kept_for_the_first_layer(small_config):
    setting = Setting(small_config)
    assert isinstance(setting.decoder.prepare(setting.memory), PreparedMemory)
    assert [key.shape[2] for key, _ in setting.reader.contexts.pairs] == [0, 7]
