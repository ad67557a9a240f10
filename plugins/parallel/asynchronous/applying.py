"""What is done with what a worker has pushed: alike in the server, and where a recorded run is replayed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine import UsageError
from engine.interfaces import Precision
from engine.randomness import Key

from ..single import SingleProcess
from .rules import Push, Rules


class Applying(SingleProcess):
    """Takes up pushes as the gradients of the run's own optimiser; ``version`` counts them."""

    capturable = False

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.version = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._rate = 1.0
        self._taken = False  # whether gradients of a push are in place
        self._before: list[Tensor] = []  # the buffers before the push

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.kept = self.trained  # all of it is updated here
        self.buffers = list(model.buffers())
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the optimiser. Raises UsageError in a second stage, of which workers would not know."""
        if self.optimizer is not None:
            raise UsageError("parallel=async trains in one stage: choose another transfer, or another parallel")
        self.optimizer, self.key = optimizer, key

    @torch.no_grad()
    def take(self, push: Push) -> None:
        """Put a push in place: gradients where the optimiser looks for them, buffers where evaluations do.

        Buffers are those of the newest push: running statistics then go on along one chain of steps, as in one process.
        """
        self._before = [buffer.clone() for buffer in self.buffers]
        if self.buffers:
            torch._foreach_copy_(self.buffers, push.buffers)
        for index, (parameter, gradient) in enumerate(zip(self.trained, push.gradients, strict=True)):
            if gradient is None:
                continue
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            if self.rules.averages:  # the way that the server goes, against the sign as a gradient's
                parameter.grad.sub_(parameter).mul_(-self.rules.alpha)
            if self.rules.compensation:
                assert push.then is not None
                self._compensate(parameter, parameter.grad, push.then[index])
        self._rate = self.rules.rate(push.staleness(self.version))
        self._taken = True

    def _compensate(self, parameter: Tensor, gradient: Tensor, then: Tensor) -> None:
        """Add a first-order estimate of how the gradient changed since its weights were fetched (DC-ASGD).

        g + lambda g g (w - w_then), element by element (Zheng et al. 2017).
        """
        moved = parameter - then.to(parameter.device)
        gradient.add_(gradient * gradient * moved, alpha=self.rules.compensation)

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their global norm is at most ``largest``; return the norm before.

        In easgd workers have clipped theirs, and nothing is done here.
        """
        return self.norm(parameters) if self.rules.averages or not self._taken else super().clip(parameters, largest)

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of the gradients, of what the server moves by in easgd; 0 where there are none."""
        return super().norm(parameters) if self._taken else parameters[0].new_zeros(())

    @torch.no_grad()
    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the push, at a lower rate if it is stale; a step that is only reported changes nothing."""
        if not self._taken:
            return
        if self.rules.averages or self.rules.compensation:
            require_unrounded(precision, "parallel.rule=easgd and parallel.compensation")
        if self.rules.averages:
            for parameter in self.trained:
                if parameter.grad is not None:
                    parameter.copy_(torch.where(bad.bool(), parameter, parameter - parameter.grad))
        else:
            if self._rate != 1.0:  # the loop sets the rates anew after each update
                for group in optimizer.param_groups:
                    group["lr"].mul_(self._rate)
            precision.update(optimizer, bad)
        if self.buffers and bool(bad):
            torch._foreach_copy_(self.buffers, self._before)
        self._taken = False
        self.version += 1


def require_unrounded(precision: Precision, why: str) -> None:
    """Raise UsageError for a numeric policy that computes with other weights than those it updates."""
    if type(precision).computing is not Precision.computing:
        raise UsageError(
            f"{why}: that needs the weights themselves, and {type(precision).__name__} computes with rounded ones: "
            "choose another precision, as bfloat16"
        )
