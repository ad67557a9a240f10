"""Packing a trained network: layers between signs become integers and thresholds, the rest stays float32.

A packed network is a list of steps and arrays, which ``engine.binary.network`` runs:

    encode        images to bytes, [n, h, w, c]: a value for each pixel value, or multiples of ``step`` from ``zero`` on
    convolve      bytes or bits to sums, or with thresholds to bits
    pool, invert  bits to bits
    sums          to float32, less what ``zero`` added to them, times ``step``
    pack, unpack  signs of float32 to bits, and back
    float         one of ``engine.binary.operations``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.binary.operations import Operation
from engine.binary.pixels import Pixels
from engine.binary.thresholds import find_thresholds
from engine.binary.tracing import operations_of
from engine.errors import UsageError

EXACT = 1 << 24  # whole numbers up to here are float32s
MONOTONE = ("multiply", "add", "batch_norm", "hardtanh")  # in each output, and of one value each


@dataclass
class Packed:
    """A packed network: what the header of its file says, and its arrays."""

    header: dict[str, Any]
    arrays: dict[str, Tensor] = field(default_factory=dict)


def pack(
    model: nn.Module, images: Tensor, pixels: Pixels | None = None, tell: Callable[[str], None] = lambda text: None
) -> Packed:
    """Return a model in evaluation mode as a packed network.

    images: float32 [n, c, h, w], examples of what the model takes. pixels: what it is given for bytes, where that is
    known. ``tell`` hears which layers stay in float32. Raises UsageError naming a layer that has no form, or none of
    one bit, and if any example's outputs would not be the same in every bit.
    """
    model = model.eval()
    with torch.no_grad():
        operations = operations_of(model)
        packed = _Packing(operations, images, pixels, tell).packed
        _require_same(model, packed, images, pixels)
    return packed


def _require_same(model: nn.Module, packed: Packed, images: Tensor, pixels: Pixels | None) -> None:
    """Raise UsageError unless the packed network's outputs have the model's bits."""
    from engine.binary.network import BinaryNetwork

    expected, found = model(images), BinaryNetwork(packed.header, packed.arrays)(images)
    if not torch.equal(expected.contiguous().view(torch.int32), found.view(torch.int32)):
        rows = int((expected != found).flatten(1).any(1).sum())
        raise UsageError(
            f"the packed network's outputs differ from the model's for {rows} of {len(images)} images: a layer sums "
            "real numbers in another order; put engine.binary.modules.FixedPointInput in front of the first layer"
        )


class _Packing:
    """One network on its way; ``packed`` is the result."""

    def __init__(
        self, operations: Sequence[Operation], images: Tensor, pixels: Pixels | None, tell: Callable[[str], None]
    ) -> None:
        self.operations, self.pixels, self.tell = operations, pixels, tell
        self.steps: list[dict[str, Any]] = []
        self.arrays: dict[str, Tensor] = {}
        self.shapes = [tuple(images.shape[1:])]  # of what each operation takes, without the batch
        x = images[:1]
        for operation in operations:
            try:
                x = operation(x)
            except (RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split("\n")[0].split())
                raise UsageError(f"layer {operation.layer}: it does not take its input ({reason})") from error
            self.shapes.append(tuple(x.shape[1:]))
        self.kind, self.zero, self.step = "float", 0, 1.0
        self.integers = 0  # layers of one bit that are computed in integers
        place = self._begin()
        while place < len(operations):
            place = self._next(place)
        if self.kind == "bits":
            self._unpack(len(operations))
        if not self.integers:
            raise UsageError(
                "model: no layer computes with one bit on both sides; format=binary takes networks of precision="
                "binary_net or xnor, others are for format=onnx or torch_export"
            )
        self.packed = Packed({"input": self._input(), "steps": self.steps}, self.arrays)

    def _input(self) -> dict[str, Any]:
        """Return what the network takes."""
        taken: dict[str, Any] = {"shape": list(self.shapes[0])}
        if self.pixels is not None:
            taken["values"] = self._array("input.values", self.pixels.values)
        return taken

    def _array(self, name: str, array: Tensor) -> str:
        self.arrays[name] = array.contiguous()
        return name

    def _begin(self) -> int:
        """Encode the images as bytes if the first layer is of one bit and they are whole numbers; return its place."""
        first, fraction = 0, None
        names = [operation.name for operation in self.operations]
        for name in ("fixed_point", "flatten", "fixed_point"):  # in front of the flattening, or of a layer behind it
            if names[first : first + 1] == [name] and (name == "flatten" or fraction is None):
                fraction = self.operations[first].settings.get("fraction", fraction)
                first += 1
        binary = first < len(names) and self.operations[first].settings.get("binary")
        if not binary or self.operations[first].settings.get("groups", 1) != 1:
            return 0
        if fraction is not None:
            step, zero = 2.0**-fraction, 128
        elif self.pixels is not None and (grid := self.pixels.grid()):
            step, zero = grid
        else:
            return 0
        border = self.operations[first].settings.get("border", 0)
        most = self.operations[first].arrays["weight"][0].numel() * 255
        if border != 0 or not 0 <= zero <= 255 or most >= EXACT:
            return 0
        self.steps.append({"kind": "encode", "step": step, "zero": zero, "rounds": fraction is not None})
        self.kind, self.step, self.zero = "bytes", step, zero
        return first

    def _next(self, place: int) -> int:
        """Add the steps of the operation at a place, and of those that belong to it; return the place behind them."""
        operation = self.operations[place]
        binary = operation.settings.get("binary", False) and operation.settings.get("groups", 1) == 1
        if binary and (self.kind == "bytes" or (self.kind == "bits" and self._exact(operation))):
            return self._integers(place)
        if operation.name == "sign":
            if self.kind == "float":
                self.steps.append({"kind": "pack"})
                self.kind = "bits"
            return place + 1
        if self.kind == "bits" and operation.name == "max_pool2d" and self._plain(place):
            self._pool(operation)
            return place + 1
        if self.kind == "bits" and operation.name == "flatten":
            return place + 1  # what follows finds its weights in the order of the bits
        if self.kind == "bits":
            self._unpack(place)
        self._float(operation)
        return place + 1

    def _exact(self, operation: Operation) -> bool:
        weight, border = operation.arrays["weight"], operation.settings.get("border", -1)
        return weight[0].numel() < EXACT and (border != 0 or not any(operation.settings["padding"]))

    def _unpack(self, place: int) -> None:
        shape = self._image_shape(place)
        self.steps.append({"kind": "unpack", "channels": shape[0], "flat": len(self.shapes[place]) == 1})
        self.kind = "float"

    def _image_shape(self, place: int) -> tuple[int, ...]:
        """Return channels, height and width of the bits that the operation at a place takes: as before flattening."""
        while place and self.operations[place - 1].name in ("flatten", "fixed_point"):
            place -= 1
        shape = self.shapes[place]
        return shape if len(shape) == 3 else (shape[0], 1, 1)

    def _float(self, operation: Operation) -> None:
        """Add an operation in float32, weights of one bit as bits."""
        prefix = f"{operation.layer}.{operation.name}"
        arrays = {}
        for role, array in operation.arrays.items():
            bits = role == "weight" and operation.settings.get("binary", False)
            arrays[role] = self._array(f"{prefix}.{role}", _bits(array) if bits else array)
        if operation.name in ("linear", "conv2d"):
            self.tell(
                f"layer {operation.layer} stays float32: its weights or inputs are real numbers, or it has groups"
            )
        step: dict[str, Any] = {"kind": "float", "name": operation.name, "arrays": arrays}
        step["settings"] = dict(operation.settings)
        if operation.settings.get("binary", False):
            step["settings"]["shape"] = list(operation.arrays["weight"].shape)
        self.steps.append(step)

    def _integers(self, place: int) -> int:
        """Add a layer of one bit in integers, with the sign that follows it if one does; return the place behind."""
        operation, of_bytes = self.operations[place], self.kind == "bytes"
        self.integers += not of_bytes
        channels, height, width = self._image_shape(place)
        weight = operation.arrays["weight"]
        step: dict[str, Any] = {"kind": "convolve", "bytes": of_bytes}
        if operation.name == "linear":
            weight = weight.view(len(weight), channels, height, width)
            step |= {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "border": self.zero if of_bytes else -1}
        else:
            step |= {key: operation.settings[key] for key in ("stride", "padding", "dilation")}
            step["border"] = self.zero if of_bytes else operation.settings["border"] or -1
        weight = weight.permute(0, 2, 3, 1)
        step |= {"shape": list(weight.shape), "weight": self._array(f"{operation.layer}.signs", _bits(weight))}
        self.steps.append(step)
        offset = self.zero * weight.flatten(1).sum(1).to(torch.int64)
        scale, self.kind = self.step, "float"
        self.zero, self.step = 0, 1.0
        if (end := self._sign_after(place + 1)) is not None:
            self._thresholds(step, place, end, offset, scale)
            return end + 1
        sums: dict[str, Any] = {"kind": "sums", "step": scale, "flat": len(self.shapes[place + 1]) == 1}
        if bool(offset.any()):
            sums["offset"] = self._array(f"{operation.layer}.offset", offset.to(torch.int32))
        self.steps.append(sums)
        return place + 1

    def _sign_after(self, place: int) -> int | None:
        """Return where the sign is that a sum is followed by, if what stands between is monotone."""
        norms = 0
        for index in range(place, len(self.operations)):
            operation = self.operations[index]
            if operation.name == "sign":
                return index
            norms += operation.name == "batch_norm"
            monotone = operation.name in MONOTONE or (operation.name == "max_pool2d" and self._plain(index))
            if not monotone or norms > 1:
                return None
        return None

    def _thresholds(self, step: dict[str, Any], place: int, end: int, offset: Tensor, scale: float) -> None:
        """Give a layer thresholds that say the signs at ``end``; maxima on the way are taken of bits."""
        chain = [op for op in self.operations[place + 1 : end] if op.name != "max_pool2d"]
        size = [1] * (len(self.shapes[place + 1]) - 1)
        terms, name = self.operations[place].arrays["weight"][0].numel(), self.operations[place].layer

        def signs(sums: Tensor) -> Tensor:
            x = ((sums - offset).to(torch.float32) * scale).view(1, -1, *size)
            x = x.expand(1, -1, *self.shapes[place + 1][1:]).contiguous()
            for operation in chain:
                x = operation(x)
            return _same_everywhere((x >= 0)[0].flatten(1) if size else (x >= 0)[0, :, None], name)

        most = torch.full_like(offset, terms * (255 if step["bytes"] else 1))
        least, inverted = find_thresholds(signs, -most, most)
        norm = next((i for i in range(place + 1, end) if self.operations[i].name == "batch_norm"), end)
        pools = [(i, self.operations[i]) for i in range(place + 1, end) if self.operations[i].name == "max_pool2d"]
        early = any(i < norm for i, _ in pools)  # a maximum of sums that BatchNorm may turn round afterwards
        step["least"] = self._array(f"{name}.least", least)
        flags = torch.zeros_like(inverted) if early else inverted
        step["inverted"] = self._array(f"{name}.inverted", _bits(flags[None]))
        for _, pool in [pool for pool in pools if pool[0] < norm]:
            self._pool(pool)
        if early:
            self.steps.append({"kind": "invert", "bits": self._array(f"{name}.turned", _bits(inverted[None])),
                               "channels": len(inverted)})  # fmt: skip
        for _, pool in [pool for pool in pools if pool[0] > norm]:
            self._pool(pool)
        self.kind = "bits"

    def _plain(self, place: int) -> bool:
        """Return whether the maxima at a place are of whole windows without gaps."""
        settings, sizes = self.operations[place].settings, self.shapes[place][1:]
        window = zip(sizes, settings["kernel"], settings["stride"], settings["padding"], strict=True)
        whole = all((size + 2 * padding - kernel) % stride == 0 for size, kernel, stride, padding in window)
        return settings["dilation"] == [1, 1] and (whole or not settings["ceil"])

    def _pool(self, operation: Operation) -> None:
        self.steps.append({"kind": "pool", **{key: operation.settings[key] for key in ("kernel", "stride", "padding")}})


def _same_everywhere(signs: Tensor, layer: str) -> Tensor:
    """Return the first of each row; UsageError if a row differs, as torch's vectors may round in two ways."""
    if bool((signs != signs[:, :1]).any()):
        raise UsageError(f"layer {layer}: torch rounds the sums of a filter differently at different places")
    return signs[:, 0]


def _bits(values: Tensor) -> Tensor:
    """Return rows of weights of +-1, or of flags, as bytes [rows, ceil(k / 8)], the first in the lowest bit."""
    plus = values > 0 if values.is_floating_point() else values
    return torch.from_numpy(np.packbits(plus.reshape(len(plus), -1).numpy(), axis=1, bitorder="little"))
