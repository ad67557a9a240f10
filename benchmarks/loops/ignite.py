"""PyTorch Ignite's loop."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import ProgressBar, TensorboardLogger
from ignite.metrics import RunningAverage
from torch import nn
from torch.nn.functional import cross_entropy

from . import LR, MOMENTUM, Work, stage


def _trainer(network: nn.Module) -> Engine:
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    return create_supervised_trainer(network, optimizer, cross_entropy)


def bare(work: Work) -> tuple[float, nn.Module]:
    """Train with a supervised trainer and no handler."""
    network, feed = work.fresh(), work.feed()
    _trainer(network).run(feed, max_epochs=1, epoch_length=work.length)
    return feed.seconds, network


def with_handlers(work: Work) -> tuple[float, nn.Module]:
    """Train with a running loss, a progress bar, and TensorBoard every 50 steps."""
    network, feed = work.fresh(), work.feed()
    trainer = _trainer(network)
    with stage() as folder:
        RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
        ProgressBar().attach(trainer, ["loss"])
        with TensorboardLogger(log_dir=folder) as logger:
            logger.attach_output_handler(
                trainer, Events.ITERATION_COMPLETED(every=min(50, work.steps)), tag="train", metric_names=["loss"]
            )
            trainer.run(feed, max_epochs=1, epoch_length=work.length)
    return feed.seconds, network
