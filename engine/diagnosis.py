"""Finding where a run stopped being finite: which step, and which layer of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import RunFailed
from engine.interfaces import Batch, LossFunction, Precision
from engine.parts import Parts
from engine.precision import widened


def require_finite(run: Parts, latched: float) -> None:
    """Raise RunFailed if updates have been masked for good, with the step and the layer that stopped being finite.

    They are found by replaying steps since the last log: the latch has kept the weights of before the bad one. That
    one is known from the number of applied updates, unless a loss scale has left others out; then all are tried.
    """
    if not latched or run.guard.skips:
        return
    updates = min(run.strategy.gather(int(run.rates.updates)))  # of the process where it began, if each masks its own
    first_bad = run.position.begun + updates
    model = run.shortcut.network if run.shortcut else run.model
    with run.strategy.evaluating(run.model):
        for position in sorted(run.recent, key=lambda position: position.step != first_bad):
            for index, batch in enumerate(run.reader.step_at(position).batches):
                run.seed(position, index)
                found = run.strategy.gather(name_culprit(model, batch, run.loss, run.precision))
                if culprit := next(filter(None, found), ""):
                    raise RunFailed(
                        f"step {position.step + 1}: {culprit}; no later step was applied (run.nonfinite=skip goes on)"
                    )
    raise RunFailed(
        f"a gradient between steps {run.recent[0].step + 1} and {run.position.step} was not finite, but not when the "
        "step was repeated; run.nonfinite=skip goes on"
    )


@torch.enable_grad()
def name_culprit(model: nn.Module, batch: Batch, loss: LossFunction, precision: Precision) -> str:
    """Return, in words, where a batch first stops being finite: data, weights, a layer, the loss, a gradient.

    Returns "" if all of it is finite.
    """
    if not _finite(batch.images) or not _finite(batch.targets):
        return "the batch itself holds values that are not finite"
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"'{name}' holds values that are not finite"
    culprits: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, list | tuple) else [output]
            if not culprits and not all(_finite(value) for value in outputs if isinstance(value, Tensor)):
                culprits.append(name)

        return hook

    # Inner modules end before the outer ones, so an outer one is named only for what it computes itself.
    handles = [
        module.register_forward_hook(watch(name or type(model).__name__)) for name, module in model.named_modules()
    ]
    try:
        with torch.compiler.set_stance("force_eager"), precision.forward():
            value = loss(widened(model(batch.images)), batch.targets)
    finally:
        for handle in handles:
            handle.remove()
    if culprits:
        return f"the output of layer '{culprits[0]}' is the first that is not finite"
    if not _finite(value):
        return "every layer's output is finite, the loss is not"
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    # Backward begins at the loss, so the last layer whose gradient is bad is where it began.
    for name, gradient in reversed(list(zip(trained, gradients, strict=True))):
        if gradient is not None and not _finite(gradient):
            return f"every output is finite, the gradient of '{name}' is not"
    return ""


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
