"""The engine's own algorithms (``csrc/cpu/conv``) as kernels."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from engine.interfaces import ConvKernel, ConvSpec
from engine.ops import Convolution


class CompiledKernel(ConvKernel):
    """One algorithm of the compiled extension, in float32 and float64 on the CPU; see ``engine.ops.Convolution``.

    error: its relative L2 error in float32, as ``ConvKernel.error``.
    """

    channels_last = True

    def __init__(self, algorithm: str, error: float = 1e-6) -> None:
        self.name, self.error = algorithm, error

    @cached_property
    def _code(self) -> Convolution:
        return Convolution(self.name)  # when first used: it asks for the machine's instruction set

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why a direction of ``spec`` cannot be computed, or None if it can."""
        return self._code.refuses(spec, direction)

    def prepare(self, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the weight in the algorithm's own form, as bytes, or the weight where it has none."""
        return self._code.prepare(weight, spec)

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution plus bias, [spec.output_shape]."""
        return self._code.forward(images, weight, bias, spec)

    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        return self._code.backward_input(gradient, weight, spec)

    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        return self._code.backward_weight(gradient, images, spec)

    def workspace(self, spec: ConvSpec, direction: str) -> int:
        """Return the bytes of temporary memory that a call needs."""
        return self._code.workspace(spec, direction)

    def waste(self, spec: ConvSpec) -> float:
        """Return the multiplications done for nothing, per useful one of the definition."""
        return self._code.waste(spec)
