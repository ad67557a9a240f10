"""Huge pages for torch's allocator: a large tensor's first touch then costs a fault for each 2 MiB, not each 4 KiB.

Convolutions allocate their outputs at every call, and with small pages the faults of a large one take as long as
computing it. torch asks for huge pages if THP_MEM_ALLOC_ENABLE=1 is set when it allocates for the first time.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

VARIABLE = "THP_MEM_ALLOC_ENABLE"
SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_exported = "torch" not in sys.modules and VARIABLE in os.environ  # by the user, and in time for torch to see it
_ours = False  # whether this module has set the variable, in time as well


def available() -> bool:
    """Return whether the system gives huge pages to programs that ask for them."""
    try:
        chosen = re.search(r"\[(\w+)\]", SYSTEM.read_text())
    except OSError:  # no such system
        return False
    return chosen is not None and chosen[1] in ("madvise", "always")


def turn_on() -> None:
    """Ask torch to use huge pages where the system has them; see ``_decide``."""
    if available():
        _decide("1")


def turn_off() -> None:
    """Ask torch to use small pages; see ``_decide``."""
    _decide("0")


def _decide(value: str) -> None:
    """Set the variable, unless the user has exported it; without effect once torch has been imported."""
    global _ours
    if "torch" not in sys.modules and (_ours or VARIABLE not in os.environ):
        os.environ[VARIABLE] = value
        _ours = True


def remark() -> str:
    """Return a line for the user if torch is known to use huge pages, with what would change it; else an empty string.

    It is known where the variable was set before torch was imported: a value that came later may have no effect.
    """
    if not (available() and asked_for()):
        return ""
    if _ours:
        return "memory: huge pages for large tensors (run.huge_pages=false: small ones)"
    if _exported:
        return f"memory: huge pages for large tensors, as {VARIABLE}=1 is exported, whatever run.huge_pages says"
    return ""


def asked_for() -> bool:
    """Return whether torch was told to use huge pages."""
    return os.environ.get(VARIABLE) == "1"
