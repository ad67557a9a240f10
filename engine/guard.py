"""What happens when a loss or a gradient is not finite: the update is masked on the device, never half applied.

policy "stop": the mask latches, so the weights keep the values they had before the bad step; the next log
reads the flag and names the layer by replaying the batch. policy "skip": the step is left out, BatchNorm's
running statistics included, and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import RunFailed
from engine.interfaces import Batch, LossFunction, Precision, Strategy

if TYPE_CHECKING:
    from engine.parts import Parts


class Guard:
    """Decides on the device, each step, whether its update is applied.

    ``bad``: float32 scalar, 1.0 where this step must not be applied. ``applied``: bool scalar, its opposite.
    ``latched`` (policy "stop"): 1.0 since the first value that was not finite.
    """

    def __init__(self, model: nn.Module, policy: str, device: torch.device) -> None:
        self.skips = policy == "skip"
        self.latched = torch.zeros((), device=device)
        self.bad = torch.zeros((), device=device)
        self.applied = torch.ones((), dtype=torch.bool, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._one = torch.ones((), device=device)
        self._buffers = [b for b in model.buffers() if self.skips]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def check(self, values: list[Tensor], precision_flag: Tensor | None, strategy: Strategy) -> Tensor:
        """Return ``bad``, from scalars that must be finite and the precision's own flag, agreed by all processes."""
        if self.skips:
            self.latched.zero_()
        # The kernel that torch's own gradient scaler uses: one launch sets the flag; scaling by 1 changes nothing.
        torch._amp_foreach_non_finite_check_and_unscale_(values, self.latched, self._one)
        strategy.agree(self.latched)
        if precision_flag is None:
            self.bad = self.latched
        else:  # a scaled loss overflows now and then: such a step is left out, under either policy
            self.bad = torch.maximum(self.latched, strategy.agree(precision_flag))
        return self.bad

    def settle(self) -> Tensor:
        """After the update: return ``applied``; put back the buffers that a skipped step changed, and count it."""
        self.applied = torch.logical_not(self.bad)  # a new one, which those who keep it may rely on
        if self.skips:
            self.skipped.add_(~self.applied)
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(torch.where(self.applied, buffer, kept))
                kept.copy_(buffer)
        return self.applied

    def telemetry(self) -> dict[str, Tensor]:
        """Return what the log reads: how many steps were skipped, or whether the mask has latched."""
        return {"train/skipped": self.skipped} if self.skips else {"latched": self.latched}

    def keep(self) -> None:
        """Remember the model's present buffers as good, after they were loaded from a checkpoint."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)


def require_finite(run: Parts, latched: float) -> None:
    """Raise RunFailed if updates have been masked for good, with the step and the layer that stopped being finite.

    They are found by replaying the steps since the last log: the latch has kept the weights of before.
    """
    if not latched or run.guard.skips:
        return
    for position in run.recent:
        for index, batch in enumerate(run.loader.step_at(position).batches):
            run.seed(position, index)
            if culprit := name_culprit(run.model, batch, run.loss, run.precision):
                raise RunFailed(
                    f"step {position.step + 1}: {culprit}; no later step was applied (run.nonfinite=skip goes on)"
                )
    raise RunFailed(
        f"a gradient between steps {run.recent[0].step + 1} and {run.position.step} was not finite: lower optim.lr, or "
        "set run.clip=1"
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
            value = loss(model(batch.images), batch.targets)
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
