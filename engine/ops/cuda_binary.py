"""Networks of one bit on a GPU: the calls of csrc/cuda/binary, and how weights are laid out for them.

``engine.ops.binary`` is what callers use; it comes here with tensors of a GPU. Calls are queued on torch's current
stream and wait for nothing. code: tests give the module of the same kernels compiled for the host, and tensors of the
CPU. Functions raise UsageError where ``engine._cuda`` was not built.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import UsageError
from engine.ops.cuda import _extension, _launch

ROW_WORDS = 16  # a filter's row is a multiple of so many (csrc/cuda/binary/binary.h)


def require(device: torch.device, code: Any = None) -> None:
    """Raise UsageError where the kernels were not built, or torch does not see this GPU."""
    _kernels(device, code)
    if code is None and not torch.cuda.is_available():
        raise UsageError(f"networks of one bit on {device}: torch {torch.__version__} sees no GPU; choose device=cpu")
    if code is None and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"networks of one bit on {device}: torch sees {torch.cuda.device_count()} GPUs")


def _kernels(device: torch.device, code: Any) -> Any:
    """Return the module with the kernels."""
    extension = code or _extension()
    if isinstance(extension, str):
        raise UsageError(f"networks of one bit on {device}: {extension}")
    return extension


def weights_of(
    plus: np.ndarray, of_bytes: bool, device: torch.device, code: Any = None
) -> tuple[Tensor, Tensor | None]:
    """Return weights, bool [filters, kernel_h, kernel_w, channels] and True for +1, as the kernels read them.

    For activations of bytes that is int8 [filters, bytes] of 1 and -1; of bits int32 [filters, words] and, for each
    filter, what its weights add up to, negative, int32 [filters]. Rows end with zeros.
    """
    require(device, code)
    signs = plus.reshape(len(plus), -1)
    if of_bytes:
        return _whole_rows(signs.astype(np.int8) * 2 - 1).to(device), None
    padded = np.pad(plus, ((0, 0), (0, 0), (0, 0), (0, -plus.shape[3] % 32)))
    words = np.packbits(padded.reshape(len(plus), -1), axis=1, bitorder="little").view(np.int32)
    minus_total = signs.shape[1] - 2 * np.count_nonzero(signs, axis=1)
    return _whole_rows(words).to(device), torch.from_numpy(minus_total.astype(np.int32)).to(device)


def _whole_rows(rows: np.ndarray) -> Tensor:
    """Return rows with zeros up to a whole number of ROW_WORDS words, in torch's own memory."""
    missing = -rows.shape[1] % (4 * ROW_WORDS // rows.itemsize)
    return torch.from_numpy(np.pad(rows, ((0, 0), (0, missing)))).clone()


def convolve(
    sizes: tuple[int, ...],
    of_bytes: bool,
    activations: Tensor,
    weights: tuple[Tensor, Tensor | None],
    places: tuple[int, int, int, int],
    code: Any = None,
) -> None:
    """Queue a convolution; ``places`` are the addresses of csrc/binary.h's BinaryOutput."""
    rows, minus_total = weights
    addresses = (activations.data_ptr(), rows.data_ptr(), 0 if minus_total is None else minus_total.data_ptr())
    _launch(_kernels(activations.device, code).binary_convolve, activations, sizes, of_bytes, *addresses, places)


def threshold(sums: Tensor, places: tuple[int, int, int, int], code: Any = None) -> None:
    """Queue the comparison of dense int32 sums [..., filters] with thresholds."""
    filters = sums.shape[-1]
    rows = sums.numel() // filters
    _launch(_kernels(sums.device, code).binary_threshold, sums, sums.data_ptr(), rows, filters, places)


def pack(values: Tensor, bits: Tensor, code: Any = None) -> None:
    """Queue the packing of signs of dense float32 [..., k] to bits."""
    length = values.shape[-1]
    rows = values.numel() // length
    _launch(_kernels(values.device, code).binary_pack, values, values.data_ptr(), rows, length, bits.data_ptr())


def unpack(bits: Tensor, length: int) -> Tensor:
    """Return int32 bits [..., words] as float32 [..., length] of +1 and -1, on any device."""
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    set_bits = (bits[..., None] >> places & 1).flatten(-2)[..., :length]
    return set_bits.to(torch.float32) * 2 - 1
