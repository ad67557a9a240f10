"""Means over a test split."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import nn

from engine.interfaces import Batch, LossFunction, Precision, Strategy
from engine.layers import modes_kept
from engine.marginalization import Views
from engine.metrics import Metrics
from engine.precision import widened


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: LossFunction,
    precision: Precision,
    strategy: Strategy,
    device: torch.device,
    weights: Iterable[AbstractContextManager[None]] = (),
    *,
    views: Views,
) -> dict[str, float]:
    """Return the mean "test/loss" and metrics over all samples of all processes, with the model in evaluation mode.

    weights: contexts that put other weights into the model (moving average, evaluation precision, statistics of
    BatchNorm), entered in this order. views: what a batch's outputs are the average of. Every layer comes back in the
    mode and with the weights it had.
    """
    metrics = Metrics("test", list(loss.metrics), device, strategy)
    with ExitStack() as stack:
        for context in weights:
            stack.enter_context(context)
        stack.enter_context(modes_kept(model))
        model.eval()
        stack.enter_context(views.sampling(model))
        for batch in batches:
            with precision.forward():
                outputs = widened(views.outputs(model, batch))
            metrics.add(loss(outputs, batch.targets), loss.measure(outputs, batch.targets), len(batch))
    return metrics.read()
