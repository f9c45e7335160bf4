"""CellxPert as its documentation says: set up with the column of conditions, train, perturb."""

from __future__ import annotations

from collections.abc import Sequence

import anndata
import lightning.pytorch  # noqa: F401 - its import takes seconds, which are not training
import numpy as np
import pandas as pd

import cellxpert as cx
from benchmarks.methods.perturbation import GeneSets
from cellxpert.metrics import gene_set_embedding

__all__ = ["Ours", "anchored", "fill_in", "learned", "learned_gene_sets", "predicted_gene_sets", "zero_shot"]

KEY = "condition"


class Ours:
    """Preset ``nano``, one pass over the cells (the factor model that it starts from does most of the work); gene sets say what is known of targets that were never perturbed."""

    epochs: int | None = 1

    def __init__(
        self, *, target: str, seed: int, quick: bool, gene_sets: GeneSets | None = None, kernel: str = "auto"
    ) -> None:
        self.target, self.seed, self.quick, self.gene_sets, self.kernel = target, seed, quick, gene_sets, kernel

    def fit(self, adata: anndata.AnnData, conditions: np.ndarray, *, control: str) -> None:
        """See :class:`benchmarks.methods.Predictor`."""
        self.log1p, self.conditions, self.control = adata.layers["log1p"], np.asarray(conditions), control
        adata = anndata.AnnData(adata.X, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=adata.var_names))
        adata.obs[KEY] = self.conditions
        if self.target == "zero-shot":  # control cells alone
            adata = adata[self.conditions == control].copy()
        self.adata = adata
        perturbation = {} if self.target == "zero-shot" else {"perturbation_key": KEY, "control_category": control}
        cx.CellxPert.setup_anndata(adata, **perturbation)
        self.model = cx.CellxPert(adata, preset="nano", seed=self.seed)
        self.model.train(max_epochs=1 if self.quick else self.epochs, train_size=1.0, progress_bar=False)
        self.target_sum = float(np.expm1(self.log1p[0].toarray()).sum())

    def _result(self, conditions: Sequence[str]) -> cx.PerturbResult:
        # without gene sets nothing tells targets apart that were never perturbed and are not measured: all get what they share
        genes = sorted({g for c in [*set(self.conditions) - {self.control}, *conditions] for g in c.split("+")})
        vectors = np.zeros((len(genes), 1)) if self.gene_sets is None else gene_set_embedding(self.gene_sets, genes)
        embedding = pd.DataFrame(vectors, index=genes)
        settings = cx.config.SteeringConfig(
            target_sum=self.target_sum, kernel=self.kernel, n_cells=40 if self.quick else 200
        )
        return self.model.perturb(
            list(conditions),
            n_steps=100,
            target=self.target,
            n_chains=2,
            steering=settings,
            target_embedding=embedding,
            seed=self.seed,
            inplace=False,
            progress_bar=False,
        )

    def predict(self, conditions: Sequence[str]) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`. The effect is added to the mean of the training set's control cells."""
        base = np.asarray(self.log1p[self.conditions == self.control].mean(axis=0)).ravel()
        names = list(self.adata.var_names)
        self.last = self._result(conditions)
        effects = self.last.effects().reindex(columns=names).fillna(0.0)
        return base + effects.loc[list(conditions)].to_numpy()

    def predict_cells(self, condition: str) -> np.ndarray:
        """See :class:`benchmarks.methods.Predictor`."""
        cells = pd.DataFrame(self.last.expression[condition, "all"]["perturbed"], columns=list(self.last.genes))
        return cells.reindex(columns=list(self.adata.var_names)).fillna(0.0).to_numpy()


def learned(*, seed: int, quick: bool, gene_sets: GeneSets) -> Ours:
    """The law learned from perturbed cells."""
    return Ours(target="learned", seed=seed, quick=quick)


def learned_gene_sets(*, seed: int, quick: bool, gene_sets: GeneSets) -> Ours:
    """The same, carried over to unseen targets by gene sets."""
    return Ours(target="learned", seed=seed, quick=quick, gene_sets=gene_sets)


def predicted_gene_sets(*, seed: int, quick: bool, gene_sets: GeneSets) -> Ours:
    """Chains drawn to anchors that a linear model of gene sets predicts."""
    return Ours(target="predicted", seed=seed, quick=quick, gene_sets=gene_sets)


def anchored(*, seed: int, quick: bool, gene_sets: GeneSets) -> Ours:
    """Chains drawn to medoids of the training cells of the condition."""
    return Ours(target="anchored", seed=seed, quick=quick)


def zero_shot(*, seed: int, quick: bool, gene_sets: GeneSets) -> Ours:
    """Trained on control cells alone; targets are held at zero."""
    return Ours(target="zero-shot", seed=seed, quick=quick)


def fill_in(*, seed: int, quick: bool, gene_sets: GeneSets) -> Ours:
    """One draw of every gene, unaware of the others: no chain, no joint law."""
    return Ours(target="learned", seed=seed, quick=quick, kernel="fill-in")
