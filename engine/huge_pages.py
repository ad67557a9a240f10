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


def available() -> bool:
    """Return whether the system gives huge pages to programs that ask for them."""
    try:
        chosen = re.search(r"\[(\w+)\]", SYSTEM.read_text())
    except OSError:  # no such system
        return False
    return chosen is not None and chosen[1] in ("madvise", "always")


def turn_on() -> None:
    """Ask torch to use huge pages, unless the user has decided; without effect once torch has been imported."""
    if "torch" not in sys.modules and available():
        os.environ.setdefault(VARIABLE, "1")


def remark() -> str:
    """Return a line for the user if huge pages are asked for, else an empty string."""
    return "memory: huge pages for large tensors (run.huge_pages=false: small ones)" if asked_for() else ""


def asked_for() -> bool:
    """Return whether torch was told to use huge pages."""
    return os.environ.get(VARIABLE) == "1"
