"""How fast images become batches: the engine's stores, folders and CIFAR beside DataLoader, batched torch and FFCV.

Also: reading a store that is not in the cache, time that a training waits for data, memory of several readers. See
docs/results/data.md. Real images are looked for as the tests do (ENGINE_TEST_DATA); without them some are drawn.
"""

# ruff: noqa: E402 - torch is imported only after its allocator has been told
from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine import huge_pages, kept_memory

huge_pages.turn_on()  # before torch is imported, for all sides
kept_memory.keep()

import torch
from harness import Report, arguments, refuse
from inputs import Bench
from inputs.cold import cold
from inputs.crops import colours, crops, ffcv
from inputs.memory import memory
from inputs.small import small
from inputs.waiting import waiting

from engine.errors import UsageError
from engine.ops import instruction_set

Section = Callable[[Bench], None]
SECTIONS: dict[str, Section] = {
    function.__name__: function for function in (crops, colours, ffcv, small, cold, waiting, memory)
}


def options(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--folder", type=Path, help="where stores are written, up to 12 GB: a folder on the disk to "
                        "measure (default: the system's for temporary files)")  # fmt: skip
    parser.add_argument("--write", type=Path, metavar="FILE", help="write tables and claims to a file, in Markdown")


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    if unknown := [name for name in chosen.only or () if name not in SECTIONS]:
        refuse("data.py", f"--only: no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if chosen.write and not chosen.write.absolute().parent.is_dir():
        refuse("data.py", f"--write {chosen.write}: there is no such folder")
    if chosen.folder and not chosen.folder.is_dir():
        refuse("data.py", f"--folder {chosen.folder}: there is no such folder")
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="engine-data-", dir=chosen.folder) as folder:
        try:
            measure(chosen, Path(folder))
        except UsageError as error:
            refuse("data.py", str(error))


def measure(chosen: Namespace, folder: Path) -> None:
    """Go through the sections."""
    pages = "huge pages" if huge_pages.asked_for() else "small pages"
    allocator = f"{pages}, freed memory {'kept' if kept_memory.kept() else 'given back'}, for all sides"
    first = f"allocator: {allocator}; threads: {chosen.threads}; the engine's kernels: {instruction_set()}"
    print(first)
    report = Report(chosen.json, page=chosen.write, heading=f"# Loading images: tables\n\n{first}")
    bench = Bench(report, folder, chosen.quick, chosen.rounds or 0)
    for name in chosen.only or SECTIONS:
        SECTIONS[name](bench)
    report.close(allocator=allocator, kernels=instruction_set())


if __name__ == "__main__":
    main()
