"""Reading checkpoints without torch: where they are, whether they are whole, and what composed their run.

A run folder holds ``checkpoints/step-00000120/`` folders, each with ``manifest.json`` and safetensors files.
The manifest lists every file's size and SHA-256 and carries a checksum of its own; it is written last, so a
folder without one was never finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import UsageError

FORMAT = 1
NAME = "manifest.json"
FOLDER = "checkpoints"


def folder_of(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` steps."""
    return run / FOLDER / f"step-{step:08d}"


def checksum(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, its own ``checksum`` left out."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest; raises UsageError naming the folder if it is missing, altered or foreign."""
    path = folder / NAME
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a checkpoint: it has no {NAME}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); use another checkpoint") from error
    if not isinstance(manifest, dict) or manifest.get("checksum") != checksum(manifest):
        raise UsageError(f"{path} was altered: its checksum does not match; use another checkpoint")
    if manifest["format"] != FORMAT:
        raise UsageError(f"{path} has format {manifest['format']}, this engine reads {FORMAT}; use the engine it names")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest after checking every file's size and SHA-256; UsageError names the first bad file."""
    manifest = read(folder)
    for name, facts in manifest["files"].items():
        path = folder / name
        try:
            size, found = path.stat().st_size, file_checksum(path)
        except FileNotFoundError:
            raise UsageError(f"{path} is missing; use another checkpoint") from None
        except OSError as error:  # a disk that cannot give back what it took is one more kind of damage
            raise UsageError(f"{path} cannot be read ({error.strerror}); use another checkpoint") from error
        if size != facts["bytes"]:
            raise UsageError(f"{path} has {size} bytes instead of {facts['bytes']}: it is truncated")
        if found != facts["sha256"]:
            raise UsageError(f"{path} was altered: its checksum does not match; use another checkpoint")
    return manifest


def checkpoints(run: Path) -> list[Path]:
    """Return the finished checkpoint folders of a run, newest first; a user's own copies there are left alone."""
    found = [p for p in (run / FOLDER).glob("step-*") if _step(p).isdecimal() and (p / NAME).is_file()]
    return sorted(found, key=lambda folder: int(_step(folder)), reverse=True)


def _step(folder: Path) -> str:
    return folder.name.removeprefix("step-")


def newest_valid(run: Path, tell: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that verifies; ``tell`` hears about each one that does not."""
    for folder in checkpoints(run):
        try:
            verify(folder)
        except UsageError as error:
            tell(f"skipping {folder.name}: {error}")
        else:
            return folder
    return None


def locate(path: Path, tell: Callable[[str], None]) -> Path:
    """Return the checkpoint that ``path`` means: itself, or the newest valid one of a run folder.

    Raises UsageError if there is none.
    """
    try:
        if (path / NAME).is_file():
            return path
        if not path.exists():
            raise UsageError(f"{path} does not exist; give a run folder or a checkpoint folder")
        found = newest_valid(path, tell)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give another folder") from error
    if found is None:
        raise UsageError(f"{path} holds no valid checkpoint; give a run folder or a checkpoint folder")
    return found
