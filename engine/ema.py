"""A moving average of the weights, to evaluate with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.pieces import local


class WeightAverage:
    """After the n-th applied update, average = d x average + (1 - d) x weights; d = min(decay, (1 + n) / (10 + n)).

    The warm-up lets a short run forget its initial weights (as TensorFlow's ExponentialMovingAverage does).
    Floating-point buffers (BatchNorm's statistics) are averaged likewise. A masked update leaves the average as it
    is. Averages of numbers narrower than float32 are float32, where steps of 1 - d are not lost. Nothing waits for the
    device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        state = model.state_dict()
        self._names = [name for name, value in state.items() if value.is_floating_point()]
        self._weights = [local(state[name]) for name in self._names]  # these alias the model's own memory
        self._average = [_widened(weight.detach()) for weight in self._weights]
        self._share = 1 - decay

    @torch.no_grad()
    def update(self, applied: Tensor, updates: Tensor) -> None:
        """Take in the present weights unless ``applied`` (a bool scalar on the device) is False.

        updates: int64 [1] on the device, how many updates were applied, this one included.
        """
        share = (9 / (updates[0] + 10).to(torch.float64)).clamp(min=self._share)  # of the weights; 1 - d
        steps = torch._foreach_sub(self._weights, self._average)
        torch._foreach_mul_(steps, (applied * share).to(steps[0].dtype))
        torch._foreach_add_(self._average, steps)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within ``with``, the model holds the averages; its own weights come back, bit-equal, on leaving."""
        own = [weight.clone() for weight in self._weights]
        self._copy(self._weights, self._average)
        try:
            yield
        finally:
            self._copy(self._weights, own)

    def state(self) -> dict[str, Tensor]:
        """Return the averages under the model's parameter names: their own memory, to be read or written."""
        return dict(zip(self._names, self._average, strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up averages that ``state`` returned; the names must be the model's."""
        self._copy(self._average, [state[name] for name in self._names])

    @staticmethod
    @torch.no_grad()
    def _copy(to: list[Tensor], source: list[Tensor]) -> None:
        for target, value in zip(to, source, strict=True):
            target.copy_(value)


def _widened(weight: Tensor) -> Tensor:
    """Return a copy, in float32 if its type is narrower."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
