"""What a job is given: the composed options and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.options import Options
from engine.registry import Registry


@dataclass(frozen=True)
class Origin:
    """Where one value of the composed configuration comes from."""

    key: str
    value: str
    source: str  # "default (plugin data)", "preset conf/experiment/mnist.yaml", "override"


@dataclass(frozen=True)
class Session:
    """One command, ready to be carried out."""

    options: Options
    registry: Registry
    out: Path
    overrides: Sequence[str] = ()
    choices: dict[str, Any] = field(default_factory=dict)  # group -> chosen name, or list of names
    config: str = ""  # the composed configuration as YAML, for the record
    origins: Callable[[], Sequence[Origin]] = field(default=lambda: ())
    sweep: bool = False  # one job of several: progress is told in plain lines
