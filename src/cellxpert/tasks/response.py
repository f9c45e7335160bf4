"""What a prediction is handed over as: effects beside their null, their uncertainty, the trivial baselines and the diagnostics.

Letters: N start cells, J replicates, C = N * J chains (those of a cell together), D draws, T steps, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from cellxpert.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

    from cellxpert.tasks.arms import Arm

__all__ = ["CONDITION_COLUMNS", "TABLE_COLUMNS", "PerturbResult", "effect_table", "trajectory_table"]

Floats = npt.NDArray[np.float32]
Key = tuple[str, str]
PSEUDO_COUNT = 0.1
"""Added to means of counts per 10,000 before their ratio is taken."""
TABLE_COLUMNS = (
    "perturbation",
    "group",
    "variable",
    "log_fc",
    "effect",
    "se",
    "se_chains",
    "p_value",
    "adj_p_value",
    "null_effect",
    "expressed_fraction",
    "is_target",
    "is_movable",
    "converged",
)
CONDITION_COLUMNS = (
    "perturbation",
    "group",
    "n_cells",
    "n_chains",
    "target",
    "seen",
    "trained_on_perturbations",
    "silent",
    "r_hat",
    "ess_bulk",
    "ess_tail",
    "acceptance_burn_in",
    "acceptance",
    "moved",
    "converged",
    "kernel",
    "block_size",
    "kappa",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbResult:
    """Predicted responses of control cells to perturbations.

    Nothing in it is a cause that was measured: see the user guide for what each target means.
    """

    table: pd.DataFrame
    """One row per perturbation, group and gene: ``log_fc`` (log2 of the ratio of mean counts per 10,000, perturbed to null),
    ``effect`` (difference of mean log1p counts per 10,000, perturbed minus paired null), ``se`` (its standard error over start
    cells), ``se_chains`` (over chains, of movable genes: how much of it another seed could change), ``p_value`` (paired t-test over start cells), ``adj_p_value`` (Benjamini-Hochberg within perturbation and group),
    ``null_effect`` (null minus start cells), ``expressed_fraction`` (of start cells), ``is_target``, ``is_movable``.
    ``converged`` (of the condition's chains: where False, p values tell where chains have got to, and another run may say otherwise).
    NaN for genes that were measured in none of the start cells.
    p values are of the prediction, given the model: they tell sampling noise from none, not right from wrong."""
    conditions: pd.DataFrame
    """One row per perturbation and group: which target was sampled, flags, diagnostics."""
    baselines: pd.DataFrame
    """Effects of the trivial predictions: ``baseline``, ``perturbation``, ``group``, ``variable``, ``effect``."""
    trajectory: pd.DataFrame
    """State of the chains by step: ``perturbation``, ``group``, ``arm``, ``chain``, ``step``, ``log_density``, ``acceptance``,
    ``distance``, ``shift``, ``burn_in``; a chain is one replicate of all start cells, values are means over these."""
    genes: tuple[str, ...]
    """Genes of ``expression``."""
    expression: Mapping[Key, Mapping[str, Floats]] = field(repr=False)
    """Per (perturbation, group): log1p counts per 10,000 of the ``"start"`` cells, ``"perturbed"`` and ``"null"``, cells x genes: these are
    means over draws, smoother than cells are. ``"drawn"`` is one draw: the start cells with what moved drawn anew."""
    latent: Mapping[Key, Mapping[str, Floats]] = field(repr=False)
    """The same as cell vectors."""
    cells: Mapping[Key, Sequence[str]] = field(repr=False)
    """Names of the start cells."""
    surroundings: pd.DataFrame | None = None
    """With ``propagate=True``, rows as in ``table`` of the cells next to the start cells, whose niches change: what is expected of each gene
    given the other genes of the cell and its new niche, against its niche as it is."""
    reached: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """These cells, one by one: their names (``"cells"``), expected log1p counts per 10,000 in the niche that the perturbation makes
    (``"perturbed"``) and in the niche as it is (``"null"``), cells x genes, vectors in the new niche (``"latent"``), and the share of
    their niche's weight that is of perturbed cells (``"share"``)."""
    draws: Mapping[Key, Mapping[str, npt.NDArray[Any]]] = field(repr=False)
    """Mean effect on each movable gene by chain and draw (``"effect"``, J x D x M), its ``"genes"``, and ``"log_density"``."""

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Names of the perturbations, in the order asked for."""
        return tuple(dict.fromkeys(self.conditions["perturbation"]))

    @property
    def diagnostics(self) -> dict[Key, Any]:
        """ArviZ's InferenceData of every perturbation and group: effects on movable genes, and log density, by chain and draw."""
        from cellxpert.steering.diagnostics import inference_data

        return {
            key: inference_data(
                {"effect": draws["effect"], "log_density": draws["log_density"]},
                dims={"effect": ["gene"]},
                coords={"gene": list(draws["genes"])},
            )
            for key, draws in self.draws.items()
        }

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the prediction, in words: silent genes, chains that have not converged."""
        found, conditions = [], self.conditions
        if silent := conditions.loc[conditions["silent"], "perturbation"].unique().tolist():
            found.append(f"genes of {silent[:5]} are not expressed in the start cells: there is little to change")
        if astray := conditions.loc[~conditions["converged"], "perturbation"].unique().tolist():
            r_hat = conditions["r_hat"].max()
            value = f"up to {r_hat:.3f}" if r_hat == r_hat else "unknown: n_chains=1"
            found.append(f"chains of {astray[:5]} have not converged (R-hat {value}); raise n_steps")
        if self.surroundings is not None and self.surroundings.empty:
            found.append(
                "no cell of which genes were measured is next to a start cell: nothing is known of surroundings"
            )
        return tuple(found)

    def effects(self, *, group: str = "all") -> pd.DataFrame:
        """Return effects as a table of perturbations x genes, both in the order of the result.

        Parameters
        ----------
        group
            Name of the group.

        Raises
        ------
        ConfigError
            If there is no such group.
        """
        rows = self.table[self.table["group"] == group]
        if rows.empty:
            have = sorted(set(self.table["group"]))
            raise ConfigError("PerturbResult.effects(group=)", found=repr(group), fix=f"use one of {have}")
        wide = rows.pivot(index="perturbation", columns="variable", values="effect")
        return wide.loc[[p for p in self.perturbations if p in wide.index], list(self.genes)]

    def to_anndata(self) -> AnnData:
        """Return the predicted cells: one row per start cell and perturbation.

        Returns
        -------
        AnnData with log1p counts per 10,000 of the predicted cells in ``X``, of the null and of the start cells in
        ``layers["null"]`` and ``layers["start"]``, single draws in ``layers["drawn"]``, ``obs`` with ``perturbation``, ``group`` and ``cell``, and cell vectors in
        ``obsm["X_cellxpert"]`` and ``obsm["X_cellxpert_null"]``.
        """
        from anndata import AnnData

        keys = list(self.expression)
        n_cells = [len(self.cells[key]) for key in keys]
        obs = pd.DataFrame(
            {
                "perturbation": pd.Categorical(np.repeat([k[0] for k in keys], n_cells)),
                "group": pd.Categorical(np.repeat([k[1] for k in keys], n_cells)),
                "cell": [str(cell) for key in keys for cell in self.cells[key]],
            }
        )
        obs.index = [f"{cell}-{i}" for i, cell in enumerate(obs["cell"])]

        def stacked(source: Mapping[Key, Mapping[str, Floats]], name: str) -> Floats:
            return np.concatenate([source[key][name] for key in keys])

        adata = AnnData(stacked(self.expression, "perturbed"), obs=obs, var=pd.DataFrame(index=list(self.genes)))
        for name in ("null", "start", "drawn"):
            adata.layers[name] = stacked(self.expression, name)
        adata.obsm["X_cellxpert"] = stacked(self.latent, "perturbed")
        adata.obsm["X_cellxpert_null"] = stacked(self.latent, "null")
        return adata

    def __repr__(self) -> str:
        lines = [f"PerturbResult: {len(self.conditions)} conditions x {len(self.genes)} genes"]
        for row in self.conditions.head(10).itertuples():
            flags = [] if row.seen else ["never perturbed in training"]
            flags += ["silent: the gene is not expressed in the start cells"] if row.silent else []
            flags += [] if row.converged else [f"not converged: R-hat {row.r_hat:.3f}"]
            lines.append(f"  {row.perturbation} in {row.group} ({row.target}): {'; '.join(flags) or 'no flags'}")
        if len(self.conditions) > 10:
            lines.append(f"  ... and {len(self.conditions) - 10} more")
        return "\n".join(lines)


def effect_table(
    *,
    key: Key,
    genes: Sequence[str],
    perturbed: tuple[Floats, Floats],
    null: tuple[Floats, Floats],
    start_NG: Floats,
    is_target: npt.NDArray[np.bool_],
    is_movable: npt.NDArray[np.bool_],
    se_chains: npt.NDArray[np.float64] | float = np.nan,
    converged: bool = True,
) -> pd.DataFrame:
    """Compare two arms, cell by cell.

    Parameters
    ----------
    key
        Perturbation and group.
    genes
        Names of the genes.
    perturbed, null
        Mean log1p counts per 10,000 and mean counts per 10,000 of each start cell, N x G.
    start_NG
        log1p counts per 10,000 of the start cells, NaN where a gene was not measured.
    is_target, is_movable
        Which genes are set, and which could respond in the chains.
    se_chains
        Standard error of effects over chains, NaN where there is none.
    converged
        Whether the chains behind it have.

    Returns
    -------
    Rows of :attr:`PerturbResult.table`.
    """
    difference_NG = perturbed[0].astype(np.float64) - null[0]
    n_cells = len(difference_NG)
    effect_G = difference_NG.mean(axis=0)
    se_G = np.full(len(effect_G), np.nan)
    if n_cells > 1:
        se_G = difference_NG.std(axis=0, ddof=1) / np.sqrt(n_cells)
    score_G = np.divide(np.abs(effect_G), se_G, out=np.zeros_like(effect_G), where=se_G > 0)
    p_G = 2 * stats.t.sf(score_G, max(n_cells - 1, 1))
    p_G[(se_G == 0) & (effect_G != 0)] = 0.0
    p_G[is_target | np.isnan(effect_G) | np.isnan(se_G)] = np.nan
    adjusted_G = np.full(len(p_G), np.nan)
    tested = ~np.isnan(p_G)
    if tested.any():
        adjusted_G[tested] = stats.false_discovery_control(p_G[tested])
    mean = [x[1].astype(np.float64).mean(axis=0) + PSEUDO_COUNT for x in (perturbed, null)]
    here_NG = ~np.isnan(start_NG)
    return pd.DataFrame(
        {
            "perturbation": key[0],
            "group": key[1],
            "variable": list(genes),
            "log_fc": np.log2(mean[0] / mean[1]),
            "effect": effect_G,
            "se": se_G,
            "se_chains": se_chains,
            "p_value": p_G,
            "adj_p_value": adjusted_G,
            "null_effect": _mean_where(null[0].astype(np.float64) - start_NG, here_NG),
            "expressed_fraction": _mean_where(start_NG > 0, here_NG),
            "is_target": is_target,
            "is_movable": is_movable,
            "converged": converged,
        },
        columns=list(TABLE_COLUMNS),
    )


def _mean_where(x_NG: npt.NDArray[Any], here_NG: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Mean of each column over the cells in which it was measured; NaN where there are none."""
    total_G, n_G = np.where(here_NG, x_NG, 0.0).sum(axis=0), here_NG.sum(axis=0)
    return np.divide(total_G, n_G, out=np.full(len(n_G), np.nan), where=n_G > 0)


def trajectory_table(key: Key, arms: Mapping[str, Arm], *, n_replicates: int) -> pd.DataFrame:
    """Mean state of the chains at every step, a chain being one replicate of all start cells.

    Parameters
    ----------
    key
        Perturbation and group.
    arms
        What chains did, by the arm's name.
    n_replicates
        Chains per start cell.

    Returns
    -------
    Rows of :attr:`PerturbResult.trajectory`.
    """

    def means(x_TC: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        x_TNJ = x_TC.reshape(len(x_TC), -1, n_replicates)
        return x_TNJ.mean(axis=1, dtype=np.float64).T.ravel()

    tables = []
    for name, arm in arms.items():
        n_steps = len(arm.log_density_TC)
        step = np.tile(np.arange(n_steps), n_replicates)
        columns = {
            "perturbation": key[0],
            "group": key[1],
            "arm": name,
            "chain": np.repeat(np.arange(n_replicates), n_steps),
            "step": step,
            "log_density": means(arm.log_density_TC),
            "acceptance": means(arm.accepted_TC),
            "distance": np.nan if arm.distance_TC is None else means(arm.distance_TC),
            "shift": means(arm.shift_TC),
            "burn_in": step < arm.burn_in,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
