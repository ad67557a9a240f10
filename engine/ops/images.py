"""The pass over the pixels of a batch on the CPU: images from memory or files to what a network takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.ops.extension import _cpu, instruction_set

if TYPE_CHECKING:
    from engine.pictures import Pictures
    from engine.plan import Plan

OUTPUTS = {torch.uint8: 0, torch.float32: 1, torch.bfloat16: 2}  # csrc/images.h

ENDED, UNREADABLE, DAMAGED, REFUSED = "ended", "unreadable", "damaged", "refused"
CHECKSUM = "checksum"
_KINDS = ("", ENDED, UNREADABLE, CHECKSUM, DAMAGED, REFUSED)  # csrc/cpu/pictures.h


class Times(NamedTuple):
    """Nanoseconds of a pass: reading and checking bytes, decoding JPEG, and everything that is done to pixels."""

    read: int
    decode: int
    transform: int


class PictureError(Exception):
    """A picture of a batch that cannot be had.

    place: which of the batch. kind: ENDED (its file is too short), UNREADABLE (the system said why), CHECKSUM,
    DAMAGED (it cannot be decoded) or REFUSED (what the table or the plan says of it cannot be). reason: a phrase.
    """

    def __init__(self, place: int, kind: str, reason: str) -> None:
        super().__init__(place, kind, reason)
        self.place, self.kind, self.reason = place, kind, reason

    def __str__(self) -> str:
        return f"picture {self.place} of the batch: {self.reason}"


def transform(pictures: Pictures, plan: Plan, out: Tensor, *, scaled: bool = False, isa: str = "") -> Times:
    """Fill ``out`` with what a plan makes of pictures, in one pass by the calling thread; others go on meanwhile.

    out: [n, c, h, w] on the CPU, dense as NCHW or channels_last, in uint8 (a plan without changes of colour), float32
    or bfloat16; 0 is black, and white 255 for uint8, else 1. scaled: a JPEG may be decoded at a half, a quarter or an
    eighth of its size where its window is reduced by as much anyway. isa: an instruction set; by default
    ``instruction_set()``. Raises PictureError for the first picture that cannot be had, ValueError for an ``out`` or a
    plan that does not fit.
    """
    _require(pictures, plan, out)
    interleaved = not out.is_contiguous()
    table = pictures.table.contiguous()
    axes, mirrored = plan.axes.contiguous(), plan.mirrored.contiguous()
    kinds, factors, erased = _changes(plan, out.dtype)
    sizes = (
        *(len(plan), out.shape[1], out.shape[2], out.shape[3], OUTPUTS[out.dtype], int(interleaved)),
        *(int(plan.reflected), len(plan.kinds), len(plan.boxes)),
    )
    fill = (*(plan.fill or ()), 0.0, 0.0, 0.0)[:3]
    arrays = tuple(array.data_ptr() for array in (axes, mirrored, kinds, factors, erased))
    kind, place, error, reason, *times = _cpu.transform_pictures(
        isa or instruction_set(), table.data_ptr(), sizes, fill, arrays, scaled, out.data_ptr()
    )
    if kind:
        raise PictureError(place, _KINDS[kind], _phrase(_KINDS[kind], error, reason))
    return Times(*times)


def address_of(data: bytes) -> int:
    """Return where the bytes of ``data`` lie, for as long as it is kept."""
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def crc32c(data: bytes | np.ndarray) -> int:
    """Return the CRC-32C (Castagnoli; RFC 3720, appendix B.4) of bytes, or of an array's memory, which is dense."""
    array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
    return _cpu.crc32c(int(array.ctypes.data), array.nbytes)


def _phrase(kind: str, error: int, reason: str) -> str:
    if kind == UNREADABLE:
        return os.strerror(error)
    return {ENDED: "the file ends before it", CHECKSUM: "its checksum is wrong"}.get(kind, reason)


def _require(pictures: Pictures, plan: Plan, out: Tensor) -> None:
    """Raise ValueError unless the three fit each other, so that no address beyond them is formed."""
    if plan.channels != pictures.channels or len(plan) != len(pictures):
        raise ValueError(
            f"a plan for {len(plan)} images of {plan.channels} channels, but {len(pictures)} pictures of "
            f"{pictures.channels}"
        )
    require_arrays(plan)
    table = pictures.table
    if table.dtype != torch.int64 or table.shape != (len(plan), 8) or table.device.type != "cpu":
        raise ValueError(f"a table of pictures is int64 [n, 8] on the CPU, not {table.dtype} {list(table.shape)}")
    if len(plan) and plan.shape is None:
        raise ValueError("the images of the plan end in different sizes")
    wanted = (len(plan), *(plan.shape or out.shape[1:])) if len(plan) else (0, plan.channels, *out.shape[2:])
    if tuple(out.shape) != wanted:
        raise ValueError(f"the plan makes {list(wanted)}, but out is {list(out.shape)}")
    if out.dtype not in OUTPUTS or out.device.type != "cpu":
        raise ValueError(f"out must be uint8, float32 or bfloat16 on the CPU, not {out.dtype} on {out.device}")
    if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError("out must be dense, NCHW or channels_last")
    if out.dtype == torch.uint8 and plan.kinds:
        raise ValueError("the plan changes colours, which bytes cannot hold: give out a float type")


def require_arrays(plan: Plan) -> None:
    """Raise ValueError for a plan whose arrays somebody replaced by others that do not describe its images."""
    axes, mirrored = plan.axes, plan.mirrored
    if axes.dtype != torch.float64 or axes.shape != (len(plan), 2, 6):
        raise ValueError(f"a plan's axes are float64 [{len(plan)}, 2, 6], not {axes.dtype} {list(axes.shape)}")
    if mirrored.dtype != torch.bool or mirrored.shape != (len(plan),):
        raise ValueError(f"a plan's mirrored are bool [{len(plan)}], not {mirrored.dtype} {list(mirrored.shape)}")


def _changes(plan: Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plan's changes of colour and its boxes as native code takes them: kinds, factors, erased."""
    count = len(plan)
    kinds = _stacked(plan.kinds, (count,), torch.int32)
    factors = _stacked(plan.factors, (count, 12), torch.float32)
    erased = np.zeros((count, len(plan.boxes), 7), np.int32)
    for number, (boxes, values) in enumerate(zip(plan.boxes, plan.values, strict=True)):
        erased[:, number, :4] = boxes.numpy()
        numbers = (values * 255).round().clamp(0, 255) if dtype == torch.uint8 else values
        erased.view(np.float32)[:, number, 4 : 4 + plan.channels] = numbers.numpy()
    return kinds, factors, torch.from_numpy(erased)


def _stacked(parts: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return [n, parts, ...]: the parts side by side."""
    if not parts:
        return torch.empty(shape[0], 0, *shape[1:], dtype=dtype)
    if len(parts) == 1:
        return parts[0].to(dtype).expand(shape).contiguous()[:, None]
    return torch.stack([part.to(dtype).expand(shape) for part in parts], 1).contiguous()
