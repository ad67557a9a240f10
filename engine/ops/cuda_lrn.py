"""Local response normalization on a GPU: the calls of csrc/cuda/lrn, queued on torch's current stream.

``engine.ops.lrn`` is what callers use; it comes here with addresses of a GPU's memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.errors import UsageError
from engine.ops.cuda import _extension, _launch


def available() -> bool:
    """Return whether ``engine._cuda`` is there."""
    return not isinstance(_extension(), str)


def run(
    out: Tensor,
    sizes: tuple[int, ...],
    constants: tuple[float, float, float],
    addresses: tuple[int, int, int],
    code: Any = None,
) -> None:
    """Queue the kernel that fills ``out``; sizes, constants and addresses are those of csrc/lrn.h.

    code: tests give the module of the same kernels compiled for the host. Raises UsageError where ``engine._cuda`` was
    not built.
    """
    extension = code or _extension()
    if isinstance(extension, str):
        raise UsageError(f"local response normalization on {out.device}: {extension}")
    _launch(extension.local_response_norm, out, out.element_size(), sizes, constants, (*addresses, 0))
