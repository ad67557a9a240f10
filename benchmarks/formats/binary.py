"""Packed networks of one bit beside torch in float32 and bfloat16: a multilayer perceptron, and convolutions.

Weights are random; what is measured does not depend on them. Outputs are compared in every bit before anything is
timed. A packed convolution takes bits and gives bits, as between two layers of such a network.

A turn is several calls, one after the other, as of a program that does nothing else, so that what fits into the caches
is there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from harness import Report, Side, interleave
from torch import Tensor, nn
from torch.nn import functional

from engine.binary.modules import BinaryConv2d, BinaryLinear, Sign
from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.binary.pixels import Pixels
from engine.ops.binary import BinaryConvolution, Thresholds, pack_signs

PACKED, FLOAT, HALF = "packed", "torch, float32", "torch, bfloat16"
CALLS = {1: 20, 16: 5, 256: 1}  # of a turn, by batch
PERCEPTRON = {1: 40.0, 16: None, 256: 18.0}  # batch -> how many times as fast as float32 it is to be
CONVOLUTIONS = {(128, 16, 16): 10.0, (256, 8, 32): 10.0, (512, 4, 64): 10.0}  # channels, side, batch -> the same


class Folded(nn.Module):
    """A binary layer with its signs taken once: what plain PyTorch would run, in its type."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.where(layer.weight >= 0, 1.0, -1.0).to(dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Return the sums."""
        return functional.linear(input, self.weight)


def perceptron(width: int = 4096, hidden: int = 3) -> nn.Sequential:
    """Return 784-width x hidden-10 with BatchNorm calibrated on random pixels, its factors of both signs."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = 784
    for _ in range(hidden):
        layers += [BinaryLinear(inputs, width, bias=False), nn.BatchNorm1d(width, momentum=None), Sign()]
        inputs = width
    model = nn.Sequential(*layers, BinaryLinear(inputs, 10, bias=False), nn.BatchNorm1d(10, momentum=None))
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(random_pixels(256).float())
    return model.eval()


def random_pixels(count: int) -> Tensor:
    """Return uint8 [count, 1, 28, 28]."""
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def plain(model: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Return the same network for plain PyTorch in a type."""
    copied = copy.deepcopy(model).to(dtype)
    return nn.Sequential(*(Folded(layer, dtype) if isinstance(layer, nn.Linear) else layer for layer in copied)).eval()


def measure_perceptron(report: Report, rounds: int, width: int = 4096) -> None:
    """784-4096x3-10 on pixels, the packed network and torch's."""
    model = perceptron(width)
    packed = pack(model, random_pixels(64).float(), Pixels(torch.arange(256.0)[None]))
    network = BinaryNetwork(packed.header, packed.arrays)
    in_float, in_half = plain(model, torch.float32), plain(model, torch.bfloat16)
    for batch, target in PERCEPTRON.items():
        pixels = random_pixels(batch)
        floats, halves = pixels.float(), pixels.bfloat16()
        if not torch.equal(network(pixels), in_float(floats)):
            raise RuntimeError(f"the packed network's outputs are not those of torch at batch {batch}")
        sides: Mapping[str, Side] = {
            PACKED: calls(CALLS[batch], network, pixels),
            FLOAT: calls(CALLS[batch], in_float, floats),
            HALF: calls(CALLS[batch], in_half, halves),
        }
        name = f"784-{width}x3-10, batch {batch}"
        _compare(report, name, sides, rounds, CALLS[batch], target, "float32")


def measure_convolutions(report: Report, rounds: int, scale: int = 1) -> None:
    """3x3 convolutions of bits, with their thresholds, beside F.conv2d on channels_last signs."""
    for (channels, side, batch), target in CONVOLUTIONS.items():
        torch.manual_seed(0)
        channels, batch = channels // scale, batch // scale
        layer = BinaryConv2d(channels, channels, 3, padding=1, bias=False)
        signs = torch.where(torch.randn(batch, channels, side, side) >= 0, 1.0, -1.0)
        bits = pack_signs(signs.permute(0, 2, 3, 1))
        plus = (layer.weight >= 0).permute(0, 2, 3, 1).numpy()
        least = torch.randint(-20, 20, (channels,), dtype=torch.int32)
        flags = torch.arange(channels) % 2 == 1
        packed = BinaryConvolution(plus, padding=(1, 1), thresholds=Thresholds.of(least, flags))
        padded = functional.pad(signs, (1, 1, 1, 1), value=-1.0)
        sums = functional.conv2d(padded, torch.where(layer.weight >= 0, 1.0, -1.0)).permute(0, 2, 3, 1)
        if not torch.equal(packed(bits), pack_signs(torch.where((sums >= least) ^ flags, 1.0, -1.0))):
            raise RuntimeError(f"the packed convolution of {channels} channels differs from torch's")
        sides: dict[str, Side] = {PACKED: calls(5, packed, bits)}
        for name, dtype in ((FLOAT, torch.float32), (HALF, torch.bfloat16)):
            images = signs.to(dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.where(layer.weight >= 0, 1.0, -1.0).to(dtype).contiguous(memory_format=torch.channels_last)
            sides[name] = calls(5, partial(functional.conv2d, padding=1), images, weight)
        name = f"convolution 3x3, {channels} channels, {side}x{side}, batch {batch}"
        _compare(report, name, sides, rounds, 5, target, "F.conv2d channels_last in float32")


def calls(count: int, function: Callable[..., Tensor], *arguments: Tensor) -> Side:
    """Return a side that calls a function so often, and is timed as a whole."""

    def side() -> None:
        for _ in range(count):
            function(*arguments)

    return side


def _compare(
    report: Report, name: str, sides: Mapping[str, Side], rounds: int, count: int, target: float | None, over: str
) -> None:
    with torch.inference_mode():
        times = interleave(sides, rounds, warmup=3)
    rows = [[side, times.spread(side).text(1e3 / count, 3), times.ratio(side, PACKED).text(digits=1)] for side in sides]
    report.table(name, ["", "ms", "times the packed one's"], rows)
    if target is not None:
        report.claim(f"{name}, times as fast as {over}", times.ratio(FLOAT, PACKED).median, target, "x", at_least=True)


def measure(report: Report, quick: bool) -> None:
    """All of the above in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measure_perceptron(report, 5 if quick else 30)
        measure_convolutions(report, 5 if quick else 30)
    finally:
        torch.set_num_threads(threads)
