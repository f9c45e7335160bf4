"""Adapters of a model on real counts: the base stays, answers are switched, files bring all back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

import cellxpert as cx
from cellxpert.checkpoint import weights_hash
from cellxpert.errors import AdapterError, CheckpointError, ConfigError, NotTrainedError, OutputExistsError, ResumeError
from cellxpert.files import read_arrays

LABELS = "bulk_labels"


def _lineages(mdata: MuData) -> ad.AnnData:
    """Every fourth cell, with three lineages in place of the types."""
    adata = mdata["rna"][::4].copy()
    types = mdata.obs[LABELS].iloc[::4].astype(str)
    adata.obs["lineage"] = np.select(
        [types.str.contains("T Reg|CD4|CD8"), types.str.contains("CD19")], ["T", "B"], default="other"
    )
    cx.CellxPert.setup_anndata(adata, labels_key="lineage")
    return adata


def _load(folder: Path, mdata: ad.AnnData | None = None) -> cx.CellxPert:
    return cx.CellxPert.load(folder, mdata)


def _tune(model: cx.CellxPert, cells: ad.AnnData, name: str | None, **settings: object) -> None:
    model.finetune(cells, adapter=name, max_epochs=1, progress_bar=False, **settings)


def _answers(model: cx.CellxPert, cells: ad.AnnData) -> tuple[pd.DataFrame, np.ndarray]:
    return model.annotate(cells, inplace=False, return_proba=True), model.get_latent(cells, inplace=False)


def _equal(one: tuple[pd.DataFrame, np.ndarray], other: tuple[pd.DataFrame, np.ndarray]) -> bool:
    return one[0].equals(other[0]) and np.array_equal(one[1], other[1])


@pytest.fixture(scope="module")
def base(trained: cx.CellxPert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, saved."""
    folder = tmp_path_factory.mktemp("base") / "model"
    trained.save(folder)
    return folder


@pytest.fixture(scope="module")
def cells(_pbmc: MuData) -> ad.AnnData:
    """175 cells with other labels than the model knows."""
    return _lineages(_pbmc)


@pytest.fixture(scope="module")
def adapted(base: Path, cells: ad.AnnData) -> cx.CellxPert:
    """The small model with two adapters, one of each method; tests must not change it but for which is in use."""
    model = _load(base, cells)
    model.add_adapter("lineage", rank=4)
    _tune(model, cells, "lineage")
    model.add_adapter("prompted", method="prompts", n_prompts=3)
    _tune(model, cells, "prompted")
    return model


def test_nothing_but_the_adapter_and_its_labels_is_learned(base, adapted):
    before = _load(base)
    for name in ("lineage", "prompted"):
        adapted.set_adapter(name)
        assert adapted.labels == ("B", "T", "other")
    adapted.set_adapter(None)
    assert weights_hash(adapted._trained().network) == weights_hash(before._trained().network)
    assert adapted.labels == before.labels
    lora = adapted._adapter("lineage").tensors
    assert all(x.any() for name, x in lora.items() if name.endswith("lora_B") and "value" not in name)


def test_every_adapter_gives_its_own_answers_bit_for_bit(base, adapted, cells):
    names = [None, "lineage", "prompted"]
    first = {}
    for name in names:
        adapted.set_adapter(name)
        assert adapted.active_adapter == name
        first[name] = _answers(adapted, cells)
    for name in reversed(names):
        adapted.set_adapter(name)
        assert _equal(_answers(adapted, cells), first[name])
    assert _equal(first[None], _answers(_load(base), cells))
    latent = [first[name][1] for name in names]
    assert not np.allclose(latent[0], latent[1])
    assert not np.allclose(latent[0], latent[2])
    assert adapted.adapters == ("lineage", "prompted")


@pytest.mark.parametrize("name", ["lineage", "prompted"])
def test_a_cell_of_an_adapted_model_is_the_same_in_any_company(adapted, cells, name):
    adapted.set_adapter(name)
    together = adapted.get_latent(cells, inplace=False)
    for rows in ([3], [170, 3, 50]):
        alone = adapted.get_latent(cells[rows].copy(), inplace=False)
        np.testing.assert_allclose(alone, together[rows], atol=2e-6)


def test_a_saved_model_keeps_its_adapters_and_which_is_in_use(adapted, cells, tmp_path):
    expected = {}
    for name in (None, "lineage"):
        adapted.set_adapter(name)
        expected[name] = _answers(adapted, cells)
    adapted.save(tmp_path / "model")
    found = sorted(f.relative_to(tmp_path).as_posix() for f in (tmp_path / "model" / "adapters").rglob("*.*"))
    assert found == [
        f"model/adapters/{name}/{file}"
        for name in ("lineage", "prompted")
        for file in ("adapter.safetensors", "calibration.safetensors", "config.json")
    ]
    loaded = _load(tmp_path / "model", cells)
    assert (loaded.active_adapter, loaded.adapters) == ("lineage", ("lineage", "prompted"))
    assert _equal(_answers(loaded, cells), expected["lineage"])
    assert loaded.history["train_loss"].equals(adapted.history["train_loss"])
    loaded.set_adapter(None)
    assert _equal(_answers(loaded, cells), expected[None])


def test_an_adapter_alone_is_loaded_onto_its_base(base, adapted, cells, tmp_path):
    adapted.set_adapter("lineage")
    adapted.save_adapter(tmp_path / "lineage")
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        adapted.save_adapter(tmp_path / "lineage")
    adapted.save_adapter(tmp_path / "lineage", overwrite=True)
    model = _load(base, cells)
    summary = model.load_adapter(tmp_path / "lineage")
    assert model.active_adapter == "lineage"  # what is loaded is used
    assert summary.n_trainable > 3 * 65  # a loaded adapter can be trained on
    assert _equal(_answers(model, cells), _answers(adapted, cells))
    for asked in ({}, {"set_coverage": 0.9, "coverage": 0.7}):  # labels, reasons, distances
        pd.testing.assert_frame_equal(
            model.annotate(cells, inplace=False, **asked),
            adapted.annotate(cells, inplace=False, **asked),
            check_exact=True,
        )
    assert "direct_VP" not in read_arrays(tmp_path / "lineage" / "calibration.safetensors")  # the base has it
    model.load_adapter(tmp_path / "lineage", name="again")
    assert model.adapters == ("lineage", "again")
    with pytest.raises(AdapterError, match="'again' already"):
        model.load_adapter(tmp_path / "lineage", name="again")
    _tune(model, cells, "again")
    assert not _equal(_answers(model, cells), _answers(adapted, cells))
    model.set_adapter("lineage")
    assert _equal(_answers(model, cells), _answers(adapted, cells))


def test_a_saved_model_is_not_overwritten_by_an_adapter(adapted, base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(OutputExistsError, match="no saved adapter"):
        adapted.save_adapter(copy, "lineage", overwrite=True)
    assert _load(copy).is_trained


def test_an_adapter_of_other_weights_is_refused(base, adapted, cells, tmp_path):
    adapted.save_adapter(tmp_path / "lineage", "lineage")
    other = _load(base, cells)
    with torch.no_grad():
        next(other._state.network.parameters())[0, 0] += 1e-3
    with pytest.raises(AdapterError, match="an adapter of weights") as caught:
        other.load_adapter(tmp_path / "lineage")
    assert weights_hash(other._state.network)[:12] in caught.value.found
    assert "weights_hash" in caught.value.fix
    assert other.adapters == ()
    file = tmp_path / "lineage" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocabulary_hash": "0" * 64}))
    with pytest.raises(AdapterError, match="other features"):
        _load(base).load_adapter(tmp_path / "lineage")


@pytest.mark.parametrize("name", ["lineage", "prompted"])
def test_a_merged_adapter_is_the_model(base, adapted, cells, tmp_path, name):
    adapted.set_adapter(name)
    adapted.save_adapter(tmp_path / "adapter")
    model = _load(base, cells)
    model.load_adapter(tmp_path / "adapter")
    expected = _answers(model, cells)
    model.merge_adapter()
    assert (model.adapters, model.active_adapter) == ((), None)
    assert _equal(_answers(model, cells), expected)
    model.save(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapters").exists()
    again = _load(tmp_path / "merged", cells)
    assert _equal(_answers(again, cells), expected)
    for refused in (model.merge_adapter, lambda: model.merge_adapter(name), lambda: model.set_adapter(name)):
        with pytest.raises(AdapterError, match="was merged"):
            refused()
    with pytest.raises(AdapterError, match="no name"):
        again.merge_adapter()
    with pytest.raises(AdapterError, match="an adapter of weights"):  # the base is no longer what it was
        model.load_adapter(tmp_path / "adapter")
    _tune(model, cells, None)  # and goes on as any model
    assert model.labels == ("B", "T", "other")


def test_what_would_change_the_base_is_refused(base, adapted, cells, tmp_path):
    adapted.save(tmp_path / "model")
    model = _load(tmp_path / "model", cells)
    before = weights_hash(model._base_state().network)
    with pytest.raises(AdapterError, match=r"finetune\(\)") as caught:
        _tune(model, cells, None)
    assert "remove_adapter()" in caught.value.fix
    with pytest.raises(AdapterError, match=r"train\(\)"):
        model.train(max_epochs=1)
    with pytest.raises(AdapterError, match="other adapters") as caught:
        model.merge_adapter("lineage")
    assert "prompted" in caught.value.found
    assert weights_hash(model._base_state().network) == before
    model.set_adapter("lineage")
    for name in ("prompted", "lineage"):
        model.remove_adapter(name)
    assert (model.adapters, model.active_adapter) == ((), None)
    assert _equal(_answers(model, cells), _answers(_load(base), cells))
    _tune(model, cells, None)


def test_training_goes_on_only_with_the_weights_that_were_trained(pbmc):
    mdata = pbmc[:120].copy()
    cx.CellxPert.setup_mudata(mdata, rna="rna")
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    model.train(max_epochs=1, progress_bar=False)
    model.add_adapter()
    model.remove_adapter("default")
    model.train(max_epochs=1, progress_bar=False)  # nothing has changed
    model.add_adapter()
    _tune(model, mdata, "default")
    model.remove_adapter("default")
    with pytest.raises(ConfigError, match="without the adapter"):
        model.train(max_epochs=1, progress_bar=False)


def test_names_are_known_and_free(base):
    model = _load(base)
    assert model.adapters == ()
    assert repr(model.add_adapter()).startswith("adapter 'default': ")
    with pytest.raises(AdapterError, match="already"):
        model.add_adapter()
    with pytest.raises(AdapterError, match="name of an adapter"):
        model.add_adapter("a/b")
    with pytest.raises(AdapterError, match="use 'default'"):
        model.set_adapter("defualt")
    for unknown in (model.remove_adapter, model.merge_adapter, lambda name: model.finetune(adapter=name)):
        with pytest.raises(AdapterError, match="no adapter 'x'"):
            unknown("x")
    model.add_adapter("other")
    with pytest.raises(AdapterError, match="name one"):
        model.save_adapter("nowhere")
    assert "adapters: default, other; in use: none" in repr(model)


def test_settings_of_the_other_method_are_refused(base):
    model = _load(base)
    with pytest.raises(ConfigError, match="n_prompts"):
        model.add_adapter(n_prompts=3)
    with pytest.raises(ConfigError, match="give n_prompts only"):
        model.add_adapter(method="prompts", targets=["qkv"])
    with pytest.raises(ConfigError, match=r"\['qkv'\]"):
        model.add_adapter(targets="qkv")
    with pytest.raises(ConfigError, match="method"):
        model.add_adapter(method="ia3")
    with pytest.raises(AdapterError, match="names no weight"):
        model.add_adapter(targets=["qkv", "outt"])
    assert model.adapters == ()


def test_an_untrained_model_has_nothing_to_adapt(pbmc):
    cx.CellxPert.setup_mudata(pbmc, rna="rna")
    model = cx.CellxPert(pbmc, preset="nano")
    assert (model.adapters, model.active_adapter) == ((), None)
    with pytest.raises(NotTrainedError):
        model.add_adapter()


def test_a_fresh_adapter_is_the_model_itself(base, cells):
    model = _load(base, cells)
    expected = _answers(model, cells)
    summary = model.add_adapter(rank=3, seed=4)
    assert _equal(_answers(model, cells), expected)
    model.set_adapter("default")
    assert _equal(_answers(model, cells), expected)
    head = model._trained().network.labels
    own = sum(x.numel() for name, x in model._adapters[0].tensors.items() if "lora" in name)
    assert summary.n_trainable == own + head.cell.weight.numel() + head.cell.bias.numel()
    assert summary.n_parameters == own + model._trained().network.n_parameters()


def test_the_model_says_how_long_it_was_trained_itself(adapted):
    for name in ("lineage", None):
        adapted.set_adapter(name)
        assert "trained 2 epochs" in repr(adapted)


def test_results_say_which_adapter_gave_them(adapted, cells):
    copy = cells.copy()
    for name, recorded in ((None, None), ("lineage", "lineage")):
        adapted.set_adapter(name)
        adapted.get_latent(copy)
        assert copy.uns["cellxpert_info"]["get_latent"]["X_cellxpert"].get("adapter") == recorded


def test_files_of_adapters_belong_together(adapted, tmp_path):
    adapted.save(tmp_path / "model")
    folder = tmp_path / "model" / "adapters"
    shutil.move(folder / "lineage", tmp_path / "lineage")
    with pytest.raises(CheckpointError, match=r"no file 'config.json'"):
        _load(tmp_path / "model")
    shutil.copytree(folder / "prompted", folder / "lineage")
    with pytest.raises(CheckpointError, match="adapter 'prompted' of weights"):
        _load(tmp_path / "model")
    shutil.rmtree(folder / "lineage")
    shutil.move(tmp_path / "lineage", folder / "lineage")
    assert _load(tmp_path / "model").adapters == ("lineage", "prompted")
    file = tmp_path / "model" / "config.json"
    for wrong in ({"names": ["lineage"], "active": "x"}, {"names": "lineage", "active": None}, {}):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"adapters": wrong}))
        with pytest.raises(CheckpointError, match="adapters: "):
            _load(tmp_path / "model")


def test_an_adapter_learns_from_cells_without_labels(base, pbmc):
    plain = pbmc["rna"][:80].copy()
    cx.CellxPert.setup_anndata(plain)
    model = _load(base, plain)
    labels = model.labels
    model.add_adapter()
    _tune(model, plain, "default")
    assert model.labels == labels  # the head is kept
    state, before = model._trained(), model._base_state()
    head = {name: x for name, x in state.network.state_dict().items() if name.startswith("labels.")}
    assert all(torch.equal(x, before.network.state_dict()[name]) for name, x in head.items())


@pytest.mark.filterwarnings("ignore:the .* labels are not calibrated")
@pytest.mark.parametrize("adapter", [None, "default"])
def test_labels_steer_what_is_below_them_if_asked(base, cells, adapter):
    """Without the other objectives nothing but labels can move a weight of the encoder."""
    moved = {}
    for share in (None, 0.0, 1.0):
        model = _load(base, cells)
        silent = model._state.config.replace(bins_weight=0, cell_weight=0, importance_weight=0, load_weight=0)
        silent = silent.replace(router_z_weight=0, weight_decay=0)
        model._state = dataclasses.replace(model._state, config=silent)
        before = model._state.network.encoder.blocks[0].qkv.weight.clone()
        if adapter is not None:
            model.add_adapter(adapter)
        _tune(model, cells, adapter, label_gradient=share)
        moved[share] = not torch.equal(model._state.network.encoder.blocks[0].qkv.weight, before)
    assert moved == {None: False, 0.0: False, 1.0: True}
    with pytest.raises(ConfigError, match="label_gradient"):
        _tune(_load(base, cells), cells, None, label_gradient=1.5)


def test_a_run_of_an_adapter_is_resumed_and_by_no_other_adapter(base, cells, tmp_path):
    answers = []
    for folder in (None, tmp_path / "run", tmp_path / "run"):  # the third finds the run finished
        model = _load(base, cells)
        model.add_adapter(rank=4)
        _tune(model, cells, "default", resume=folder)
        answers.append(_answers(model, cells))
    assert _equal(answers[0], answers[1])
    assert _equal(answers[1], answers[2])
    model.add_adapter("other", rank=2)
    with pytest.raises(ResumeError, match="adapter differ"):
        _tune(model, cells, "other", resume=tmp_path / "run")


def test_an_adapter_cannot_learn_of_genes_that_were_never_perturbed(screened, knockouts, tmp_path):
    screened.save(tmp_path / "model")
    cx.CellxPert.setup_mudata(knockouts, rna="rna", protein="protein", perturbation_key="perturbation")
    model = _load(tmp_path / "model", knockouts)
    table = {name: x.clone() for name, x in model._state.network.state_dict().items() if "intervention" in name}
    assert table
    model.add_adapter("seen")
    _tune(model, knockouts, "seen")  # its genes are known
    after = model._trained().network.state_dict()
    assert all(torch.equal(after[name], x) for name, x in table.items())
    for part in (knockouts, *knockouts.mod.values()):
        if "perturbation" in part.obs:
            names = part.obs["perturbation"].astype(str)
            part.obs["perturbation"] = names.where(names != names[names != "control"].iloc[0], "g_new")
    cx.CellxPert.setup_mudata(knockouts, rna="rna", protein="protein", perturbation_key="perturbation")
    with pytest.raises(AdapterError, match=r"has not seen: \['g_new'\]") as caught:
        _tune(model, knockouts, "seen")
    assert "model.finetune(mdata)" in caught.value.fix
    assert model.active_adapter == "seen"  # as it was
