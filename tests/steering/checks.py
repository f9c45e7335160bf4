"""Statistics that any sampler of a known law must pass: each returns a p value, or what it counts, for a kernel and a law.

Numbers of tests are those of the list that this package holds itself to: 1 stationarity of one step, 2 detailed balance,
3 long runs, 4 ranks, 5 Geweke, 6 simulation-based calibration, 10 clamps, 12 no effect, 13 coverage, 15 spread of chains.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from cellxpert.steering import Anchors, Streams, Target, init
from cellxpert.steering.conditionals import leave_one_out_log_prob
from cellxpert.steering.diagnostics import mcse
from cellxpert.steering.targets import Density

from .conftest import N_BINS, N_SITES, STATES, code
from .enumeration import block_matrix, chi_square, log_target

ORDER = [2, 0, 3, 1]
ANCHORS = [[0, 1, 2, 0], [2, 2, 0, 1]]
LIST = STATES.tolist()


class Numbers(Streams):
    """Numbers of all chains from one generator: for very many chains, whose streams would take longer than their steps."""

    def __init__(self, seed, n_chains):
        self._generator, self._n_chains = torch.Generator().manual_seed(seed), n_chains

    @property
    def n_chains(self):
        return self._n_chains

    def uniform(self, n):
        return torch.rand(self._n_chains, n, dtype=torch.float64, generator=self._generator)


@functools.lru_cache(maxsize=64)
def log_law(model, part, kappa, n_clamped, weight):
    """Log of the stated law over all states; of the free sites' pseudo-likelihood if some are clamped."""
    anchors = ANCHORS if kappa else ()
    return log_target(model, LIST, ORDER, part=part, weight=weight, anchors=anchors, kappa=kappa, clamped=n_clamped)


@dataclass(frozen=True, kw_only=True)
class Tabulated(Target):
    """The same target, looked up: for samplers that ask nothing else of it."""

    log_density_S: torch.Tensor

    def __call__(self, x_CM, *, log_model_C=None):
        log_density_C = self.log_density_S[code(x_CM)]
        return Density(log_model_C=log_density_C, distance_CA=None, log_density_C=log_density_C)


@dataclass(frozen=True)
class Case:
    """A kernel, made anew for every run, and the law that it is to leave invariant."""

    kernel: Callable
    model: object
    part: str = "pseudo"
    kappa: float = 0.0
    weight: float = 1.0
    streams: Callable = Numbers
    tabulated: bool = False

    def target(self, n, n_clamped=0):
        anchors = Anchors(bin_AM=torch.tensor(ANCHORS), kappa=self.kappa) if self.kappa else None
        stated = {
            "model": self.model,
            "order_CM": torch.tensor([ORDER]).expand(n, -1),
            "n_clamped": n_clamped,
            "part": self.part,
            "weight": self.weight,
            "anchors": anchors,
        }
        if not self.tabulated:
            return Target(**stated)
        table = torch.from_numpy(log_law(self.model, self.part, self.kappa, n_clamped, self.weight))
        return Tabulated(**stated, log_density_S=table)

    def law(self, n_clamped=0):
        """Probabilities of all states; given n clamped sites, of any values of them."""
        return np.exp(log_law(self.model, self.part, self.kappa, n_clamped, self.weight))

    def given(self, state, n_clamped):
        """Law of the free sites, given the clamped ones of a state."""
        same = (STATES[:, ORDER[:n_clamped]] == torch.tensor(LIST[state])[ORDER[:n_clamped]]).all(1).numpy()
        law = self.law(n_clamped) * same
        return law / law.sum()

    def walk(self, x, n_steps, *, seed, n_clamped=0):
        """Yield every state and what was told of the step."""
        kernel, target, streams = self.kernel(), self.target(len(x), n_clamped), self.streams(seed, len(x))
        state = init(x, target)
        for _ in range(n_steps):
            state, info = kernel(state, target, streams)
            yield state.x_CM, info


def draws(law, n, seed):
    return STATES[torch.from_numpy(np.random.default_rng([seed, 1]).choice(len(law), n, p=law))]


def last(walk):
    *_, (x, _) = walk
    return x


def counted(x, law):
    """P value of states against a law; 0 if one of them is impossible."""
    counts, possible = np.bincount(code(x), minlength=len(law)), law > 0
    return 0.0 if counts[~possible].any() else chi_square(counts[possible], len(x) * law[possible])


def one_step(case, n, *, n_steps=1, n_clamped=0, state=50):
    """Test 1: draws from the law still have it after a step."""

    def p_value(seed, factor):
        law = case.given(state, n_clamped)
        return counted(last(case.walk(draws(law, n * factor, seed), n_steps, seed=seed, n_clamped=n_clamped)), law)

    return p_value


def balance(case, n):
    """Test 2: Bowker's test of the symmetry of pairs before and after a step."""

    def p_value(seed, factor):
        x = draws(case.law(), n * factor, seed)
        after = last(case.walk(x, 1, seed=seed))
        pairs = np.bincount(code(x) * 81 + code(after), minlength=81 * 81).reshape(81, 81).astype(float)
        upper = np.triu_indices(81, 1)
        one, two = pairs[upper], pairs.T[upper]
        enough = one + two >= 10
        statistic = ((one - two)[enough] ** 2 / (one + two)[enough]).sum()
        return float(stats.chi2.sf(statistic, enough.sum()))

    return p_value


def unexpected(model, law):
    """The possible state whose values its own conditionals expect least: where a truncated proposal is stuck."""
    log_p = leave_one_out_log_prob(model, STATES).gather(2, STATES[..., None])[..., 0].amax(1)
    return int(log_p.masked_fill(torch.from_numpy(law == 0), 1.0).argmin())


def long_run(case, n, n_steps, *, start="least likely"):
    """Test 3: chains from the least likely state, or another bad one, end in the law."""

    def p_value(seed, factor):
        law = case.law()
        state = int(law.argmin()) if start == "least likely" else unexpected(case.model, law)
        return counted(last(case.walk(STATES[state].expand(n * factor, -1), n_steps, seed=seed)), law)

    return p_value


@functools.lru_cache(maxsize=64)
def slowest(model, part, kappa, n_clamped, *, tau):
    """Largest eigenvalue below 1 of single-site Metropolis-Hastings, by its matrix."""
    log_pi = log_law(model, part, kappa, n_clamped, 1.0)
    matrix = block_matrix(model, LIST, log_pi, size=1, tau=tau, mix=0.0, free=ORDER[n_clamped:])
    values = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
    return values[N_BINS**n_clamped]  # the clamped values make as many separate chains


def relaxation(case, *, tau, n_clamped=0):
    """Steps in which what a single-site sampler remembers falls by a factor e."""
    return -1 / math.log(slowest(case.model, case.part, case.kappa, n_clamped, tau=tau))


def enough(case, n, *, tau):
    """Steps after which n chains from the least likely state add at most 0.01 to a chi square of their ends.

    The chi-square distance from the law falls from 1 / pi(start) at the square of the second eigenvalue per step.
    """
    return math.ceil(math.log(100 * n / case.law().min()) * relaxation(case, tau=tau) / 2)


def ranks(case, n, *, length=20):
    """Test 4 (Gandy & Scott 2020): the state drawn from the law has any rank in a run through it, whatever the mixing.

    Reversible kernels run backward as they run forward. Ranks are by log density and by sum of bins.
    """

    def p_value(seed, factor):
        rng, law, rows = np.random.default_rng([seed, 2]), case.law(), n * factor
        x, place, column = draws(law, rows, seed), rng.integers(0, length, rows), np.arange(rows)
        at_time = np.zeros((length, rows), dtype=int)
        at_time[place, column] = code(x)
        for sign, offset in ((1, 10), (-1, 20)):
            for step, (y, _) in enumerate(case.walk(x, length - 1, seed=seed + offset), start=1):
                at = place + sign * step
                inside = (at >= 0) & (at < length)
                at_time[at[inside], column[inside]] = code(y).numpy()[inside]
        smallest, ties = 1.0, rng.random(at_time.shape)
        for value in (np.log(law), STATES.sum(1).numpy()):
            values, own = value[at_time], value[code(x)]
            rank = ((values < own) | ((values == own) & (ties < ties[place, column]))).sum(axis=0)
            smallest = min(smallest, chi_square(np.bincount(rank, minlength=length), np.full(length, rows / length)))
        return 2 * smallest

    return p_value


def exact_redraw(law, redrawn):
    """Function of (states, numbers) that draws these sites anew given the others, by enumeration."""
    kept = [g for g in range(N_SITES) if g not in redrawn]
    place_kept = N_BINS ** torch.arange(len(kept))
    place_new = N_BINS ** torch.arange(len(redrawn))
    table = torch.zeros(N_BINS ** len(kept), N_BINS ** len(redrawn), dtype=torch.float64)
    table[(STATES[:, kept] * place_kept).sum(1), (STATES[:, redrawn] * place_new).sum(1)] = torch.from_numpy(law)
    cumulative = table.cumsum(1) / table.sum(1, keepdim=True)

    def redraw(x, uniform):
        row = cumulative[(x[:, kept] * place_kept).sum(1)]
        value = (row <= uniform[:, None]).sum(1).clamp(max=row.shape[1] - 1)
        x = x.clone()
        x[:, redrawn] = value[:, None] // place_new % N_BINS
        return x

    return redraw


def moments():
    """Indicators of all values of one and of two sites, (81 states, 66)."""
    one = [(STATES[:, g] == b) for g in range(N_SITES) for b in range(N_BINS)]
    two = [one[i] & one[j] for i in range(len(one)) for j in range(i) if i // N_BINS != j // N_BINS]
    return torch.stack(one + two, dim=1).double()


def geweke(case, n, n_sweeps):
    """Test 5 (Geweke 2004): alternating exact draws of the data with moves of the rest keeps all moments of the joint law.

    The data are the first two sites of the order; errors are those between chains.
    """

    def p_value(seed, factor):
        law, rows = case.law(2), n * factor
        data = exact_redraw(law, ORDER[:2])
        kernel, target, streams = case.kernel(), case.target(rows, 2), case.streams(seed, rows)
        x, counts = draws(law, rows, seed), torch.zeros(rows * 81)
        own, ones = torch.arange(rows) * 81, torch.ones(rows)
        for _ in range(n_sweeps):
            x = data(x, streams.uniform(1)[:, 0])
            x = kernel(init(x, target), target, streams)[0].x_CM
            counts.index_add_(0, own + code(x), ones)
        found = counts.view(rows, 81).double() @ moments() / n_sweeps
        error = found.std(0) / math.sqrt(rows)
        z = (found.mean(0) - torch.from_numpy(law) @ moments()) / error.clamp(min=1e-12)
        return float(2 * stats.t.sf(z.abs().max(), rows - 1) * len(z))

    return p_value


def calibration(case, n, thin, *, n_draws=19):
    """Test 6 (Talts et al. 2018): the truth has any rank among draws given data that came from it."""

    def p_value(seed, factor):
        rng, rows = np.random.default_rng([seed, 3]), n * factor
        truth = draws(case.law(2), rows, seed)
        start = truth.clone()
        start[:, ORDER[2:]] = 0
        value = (torch.tensor([0, 1, 0, 3]) * STATES).sum(1).numpy()  # the two free sites: all their values differ
        below = np.zeros(rows)
        ties = rng.random((n_draws + 1, rows))
        own = value[code(truth)]
        for step, (x, _) in enumerate(case.walk(start, (n_draws + 1) * thin, seed=seed, n_clamped=2), start=1):
            number, rest = divmod(step, thin)
            if not rest and number > 1:  # the first stretch forgets the start
                drawn = value[code(x)]
                below += (drawn < own) | ((drawn == own) & (ties[number - 2] < ties[-1]))
        return chi_square(np.bincount(below.astype(int), minlength=n_draws + 1), np.full(n_draws + 1, rows / 20))

    return p_value


def effects(case, n_runs, n_steps, *, seed=0, paired=False, burn_in=300, n_chains=4):
    """Test 13: z values of a clamp's effect on the other sites, (runs, 3); four chains each, from a bad start.

    Paired runs share their numbers, and their error is that of the differences.
    """
    clamped = case.given(int(np.flatnonzero(STATES[:, ORDER[0]].numpy() == 2)[0]), 1)
    exact, values = 0.0, []
    for arm, law in enumerate((case.law(), clamped)):
        x = STATES[unexpected(case.model, law)].expand(n_runs * n_chains, -1)
        exact = exact + (2 * arm - 1) * (law @ STATES[:, ORDER[1:]].double().numpy())
        walk = case.walk(x, burn_in + n_steps, seed=seed + (0 if paired else 7 * arm), n_clamped=arm)
        seen = torch.stack([y[:, ORDER[1:]].to(torch.int8) for y, _ in walk])[burn_in:]
        values.append(seen.view(n_steps, n_runs, n_chains, 3).permute(2, 0, 1, 3).numpy().astype(float))
    difference = values[1] - values[0]
    error = mcse(difference) if paired else np.sqrt(mcse(values[0]) ** 2 + mcse(values[1]) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (difference.mean(axis=(0, 1)) - exact) / error


def covers(z):
    """Whether 95 % intervals hold the truth as often as they should, without bias; not if an error is not known.

    Of 300 runs, between 91 and 98.5 % must; the bounds are as many standard errors away for other numbers.
    """
    inside, scale = (np.abs(z) < 1.96).mean(axis=0), (300 / len(z)) ** 0.5
    share = (inside > 0.95 - 0.04 * scale) & (inside < 0.95 + 0.035 * scale)
    return bool(share.all() and (np.abs(z.mean(axis=0)) < 4 / len(z) ** 0.5).all())


def spread(case, n, n_steps, *, seed=1):
    """Test 15: variance of log pi over chains from one start, by the exact one."""
    law = case.law()
    log_pi = np.log(law)
    x = last(case.walk(STATES[40].expand(n, -1), n_steps, seed=seed))
    return float(log_pi[code(x)].var() / ((law * log_pi**2).sum() - (law * log_pi).sum() ** 2))


def escapes(case, n_steps=50):
    """Test 10: changed entries at clamped sites, over chains from all states."""
    walk = case.walk(STATES, n_steps, seed=0, n_clamped=2)
    return sum(int((x[:, ORDER[:2]] != STATES[:, ORDER[:2]]).sum()) for x, _ in walk)
