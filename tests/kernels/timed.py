"""Choosing among kernels whose times are made up: what AutoChooser decides, without a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

from engine import ConvSpec, Kernels
from engine.interfaces import ConvKernel
from engine.native import NativeKernel
from engine.plugins.kernels import Auto, Native, auto

SHAPE = (4, 3, 12, 10)


class Named(NativeKernel):
    """torch's own under another name."""

    def __init__(self, name: str, error: float = 1e-6, workspace: int = 0, refused: Sequence[str] = ()) -> None:
        self.name, self.error = name, error
        self._workspace, self._refused = workspace, refused

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        return "it has no such direction" if direction in self._refused else None

    def workspace(self, spec: ConvSpec, direction: str) -> int:
        return self._workspace


def choice(*kernels: ConvKernel) -> type[Kernels]:
    """Return a choice of ``kernels`` with these candidates, as a plugin would register it."""

    @dataclass
    class Third(Kernels):
        def candidates(self) -> Sequence[ConvKernel]:
            return kernels

    return Third


Times = Mapping[str, float] | Callable[[ConvSpec, str, str], float]


@dataclass
class Clock:
    """Stands in for ``measure``: gives the times it is told, and keeps what was measured, and what with a bias."""

    times: Times
    asked: list[tuple[ConvSpec, str, list[str], bool]] = field(default_factory=list)
    biased: list[tuple[ConvSpec, str]] = field(default_factory=list)

    def __call__(
        self,
        spec: ConvSpec,
        direction: str,
        kernels: Sequence[ConvKernel],
        prepare: bool = False,
        bias: bool = False,
        failed: Any = None,
    ) -> dict[str, float]:
        names = [kernel.name for kernel in kernels]
        self.asked.append((spec, direction, names, prepare))
        self.biased += [(spec, direction)] * bias
        times = self.times
        return {name: times(spec, direction, name) if callable(times) else times[name] for name in names}

    def names(self) -> set[str]:
        """Return all kernels that took part."""
        return {name for _, _, names, _ in self.asked for name in names}


def chooser_of(
    monkeypatch: pytest.MonkeyPatch, times: Times, *kernels: ConvKernel, **options: Any
) -> tuple[auto.AutoChooser, Clock]:
    """Return kernels=auto among torch's own and these kernels, and its clock; nothing is remembered by default."""
    clock = Clock(times)
    monkeypatch.setattr(auto, "measure", clock)
    installed = {"native": Native, "third": choice(*kernels), "auto": Auto}
    chooser = Auto(**{"cache": "none", **options}).build(installed)
    assert isinstance(chooser, auto.AutoChooser)
    return chooser, clock


def network() -> nn.Module:
    """Return two layers of one shape and one of another."""
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1))
