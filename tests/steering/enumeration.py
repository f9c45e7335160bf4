"""What the sampler should do, by plain loops over all states: independent of the code under test."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import stats

SEEDS = (0, 1)


def log_conditional(model, site, x, seen):
    """Log p(. | the seen sites of x), as a list over bins."""
    import torch

    visible = torch.zeros((1, 1, model.n_sites), dtype=torch.bool)
    visible[0, 0, list(seen)] = True
    return model.log_prob(torch.tensor([[site]]), torch.tensor([list(x)]), visible)[0, 0].tolist()


def log_target(model, states, order, *, part, weight, anchors=(), kappa=0.0, weights=None, clamped=0):
    """Log of the normalised target over all states; -inf where a clamped site has left the first state's value."""
    out = []
    for x in states:
        value = 0.0
        if part == "joint":
            value = sum(log_conditional(model, g, x, order[:place])[x[g]] for place, g in enumerate(order))
        elif part == "pseudo":
            sites = range(model.n_sites)
            value = sum(log_conditional(model, g, x, [h for h in sites if h != g])[x[g]] for g in order[clamped:])
        value *= weight
        if len(anchors):
            w = [1.0] * model.n_sites if weights is None else weights
            distances = [sum(w[g] * abs(x[g] - a[g]) for g in range(model.n_sites)) for a in anchors]
            value += math.log(sum(math.exp(-kappa * d) for d in distances) / len(anchors))
        out.append(value)
    out = np.array(out)
    return out - np.logaddexp.reduce(out)


def block_matrix(model, states, log_pi, *, size, tau, mix, free, local=None):
    """Transition matrix of block Metropolis-Hastings, by loops; ``local(x, y, block)`` replaces the target's ratio."""
    index = {tuple(x): i for i, x in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    blocks = list(itertools.combinations(free, size))
    for i, x in enumerate(states):
        for block in blocks:
            outside = [g for g in range(model.n_sites) if g not in block]
            q = []
            for g in block:
                row = np.exp(np.array(log_conditional(model, g, x, outside)) / tau)
                q.append((1 - mix) * row / row.sum() + mix / model.n_bins)
            for values in itertools.product(range(model.n_bins), repeat=size):
                y = list(x)
                for g, v in zip(block, values, strict=True):
                    y[g] = v
                j = index[tuple(y)]
                forward = math.prod(q[b][v] for b, v in enumerate(values))
                backward = math.prod(q[b][x[g]] for b, g in enumerate(block))
                ratio = math.exp(log_pi[j] - log_pi[i]) if local is None else local(x, y, block, outside)
                accept = min(1.0, ratio * backward / forward)
                matrix[i, j] += forward * accept / len(blocks)
                matrix[i, i] += forward * (1 - accept) / len(blocks)
    return matrix


def suffix_matrix(model, states, log_pi, order, *, n_clamped, log_joint):
    """Transition matrix of suffix redraws, by loops."""
    matrix = np.zeros((len(states), len(states)))
    starts = range(n_clamped, len(order))
    for i, x in enumerate(states):
        for start in starts:
            for j, y in enumerate(states):
                if any(x[g] != y[g] for g in order[:start]):
                    continue
                drawn = math.exp(
                    sum(log_conditional(model, g, y, order[:p])[y[g]] for p, g in enumerate(order) if p >= start)
                )
                ratio = log_pi[j] - log_pi[i] - (log_joint[j] - log_joint[i])
                accept = min(1.0, math.exp(ratio))
                matrix[i, j] += drawn * accept / len(starts)
                matrix[i, i] += drawn * (1 - accept) / len(starts)
    return matrix


def tries_matrix(model, states, log_pi, *, size, n_tries, tau, free):
    """Transition matrix of multiple tries, by all tuples of candidates."""
    index = {tuple(x): i for i, x in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    blocks = list(itertools.combinations(free, size))
    bins = list(itertools.product(range(model.n_bins), repeat=size))
    tried = np.array(list(itertools.product(range(len(bins)), repeat=n_tries)))
    for i, x in enumerate(states):
        for block in blocks:
            outside = [g for g in range(model.n_sites) if g not in block]
            rows = [np.exp(np.array(log_conditional(model, g, x, outside)) / tau) for g in block]
            q = np.array([math.prod(row[v] / row.sum() for row, v in zip(rows, y, strict=True)) for y in bins])
            moved = [dict(zip(block, y, strict=True)) for y in bins]
            at = np.array([index[tuple(y.get(g, v) for g, v in enumerate(x))] for y in moved])
            worth = np.exp(log_pi[at]) / q
            total = worth[tried].sum(axis=1) + worth[at == i]
            share = q[tried].prod(axis=1) / total / len(blocks)
            np.add.at(matrix[i], at[tried], share[:, None] * worth[tried])
            matrix[i, i] += (share * worth[at == i]).sum()
    return matrix


def informed_matrix(model, states, log_pi, *, weight, log_anchors, free):
    """Transition matrix of informed moves: one site to another bin, by the square root of conditional and anchor ratio."""
    index = {tuple(x): i for i, x in enumerate(states)}
    q = np.zeros((len(states), len(states)))
    for i, x in enumerate(states):
        for g in free:
            log_p = log_conditional(model, g, x, [h for h in range(model.n_sites) if h != g])
            for v in set(range(model.n_bins)) - {x[g]}:
                j = index[(*x[:g], v, *x[g + 1 :])]
                q[i, j] = math.exp((weight * (log_p[v] - log_p[x[g]]) + log_anchors[j] - log_anchors[i]) / 2)
    q /= q.sum(axis=1, keepdims=True)
    flow = np.exp(log_pi)[:, None] * q
    matrix = np.divide(np.minimum(flow, flow.T), np.exp(log_pi)[:, None])
    return matrix + np.diag(1 - matrix.sum(axis=1))


def chi_square(counts, expected):
    """P value of counts against expected ones, cells below 5 pooled."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    small = expected < 5
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
        if expected[-1] < 1:
            counts, expected = counts[:-1], expected[:-1]
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def passes(p_value):
    """Whether a test at level 1e-4 passes; a failure is tried once more with another seed and four times the sample."""
    return p_value(SEEDS[0], 1) > 1e-4 or p_value(SEEDS[1], 4) > 1e-4
