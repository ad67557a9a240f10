"""Built-in jobs: train, evaluate, plugins, explain, bench kernels, bench machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Job, hookimpl, option

if TYPE_CHECKING:
    from engine.registry import Store
    from engine.session import Session


@dataclass
class Train(Job):
    """Train a model and save checkpoints."""

    keeps_output: ClassVar[bool] = True

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .train import train

        return train


@dataclass
class Evaluate(Job):
    """Measure a trained model on the test split."""

    checkpoint: str = option("", "run or checkpoint folder, or weights: .pt, .pth, .th, .safetensors, .caffemodel")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .evaluate import evaluate

        return evaluate


@dataclass
class Plugins(Job):
    """List the installed plugins, what each supplies, and which of them are broken."""

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .listing import plugins

        return plugins


@dataclass
class Explain(Job):
    """Print the composed configuration with the origin of every value; with a transfer, what trains and how fast."""

    parameters: bool = option(False, "what trains and how fast, also for transfer=none")
    inputs: list[int] = option([], "for that: channels, height, width of the images, as [3,32,32]; opens no data then")
    classes: int = option(10, "classes of these images", at_least=1)

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .explain import explain

        return lambda session: explain(session, self.parameters, self.inputs, self.classes)


@dataclass
class BenchKernels(Job):
    """Time every convolution kernel on the layers of the composed model."""

    inputs: list[int] = option([], "channels, height, width of the images, as [3,224,224]; then no data is opened")
    classes: int = option(10, "classes of these images", at_least=1)
    compare: list[str] = option([], "kernels to compare with native, as [winograd4,fft]; none: all that auto measures")
    training: bool = option(True, "all that training computes; false: forward only, weights prepared once")
    seconds: float = option(0.5, "time for one direction of one shape, all kernels together", above=0)
    json: str = option("", "file for the same figures as JSON")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .bench_kernels import bench_kernels

        return bench_kernels


@dataclass
class BenchMachine(Job):
    """Measure what this machine can do: matrix products, memory, disk, GPU, the cost of a call."""

    quick: bool = option(False, "smaller sizes and fewer rounds: under 10 seconds")
    folder: str = option(".", "where the disk is measured, by a file that is removed again")
    size: int | None = option(None, "MiB of that file; null: 256, or 32 if quick", at_least=1)
    json: str = option("", "file for the same figures as JSON")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .bench_machine import bench_machine

        return bench_machine


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in jobs."""
    store.add("job", "train", Train)
    store.add("job", "evaluate", Evaluate)
    store.add("job", "plugins", Plugins)
    store.add("job", "explain", Explain)
    store.add("job", "bench_kernels", BenchKernels)
    store.add("job", "bench_machine", BenchMachine)
