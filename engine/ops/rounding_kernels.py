"""Calls of the compiled rounding kernels: which memory order a tensor's elements have, on which device they are.

What the functions mean is in ``engine.ops.rounding``.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.ops.cuda import round_on_gpu
from engine.ops.extension import _cpu, instruction_set

# Numbers of csrc/rounding_call.h.
FIXED = {torch.float32: 0, torch.float64: 1}
BFLOAT16, FLOAT16, ADD_BFLOAT16, ADD_COMPENSATED = 2, 3, 4, 5


class Call(NamedTuple):
    """What a kernel is told beside its tensors; ``key`` with a sign, ``format``: bits, fraction, symmetric."""

    stochastic: bool = False
    key: int = 0
    step: Tensor | None = None
    offset: int = 0
    counts: Tensor | None = None
    format: tuple[int, int, int] = (0, 0, 0)
    exponent: Tensor | None = None
    compensation: Tensor | None = None


def run(kind: int, x: Tensor, out: Tensor, call: Call, code: Any = None, isa: str = "", threads: int = 0) -> None:
    """Run kernel ``kind`` from ``x`` to ``out``, and to the call's compensation, in any layout.

    Tensors of one dense layout are taken as they lie, and others copied before and after. Tests give isa, an
    instruction set, threads, and code, a module that has ``round_elements`` as engine._cuda has it.
    """
    kept = call.compensation
    order = _common_order(x.shape, x.stride(), out.stride(), None if kept is None else kept.stride(), call.stochastic)
    if order is None:
        _run_copies(kind, x, out, call, code, isa, threads)
        return
    for written in (out, kept):
        if written is not None and not written.is_inference():
            torch.autograd.graph.increment_version(written)  # autograd complains where it has saved what is overwritten
    sizes = (*order, call.offset, int(call.stochastic), *call.format)
    tensors = (call.step, call.exponent, x, out, call.compensation, call.counts)
    arrays = tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    key = call.key & (1 << 64) - 1
    if code is not None:
        code.round_elements(kind, sizes, key, arrays, 0)
    elif x.is_cuda:
        round_on_gpu(x, kind, sizes, key, arrays)
    else:
        _cpu.round_elements(isa or instruction_set(), kind, sizes, key, arrays, threads or torch.get_num_threads())


def _run_copies(kind: int, x: Tensor, out: Tensor, call: Call, *rest: Any) -> None:
    """Run a kernel on contiguous copies of tensors that are written and of those that are not contiguous."""
    source, target = x.contiguous(), out.clone(memory_format=torch.contiguous_format)
    kept = call.compensation
    copy = None if kept is None else kept.clone(memory_format=torch.contiguous_format)
    run(kind, source, target, call._replace(compensation=copy), *rest)
    out.copy_(target)
    if kept is not None and copy is not None:
        kept.copy_(copy)


@lru_cache(maxsize=4096)
def _common_order(
    shape: tuple[int, ...],
    of_x: tuple[int, ...],
    of_out: tuple[int, ...],
    of_compensation: tuple[int, ...] | None,
    stochastic: bool,
) -> tuple[int, int, int] | None:
    """Return batches, rows and columns of csrc/rounding.h for tensors of these strides, or None if they are copied."""
    order = memory_order(shape, of_x)
    # Where there is one index alone its stride means nothing.
    alike = {
        tuple(stride for size, stride in zip(shape, strides, strict=True) if size > 1)
        for strides in (of_x, of_out, of_compensation)
        if strides is not None
    }
    if order is None or len(alike) > 1:
        return None
    return order if stochastic else (1, prod(order), 1)


@lru_cache(maxsize=4096)
def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return (batches, rows, columns): memory has this shape, and elements are numbered down the columns.

    That is what contiguous, channels_last and transposed tensors are; (1, n, 1) where both orders are the same. None
    for others, as those with gaps.
    """
    if 0 in shape:
        return 1, 0, 1
    dims = [(stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1]
    memory = sorted(range(len(dims)), key=lambda dim: -dims[dim][0])
    expected = 1
    for dim in reversed(memory):
        if dims[dim][0] != expected:
            return None
        expected *= dims[dim][1]
    alike = next((dim for dim, place in enumerate(memory) if dim != place), len(dims))
    if alike == len(dims):
        return 1, expected, 1
    first = memory[alike]
    if memory[alike:] != [*range(first, len(dims)), *range(alike, first)]:
        return None
    sizes = [size for _, size in dims]
    return prod(sizes[:alike]), prod(sizes[first:]), prod(sizes[alike:first])
