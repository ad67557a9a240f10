"""A loss scale that finds its own size, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Growth:
    """How a loss scale changes; names, and values by default, are those of ``torch.amp.GradScaler``.

    minimum: the scale never falls below it. A scale below 1 would only add to what is lost at the small end.
    """

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    minimum: float = 1.0


class LossScale:
    """Multiplies a loss so that small gradients do not become zero; falls at an overflow, rises when there is none.

    Micikevicius et al., "Mixed precision training", ICLR 2018. By the kernels that torch's GradScaler calls, without
    its questions to the device. value: float32 scalar. tracker: int32 scalar, successful steps since the last change.
    """

    def __init__(self, growth: Growth, device: torch.device) -> None:
        self._growth = growth
        self.value = torch.full((), growth.init_scale, dtype=torch.float32, device=device)
        self.tracker = torch.zeros((), dtype=torch.int32, device=device)

    def unscale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Divide gradients, in place; return 1.0 where one is not finite, else 0.0: a scalar on the device."""
        found = torch.zeros((), device=self.value.device)
        if gradients:
            inverse = self.value.double().reciprocal().float()  # rounded once, as GradScaler's
            torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), found, inverse)
        return found

    def update(self, bad: Tensor) -> None:
        """After a step: fall if ``bad`` is 1.0, else count it, and rise once enough have been counted."""
        growth = self._growth
        torch._amp_update_scale_(
            self.value, self.tracker, bad, growth.growth_factor, growth.backoff_factor, growth.growth_interval
        )
        self.value.clamp_(min=growth.minimum)

    def state(self) -> dict[str, Tensor]:
        """Return both numbers."""
        return {"loss_scale": self.value, "growth_tracker": self.tracker}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        self.value.copy_(state["loss_scale"])
        self.tracker.copy_(state["growth_tracker"])
