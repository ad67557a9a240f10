"""How large gradients get, parameter by parameter: where a network explodes or falls asleep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import Run, hookimpl

NAME = "gradient_norms.jsonl"


class LargestNorms:
    """Writes {"step": 50, "norms": {"conv1.weight": 0.3, ...}}, the largest since the last line, at every log.

    on_backward_end is called every step, so it only computes, on the device; the numbers are read in on_log,
    where the host waits for the device anyway. What is not written yet goes into checkpoints, so a resumed run
    writes the same lines as one that was never interrupted.
    """

    def __init__(self) -> None:
        self.path = Path()
        self.largest: Tensor | None = None  # [parameters], on the device
        self.saved: list[float] | None = None

    @hookimpl
    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        """Take up what on_save_checkpoint put away."""
        self.saved = state.get("gradient_norms")

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Begin the file; a resumed run drops the lines after its checkpoint, which it will write again."""
        self.path = run.out / NAME
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= run.position.step]
        self.path.write_text("".join(f"{line}\n" for line in kept))
        if self.saved is not None:
            self.largest = torch.tensor(self.saved, dtype=torch.float64, device=run.device)

    @hookimpl
    def on_backward_end(self, run: Run) -> None:
        """Take in the step's norms."""
        norms = torch.stack([norm(parameter) for parameter in run.parameters])
        self.largest = norms if self.largest is None else torch.maximum(self.largest, norms)

    @hookimpl
    def on_log(self, run: Run) -> None:
        """Write a line and begin anew."""
        assert self.largest is not None, "a step comes before its log"
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        norms = dict(zip((names[p] for p in run.parameters), self.largest.tolist(), strict=True))
        with self.path.open("a") as file:
            file.write(json.dumps({"step": run.position.step, "norms": norms}) + "\n")
        self.largest = None

    @hookimpl
    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        """Put away what is not written yet."""
        if self.largest is not None:
            state["gradient_norms"] = self.largest.tolist()


def norm(parameter: Tensor) -> Tensor:
    """Return the L2 norm of a parameter's gradient as float64, 0 where this step gave it none."""
    if parameter.grad is None:
        return torch.zeros((), dtype=torch.float64, device=parameter.device)
    return parameter.grad.norm().double()
