"""The bytes of all tensors that exist, while code runs under a ledger, and what they were for when they were most."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 16  # channels of oneDNN's blocks with AVX-512; without it 8
KINDS = ("parameters", "gradients", "optimiser", "average", "images", "saved", "other", "workspace")


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, at the moment when all together were most.

    parameters: buffers included. images: those of a step. saved: kept for the backward pass, parameters and images left
    out. other: outputs and gradients of the layer at work, and whatever else exists for a short time. workspace: what a
    convolution takes while it computes, see ``workspace``.
    """

    parameters: int = 0
    gradients: int = 0
    optimiser: int = 0
    average: int = 0
    images: int = 0
    saved: int = 0
    other: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, kind) for kind in KINDS)


class Ledger(TorchDispatchMode):
    """Within ``with``, every storage that an operation makes is counted until nothing refers to it any more.

    Storages count once, whatever number of tensors look at them, and with all their bytes; allocators add to that.
    What a kernel takes inside an operation and gives back before it ends is not seen, but for ``workspace``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, tuple[str, int]] = {}
        self._now = dict.fromkeys(KINDS, 0)
        self._total = self._most = 0
        self._peak = Memory()

    @property
    def peak(self) -> Memory:
        """What there was when it was most, since the last ``forget``."""
        return self._peak

    def forget(self) -> None:
        """Look for the most anew, from now on."""
        self._most = 0
        self._note()

    def own(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's storage, whether it is known or not, as one of ``kind``."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            weakref.finalize(storage, self._release, key)
            self._held[key] = (kind, storage.nbytes())
            self._add(kind, storage.nbytes())
            self._note()
        elif self._held[key][0] != kind:
            before, size = self._held[key]
            self._held[key] = (kind, size)
            self._add(before, -size)
            self._add(kind, size)

    def add(self, kind: str, size: int) -> None:
        """Count so many bytes of which there is no tensor."""
        self._add(kind, size)
        self._note()

    def saving(self) -> AbstractContextManager[Any]:
        """Return a context in which what autograd saves is counted as saved, if it was for nothing else before."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if self._held.get(tensor.untyped_storage()._cdata, ("other", 0))[0] == "other":
            self.own(tensor, "saved")
        return tensor

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, and count what it has made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._held:
                self.own(tensor, "other")
        if taken := workspace(func, args, made):
            self.add("workspace", taken)
            self._add("workspace", -taken)
        return made

    def _release(self, key: int) -> None:
        kind, size = self._held.pop(key)
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self._now[kind] += size
        self._total += size

    def _note(self) -> None:
        if self._total > self._most:
            self._most, self._peak = self._total, Memory(**self._now)


def workspace(func: Any, args: Sequence[Any], made: Any) -> int:
    """Return the bytes that torch's convolution on a CPU takes beside its arguments and results, else 0.

    It has oneDNN, whose arrays are in blocks of channels, the last one filled up: copies in that order of what is in
    NCHW order, of the images and the output going forward, and of the gradients too going backward. Not all exist at
    once; the sums here are those of processes that did nothing but one convolution. Images of three channels and fewer
    are not copied.
    """
    if func not in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
        return 0
    forward = func is torch.ops.aten.convolution.default
    images, output = (args[0], made) if forward else (args[1], args[0])
    if images.device.type != "cpu" or images.dtype == torch.float64 or _in_place_order(images):
        return 0
    given, returned = (_padded(t) * t.element_size() for t in (images, output))
    copied = given if images.shape[1] > 3 else 0
    if forward:
        return max(copied, returned)
    return copied + (max(given, returned) if made[0] is not None else returned)


def _padded(maps: Tensor) -> int:
    """Return the numbers in a copy of maps [n, channels, ...] whose channels are in whole blocks."""
    count, channels, *sides = maps.shape
    return count * math.ceil(channels / BLOCK) * BLOCK * math.prod(sides)


def _in_place_order(images: Tensor) -> bool:
    return images.ndim == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
