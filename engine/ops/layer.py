"""What a layer computes with in torch's place: its kernels' names and geometry, and weights prepared in evaluations."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import conv2d, pad

from engine.kernels import DIRECTIONS, ConvSpec
from engine.ops.convolution import registered

_entries = threading.Lock()  # held to count the evaluations of a layer


@dataclass(eq=False)
class KernelConvolution:
    """What a layer computes with in torch's place; it knows nothing of the layer, so a layer can be copied.

    Inside torch's forward-mode differentiation torch's own convolution computes, as the kernels have no such rule.
    """

    kernels: str
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    border: tuple[int, ...] = ()  # what ``padding`` cannot say: (left, right, top, bottom), filled in ``mode``
    mode: str = "constant"
    evaluations: int = 0  # how many are under way, of threads or nested: weights cannot change
    prepared: dict[Any, Tensor | None] | None = None  # then: weights by images' shape, type and layout; None: no form

    @classmethod
    def of(cls, layer: nn.Conv2d, kernels: str) -> KernelConvolution:
        """Return what computes ``layer`` with these kernels."""
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        plain = layer.padding_mode == "zeros" and left == right and top == bottom
        return cls(
            kernels, _pair(layer.stride), (top, left) if plain else (0, 0), _pair(layer.dilation), layer.groups,
            () if plain else (left, right, top, bottom),
            "constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )  # fmt: skip

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of images [n, c, h, w] or [c, h, w]."""
        if images.dim() == 3:
            return self(images.unsqueeze(0), weight, bias).squeeze(0)
        if self.border:
            images = pad(images, self.border, mode=self.mode)
        if forward_ad._current_level >= 0:
            return conv2d(images, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.kernels)
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            known = self.prepared  # read once: another thread's evaluation may end meanwhile
            if known is not None and (prepared := self._prepare(known, images, weight)) is not None:
                return torch.ops.engine.conv2d_prepared(images, prepared, bias, weight.shape, *geometry)
        return torch.ops.engine.conv2d(images, weight, bias, *geometry)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's weights are its own, and nobody would end its evaluation.
        return {**vars(self), "evaluations": 0, "prepared": None}

    def spec(self, images: Sequence[int], weight: Tensor) -> ConvSpec:
        """Return the convolution of images of this shape, its border included."""
        n, c, h, w = images
        if self.border:
            left, right, top, bottom = self.border
            h, w = h + top + bottom, w + left + right
        return self._spec((n, c, h, w), weight, _is_nhwc(weight))

    def _spec(self, images: Sequence[int], weight: Tensor, channels_last: bool) -> ConvSpec:
        return ConvSpec.of(
            images, weight.shape, self.stride, self.padding, self.dilation, self.groups, dtype=weight.dtype,
            channels_last=channels_last, device=weight.device.type,
        )  # fmt: skip

    def _prepare(self, known: dict[Any, Tensor | None], images: Tensor, weight: Tensor) -> Tensor | None:
        """Return the prepared weight for images like these, made once; None where the kernel has no such form."""
        nhwc = _is_nhwc(images)
        kind = (images.shape, images.dtype, images.device, weight.dtype, nhwc)
        if kind not in known:
            known[kind] = self._prepared_form(images, weight, nhwc)
        return known[kind]

    def _prepared_form(self, images: Tensor, weight: Tensor, nhwc: bool) -> Tensor | None:
        if images.dtype != weight.dtype or images.device != weight.device or len(images) == 0:
            return None
        kernel = registered(self.kernels.partition("/")[0])
        spec = self._spec(images.shape, weight, nhwc)
        if kernel.refuses(spec, DIRECTIONS[0]) is not None:
            return None
        form = kernel.prepare(weight, spec)
        return None if form is weight else form


@contextmanager
def prepared_weights(model: nn.Module) -> Iterator[None]:
    """Within, the model's weights do not change: its kernels prepare them once, and forget them with the last exit.

    Evaluations of one model may be nested, and threads may evaluate it at the same time.
    """
    ours = [
        function for module in model.modules()
        if isinstance(function := vars(module).get("_conv_forward"), KernelConvolution)
    ]  # fmt: skip
    with _entries:
        for function in ours:
            function.evaluations += 1
            if function.prepared is None:
                function.prepared = {}
    try:
        yield
    finally:
        with _entries:
            for function in ours:
                function.evaluations -= 1
                if function.evaluations == 0:
                    function.prepared = None


def _pair(values: Sequence[int] | int) -> tuple[int, int]:
    return (values, values) if isinstance(values, int) else (values[0], values[1])


def _is_nhwc(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
