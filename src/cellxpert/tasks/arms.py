"""One arm of a prediction: chains from control cells under one target.

Shape suffixes: N cells, J replicates (chains per cell), C = N * J chains (those of a cell together), M movable features,
P those of them that are not held, D draws, E = C * D draws of all chains (those of a chain together), K bins, V features,
A anchors, T steps, Y the two scales of a value (magnitude and scaled count).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellxpert.batch import Intervention
from cellxpert.config import SteeringConfig
from cellxpert.data.collate import Collator
from cellxpert.nn.network import Network
from cellxpert.steering import (
    Anchors,
    BlockMH,
    Informed,
    Kernel,
    MultipleTry,
    Schedule,
    State,
    Streams,
    SuffixRedraw,
    Target,
    TiltedGibbs,
    run,
)
from cellxpert.steering.conditionals import block_log_prob, categorical, draw_in_order
from cellxpert.tasks.bins import bins_at
from cellxpert.tasks.conditionals import NetworkConditionals

__all__ = ["INDEPENDENT", "Arm", "Population", "for_cells"]

INDEPENDENT = frozenset({"ancestral", "fill-in"})
"""Kernels whose draws do not depend on one another."""
AT_ONCE = 2**22
"""Values drawn side by side."""
MIN_DRAWS = 4
N_RECORDED = 50
"""States that a chain leaves, at least where it has as many steps."""
PILOT_STEPS, PILOT_ROUNDS = 20, 8
"""Steps of a pilot run, and runs, by which the anchors' strength is found."""
KAPPA_RANGE = 1e-4, 5.0


@dataclass(frozen=True, eq=False)
class Arm:
    """What chains did."""

    x_DCM: Tensor
    """Recorded states (uint8)."""
    mean_NMY: Tensor
    """Magnitude and scaled count of each site in each cell, mean over chains and draws: of states, or where draws are
    independent of what was expected given the sites before (the same mean with less noise)."""
    level_JDM: Tensor
    """Magnitude of each site at each draw, mean over cells."""
    log_density_TC: npt.NDArray[np.float64]
    accepted_TC: npt.NDArray[np.bool_]
    distance_TC: npt.NDArray[np.float64] | None
    """Distance from the nearest anchor, per site; None without anchors."""
    shift_TC: npt.NDArray[np.float32]
    """Mean |bin - starting bin| of what is not held."""
    moved: float
    """Share of the movable values that ever left their starting bin."""
    burn_in: int
    size: int | None
    kappa: float
    kernel: str


class Population:
    """Control cells that chains start from, without the features that may move. They are read once, whatever arms are run.

    Parameters
    ----------
    network, collator
        The network, in evaluation mode, and the cells' tokens.
    rows
        Start cells, as positions among the tokens.
    feature_M
        Sites: those that are held at a value first, then those that may move.
    n_held
        How many are held.
    n_replicates
        Chains per cell.
    level_VK
        Magnitude that results give to each bin of each feature: log1p of scaled counts for genes.
    settings, seed
        How to sample; the seed of orders and streams. Two arms with one seed share their random numbers.
    """

    def __init__(
        self,
        network: Network,
        collator: Collator,
        *,
        rows: npt.NDArray[np.int64],
        feature_M: npt.NDArray[np.int64],
        n_held: int,
        n_replicates: int,
        level_VK: Tensor,
        settings: SteeringConfig,
        seed: int,
    ) -> None:
        self.network, self.collator, self.rows, self.settings, self.seed = network, collator, rows, settings, seed
        self.feature_M, self.n_held, self.n_replicates = torch.from_numpy(feature_M), n_held, n_replicates
        level_MK = level_VK[self.feature_M]
        self.level_VK, self.value_MKY = level_VK, torch.stack([level_MK, level_MK.expm1()], dim=-1)
        self.hidden_V = np.zeros(network.n_features, np.bool_)
        self.hidden_V[feature_M] = True
        self.start_NM = torch.from_numpy(bins_at(collator, rows, feature_M))
        self.model = NetworkConditionals(network, collator.context(rows, self.hidden_V), self.feature_M)
        n_chains = len(rows) * n_replicates
        free_CP = np.tile(np.arange(n_held, len(feature_M)), (n_chains, 1))
        free_CP = np.random.default_rng([seed, 7]).permuted(free_CP, axis=1)
        held_CH = np.tile(np.arange(n_held), (n_chains, 1))
        self.order_CM = torch.from_numpy(np.concatenate([held_CH, free_CP], axis=1))

    @torch.no_grad()
    def run(
        self,
        *,
        kernel: str,
        n_steps: int,
        intervention: Intervention | None = None,
        held_NM: Tensor | None = None,
        anchors: Anchors | None = None,
        aim: float | None = None,
        plain: bool = False,
    ) -> Arm:
        """Run an arm.

        Parameters
        ----------
        kernel
            Name in :class:`~cellxpert.config.SteeringConfig`, not ``"auto"``.
        n_steps
            Steps, the first half of which is burn-in; for independent draws see ``draws_per_step``.
        intervention
            Genes that are set, one row per start cell or one for all.
        held_NM
            Bins of the held sites; those of the start cell by default.
        anchors, aim
            What chains are drawn to. With ``aim``, a mean distance per site, the strength is set so that chains reach it.
        plain
            Sample the model's own law, whatever weight and part it has beside anchors.
        """
        start_NM = self.start_NM
        if held_NM is not None:
            start_NM = torch.cat([held_NM, start_NM[:, self.n_held :]], dim=1)
        x_CM = start_NM.repeat_interleave(self.n_replicates, dim=0)
        part, weight = self.settings.part, self.settings.weight
        if plain:
            part, weight = "joint" if part == "none" else part, 1.0
        target = Target(
            model=self._told(intervention),
            order_CM=self.order_CM,
            n_clamped=self.n_held,
            part="joint" if kernel in {*INDEPENDENT, "suffix"} else part,  # these draw from the joint
            weight=weight,
            anchors=anchors,
        )
        if kernel in INDEPENDENT:
            assert anchors is None, f"{kernel} draws know no anchors"
            return self._independent(target, x_CM, n_steps=n_steps, kernel=kernel)
        if anchors is not None and aim is not None:
            target, x_CM = self._calibrated(target, x_CM, aim=aim, kernel=kernel)
        return self._chains(target, x_CM, n_steps=n_steps, kernel=kernel)

    def _told(self, intervention: Intervention | None) -> NetworkConditionals:
        """Return the model told of an intervention: that changes the evidence on the factors, and nothing that was read."""
        if intervention is None:
            return self.model
        factors, tilt = self.network.factors, self.model.tilt
        assert factors is not None, "interventions act on factors"
        assert tilt is not None, "interventions act on factors"
        evidence = factors.intervene(tilt.evidence, for_cells(intervention, len(self.rows)))
        told = copy.copy(self.model)
        told.tilt = type(tilt)(factors, evidence, self.feature_M)
        return told

    def _valued(self, x_CM: Tensor) -> Tensor:
        """Magnitudes and scaled counts of states, (C, M, Y)."""
        return self.value_MKY[torch.arange(x_CM.shape[1]), x_CM]

    def _means(self, value_CMY: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the means of values that come draw by draw, as in :class:`Arm`."""
        total_NMY, levels = torch.zeros(()), []
        for value in value_CMY:
            value_NJMY = value.unflatten(0, (len(self.rows), self.n_replicates))
            total_NMY = total_NMY + value_NJMY.sum(1)
            levels.append(value_NJMY[..., 0].mean(0))
        return total_NMY / (len(levels) * self.n_replicates), torch.stack(levels, dim=1)

    def _chains(self, target: Target, x_CM: Tensor, *, n_steps: int, kernel: str) -> Arm:
        """Metropolis-Hastings."""
        burn_in, n_sites = n_steps // 2, x_CM.shape[1]
        kept = n_steps - burn_in
        start_CP = self.start_NM.repeat_interleave(self.n_replicates, dim=0)[:, self.n_held :]
        distances, shifts = [], []

        def note(step: int, state: State) -> None:
            if state.density.distance_CA is not None:
                distances.append((state.density.distance_CA.amin(1) / n_sites).numpy())
            shifts.append((state.x_CM[:, self.n_held :] - start_CP).abs().float().mean(1).numpy())

        trace = run(
            self._kernel(kernel),
            target,
            x_CM,
            schedule=Schedule(
                n_steps=kept, burn_in=burn_in, thin=max(1, kept // N_RECORDED), adapt=self.settings.adapt
            ),
            streams=Streams(self.seed, len(x_CM)),
            on_step=note,
        )
        mean_NMY, level_JDM = self._means(self._valued(x_CM.long()) for x_CM in trace.x_RCM)
        return Arm(
            x_DCM=trace.x_RCM,
            mean_NMY=mean_NMY,
            level_JDM=level_JDM,
            log_density_TC=trace.log_density_TC.numpy(),
            accepted_TC=trace.accepted_TC.numpy(),
            distance_TC=np.stack(distances) if distances else None,
            shift_TC=np.stack(shifts),
            moved=trace.moved_CM[:, self.n_held :].double().mean().item(),
            burn_in=burn_in,
            size=trace.size,
            kappa=float("nan") if target.anchors is None else target.anchors.kappa,
            kernel=kernel,
        )

    def _kernel(self, name: str) -> Kernel:
        s, n_free = self.settings, len(self.feature_M) - self.n_held
        size = min(s.block_size, n_free)
        kernels: dict[str, Callable[[], Kernel]] = {
            "suffix": SuffixRedraw,
            "block": lambda: BlockMH(size=size, temperature=s.temperature, mix=s.mix),
            "multiple-try": lambda: MultipleTry(size=size, n_tries=s.n_tries, temperature=s.temperature, mix=s.mix),
            "informed": Informed,
            "tilted": lambda: TiltedGibbs(size=size),
        }
        return kernels[name]()

    def _independent(self, target: Target, x_CM: Tensor, *, n_steps: int, kernel: str) -> Arm:
        """Draw anew again and again: from the joint, or (``"fill-in"``) each site from its conditional on the context alone."""
        n_chains, n_sites = x_CM.shape
        streams = Streams(self.seed, n_chains)
        left = max(MIN_DRAWS, round(self.settings.draws_per_step * n_steps))
        draw = self._joint_draws if kernel == "ancestral" else self._blind_draws
        states, densities, expected = [], [], []
        while left:
            n_draws = min(left, max(1, AT_ONCE // (n_chains * n_sites)))
            uniform_CDM = streams.uniform(n_draws * n_sites).unflatten(1, (n_draws, n_sites))
            x_CDM, log_p_CD, expected_CDMY = draw(target, x_CM, uniform_CDM)
            states.append(x_CDM.transpose(0, 1).to(torch.uint8))
            densities.append(log_p_CD.T)
            expected += expected_CDMY.unbind(1)
            left -= n_draws
        x_DCM = torch.cat(states)
        mean_NMY, level_JDM = self._means(expected)
        start_CM = self.start_NM.repeat_interleave(self.n_replicates, dim=0)
        shift_DCP = (x_DCM.int() - start_CM)[..., self.n_held :].abs()
        return Arm(
            x_DCM=x_DCM,
            mean_NMY=mean_NMY,
            level_JDM=level_JDM,
            log_density_TC=torch.cat(densities).numpy(),
            accepted_TC=np.ones((len(x_DCM), n_chains), np.bool_),
            distance_TC=None,
            shift_TC=shift_DCP.float().mean(2).numpy(),
            moved=(shift_DCP != 0).any(0).double().mean().item(),
            burn_in=0,
            size=None,
            kappa=float("nan"),
            kernel=kernel,
        )

    def _joint_draws(self, target: Target, x_CM: Tensor, uniform_CDM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw all draws of all chains side by side; return states, log probabilities and expected values."""
        n_draws = uniform_CDM.shape[1]
        found = draw_in_order(
            target.model,
            x_CM.repeat_interleave(n_draws, dim=0),
            target.order_CM.repeat_interleave(n_draws, dim=0),
            start_C=torch.full((len(x_CM) * n_draws,), self.n_held),
            uniform_CM=uniform_CDM.flatten(0, 1),
            value_MKY=self.value_MKY,
        )
        assert found.expected_CMY is not None
        expected_EMY, log_p_E = found.expected_CMY, found.log_prob_CM.nansum(1)
        expected_EMY[:, : self.n_held] = self._valued(found.x_CM)[:, : self.n_held]
        return tuple(x.unflatten(0, (-1, n_draws)) for x in (found.x_CM, log_p_E, expected_EMY))

    def _blind_draws(self, target: Target, x_CM: Tensor, uniform_CDM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same without any site seeing another: one answer per cell serves all of its draws."""
        free_NP = torch.arange(self.n_held, x_CM.shape[1]).expand(len(self.rows), -1)
        log_p_NPK = block_log_prob(target.model, x_CM[:: self.n_replicates], free_NP)
        expected_NPY = torch.einsum("npk,pky->npy", log_p_NPK.exp(), self.value_MKY[self.n_held :].to(log_p_NPK))
        log_p_CPK, expected_CPY = (x.repeat_interleave(self.n_replicates, dim=0) for x in (log_p_NPK, expected_NPY))
        expected_CMY = torch.cat([self._valued(x_CM)[:, : self.n_held], expected_CPY], dim=1)
        states, densities = [], []
        for uniform_CM in uniform_CDM.unbind(1):
            new_CP = categorical(log_p_CPK, uniform_CM[:, self.n_held :])
            states.append(torch.cat([x_CM[:, : self.n_held], new_CP], dim=1))
            densities.append(log_p_CPK.gather(2, new_CP[..., None])[..., 0].double().sum(1))
        n_draws = uniform_CDM.shape[1]
        return torch.stack(states, 1), torch.stack(densities, 1), expected_CMY[:, None].expand(-1, n_draws, -1, -1)

    def _calibrated(self, target: Target, x_CM: Tensor, *, aim: float, kernel: str) -> tuple[Target, Tensor]:
        """Find the strength at which chains are, in the mean, as far from their nearest anchor as ``aim`` says.

        One chain per cell is enough; all of the cell's chains begin where it ended. The strengths of the later pilots are averaged,
        for each follows the noise of its own run.
        """
        anchors, n_sites = target.anchors, x_CM.shape[1]
        assert anchors is not None
        own = slice(None, None, self.n_replicates)
        pilot, x_NM, log_kappa, found = replace(target, order_CM=target.order_CM[own]), x_CM[own], [], []

        def note(step: int, state: State) -> None:
            assert state.density.distance_CA is not None
            if step >= PILOT_STEPS // 2:
                found.append(state.density.distance_CA.amin(1).mean().item() / n_sites)

        kappa = anchors.kappa
        for number in range(PILOT_ROUNDS):
            pilot = replace(pilot, anchors=replace(anchors, kappa=kappa))
            streams = Streams(self.seed + 1 + number, len(x_NM))
            schedule = Schedule(n_steps=PILOT_STEPS, thin=PILOT_STEPS, anneal=False, adapt=False)
            x_NM = run(self._kernel(kernel), pilot, x_NM, schedule=schedule, streams=streams, on_step=note).state.x_CM
            now = np.mean(found[-(PILOT_STEPS // 2) :])
            kappa = float(np.clip(kappa * (now / max(aim, 1e-9)) ** 2, *KAPPA_RANGE))
            log_kappa.append(np.log(kappa))
        kappa = float(np.exp(np.mean(log_kappa[PILOT_ROUNDS // 2 :])))
        x_CM = x_NM.repeat_interleave(self.n_replicates, dim=0)
        return replace(target, anchors=replace(anchors, kappa=kappa)), x_CM


def for_cells(intervention: Intervention, n_cells: int) -> Intervention:
    """Repeat the one row of an intervention for every cell, unless it has one for each."""
    if len(intervention.feature_BI) == n_cells:
        return intervention
    index = torch.zeros(n_cells, dtype=torch.int64)
    return Intervention(**{k: v[index] if isinstance(v, Tensor) else v for k, v in vars(intervention).items()})
