"""The contract of numeric policies: in which numbers a model computes, and how an update is made of gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from engine.randomness import Key

if TYPE_CHECKING:
    from engine.loader import Position


class Precision(Protocol):
    """The numeric policy; the defaults compute in ``dtype`` throughout.

    Once a stage the loop calls ``convert`` and then ``prepare``; in each step ``computing`` around all that leads to
    gradients, ``forward`` around each forward pass therein, and after it ``unscale`` and ``update``. A policy that
    rounds subclasses ``engine.quantization.RoundedPrecision``, which asks it by role what is rounded to what.
    """

    dtype: torch.dtype
    capturable: bool = False
    """Whether a CUDA graph may hold a whole step, as a Strategy's; watched steps have a graph of their own."""

    calibration: int = 0
    """How many steps at a run's begin only look for something, such as ranges; their weights are not kept."""
    calibrating: bool = False
    """Whether the run is in those: then no evaluation counts as the best, and no average of weights is kept."""

    remark: str = ""
    """A few words on how the converted model computes here, such as "emulated", beside the policy's name. Optional."""

    sum_over_processes: Callable[[Tensor], Tensor] = staticmethod(lambda values: values)
    """Returns the sum of a tensor over all processes, the same in each: set by the engine before ``prepare``."""
    leads: bool = True
    """Whether this is the one process that goes on with sums over all of them that a checkpoint holds: set likewise."""

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model in this policy's numbers, with the same parameter names; it may be converted already.

        Raises UsageError, naming it, for a layer that the policy cannot handle.
        """
        return model.to(self.dtype)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up what the policy needs of a converted model that is about to be trained; ``key`` is for its draws.

        Processes have the same key. Default: nothing.
        """
        return None

    def computing(self, position: Position, watched: bool) -> AbstractContextManager[Any]:
        """Return the context in which the gradients of the step at ``position`` are computed.

        On leaving it parameters are what the optimiser is to update. watched: telemetry is read after this step, so
        numbers may be taken that are too dear for every step.
        """
        return nullcontext()

    def forward(self, samples: Tensor | None = None) -> AbstractContextManager[Any]:
        """Return the context of a forward pass; ``samples`` as in a Batch where it is one of training, else None."""
        return nullcontext()

    def scale(self) -> Tensor | None:
        """Return the loss scale, a scalar on the device, or None for 1."""
        return None

    def unscale(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Divide gradients by the scale; return 1.0 where one is not finite, else 0.0; None: not checked."""
        return None

    def update(self, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the optimiser's step unless ``bad`` is 1.0; see ``engine.masking`` for the default way."""
        from engine.masking import masked_step

        masked_step(optimizer, bad)

    def evaluation_weights(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the model holds the weights to evaluate with."""
        return nullcontext()

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model, trained in these numbers, as other programs are to see it. Default: converted."""
        return self.convert(model)

    def telemetry(self) -> dict[str, Tensor]:
        """Return scalars for the log, by tag, still on the device. Default: none."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return what a resume needs. Default: nothing."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned.

        That is after ``prepare`` in training, after ``convert`` alone in an evaluation, and after ``export`` alone for
        that. An evaluation of weights that come without a checkpoint does not call it.
        """
        return None


def widened(outputs: Any) -> Any:
    """Return a model's outputs, a tensor or several, in floats that are not narrower than float32, for a loss."""
    if isinstance(outputs, list | tuple):
        return [widened(each) for each in outputs]
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32)) if outputs.is_floating_point() else outputs
