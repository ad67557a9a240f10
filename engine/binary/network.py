"""Running a packed network: ``load(path)`` gives a callable that returns what the trained network does, bit by bit.

Nothing of the training is imported. The steps of a file are those that ``engine.binary.packing`` lists; between them
bits are int32 [n, h, w, words], bytes uint8 and sums int32 [n, h, w, c], floats as in the trained network.

``network.to("cuda")`` gives the same network on a GPU. Integers are the same there; steps in float32 are torch's, whose
sums have another order on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.binary import container
from engine.binary.operations import OPERATIONS, fixed_point_steps
from engine.binary.pixels import Pixels
from engine.errors import UsageError
from engine.ops import cuda_binary
from engine.ops.binary import (
    DEVICES,
    BinaryConvolution,
    Thresholds,
    instruction_sets,
    pack_signs,
    pool_bits,
    unpack_signs,
    words_of,
)
from engine.ops.extension import require_set

Step = Callable[[Tensor], Tensor]
Images = TypeVar("Images", Tensor, np.ndarray)


def load(path: str | Path, isa: str = "", device: torch.device | str = "cpu") -> BinaryNetwork:
    """Return the packed network of a file that engine export format=binary wrote.

    isa: the instruction set of its kernels, by default the best that this CPU has. device: where it computes. Raises
    UsageError naming the file if it is missing, no such file, damaged or truncated; or where there is no such GPU, or
    no such instruction set.
    """
    header, arrays = container.read(Path(path))
    try:
        network = BinaryNetwork(header, arrays, isa)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UsageError(f"{path} is not consistent ({error}); export the network again") from error
    return network if torch.device(device) == network.device else network.to(device)


def _device_of(device: torch.device | str) -> torch.device:
    """Return a device with its number; UsageError for one that packed networks do not run on, or not here."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device={device} is none; choose cpu, cuda or cuda:0") from error
    if found.type not in DEVICES:
        raise UsageError(f"device={device}: packed networks run on {' and '.join(DEVICES)}")
    if found.type == "cuda":
        cuda_binary.require(found)
        found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    return found


def _look_up(table: Tensor) -> Step:
    """Return what looks up the bytes of images [n, c, h, w] in a table [c, 256]."""
    channels = torch.arange(len(table), device=table.device).view(1, -1, 1, 1)
    return lambda images: table[channels, images.long()]


class BinaryNetwork:
    """A packed network on ``device``. ``facts`` is what its file says of where it comes from.

    code: tests give the kernels of GPUs compiled for the host.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, Tensor],
        isa: str = "",
        device: torch.device | str = "cpu",
        code: Any = None,
    ) -> None:
        self.facts: dict[str, Any] = dict(header.get("facts", {}))
        self.device = _device_of(device)
        if isa:
            require_set(isa, instruction_sets(), "isa")
        self._header, self._arrays, self._isa, self._code = header, arrays, isa, code
        self.shape = tuple(int(size) for size in header["input"]["shape"])
        values = header["input"].get("values")
        self._pixels = Pixels(arrays[values]) if values else None
        self._prepare = _look_up(self._pixels.values.to(self.device)) if self._pixels else None
        encoded = header["steps"][0]["kind"] == "encode"  # which prepares pixels itself
        self._steps = [*([] if encoded else [self._prepared]), *map(self._step, header["steps"])]

    def to(self, device: torch.device | str) -> BinaryNetwork:
        """Return the same network on a device; UsageError where there is no such GPU, or no kernels for it."""
        return BinaryNetwork(self._header, self._arrays, self._isa, device, self._code)

    def __call__(self, images: Images) -> Images:
        """Return the outputs, float32, of images [n, c, h, w]: a tensor for a tensor, an array for an array.

        uint8 images are pixels, prepared as in training. Floats are what the trained network takes, prepared already.
        Tensors are on the network's device, and so is the result; nothing waits for a GPU, but with floats that must be
        looked at, as pixels are whole numbers. Raises ValueError for another type, shape or device, or pixels where the
        file does not say how they are prepared.
        """
        if isinstance(images, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        else:
            x = images.contiguous()
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"images must be [n, {', '.join(map(str, self.shape))}], not {list(x.shape)}")
        if x.dtype == torch.uint8 and self._pixels is None:
            raise ValueError("images must be floats: this network's file does not say how pixels are prepared")
        if x.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images must be uint8 or float32, not {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"images are on {x.device}, but this network is on {self.device}")
        with torch.inference_mode():
            for step in self._steps:
                x = step(x)
        return x.cpu().numpy() if isinstance(images, np.ndarray) else x

    def _step(self, step: dict[str, Any]) -> Step:
        kinds: dict[str, Callable[[dict[str, Any]], Step]] = {
            "encode": self._encode, "convolve": self._convolve, "pool": self._pool, "invert": self._invert,
            "sums": self._sums, "pack": self._pack, "unpack": self._unpack, "float": self._float,
        }  # fmt: skip
        return kinds[step["kind"]](step)

    def _prepared(self, images: Tensor) -> Tensor:
        return self._prepare(images) if images.dtype == torch.uint8 and self._prepare else images

    def _encode(self, step: dict[str, Any]) -> Step:
        zero, size, rounds = int(step["zero"]), float(step["step"]), bool(step["rounds"])
        fraction = -round(np.log2(size))

        def of_floats(values: Tensor) -> Tensor:
            multiples = fixed_point_steps(values, fraction) if rounds else values / size
            codes = multiples + zero
            if not rounds and not bool(((codes >= 0) & (codes <= 255) & (codes == codes.round())).all()):
                raise ValueError(f"images must be multiples of {size} from {-zero * size} to {(255 - zero) * size}")
            return codes.to(torch.uint8)

        table = of_floats(self._pixels.values) if self._pixels else None
        same = table is not None and bool((table == torch.arange(256)).all())
        of_pixels = None if table is None or same else _look_up(table.to(self.device))

        def encode(images: Tensor) -> Tensor:
            if images.dtype != torch.uint8:
                codes = of_floats(images)
            else:
                codes = images if of_pixels is None else of_pixels(images)
            return codes.permute(0, 2, 3, 1).contiguous()

        return encode

    def _plus(self, name: str, shape: list[int]) -> np.ndarray:
        """Return an array of bits as bool of this shape."""
        rows = np.unpackbits(self._arrays[name].numpy(), axis=1, count=int(np.prod(shape[1:])), bitorder="little")
        return rows.reshape(shape).astype(np.bool_)

    def _convolve(self, step: dict[str, Any]) -> Step:
        thresholds = None
        if "least" in step:
            inverted = self._plus(step["inverted"], [1, step["shape"][0]])[0]
            thresholds = Thresholds.of(self._arrays[step["least"]], torch.from_numpy(inverted))
        return BinaryConvolution(
            self._plus(step["weight"], step["shape"]),
            of_bytes=step["bytes"], stride=step["stride"], padding=step["padding"], dilation=step["dilation"],
            border=step["border"], thresholds=thresholds, isa=self._isa, device=self.device, code=self._code,
        )  # fmt: skip

    def _pool(self, step: dict[str, Any]) -> Step:
        kernel, stride, padding = step["kernel"], step["stride"], step["padding"]
        return lambda bits: pool_bits(bits, kernel, stride, padding)

    def _invert(self, step: dict[str, Any]) -> Step:
        octets = self._arrays[step["bits"]].numpy()[0]
        padded = np.pad(octets, (0, 4 * words_of(step["channels"]) - len(octets)))
        words = torch.from_numpy(padded.view(np.int32)).to(self.device)
        return lambda bits: bits ^ words

    def _sums(self, step: dict[str, Any]) -> Step:
        offset = self._arrays[step["offset"]].to(self.device) if "offset" in step else None
        size, flat = float(step["step"]), bool(step["flat"])

        def to_floats(sums: Tensor) -> Tensor:
            values = (sums if offset is None else sums - offset).to(torch.float32)
            values = values if size == 1 else values * size
            return values.flatten(1) if flat else values.permute(0, 3, 1, 2).contiguous()

        return to_floats

    def _pack(self, step: dict[str, Any]) -> Step:
        def pack(values: Tensor) -> Tensor:
            images = values if values.dim() == 4 else values[:, :, None, None]
            return pack_signs(images.permute(0, 2, 3, 1), self._isa, self._code)

        return pack

    def _unpack(self, step: dict[str, Any]) -> Step:
        channels, flat = int(step["channels"]), bool(step["flat"])

        def unpack(bits: Tensor) -> Tensor:
            images = unpack_signs(bits, channels).permute(0, 3, 1, 2).contiguous()
            return images.flatten(1) if flat else images

        return unpack

    def _float(self, step: dict[str, Any]) -> Step:
        operation, settings = OPERATIONS[step["name"]], step["settings"]
        arrays = {role: self._arrays[name] for role, name in step["arrays"].items()}
        if settings.get("binary"):
            plus = self._plus(step["arrays"]["weight"], settings["shape"])
            arrays["weight"] = torch.from_numpy(plus.astype(np.float32) * 2 - 1)
        arrays = {role: array.to(self.device) for role, array in arrays.items()}
        return lambda x: operation(x, arrays, settings)
