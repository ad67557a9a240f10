"""What happens when a loss or a gradient is not finite: the update is masked on the device, never half applied.

policy "stop": the mask latches, so the weights keep the values they had before the bad step; the next log
reads the flag and names the layer by replaying the batch. policy "skip": the step is left out, BatchNorm's
running statistics included, and counted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.interfaces import Strategy


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
        self._one = torch.ones((), device=device)
        self._buffers = [b for b in model.buffers() if self.masks]
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
        if self.masks:
            self.skipped.add_(~self.applied)
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(torch.where(self.applied, buffer, kept))
                kept.copy_(buffer)
        return self.applied

    def telemetry(self) -> dict[str, Tensor]:
        """Return what the log reads: how many steps were skipped, and whether the mask has latched."""
        skipped = {"train/skipped": self.skipped} if self.masks else {}
        return skipped | ({} if self.skips else {"latched": self.latched})

    def keep(self) -> None:
        """Remember the model's present buffers as good, after they were loaded from a checkpoint."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)
