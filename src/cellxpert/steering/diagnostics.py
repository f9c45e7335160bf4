"""How far a sample can be trusted: split R-hat, effective sample sizes, Monte Carlo errors, acceptance, what never moved.

The estimators are those of Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis 16, as ArviZ
has them; here they are computed for all quantities at once, because thousands of features, one after another, take ArviZ
seconds per perturbation. A quantity that never changes has no R-hat, no sample size and no error: they are NaN, since a chain
that is stuck must not look like one that has converged.

Shape suffixes: C chains, D draws, Q quantities, H half chains, L lags, P pairs of lags, N draws of all chains, F frequencies;
of a run: T steps, R recorded states, M sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.fft import next_fast_len
from scipy.special import ndtri
from scipy.stats import rankdata

from cellxpert.steering.chains import Trace

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = [
    "Convergence",
    "Diagnostics",
    "convergence",
    "diagnose",
    "ess",
    "inference_data",
    "mcse",
    "rhat",
    "to_inference_data",
]

AT_ONCE = 1024
"""Quantities computed together, which bounds the work space: tens of MB with 400 draws each."""
FEWEST = 4
"""Draws per chain below which nothing is said."""


def rhat(draws: ArrayLike) -> NDArray[np.float64]:
    """Return the split R-hat of each quantity: the larger of the rank-normalised one and that of the folded draws.

    Parameters
    ----------
    draws
        Draws of shape (chains, draws, ...).

    Returns
    -------
    numpy.ndarray
        1 where the chains agree; infinite where each half chain stands still, but not all at one value; NaN where nothing
        ever changes, where a draw is not finite, and for one chain or fewer than 4 draws. Its shape is that of a draw.
    """
    return _each(draws, _rhat_rank, fewest_chains=2)


def ess(draws: ArrayLike, *, kind: Literal["bulk", "tail", "mean"] = "bulk") -> NDArray[np.float64]:
    """Return the effective sample size of each quantity.

    Parameters
    ----------
    draws
        Draws of shape (chains, draws, ...).
    kind
        ``"bulk"``: of the rank-normalised draws; ``"tail"``: the smaller of those of the 5 % and the 95 % quantile;
        ``"mean"``: of the draws as they are, which is what the error of a mean follows.

    Returns
    -------
    numpy.ndarray
        NaN where nothing ever changes, where a draw is not finite, and for fewer than 4 draws.
    """
    return _each(draws, {"bulk": _ess_bulk, "tail": _ess_tail, "mean": _ess_mean}[kind])


def mcse(draws: ArrayLike) -> NDArray[np.float64]:
    """Return the Monte Carlo standard error of the mean of each quantity, NaN where :func:`ess` is.

    The error of an effect is that of paired differences: pass draws of the perturbed chains minus those of their nulls.
    """
    return _each(draws, lambda x_QCD: x_QCD.std(axis=(1, 2), ddof=1) / np.sqrt(_ess_mean(x_QCD)))


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """What is known of each quantity; all arrays have the shape of one draw."""

    mean: NDArray[np.float64]
    mcse: NDArray[np.float64]
    """Standard error of the mean."""
    rhat: NDArray[np.float64]
    ess_bulk: NDArray[np.float64]
    ess_tail: NDArray[np.float64]
    varies: NDArray[np.bool_]
    """Whether the quantity ever changes; where it does not, all but the mean is NaN."""

    def trusted(self, *, rhat: float = 1.01, ess: float = 400.0) -> NDArray[np.bool_]:
        """Return which quantities have an R-hat below, and a bulk sample size above, these bounds (Vehtari et al. 2021)."""
        return (self.rhat < rhat) & (self.ess_bulk > ess)

    @property
    def worst(self) -> tuple[float, float, float]:
        """Largest R-hat, smallest bulk and smallest tail sample size of what varies; NaN if nothing does."""
        return _extreme(np.max, self.rhat), _extreme(np.min, self.ess_bulk), _extreme(np.min, self.ess_tail)


def convergence(draws: ArrayLike) -> Convergence:
    """Return mean, error, R-hat and sample sizes of every quantity.

    Parameters
    ----------
    draws
        Draws of shape (chains, draws, ...).
    """
    draws = np.asarray(draws)
    return Convergence(
        mean=np.asarray(draws.mean(axis=(0, 1), dtype=np.float64)),
        mcse=mcse(draws),
        rhat=rhat(draws),
        ess_bulk=ess(draws),
        ess_tail=ess(draws, kind="tail"),
        varies=np.asarray(draws.max(axis=(0, 1)) > draws.min(axis=(0, 1))),
    )


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Summary of a run."""

    n_chains: int
    n_draws: int
    """Recorded states per chain."""
    size: int | None
    """Block size of the kept steps; None for kernels that do not adapt it."""
    acceptance_burn_in: float
    """Share of accepted proposals in the burn-in; NaN without one."""
    acceptance: tuple[float, float]
    """The same in the first and in the second half of the kept steps: a stationary chain has equal ones."""
    moved: float
    """Share of free sites, over all chains, that left their starting bin at any time."""
    log_density: Convergence
    """Of the log density at all kept steps (arrays without dimensions)."""
    sites: Convergence
    """Of the bins of all sites, (M,)."""
    n_still: int
    """Free sites whose recorded bin is one and the same in all chains."""


def diagnose(trace: Trace, *, free_M: ArrayLike | None = None) -> Diagnostics:
    """Summarise a run whose chains have one target.

    Parameters
    ----------
    trace
        The run.
    free_M
        Sites that were free to move; all if None.
    """
    n_sites = trace.x_RCM.shape[2]
    free = np.ones(n_sites, dtype=bool) if free_M is None else np.asarray(free_M, dtype=bool)
    kept_TC = _numpy(trace.accepted_TC)[trace.burn_in :]
    half = len(kept_TC) // 2
    sites = convergence(_recorded(trace))
    return Diagnostics(
        n_chains=trace.x_RCM.shape[1],
        n_draws=len(trace.x_RCM),
        size=trace.size,
        acceptance_burn_in=trace.acceptance[0],
        acceptance=(_mean(kept_TC[:half]), _mean(kept_TC[half:])),
        moved=_mean(_numpy(trace.moved_CM)[:, free]),
        log_density=convergence(_numpy(trace.log_density_TC)[trace.burn_in :].T),
        sites=sites,
        n_still=int((free & ~sites.varies).sum()),
    )


def inference_data(
    posterior: Mapping[str, ArrayLike],
    *,
    sample_stats: Mapping[str, ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return draws as ArviZ's InferenceData (its DataTree from version 1 on).

    Parameters
    ----------
    posterior
        Name -> draws of shape (chains, draws, ...).
    sample_stats
        Name -> what is known of the steps, (chains, draws, ...); no such group if None.
    dims
        Name of a quantity -> names of its further dimensions; numbered ones otherwise.
    coords
        Name of a dimension -> labels along it.

    Returns
    -------
    arviz.InferenceData
        With the groups ``posterior`` and, where given, ``sample_stats``.
    """
    # ArviZ announces its next version once a day, at import
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        import arviz
        import xarray

    groups = {}
    for group, quantities in (("posterior", posterior), ("sample_stats", sample_stats)):
        if quantities is None:
            continue
        arrays = {name: np.asarray(values) for name, values in quantities.items()}
        n_chains, n_draws = next(iter(arrays.values())).shape[:2]
        labels = {"chain": np.arange(n_chains), "draw": np.arange(n_draws)}
        variables = {}
        for name, values in arrays.items():
            assert values.shape[:2] == (n_chains, n_draws), f"{name}: {values.shape}, not {(n_chains, n_draws)} first"
            further = (dims or {}).get(name, [f"{name}_dim_{d}" for d in range(values.ndim - 2)])
            variables[name] = (("chain", "draw", *further), values)
            labels |= {dim: list(coords[dim]) for dim in further if coords is not None and dim in coords}
        groups[group] = xarray.Dataset(variables, coords=labels)
    if not hasattr(arviz, "InferenceData"):
        return xarray.DataTree.from_dict(groups)
    return arviz.InferenceData(**groups)


def to_inference_data(
    trace: Trace,
    *,
    thin: int = 1,
    features: Sequence[str] | None = None,
    quantities: Mapping[str, ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return a run as :func:`inference_data`.

    Parameters
    ----------
    trace
        The run.
    thin
        As in the run's schedule.
    features
        Names of the sites; given, the recorded bins are included as ``bins`` (chain, draw, feature).
    quantities
        More, as name -> array (chains, recorded states, ...).
    dims, coords
        As in :func:`inference_data`.

    Returns
    -------
    arviz.InferenceData
        Group ``posterior``: ``log_density`` and the quantities at the recorded steps. Group ``sample_stats``:
        ``log_alpha`` there, and ``acceptance``, the share of accepted proposals since the record before.
    """
    kept = slice(trace.burn_in, None)
    log_density_CT, log_alpha_CT, accepted_CT = (
        _numpy(x_TC)[kept].T for x_TC in (trace.log_density_TC, trace.log_alpha_TC, trace.accepted_TC)
    )
    n_chains, n_steps = accepted_CT.shape
    n_draws = len(trace.x_RCM)
    assert n_steps // thin == n_draws, f"{n_draws} records of {n_steps} steps are not one every {thin}"
    at = slice(thin - 1, n_draws * thin, thin)
    dims, coords = dict(dims or {}), dict(coords or {})
    posterior = {"log_density": log_density_CT[:, at], **(quantities or {})}
    if features is not None:
        posterior["bins"], dims["bins"], coords["feature"] = _recorded(trace), ("feature",), list(features)
    share_CR = accepted_CT[:, : n_draws * thin].reshape(n_chains, n_draws, thin).mean(axis=2)
    sample_stats = {"acceptance": share_CR, "log_alpha": log_alpha_CT[:, at]}
    return inference_data(posterior, sample_stats=sample_stats, dims=dims, coords=coords)


# --- arrays ----------------------------------------------------------------------------------------------------------


def _numpy(x: Tensor) -> NDArray[Any]:
    return x.detach().cpu().numpy()


def _recorded(trace: Trace) -> NDArray[np.uint8]:
    """Return recorded bins, (chains, draws, sites)."""
    return _numpy(trace.x_RCM).swapaxes(0, 1)


def _mean(x: NDArray[Any]) -> float:
    return float(x.mean()) if x.size else float("nan")


def _extreme(choose: Callable[..., Any], x: NDArray[np.float64]) -> float:
    known = x[~np.isnan(x)]
    return float(choose(known)) if known.size else float("nan")


def _each(
    draws: ArrayLike, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, fewest_chains: int = 1
) -> NDArray[np.float64]:
    """Apply a statistic to those quantities for which it is defined, some at a time."""
    draws = np.asarray(draws)
    assert draws.ndim >= 2, f"draws of shape {draws.shape}, not (chains, draws, ...)"
    n_chains, n_draws = draws.shape[:2]
    flat_CDQ = draws.reshape(n_chains, n_draws, -1)
    out_Q = np.full(flat_CDQ.shape[2], np.nan)
    if n_chains >= fewest_chains and n_draws >= FEWEST:
        for first in range(0, len(out_Q), AT_ONCE):
            x_QCD = np.ascontiguousarray(flat_CDQ[:, :, first : first + AT_ONCE].transpose(2, 0, 1), dtype=np.float64)
            low_Q, high_Q = x_QCD.min(axis=(1, 2)), x_QCD.max(axis=(1, 2))
            defined_Q = np.isfinite(low_Q) & np.isfinite(high_Q) & (low_Q < high_Q)
            if defined_Q.any():
                out_Q[first : first + AT_ONCE][defined_Q] = statistic(x_QCD[defined_Q])
    return out_Q.reshape(draws.shape[2:])


# --- estimators: all of (quantities, chains, draws) ------------------------------------------------------------------


def _split(x_QCD: NDArray[Any]) -> NDArray[Any]:
    """Return the halves of each chain as chains of their own; an odd draw in the middle is left out."""
    half = x_QCD.shape[2] // 2
    return np.concatenate([x_QCD[:, :, :half], x_QCD[:, :, -half:]], axis=1)


def _normal_scores(x_QHD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return normal quantiles of the ranks over all chains (Blom 1958); ties share their mean rank."""
    n = x_QHD[0].size
    rank_QN = rankdata(x_QHD.reshape(len(x_QHD), n), axis=1)
    return ndtri((rank_QN - 0.375) / (n + 0.25)).reshape(x_QHD.shape)


def _rhat_rank(x_QCD: NDArray[np.float64]) -> NDArray[np.float64]:
    x_QHD = _split(x_QCD)
    folded_QHD = np.abs(x_QHD - np.median(x_QHD, axis=(1, 2), keepdims=True))
    # folded draws may all be equal, as those of an even coin: then the others decide
    return np.fmax(_rhat(_normal_scores(x_QHD)), _rhat(_normal_scores(folded_QHD)))


def _rhat(x_QHD: NDArray[np.float64]) -> NDArray[np.float64]:
    n_draws = x_QHD.shape[2]
    moves_QH = x_QHD.max(axis=2) > x_QHD.min(axis=2)  # of equal numbers the variance may round to more than 0
    within_Q = (x_QHD.var(axis=2, ddof=1) * moves_QH).mean(axis=1)
    between_Q = x_QHD.mean(axis=2).var(axis=1, ddof=1) * n_draws
    ratio_Q = np.where(between_Q > 0, np.inf, np.nan)
    np.divide(between_Q, within_Q, out=ratio_Q, where=within_Q > 0)
    return np.sqrt((ratio_Q + n_draws - 1) / n_draws)


def _ess_bulk(x_QCD: NDArray[np.float64]) -> NDArray[np.float64]:
    return _ess(_normal_scores(_split(x_QCD)))


def _ess_mean(x_QCD: NDArray[np.float64]) -> NDArray[np.float64]:
    return _ess(_split(x_QCD))


def _ess_tail(x_QCD: NDArray[np.float64]) -> NDArray[np.float64]:
    bound_2Q = np.quantile(x_QCD, (0.05, 0.95), axis=(1, 2))
    low_Q, high_Q = (_ess(_split((x_QCD <= bound_Q[:, None, None]).astype(np.float64))) for bound_Q in bound_2Q)
    return np.minimum(low_Q, high_Q)


def _ess(x_QHD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the size by autocorrelations, summed as Geyer's initial monotone sequence (1992); all draws if constant."""
    n_chains, n_draws = x_QHD.shape[1:]
    n_all = n_chains * n_draws
    varies_Q = x_QHD.max(axis=(1, 2)) - x_QHD.min(axis=(1, 2)) > np.finfo(np.float64).resolution
    out_Q = np.full(len(x_QHD), float(n_all))
    if not varies_Q.any():
        return out_Q
    rho_QL = _autocorrelations(x_QHD[varies_Q])
    # sums of two neighbouring lags are positive and decrease; noise ends them at the first that is not positive
    last = max(0, -(-(n_draws - 4) // 2))
    even_QP, odd_QP = rho_QL[:, 0 : 2 * last + 1 : 2], rho_QL[:, 1 : 2 * last + 2 : 2]
    pair_QP = even_QP + odd_QP
    ends_QP = pair_QP <= 0
    ends_QP[:, last] = True
    end_Q = ends_QP.argmax(axis=1)
    monotone_QP = np.minimum.accumulate(pair_QP, axis=1)
    before_QP = np.arange(last + 1) < end_Q[:, None]
    row_Q = np.arange(len(end_Q))
    # one more even lag improves the estimate for antithetic chains
    rest_Q = np.where(pair_QP[row_Q, end_Q] >= 0, even_QP[row_Q, end_Q], even_QP[row_Q, end_Q].clip(min=0))
    tau_Q = -1 + 2 * (monotone_QP * before_QP).sum(axis=1) + rest_Q
    out_Q[varies_Q] = n_all / np.maximum(tau_Q, 1 / np.log10(n_all))
    return out_Q


def _autocorrelations(x_QHD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return autocorrelations of all lags, of the chains together: what separates them counts as correlation."""
    n_draws = x_QHD.shape[2]
    centred_QHD = x_QHD - x_QHD.mean(axis=2, keepdims=True)
    n_padded = next_fast_len(2 * n_draws)
    power_QHF = np.abs(np.fft.rfft(centred_QHD, n=n_padded, axis=2)) ** 2
    covariance_QL = np.fft.irfft(power_QHF.mean(axis=1), n=n_padded, axis=1)[:, :n_draws] / n_draws
    within_Q = covariance_QL[:, 0] * n_draws / (n_draws - 1)
    total_Q = covariance_QL[:, 0] + x_QHD.mean(axis=2).var(axis=1, ddof=1)
    rho_QL = 1 - (within_Q[:, None] - covariance_QL) / total_Q[:, None]
    rho_QL[:, 0] = 1
    return rho_QL
