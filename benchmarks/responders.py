"""Genes that respond in another laboratory's screen of the same cell line, predicted from unperturbed cells alone."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from benchmarks.data_sets_perturbation import SIGNATURES, log1p_scaled, signatures
from benchmarks.holdout import CONTROL
from benchmarks.measure import measured
from benchmarks.methods import PERTURBATION as METHODS
from benchmarks.methods import make_predictor
from benchmarks.perturbation_scores import auroc
from benchmarks.registry import Measurement, Options

__all__ = ["FILES", "METHODS_OF_RESPONDERS", "predict_responders", "responder_scores"]

CELLS = "perturb_gasperini2019_k562"
FILES = (f"{CELLS}.h5ad", f"{SIGNATURES}.json.gz")
METHODS_OF_RESPONDERS = ("random", "frequency", "gauss_conditional", "control_stratified", "cellxpert-zero-shot")
MAX_CELLS, MIN_RESPONDERS = 5000, 5


def _cells(data_dir: Path) -> anndata.AnnData:
    """K562 cells without a guide against a promoter (others, against enhancers, are not excluded), as training data."""
    adata = anndata.read_h5ad(data_dir / f"{CELLS}.h5ad")
    adata = adata[(adata.obs["tss_targets"] == "none").to_numpy()]
    chosen = np.sort(np.random.default_rng(2022).permutation(adata.n_obs)[:MAX_CELLS])
    adata = adata[chosen].copy()
    adata.obs = pd.DataFrame(index=adata.obs_names)
    adata.layers["log1p"] = log1p_scaled(adata.X)
    return adata


def _responders(data_dir: Path, genes: list[str]) -> tuple[list[str], np.ndarray]:
    """Measured targets, and which measured genes are among their 1,000 first-ranked ones (T x G, targets left out)."""
    lists = {target: set(ranked) for target, ranked in signatures(data_dir, kind="ranked_top1000")[0].items()}
    targets = [gene for gene in genes if gene in lists]
    responds = np.array([[gene in lists[target] and gene not in targets for gene in genes] for target in targets])
    enough = responds.sum(axis=1) >= MIN_RESPONDERS
    return [target for target, keep in zip(targets, enough, strict=True) if keep], responds[enough]


def responder_scores(scores_TG: np.ndarray, responds_TG: np.ndarray, *, n_shuffles: int = 2000) -> dict[str, float]:
    """Enrichment of each target's responders among its high scores, beside lists of other targets.

    Parameters
    ----------
    scores_TG
        How strongly genes are predicted to respond to each target, targets themselves left out.
    responds_TG
        Which do.
    n_shuffles
        Number of derangements-at-random of the targets behind ``p_shuffled``.

    Returns
    -------
    ``auroc``; ``auroc_shuffled``, its mean with the lists of the other targets; ``p_shuffled``, the share of shuffled
    assignments of lists that do as well (one more counted on both sides); ``specificity``, the share of other lists that fit
    the scores worse (chance 0.5).
    """
    n = len(scores_TG)
    areas = np.array([[auroc(scores, responds) for responds in responds_TG] for scores in scores_TG])
    own, others = np.diag(areas), (areas.sum(axis=1) - np.diag(areas)) / (n - 1)
    rng, rows = np.random.default_rng(0), np.arange(n)
    shuffled = np.array([areas[rows, rng.permutation(n)].mean() for _ in range(n_shuffles)])
    worse = (areas < own[:, None]).sum(axis=1) + ((areas == own[:, None]).sum(axis=1) - 1) / 2
    return {
        "auroc": float(own.mean()),
        "auroc_shuffled": float(others.mean()),
        "p_shuffled": float((1 + (shuffled >= own.mean() - 1e-12).sum()) / (1 + n_shuffles)),
        "specificity": float((worse / (n - 1)).mean()),
    }


def predict_responders(*, method: str, seed: int, options: Options) -> list[Measurement]:
    """Predict the effect of a knock-out from unperturbed cells, and ask whether its largest changes are the other screen's."""
    adata = _cells(options.data_dir)
    genes = list(adata.var_names)
    targets, responds_TG = _responders(options.data_dir, genes)
    scored = ~np.isin(genes, targets)
    with measured() as cost:
        if method == "random":
            scores_TG = np.random.default_rng(seed).random((len(targets), len(genes)))
        elif method == "frequency":  # how often a gene responds to the other targets
            scores_TG = (responds_TG.sum(axis=0) - responds_TG).astype(float)
        else:
            predictor = make_predictor(METHODS[method], seed=seed, quick=options.quick, gene_sets={})
            predictor.fit(adata, np.full(adata.n_obs, CONTROL), control=CONTROL)
            base = np.asarray(adata.layers["log1p"].mean(axis=0)).ravel()
            scores_TG = np.abs(predictor.predict(targets) - base)
    found = responder_scores(scores_TG[:, scored], responds_TG[:, scored])
    return [Measurement(method=method, metrics=found, seconds=cost.seconds, mib=cost.mib)]
