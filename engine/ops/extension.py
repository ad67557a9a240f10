"""The checked face of the compiled extension: tensors in, tensors out; the only module that imports it.

The extension takes raw addresses and links no torch, so one build serves every torch version. Tensors are
allocated here, and kept alive by this module's own references while a kernel runs. What torch's dispatcher
knows of the kernels (``torch.ops.engine``) is in ``engine.ops.convolution``.
"""

from __future__ import annotations

import os
import threading
from functools import cache

import torch  # before the extension: the process then has one OpenMP runtime, torch's
from torch import Tensor

from engine.errors import UsageError, did_you_mean
from engine.kernels import DIRECTIONS, ConvSpec

try:
    from engine import _cpu
except ImportError as error:
    raise ImportError(
        f"the compiled extension engine._cpu cannot be loaded ({error}); build it with `make` or `pip install -e .`"
    ) from error

SIZES = {torch.float32: 4, torch.float64: 8}  # the types that the convolutions compute in, with their bytes
ALIGNED = 64  # bytes: where torch's memory begins, and the kernels' loads count on it
KEPT = 1 << 30  # bytes of workspace that a thread keeps for its next call; a larger one lives for one call


def philox(key: int, samples: Tensor, blocks: int) -> Tensor:
    """Return int64 [n, 4 * blocks] of random 32-bit words (0..2^32-1): row i depends on (key, samples[i]) alone.

    Philox4x32-10 (Salmon et al. 2011) with the 64-bit ``key`` as (low word, high word) and the counter
    (sample's low word, its high word, block, 0). samples: int64 [n] on the CPU; blocks: 0 to 2^32.
    Raises ValueError for any other samples or blocks, TypeError for a key that is no unsigned 64-bit number.
    """
    if samples.dtype != torch.int64 or samples.dim() != 1 or samples.device.type != "cpu":
        raise ValueError(
            f"philox: samples must be int64 [n] on the CPU, not {samples.dtype} {list(samples.shape)} "
            f"on {samples.device}"
        )
    if blocks < 0:
        raise ValueError(f"philox: blocks must be at least 0, not {blocks}")
    samples = samples.contiguous()
    out = torch.empty(len(samples), 4 * blocks, dtype=torch.int64)
    _cpu.philox(key, samples.data_ptr(), len(samples), blocks, out.data_ptr())
    return out


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
    known = instruction_sets()
    usable = [name for name, here in known.items() if here]
    wanted = os.environ.get("ENGINE_ISA") or usable[0]
    if wanted not in known:
        raise UsageError(f"ENGINE_ISA={wanted}: no such instruction set{did_you_mean(wanted, list(known))}")
    if wanted not in usable:
        raise UsageError(f"ENGINE_ISA={wanted}: this processor lacks it; it has {', '.join(usable)}")
    return wanted


class Convolution:
    """One algorithm of ``csrc/cpu/conv`` on tensors: float32 and float64 on the CPU, results in NHWC order.

    algorithm: naive, im2col, implicit, winograd2, winograd4, winograd6, fft or depthwise. isa: an instruction set;
    by default ``instruction_set()``. Calls use torch's number of threads, and give the same bits for any.
    """

    def __init__(self, algorithm: str, isa: str = "") -> None:
        self._code = _cpu.Convolution(isa or instruction_set(), algorithm)

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why a direction of ``spec`` cannot be computed, or None if it can."""
        if spec.device != "cpu":
            return "it computes on the CPU only"
        if spec.dtype not in SIZES:
            return f"it computes in float32 and float64, not {str(spec.dtype).removeprefix('torch.')}"
        return self._code.refuses(spec.sizes, DIRECTIONS.index(direction))

    def workspace(self, spec: ConvSpec, direction: str, prepared: bool = False) -> int:
        """Return the bytes of temporary memory that a call needs. Raises ValueError for what is refused."""
        threads = torch.get_num_threads()
        return self._code.workspace(spec.sizes, DIRECTIONS.index(direction), _size(spec), threads, prepared)

    def waste(self, spec: ConvSpec) -> float:
        """Return the multiplications done for nothing, per useful one; ValueError if every direction is refused."""
        return self._code.waste(spec.sizes)

    def prepare(self, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the weight in the algorithm's own form, as bytes, for forward calls of ``spec``; or the weight.

        Raises ValueError for a spec whose forward direction is refused, and for another weight than the spec's.
        """
        size = _size(spec)
        count = self._code.prepared_bytes(spec.sizes, size)
        if not count:
            return weight
        weight = _dense(weight, spec.weight_shape, spec)
        prepared = torch.empty(count, dtype=torch.uint8)
        self._code.prepare(spec.sizes, size, weight.data_ptr(), prepared.data_ptr(), torch.get_num_threads())
        return prepared

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution plus bias, [spec.output_shape]; weight: as it is, or what ``prepare`` returned."""
        images = _dense(images, spec.input_shape, spec)
        if bias is not None:
            bias = _vector(bias, spec)
        if weight.dtype == torch.uint8:
            _check_prepared(weight, self._code.prepared_bytes(spec.sizes, _size(spec)))
            return self._call(0, images, None, bias, weight, spec.output_shape, spec)
        return self._call(0, images, _dense(weight, spec.weight_shape, spec), bias, None, spec.output_shape, spec)

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        left, right = _dense(gradient, spec.output_shape, spec), _dense(weight, spec.weight_shape, spec)
        return self._call(1, left, right, None, None, spec.input_shape, spec)

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        left, right = _dense(gradient, spec.output_shape, spec), _dense(images, spec.input_shape, spec)
        return self._call(2, left, right, None, None, spec.weight_shape, spec)

    def _call(
        self,
        direction: int,
        left: Tensor,
        right: Tensor | None,
        bias: Tensor | None,
        prepared: Tensor | None,
        shape: tuple[int, int, int, int],
        spec: ConvSpec,
    ) -> Tensor:
        out = torch.empty(shape, dtype=spec.dtype, memory_format=torch.channels_last)
        size, threads = _size(spec), torch.get_num_threads()
        space = _workspace(self._code.workspace(spec.sizes, direction, size, threads, prepared is not None))
        self._code.run(
            spec.sizes, direction, size, left.data_ptr(), _address(right), _address(bias), _address(prepared),
            out.data_ptr(), _address(space), threads,
        )  # fmt: skip
        return out


def _size(spec: ConvSpec) -> int:
    """Return the bytes of an element; ValueError for a type that is not computed in."""
    if spec.dtype not in SIZES:
        raise ValueError(f"convolution: it is computed in float32 and float64, not {spec.dtype}")
    return SIZES[spec.dtype]


def _dense(tensor: Tensor, shape: tuple[int, ...], spec: ConvSpec) -> Tensor:
    """Return the tensor in NHWC order; ValueError if it is not what the spec says: its memory would be misread."""
    if tensor.shape != shape or tensor.dtype != spec.dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"convolution: a tensor must be {spec.dtype} {list(shape)} on the CPU, not {tensor.dtype} "
            f"{list(tensor.shape)} on {tensor.device}"
        )
    return _filled(tensor).contiguous(memory_format=torch.channels_last)


def _vector(bias: Tensor, spec: ConvSpec) -> Tensor:
    if bias.shape != (spec.filters,) or bias.dtype != spec.dtype or bias.device.type != "cpu":
        raise ValueError(f"convolution: the bias must be {spec.dtype} [{spec.filters}] on the CPU, not {bias.dtype}")
    return _filled(bias).contiguous()


def _check_prepared(weight: Tensor, count: int) -> None:
    """Raise ValueError unless the bytes are as ``prepare`` returns them."""
    if weight.numel() != count:
        raise ValueError("convolution: the weight was prepared for another shape or algorithm")
    if weight.device.type != "cpu" or not weight.is_contiguous() or _filled(weight).data_ptr() % ALIGNED:
        raise ValueError(f"convolution: a prepared weight must be dense, on the CPU and aligned to {ALIGNED} bytes")


def _filled(tensor: Tensor) -> Tensor:
    """Return the tensor; ValueError if its memory was taken away, as sharded training does between uses."""
    if tensor.data_ptr() == 0 and tensor.numel() > 0:
        raise ValueError(f"convolution: a tensor of shape {list(tensor.shape)} has no memory")
    return tensor


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
