"""The pass over the pixels of a batch on a GPU: bytes that lie there, to what a network takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.ops.cuda import _extension, _launch
from engine.ops.images import OUTPUTS, _changes, require_arrays

if TYPE_CHECKING:
    from engine.plan import Plan


def available() -> bool:
    """Return whether ``engine._cuda`` is there, so that ``transform`` can be called."""
    return not isinstance(_extension(), str)


def transform(images: Tensor, plan: Plan, out: Tensor, index: Tensor | None = None, *, code: Any = None) -> None:
    """Fill ``out`` with what a plan makes of images on a GPU: queued on torch's current stream, and waits for nothing.

    images: uint8 [m, c, h, w] on the GPU, in any memory order; those of the plan, all of one size. index: int64 [n] on
    the GPU, and then image i of the plan is ``images[index[i]]``; its numbers are from 0 to m - 1, which is for the
    caller to see to, since to look at them would be to wait. out: [n, c, height, width] there, dense as NCHW or
    channels_last, in uint8 (a plan without changes of colour), float32 or bfloat16; 0 is black, and white 255 for
    uint8, else 1. It is the same bits each time, whatever else is in the batch.

    code: tests give the module of the same kernels compiled for the host, and tensors of the CPU. Raises UsageError
    where ``engine._cuda`` was not built, ValueError for tensors or a plan that do not fit.
    """
    extension = code or _extension()
    if isinstance(extension, str):
        raise UsageError(f"images cannot be transformed on a GPU: {extension}")
    _require(images, plan, out, index, torch.device("cpu" if code else "cuda"))
    if not len(plan):
        return
    axes, mirrored = plan.axes.contiguous(), plan.mirrored.to(torch.uint8)
    arrays = (axes, mirrored, *_changes(plan, out.dtype))
    sizes = (
        *(len(plan), *out.shape[1:], OUTPUTS[out.dtype], int(not out.is_contiguous()), int(plan.reflected)),
        *(len(plan.kinds), len(plan.boxes), *images.shape[2:]),
    )
    fill = (*(plan.fill or ()), 0.0, 0.0, 0.0)[:3]
    described = extension.ImagePass(sizes, fill, tuple(array.data_ptr() for array in arrays))
    # Pinned, so that the copy waits for nothing; torch does not give the memory away before the copy has been made.
    packed = torch.empty(described.packed_bytes(), dtype=torch.uint8, pin_memory=images.is_cuda)
    described.pack(packed.data_ptr())
    copied = packed.to(images.device, non_blocking=True) if images.is_cuda else packed.clone()
    strides = tuple(images.stride(axis) for axis in (0, 2, 3, 1))
    number = 0 if index is None else index.data_ptr()
    addresses = (number, packed.data_ptr(), copied.data_ptr(), out.data_ptr())
    _launch(described.run, images, images.data_ptr(), strides, *addresses)


def _require(images: Tensor, plan: Plan, out: Tensor, index: Tensor | None, device: torch.device) -> None:
    """Raise ValueError unless they fit each other, so that no address beyond them is formed."""
    require_arrays(plan)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != plan.channels:
        raise ValueError(
            f"images for this plan are uint8 [m, {plan.channels}, h, w], not {images.dtype} {list(images.shape)}"
        )
    if images.device.type != device.type or out.device != images.device:
        raise ValueError(f"images and out must be on one GPU, not on {images.device} and {out.device}")
    if index is None and len(images) != len(plan):
        raise ValueError(f"a plan for {len(plan)} images, but there are {len(images)} and no index")
    if index is not None and not _fits(index, (len(plan),), images.device):
        raise ValueError(
            f"an index for this plan is int64 [{len(plan)}] on {images.device}, dense, not {index.dtype} "
            f"{list(index.shape)} on {index.device}"
        )
    if len(plan) and not len(images):
        raise ValueError("there are no images to choose from")
    shape = plan.shape if len(plan) else (plan.channels, *out.shape[2:])
    if shape is None:
        raise ValueError("the images of the plan end in different sizes")
    if tuple(out.shape) != (len(plan), *shape):
        raise ValueError(f"the plan makes {[len(plan), *shape]}, but out is {list(out.shape)}")
    if out.dtype not in OUTPUTS:
        raise ValueError(f"out must be uint8, float32 or bfloat16, not {out.dtype}")
    if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError("out must be dense, NCHW or channels_last")
    if out.dtype == torch.uint8 and plan.kinds:
        raise ValueError("the plan changes colours, which bytes cannot hold: give out a float type")


def _fits(index: Tensor, shape: tuple[int, ...], device: torch.device) -> bool:
    return (index.dtype, tuple(index.shape), index.device) == (torch.int64, shape, device) and index.is_contiguous()
