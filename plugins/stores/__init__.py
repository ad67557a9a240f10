"""Sequential file stores: a data source of contiguous records, the job that packs one, and the job that verifies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Data, Job, hookimpl, option, required

if TYPE_CHECKING:
    from engine.interfaces import Source
    from engine.registry import Store as Registered
    from engine.session import Session


@dataclass
class Store(Data):
    """A store that engine pack wrote: pixels or image files one after the other in a few large files."""

    root: str = required("folder that engine pack wrote, with a store for each split in it")
    size: int | None = option(
        None, "side of the images in pixels, scaled and cropped to the middle; null: as they were packed", at_least=1
    )
    check: bool = option(True, "compare every record that is read with its checksum")

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a file that is missing, truncated, altered or of another version."""
        from .source import open_store

        return open_store(self.root, split, self.size, self.check)


@dataclass
class Pack(Job):
    """Write the chosen data into a store at out=, which data=store reads; goes on where an earlier call ended."""

    content: str = option(
        "pixels", "what is stored: pixels, decoded, or encoded, the image files as they are",
        choices=("pixels", "encoded"),
    )  # fmt: skip
    shorter_side: int | None = option(
        None, "reduce larger images so that their shorter side has so many pixels; null: full size", at_least=1
    )
    splits: list[str] = option(["train", "test"], "which splits to pack")
    skip_unreadable: bool = option(False, "leave out what is no image or cannot be decoded, naming it")
    shard_size: int = option(256, "MiB of a data file, about", at_least=1)
    threads: int | None = option(None, "threads that decode; null: one for each core", at_least=1)

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .pack import pack

        return pack


@dataclass
class Verify(Job):
    """Read all of a store and tell every file and record that is not as it was packed."""

    chooses: ClassVar[Mapping[str, str]] = {"data": "store"}
    splits: list[str] = option([], "which splits to read; none named: all that are there")
    threads: int | None = option(None, "threads that read; null: one for each core", at_least=1)

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .verify import verify

        return verify


@hookimpl
def engine_options(store: Registered) -> None:
    """Register the data source and its jobs."""
    store.add("data", "store", Store)
    store.add("job", "pack", Pack)
    store.add("job", "verify", Verify)
