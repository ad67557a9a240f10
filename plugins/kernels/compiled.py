"""The engine's own algorithms (``csrc/cpu/conv`` and ``csrc/cuda``) as kernels."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from engine.interfaces import ConvKernel, ConvSpec
from engine.ops import Algorithm, Convolution, CudaConvolution

if TYPE_CHECKING:
    from engine.ops.spectral import SpectralConvolution

CPU_ONLY = ("naive", "winograd6")  # all others are in csrc/cuda too


class CompiledKernel(ConvKernel):
    """One algorithm of the compiled extensions, in float32 and float64, on the CPU and on GPUs.

    See ``engine.ops.Convolution`` and ``engine.ops.CudaConvolution``. error: its relative L2 error in float32, as
    ``ConvKernel.error``.
    """

    channels_last = True

    def __init__(self, algorithm: str, error: float = 1e-6) -> None:
        self.name, self.error = algorithm, error

    @cached_property
    def _on_cpu(self) -> Algorithm:
        return Convolution(self.name)  # when first used: it asks for the machine's instruction set

    @cached_property
    def _on_gpu(self) -> CudaConvolution:
        return CudaConvolution(self.name)

    def _code(self, spec: ConvSpec, direction: str = "forward") -> Algorithm | SpectralConvolution:
        """Return what computes a direction of ``spec``, or says why it cannot."""
        return self._on_gpu if spec.device == "cuda" and self.name not in CPU_ONLY else self._on_cpu

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why a direction of ``spec`` cannot be computed, or None if it can."""
        return self._code(spec, direction).refuses(spec, direction)

    def prepare(self, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the weight in the algorithm's own form, as bytes, or the weight where it has none."""
        return self._code(spec).prepare(weight, spec)

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution plus bias, [spec.output_shape]."""
        return self._code(spec).forward(images, weight, bias, spec)

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        return self._code(spec, "backward_input").backward_input(gradient, weight, spec)

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        return self._code(spec, "backward_weight").backward_weight(gradient, images, spec)

    def workspace(self, spec: ConvSpec, direction: str) -> int:
        """Return the bytes of temporary memory that a call needs."""
        return self._code(spec, direction).workspace(spec, direction)

    def waste(self, spec: ConvSpec) -> float:
        """Return the multiplications done for nothing, per useful one of the definition."""
        return self._code(spec).waste(spec)


class FFTKernel(CompiledKernel):
    """Products of spectra: in tiles of our own, and on a GPU by cuFFT for filters that are too large for those."""

    def __init__(self) -> None:
        super().__init__("fft")

    @cached_property
    def _large(self) -> SpectralConvolution:
        from engine.ops.spectral import SpectralConvolution

        return SpectralConvolution()

    def _code(self, spec: ConvSpec, direction: str = "forward") -> Algorithm | SpectralConvolution:
        """Return our tiles' code unless that refuses and the other does not."""
        if spec.device != "cuda" or self._on_gpu.missing or self._on_gpu.refuses(spec, direction) is None:
            return super()._code(spec, direction)
        return self._on_gpu if self._large.refuses(spec, direction) else self._large
