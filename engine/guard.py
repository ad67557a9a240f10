"""What happens when a loss or a gradient is not finite: the update is masked on the device, never half applied.

policy "stop": the mask latches, so the weights keep the values they had before the bad step; the next log
reads the flag and names the layer by replaying the batch. policy "skip": the step is left out, BatchNorm's
running statistics included, and counted.

Where the loss is scaled an overflow is no fault: the precision finds its scale by overflowing now and then. Such a step
is left out and counted under either policy, also if it was the forward pass that overflowed, of which gradients and
loss tell alike. But a scale that has fallen as often as it can heals nothing, so "stop" latches after ``IN_A_ROW`` such
steps without one that was applied, and at once where the loss alone is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.interfaces import Strategy
from engine.pieces import local

IN_A_ROW = 32
"""Overflows in succession that a loss scale is given to heal: it falls from 65,536 to 1 in half as many."""


class Guard:
    """Decides on the device, each step, whether its update is applied.

    ``bad``: float32 scalar, 1.0 where this step must not be applied. ``applied``: bool scalar, its opposite.
    ``latched`` (policy "stop"): 1.0 since the first value that was not finite.
    """

    def __init__(self, model: nn.Module, policy: str, device: torch.device, scaled: bool = False) -> None:
        self.skips = policy == "skip"
        self.masks = self.skips or scaled  # whether single steps may be left out; a scaled loss overflows now and then
        self.latched = torch.zeros((), device=device)
        self.bad = torch.zeros((), device=device)
        self.applied = torch.ones((), dtype=torch.bool, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)  # overflows since a step was applied
        self._one = torch.ones((), device=device)
        self._buffers = [b for b in model.buffers() if self.masks]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def check(self, values: list[Tensor], precision_flag: Tensor | None, strategy: Strategy) -> Tensor:
        """Return ``bad``, from scalars that must be finite and the precision's own flag, agreed by all processes."""
        if self.skips:
            self.latched.zero_()
        if precision_flag is None:
            strategy.agree(_flag_non_finite(values, self.latched, self._one))
            self.bad = self.latched
            return self.bad
        overflow = strategy.agree(precision_flag)
        found = strategy.agree(_flag_non_finite(values, torch.zeros_like(self.latched), self._one))
        either = torch.maximum(found, overflow)
        self._in_a_row.add_(1).mul_(either.to(torch.int64))
        fault = torch.where(self._in_a_row >= IN_A_ROW, either, found * (1 - overflow))
        torch.maximum(self.latched, fault, out=self.latched)
        self.bad = torch.maximum(self.latched, either)
        return self.bad

    def settle(self) -> Tensor:
        """After the update: return ``applied``; put back the buffers that a skipped step changed, and count it."""
        self.applied = torch.logical_not(self.bad)  # a new one, which those who keep it may rely on
        if self.masks:
            self.skipped.add_(~self.applied)
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(torch.where(self.applied, buffer, kept))
                kept.copy_(buffer)
        return self.applied

    def telemetry(self, strategy: Strategy) -> dict[str, Tensor]:
        """Return what the log reads: how many steps were skipped, and whether the mask has latched anywhere."""
        skipped = {"train/skipped": self.skipped} if self.masks else {}
        return skipped | ({} if self.skips else {"latched": strategy.sum(self.latched)})

    def keep(self) -> None:
        """Remember the model's present buffers as good, after they were loaded from a checkpoint."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)


def _flag_non_finite(values: list[Tensor], flag: Tensor, one: Tensor) -> Tensor:
    """Set ``flag`` to 1.0 where one of ``values`` is not finite, in one launch: the kernel of torch's GradScaler.

    It also scales them, by 1, which changes nothing. Of a sharded tensor this process's part is looked at.
    """
    torch._amp_foreach_non_finite_check_and_unscale_([local(value) for value in values], flag, one)
    return flag
