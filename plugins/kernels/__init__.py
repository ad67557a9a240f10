"""Built-in convolution kernels: native, naive, im2col, winograd, fft, depthwise, auto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from engine import Kernels, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import ConvKernel, KernelChooser
    from engine.registry import Store


@dataclass
class Native(Kernels):
    """torch's own convolutions (oneDNN on a CPU, cuDNN on a GPU)."""

    def kernel(self) -> ConvKernel:
        """Return torch's own in the form of a kernel."""
        from engine.ops import NATIVE

        return NATIVE

    def build(self, installed: Mapping[str, type[Kernels]] = MappingProxyType({})) -> KernelChooser:
        """Make the chooser; one that needs no look at the model, unless single layers get kernels of their own."""
        from .native import NativeChooser

        return super().build(installed) if self.layers else NativeChooser()


@dataclass
class Naive(Kernels):
    """Loops as the definition reads: the readable reference, slow."""

    def kernel(self) -> ConvKernel:
        """Make the kernel."""
        from .compiled import CompiledKernel

        return CompiledKernel("naive", 5e-6)  # each sum in one piece

    def candidates(self) -> Sequence[ConvKernel]:
        """Return none: measuring it would take minutes, and it is never the fastest."""
        return []


@dataclass
class Im2col(Kernels):
    """A matrix product over image patches; any filter size, stride, padding, dilation and groups."""

    materialise: bool = option(False, "write the patch matrix to memory, as the textbook does, instead of packing it")

    def kernel(self) -> ConvKernel:
        """Make the one that packs patches on the way to the product (implicit GEMM), or the textbook's."""
        from .compiled import CompiledKernel

        return CompiledKernel("im2col" if self.materialise else "implicit")

    def candidates(self) -> Sequence[ConvKernel]:
        """Make both."""
        from .compiled import CompiledKernel

        return [CompiledKernel("implicit"), CompiledKernel("im2col")]


@dataclass
class Winograd(Kernels):
    """Winograd's minimal filtering for 3x3, 1x3 and 3x1 filters of stride 1 (Lavin and Gray 2016)."""

    tile: str = option("4", "outputs of a tile, in each direction: larger is less work and less exact", choices="246")

    def kernel(self) -> ConvKernel:
        """Make the kernel of the chosen tile."""
        return next(kernel for kernel in self.candidates() if kernel.name.endswith(self.tile))

    def candidates(self) -> Sequence[ConvKernel]:
        """Make those of all tiles."""
        from .compiled import CompiledKernel

        return [CompiledKernel(f"winograd{tile}", error) for tile, error in ((4, 6e-6), (2, 1e-6), (6, 1.5e-5))]


@dataclass
class FFT(Kernels):
    """Products of spectra, tile by tile (overlap-save): for large filters; strides compute all and keep some."""

    def kernel(self) -> ConvKernel:
        """Make the kernel."""
        from .compiled import FFTKernel

        return FFTKernel()


@dataclass
class Depthwise(Kernels):
    """Direct convolution where each channel has a filter of its own (groups = channels)."""

    def kernel(self) -> ConvKernel:
        """Make the kernel."""
        from .compiled import CompiledKernel

        return CompiledKernel("depthwise")


@dataclass
class Auto(Kernels):
    """The fastest kernel for every layer and direction, measured at the start and remembered."""

    error_budget: float | None = option(
        None, "largest relative error of a kernel; null: 1e-5 to train (no 6x6 tiles), 2e-5 to evaluate", above=0
    )
    workspace: int = option(1024, "most temporary memory of a kernel, in MiB", at_least=0)
    cache: str = option("", "folder that remembers what was measured; by default ~/.cache/conv-engine; none: nothing")

    def candidates(self) -> Sequence[ConvKernel]:
        """Return none: it chooses among the others'."""
        return []

    def build(self, installed: Mapping[str, type[Kernels]] = MappingProxyType({})) -> KernelChooser:
        """Make the chooser, whose candidates are all kernels installed."""
        from .auto import AutoChooser

        return AutoChooser(self, installed)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in kernels."""
    store.add("kernels", "native", Native)
    store.add("kernels", "naive", Naive)
    store.add("kernels", "im2col", Im2col)
    store.add("kernels", "winograd", Winograd)
    store.add("kernels", "fft", FFT)
    store.add("kernels", "depthwise", Depthwise)
    store.add("kernels", "auto", Auto)
