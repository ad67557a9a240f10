"""What the numeric policies cost and give: kernels that round, packed networks, steps, and test errors of trainings.

The errors are those of the engine's own trainings, in many minutes (``one_bit_long``: hours, only with ``--only``), on
MNIST and CIFAR-10, looked for as the tests do (ENGINE_TEST_DATA); what is not found is left out and said. Give
``--runs`` a folder to keep finished trainings in: an interrupted benchmark then goes on. See docs/results/precision.md.
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
from formats import accuracy, binary, policy_cost, rounding, step_time
from harness import Report, arguments, refuse

from engine.errors import UsageError
from engine.ops import instruction_set

TIMED: dict[str, Callable[[Report, bool], None]] = {
    "rounding": rounding.measure,
    "binary": binary.measure,
    "step_time": step_time.measure,
    "policy_cost": policy_cost.measure,
}
SECTIONS = (*TIMED, *accuracy.RECIPES)


def options(parser: ArgumentParser) -> None:
    """Add what this benchmark takes beside the common options."""
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="where trainings are kept, and found again "
                        "(default: nowhere)")  # fmt: skip
    parser.add_argument("--write", type=Path, metavar="FILE", help="write tables and claims to a file, in Markdown")


def sections(chosen: Namespace) -> Sequence[str]:
    """Return what is measured: what is asked for, or all that is no matter of hours, or what is quick."""
    if chosen.only:
        return chosen.only
    return [*TIMED, *(name for name, recipe in accuracy.RECIPES.items() if not chosen.quick and not recipe.long)]


def main(given: Sequence[str] | None = None) -> None:
    """Measure and report."""
    chosen = arguments(__doc__ or "", given, options)
    if unknown := [name for name in chosen.only or () if name not in SECTIONS]:
        refuse("precision.py", f"--only: no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if chosen.write and not chosen.write.absolute().parent.is_dir():
        refuse("precision.py", f"--write {chosen.write}: there is no such folder")
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="engine-precision-") as nowhere:
        try:
            measure(chosen, chosen.runs or Path(nowhere))
        except UsageError as error:
            refuse("precision.py", str(error))


def measure(chosen: Namespace, runs: Path) -> None:
    """Go through the sections."""
    first = f"threads of trainings: {chosen.threads}; the engine's kernels: {instruction_set()}"
    print(first)
    report = Report(chosen.json, page=chosen.write, heading=f"# Numbers of few bits: tables\n\n{first}")
    for name in sections(chosen):
        if name in TIMED:
            TIMED[name](report, chosen.quick)
        else:
            accuracy.measure(report, accuracy.RECIPES[name], runs)
    if chosen.quick and not chosen.only:
        accuracy.measure(report, accuracy.QUICK, runs)
    report.close(kernels=instruction_set())


if __name__ == "__main__":
    main()
