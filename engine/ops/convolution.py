"""Convolution as torch's dispatcher knows it: ``torch.ops.engine.conv2d`` and its two gradients, for every kernel.

A kernel, built in or a third party's, is registered by name and then has autograd to any order, fake tensors,
autocast and ``torch.compile`` through these four ops. Each takes ``kernels``, the names for forward,
backward_input and backward_weight with slashes between: "winograd4/native/winograd4".

Results are in NHWC order (channels_last) if one of the two arguments is, else in NCHW order: torch's own rule.
A kernel that refuses the shape at hand (of a last, smaller batch, say) gives way to torch's own, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from engine.errors import UsageError
from engine.kernels import DIRECTIONS, ConvKernel, ConvSpec
from engine.native import NativeKernel

NATIVE = NativeKernel()
_kernels: dict[str, ConvKernel] = {NATIVE.name: NATIVE}

GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups, str kernels"
library = torch.library.Library("engine", "DEF")
library.define(f"conv2d(Tensor images, Tensor weight, Tensor? bias, {GEOMETRY}) -> Tensor")
library.define(f"conv2d_input(Tensor gradient, Tensor weight, SymInt[] size, {GEOMETRY}) -> Tensor")
library.define(f"conv2d_weight(Tensor gradient, Tensor images, SymInt[] size, {GEOMETRY}) -> Tensor")
library.define(f"conv2d_prepared(Tensor images, Tensor prepared, Tensor? bias, int[] size, {GEOMETRY}) -> Tensor")
ops = torch.ops.engine


def register(kernel: ConvKernel, *, replace: bool = False) -> None:
    """Make a kernel known to the ops by its name; one of the same name and class makes room for it.

    replace: so does one of another class, as tests may wish. Raises UsageError for a name that a kernel of another
    class has, or torch's own, ValueError for none or one with a slash.
    """
    if not kernel.name or "/" in kernel.name:
        raise ValueError(f"a kernel's name must be some letters without a slash, not {kernel.name!r}")
    held = _kernels.get(kernel.name)
    if held is kernel:
        return
    if held is NATIVE or not (held is None or replace or _class(held) == _class(kernel)):
        raise UsageError(
            f"two convolution kernels are called '{kernel.name}': {_class(held)} and {_class(kernel)}; a kernel needs "
            "a name of its own, so rename one or uninstall its plugin"
        )
    _kernels[kernel.name] = kernel
    _chosen.cache_clear()


def _class(kernel: ConvKernel) -> str:
    return f"{type(kernel).__module__}.{type(kernel).__qualname__}"  # not the class itself: a function may make it anew


def registered(name: str) -> ConvKernel:
    """Return the kernel of that name; raises ValueError if there is none."""
    if name not in _kernels:
        raise ValueError(f"no convolution kernel is called '{name}'; registered are {', '.join(sorted(_kernels))}")
    return _kernels[name]


@lru_cache(maxsize=4096)
def _chosen(
    direction: str,
    images: tuple[int, ...],
    weight: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    channels_last: bool,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    kernels: str,
) -> tuple[ConvKernel, ConvSpec]:
    """Return what computes a direction of these shapes. Raises ValueError for shapes or names that do not fit."""
    spec = ConvSpec.of(
        images, weight, stride, padding, dilation, groups, dtype=dtype, channels_last=channels_last, device=device
    )
    names = kernels.split("/")
    if len(names) != len(DIRECTIONS):
        raise ValueError(f"kernels must name one for each of {'/'.join(DIRECTIONS)}, not {kernels!r}")
    kernel = registered(names[DIRECTIONS.index(direction)])
    if spec.batch and (reason := kernel.refuses(spec, direction)):  # an empty batch reaches no kernel
        warnings.warn(
            f"kernel {kernel.name} gives way to native in the {direction} of images {list(images)}, "
            f"weight {list(weight)}: {reason}",
            stacklevel=2,
        )
        kernel = NATIVE
    return kernel, spec


def _check_mode() -> None:
    """Raise RuntimeError inside forward-mode differentiation: torch would take the derivative for zero."""
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            "torch.ops.engine: convolution kernels have no forward-mode derivative (torch.func.jvp, jacfwd, "
            "torch.autograd.forward_ad); compute with torch.nn.functional.conv2d there"
        )


def _alike(*tensors: Tensor | None) -> None:
    """Raise ValueError unless the tensors are of one type on one device."""
    given = [tensor for tensor in tensors if tensor is not None]
    if any(t.dtype != given[0].dtype or t.device != given[0].device for t in given):
        kinds = ", ".join(f"{t.dtype} on {t.device}" for t in given)
        raise ValueError(f"convolution: tensors must be of one type on one device, not {kinds}")


def _is_nhwc(*tensors: Tensor) -> bool:
    return any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in tensors)


def _lay_out(result: Tensor, channels_last: bool) -> Tensor:
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _choose(
    direction: str, images: Sequence[int], weight: Sequence[int], like: Tensor, channels_last: bool, geometry: Any
) -> tuple[ConvKernel, ConvSpec]:
    stride, padding, dilation, groups, kernels = geometry
    return _chosen(
        direction, tuple(images), tuple(weight), like.dtype, like.device.type, channels_last,
        tuple(stride), tuple(padding), tuple(dilation), groups, kernels,
    )  # fmt: skip


def _forward(images: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    _check_mode()
    _alike(images, weight, bias)
    nhwc = _is_nhwc(images, weight)
    kernel, spec = _choose("forward", images.shape, weight.shape, images, nhwc, geometry)
    _check_bias(bias, spec)
    if spec.batch == 0:
        return _empty(images, spec.output_shape, nhwc)
    return _lay_out(kernel.forward(images, weight, bias, spec), nhwc)


def _prepared(images: Tensor, prepared: Tensor, bias: Tensor | None, size: Sequence[int], *geometry: Any) -> Tensor:
    _check_mode()
    nhwc = _is_nhwc(images)
    kernel, spec = _choose("forward", images.shape, size, images, nhwc, geometry)
    _check_bias(bias, spec)
    if spec.batch == 0:
        return _empty(images, spec.output_shape, nhwc)
    if kernel.name != geometry[-1].partition("/")[0]:  # it gave way
        raise ValueError("convolution: a weight was prepared by a kernel that does not compute these images")
    return _lay_out(kernel.forward(images, prepared, bias, spec), nhwc)


def _check_bias(bias: Tensor | None, spec: ConvSpec) -> None:
    if bias is not None and bias.shape != (spec.filters,):
        raise ValueError(f"convolution: the bias must have shape [{spec.filters}], not {list(bias.shape)}")


def _input(gradient: Tensor, weight: Tensor, size: Sequence[int], *geometry: Any) -> Tensor:
    _check_mode()
    _alike(gradient, weight)
    nhwc = _is_nhwc(gradient, weight)
    kernel, spec = _choose("backward_input", size, weight.shape, gradient, nhwc, geometry)
    _check_gradient(gradient, spec)
    if spec.batch == 0:
        return _empty(gradient, spec.input_shape, nhwc)
    return _lay_out(kernel.backward_input(gradient, weight, spec), nhwc)


def _weight(gradient: Tensor, images: Tensor, size: Sequence[int], *geometry: Any) -> Tensor:
    _check_mode()
    _alike(gradient, images)
    nhwc = _is_nhwc(gradient, images)
    kernel, spec = _choose("backward_weight", images.shape, size, images, nhwc, geometry)
    _check_gradient(gradient, spec)
    if spec.batch == 0:
        return _empty(images, spec.weight_shape, nhwc).zero_()
    return _lay_out(kernel.backward_weight(gradient, images, spec), nhwc)


def _check_gradient(gradient: Tensor, spec: ConvSpec) -> None:
    if gradient.shape != spec.output_shape:
        raise ValueError(
            f"convolution: the gradient must have shape {list(spec.output_shape)}, not {list(gradient.shape)}"
        )


for _name, _function in (
    ("conv2d", _forward), ("conv2d_prepared", _prepared), ("conv2d_input", _input), ("conv2d_weight", _weight),
):  # fmt: skip
    library.impl(_name, _function, "CompositeExplicitAutograd")


# Fake tensors: shapes and strides alone; sizes may be symbols, so nothing is cached.


@torch.library.register_fake("engine::conv2d")
def _(images, weight, bias, stride, padding, dilation, groups, kernels):  # type: ignore[no-untyped-def]
    _alike(images, weight, bias)
    spec = ConvSpec.of(images.shape, weight.shape, stride, padding, dilation, groups)
    return _empty(images, spec.output_shape, _is_nhwc(images, weight))


@torch.library.register_fake("engine::conv2d_prepared")
def _(images, prepared, bias, size, stride, padding, dilation, groups, kernels):  # type: ignore[no-untyped-def]
    return _empty(
        images, ConvSpec.of(images.shape, size, stride, padding, dilation, groups).output_shape, _is_nhwc(images)
    )


@torch.library.register_fake("engine::conv2d_input")
def _(gradient, weight, size, *geometry):  # type: ignore[no-untyped-def]
    return _empty(gradient, size, _is_nhwc(gradient, weight))


@torch.library.register_fake("engine::conv2d_weight")
def _(gradient, images, size, *geometry):  # type: ignore[no-untyped-def]
    return _empty(gradient, size, _is_nhwc(gradient, images))


# Gradients. Convolution is linear in each argument, so the three ops are each other's derivatives and any order of
# derivative exists.


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.geometry = inputs[3:]


def _of_forward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    images, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        ops.conv2d_input(gradient, weight, images.shape, *ctx.geometry) if wanted[0] else None,
        ops.conv2d_weight(gradient, images, weight.shape, *ctx.geometry) if wanted[1] else None,
        gradient.sum((0, 2, 3)) if wanted[2] else None,
        *[None] * 5,
    )


def _of_input(ctx: Any, images: Tensor) -> tuple[Any, ...]:
    gradient, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        ops.conv2d(images, weight, None, *ctx.geometry) if wanted[0] else None,
        ops.conv2d_weight(gradient, images, weight.shape, *ctx.geometry) if wanted[1] else None,
        *[None] * 6,
    )


def _of_weight(ctx: Any, weight: Tensor) -> tuple[Any, ...]:
    gradient, images = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        ops.conv2d(images, weight, None, *ctx.geometry) if wanted[0] else None,
        ops.conv2d_input(gradient, weight, images.shape, *ctx.geometry) if wanted[1] else None,
        *[None] * 6,
    )


for _name, _gradient in (("conv2d", _of_forward), ("conv2d_input", _of_input), ("conv2d_weight", _of_weight)):
    torch.library.register_autograd(f"engine::{_name}", _gradient, setup_context=_keep)

# Under autocast these kernels compute in float32, as their own arithmetic does not get faster in fewer bits.
for _name in ("conv2d", "conv2d_prepared"):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"engine::{_name}", _device, torch.float32)
