"""The checked face of the compiled extension for GPUs: CUDA tensors in, CUDA tensors out.

The only module that imports ``engine._cuda``, which exists where it was built with nvcc (see ``docs/kernels.md``).
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.kernels import ConvSpec
from engine.ops.algorithm import Algorithm, aligned_bytes, size_of

BUILD = "ENGINE_CUDA=1 pip install -e ."
VECTOR = 16  # bytes: the widest load of a GPU's thread, and what its address must be a multiple of
NO_CODE = ("no kernel image", "invalid device function")  # CUDA's words for a GPU that was not compiled for
ALIGNED = 256  # bytes: where workspace begins (csrc/cuda/convolution.h)


@cache
def _extension() -> ModuleType | str:
    """Return the compiled module, or why there is none, as a phrase."""
    try:
        import engine._cuda as extension
    except ModuleNotFoundError:
        return f"engine._cuda is not built ({BUILD})"
    except ImportError as error:
        return f"engine._cuda cannot be loaded ({error}); build it again ({BUILD})"
    return extension


class CudaConvolution(Algorithm):
    """One algorithm of ``csrc/cuda`` on tensors: float32 and float64 on GPUs, results in NHWC order.

    algorithm: im2col, implicit, winograd2, winograd4, fft or depthwise. Calls are queued on torch's current stream of
    the tensors' device and wait for nothing; all memory is torch's, so they may be captured in CUDA graphs. Where
    ``engine._cuda`` was not built everything is refused, and ``missing`` is the reason.

    code, device: tests give the Convolution of the same kernels compiled for the host, and "cpu".
    """

    aligned = prepared_aligned = VECTOR

    def __init__(self, algorithm: str, code: Any = None, device: str = "cuda") -> None:
        self.device, self.missing = device, ""
        if code is not None:
            self._code = code
        elif isinstance(extension := _extension(), str):
            self.missing = extension
        else:
            self._code = extension.Convolution(algorithm)

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why a direction of ``spec`` cannot be computed, or None if it can."""
        return self.missing or super().refuses(spec, direction)

    def _count(self, spec: ConvSpec, direction: int, prepared: bool) -> int:
        return self._code.workspace(spec.sizes, direction, size_of(spec), prepared)

    def _temporary(self, count: int, device: torch.device) -> Tensor | None:
        # Of this call alone: when it is freed, what torch puts there next runs later on the same stream.
        return aligned_bytes(count, device, ALIGNED) if count else None

    def _prepare(self, on: Tensor, *arguments: Any) -> None:
        _launch(self._code.prepare, on, *arguments)

    def _run(self, on: Tensor, *arguments: Any) -> None:
        _launch(self._code.run, on, *arguments)


def _launch(function: Any, on: Tensor, *arguments: Any) -> None:
    """Call a function of the extension with the current stream of a tensor's device, on that device."""
    if not on.is_cuda:  # the kernels compiled for the host
        function(*arguments, 0)
        return
    with torch.cuda.device_of(on):
        try:
            function(*arguments, torch.cuda.current_stream(on.device).cuda_stream)
        except RuntimeError as error:
            if not any(text in str(error) for text in NO_CODE):
                raise
            major, minor = torch.cuda.get_device_capability(on.device)
            raise UsageError(
                f"engine._cuda was built without code for this GPU ({torch.cuda.get_device_name(on.device)}): build it "
                f"again, ENGINE_CUDA_ARCHS={major}{minor} {BUILD}"
            ) from error


def round_on_gpu(x: Tensor, *arguments: Any) -> None:
    """Queue a rounding kernel on the current stream of the device of ``x``; see ``engine.ops.rounding_kernels``.

    Raises UsageError where ``engine._cuda`` was not built.
    """
    if isinstance(extension := _extension(), str):
        raise UsageError(f"rounding on {x.device}: {extension}")
    _launch(extension.round_elements, x, *arguments)
