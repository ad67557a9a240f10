"""What ``kernels=auto`` measured, kept on disk for the next run on the same machine with the same versions."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine import __version__
from engine.folder import write_whole
from engine.huge_pages import VARIABLE
from engine.interfaces import ConvSpec
from engine.ops import build_facts, instruction_set

FORMAT = 1


class Memory:
    """Milliseconds by shape, direction and kernel; a file for each machine, number of threads and set of versions.

    folder: "" for the user's cache folder, "none" to remember nothing. A file that cannot be read is told of on
    stderr and written anew; one that cannot be written is told of, and training goes on.
    """

    def __init__(self, folder: str) -> None:
        self._path = _folder(folder) / f"kernels-{_digest(conditions())}.json" if folder != "none" else None
        self._known = self._read()
        self._changed = False

    def recall(
        self, spec: ConvSpec, direction: str, training: bool, kernels: Sequence[str]
    ) -> Mapping[str, float] | None:
        """Return what was measured, if it was for exactly these kernels."""
        times = self._known.get(_key(spec, direction, training))
        return times if times is not None and set(times) == set(kernels) else None

    def note(self, spec: ConvSpec, direction: str, training: bool, times: Mapping[str, float]) -> None:
        """Take down a measurement, for ``keep``."""
        self._known[_key(spec, direction, training)] = {name: round(value, 4) for name, value in times.items()}
        self._changed = True

    def keep(self) -> None:
        """Write what is new, beside what other processes have written meanwhile."""
        if self._path is None or not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            entries = self._read() | self._known
            write_whole(self._path, json.dumps({"format": FORMAT, "conditions": conditions(), "entries": entries}))
        except OSError as error:
            _tell(f"{self._path} cannot be written ({error.strerror}): the next run measures again")
        self._changed = False

    def _read(self) -> dict[str, dict[str, float]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["conditions"] != conditions():
                raise ValueError("it is of another format or machine")
            return {
                str(key): {str(name): _positive(value) for name, value in times.items()}
                for key, times in content["entries"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _tell(f"{self._path} is ignored and will be written anew ({type(error).__name__}: {error})")
            return {}


def conditions() -> dict[str, Any]:
    """Return what a measurement depends on beside shapes and kernels, as JSON values."""
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "engine": __version__,
        "build": build_facts()["compiler"],
        "huge_pages": os.environ.get(VARIABLE, "0"),
    }


def _key(spec: ConvSpec, direction: str, training: bool) -> str:
    kind = str(spec.dtype).removeprefix("torch.")
    mode = "training" if training else "evaluation"
    return f"{direction} {'x'.join(map(str, spec.sizes))} {kind} {spec.device} {mode}"


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _folder(given: str) -> Path:
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conv-engine"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))}
    return " ".join(sorted(names)) or "unknown"


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{value!r} is no time")
    return number


def _tell(text: str) -> None:
    print(f"engine: kernels.cache: {text}", file=sys.stderr)
