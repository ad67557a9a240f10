"""Modules of the layers that look at neighbours: convolutions, pooling, local response normalisation."""

from __future__ import annotations

from math import ceil, prod

from torch import nn

from .fillers import fill
from .layer import Layer, Made, Shape, require_blobs, require_image, require_size
from .schema import Message

Pair = tuple[int, int]


def pair(layer: Layer, message: Message, name: str, default: int | None, sides: str) -> Pair:
    """Return a setting that is given for both sides, once for each, or as SIDES_h and SIDES_w. Raises Mistake."""
    both = message.all(name)
    height, width = (message.get(f"{sides}_{side}") if sides else None for side in "hw")
    if height is not None or width is not None:
        if both:
            raise layer.mistake(f"{name} is given, and {sides}_h or {sides}_w too")
        if default is None and None in (height, width):
            raise layer.mistake(f"{sides}_h and {sides}_w must both be given")
        found = (
            (default or 0) if height is None else height,
            (default or 0) if width is None else width,
        )
    elif len(both) in (1, 2):
        found = (both[0], both[-1])
    elif both:
        raise layer.mistake(f"{name} is given {len(both)} times, and images have two sides")
    elif default is None:
        raise layer.mistake(f"{name} must be given")
    else:
        found = (default, default)
    least = 0 if sides == "pad" else 1
    if min(found) < least or max(found) > 2**15:
        raise layer.mistake(f"{name} is {found[0]} x {found[1]}: must be {least} to {2**15}")
    return found


def _filters(layer: Layer, channels: int, outputs: int | None) -> tuple[Message, int, int]:
    """Return the settings, the number of filters and the groups."""
    settings = layer.settings("convolution_param")
    count, groups = outputs if outputs is not None else settings.get("num_output"), settings.get("group")
    if count is None or count < 1:
        raise layer.mistake("num_output must be given, and at least 1")
    if settings.get("axis") not in (1, -3):
        raise layer.mistake("it convolves along other axes than those of an image")
    if groups < 1 or channels % groups or count % groups:
        raise layer.mistake(f"{channels} channels and {count} filters cannot be in {groups} groups each")
    return settings, count, groups


def convolution(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    """Make a convolution; outputs: how many filters instead of those of the prototxt."""
    require_blobs(layer, shapes)
    channels, *sides = require_image(layer, shapes[0])
    settings, count, groups = _filters(layer, channels, outputs)
    kernel, stride = pair(layer, settings, "kernel_size", None, "kernel"), pair(layer, settings, "stride", 1, "stride")
    padding, dilation = pair(layer, settings, "pad", 0, "pad"), pair(layer, settings, "dilation", 1, "")
    after = tuple(
        (side + 2 * p - (d * (k - 1) + 1)) // s + 1
        for side, k, s, p, d in zip(sides, kernel, stride, padding, dilation, strict=True)
    )
    shape = require_size(layer, (count, *after), count * channels // groups * prod(kernel))
    bias = settings.get("bias_term")
    module = nn.Conv2d(channels, count, kernel, stride, padding, dilation, groups, bias)
    return Made(module, [shape], parameters=_filled(module, settings))


def deconvolution(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    """Make a transposed convolution."""
    require_blobs(layer, shapes)
    channels, *sides = require_image(layer, shapes[0])
    settings, count, groups = _filters(layer, channels, outputs)
    kernel, stride = pair(layer, settings, "kernel_size", None, "kernel"), pair(layer, settings, "stride", 1, "stride")
    padding, dilation = pair(layer, settings, "pad", 0, "pad"), pair(layer, settings, "dilation", 1, "")
    after = tuple(
        (side - 1) * s + d * (k - 1) + 1 - 2 * p
        for side, k, s, p, d in zip(sides, kernel, stride, padding, dilation, strict=True)
    )
    shape = require_size(layer, (count, *after), count * channels // groups * prod(kernel))
    bias = settings.get("bias_term")
    module = nn.ConvTranspose2d(channels, count, kernel, stride, padding, 0, groups, bias, dilation)
    return Made(module, [shape], parameters=_filled(module, settings))


def _filled(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, settings: Message) -> tuple[str, ...]:
    """Draw a layer's first weights and return their names. What has no filler is drawn as by "xavier"; Caffe has 0."""
    fill(module.weight, settings.get("weight_filler"), "xavier")
    if module.bias is None:
        return ("weight",)
    fill(module.bias, settings.get("bias_filler"))
    return "weight", "bias"


def linear(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    """Make an inner product."""
    require_blobs(layer, shapes)
    settings = layer.settings("inner_product_param")
    count = outputs if outputs is not None else settings.get("num_output")
    if count is None or count < 1:
        raise layer.mistake("num_output must be given, and at least 1")
    if settings.get("axis") not in (1, -len(shapes[0])):
        raise layer.mistake("it sums over other axes than all of an image")
    shape = require_size(layer, (count,), count * prod(shapes[0]))
    module = nn.Linear(prod(shapes[0]), count, settings.get("bias_term"))
    return Made(module, [shape], flat=len(shapes[0]) > 1, parameters=_filled(module, settings))


def pooling(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    """Make a pooling that keeps an incomplete last window, as Caffe's; of the whole image with global_pooling."""
    require_blobs(layer, shapes)
    channels, height, width = require_image(layer, shapes[0])
    settings = layer.settings("pooling_param")
    method, keeps = settings.get("pool"), settings.get("round_mode") == "CEIL"
    if method == "STOCHASTIC":
        raise layer.mistake("pool: STOCHASTIC is not supported: MAX and AVE are")
    padding, stride = pair(layer, settings, "pad", 0, "pad"), pair(layer, settings, "stride", 1, "stride")
    if settings.get("global_pooling"):
        if padding != (0, 0) or stride != (1, 1):
            raise layer.mistake("global_pooling goes with no pad and with stride 1")
        module: nn.Module = nn.AdaptiveAvgPool2d(1) if method == "AVE" else nn.AdaptiveMaxPool2d(1)
        return Made(module, [(channels, 1, 1)])
    kernel = pair(layer, settings, "kernel_size", None, "kernel")
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise layer.mistake(f"pad of {padding[0]} x {padding[1]} is more than half of its kernel: not supported")
    after = []
    for side, k, s, p in zip((height, width), kernel, stride, padding, strict=True):
        windows = (ceil if keeps else int)((side + 2 * p - k) / s) + 1 if side + 2 * p >= k else 0
        if keeps and windows and (windows - 1) * s >= side + p:
            if not any(padding):
                raise layer.mistake("its last window would lie outside of the image, where Caffe's result is undefined")
            windows -= 1
        after.append(windows)
    shape = require_size(layer, (channels, *after))
    kind = nn.MaxPool2d if method == "MAX" else nn.AvgPool2d
    return Made(kind(kernel, stride, padding, ceil_mode=keeps), [shape])


def local_response(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    """Make a local response normalisation, across channels or within each."""
    from engine.normalization import LocalResponseNorm, WithinChannelNorm

    require_blobs(layer, shapes)
    require_image(layer, shapes[0])
    settings = layer.settings("lrn_param")
    size, alpha, beta, k = (settings.get(name) for name in ("local_size", "alpha", "beta", "k"))
    if size < 1 or size % 2 == 0 or size > 2**15:
        raise layer.mistake(f"local_size is {size}: must be odd, as a place has as many neighbours on each side")
    if settings.get("norm_region") == "WITHIN_CHANNEL":
        return Made(WithinChannelNorm(size, alpha, beta), [shapes[0]])
    return Made(LocalResponseNorm(size, alpha, beta, k), [shapes[0]])
