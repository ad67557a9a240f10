"""What the jobs of this room say beside their results."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Tell the user something that is no result."""
    print(f"engine: {text}", file=sys.stderr, flush=True)
