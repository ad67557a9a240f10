"""What observers share: how something is told, and how a disk's refusal is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import RunFailed


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block (full disk, read-only folder) into RunFailed, one line that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFailed(
            f"{path} cannot be written ({reason}): make room there or choose another folder with out=..."
        ) from error


def near(path: Path) -> str:
    """Return the path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def say(text: str) -> None:
    """Print a line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)
