"""How large an image is behind a network's layers, for the networks whose linear layers depend on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

from torch import nn

from engine import UsageError

Pair = int | tuple[int, ...]


def size_after(layers: Iterable[nn.Module], size: int, axis: int = 0) -> int:
    """Return the height (axis 0) or width (axis 1) that is left of ``size`` behind the layers; 0 for nothing.

    layers: convolutions and pooling count, in their order; a layer with others in it counts as these, one after the
    other, so that parallel branches must each keep the size.
    """
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                size = _behind(size, axis, module.kernel_size, module.stride, module.padding, False)
            elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                size = _behind(size, axis, module.kernel_size, module.stride, module.padding, module.ceil_mode)
            if size < 1:
                return 0
    return size


def require_size(model: str, layers: Sequence[nn.Module], inputs: tuple[int, int, int], advice: str = "") -> None:
    """Raise UsageError, which names the least size, for images of which nothing is left behind the layers.

    advice: what else than larger images would do, for the end of the message.
    """
    _, height, width = inputs
    if all(size_after(layers, size, axis) for axis, size in enumerate((height, width))):
        return
    least = next(size for size in count(1) if size_after(layers, size))
    raise UsageError(
        f"model={model} needs images of at least {least}x{least}, not {height}x{width}: enlarge them "
        f"(augment=[resize,...] augment.resize.size={least}){advice}"
    )


def features(layers: Sequence[nn.Module], inputs: tuple[int, int, int], channels: int) -> int:
    """Return how many numbers of an image are left behind the layers, in so many channels."""
    return channels * size_after(layers, inputs[1], 0) * size_after(layers, inputs[2], 1)


def _behind(size: int, axis: int, kernel: Pair, stride: Pair, padding: Pair | str, ceil: bool) -> int:
    kernel, stride = _along(kernel, axis), _along(stride, axis)
    padding = 0 if isinstance(padding, str) else _along(padding, axis)
    reach = size + 2 * padding - kernel
    behind = (reach + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (behind - 1) * stride >= size + padding:
        behind -= 1  # the last window would lie in the padding alone
    return behind


def _along(value: Pair, axis: int) -> int:
    return value if isinstance(value, int) else value[axis]


def add_classifier(network: nn.Module, left: int, hidden: int, dropout: float, outputs: int) -> None:
    """Give a network AlexNet's end, which ZFNet and VGG took over: three linear layers, two with ReLU and dropout."""
    network.flatten = nn.Flatten()
    network.fc6 = nn.Linear(left, hidden)
    network.relu6 = nn.ReLU()
    network.drop6 = nn.Dropout(dropout)
    network.fc7 = nn.Linear(hidden, hidden)
    network.relu7 = nn.ReLU()
    network.drop7 = nn.Dropout(dropout)
    network.fc8 = nn.Linear(hidden, outputs)
