"""Augmentation on the device: bytes travel to it, or stay there for the whole run, and numbers are made of them there.

What is drawn is drawn on the host, from the same keys, so samples get the same crops, turns and partners as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from engine import ops
from engine.chain import Chain, Images, Samples, links_of
from engine.errors import UsageError
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, Source
from engine.plan import Plan
from engine.plan_on_tensors import carry_out
from engine.preparation import Finish, Preparation, Spent, read
from engine.randomness import Key
from engine.resampling import Resampling

CHUNK = 512  # records read at a time


class DeviceChain(Chain):
    """Carries batches on the device through augmentations: one CUDA kernel where it can, else tensor operations."""

    def passes(self, images: Images) -> bool:
        """Return whether they are bytes, gray or colour."""
        return isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape[1] in (1, 3)

    def carry_out(self, plan: Plan, images: Images, samples: Samples, dtype: torch.dtype, last: bool) -> Tensor:
        """Return images after one pass."""
        assert isinstance(images, Tensor), "pictures are of the host"
        numbers = dtype != torch.uint8
        order = torch.channels_last if last and numbers and self.layout.channels_last else torch.contiguous_format
        if images.is_cuda and ops.transforms_on_gpu():
            shape = (len(plan), *(plan.shape or ()))
            out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=order)
            ops.transform_on_gpu(images, plan, out)
            return out
        return carry_out(plan, images).to(dtype=dtype, memory_format=order)


class DevicePreparation(Preparation):
    """Prepares on the host what gives all images one size, and leaves the rest to the device."""

    def __init__(
        self, source: Source, augmentations: Mapping[str, Augmentation], layout: Layout, key: Key | None = None
    ) -> None:
        super().__init__(source, augmentations, layout, key)
        split = 0
        while split < len(self.links) and isinstance(self.links[split].op, Resampling):
            split += 1
        self._chain = DeviceChain(self.links[split:], layout)
        self.links = self.links[:split]

    def finishing(self, samples: Samples) -> Finish:
        """Return what makes the batch that ``samples`` become of their bytes, on the device."""
        return partial(self._chain.run, samples=samples)


class ResidentPreparation(DevicePreparation):
    """Keeps all records on the device, as bytes of one size, and makes batches of them there.

    Raises UsageError if they do not fit.
    """

    def __init__(
        self, source: Source, augmentations: Mapping[str, Augmentation], layout: Layout, key: Key | None = None
    ) -> None:
        super().__init__(source, {}, layout, key)
        self._chain = DeviceChain(links_of(augmentations, key), layout)
        first, _ = read(source, [0])
        _require_room(first.numel() * first.element_size() * len(source), layout.device, len(source))
        self._images = torch.empty((len(source), *first.shape[1:]), dtype=first.dtype, device=layout.device)
        targets = []
        for begin in range(0, len(source), CHUNK):
            images, some = read(source, range(begin, min(begin + CHUNK, len(source))))
            self._images[begin : begin + len(images)] = images.to(layout.device)
            targets.append(some)
        self._targets = torch.cat(targets).to(layout.device)

    def batch(self, samples: Samples) -> tuple[Tensor, Tensor, Spent]:
        """Return the numbers of the records, twice: all that has to travel."""
        return samples.records, samples.records, Spent()

    def finishing(self, samples: Samples) -> Finish:
        """Return what makes the batch of the records' numbers, once these are on the device."""
        return partial(self._finish, samples=samples)

    def _finish(self, images: Tensor, targets: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        return self._chain.run(self._images[images], self._targets[targets], samples)


def _require_room(needed: int, device: torch.device, count: int) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise UsageError(
            f"data.augment_on=resident: {count} images take {needed / 2**30:.1f} GiB, and the GPU has "
            f"{free / 2**30:.1f} GiB free; choose data.augment_on=device"
        )
