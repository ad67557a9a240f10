"""The GPU that is measured: whether there is one, what the figures depend on, and the settings of torch's own."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.ops import CudaConvolution

# What nvidia-smi is asked about the clocks, with the words that the answers get.
CLOCKS = {
    "clocks.sm": "SM clock now", "clocks.max.sm": "at most", "power.limit": "power limit",
    "persistence_mode": "persistence mode",
}  # fmt: skip


def missing() -> str:
    """Return what measuring the engine's kernels on a GPU lacks here and how to get it, as a phrase; "" if nothing."""
    return no_gpu() or CudaConvolution("implicit").missing


def no_gpu() -> str:
    """Return why there is no GPU to measure on and how to get one, as a phrase; "" if there is one."""
    version = str(torch.__version__)
    if torch.version.cuda is None:
        return f"torch {version} is built without CUDA; install one that is built with it, as PyPI's for Linux is"
    if not torch.cuda.is_available():
        return (
            f"torch {version} (CUDA {torch.version.cuda}) finds no GPU; nvidia-smi lists those of the driver, and "
            "CUDA_VISIBLE_DEVICES hides some"
        )
    return ""


def facts() -> dict[str, str]:
    """Return what figures of the current GPU depend on: its name, driver, versions, clocks; no names of hosts."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "clocks": clocks(),
    }


def line(told: dict[str, str]) -> str:
    """Return these facts as one line."""
    text = "{gpu}, driver {driver}, CUDA {cuda}, cuDNN {cudnn}, torch {torch}, Python {python}; clocks: {clocks}"
    return text.format(**told)


def driver() -> str:
    """Return the version of NVIDIA's driver, such as 580.65.06."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", path.read_text()) if path.exists() else None
    return found.group() if found else "unknown"


def clocks() -> str:
    """Return the current GPU's clock settings in words, or that they cannot be read."""
    program, own = shutil.which("nvidia-smi"), torch.cuda.get_device_properties(torch.cuda.current_device())
    if program is None:
        return "not readable (no nvidia-smi)"
    query = [program, f"--id=GPU-{own.uuid}", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "not readable (nvidia-smi does not run)"
    answers = done.stdout.strip().split(", ")
    if done.returncode or len(answers) != len(CLOCKS):
        return "not readable (nvidia-smi does not tell)"
    return "; ".join(f"{words} {answer}" for words, answer in zip(CLOCKS.values(), answers, strict=True))


@contextmanager
def setting(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute a value, and its own again afterwards."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextmanager
def equal_precision() -> Iterator[None]:
    """Within, torch computes float32 in full precision, and cuDNN tries all its algorithms once for every shape."""
    cudnn = torch.backends.cudnn
    with ExitStack() as stack:
        stack.enter_context(setting(cudnn.conv, "fp32_precision", "ieee"))  # type: ignore[attr-defined]
        stack.enter_context(setting(torch.backends.cuda.matmul, "fp32_precision", "ieee"))
        stack.enter_context(setting(cudnn, "deterministic", False))
        stack.enter_context(setting(cudnn, "benchmark", True))
        stack.enter_context(setting(cudnn, "benchmark_limit", 0))  # 0: no limit; torch's default is ten
        yield


def in_tf32(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call of the same with convolutions that may round their inputs to TF32."""

    def call() -> Any:
        with setting(torch.backends.cudnn.conv, "fp32_precision", "tf32"):  # type: ignore[attr-defined]
            return function()

    return call
