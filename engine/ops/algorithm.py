"""What compiled convolution algorithms have in common, on the CPU and on GPUs: tensors checked, laid out, allocated.

The compiled code takes raw addresses and links no torch, so one build serves every torch version. Tensors are
allocated here, and kept alive by this module's own references while the code is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from engine.kernels import DIRECTIONS, ConvSpec

SIZES = {torch.float32: 4, torch.float64: 8}  # the types that the convolutions compute in, with their bytes
PLACES = {"cpu": "on the CPU", "cuda": "on a GPU"}


class Algorithm(ABC):
    """One convolution algorithm on tensors: float32 and float64, results in NHWC order, the same bits each time."""

    device: str  # the type of the devices that it computes on
    aligned: int  # bytes: where arrays begin
    prepared_aligned: int  # bytes: where a prepared weight begins
    _code: Any  # the compiled class; its methods for the CPU take a number of threads, those for GPUs a stream

    @abstractmethod
    def _count(self, spec: ConvSpec, direction: int, prepared: bool) -> int:
        """Return the bytes of temporary memory that a call needs."""

    @abstractmethod
    def _temporary(self, count: int, device: torch.device) -> Tensor | None:
        """Return at least so many bytes for one call; None for none."""

    @abstractmethod
    def _prepare(self, on: Tensor, *arguments: Any) -> None:
        """Call the code's ``prepare`` for the device of ``on``."""

    @abstractmethod
    def _run(self, on: Tensor, *arguments: Any) -> None:
        """Call the code's ``run`` for the device of ``on``."""

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why a direction of ``spec`` cannot be computed, or None if it can."""
        if spec.device != self.device:
            return f"it computes {PLACES[self.device]} only"
        if spec.dtype not in SIZES:
            return f"it computes in float32 and float64, not {str(spec.dtype).removeprefix('torch.')}"
        return self._code.refuses(spec.sizes, DIRECTIONS.index(direction))

    def workspace(self, spec: ConvSpec, direction: str, prepared: bool = False) -> int:
        """Return the bytes of temporary memory that a call needs. Raises ValueError for what is refused."""
        return self._count(spec, DIRECTIONS.index(direction), prepared)

    def waste(self, spec: ConvSpec) -> float:
        """Return the multiplications done for nothing, per useful one; ValueError if every direction is refused."""
        return self._code.waste(spec.sizes)

    def prepare(self, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the weight in the algorithm's own form, as bytes, for forward calls of ``spec``; or the weight.

        Raises ValueError for a spec whose forward direction is refused, and for another weight than the spec's.
        """
        size = size_of(spec)
        count = self._code.prepared_bytes(spec.sizes, size)
        if not count:
            return weight
        weight = self._dense(weight, spec.weight_shape, spec)
        prepared = aligned_bytes(count, weight.device, self.prepared_aligned)
        self._prepare(weight, spec.sizes, size, weight.data_ptr(), prepared.data_ptr())
        return prepared

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution plus bias, [spec.output_shape]; weight: as it is, or what ``prepare`` returned."""
        images = self._dense(images, spec.input_shape, spec)
        if bias is not None:
            bias = self._vector(bias, spec, images.device)
        if weight.dtype == torch.uint8:
            self._check_prepared(weight, self._code.prepared_bytes(spec.sizes, size_of(spec)), images.device)
            return self._call(0, images, None, bias, weight, spec.output_shape, spec)
        weight = self._dense(weight, spec.weight_shape, spec, images.device)
        return self._call(0, images, weight, bias, None, spec.output_shape, spec)

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        gradient = self._dense(gradient, spec.output_shape, spec)
        weight = self._dense(weight, spec.weight_shape, spec, gradient.device)
        return self._call(1, gradient, weight, None, None, spec.input_shape, spec)

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        gradient = self._dense(gradient, spec.output_shape, spec)
        images = self._dense(images, spec.input_shape, spec, gradient.device)
        return self._call(2, gradient, images, None, None, spec.weight_shape, spec)

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
        out = torch.empty(shape, dtype=spec.dtype, device=left.device, memory_format=torch.channels_last)
        space = self._temporary(self._count(spec, direction, prepared is not None), left.device)
        self._run(
            left, spec.sizes, direction, size_of(spec), left.data_ptr(), _address(right), _address(bias),
            _address(prepared), out.data_ptr(), _address(space),
        )  # fmt: skip
        return out

    def _dense(
        self, tensor: Tensor, shape: tuple[int, ...], spec: ConvSpec, device: torch.device | None = None
    ) -> Tensor:
        """Return the tensor in NHWC order; ValueError if it is not what the spec says: its memory would be misread."""
        if tensor.shape != shape or tensor.dtype != spec.dtype or self._elsewhere(tensor, device):
            raise ValueError(
                f"convolution: a tensor must be {spec.dtype} {list(shape)} {self._place(device)}, not {tensor.dtype} "
                f"{list(tensor.shape)} on {tensor.device}"
            )
        return self._placed(_filled(tensor).contiguous(memory_format=torch.channels_last))

    def _vector(self, bias: Tensor, spec: ConvSpec, device: torch.device) -> Tensor:
        if bias.shape != (spec.filters,) or bias.dtype != spec.dtype or self._elsewhere(bias, device):
            raise ValueError(
                f"convolution: the bias must be {spec.dtype} [{spec.filters}] {self._place(device)}, not {bias.dtype} "
                f"{list(bias.shape)} on {bias.device}"
            )
        return self._placed(_filled(bias).contiguous())

    def _check_prepared(self, weight: Tensor, count: int, device: torch.device) -> None:
        """Raise ValueError unless the bytes are as ``prepare`` returns them."""
        if weight.numel() != count:
            raise ValueError("convolution: the weight was prepared for another shape or algorithm")
        dense = weight.is_contiguous() and not self._elsewhere(weight, device)
        if not dense or _filled(weight).data_ptr() % self.prepared_aligned:
            raise ValueError(
                f"convolution: a prepared weight must be dense, {self._place(device)} and aligned to "
                f"{self.prepared_aligned} bytes"
            )

    def _elsewhere(self, tensor: Tensor, device: torch.device | None) -> bool:
        """Return whether a tensor is not on ``device``, or for None on none that this computes on."""
        return tensor.device != device if device is not None else tensor.device.type != self.device

    def _place(self, device: torch.device | None) -> str:
        return PLACES[self.device] if device is None or device.type == "cpu" else f"on {device}"

    def _placed(self, tensor: Tensor) -> Tensor:
        """Return the dense tensor where the code can read it: a copy of one that begins at an odd address."""
        return tensor.clone() if tensor.data_ptr() % self.aligned else tensor


def size_of(spec: ConvSpec) -> int:
    """Return the bytes of an element; ValueError for a type that is not computed in."""
    if spec.dtype not in SIZES:
        raise ValueError(f"convolution: it is computed in float32 and float64, not {spec.dtype}")
    return SIZES[spec.dtype]


def aligned_bytes(count: int, device: torch.device, alignment: int) -> Tensor:
    """Return so many bytes of torch's own memory, at an address that ``alignment`` divides."""
    memory = torch.empty(count, dtype=torch.uint8, device=device)
    if memory.data_ptr() % alignment:
        memory = torch.empty(count + alignment, dtype=torch.uint8, device=device)
        begin = -memory.data_ptr() % alignment
        memory = memory[begin : begin + count]
    return memory


def _filled(tensor: Tensor) -> Tensor:
    """Return the tensor; ValueError if its memory was taken away, as sharded training does between uses."""
    if tensor.data_ptr() == 0 and tensor.numel() > 0:
        raise ValueError(f"convolution: a tensor of shape {list(tensor.shape)} has no memory")
    return tensor


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
