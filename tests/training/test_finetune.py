from __future__ import annotations

import numpy as np
import pytest
import torch

import cellxpert as cx


@pytest.fixture(scope="module")
def cells():
    mdata = cx.datasets.synthetic(
        n_cells=400, n_genes=40, n_peaks=0, n_proteins=0, n_types=2, spatial_dims=0, n_perturbations=4, seed=3
    )
    adata = mdata["rna"].copy()
    adata.obs = mdata.obs.loc[adata.obs_names].astype(str)
    return adata


@pytest.fixture(scope="module")
def model(cells):
    """A model of control cells and their types."""
    control = cells[cells.obs["perturbation"] == "control"].copy()
    cx.CellxPert.setup_anndata(control, labels_key="cell_type")
    model = cx.CellxPert(control, preset="nano", seed=0)
    model.train(max_epochs=1, progress_bar=False)
    return model


def _copy(model, tmp_path):
    model.save(tmp_path / "model", overwrite=True)
    return cx.CellxPert.load(tmp_path / "model")


def test_a_model_of_control_cells_learns_what_perturbing_does(model, cells, tmp_path):
    tuned = _copy(model, tmp_path)
    own = cells.copy()
    cx.CellxPert.setup_anndata(own, perturbation_key="perturbation")
    tuned.finetune(own, max_epochs=1, progress_bar=False)
    state = tuned._trained()
    assert state.perturbations.targets == tuple(sorted(set(cells.obs["perturbation"]) - {"control"}))
    assert state.vocabulary.hash() == model._trained().vocabulary.hash()
    assert tuned.labels == model.labels  # no labels were given: the head is kept
    before, after = model._trained().network.state_dict(), state.network.state_dict()
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert len(changed) > 10
    codes = state.network.factors.intervention.code.weight
    assert codes.abs().sum(dim=1).min() > 0  # all four genes begin at their observed effects
    result = tuned.perturb(state.perturbations.targets[0], n_steps=25, n_chains=2, inplace=False, progress_bar=False)
    assert result.conditions["target"].tolist() == ["learned"]
    again = _copy(tuned, tmp_path)
    for name, weight in again._trained().network.state_dict().items():
        assert torch.equal(weight, after[name]), name


def test_weights_are_taken_over_and_perturbed_genes_keep_theirs(model, cells, tmp_path):
    half = sorted(set(cells.obs["perturbation"]) - {"control"})
    first = cells[cells.obs["perturbation"].isin(["control", *half[1:3]])].copy()
    cx.CellxPert.setup_anndata(first, perturbation_key="perturbation")
    tuned = _copy(model, tmp_path)
    tuned.finetune(first, max_epochs=1, learning_rate=1e-12, progress_bar=False)
    for name, weight in model._trained().network.state_dict().items():
        torch.testing.assert_close(tuned._trained().network.state_dict()[name], weight, atol=1e-6, rtol=0, msg=name)
    codes = tuned._trained().network.factors.intervention.code.weight
    kept = codes.detach().clone()
    second = cells.copy()
    cx.CellxPert.setup_anndata(second, perturbation_key="perturbation")
    tuned.finetune(second, max_epochs=1, learning_rate=1e-12, progress_bar=False)
    state = tuned._trained()
    assert state.perturbations.targets == tuple(half)
    found = state.network.factors.intervention.code.weight.detach()
    np.testing.assert_allclose(found[[half.index(name) for name in half[1:3]]], kept, atol=1e-5)


def test_what_perturbing_is_told_from_follows_the_network_on_unperturbed_cells_too(model, cells, tmp_path):
    tuned = _copy(model, tmp_path)
    own = cells.copy()
    cx.CellxPert.setup_anndata(own, perturbation_key="perturbation")
    tuned.finetune(own, max_epochs=1, progress_bar=False)
    before = tuned._trained().network.factors.intervention.log_usual_VK.clone()
    control = cells[cells.obs["perturbation"] == "control"].copy()
    cx.CellxPert.setup_anndata(control)
    tuned.finetune(control, max_epochs=1, progress_bar=False)
    network = tuned._trained().network
    found = network.factors.intervention.log_usual_VK
    assert (found - before).abs().max() > 0.01
    torch.testing.assert_close(found, network.blank_log_prob(None), rtol=0, atol=1e-5)


def test_other_labels_make_the_head_anew(model, cells, tmp_path):
    own = cells.copy()
    own.obs["kind"] = np.where(own.obs["cell_type"] == "type_0", "a", "b")
    cx.CellxPert.setup_anndata(own, labels_key="kind")
    tuned = _copy(model, tmp_path)
    tuned.finetune(own, max_epochs=1, progress_bar=False)
    assert tuned.labels == ("a", "b")
    assert set(tuned.annotate(inplace=False, unknown=False)["label"]) <= {"a", "b"}


def test_labels_that_no_training_cell_has_are_told_and_named_no_more(tmp_path):
    mdata = cx.datasets.synthetic(n_cells=180, n_genes=40, n_peaks=0, n_proteins=0, n_types=3, spatial_dims=0, seed=3)
    cx.CellxPert.setup_mudata(mdata, rna="rna", labels_key="cell_type")
    model = cx.CellxPert(mdata, preset="nano", seed=0)
    model.train(max_epochs=1, progress_bar=False)
    lost = model.labels[1]
    some = mdata[(mdata.obs["cell_type"] != lost).to_numpy()].copy()
    cx.CellxPert.setup_mudata(some, rna="rna", labels_key="cell_type")
    with pytest.warns(cx.errors.CellxPertWarning, match=rf"no training cell has the labels \['{lost}'\]"):
        model.finetune(some, max_epochs=1, progress_bar=False)
    assert lost in model.labels
    assert lost not in set(model.annotate(mdata, inplace=False, unknown=False)["label"])


def test_labels_that_overlap_with_those_before_tell_which_are_gone(model, cells, tmp_path):
    own = cells.copy()
    kept, other = sorted(set(own.obs["cell_type"].astype(str)))[:2]
    own.obs["kind"] = np.where(own.obs["cell_type"].astype(str) == kept, kept, "new")
    cx.CellxPert.setup_anndata(own, labels_key="kind")
    tuned = _copy(model, tmp_path)
    with pytest.warns(cx.errors.CellxPertWarning, match=rf"no training cell has the labels \[.*{other}"):
        tuned.finetune(own, max_epochs=1, progress_bar=False)
    assert set(tuned.labels) == {kept, "new"}


@pytest.mark.filterwarnings("ignore:the .* labels are not calibrated")
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_label_head_is_fitted_afterwards_whether_labels_steer_or_not(model, cells, tmp_path, share):
    """At the optimum of its penalised objective, whose gradient vanishes: checked on the intercepts, which have no penalty."""
    own = cells.copy()
    own.obs["kind"] = np.where(own.obs["cell_type"] == "type_0", "a", "b")
    cx.CellxPert.setup_anndata(own, labels_key="kind")
    tuned = _copy(model, tmp_path)
    tuned.finetune(own, max_epochs=1, train_size=1.0, label_gradient=share, progress_bar=False)
    assert tuned._trained().network.labels.magnitude.weight.any()
    proba = tuned.annotate(inplace=False, return_proba=True, unknown=False).to_numpy()
    known = np.stack([own.obs["kind"] == "a", own.obs["kind"] == "b"], axis=1)
    weight = 1 / known.sum(axis=0)  # labels weigh alike
    residual = ((proba - known) * (known @ weight)[:, None]).sum(axis=0)
    np.testing.assert_allclose(residual, 0, atol=1e-3)


def test_only_a_trained_model_is_fine_tuned_and_only_on_cells_that_were_set_up(model, cells, tmp_path):
    own = cells.copy()
    with pytest.raises(cx.errors.NotSetUpError):
        _copy(model, tmp_path).finetune(own)
    cx.CellxPert.setup_anndata(own)
    with pytest.raises(cx.errors.NotTrainedError):
        cx.CellxPert(own, preset="nano").finetune()


# --- batches -----------------------------------------------------------------------------------------------------------


def _of_batches(cells, names):
    own = cells[cells.obs["batch"].isin(names)].copy()
    cx.CellxPert.setup_anndata(own, batch_key="batch")
    return own


def test_batches_keep_what_they_learned_and_new_ones_begin_at_nothing(tmp_path):
    mdata = cx.datasets.synthetic(
        n_cells=160, n_genes=30, n_peaks=0, n_proteins=0, n_types=2, n_batches=4, spatial_dims=0, seed=1
    )
    cells = mdata["rna"].copy()
    cells.obs = mdata.obs.loc[cells.obs_names].astype(str)
    names = sorted(set(cells.obs["batch"]))
    model = cx.CellxPert(_of_batches(cells, [names[0], names[3]]), preset="nano", seed=0)
    model.train(max_epochs=1, progress_bar=False)
    state = model._trained()
    assert state.batches == (names[0], names[3])
    assert state.network.batches.tilt.weight.abs().sum(1).min() > 0
    tuned = _copy(model, tmp_path)
    assert tuned._trained().batches == state.batches
    tuned.finetune(_of_batches(cells, names[1:]), max_epochs=1, learning_rate=1e-12, progress_bar=False)
    after = tuned._trained()
    assert after.batches == (names[0], names[3], names[1], names[2])
    for name, weight in after.network.batches.named_parameters():
        before = dict(state.network.batches.named_parameters())[name]
        torch.testing.assert_close(weight[:2], before, atol=1e-6, rtol=0)
        assert weight[2:].abs().max() < 1e-6
    # an adapter adds none, and is rebuilt with those of its base
    adapted = _copy(model, tmp_path)
    adapted.add_adapter("a")
    adapted.finetune(_of_batches(cells, names), adapter="a", max_epochs=1, progress_bar=False)
    assert adapted._trained().batches == state.batches
    again = _copy(adapted, tmp_path)
    assert torch.equal(again._trained().network.batches.tilt.weight, state.network.batches.tilt.weight)
    plain = cells.copy()
    cx.CellxPert.setup_anndata(plain)
    untold = _copy(model, tmp_path)
    untold.finetune(plain, max_epochs=1, progress_bar=False)
    assert untold._trained().batches == state.batches


def test_a_model_may_know_no_batches():
    mdata = cx.datasets.synthetic(
        n_cells=60, n_genes=20, n_peaks=0, n_proteins=0, n_types=2, n_batches=2, spatial_dims=0, seed=1
    )
    adata = mdata["rna"].copy()
    adata.obs = mdata.obs.loc[adata.obs_names].astype(str)
    cx.CellxPert.setup_anndata(adata, batch_key="batch")
    model = cx.CellxPert(adata, config=cx.config.preset("nano").replace(batches=False), seed=0)
    model.train(max_epochs=1, progress_bar=False)
    assert model._trained().batches == ()
    assert model._trained().network.batches is None


def test_validation_cells_of_a_label_that_training_lacks_leave_a_loss(model, cells, tmp_path):
    own = cells.copy()
    cx.CellxPert.setup_anndata(own, labels_key="cell_type")
    first = (own.obs["cell_type"] == "type_0").to_numpy()
    own.obs["part"] = np.where(first, "validation", "train")
    tuned = _copy(model, tmp_path)
    with pytest.warns(cx.errors.CellxPertWarning, match="not calibrated"):  # one label alone
        tuned.finetune(own, split_key="part", max_epochs=1, progress_bar=False)
    assert set(tuned.labels) == {"type_0", "type_1"}
    assert np.isfinite(tuned.history["validation_loss"]).all(axis=None)


def test_cells_without_labels_leave_what_labels_can_be_trusted_with(model, cells, tmp_path):
    own = cells.copy()
    cx.CellxPert.setup_anndata(own)
    tuned = _copy(model, tmp_path)
    before = tuned._trained().calibration
    tuned.finetune(own, max_epochs=1, progress_bar=False)
    assert before is not None
    assert tuned._trained().calibration is before
    assert not tuned.annotate(inplace=False)["ood"].isna().any()


def test_few_labelled_cells_are_said_to_leave_labels_without_a_calibration(model, cells, tmp_path):
    own = cells[:60].copy()
    own.obs["kind"] = np.where(np.arange(60) < 45, own.obs["cell_type"].astype(str), "Unknown")
    cx.CellxPert.setup_anndata(own, labels_key="kind")
    tuned = _copy(model, tmp_path)
    with pytest.warns(cx.errors.CellxPertWarning, match="the 2 labels are not calibrated") as told:
        tuned.finetune(own, max_epochs=1, train_size=1.0, progress_bar=False)
    assert told[0].filename == __file__
    assert tuned._trained().calibration is None


def test_without_labels_nothing_is_steered(model, cells, tmp_path):
    own = cells.copy()
    cx.CellxPert.setup_anndata(own)
    tuned = _copy(model, tmp_path)
    tuned.finetune(own, max_epochs=1, label_gradient=1.0, progress_bar=False)
    assert not tuned._trained().steered


def test_that_labels_once_steered_what_is_below_them_is_not_forgotten(model, cells, tmp_path):
    """Training cells stay known to such a network, whatever it is trained with next: validation cells alone are new to it."""
    own = cells.copy()
    cx.CellxPert.setup_anndata(own, labels_key="cell_type")
    tuned, sources = _copy(model, tmp_path), []
    assert not tuned._trained().steered
    for share in (0.0, 1.0, 0.0):
        tuned.finetune(own, max_epochs=1, train_size=0.6, label_gradient=share, progress_bar=False)
        sources.append(tuned._trained().calibration.source)
        tuned = _copy(tuned, tmp_path)  # nor by a file
    assert sources == ["out-of-fold", "validation", "validation"]
    tuned.add_adapter()
    tuned.finetune(own, adapter="default", max_epochs=1, train_size=0.6, progress_bar=False)
    tuned = _copy(tuned, tmp_path)
    assert tuned.active_adapter == "default"
    assert tuned._trained().steered
    assert tuned._trained().calibration.source == "validation"
