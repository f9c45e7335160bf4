"""The factor model against plain loops and closed forms, and what an intervention may and may not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from cellxpert.batch import Batch, Intervention, Questions
from cellxpert.nn import factors as module
from cellxpert.nn.attention import Layout
from cellxpert.nn.factors import Evidence, Factors

V, K, R, G = 12, 5, 3, 4
MEASURED = torch.ones(2, V, dtype=torch.bool)
MEASURED[1, 7:] = False
# pattern, what was measured above zero and is shown, what is hidden: the rest of the pattern was measured as zero
CELLS = [
    (0, {1: 3, 4: 1, 9: 4}, [0, 6]),
    (1, {0: 2, 3: 4}, [5]),
    (0, {}, []),
    (1, {f: 1 + f % 4 for f in range(7)}, []),
]
QUERY = torch.tensor([[7, 0, 5, 11, 2]]).expand(4, -1)


def make_factors(*, n_targets=0, n_factors=R, seed=0):
    """Random weights in float64: no closed form is blurred by rounding."""
    generator = torch.Generator().manual_seed(seed)
    factors = Factors(torch.arange(V) % 2, n_bins=K, n_factors=n_factors, n_targets=n_targets).double().eval()
    with torch.no_grad():
        for weight in factors.parameters():
            weight.normal_(generator=generator)
        factors.level_MK.copy_(torch.tensor([[0.0, 0.3, 0.7, 1.1, 2.0], [0.0, 0.5, 0.6, 0.9, 1.5]]))
        factors.cap_V.uniform_(0.4, 2.5, generator=generator)
        factors.centre_V.normal_(generator=generator)
        factors.scale_V.uniform_(0.5, 2.0, generator=generator)
        if n_targets:
            factors.intervention.log_usual_VK.normal_(generator=generator)
            factors.intervention.response_V.uniform_(0.0, 2.0, generator=generator)
    return factors


def known(cell):
    """Bin of every feature that a cell shows, zeros included."""
    pattern, shown, hidden = cell
    return {f: shown.get(f, 0) for f in range(V) if MEASURED[pattern, f] and f not in hidden}


def batch_of(cells, *, zeros="drop", pad_length=None, **parts):
    """Batch of cells as in CELLS; where zeros are kept they are tokens, and nothing else is said of them."""
    tokens = [known(c) if zeros == "keep" else c[1] for c in cells]
    lengths = [1 + len(t) for t in tokens]
    rooms = [n if pad_length is None else pad_length for n in lengths]
    feature, bins = [], []
    for token, length, room in zip(tokens, lengths, rooms, strict=True):
        feature += [V, *sorted(token)] + [-1] * (room - length)
        bins += [0, *(token[f] for f in sorted(token))] + [0] * (room - length)
    if zeros == "drop":
        parts |= {
            "measured_PV": MEASURED,
            "pattern_B": torch.tensor([c[0] for c in cells]),
            "hidden_feature_H": torch.tensor([f for c in cells for f in c[2]], dtype=torch.int64),
            "hidden_cell_H": torch.tensor([b for b, c in enumerate(cells) for _ in c[2]], dtype=torch.int64),
        }
    return Batch(
        feature_T=torch.tensor(feature),
        bin_T=torch.tensor(bins),
        lengths_B=torch.tensor(lengths),
        pad_length=pad_length,
        **parts,
    )


def evidence_of(factors, batch):
    layout = Layout.of(batch.lengths_B)
    return factors.evidence(batch, layout, feature_T=batch.feature_T, bin_T=batch.bin_T)


def level(factors, feature, value):
    return float(factors.level_MK[feature % 2, value])


def sums(factors, seen):
    """Numerator and precision that features at their bins add, one by one."""
    numerator, precision = np.zeros(factors.read.weight.shape[1]), np.zeros(factors.read.weight.shape[1])
    for feature, value in seen.items():
        read = factors.read.weight[feature].detach().numpy()
        e = (level(factors, feature, value) - float(factors.centre_V[feature])) * float(factors.scale_V[feature])
        numerator += read * e
        precision += read**2
    return numerator, precision


def moved_by(factors, feature, z, tilt):
    """How far a mean moves that is usual, told of z, when the odds of bins change by exp(tilt * magnitude) as well, and the ratio of variances."""
    usual = factors.intervention.log_usual_VK[feature].numpy()
    means, variances = [], []
    for t in (tilt, 0.0):
        odds = np.exp(usual + answer(factors, feature, z, t))
        levels = factors.level_MK[feature % 2].numpy()
        means.append(odds @ levels / odds.sum())
        variances.append(odds @ (levels - means[-1]) ** 2 / odds.sum())
    return means[0] - means[1], variances[0] / variances[1]


def answer(factors, feature, z, shift=0.0):
    """What is added to the logits of a feature for given factors."""
    slope = float(factors.answer.weight[feature].detach().numpy() @ z)
    at_zero = float(factors.zero.weight[feature].detach().numpy() @ z)
    cap = float(factors.cap_V[feature])
    tilt = np.array([slope * min(level(factors, feature, k), cap) + at_zero * (k == 0) for k in range(K)])
    if shift:
        tilt += float(shift) * factors.level_MK[feature % 2].numpy()
    return tilt


def close(found, expected, tolerance=1e-12):
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# --- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", ["drop", "keep"])
def test_evidence_is_a_sum_over_all_that_is_shown_and_nothing_that_is_hidden(zeros):
    factors = make_factors()
    found = evidence_of(factors, batch_of(CELLS, zeros=zeros))
    for b, cell in enumerate(CELLS):
        numerator, precision = sums(factors, known(cell))
        close(found.sum_BR[b], numerator)
        close(found.precision_BR[b], precision)
    assert {name for name, x in vars(found).items() if x is not None} == {"sum_BR", "precision_BR"}


def test_of_features_nobody_measured_there_is_no_evidence():
    factors = make_factors()
    short = evidence_of(factors, batch_of([CELLS[1]]))
    everything = evidence_of(factors, dataclasses.replace(batch_of([CELLS[1]]), pattern_B=torch.tensor([0])))
    numerator, precision = sums(factors, dict.fromkeys(range(7, V), 0))
    close(everything.sum_BR - short.sum_BR, numerator[None])
    close(everything.precision_BR - short.precision_BR, precision[None])


def test_blank_cells_say_nothing():
    factors = make_factors()
    plain = evidence_of(factors, batch_of(CELLS))
    found = evidence_of(factors, batch_of(CELLS, blank_B=torch.tensor([False, True, True, False])))
    assert not found.sum_BR[1:3].any()
    assert not found.precision_BR[1:3].any()
    assert torch.equal(found.sum_BR[[0, 3]], plain.sum_BR[[0, 3]])
    assert torch.equal(found.precision_BR[[0, 3]], plain.precision_BR[[0, 3]])


def _network(make_network, **settings):
    network = make_network(n_features=V, n_bins=K, n_factors=R, **settings).double()
    strong = make_factors(n_targets=0 if network.factors.intervention is None else G)
    network.factors.load_state_dict(strong.state_dict())
    return network


@torch.no_grad()
@pytest.mark.parametrize("zeros", ["drop", "keep"])
def test_evidence_does_not_depend_on_layout_or_company(make_network, zeros):
    network = _network(make_network)
    packed = network.encode(batch_of(CELLS, zeros=zeros)).evidence
    padded = network.encode(batch_of(CELLS, zeros=zeros, pad_length=17)).evidence
    assert torch.equal(packed.sum_BR, padded.sum_BR)
    assert torch.equal(packed.precision_BR, padded.precision_BR)
    for b, cell in enumerate(CELLS):
        alone = network.encode(batch_of([cell], zeros=zeros)).evidence
        close(alone.sum_BR[0], packed.sum_BR[b].numpy())


def test_rows_repeat_and_keep_what_is_absent_absent():
    factors = make_factors()
    evidence = evidence_of(factors, batch_of(CELLS))
    found = evidence.rows(torch.tensor([2, 0, 0]))
    assert torch.equal(found.sum_BR, evidence.sum_BR[[2, 0, 0]])
    assert torch.equal(found.precision_BR, evidence.precision_BR[[2, 0, 0]])
    assert found.code_BS is None
    changed = make_factors(n_targets=G).intervene(evidence, _intervention(before=True))
    found = changed.rows(torch.tensor([1, 1, 3]))
    for name, x in vars(changed).items():
        assert torch.equal(getattr(found, name), x[[1, 1, 3]]), name


# --- what is answered --------------------------------------------------------------------------------------------------


def _values(seed=0):
    """Movable values, some of them padding, and who sees them."""
    generator = torch.Generator().manual_seed(seed)
    feature_BM = torch.stack([torch.randperm(V, generator=generator)[:4] for _ in CELLS])
    feature_BM[1, 2:] = -1
    return {
        "value_feature_BM": feature_BM,
        "value_bin_BM": torch.randint(0, K, (4, 4), generator=generator),
        "visible_BQM": torch.rand(4, 5, 4, generator=generator) < 0.5,
    }


@pytest.mark.parametrize("shared", [False, True])
def test_conditionals_are_those_of_a_loop(shared):
    factors, values = make_factors(), _values()
    if shared:
        values["visible_BQM"] = values["visible_BQM"][:1]
    found = factors(QUERY, evidence_of(factors, batch_of(CELLS)), **values)
    for b, cell in enumerate(CELLS):
        numerator, precision = sums(factors, known(cell))
        for q in range(5):
            seen = values["visible_BQM"][0 if shared else b, q]
            features, bins = values["value_feature_BM"][b], values["value_bin_BM"][b]
            pairs = [(int(f), int(v)) for f, v, s in zip(features, bins, seen, strict=True) if s and f >= 0]
            more, certain = sums(factors, dict(pairs))
            z = (numerator + more) / (1 + precision + certain)
            close(found[b, q], answer(factors, int(QUERY[b, q]), z))
    assert found.std() > 0.1


def test_a_padded_query_does_no_harm():
    factors, values = make_factors(), _values()
    evidence = evidence_of(factors, batch_of(CELLS))
    padded = torch.cat([QUERY, torch.full((4, 2), -1)], dim=1)
    seen = torch.nn.functional.pad(values["visible_BQM"], (0, 0, 0, 2), value=True)
    found = factors(padded, evidence, **(values | {"visible_BQM": seen}))
    assert torch.equal(found[:, :5], factors(QUERY, evidence, **values))
    assert found.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("intervened", [False, True])
def test_one_pass_gives_what_separate_passes_give(make_network, intervened):
    """Queries and values stay isolated from one another with factors and interventions on."""
    network, values = _network(make_network, n_targets=G), _values()
    batch = batch_of(CELLS, intervention=_intervention(before=True) if intervened else None)
    memory = network.memory(network.encode(batch))
    together = network.decode(Questions(query_BQ=QUERY, **values), memory)
    for q in range(5):
        kept = values["visible_BQM"][:, q]
        feature_BM = torch.where(kept, values["value_feature_BM"], -1)  # what is not seen is not even there
        one = Questions(
            query_BQ=QUERY[:, q : q + 1],
            value_feature_BM=feature_BM,
            value_bin_BM=values["value_bin_BM"],
            visible_BQM=kept[:, None],
        )
        close(network.decode(one, memory)[:, 0], together[:, q].numpy(), 1e-10)
    none = network.decode(Questions(query_BQ=QUERY), memory)
    assert (none - together).abs().max() > 0.1


def test_factors_are_the_posterior_mean_of_a_gaussian_factor_model():
    """With orthogonal readings the precision is diagonal, and what is taken for the posterior mean is exactly that."""
    rng = np.random.default_rng(0)
    for n_factors in (1, R):
        read = np.linalg.qr(rng.normal(size=(V, n_factors)))[0] * rng.uniform(0.5, 3, n_factors)
        unique = rng.uniform(0.1, 1, V)
        loading = read * np.sqrt(unique)[:, None]
        centre, deviation = rng.normal(size=V), rng.uniform(0.5, 2, V)
        factors = make_factors(n_factors=n_factors)
        factors.start_from(
            level_MK=factors.level_MK.clone(),
            cap_V=factors.cap_V.clone(),
            centre_V=torch.from_numpy(centre),
            deviation_V=torch.from_numpy(deviation),
            loading_VR=torch.from_numpy(loading),
            unique_V=torch.from_numpy(unique),
        )
        bins = rng.integers(0, K, V)
        cell = (0, {f: int(b) for f, b in enumerate(bins) if b}, [])
        evidence = evidence_of(factors, batch_of([cell]))
        x = np.array([(level(factors, f, b) - centre[f]) / deviation[f] for f, b in enumerate(bins)])
        inverse = loading.T / unique
        expected = np.linalg.solve(np.eye(n_factors) + inverse @ loading, inverse @ x)
        close(evidence.sum_BR[0] / (1 + evidence.precision_BR[0]), expected, 1e-10)


def test_missing_factors_stay_zero():
    factors = make_factors()
    ones = torch.ones(V, dtype=torch.float64)
    factors.start_from(
        level_MK=factors.level_MK.clone(),
        cap_V=ones,
        centre_V=ones,
        deviation_V=ones,
        loading_VR=0.5 * ones[:, None],
        unique_V=ones,
    )
    assert (factors.read.weight[:, 0] == 0.5).all()
    for table in (factors.read, factors.answer, factors.zero):
        assert not table.weight[:, 1:].any()


def test_an_answer_is_a_gaussian_whose_mean_follows_the_factors():
    """On a fine grid, the usual distribution N(m, s^2) becomes one with the mean m + s * loading z."""
    n_bins = 401
    factors = Factors(torch.zeros(V, dtype=torch.int64), n_bins=n_bins, n_factors=R, n_targets=1).double()
    rng = np.random.default_rng(0)
    loading, deviation, centre = rng.normal(size=(V, R)) / 2, rng.uniform(0.4, 0.8, V), rng.normal(size=V)
    grid = torch.linspace(-9, 9, n_bins, dtype=torch.float64)
    factors.start_from(
        level_MK=grid[None],
        cap_V=torch.full((V,), 9.0),
        centre_V=torch.from_numpy(centre),
        deviation_V=torch.from_numpy(deviation),
        loading_VR=torch.from_numpy(loading),
        unique_V=torch.full((V,), 0.5, dtype=torch.float64),
    )
    z = torch.tensor([[0.7, -1.1, 0.4]], dtype=torch.float64)
    query = torch.arange(V)[None]
    nothing = torch.zeros(1, 1, R, dtype=torch.float64)
    evidence = Evidence(sum_BR=z, precision_BR=nothing[0])
    prior_VK = -((grid - torch.from_numpy(centre)[:, None]) ** 2) / (2 * torch.from_numpy(deviation)[:, None] ** 2)
    p_VK = (prior_VK + factors.tilt(query, evidence, sum_BQR=z[:, None], precision_BQR=nothing)[0]).softmax(-1)
    close((p_VK * grid).sum(-1), centre + deviation * (loading @ z[0].numpy()), 1e-8)
    # by a known amount where an intervention shifts it: what values are then compared with
    shift = torch.from_numpy(rng.normal(size=V))
    with torch.no_grad():
        for weight in factors.intervention.parameters():
            weight.zero_()
        factors.intervention.usual.weight[:, 0] = shift
        factors.intervention.log_usual_VK.copy_(prior_VK)
    after = factors.intervene(Evidence(sum_BR=nothing[0], precision_BR=nothing[0]), _one(0, 0))
    p_VK = (prior_VK + factors(query, after)[0]).softmax(-1)
    moved = ((p_VK * grid).sum(-1) - torch.from_numpy(centre)) * factors.scale_V
    found = factors.expected(query, after)
    close(found.moved_BM[0], moved.detach().numpy(), 1e-8)
    close(found.spread_BM[0], 0.0, 1e-8)  # a tilted Gaussian is as wide as before


def test_values_that_vary_more_after_an_intervention_say_what_they_say_of_z_and_no_more():
    """A rare gene that an intervention switches on: z given its value is the mode of its posterior, one step of Newton's from 0.

    Its deviations are ten times those of cells where nothing was done. Were they taken for such, z would be far off.
    """
    rare, loading, tilt = 0.002, 0.4, 7.0
    factors, deviation = _one_rare_gene(rare, loading, tilt), np.sqrt(rare * (1 - rare))
    evidence = factors.intervene(_nothing_known(1, n_factors=1), _one(0, 0))
    slope = loading / deviation  # of log-odds in z
    on = 1 / (1 + np.exp(-np.log(rare / (1 - rare)) - tilt))
    assert on == pytest.approx(0.69, abs=0.01)
    for value in (0, 1):
        mode = slope * (value - on) / (1 + slope**2 * on * (1 - on))
        close(_moves_z(factors, evidence, value), mode, 1e-9)


def test_what_an_intervention_makes_vary_leaves_a_cell_what_its_context_says_it_is():
    """z moves from the context's, by what a value shows beside what that z and the intervention expect; the more it varies the less."""
    z, rare, loading = 0.5, 0.002, 0.4
    deviation = np.sqrt(rare * (1 - rare))
    precision = torch.full((1, 1), 2.0, dtype=torch.float64)
    context = Evidence(sum_BR=z * (1 + precision), precision_BR=precision)
    for tilt in (-2.0, 0.0, 3.0, 7.0):
        evidence = _one_rare_gene(rare, loading, tilt).intervene(context, _one(0, 0))
        before, after = (1 / (1 + (1 - rare) / rare * np.exp(-loading / deviation * z - t)) for t in (0.0, tilt))
        ratio = after * (1 - after) / (before * (1 - before))
        for value in (0, 1):
            beside = (value - rare - (after - before)) / deviation - loading * z
            step = loading * beside / (3 + ratio * loading**2)
            close(_moves_z(_one_rare_gene(rare, loading, tilt), evidence, value), step, 1e-9)


def _one_rare_gene(rare, loading, tilt):
    """One gene and one factor; an intervention tilts it."""
    factors = Factors(torch.zeros(1, dtype=torch.int64), n_bins=2, n_factors=1, n_targets=1).double()
    ones = torch.ones(1, dtype=torch.float64)
    factors.start_from(
        level_MK=torch.tensor([[0.0, 1.0]], dtype=torch.float64),
        cap_V=ones,
        centre_V=rare * ones,
        deviation_V=np.sqrt(rare * (1 - rare)) * ones,
        loading_VR=loading * ones[None],
        unique_V=ones,
    )
    with torch.no_grad():
        for weight in factors.intervention.parameters():
            weight.zero_()
        factors.intervention.usual.weight[:] = tilt
        factors.intervention.log_usual_VK.copy_(torch.tensor([[1 - rare, rare]], dtype=torch.float64).log())
    return factors


def _moves_z(factors, evidence, value):
    """How far seeing the value of the only gene moves z, from what its answer to itself changes by."""
    query, seen = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.bool)
    shown = {"value_feature_BM": query, "value_bin_BM": torch.full((1, 1), value), "visible_BQM": seen}
    tilts = factors(query, evidence, **shown) - factors(query, evidence)
    return (tilts[0, 0, 1] - tilts[0, 0, 0]) / factors.answer.weight[0, 0]


def test_more_of_what_a_feature_follows_means_more_of_it():
    """Whatever the usual distribution is: along the answer the mean rises, along ``zero`` so does the share of zeros."""
    factors = make_factors()
    prior_K = torch.randn(K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    query, precision = torch.tensor([[3]]), torch.zeros(1, 1, R, dtype=torch.float64)
    evidence = Evidence(sum_BR=precision[0], precision_BR=precision[0])
    with torch.no_grad():
        for table, other, statistic in (
            (factors.answer, factors.zero, lambda p: (p * factors.tilted(query[0, 0])).sum()),
            (factors.zero, factors.answer, lambda p: p[0]),
        ):
            kept = other.weight.clone()
            other.weight.zero_()
            direction = table.weight[3] / table.weight[3].norm()
            found = []
            for size in (-1.0, 0.0, 1.0):
                tilt = factors.tilt(query, evidence, sum_BQR=size * direction[None, None], precision_BQR=precision)
                found.append(float(statistic((prior_K + tilt[0, 0]).softmax(-1))))
            assert found[0] + 0.01 < found[1] < found[2] - 0.01
            other.weight.copy_(kept)


# --- interventions -----------------------------------------------------------------------------------------------------

FEATURE = [[2, 8, -1], [5, 10, -1], [-1, -1, -1], [-1, 1, -1]]
TARGET = [[1, 3, -1], [0, -1, -1], [-1, -1, -1], [2, -1, -1]]
DOSE = [[-1.0, 1.0, 0.0], [-0.7, -1.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.5, 0.0]]


def _intervention(**changes):
    """Two genes that were perturbed; one that was and one that never was; nothing; one that is no feature beside a new one."""
    given = {
        "feature_BI": torch.tensor(FEATURE),
        "target_BI": torch.tensor(TARGET),
        "dose_BI": torch.tensor(DOSE, dtype=torch.float64),
    }
    return Intervention(**(given | changes))


def _one(gene, target, dose=-1.0, **changes):
    """One gene, set in one cell, read before."""
    return Intervention(
        feature_BI=torch.tensor([[gene]]),
        target_BI=torch.tensor([[target]]),
        dose_BI=torch.tensor([[dose]], dtype=torch.float64),
        **({"before": True} | changes),
    )


def _nothing_known(n=1, *, n_factors=R):
    nothing = torch.zeros(n, n_factors, dtype=torch.float64)
    return Evidence(sum_BR=nothing, precision_BR=nothing)


def shift_of(factors, row, feature):
    """Tilt of a feature by what was learned of the genes that are set in a cell, in a loop."""
    part = {name: x.detach().numpy() for name, x in factors.intervention.named_parameters()}
    codes = [-d * part["code.weight"][t] for t, d in zip(TARGET[row], DOSE[row], strict=True) if t >= 0]
    pairs = [codes[i] * codes[j] for i in range(len(codes)) for j in range(i)]
    shift = sum(part["direct.weight"][feature] @ code for code in codes)
    shift += sum(part["pair.weight"][feature] @ pair for pair in pairs)
    return shift + any(DOSE[row]) * part["usual.weight"][feature, 0]


def carried_of(factors, row):
    """Shift of the factors by genes that were never perturbed: each is what its absence alone would say of them."""
    total = np.zeros(R)
    for gene, target, dose in zip(FEATURE[row], TARGET[row], DOSE[row], strict=True):
        if gene >= 0 and target < 0:
            read = factors.read.weight[gene].detach().numpy()
            e = (0 - float(factors.centre_V[gene])) * float(factors.scale_V[gene])
            total += -dose * np.linalg.solve(np.eye(R) + np.outer(read, read), read * e)
    return total


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("kind", ["before", "blank", "some blank", "after"])
def test_answers_after_an_intervention_are_those_of_a_loop(kind, with_values):
    """Read before it, or blank: z and the answers move, and values are compared with what they are expected to be after it.

    Read after it, the context tells, and nothing is added.
    """
    factors = make_factors(n_targets=G)
    blank = torch.tensor([False, "blank" in kind, kind == "blank", kind == "blank"])
    parts = {"intervention": _intervention(before=kind == "before")} | ({"blank_B": blank} if blank.any() else {})
    values = _values() if with_values else {}
    found = factors(QUERY, evidence_of(factors, batch_of(CELLS, **parts)), **values)
    for b, cell in enumerate(CELLS):
        acts = bool(blank[b]) or kind == "before"
        numerator, precision = sums(factors, {} if blank[b] else known(cell))
        for q in range(5):
            feature = int(QUERY[b, q])
            response = float(factors.intervention.response_V[feature])
            mean = numerator / (1 + precision) + acts * response * carried_of(factors, b)
            certainty = 1 + precision
            total = mean * certainty
            if with_values:
                seen = values["visible_BQM"][b, q]
                for f, v, s in zip(values["value_feature_BM"][b], values["value_bin_BM"][b], seen, strict=True):
                    if s and f >= 0:
                        f, v = int(f), int(v)
                        more, certain = sums(factors, {f: v})
                        moved, ratio = moved_by(factors, f, numerator / (1 + precision), acts * shift_of(factors, b, f))
                        expected = float(factors.scale_V[f]) * moved
                        total = total + more - factors.read.weight[f].detach().numpy() * expected
                        total = total + (ratio - 1) * certain * numerator / (1 + precision)  # of the context's z
                        certainty = certainty + ratio * certain
            tilt = acts * shift_of(factors, b, feature)
            close(found[b, q], answer(factors, feature, total / certainty, tilt), 1e-10)
    assert found.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["before", "after", "blank"])
def test_an_empty_intervention_changes_no_bit(make_network, kind):
    network, values = _network(make_network, n_targets=G), _values()
    questions = Questions(query_BQ=QUERY, **values)
    none = torch.full((4, 2), -1)
    empty = Intervention(feature_BI=none, target_BI=none, dose_BI=torch.zeros(4, 2).double(), before=kind == "before")
    parts = {"blank_B": torch.ones(4, dtype=torch.bool)} if kind == "blank" else {}
    without, with_empty, some = (
        network.decode(questions, network.memory(network.encode(batch_of(CELLS, intervention=x, **parts))))
        for x in (None, empty, _intervention(before=kind == "before"))
    )
    assert torch.equal(without, with_empty)
    assert torch.equal(without[2], some[2])  # the cell without one, among others with
    for b in (0, 1, 3):
        assert torch.equal(without[b], some[b]) == (kind == "after")
        assert (without[b] - some[b]).abs().max() > 0.1 or kind == "after"


@torch.no_grad()
def test_a_network_that_has_seen_none_ignores_interventions(make_network):
    network = _network(make_network)
    one, two = (network.encode(batch_of(CELLS, intervention=x)).evidence for x in (None, _intervention(before=True)))
    assert torch.equal(one.sum_BR, two.sum_BR)
    assert two.code_BS is None
    assert two.carried_BR is None


def test_a_new_gene_that_is_cut_out_where_nothing_is_known_is_as_one_that_is_seen_at_zero():
    """The exact posterior of the factors given that one zero; of features that respond fully."""
    factors = make_factors(n_targets=G)
    with torch.no_grad():
        factors.intervention.usual.weight.zero_()
        factors.intervention.response_V.fill_(1.0)
    query = torch.arange(V)[None]
    for gene in (2, 9):
        read = factors.read.weight[gene].detach().numpy()
        e = -float(factors.centre_V[gene] * factors.scale_V[gene])
        z = np.linalg.solve(np.eye(R) + np.outer(read, read), read * e)
        found = factors(query, factors.intervene(_nothing_known(), _one(gene, -1)))
        close(found, np.stack([answer(factors, f, z) for f in range(V)])[None], 1e-10)


def test_in_a_known_context_the_factors_move_from_where_they_were_inferred():
    """Abduction, action, prediction: of a cell read before it, the posterior keeps its certainty and its mean moves."""
    factors = make_factors(n_targets=G)
    context = evidence_of(factors, batch_of([CELLS[0]]))
    after = factors.intervene(context, _one(5, -1))
    assert torch.equal(after.sum_BR, context.sum_BR)
    assert torch.equal(after.precision_BR, context.precision_BR)
    blank = factors.intervene(_nothing_known(), _one(5, -1))
    close(after.carried_BR / (1 + after.precision_BR), blank.carried_BR.detach().numpy())


def test_a_value_where_the_intervention_puts_it_says_nothing():
    """It adds certainty, and does not move the factors: what the intervention explains is not explained twice."""
    factors = make_factors(n_targets=G)
    evidence = factors.intervene(_nothing_known(4), _intervention(before=True))
    feature = 4
    with torch.no_grad():
        shift = factors.shift(torch.tensor([[feature]]).expand(4, -1), evidence)[0, 0]
        factors.centre_V[feature] = (
            factors.level_MK[feature % 2, 3] - moved_by(factors, feature, np.zeros(R), float(shift))[0]
        )
    seen = {
        "value_feature_BM": torch.full((4, 1), feature),
        "value_bin_BM": torch.full((4, 1), 3),
        "visible_BQM": torch.ones(1, 5, 1, dtype=torch.bool),
    }
    close(factors(QUERY, evidence, **seen)[0], factors(QUERY, evidence)[0].detach().numpy(), 1e-10)
    assert (factors(QUERY, evidence, **seen)[1] - factors(QUERY, evidence)[1]).abs().max() > 0.1


def test_effects_grow_with_the_dose():
    factors = make_factors(n_targets=G)
    once, thrice = (
        factors.intervene(_nothing_known(4), _intervention(before=True, dose_BI=n * _intervention().dose_BI))
        for n in (1.0, 3.0)
    )
    for name, power in {"carried_BR": 1, "code_BS": 1, "pair_BS": 2, "usual_B": 0}.items():
        close(getattr(thrice, name), 3.0**power * getattr(once, name).detach().numpy())
    assert once.usual_B.tolist() == [1, 1, 0, 1]
    assert (once.carried_BR.abs().amax(1) > 0).tolist() == [False, True, False, True]
    assert (once.code_BS.abs().amax(1) > 0).tolist() == [True, True, False, True]
    said = _intervention(before=True, usual_BI=torch.arange(12.0).double().view(4, 3) / 9)
    acts = (said.dose_BI != 0).double()
    close(factors.intervene(_nothing_known(4), said).usual_B, (said.usual_BI * acts).amax(1).numpy())
    share = torch.tensor([1.0, 0.5, 0.0, 0.25]).double()
    shared = factors.intervene(_nothing_known(4), _intervention(before=True, pair_B=share))
    close(shared.pair_BS, (once.pair_BS * share[:, None]).detach().numpy())
    close(shared.code_BS, once.code_BS.detach().numpy())
    opposite = factors.intervene(_nothing_known(), _one(2, 1, 1.0))
    close(opposite.code_BS, -factors.intervene(_nothing_known(), _one(2, 1)).code_BS.detach().numpy())


def test_pairs_are_of_different_genes():
    factors = make_factors(n_targets=G)
    given = Intervention(
        feature_BI=torch.tensor([[2, 8, 0], [2, -1, -1]]),
        target_BI=torch.tensor([[1, 3, 0], [1, -1, -1]]),
        dose_BI=torch.tensor([[-1.0, 0.5, 2.0], [-1.0, 0.0, 0.0]]).double(),
        before=True,
    )
    code = factors.intervention.code.weight.detach().numpy()
    a, b, c = code[1], -0.5 * code[3], -2 * code[0]
    found = factors.intervene(_nothing_known(2), given).pair_BS
    close(found[0], a * b + a * c + b * c)
    close(found[1], np.zeros(module.N_CODES))


def test_what_carries_over_is_scaled_by_each_features_response():
    factors = make_factors(n_targets=G)
    query = torch.arange(V)[None]

    def answers():
        return [factors(query, factors.intervene(_nothing_known(), _one(2, t))).detach() for t in (1, -1)]

    before = answers()
    with torch.no_grad():
        factors.intervention.response_V[5] += 1
    after = answers()
    assert torch.equal(before[0], after[0])  # of a gene that was perturbed, the effects themselves were learned
    others = [f for f in range(V) if f != 5]
    assert torch.equal(before[1][:, others], after[1][:, others])
    read, e = factors.read.weight[2].detach().numpy(), -float(factors.centre_V[2] * factors.scale_V[2])
    close(after[1][0, 5] - before[1][0, 5], answer(factors, 5, read * e / (1 + read @ read)), 1e-10)


def test_predicted_codes_of_unseen_genes_stand_in_for_learned_ones():
    factors = make_factors(n_targets=G)
    query = torch.arange(V)[None]
    learned = Intervention(
        feature_BI=torch.tensor([[-1, -1]]),
        target_BI=torch.tensor([[1, 3]]),
        dose_BI=torch.tensor([[-1.0, 0.5]]).double(),
        before=True,
    )
    codes = factors.intervention.code.weight[[1, 3]].detach()[None]
    predicted = dataclasses.replace(learned, target_BI=torch.full((1, 2), -1), code_BIS=codes)
    one, two = (factors(query, factors.intervene(_nothing_known(), x)).detach() for x in (learned, predicted))
    close(two, one.numpy())
    both = dataclasses.replace(learned, code_BIS=codes)
    close(
        factors.intervene(_nothing_known(), both).code_BS,
        2 * factors.intervene(_nothing_known(), learned).code_BS.detach().numpy(),
    )


def test_interventions_begin_at_effects_that_were_observed():
    part = make_factors(n_targets=G).intervention
    generator = torch.Generator().manual_seed(0)
    usual, code, direct, pair = (torch.randn(*n, generator=generator) for n in ((V,), (G, 3), (V, 3), (V, 3)))
    log_p = torch.randn(V, K).double()
    part.start_from(
        log_usual_VK=log_p,
        usual_V=usual,
        code_GS=code,
        direct_VS=direct,
        pair_VS=pair,
        pair_gain=0.25,
    )
    assert part.pair_gain == 0.25
    close(part.log_usual_VK, log_p.numpy(), 1e-6)
    close(part.code.weight @ part.direct.weight.T, (code @ direct.T).double().numpy(), 1e-6)
    close(part.usual.weight[:, 0], usual.double().numpy())
    close(part.pair.weight[:, :3], pair.double().numpy())
    for table in (part.code, part.direct, part.pair):
        assert not table.weight[:, 3:].any()


@torch.no_grad()
def test_weights_and_what_the_model_starts_from_travel_through_files(make_network):
    network = _network(make_network, n_targets=G)
    other = make_network(n_features=V, n_bins=K, n_factors=R, n_targets=G, seed=1).double()
    questions = Questions(query_BQ=QUERY, **_values())
    batch = batch_of(CELLS, intervention=_intervention(before=True))
    answers = [network.decode(questions, network.memory(network.encode(batch)))]
    other.load_state_dict(load(save(network.state_dict())))
    answers.append(other.decode(questions, other.memory(other.encode(batch))))
    assert torch.equal(*answers)
    names = {n.removeprefix("factors.") for n in network.state_dict() if n.startswith("factors.")}
    assert {
        "level_MK",
        "cap_V",
        "centre_V",
        "scale_V",
        "intervention.log_usual_VK",
        "intervention.response_V",
        "intervention.code.weight",
    } <= names
    assert "modality_V" not in names  # it follows from the vocabulary
