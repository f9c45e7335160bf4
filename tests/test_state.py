"""What a model says of itself, trained or not."""

from __future__ import annotations

import pytest
import torch

import cellxpert as cx
from cellxpert.errors import DeviceError, NotTrainedError


def test_an_untrained_model_knows_what_it_reads_and_no_more(pbmc):
    cx.CellxPert.setup_mudata(pbmc, rna="rna", labels_key="bulk_labels")
    model = cx.CellxPert(pbmc, preset="nano")
    assert not model.is_trained
    assert "bulk_labels" in model.view_setup()
    assert "not trained" in repr(model)
    for use in (lambda: model.history, lambda: model.labels, lambda: model.save("nowhere")):
        with pytest.raises(NotTrainedError):
            use()


def test_a_trained_model_knows_its_history_and_labels(trained):
    assert trained.is_trained
    assert len(trained.history["validation_loss"]) == 2
    assert len(trained.labels) == 6
    assert "labels: 6" in repr(trained)
    assert trained.device == "cpu"
    for odd in ("xpu", "cpu:1", "cpu:x", "", "cuda:"):
        with pytest.raises(DeviceError):
            trained.to_device(odd)
    with pytest.raises(DeviceError):
        trained.to_device("mps" if torch.cuda.is_available() else "cuda:77")  # what this machine lacks
    assert trained.device == "cpu"


@pytest.mark.parametrize("named", ["auto", "cpu:0", "cpu"])
def test_the_device_is_one_that_torch_knows(trained, named):
    trained.to_device(named)
    assert next(trained._state.network.parameters()).device.type == torch.device(trained.device).type
    trained.to_device("cpu")
