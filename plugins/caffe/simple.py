"""Modules of the layers that look at places one by one, or move them: activations, sums, scales, shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod

from torch import nn

from .fillers import fill
from .layer import Layer, Made, Shape, axis_of, inner_axis, require_blobs, require_size
from .layers import AbsVal, Bias, Concat, Crop, Eltwise, FixedStatistics, Permute, Power, Reshape, Scale, ScaleBy, Slice
from .schema import Message
from .spatial import convolution, deconvolution, linear, local_response, pooling
from .statistics import BatchNorm1d, BatchNorm2d

Maker = Callable[[Layer, list[Shape], int | None], Made]


def _plain(make: Callable[[Layer], nn.Module]) -> Maker:
    """Return the maker of a layer that changes every number alone."""

    def made(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
        require_blobs(layer, shapes)
        return Made(make(layer), [shapes[0]])

    return made


def _relu(layer: Layer) -> nn.Module:
    slope = layer.settings("relu_param").get("negative_slope")
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def _dropout(layer: Layer) -> nn.Module:
    ratio = layer.settings("dropout_param").get("dropout_ratio")
    if not 0 <= ratio < 1:
        raise layer.mistake(f"dropout_ratio is {ratio:g}: must be 0 to below 1")
    return nn.Dropout(ratio)


def _power(layer: Layer) -> nn.Module:
    settings = layer.settings("power_param")
    return Power(*(settings.get(name) for name in ("power", "scale", "shift")))


def _softmax(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    return Made(nn.Softmax(inner_axis(layer, layer.settings("softmax_param").get("axis"), shapes[0])), [shapes[0]])


def _prelu(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    settings = layer.settings("prelu_param")
    module = nn.PReLU(1 if settings.get("channel_shared") else shapes[0][0])
    fill(module.weight, settings.get("filler"), value=0.25)
    return Made(module, [shapes[0]], parameters=("weight",))


def _concat(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes, None)
    settings = layer.settings("concat_param")
    axis = inner_axis(layer, settings.get("concat_dim" if settings.has("concat_dim") else "axis"), shapes[0])
    rests = {(*shape[: axis - 1], *shape[axis:]) for shape in shapes}
    if len(rests) > 1 or len({len(shape) for shape in shapes}) > 1:
        raise layer.mistake(f"its bottoms {', '.join(map(str, map(list, shapes)))} differ in more than axis {axis}")
    shape = (*shapes[0][: axis - 1], sum(shape[axis - 1] for shape in shapes), *shapes[0][axis:])
    return Made(Concat(axis), [require_size(layer, shape)])


def _slice(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes, tops=None)
    settings = layer.settings("slice_param")
    axis = inner_axis(layer, settings.get("slice_dim" if settings.has("slice_dim") else "axis"), shapes[0])
    whole, count, points = shapes[0][axis - 1], len(layer.tops), list(settings.all("slice_point"))
    if not points:
        if whole % count:
            raise layer.mistake(f"{whole} cannot be cut into {count} equal parts")
        points = [whole // count * place for place in range(1, count)]
    bounds = [0, *points, whole]
    sizes = [end - begin for begin, end in pairwise(bounds)]
    if len(sizes) != count or min(sizes) < 1:
        raise layer.mistake(f"slice_point {points} does not cut {whole} into {count} parts")
    return Made(Slice(axis, sizes), [(*shapes[0][: axis - 1], size, *shapes[0][axis:]) for size in sizes])


def _eltwise(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes, None)
    settings = layer.settings("eltwise_param")
    operation, coefficients = settings.get("operation"), list(settings.all("coeff"))
    if len(set(shapes)) > 1:
        raise layer.mistake(f"its bottoms are of different shapes: {', '.join(map(str, map(list, shapes)))}")
    if coefficients and (operation != "SUM" or len(coefficients) != len(shapes)):
        raise layer.mistake(f"{len(coefficients)} coefficients go with a SUM of as many bottoms")
    return Made(Eltwise(operation, coefficients or [1.0] * len(shapes)), [shapes[0]])


def _batch_norm(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    settings, channels = layer.settings("batch_norm_param"), shapes[0][0]
    eps, kept = settings.get("eps"), settings.get("moving_average_fraction")
    if eps <= 0 or not 0 <= kept <= 1 or len(shapes[0]) not in (1, 3):
        raise layer.mistake("eps must be above 0, moving_average_fraction 0 to 1, its bottom images or vectors")
    scaled = settings.get("scale_bias") or settings.has("scale_filler") or settings.has("bias_filler")
    if settings.get("use_global_stats"):
        if scaled:
            raise layer.mistake("use_global_stats with scale_bias is not supported")
        return Made(FixedStatistics(channels, eps), [shapes[0]], parameters=("", "", ""))
    kind = BatchNorm2d if len(shapes[0]) == 3 else BatchNorm1d
    module = kind(channels, eps, 1 - kept, affine=scaled)
    if not scaled:
        return Made(module, [shapes[0]], parameters=("", "", ""))
    fill(module.weight, settings.get("scale_filler"), value=1.0)
    fill(module.bias, settings.get("bias_filler"))
    return Made(module, [shapes[0]], parameters=("", "", "", "weight", "bias"))


def _channels(layer: Layer, settings: Message, shape: Shape) -> int:
    """Return the channels. Raises Mistake unless the layer has a number for each of them."""
    if inner_axis(layer, settings.get("axis"), shape) != 1 or settings.get("num_axes") != 1:
        raise layer.mistake("it has other numbers than one for each channel, which is not supported")
    return shape[0]


def _scale(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    settings = layer.settings("scale_param")
    if len(shapes) == 2:
        return _scale_by(layer, shapes, settings)
    require_blobs(layer, shapes)
    module = Scale(_channels(layer, settings, shapes[0]), settings.get("bias_term"))
    fill(module.weight, settings.get("filler"), value=1.0)
    if module.bias is None:
        return Made(module, [shapes[0]], parameters=("weight",))
    fill(module.bias, settings.get("bias_filler"))
    return Made(module, [shapes[0]], parameters=("weight", "bias"))


def _scale_by(layer: Layer, shapes: list[Shape], settings: Message) -> Made:
    require_blobs(layer, shapes, 2)
    first, second = shapes
    if axis_of(layer, settings.get("axis"), first) != 0 or settings.get("bias_term") or second != first[: len(second)]:
        raise layer.mistake("a Scale by another blob is supported with axis: 0, that blob's shape, and no bias")
    return Made(ScaleBy(len(first) - len(second)), [first])


def _bias(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    settings = layer.settings("bias_param")
    module = Bias(_channels(layer, settings, shapes[0]))
    fill(module.bias, settings.get("filler"))
    return Made(module, [shapes[0]], parameters=("bias",))


def _flatten(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    settings, shape = layer.settings("flatten_param"), shapes[0]
    first = inner_axis(layer, settings.get("axis"), shape)
    last = inner_axis(layer, settings.get("end_axis"), shape)
    if last < first:
        raise layer.mistake(f"end_axis {last} is before axis {first}")
    return Made(nn.Flatten(first, last), [(*shape[: first - 1], prod(shape[first - 1 : last]), *shape[last:])])


def _reshape(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    settings, shape = layer.settings("reshape_param"), shapes[0]
    dims = list(settings.get("shape").all("dim")) if settings.has("shape") else []
    start, count = axis_of(layer, settings.get("axis"), (*shape, 1)), settings.get("num_axes")
    axes = [0, *shape]  # 0: as many as there are images
    end = len(axes) if count == -1 else start + count
    if not start <= end <= len(axes) or dims.count(-1) > 1 or any(d < -1 for d in dims):
        raise layer.mistake("it reshapes axes that are not there, or leaves more than one open")
    if any(d == 0 and start + place >= len(axes) for place, d in enumerate(dims)):
        raise layer.mistake("a dim of 0 stands for an axis that its bottom does not have")
    named = [axes[start + place] if d == 0 else d for place, d in enumerate(dims)]
    result = [*axes[:start], *named, *axes[end:]]
    if not result or result[0] not in (0, -1) or 0 in result[1:]:
        raise layer.mistake("it mixes images: the first dim of what it gives must be 0 (or -1), their number")
    inner = result[1:]
    if -1 in inner:
        rest = prod(size for size in inner if size != -1)
        inner[inner.index(-1)] = prod(shape) // rest
    if prod(inner) != prod(shape):
        raise layer.mistake(f"{list(shape)} cannot become {inner}")
    return Made(Reshape(inner), [tuple(inner)])


def _permute(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes)
    order = list(layer.settings("permute_param").all("order"))
    order += [axis for axis in range(len(shapes[0]) + 1) if axis not in order]
    if sorted(order) != list(range(len(shapes[0]) + 1)) or order[0] != 0:
        raise layer.mistake(f"order {order} is no order of its axes that leaves the images first")
    return Made(Permute(order), [tuple(shapes[0][axis - 1] for axis in order[1:])])


def _crop(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes, 2)
    settings, (shape, like) = layer.settings("crop_param"), shapes
    axis, offsets = inner_axis(layer, settings.get("axis"), shape), list(settings.all("offset"))
    cropped = len(shape) + 1 - axis
    if len(offsets) not in (0, 1, cropped) or len(like) != len(shape):
        raise layer.mistake(f"{len(offsets)} offsets do not go with {cropped} axes")
    offsets = offsets * cropped if len(offsets) == 1 else offsets or [0] * cropped
    parts = [(0, size) for size in shape[: axis - 1]]
    parts += list(zip(offsets, like[axis - 1 :], strict=True))
    if any(start < 0 or start + size > whole for (start, size), whole in zip(parts, shape, strict=True)):
        raise layer.mistake(f"{list(like)} at {offsets} is not within {list(shape)}")
    return Made(Crop(parts), [tuple(size for _, size in parts)])


def _split(layer: Layer, shapes: list[Shape], outputs: int | None) -> Made:
    require_blobs(layer, shapes, tops=None)
    return Made(None, shapes * len(layer.tops))


MAKERS: Mapping[str, Maker] = {
    "AbsVal": _plain(lambda layer: AbsVal()),
    "BatchNorm": _batch_norm,
    "Bias": _bias,
    "BNLL": _plain(lambda layer: nn.Softplus()),
    "Concat": _concat,
    "Convolution": convolution,
    "Crop": _crop,
    "Deconvolution": deconvolution,
    "Dropout": _plain(_dropout),
    "Eltwise": _eltwise,
    "ELU": _plain(lambda layer: nn.ELU(layer.settings("elu_param").get("alpha"))),
    "Flatten": _flatten,
    "InnerProduct": linear,
    "LRN": local_response,
    "Permute": _permute,
    "Pooling": pooling,
    "Power": _plain(_power),
    "PReLU": _prelu,
    "ReLU": _plain(_relu),
    "Reshape": _reshape,
    "Scale": _scale,
    "Sigmoid": _plain(lambda layer: nn.Sigmoid()),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "TanH": _plain(lambda layer: nn.Tanh()),
}
