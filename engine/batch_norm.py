"""Statistics of batch normalisation, estimated anew for an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.errors import UsageError
from engine.interfaces import Batch, Precision, Strategy
from engine.layers import modes_kept
from engine.loader import Loader, Position
from engine.options import Options


def build_statistics(
    options: Options, model: nn.Module, precision: Precision, strategy: Strategy, loader: Callable[[], Loader]
) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Return what gives a model, within a context, BatchNorm statistics for an evaluation; its own by default.

    Raises UsageError if some are wanted and the model has none.
    """
    count = options.evaluate.batch_norm
    if count == 0:
        return lambda model: nullcontext()
    if not any(_has_statistics(module) for module in model.modules()):
        raise UsageError(
            f"evaluate.batch_norm={count}: the model has no BatchNorm layer that keeps running statistics; leave it at "
            "0"
        )
    return lambda model: reestimated(model, first_batches(loader(), count), precision, strategy)


def first_batches(loader: Loader, count: int) -> Iterator[Batch]:
    """Yield the first ``count`` training batches of the run, this process's share, augmented as they were for training.

    They are made one at a time, when asked for, and do not move the loader.
    """
    return islice(_from_the_beginning(loader), count)


def _from_the_beginning(loader: Loader) -> Iterator[Batch]:
    position = Position()
    while True:
        step = loader.step_at(position)
        yield from step.batches
        position = step.end


@contextmanager
@torch.no_grad()
def reestimated(model: nn.Module, batches: Iterable[Batch], precision: Precision, strategy: Strategy) -> Iterator[None]:
    """Within ``with``, running means and variances are plain averages over ``batches``, over those of all processes.

    Of each batch's mean and unbiased variance, every batch counting the same, as torch.optim.swa_utils.update_bn takes
    them (Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2); computed with the weights that
    the model has now. The BatchNorm layers that are in training mode take part; all other layers are in evaluation
    mode meanwhile, so that none draws. Afterwards the model has its own statistics back, bit for bit, and every layer
    its mode.
    """
    layers = [module for module in model.modules() if _has_statistics(module) and module.training]
    statistics = [t for layer in layers for t in (layer.running_mean, layer.running_var) if t is not None]
    counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    own = [buffer.clone() for buffer in (*statistics, *counts)]
    try:
        _replace(statistics, _average(model, layers, statistics, batches, precision, strategy))
        yield
    finally:
        _replace([*statistics, *counts], own)


def _average(
    model: nn.Module,
    layers: list[_BatchNorm],
    statistics: list[Tensor],
    batches: Iterable[Batch],
    precision: Precision,
    strategy: Strategy,
) -> list[Tensor]:
    sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in statistics]
    momenta = [layer.momentum for layer in layers]
    count = 0
    with modes_kept(model):
        model.eval()
        try:
            for layer in layers:
                layer.reset_running_stats()  # a NaN that is there would stay, whatever the momentum
                layer.training, layer.momentum = True, 1.0  # the statistics then are those of the last batch
            for batch in batches:
                with precision.forward():
                    model(batch.images)
                count += 1
                for total, tensor in zip(sums, statistics, strict=True):
                    total += tensor
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    of_all = strategy.sum(torch.tensor(float(count), dtype=torch.float64))
    return [strategy.sum(total) / of_all.to(total.device) for total in sums]


def _replace(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _has_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
