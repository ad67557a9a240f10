"""Spans of training and of time, as people write them: "2 epochs", "500 steps", "never", "90s", "1h30m"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import UsageError


@dataclass(frozen=True)
class Every:
    """A rhythm: due at the end of every so many epochs, or after every so many steps, or never."""

    epochs: int = 0
    steps: int = 0

    @classmethod
    def parse(cls, text: str, option: str) -> Every:
        """Read "1 epoch", "2 epochs", "500 steps" (or "500"), or "never"; UsageError names ``option``."""
        if text.strip() == "never":
            return cls()
        match = re.fullmatch(r"\s*(\d+)\s*(epochs?|steps?)?\s*", text)
        if not match or int(match[1]) < 1:
            raise UsageError(f"{option}={text}: write '2 epochs', '500 steps' or never")
        number = int(match[1])
        return cls(epochs=number) if (match[2] or "").startswith("epoch") else cls(steps=number)

    @property
    def never(self) -> bool:
        """Whether it is due at no time at all."""
        return not self.epochs and not self.steps

    def due(self, step: int, epochs_done: int | None) -> bool:
        """Return whether it is time after ``step`` steps; ``epochs_done`` is None inside an epoch."""
        if self.epochs:
            return epochs_done is not None and epochs_done % self.epochs == 0
        return bool(self.steps) and step % self.steps == 0


def seconds(text: str, option: str) -> float:
    """Read "90s", "30m", "8h", "1h30m" or plain seconds; UsageError names ``option``."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.replace(" ", ""))
    if not match or not any(match.groups()):
        raise UsageError(f"{option}={text}: write a time such as 90s, 30m, 8h or 1h30m")
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + rest)
