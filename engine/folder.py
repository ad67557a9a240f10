"""The run folder: one owner at a time, and never somebody else's files."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import IO

from engine import manifest
from engine.errors import UsageError

CONFIG = "config.yaml"
LOCK = "run.lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # from file systems mounted without them (Lustre, NFS)


def claim(out: Path, resuming: bool) -> IO[str]:
    """Take the run folder, making it if needed, and return the lock: the folder is taken while that is open.

    Raises UsageError, leaving everything as it was, if another process uses the folder, if it holds a run
    that is not being resumed, or if it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("a+")
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise UsageError(f"out={out} is in use by process {owner}: wait for it, or choose another out=") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            lock.close()
            raise unwritable(out, error) from error
        print(
            f"engine: out={out} is on a file system without locks: see that one process alone uses it", file=sys.stderr
        )
    if not resuming and ((out / CONFIG).exists() or manifest.checkpoints(out)):
        lock.close()
        raise UsageError(f"out={out} holds a run already: resume=auto goes on with it, another out= starts a new one")
    try:
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), str(os.getpid()).encode())  # unbuffered: on a full disk, close() would fail again
    except OSError as error:
        lock.close()
        raise unwritable(out, error) from error
    return lock


def record(out: Path, config: str) -> None:
    """Write the composed configuration into the run folder, which marks it as holding a run."""
    try:
        write_whole(out / CONFIG, config)
    except OSError as error:
        raise unwritable(out, error) from error


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader, or a crash, sees the old or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # there only after a failure


def flush(path: Path) -> None:
    """Have a file or folder on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(out: Path, error: OSError) -> UsageError:
    """Return the error for a folder that cannot be written, saying what to do about it."""
    todo = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another out="
    return UsageError(f"out={out} cannot be written ({error.strerror}): {todo}")


def owner_of(out: Path) -> str | None:
    """Return the process that uses the run folder; None if none does or if that cannot be told. Nothing is written."""
    try:
        with (out / LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "unknown"
    except OSError:  # no such file, or a file system without locks: ``claim`` will tell
        return None
    return None
