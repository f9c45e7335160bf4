"""Data sets of the task ``perturbation``: raw counts with the condition of each cell, and what is held out.

Every object has raw counts in ``X``, the scale that predictions are asked in (log1p of counts scaled to a common total) in
``layers["log1p"]`` and ``obs["condition"]``: the perturbed target(s), joined by ``+``, or ``"control"``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from benchmarks.holdout import (
    CONTROL,
    Fold,
    held_out_half,
    held_out_replicate,
    leave_pairs_out,
    leave_targets_out,
    leave_types_out,
)
from benchmarks.registry import missing_files
from cellxpert.metrics import read_gmt

__all__ = [
    "PERTURBATION",
    "SIGNATURES",
    "VOCABULARY",
    "PerturbationSet",
    "PerturbationSplit",
    "gene_sets",
    "log1p_scaled",
    "signatures",
    "synthetic_network",
    "toy",
]

GENE_SETS = ("c2.cp.reactome.v6.2.symbols.gmt", "h.all.v7.0.symbols.gmt", "GO_Biological_Process_2021.enrichr.gmt.gz")
VOCABULARY = tuple(f"vocab/{file}" for file in GENE_SETS)
SIGNATURES = "replogle2022_k562_crispri_de"
STRONG = ("IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "SMAD4")


@dataclass(frozen=True, kw_only=True)
class PerturbationSplit:
    """How conditions are held out.

    Parameters
    ----------
    name
        Name in the results; repetitions are called ``name/1``, ``name/2`` ...
    make
        ``(object, generator) -> folds``; their conditions are scored as one panel.
    methods
        Methods that are run.
    cells
        Whether predicted cells are scored too.
    repetitions
        How many draws of folds and of halves of the control cells.
    """

    name: str
    make: Callable[[anndata.AnnData, np.random.Generator], Sequence[Fold]]
    methods: tuple[str, ...]
    cells: bool = False
    repetitions: int = 3


@dataclass(frozen=True, kw_only=True)
class PerturbationSet:
    """Perturbed and control cells.

    Parameters
    ----------
    name
        Name in the results.
    read
        ``folder -> object``; the folder is None for data that need no file.
    files
        Files that must be in the folder.
    splits
        See :class:`PerturbationSplit`.
    strong
        Conditions that are also scored as a subset.
    targets
        Whether conditions name genes, which are then left out of the scores.
    """

    name: str
    read: Callable[[Path | None], anndata.AnnData]
    splits: tuple[PerturbationSplit, ...]
    files: tuple[str, ...] = ()
    strong: tuple[str, ...] = ()
    targets: bool = True

    def missing(self, data_dir: Path | None) -> str:
        """Why the data cannot be read here; empty when they can."""
        return missing_files(self.files, data_dir)


def gene_sets(data_dir: Path | None) -> Mapping[str, Sequence[str]]:
    """Reactome, Hallmark and GO biological process sets of ``DIR/vocab``; those of :func:`toy` without a folder."""
    if data_dir is None:
        return {f"set{k}": [f"t{k}a", f"t{k}b", f"t{k}c", f"t{k}d"] for k in range(3)}
    return {name: genes for file in GENE_SETS for name, genes in read_gmt(data_dir / "vocab" / file).items()}


def log1p_scaled(counts: sp.csr_matrix, total: float | None = None) -> sp.csr_matrix:
    """Return log1p of counts scaled to one total per cell (the median of the cells' totals if None)."""
    counts = sp.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    total = float(np.median(totals)) if total is None else total
    return (sp.diags_array(total / np.maximum(totals, 1.0)) @ counts).log1p().tocsr()


# --- data ---


def _finished(adata: anndata.AnnData, condition: np.ndarray, *, total: float | None = None) -> anndata.AnnData:
    adata.obs = adata.obs[[c for c in ("replicate", "cell_type") if c in adata.obs]].astype(str)
    adata.obs["condition"] = condition.astype(str)
    adata.layers["log1p"] = log1p_scaled(adata.X, total)
    return adata


def _papalexi(data_dir: Path | None) -> anndata.AnnData:
    """Without SPI1, of which there are 48 cells."""
    adata = anndata.read_h5ad(data_dir / "perturb_papalexi2021.h5ad")
    adata = adata[(adata.obs["perturbation"] != "SPI1").to_numpy()].copy()
    return _finished(adata, adata.obs["perturbation"].to_numpy())


def _norman(data_dir: Path | None) -> anndata.AnnData:
    adata = anndata.read_h5ad(data_dir / "perturb_norman_mcfaline.h5ad")
    adata = adata[(adata.obs["dataset"] == "norman19").to_numpy()].copy()
    adata.uns = {"perturbation_type": "overexpression"}
    return _finished(adata, adata.obs["perturbation"].to_numpy())


def _kang(data_dir: Path | None) -> anndata.AnnData:
    """Conditions are the types of stimulated cells.

    Few stimulated cells have a type, so all get the one that a logistic regression says which learnt from other control
    cells of the same experiment. It agrees with 57 of the 59 known ones.
    """
    adata = anndata.read_h5ad(data_dir / "kang2018_ifnb_2000x9015.h5ad")
    known = anndata.read_h5ad(data_dir / "kang2018_ctrl_12261x1287.h5ad")[::3]
    shared = [gene for gene in known.var_names if gene in set(adata.var_names)]
    model = LogisticRegression(C=0.1, max_iter=500)
    model.fit(log1p_scaled(known[:, shared].X, 1e3), known.obs["cell_type"].astype(str).to_numpy())
    adata.obs["cell_type"] = model.predict(log1p_scaled(adata[:, shared].X, 1e3))
    adata = adata[(adata.obs["cell_type"] != "Megakaryocytes").to_numpy()].copy()
    stimulated = (adata.obs["stim"] == "stim").to_numpy()
    return _finished(adata, np.where(stimulated, adata.obs["cell_type"].to_numpy(), CONTROL), total=1e4)


def toy(data_dir: Path | None = None) -> anndata.AnnData:
    """Simulated counts: three pathways of four targets that act alike, two replicates, 40 genes of which 3 are targets."""
    rng = np.random.default_rng(0)
    targets = [f"t{k}{letter}" for k in range(3) for letter in "abcd"]
    genes = [*[f"t{k}a" for k in range(3)], *[f"g{i}" for i in range(37)]]
    pathway = rng.normal(0, 0.8, (3, 40))
    conditions = np.array(
        [*np.repeat([CONTROL, *targets], 24), *np.repeat([f"t{a}+t{b}" for a, b in (("0a", "1a"), ("1b", "2b"))], 24)]
    )
    effect = np.zeros((len(conditions), 40))
    for row, condition in enumerate(conditions):
        for target in condition.split("+") if condition != CONTROL else []:
            effect[row] += pathway[int(target[1])]
            effect[row, [g == target for g in genes]] -= 2
    rate = np.exp(rng.normal(0.5, 0.7, 40) + effect) * rng.gamma(4, 0.25, (len(conditions), 1))
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.int32)))
    adata.var_names, adata.obs_names = genes, [f"c{i}" for i in range(adata.n_obs)]
    adata.obs["replicate"] = np.where(np.arange(adata.n_obs) % 3 == 2, "rep_2", "rep_1")
    adata.obs["cell_type"] = "cell"
    return _finished(adata, conditions)


def synthetic_network(data_dir: Path | None = None, *, seed: int = 0) -> anndata.AnnData:
    """Simulated Perturb-seq from a regulatory network of 120 genes: 28 knock-outs, 8 pairs that interact, stress, dropout.

    ``uns["truth"]`` says which genes are upstream and downstream of the target(s) of each condition.
    """
    import cellxpert as cx

    mdata = cx.datasets.synthetic(
        n_cells=8000,
        n_genes=120,
        n_peaks=0,
        n_proteins=0,
        n_types=3,
        n_batches=1,
        spatial_dims=0,
        n_regulators=24,
        n_perturbations=28,
        n_pairs=8,
        interaction=0.8,
        control_fraction=0.3,
        stress_effect=0.3,
        noise=0.5,
        dropout=0.2,
        seed=seed,
    )
    adata, truth = mdata["rna"].copy(), mdata.uns["truth"]["perturbation"]
    down = np.asarray(truth["direct"]) | np.asarray(truth["indirect"])
    adata.uns["truth"] = {"names": list(truth["names"]), "down": down, "up": np.asarray(truth["ancestors"])}
    return _finished(adata, mdata.obs.loc[adata.obs_names, "perturbation"].to_numpy())


def signatures(data_dir: Path, *, kind: str = "up") -> tuple[dict[str, list[str]], list[str]]:
    """Target -> genes that respond when it is knocked down in K562 cells (Replogle 2022), and all genes listed.

    ``kind``: ``"up"``, those that go up significantly, or ``"ranked_top1000"``.
    """
    with gzip.open(data_dir / f"{SIGNATURES}.json.gz", "rt") as file:
        lists = json.load(file)["signatures"]
    genes = {gene for of_target in lists.values() for one in ("up", "ranked_top1000") for gene in of_target[one]}
    return {target: of_target[kind] for target, of_target in lists.items()}, sorted(genes)


_OURS = ("cellxpert-learned", "cellxpert-learned-gene-sets")
_CONSTANT = ("control_mean", "perturbed_mean", "perturbed_mean_cells", "target_only")
_LEARNT = ("linear", "knn", "linear_gene_sets", "knn_gene_sets", "knn_gene_sets_shrunk", "kernel_gene_sets")
_ZERO_SHOT = ("gauss_conditional", "control_stratified")
_OURS_ZERO_SHOT = ("cellxpert-zero-shot", "cellxpert-zero-shot-preset")
_UNSEEN = ("ceiling", *_CONSTANT, *_LEARNT, *_ZERO_SHOT, *_OURS, _OURS_ZERO_SHOT[0])
_SEEN = (
    "ceiling",
    "same_condition",
    "anchor_mean",
    "same_condition_shrunk",
    "random_medoid",
    *_CONSTANT[:2],
    "linear",
    "knn",
    "knn_gene_sets",
    *_ZERO_SHOT,
    "cellxpert-learned",
    "cellxpert-anchored",
)
_NETWORK = ("ceiling", *_CONSTANT, "linear", "knn", *_ZERO_SHOT, "cellxpert-learned", *_OURS_ZERO_SHOT)
_HALF = ("ceiling", *_CONSTANT, *_ZERO_SHOT, "same_condition", "same_condition_shrunk", "cellxpert-learned")
_PAIRS = (
    "ceiling",
    "control_mean",
    "perturbed_mean",
    "additive",
    "matching_mean",
    "linear_members",
    "knn_gene_sets",
    _OURS[0],
)
_TYPES = (
    "ceiling",
    "type_control",
    "perturbed_mean",
    "mean_shift",
    "nearest_type_shift",
    "latent_shift",
    "cellxpert-stimulus",
)


def _unseen(n_folds: int) -> PerturbationSplit:
    return PerturbationSplit(name="unseen-targets", make=partial(leave_targets_out, n_folds=n_folds), methods=_UNSEEN)


def _seen(replicate: str) -> PerturbationSplit:
    make = partial(held_out_replicate, replicate=replicate)
    return PerturbationSplit(name="seen-targets", make=make, methods=_SEEN, cells=True)


def _other_network(seed: int) -> PerturbationSet:
    """Another draw of the network: what is measured on one may be its own. No setting was chosen on these."""
    split = PerturbationSplit(
        name=f"unseen-half/{seed}",
        make=partial(leave_targets_out, n_folds=2),
        methods=tuple(name for name in _NETWORK if name != _OURS_ZERO_SHOT[1]),
        repetitions=1,
    )
    return PerturbationSet(name="synthetic_networks", read=partial(synthetic_network, seed=seed), splits=(split,))


_UNSEEN_PAIRS = PerturbationSplit(name="unseen-pairs", make=leave_pairs_out, methods=_PAIRS)

PERTURBATION: Mapping[str, PerturbationSet] = {
    "perturb_papalexi2021": PerturbationSet(
        name="perturb_papalexi2021",
        read=_papalexi,
        splits=(_unseen(12), _seen("rep_3")),
        files=("perturb_papalexi2021.h5ad", *VOCABULARY),
        strong=STRONG,
    ),
    "perturb_norman19": PerturbationSet(
        name="perturb_norman19",
        read=_norman,
        splits=(_UNSEEN_PAIRS,),
        files=("perturb_norman_mcfaline.h5ad", *VOCABULARY),
    ),
    "kang2018_ifnb": PerturbationSet(
        name="kang2018_ifnb",
        read=_kang,
        splits=(PerturbationSplit(name="unseen-cell-types", make=leave_types_out, methods=_TYPES),),
        files=("kang2018_ifnb_2000x9015.h5ad", "kang2018_ctrl_12261x1287.h5ad", *VOCABULARY),
        targets=False,
    ),
    "synthetic_network": PerturbationSet(
        name="synthetic_network",
        read=synthetic_network,
        splits=(
            PerturbationSplit(name="unseen-half", make=partial(leave_targets_out, n_folds=2), methods=_NETWORK),
            PerturbationSplit(name="seen-targets", make=held_out_half, methods=_HALF),
            PerturbationSplit(
                name="unseen-pairs",
                make=partial(leave_pairs_out, n_folds=2),
                methods=tuple(name for name in _PAIRS if name != "knn_gene_sets"),
            ),
        ),
    ),
    **{f"synthetic_networks/{seed}": _other_network(seed) for seed in range(1, 11)},
    "toy": PerturbationSet(
        name="toy", read=toy, splits=(_unseen(4), _seen("rep_2"), _UNSEEN_PAIRS), strong=("t0a", "t0b", "t1c")
    ),
}
"""Data sets of the task ``perturbation``; ``toy`` is that of ``--quick``."""
