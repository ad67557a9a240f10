"""What ``kernels=auto`` measured, kept on disk for the next run on the same machine with the same versions."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from engine import UsageError, __version__, kept_memory
from engine.folder import write_whole
from engine.huge_pages import VARIABLE
from engine.interfaces import ConvKernel, ConvSpec
from engine.ops import build_facts, instruction_set

FORMAT = 1


class Memory:
    """Milliseconds by shape, direction and kernel; a file for each machine, number of threads and set of versions.

    All are of arrays in NHWC order, which is what a model with one of these kernels has: no entry says its layout.

    folder: "" for the user's cache folder, "none" to remember nothing. plugins: the versions of those that supply
    kernels. Raises UsageError for a folder that was given and cannot be used; where the user's own cannot be used that
    is told of on stderr and nothing is remembered. A file that cannot be read is told of and written anew; one that
    cannot be written is told of, and training goes on.
    """

    def __init__(self, folder: str, plugins: Mapping[str, str] = MappingProxyType({})) -> None:
        self._conditions = conditions() | {"plugins": dict(plugins)}
        place = None if folder == "none" else _folder(folder)
        self._path = place / f"kernels-{_digest(self._conditions)}.json" if place else None
        self._known = self._read()
        self._changed = False

    def recall(
        self, spec: ConvSpec, direction: str, training: bool, kernels: Sequence[str], bias: bool = False
    ) -> Mapping[str, float] | None:
        """Return what was measured, if it was for exactly these kernels."""
        times = self._known.get(_key(spec, direction, training, bias))
        return times if times is not None and set(times) == set(kernels) else None

    def note(
        self, spec: ConvSpec, direction: str, training: bool, times: Mapping[str, float], bias: bool = False
    ) -> None:
        """Take down a measurement, for ``keep``."""
        self._known[_key(spec, direction, training, bias)] = {name: round(value, 4) for name, value in times.items()}
        self._changed = True

    def keep(self) -> None:
        """Write what is new, beside what other processes have written meanwhile."""
        if self._path is None or not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            entries = self._read() | self._known
            content = {"format": FORMAT, "conditions": self._conditions, "entries": entries}
            write_whole(self._path, json.dumps(content))
        except OSError as error:
            _tell(f"{self._path} cannot be written ({error.strerror}): the next run measures again")
        self._changed = False

    def _read(self) -> dict[str, dict[str, float]]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["conditions"] != self._conditions:
                raise ValueError("it is of another format or machine")
            return {
                str(key): {str(name): _positive(value) for name, value in times.items()}
                for key, times in content["entries"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _tell(f"{self._path} is ignored and will be written anew ({type(error).__name__}: {error})")
            return {}


def conditions() -> dict[str, Any]:
    """Return what a measurement depends on beside shapes and kernels, as JSON values."""
    return {
        "processor": _processor(),
        **(_gpu() if torch.cuda.is_available() else {"gpu": "none"}),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "engine": __version__,
        "build": build_facts()["compiler"],
        "extension": _extension("engine._cpu"),
        "huge_pages": os.environ.get(VARIABLE, "0"),
        "kept_memory": kept_memory.kept(),
    }


def _gpu() -> dict[str, Any]:
    """Return what measurements on the current GPU depend on; torch's own is measured with the settings of the run."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic,
        "tf32": tf32(),
        "cuda_extension": _extension("engine._cuda"),
    }


def tf32() -> bool:
    """Return whether torch's own convolutions of float32 round to TF32 on GPUs that have it: faster, less exact."""
    # Not allow_tf32, which cannot be read where the precision was set for convolutions alone.
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def versions(kernels: Iterable[ConvKernel]) -> dict[str, str]:
    """Return the distribution and version of every package that supplies one, besides the engine; or "unknown"."""
    packages = {type(kernel).__module__.partition(".")[0] for kernel in kernels} - {"engine"}
    distributions = metadata.packages_distributions() if packages else {}  # reads all that is installed
    return {
        package: ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(distributions.get(package, ()))))
        or "unknown"
        for package in sorted(packages)
    }


def _key(spec: ConvSpec, direction: str, training: bool, bias: bool) -> str:
    kind = str(spec.dtype).removeprefix("torch.")
    mode = "training" if training else "evaluation"
    return f"{direction} {'x'.join(map(str, spec.sizes))} {kind} {spec.device} {mode}{' bias' if bias else ''}"


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _folder(given: str) -> Path | None:
    """Return the folder, made if need be; None, with a line on stderr, if the user's own cannot be used."""
    try:
        own = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "conv-engine"
        path = own.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        next(path.iterdir(), None)  # whether it may be read
        return path
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such user, or a user without a home
        reason = (
            "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or str(error)
        )
        reason = reason.rstrip(".")
        if given:
            raise UsageError(f"kernels.cache={given}: {reason}; give a folder that can be used, or none") from error
        _tell(f"the user's cache folder cannot be used ({reason}): nothing is remembered; give kernels.cache=FOLDER")
        return None


@cache
def _extension(name: str) -> str:
    """Return a digest of a compiled extension: two builds of one version are told apart. "none" if it is not built."""
    found = find_spec(name)
    if found is None or found.origin is None:
        return "none"
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def _driver() -> str:
    """Return the version of NVIDIA's driver, such as 580.65.06."""
    path = Path("/proc/driver/nvidia/version")
    return " ".join(re.findall(r"\b\d+\.\d+(?:\.\d+)?\b", path.read_text())[:1]) if path.exists() else "unknown"


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
