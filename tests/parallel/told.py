"""An observer that keeps what a run tells of."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine import hookimpl
from engine.options import Observer


@dataclass
class Told(Observer):
    """Keeps the scalars of logs and of evaluations, in their order."""

    logged: list[dict[str, float]] = field(default_factory=list)
    evaluated: list[dict[str, float]] = field(default_factory=list)

    def build(self) -> object:
        return self

    @hookimpl
    def on_log(self, scalars: dict[str, float]) -> None:
        self.logged.append(dict(scalars))

    @hookimpl
    def on_evaluate_end(self, scalars: dict[str, float]) -> None:
        self.evaluated.append(dict(scalars))
