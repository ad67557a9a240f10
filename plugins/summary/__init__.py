"""Looking at networks without training them: summary, compare, compare blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Job, hookimpl, option

if TYPE_CHECKING:
    from engine.registry import Store
    from engine.session import Session

INPUTS = "channels, height, width of the images, as [3,224,224]; then no data is opened"


@dataclass
class Summary(Job):
    """Print each layer's shape, parameters, multiply-adds, receptive field, saved bytes, and a step's memory."""

    inputs: list[int] = option([], INPUTS)
    classes: int = option(1000, "classes of these images", at_least=1)
    batch: int = option(0, "images of a micro-batch; 0: run.batch", at_least=0)
    time: bool = option(False, "also time every layer, forward and backward")
    compare: list[str] = option([], "kernels to time convolutions with beside torch's own, as [winograd4,fft]")
    seconds: float = option(0.1, "time for one direction of one layer, all kernels together", above=0)
    measure: bool = option(False, "also make a step in a fresh process, and compare its memory with the prediction")
    flops: float = option(0.0, "operations per second of the machine, as 19.5e12; 0: measured here", at_least=0)
    bandwidth: float = option(0.0, "GB/s of its memory; 0: measured here", at_least=0)
    json: str = option("", "file for the same figures as JSON")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .summary import summary

        return summary


@dataclass
class Compare(Job):
    """Print parameters, multiply-adds, receptive field and saved bytes of networks side by side."""

    several: ClassVar[Mapping[str, str]] = {"model": "models"}  # engine compare model=a,b
    models: list[str] = option([], "networks, each as NAME or 'NAME FIELD=VALUE ...'; none: the composed one")
    inputs: list[int] = option([3, 224, 224], "channels, height, width of the images")
    classes: int = option(1000, "classes of these images", at_least=1)
    batch: int = option(0, "images of a micro-batch; 0: run.batch", at_least=0)
    json: str = option("", "file for the same figures as JSON")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .compare import compare

        return compare


@dataclass
class CompareBlocks(Job):
    """Print what ways to stack convolutions cost and see: 7x7 against three 3x3, bottlenecks, 1x3 and 3x1."""

    channels: int = option(256, "channels that go in and come out, an even number", at_least=2)
    size: int = option(56, "height and width of the maps", at_least=1)
    json: str = option("", "file for the same figures as JSON")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .blocks import compare_blocks

        return compare_blocks


@hookimpl
def engine_options(store: Store) -> None:
    """Register the jobs."""
    store.add("job", "summary", Summary)
    store.add("job", "compare", Compare)
    store.add("job", "compare_blocks", CompareBlocks)
