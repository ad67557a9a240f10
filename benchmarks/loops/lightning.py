"""PyTorch Lightning's loop."""

from __future__ import annotations

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import LR, MOMENTUM, Work, stage


class Module(LightningModule):
    """The work's network; logs the loss of every step unless ``bare``."""

    def __init__(self, network: nn.Module, bare: bool) -> None:
        super().__init__()
        self.network, self.bare = network, bare

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss."""
        images, targets = batch
        loss = cross_entropy(self.network(images), targets)
        if not self.bare:
            self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.SGD(self.network.parameters(), lr=LR, momentum=MOMENTUM, fused=True)


def lightning_loop(work: Work, bare: bool) -> tuple[float, nn.Module]:
    """Train with every extra switched off (``barebones``), or with what a Trainer does by default."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, feed = Module(work.fresh(), bare), work.feed()
    with stage() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", devices=1, max_steps=work.length, max_epochs=1, default_root_dir=folder, barebones=bare
        )
        trainer.fit(module, feed)
    return feed.seconds, module.network


def bare(work: Work) -> tuple[float, nn.Module]:
    """Train with Lightning at its fastest."""
    return lightning_loop(work, bare=True)


def by_default(work: Work) -> tuple[float, nn.Module]:
    """Train with Lightning's progress bar, TensorBoard logger and checkpoints, logging the loss."""
    return lightning_loop(work, bare=False)
