"""Local response normalization across channels, as ``torch.ops.engine`` knows it, on CPUs and GPUs.

y[c] = x[c] / s[c]^beta with s[c] = k + alpha / size * the sum of x^2 over ``size`` channels around c (Krizhevsky,
Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section 3.3), as
``torch.nn.functional.local_response_norm`` defines it: of an even size one more channel before c than behind it, and
channels that are not there count as zeros. For the backward pass x alone is kept, and s computed again.

Results lie in memory as the images do: NHWC (channels_last) where that is their order, else NCHW.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from engine.ops import cuda_lrn
from engine.ops.convolution import library
from engine.ops.extension import _cpu, instruction_set

HALVES = (torch.bfloat16, torch.float16)
TYPES = (torch.float32, torch.float64, *HALVES)
CONSTANTS = "int size, float alpha, float beta, float k"
library.define(f"lrn(Tensor images, {CONSTANTS}) -> Tensor")
library.define(f"lrn_backward(Tensor gradient, Tensor images, {CONSTANTS}) -> Tensor")
ops = torch.ops.engine


def local_response_norm(
    images: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Return the images normalized across channels, with derivatives of any order.

    images: [n, c, ...] with a dimension of places or more, float32 or float64; bfloat16 and float16 are computed in
    float32 and rounded once, and under autocast images become float32, as the result then is. size: channels of a
    window, 1 or more, also more than there are. Raises ValueError for others, UsageError on a GPU where
    ``engine._cuda`` was not built, and RuntimeError inside forward-mode differentiation.
    """
    return ops.lrn(images, size, alpha, beta, k)


def supports(images: Tensor) -> bool:
    """Return whether there is a kernel for images of this type and shape, on this device."""
    here = images.device.type in ("cpu", "meta") or (images.device.type == "cuda" and cuda_lrn.available())
    return here and images.dtype in TYPES and images.dim() >= 3


def run(
    images: Tensor, gradient: Tensor | None, size: int, alpha: float, beta: float, k: float,
    code: Any = None, isa: str = "", threads: int = 0,
) -> Tensor:  # fmt: skip
    """Return the result for images or, where a gradient is given, the gradient with respect to them.

    Tests give isa, an instruction set, threads, and code, the kernels of GPUs compiled for the host.
    """
    _check(images, gradient, size)
    if images.dtype in HALVES:
        wide = None if gradient is None else gradient.float()
        return run(images.float(), wide, size, alpha, beta, k, code, isa, threads).to(images.dtype)
    out = _empty(images)
    if out.numel() == 0:
        return out
    innermost = _channels_last(images)
    given = [None if t is None else _laid_out(t, innermost) for t in (images, gradient)]
    channels, places = images.shape[1], prod(images.shape[2:])
    window = (min(size // 2, channels - 1), min((size - 1) // 2, channels - 1))
    # One place has its channels side by side, whatever torch calls that.
    sizes = (images.shape[0], channels, places, int(innermost or places == 1), *window)
    constants = (alpha / size, beta, k)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*given, out)]
    if images.is_cuda or code is not None:
        cuda_lrn.run(out, sizes, constants, (addresses[0], addresses[1], addresses[2]), code)
        return out
    threads = threads or torch.get_num_threads()
    count = _cpu.local_response_norm_workspace(gradient is not None, out.element_size(), sizes, threads)
    workspace = torch.empty(count, dtype=torch.uint8)
    arrays = (addresses[0], addresses[1], addresses[2], workspace.data_ptr())
    _cpu.local_response_norm(isa or instruction_set(), out.element_size(), sizes, constants, arrays, threads)
    return out


def _check(images: Tensor, gradient: Tensor | None, size: int) -> None:
    """Raise ValueError for what a kernel cannot take, RuntimeError where torch would take a derivative for zero."""
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            "torch.ops.engine.lrn has no forward-mode derivative (torch.func.jvp, jacfwd, torch.autograd.forward_ad); "
            "compute with torch.nn.functional.local_response_norm there"
        )
    if images.dtype not in TYPES or images.dim() < 3:
        raise ValueError(
            "local response normalization: images must be floating point [n, c, ...] with a dimension of places or "
            f"more, not {images.dtype} {list(images.shape)}"
        )
    if images.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"local response normalization: there is no kernel for {images.device}")
    if size < 1:
        raise ValueError(f"local response normalization: a window has 1 channel or more, not {size}")
    if gradient is not None and (
        gradient.shape != images.shape or gradient.dtype != images.dtype or gradient.device != images.device
    ):
        raise ValueError(
            f"local response normalization: the gradient must be {images.dtype} {list(images.shape)} on "
            f"{images.device}, not {gradient.dtype} {list(gradient.shape)} on {gradient.device}"
        )


def _channels_last(images: Tensor) -> bool:
    return not images.is_contiguous() and images.movedim(1, -1).is_contiguous()


def _laid_out(tensor: Tensor, innermost: bool) -> Tensor:
    return tensor.movedim(1, -1).contiguous() if innermost else tensor.contiguous()


def _empty(images: Tensor) -> Tensor:
    """Return what a result is written to."""
    if not _channels_last(images):
        return images.new_empty(images.shape)
    return images.new_empty(images.movedim(1, -1).shape).movedim(-1, 1)


def _forward(images: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return run(images, None, size, alpha, beta, k)


def _backward(gradient: Tensor, images: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return run(images, gradient, size, alpha, beta, k)


library.impl("lrn", _forward, "CompositeExplicitAutograd")
library.impl("lrn_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("engine::lrn")
def _(images, size, alpha, beta, k):  # type: ignore[no-untyped-def]
    _check(images, None, size)
    return _empty(images)


@torch.library.register_fake("engine::lrn_backward")
def _(gradient, images, size, alpha, beta, k):  # type: ignore[no-untyped-def]
    _check(images, gradient, size)
    return _empty(images)


def _keep_images(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.constants = inputs[1:]


def _of_forward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (images,) = ctx.saved_tensors
    return ops.lrn_backward(gradient, images, *ctx.constants), *[None] * 4


def _keep_both(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.constants = inputs[2:]


def _of_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    gradient, images = ctx.saved_tensors
    if images.numel() == 0:
        return torch.zeros_like(gradient), torch.zeros_like(images), *[None] * 4
    return *_second_order(cotangent, gradient, images, *ctx.constants), *[None] * 4


def _second_order(
    v: Tensor, d: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the sum of v * lrn_backward(d, x) with respect to d and x, in torch's own operations.

    With g = d x s^(-beta - 1), W the sum over a window and W' its transpose, lrn_backward is d s^-beta less
    2 beta a x W'(g).
    """
    a = alpha / size
    s = k + a * _window_sum(x * x, size)
    power = s.pow(-beta - 1)  # of g; s times it is s^-beta
    u = _window_sum(v * x, size)
    to_gradient = v * s * power - 2 * beta * a * x * power * u
    to_sum = beta * d * power * (2 * (beta + 1) * a * x * u / s - v)
    g = _window_sum(d * x * power, size, transposed=True)
    to_images = 2 * a * (x * _window_sum(to_sum, size, transposed=True) - beta * (d * power * u + v * g))
    return to_gradient, to_images


def _window_sum(values: Tensor, size: int, transposed: bool = False) -> Tensor:
    """Return the sum over each channel's window, or over the windows that a channel is in."""
    channels = values.shape[1]
    beside = [min(size // 2, channels - 1), min((size - 1) // 2, channels - 1)]
    before, behind = reversed(beside) if transposed else beside
    padded = functional.pad(values.flatten(2), (0, 0, before, behind))
    rows = [padded.narrow(1, first, channels) for first in range(before + behind + 1)]
    return torch.stack(rows).sum(0).view(values.shape)


torch.library.register_autograd("engine::lrn", _of_forward, setup_context=_keep_images)
torch.library.register_autograd("engine::lrn_backward", _of_backward, setup_context=_keep_both)

# As torch computes its own, where numbers of fewer bits would lose what the sum of squares is for.
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("engine::lrn", _device, torch.float32)
