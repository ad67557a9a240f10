"""How a process holds its memory, as a run's options say."""

from __future__ import annotations

from engine import huge_pages, kept_memory
from engine.options import RunOptions


def arrange(options: RunOptions) -> None:
    """Let this process ask for huge pages and keep freed memory, or not, from now on."""
    (huge_pages.turn_on if options.huge_pages else huge_pages.turn_off)()
    (kept_memory.keep if options.keep_memory else kept_memory.give_back)()
