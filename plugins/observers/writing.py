"""What the observers that write files share: how a disk's refusal is told."""

from __future__ import annotations

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
