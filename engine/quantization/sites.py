"""The places of a network at which numbers are rounded, and what is counted there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from engine.ops.rounding import COUNTS
from engine.quantization.quantizers import Draw, Quantizer, Role
from engine.randomness import Key

MOST_DB = 200.0
"""What is told as the ratio of signal to noise where nothing at all was lost."""


class Moment(NamedTuple):
    """When something is rounded.

    step: int64 [1] on the device. first: the place of the batch's first sample among those of the step. training:
    whether gradients are being computed; only then is anything random, or counted. watched: whether noise is measured.
    samples: how many the batch has; 0: one a row.
    """

    step: Tensor | int = 0
    first: int = 0
    training: bool = False
    watched: bool = False
    samples: int = 0


@dataclass(eq=False)
class Site:
    """One role of one parameter or layer, and what rounds it.

    counts: int64 [5], as ``engine.ops.rounding.COUNTS``. power: float64 [2], summed squares of signal and of noise.
    """

    role: Role
    name: str
    quantizer: Quantizer
    counts: Tensor
    power: Tensor
    key: int = field(default=0)

    def __call__(self, x: Tensor, moment: Moment, out: Tensor | None = None) -> Tensor:
        """Return a parameter, or something of its shape, rounded: alike in all processes."""
        return self._round(x, Draw(self.key, moment.step, 0, moment.training), moment, out)

    def of_samples(self, x: Tensor, moment: Moment, number: int = 0) -> Tensor:
        """Return a batch rounded; what is drawn for a sample depends on its place in the step alone.

        Elements lie in the order of samples: [samples, ...], or [samples x anything, ...]. number: how many batches
        this site has rounded before in the same pass, each by draws of its own. What has fewer elements than samples
        has no place for each: then all batches of a step draw alike.
        """
        samples = moment.samples or (len(x) if x.ndim else 1)
        offset = moment.first * (x.numel() // samples) if samples else 0
        key = Key(self.key).at(number).value if number else self.key
        return self._round(x, Draw(key, moment.step, offset, moment.training), moment, None)

    def _round(self, x: Tensor, draw: Draw, moment: Moment, out: Tensor | None) -> Tensor:
        if not moment.training:
            return self.quantizer(x, draw, out)
        if not moment.watched:
            return self.quantizer(x, draw, out, self.counts)
        rounded = self.quantizer(x, draw, None, self.counts)  # apart from x, which is still needed
        norms = torch.stack([torch.linalg.vector_norm(x), torch.linalg.vector_norm(rounded - x)])
        self.power += norms.double().square()
        return rounded if out is None else out.copy_(rounded)


class Sites:
    """The sites of a model in the order in which they were made.

    Site i has row i of two tables, so that they are read together: ``counts``, int64 [sites, 5], from the start of
    the run, and ``power``, float64 [sites, 2], since the last telemetry.
    """

    def __init__(self) -> None:
        self._sites: dict[tuple[Role, str], Site] = {}
        self._make_tables(torch.device("cpu"))

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)

    def get(self, role: Role, name: str) -> Site | None:
        """Return the site of a role, or None if there is none."""
        return self._sites.get((role, name))

    def add(self, role: Role, name: str, quantizer: Quantizer) -> Site:
        """Return a new site; it may round once ``place`` has been called."""
        nothing = torch.empty(0)
        site = self._sites[role, name] = Site(role, name, quantizer, nothing, nothing)
        return site

    def place(self, device: torch.device) -> None:
        """Give all sites rows of tables on a device; what was counted is lost, unless nothing changes."""
        if (len(self.counts), self.counts.device) != (len(self), device):
            self._make_tables(device)

    def telemetry(self) -> dict[str, Tensor]:
        """Return, by role, since the last time: shares saturated and rounded to zero, and the noise of watched steps.

        The ratio of signal to noise is in dB, ``MOST_DB`` where there is no noise and -``MOST_DB`` where it overflowed.
        """
        counts = self.counts.new_zeros(len(self._roles), len(COUNTS))
        counts = counts.index_add(0, self._rows, self.counts - self._told).double()
        power = self.power.new_zeros(len(self._roles), 2).index_add(0, self._rows, self.power)
        self._told.copy_(self.counts)
        self.power.zero_()
        shares = counts / counts[:, :1].clamp(min=1)
        ratios = (10 * torch.log10(power[:, 0] / power[:, 1])).nan_to_num(nan=-MOST_DB)
        ratios = torch.where(power[:, 1] == 0, MOST_DB, ratios).clamp(-MOST_DB, MOST_DB)
        scalars = {}
        for row, role in enumerate(self._roles):
            scalars[f"precision/saturated/{role}"] = shares[row, COUNTS.index("saturated")]
            scalars[f"precision/zeroed/{role}"] = shares[row, COUNTS.index("zeroed")]
            scalars[f"precision/sqnr_db/{role}"] = ratios[row]
        return scalars

    def _make_tables(self, device: torch.device) -> None:
        self.counts = torch.zeros(len(self), len(COUNTS), dtype=torch.int64, device=device)
        self.power = torch.zeros(len(self), 2, dtype=torch.float64, device=device)
        self._told = self.counts.clone()
        self._roles = [role for role in Role if any(site.role == role for site in self)]
        self._rows = torch.tensor([self._roles.index(site.role) for site in self], dtype=torch.int64, device=device)
        for row, site in enumerate(self):
            site.counts, site.power = self.counts[row], self.power[row]
