"""Networks of one bit: packed bits in, exact integer sums or packed bits out, on the CPU or, the same bits, on a GPU.

A bit is +1 (set) or -1. Bits of a row of k are int32 [..., ceil(k / 32)], bit i in bit i % 32 of word i // 32, the bits
behind the last clear. Activations are [n, height, width, words of the channels]; a linear layer's are [n, 1, 1, words].
What the sums are, and how weights are laid out, is in ``csrc/binary.h``. Results are the same for every instruction set
and number of threads, which is torch's, and on GPUs. There calls are queued on torch's current stream and wait for
nothing; UsageError is raised where ``engine._cuda`` was not built.

isa: the instruction set on the CPU. code: tests give the kernels of GPUs compiled for the host, and tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.ops import cuda_binary
from engine.ops.extension import _cpu, wanted_set

PANEL = 32  # filters that lie side by side
DEVICES = ("cpu", "cuda")
LEAST, MOST = -(1 << 31), (1 << 31) - 1  # thresholds that every sum and no sum reaches


def instruction_sets() -> dict[str, bool]:
    """Return the instruction sets that these kernels were compiled for, the best first, and which this CPU has."""
    return dict(_cpu.binary_instruction_sets())


@cache
def instruction_set() -> str:
    """Return the one in use: what ENGINE_ISA names, else the best that this CPU has.

    Raises UsageError if ENGINE_ISA names one that was not compiled or that this CPU lacks.
    """
    return wanted_set(instruction_sets())


def words_of(length: int) -> int:
    """Return how many words a row of so many bits takes."""
    return -(-length // 32)


def pack_signs(values: Tensor, isa: str = "", code: Any = None) -> Tensor:
    """Return the signs of float32 [..., k] as bits, int32 [..., words]: +1 for 0 and -0 too, -1 for NaN."""
    if values.dtype != torch.float32 or values.device.type not in DEVICES or values.dim() == 0:
        raise ValueError(f"pack_signs: values must be float32 [..., k] on a CPU or GPU, not {values.dtype}")
    values = values.contiguous()
    bits = values.new_empty((*values.shape[:-1], words_of(values.shape[-1])), dtype=torch.int32)
    if bits.numel() and (values.is_cuda or code):
        cuda_binary.pack(values, bits, code)
    elif bits.numel():
        rows = bits.numel() // bits.shape[-1]
        isa = isa or instruction_set()
        _cpu.binary_pack(isa, values.data_ptr(), rows, values.shape[-1], bits.data_ptr(), torch.get_num_threads())
    return bits


def unpack_signs(bits: Tensor, length: int) -> Tensor:
    """Return int32 bits [..., words] as float32 [..., length] of +1 and -1."""
    if bits.dtype != torch.int32 or bits.shape[-1] != words_of(length):
        raise ValueError(f"unpack_signs: bits must be int32 [..., {words_of(length)}], not {list(bits.shape)}")
    if bits.is_cuda:
        return cuda_binary.unpack(bits, length)
    octets = bits.contiguous().numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(octets, axis=-1, count=length, bitorder="little").astype(np.float32) * 2 - 1)


@dataclass(frozen=True)
class Thresholds:
    """For each filter the sum from which on its bit is +1, or -1 where ``inverted``.

    least: int32 [filters up to a whole panel]; inverted: bits, int32 [panels].
    """

    least: Tensor
    inverted: Tensor

    @classmethod
    def of(cls, least: Tensor, inverted: Tensor) -> Thresholds:
        """Make them of least, int32 [filters], and inverted, bool [filters]."""
        if least.dtype != torch.int32 or inverted.dtype != torch.bool or least.shape != inverted.shape:
            raise ValueError("thresholds: least must be int32 [filters], inverted bool [filters]")
        missing = -len(least) % PANEL
        padded = torch.nn.functional.pad(least, (0, missing), value=MOST)
        words = np.packbits(inverted.numpy(), bitorder="little")
        words = np.pad(words, (0, (len(least) + missing) // 8 - len(words)))
        return cls(padded, torch.from_numpy(words.view(np.int32)))

    def to(self, device: torch.device) -> Thresholds:
        """Return them on a device."""
        return Thresholds(self.least.to(device), self.inverted.to(device))

    def places(self, bits: Tensor) -> tuple[int, int, int, int]:
        """Return the addresses of csrc/binary.h's BinaryOutput for a result of bits."""
        return 0, bits.data_ptr(), self.least.data_ptr(), self.inverted.data_ptr()


def threshold(sums: Tensor, thresholds: Thresholds, isa: str = "", code: Any = None) -> Tensor:
    """Return the bits, int32 [..., words], of int32 sums [..., filters], which are where the thresholds are."""
    filters = sums.shape[-1]
    if sums.dtype != torch.int32 or len(thresholds.inverted) != words_of(filters):
        raise ValueError(f"threshold: sums must be int32 [..., filters] for as many thresholds, not {list(sums.shape)}")
    if sums.device != thresholds.least.device:
        raise ValueError(f"threshold: sums are on {sums.device}, the thresholds on {thresholds.least.device}")
    sums = sums.contiguous()
    bits = sums.new_empty((*sums.shape[:-1], words_of(filters)))
    out = thresholds.places(bits)
    if bits.numel() and (sums.is_cuda or code):
        cuda_binary.threshold(sums, out, code)
    elif bits.numel():
        rows = bits.numel() // bits.shape[-1]
        isa = isa or instruction_set()
        _cpu.binary_threshold(isa, sums.data_ptr(), rows, filters, out, torch.get_num_threads())
    return bits


def panels_of_bits(plus: np.ndarray) -> Tensor:
    """Return weights, bool [filters, kernel_h, kernel_w, channels] and True for +1, as the kernels read them."""
    padded = np.pad(plus, ((0, -plus.shape[0] % PANEL), (0, 0), (0, 0), (0, -plus.shape[3] % 32)))
    words = np.packbits(padded.reshape(len(padded), -1), axis=1, bitorder="little").view(np.uint32)
    words = np.pad(words, ((0, 0), (0, words.shape[1] % 2)))
    pairs = words.reshape(-1, PANEL, words.shape[1] // 2, 2)
    pairs[..., 1] ^= pairs[..., 0]
    return torch.from_numpy(np.ascontiguousarray(pairs.transpose(0, 2, 3, 1)).view(np.int32))


def panels_of_bytes(plus: np.ndarray) -> Tensor:
    """Return such weights as the kernels read them for activations of bytes."""
    minus = ~plus.reshape(len(plus), -1)
    padded = np.pad(minus, ((0, -minus.shape[0] % PANEL), (0, -minus.shape[1] % 4)))
    quads = padded.reshape(len(padded) // PANEL, PANEL, -1, 4).transpose(0, 2, 1, 3)
    octets = np.packbits(quads.reshape(quads.shape[0], quads.shape[1], -1), axis=-1, bitorder="little")
    return torch.from_numpy(octets.view(np.int32))


class BinaryConvolution:
    """A convolution with weights of one bit: exact integer sums, or with thresholds bits.

    plus: bool [filters, kernel_h, kernel_w, channels], True for +1. of_bytes: activations are uint8 [n, h, w, channels]
    instead of bits, int32 [n, h, w, words]. border: what stands beyond the image: of bits -1 or +1, of bytes 0 to 255.
    Called with activations it returns int32 sums [n, out_h, out_w, filters], or bits [n, out_h, out_w, words]. A linear
    layer is one of a 1x1 kernel on images of one pixel, or of a kernel as large as the image. device: where it
    computes, and where activations are. Raises ValueError for settings, or activations, that do not fit.
    """

    def __init__(
        self,
        plus: np.ndarray,
        *,
        of_bytes: bool = False,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        border: int = -1,
        thresholds: Thresholds | None = None,
        isa: str = "",
        device: torch.device | str = "cpu",
        code: Any = None,
    ) -> None:
        if plus.dtype != np.bool_ or plus.ndim != 4 or 0 in plus.shape:
            raise ValueError("binary convolution: weights must be bool [filters, kernel_h, kernel_w, channels]")
        if border not in (range(256) if of_bytes else (-1, 1)):
            raise ValueError(f"binary convolution: a border of {border} is none of the input's values")
        if min(*stride, *dilation) < 1 or min(padding) < 0:
            raise ValueError("binary convolution: strides and dilations are at least 1, paddings at least 0")
        self.filters, self.kernel, self.channels = plus.shape[0], plus.shape[1:3], plus.shape[3]
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        if thresholds is not None and len(thresholds.inverted) != words_of(self.filters):
            raise ValueError(f"binary convolution: there must be {self.filters} thresholds")
        self._bytes, self._border = of_bytes, border if of_bytes else int(border == 1)
        self._code, self._on_gpu = code, code is not None or torch.device(device).type == "cuda"
        self._minus_total: Tensor | None = None
        if self._on_gpu:
            self._weights, self._minus_total = cuda_binary.weights_of(plus, of_bytes, torch.device(device), code)
        else:
            self._weights = panels_of_bytes(plus) if of_bytes else panels_of_bits(plus)
        self.device = self._weights.device
        self._thresholds = None if thresholds is None else thresholds.to(self.device)
        self._isa = isa or instruction_set()
        self._words = words_of(self.filters) if thresholds else self.filters
        self._calls: dict[tuple[torch.Size, int], tuple[tuple[int, ...], tuple[int, ...], int]] = {}

    def __call__(self, activations: Tensor) -> Tensor:
        """Return the sums or bits."""
        threads = torch.get_num_threads()
        place = activations.shape, threads
        sizes, shape, workspace = self._calls.get(place) or self._fit(*place)
        if activations.dtype != (torch.uint8 if self._bytes else torch.int32) or not activations.is_contiguous():
            kind = "uint8" if self._bytes else "int32"
            raise ValueError(f"binary convolution: activations must be dense {kind}, not {activations.dtype}")
        if activations.device != self.device:
            raise ValueError(f"binary convolution: activations are on {activations.device}, not on {self.device}")
        out = torch.empty(shape, dtype=torch.int32, device=self.device)
        if shape[0] == 0:
            return out
        places = (out.data_ptr(), 0, 0, 0) if self._thresholds is None else self._thresholds.places(out)
        if self._on_gpu:
            weights = self._weights, self._minus_total
            cuda_binary.convolve(sizes, self._bytes, activations, weights, places, self._code)
            return out
        temporary = torch.empty(workspace, dtype=torch.uint8)
        _cpu.binary_convolve(
            self._isa, sizes, self._bytes, activations.data_ptr(), self._weights.data_ptr(), places,
            temporary.data_ptr(), threads,
        )  # fmt: skip
        return out

    def _fit(self, shape: torch.Size, threads: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Return a call's sizes, its result's shape and the bytes it works in; ValueError for other activations."""
        depth = self.channels if self._bytes else words_of(self.channels)
        if len(shape) != 4 or shape[3] != depth:
            raise ValueError(f"binary convolution: activations must be [n, h, w, {depth}], not {list(shape)}")
        outputs = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(shape[1:3], self.padding, self.dilation, self.kernel, self.stride, strict=True)
        ]
        if min(outputs) < 1:
            raise ValueError(f"binary convolution: images of {shape[1]}x{shape[2]} are smaller than the kernel")
        sizes = (
            *shape[:3], self.channels, self.filters, *self.kernel, *self.stride, *self.padding, *self.dilation,
            *outputs, self._border,
        )  # fmt: skip
        workspace = _cpu.binary_workspace(sizes, self._bytes, threads) if shape[0] else 0
        call = sizes, (shape[0], *outputs, self._words), workspace
        if len(self._calls) < 64:  # of as many batch sizes as a program may reasonably use
            self._calls[shape, threads] = call
        return call


def pool_bits(bits: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Return the maximum of bits, int32 [n, h, w, words], over windows: bitwise or; beyond the border is nothing."""
    if max(padding):
        bits = torch.nn.functional.pad(bits, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = ((size - k) // s + 1 for size, k, s in zip(bits.shape[1:3], kernel, stride, strict=True))
    if min(height, width) < 1:
        raise ValueError(f"pool_bits: images of {list(bits.shape[1:3])} are smaller than the window {list(kernel)}")
    largest: Tensor | None = None
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            rows = slice(y, y + (height - 1) * stride[0] + 1, stride[0])
            part = bits[:, rows, x : x + (width - 1) * stride[1] + 1 : stride[1]]
            largest = part.contiguous() if largest is None else largest.bitwise_or_(part)
    assert largest is not None
    return largest if largest.data_ptr() != bits.data_ptr() else largest.clone()
