"""Freed memory that stays with the process: from what a step frees the next one allocates without page faults.

By default glibc gives large blocks back to the system as they are freed, so every step of a training pays for its
activations' pages anew: a fifth of the time of VGG-16's training step on two cores. The price is memory: blocks leave
gaps behind, and what was once needed stays taken until the process ends. glibc looks for a little more than an aligned
block needs, so a gap may not take a block of just the size that left it: a process grows for some hundred steps, until
it has gaps for all.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's parameters, from glibc's malloc.h
NEVER = 2**31 - 1  # bytes; the most that mallopt takes: single blocks of 2 GiB and more are still given back
USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20}  # what glibc adapts to itself once large blocks are freed
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")

_kept = False


def available() -> bool:
    """Return whether the process allocates by glibc, and the user has not told glibc anything else."""
    tuned = any(name in os.environ for name in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return platform.libc_ver()[0] == "glibc" and not tuned


def keep() -> None:
    """Keep freed memory from now on, where that can be told to the allocator."""
    global _kept
    if available():
        _kept = _set(dict.fromkeys(USUAL, NEVER))


def give_back() -> None:
    """Give freed memory back as the allocator usually does, if this module has told it to keep it."""
    global _kept
    if _kept:
        _kept = not _set(USUAL)


def kept() -> bool:
    """Return whether this module has told the allocator to keep freed memory."""
    return _kept


def remark() -> str:
    """Return a line for the user where freed memory is kept, with what would change it; else an empty string."""
    return "memory: what is freed stays with the process (run.keep_memory=false: it goes back)" if _kept else ""


def _set(thresholds: dict[int, int]) -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    answers = [mallopt(parameter, ctypes.c_int(value)) for parameter, value in thresholds.items()]
    return answers == [1] * len(answers)  # mallopt's word for success
