"""The LightningModule: what happens in a step.

Shape suffixes: B cells, C labels, D width, W features and [CLS].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from cellxpert.batch import IGNORE, Batch, Output
from cellxpert.config import TrainingConfig
from cellxpert.errors import TrainingDivergedError
from cellxpert.nn.heads import BatchAdversary
from cellxpert.nn.network import Network
from cellxpert.training.objectives import LabelObjective, total_loss
from cellxpert.training.optimizers import build_optimizer
from cellxpert.training.views import views

__all__ = ["TrainingPlan"]


class TrainingPlan(pl.LightningModule):
    """Training and validation steps of a network.

    Parameters
    ----------
    network
        The network to train, in place.
    config
        Objectives' weights and optimiser settings.
    labels
        How labels count.
    n_steps
        Optimiser steps of the whole run, which the learning-rate schedule spans.
    seed
        Seed of dropout and router noise. Every step is seeded from (seed, step), so that a resumed run repeats
        what an uninterrupted one draws.
    """

    def __init__(
        self, network: Network, config: TrainingConfig, *, labels: LabelObjective, n_steps: int, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.smoothing = labels.smoothing
        for name in ("weight_C", "margin_C", "allowed_CC"):  # buffers move with the network
            self.register_buffer(name, getattr(labels, name), persistent=False)
        self.n_steps, self.seed = n_steps, seed
        self.adversary = None
        if config.adversary_weight > 0 and network.batches is not None:
            generator = torch.Generator().manual_seed(seed)
            n_batches = network.batches.tilt.num_embeddings
            self.adversary = BatchAdversary(network.config.width, n_batches, generator=generator)

    @property
    def labels(self) -> LabelObjective:
        """How labels count, on the network's device."""
        return LabelObjective(
            weight_C=self.weight_C, margin_C=self.margin_C, allowed_CC=self.allowed_CC, smoothing=self.smoothing
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        step_seed = np.random.SeedSequence([self.seed, self.global_step, self.global_rank]).generate_state(1)[0]
        torch.manual_seed(int(step_seed))  # inside the fork that `fit` opens: the caller's state is restored
        loss, terms = total_loss(
            self._output(batch, seed=int(step_seed)), batch, config=self.config, labels=self.labels
        )
        if not bool(torch.isfinite(loss)):
            rows = [] if batch.row_B is None else batch.row_B[:5].tolist()
            raise TrainingDivergedError(
                f"epoch {self.current_epoch}, step {self.global_step}",
                found=f"loss is {loss.item()}; rows {rows} are in the batch",
                fix="lower `learning_rate`; the model keeps the weights of the last whole epoch",
            )
        self._log(batch, loss, terms, stage="train")
        return loss

    def _output(self, batch: Batch, *, seed: int) -> Output:
        """What the network says of a batch, and of its cells by single modalities and of their batches where that is an objective."""
        output = self.network(batch)
        if self.config.contrast_weight > 0:
            modality_W, generator = self.network.embedding.feature_modality, torch.Generator().manual_seed(seed)
            pair = views(batch, modality_W, generator=generator)
            if pair is not None:
                one_BD, other_BD = (self.network.encode(view).cell_BD for view in pair)
                output = replace(output, alone=(one_BD, other_BD))
        if self.adversary is not None and self.training:  # what it says is no measure of the network
            output = replace(output, batch_BG=self.adversary(output.cell_BD))
        return output

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses of one held-out batch, and the accuracy of its labels."""
        output = self._output(batch, seed=batch_idx)
        loss, terms = total_loss(output, batch, config=self.config, labels=self.labels)
        if output.label_BC is not None and batch.label_B is not None and bool((batch.label_B != IGNORE).any()):
            known_B = batch.label_B != IGNORE
            terms["accuracy"] = (output.label_BC.argmax(-1) == batch.label_B)[known_B].float().mean()
        self._log(batch, loss, terms, stage="validation")

    def _log(self, batch: Batch, loss: Tensor, terms: dict[str, Tensor], *, stage: str) -> None:
        values = {f"{stage}_loss": loss.detach()} | {f"{stage}_{name}": value for name, value in terms.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=batch.n_cells, sync_dist=True)
        if stage == "train":
            self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=batch.n_cells)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and its schedule, by step."""
        optimizer, scheduler = build_optimizer(self, self.config, n_steps=self.n_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
