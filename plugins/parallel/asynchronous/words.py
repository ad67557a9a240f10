"""What is said to people, and read of what they say."""

from __future__ import annotations

import sys

from engine import UsageError


def say(text: str) -> None:
    """Tell whoever watches the run."""
    print(f"engine: {text}", file=sys.stderr, flush=True)


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of "host:port". Raises UsageError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"parallel.server={text}: give HOST:PORT, as node1:29500")
    return host, int(port)
