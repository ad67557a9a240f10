"""The file of a packed network: a JSON header and arrays, checksummed; reading it runs nothing that is in it.

    8 bytes   "ConvBits"
    4 bytes   version, 1
    8 bytes   length of the header
    header    JSON, UTF-8
    arrays    as safetensors
    32 bytes  SHA-256 of all before

Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine.errors import UsageError

MAGIC, VERSION = b"ConvBits", 1
FIXED = struct.Struct("<8sIQ")
CHECKSUM = 32


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> int:
    """Write a file at once, replacing one of the same name, and return its bytes. Raises OSError if it cannot be."""
    text = json.dumps(header, sort_keys=True).encode()
    dense = {name: array.contiguous() for name, array in arrays.items()}
    content = FIXED.pack(MAGIC, VERSION, len(text)) + text + save(dense)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content + hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):  # there only after a failure, which is what to tell of
            partial.unlink()
    return len(content) + CHECKSUM


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and arrays; UsageError naming the file if it is missing, foreign, damaged or truncated."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a file that engine export wrote") from None
    if content[: len(MAGIC)] != MAGIC or len(content) < FIXED.size + CHECKSUM:
        raise UsageError(f"{path} is no packed network; write one with engine export format=binary")
    _, version, length = FIXED.unpack_from(content)
    if version != VERSION:
        raise UsageError(f"{path} has version {version}, this engine reads {VERSION}; export the network again")
    if hashlib.sha256(content[:-CHECKSUM]).digest() != content[-CHECKSUM:]:
        raise UsageError(f"{path} was altered or truncated: its checksum does not match; export the network again")
    try:
        header = json.loads(content[FIXED.size : FIXED.size + length])
        return header, load(content[FIXED.size + length : -CHECKSUM])
    except (ValueError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be understood ({error}); export the network again") from error
