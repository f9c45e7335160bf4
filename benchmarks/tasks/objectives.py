"""What each objective of training is worth for cells of several modalities and batches: preset ``nano``, one setting changed at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import torch

import cellxpert as cx
from benchmarks.data_sets_integration import BATCH, INTEGRATION, SYNTHETIC, Loaded, Source, stratified_rows
from benchmarks.measure import measured
from benchmarks.registry import Case, Measurement, Options, Task
from benchmarks.render import dot_plot, method_table

__all__ = ["TASK", "VARIANTS", "train_and_ask"]

PLAIN: Mapping[str, object] = {
    "batches": False,
    "modality_dropout": 0.0,
    "contrast_weight": 0.0,
    "adversary_weight": 0.0,
}
TOLD = PLAIN | {"batches": True}
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "none": PLAIN,
    "batch told": TOLD,
    "batch told, dropout 0.1": TOLD | {"modality_dropout": 0.1},
    "batch told, dropout 0.3": TOLD | {"modality_dropout": 0.3},
    "batch told, dropout 0.3, contrast 0.1": TOLD | {"modality_dropout": 0.3, "contrast_weight": 0.1},
    "batch told, dropout 0.3, contrast 1": TOLD | {"modality_dropout": 0.3, "contrast_weight": 1.0},
    "batch told, dropout 0.3, adversary 1": TOLD | {"modality_dropout": 0.3, "adversary_weight": 1.0},
}
"""Name -> settings."""
DATA = "bmmc_cite_neurips2021_set1"
METRICS = {
    "prot_pearson": True,
    "rna_pearson": True,
    "bins": False,
    "cell": False,
    "foscttm": False,
    "batch_accuracy": False,
    "type_macro_f1": True,
}
TEST_SHARE, N_SEEDS, N_MASKS, CHUNK = 0.2, 2, 4, 64


def train_and_ask(source: Source, *, variant: str, seed: int, options: Options) -> list[Measurement]:
    """Train on four fifths of the cells, and ask about the others."""
    loaded = source.load(options.data_dir)
    mdata, test = _split(loaded)
    cx.CellxPert.setup_mudata(mdata, rna="rna", protein=source.other, batch_key=BATCH)
    model = cx.CellxPert(mdata, config=cx.config.preset("nano").replace(**VARIANTS[variant]), seed=seed)
    with measured() as cost:
        model.train(max_epochs=2 if options.quick else None, split_key="part", progress_bar=False)
    scores = _asked(model, test, mdata.obs[BATCH].astype(str).to_numpy())
    scores |= _read_off(model.get_latent(inplace=False), test, mdata.obs[BATCH].astype(str).to_numpy(), loaded.labels)
    return [Measurement(method=variant, metrics=scores, seconds=cost.seconds, mib=cost.mib)]


def _split(loaded: Loaded) -> tuple[mudata.MuData, np.ndarray]:
    """Mark a fifth of each batch's cells as test."""
    with mudata.set_options(pull_on_update=False):
        mdata = loaded.mdata.copy()
    test = stratified_rows(mdata.obs[BATCH].astype(str).to_numpy(), round(TEST_SHARE * mdata.n_obs))
    mdata.obs["part"] = np.where(np.isin(np.arange(mdata.n_obs), test), "test", "train")
    return mdata, test


@torch.inference_mode()
def _asked(model: cx.CellxPert, test: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    """Score answers on test cells: of a modality that is not shown, and of single features that are not."""
    from cellxpert.batch import Questions
    from cellxpert.data.cells import Cells
    from cellxpert.data.collate import Collator
    from cellxpert.data.components import scaled_magnitudes
    from cellxpert.data.roles import MODALITIES
    from cellxpert.data.tokens import tokenize
    from cellxpert.training.objectives import bins_loss

    state = model._trained()
    network, vocabulary = state.network, state.vocabulary
    tokens = tokenize(Cells.open(model._own_data(), model._setup), vocabulary, state.config.tokens)
    codes = pd.Index(state.batches).get_indexer(pd.Index(batch)) if state.batches else None
    training = state.config.training
    collator = Collator(
        tokens,
        n_features=network.n_features,
        n_bins=network.n_bins,
        mask_ratio=training.mask_ratio,
        n_queries=training.n_queries,
        n_cell_queries=training.n_cell_queries,
        batches=codes,
    )
    modality_V = vocabulary.role_of_feature
    level_MK = vocabulary.levels(len(MODALITIES))
    truth_NV = scaled_magnitudes(tokens, test, scale_MK=level_MK, modality_V=modality_V).toarray()
    chunks = np.array_split(test, max(1, len(test) // CHUNK))
    scores, vectors = {}, []
    for name, shown in (("prot", "rna"), ("rna", "protein")):
        hidden_V = modality_V != MODALITIES.index(shown)
        asked = np.flatnonzero(hidden_V)
        level_K, said, read = torch.from_numpy(level_MK[modality_V[asked[0]]]), [], []
        for rows in chunks:
            encoded = network.encode(collator.context(rows, hidden_V))
            query = torch.from_numpy(asked).expand(len(rows), -1)
            logits = network.decode(Questions(query_BQ=query), network.memory(encoded))
            said.append((logits.softmax(-1) * level_K).sum(-1).numpy())
            read.append(encoded.cell_BD.numpy())
        scores[f"{name}_pearson"] = _pearson(truth_NV[:, asked], np.concatenate(said))
        vectors.append(np.concatenate(read))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors)
    scores["foscttm"] = cx.metrics.foscttm(one, other)
    losses = []
    for i, rows in enumerate(chunks * N_MASKS):
        made = collator(rows, rng=np.random.default_rng([0, i]))
        told = made if codes is None else replace(made, batch_B=torch.from_numpy(codes[rows]))
        output = network(told)
        losses.append(
            [float(bins_loss(output.masked_BQK, made.masked)), float(bins_loss(output.whole_BQK, made.whole))]
        )
    return scores | dict(zip(("bins", "cell"), np.mean(losses, axis=0).tolist(), strict=True))


def _pearson(truth_NV: np.ndarray, said_NV: np.ndarray) -> float:
    """Mean over features of the correlation over cells, of features that vary."""
    varies = (truth_NV.std(axis=0) > 0) & (said_NV.std(axis=0) > 0)
    pairs = zip(truth_NV.T[varies], said_NV.T[varies], strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


def _read_off(latent: np.ndarray, test: np.ndarray, batch: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Say what logistic regressions on the cell vectors tell of test cells: the batch, and the type."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = np.setdiff1d(np.arange(len(latent)), test)
    told = {}
    for name, truth in (("batch", batch), ("type", labels)):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(latent[train], truth[train])
        told[name] = fitted.predict(latent[test])
    return {
        "batch_accuracy": float((told["batch"] == batch[test]).mean()),
        "type_macro_f1": float(f1_score(labels[test], told["type"], average="macro")),
    }


def cases(options: Options) -> Iterator[Case]:
    """Every variant and seed; the quick form has the simulated set once."""
    source = SYNTHETIC if options.quick else INTEGRATION[DATA]
    for variant in VARIANTS:
        for seed in range(1 if options.quick else N_SEEDS):
            yield Case(
                data=source.name,
                split="fifth",
                seed=seed,
                method=variant,
                run=partial(train_and_ask, source, variant=variant, seed=seed, options=options),
                missing=source.missing(options.data_dir),
            )


def report(frame: pd.DataFrame) -> str:
    """Return one table per data set."""
    parts = [
        "Preset `nano`, a fifth of each batch's cells held out, mean ± sd over seeds. `prot_pearson`: all proteins decoded from RNA alone, mean "
        "over proteins of the correlation with their magnitudes over test cells; `rna_pearson` the reverse. `bins`, `cell`: held-out "
        "losses of the masked-bin and whole-cell objectives with the usual masks, nats. `foscttm`: between cell vectors of RNA alone and "
        "of proteins alone, as unit vectors, less is better. `batch_accuracy`, `type_macro_f1`: logistic regressions on the cell vector."
    ]
    for data, rows in frame.groupby("data", sort=False):
        parts += [f"## {data}", method_table(rows, METRICS)]
    return "\n\n".join(parts)


def plot(frame: pd.DataFrame, stem: Path) -> Sequence[Path]:
    """Draw what is decoded of hidden modalities, the held-out loss and FOSCTTM."""
    order = [variant for variant in VARIANTS if variant in set(frame["method"])]
    metrics = ["prot_pearson", "rna_pearson", "bins", "foscttm"]
    return [dot_plot(frame, metrics, stem.with_name(stem.name + ".png"), order=order)]


TASK = Task(name="objectives", cases=lambda options: list(cases(options)), report=report, plot=plot)
