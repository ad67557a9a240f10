"""The checked face of the compiled extension for the CPU: tensors in, tensors out; the only module that imports it.

What its convolutions share with those of GPUs is in ``engine.ops.algorithm``, and what torch's dispatcher knows of
all of them (``torch.ops.engine``) in ``engine.ops.convolution``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch  # before the extension: the process then has one OpenMP runtime, torch's
from torch import Tensor

from engine.errors import UsageError, did_you_mean
from engine.kernels import ConvSpec
from engine.ops.algorithm import Algorithm, size_of

try:
    from engine import _cpu
except ImportError as error:
    raise ImportError(
        f"the compiled extension engine._cpu cannot be loaded ({error}); build it with `make` or `pip install -e .`"
    ) from error

ALIGNED = 64  # bytes: where torch's memory begins, and the kernels' loads count on it
KEPT = 1 << 30  # bytes of workspace that a thread keeps for its next call; a larger one lives for one call


def philox(key: int, samples: Tensor, blocks: int) -> Tensor:
    """Return int64 [n, 4 * blocks] of random 32-bit words (0..2^32-1): row i depends on (key, samples[i]) alone.

    Philox4x32-10 (Salmon et al. 2011) with the 64-bit ``key`` as (low word, high word) and the counter
    (sample's low word, its high word, block, 0). samples: int64 [n] on the CPU; blocks: 0 to 2^32.
    Raises ValueError for any other samples or blocks, TypeError for a key that is no unsigned 64-bit number.
    """
    samples = _numbers_of(samples, "philox", "blocks", blocks)
    out = torch.empty(len(samples), 4 * blocks, dtype=torch.int64)
    _cpu.philox(key, samples.data_ptr(), len(samples), blocks, out.data_ptr())
    return out


def uniform(key: int, samples: Tensor, draws: int) -> Tensor:
    """Return float32 [n, draws] in [0, 1): the upper 24 bits of the first words that ``philox`` gives, times 2^-24.

    Raises what ``philox`` does.
    """
    samples = _numbers_of(samples, "uniform", "draws", draws)
    out = torch.empty(len(samples), draws, dtype=torch.float32)
    _cpu.uniform(key, samples.data_ptr(), len(samples), draws, out.data_ptr())
    return out


def _numbers_of(samples: Tensor, name: str, asked: str, count: int) -> Tensor:
    """Return the samples in dense memory. Raises ValueError for what native code would not understand."""
    if samples.dtype != torch.int64 or samples.dim() != 1 or samples.device.type != "cpu":
        raise ValueError(
            f"{name}: samples must be int64 [n] on the CPU, not {samples.dtype} {list(samples.shape)} "
            f"on {samples.device}"
        )
    if count < 0:
        raise ValueError(f"{name}: {asked} must be at least 0, not {count}")
    return samples.contiguous()


def build_facts() -> dict[str, str]:
    """Return how the extension was compiled: ``version``, ``compiler``, ``flags`` and ``instruction_set``."""
    return _cpu.build_facts()


def instruction_sets() -> dict[str, bool]:
    """Return the instruction sets that the convolutions were compiled for, the best first, and which this CPU has."""
    return dict(_cpu.instruction_sets())


@cache
def instruction_set() -> str:
    """Return the one in use: what ENGINE_ISA names, else the best that this CPU has.

    Raises UsageError if ENGINE_ISA names one that was not compiled or that this CPU lacks.
    """
    return wanted_set(instruction_sets())


def wanted_set(known: Mapping[str, bool]) -> str:
    """Return the instruction set that ENGINE_ISA names, else the first of ``known`` that this CPU has.

    known: those that some kernels were compiled for, the best first, and which this CPU has. Raises UsageError as
    ``instruction_set`` does.
    """
    wanted = os.environ.get("ENGINE_ISA") or next(name for name, here in known.items() if here)
    require_set(wanted, known, "ENGINE_ISA")
    return wanted


def require_set(wanted: str, known: Mapping[str, bool], option: str) -> None:
    """Raise UsageError, naming the option, for an instruction set that was not compiled or that this CPU lacks.

    known: as in ``wanted_set``.
    """
    if wanted not in known:
        raise UsageError(f"{option}={wanted}: no such instruction set{did_you_mean(wanted, list(known))}")
    if not known[wanted]:
        usable = ", ".join(name for name, here in known.items() if here)
        raise UsageError(f"{option}={wanted}: this processor lacks it; it has {usable}")


class Convolution(Algorithm):
    """One algorithm of ``csrc/cpu/conv`` on tensors: float32 and float64 on the CPU, results in NHWC order.

    algorithm: naive, im2col, implicit, winograd2, winograd4, winograd6, fft or depthwise. isa: an instruction set;
    by default ``instruction_set()``. Calls use torch's number of threads, and give the same bits for any.
    """

    device, aligned, prepared_aligned = "cpu", 1, ALIGNED

    def __init__(self, algorithm: str, isa: str = "") -> None:
        self._code = _cpu.Convolution(isa or instruction_set(), algorithm)

    def _count(self, spec: ConvSpec, direction: int, prepared: bool) -> int:
        return self._code.workspace(spec.sizes, direction, size_of(spec), torch.get_num_threads(), prepared)

    def _temporary(self, count: int, device: torch.device) -> Tensor | None:
        return _workspace(count)

    def _prepare(self, on: Tensor, *arguments: Any) -> None:
        self._code.prepare(*arguments, torch.get_num_threads())

    def _run(self, on: Tensor, *arguments: Any) -> None:
        self._code.run(*arguments, torch.get_num_threads())


_kept = threading.local()  # a thread's workspace: the pages of a fresh one would cost as much as the convolution


def _workspace(count: int) -> Tensor | None:
    """Return at least so many bytes, aligned to 64, for the calling thread until its next call."""
    if count == 0:
        return None
    if count > KEPT:
        return torch.empty(count, dtype=torch.uint8)
    kept: Tensor | None = getattr(_kept, "bytes", None)
    if kept is None or kept.numel() < count:
        _kept.bytes = None  # before the larger one is there
        kept = _kept.bytes = torch.empty(count, dtype=torch.uint8)
    return kept
