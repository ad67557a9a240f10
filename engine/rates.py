"""The learning rate as a device tensor, so that neither a masked step nor a captured one asks the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Rates:
    """Keeps every parameter group's ``lr`` at peak rate x factor(applied updates).

    The schedule is tabulated on the device once; a step looks its row up by the counter of applied updates,
    which lives there too. ``updates`` is that counter, int64 [1].
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float], updates: int, device: torch.device
    ) -> None:
        peaks = torch.tensor([float(group["lr"]) for group in optimizer.param_groups], dtype=torch.float64)
        factors = torch.tensor([factor(u) for u in range(updates)], dtype=torch.float64)
        table = factors[:, None] * peaks[None, :]
        # One more row for the counter's value after the last update, when no rate is needed any more.
        table = torch.cat([table, table[-1:]])
        # CUDA's fused optimisers read the rate as float32; on a CPU it keeps the precision of a Python number.
        self._table = table.to(device, torch.float64 if device.type == "cpu" else torch.float32)
        self._row = self._table[:1].clone()
        self.updates = torch.zeros(1, dtype=torch.int64, device=device)
        for group, rate in zip(optimizer.param_groups, self._row[0].unbind(), strict=True):
            group["lr"] = rate
        self.look_up()

    @property
    def first(self) -> Tensor:
        """The first group's present rate, a scalar on the device."""
        return self._row[0, 0]

    def advance(self, applied: Tensor) -> None:
        """Count an update if ``applied`` (a bool on the device) and move to its rate."""
        self.updates.add_(applied)
        self.look_up()

    def look_up(self) -> None:
        """Set the rates that belong to the counter's value."""
        torch.index_select(self._table, 0, self.updates, out=self._row)
