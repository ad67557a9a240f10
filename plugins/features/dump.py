"""``engine features``: what layers give for every image of a split, in files that are read through the page cache."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine import Session, UsageError, __version__
from engine.features.arrays import Shapes, bytes_of, require_room, reserve, writing
from engine.folder import claim, flush, write_whole
from engine.loaded import Loaded, loaded

from .looking import Behind, modules_named, names_of, pooled
from .telling import say

if TYPE_CHECKING:
    from . import Features

DESCRIPTION, TARGETS = "features.json", "targets"
SAFETENSORS = "features.safetensors"
KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
}  # fmt: skip


def features(session: Session) -> None:
    """Write the files and print what is in them. UsageError, with nothing written, for what cannot be."""
    job: Features = session.options.job  # type: ignore[assignment]
    if not session.options.out:
        raise UsageError("out must be given (the folder of the files): add out=... to the command")
    folder = session.out
    if (folder / DESCRIPTION).exists():
        raise UsageError(f"out={session.options.out} holds features already: delete it, or choose another out=")
    with loaded(session, job.checkpoint, say) as network:
        if not job.layers:
            known = ", ".join(names_of(network.model))
            raise UsageError(f"layers must be given: [NAME,...], as names or patterns of {known}")
        names = modules_named(network.model, job.layers)
        require_names(names)
        with claim(folder, resuming=True):
            _write(folder, job, session, network, names)


def _write(folder: Path, job: Features, session: Session, network: Loaded, names: list[str]) -> None:
    behind, count = Behind(network.model, names), len(network.source(job.split))
    tensors: Mapping[str, Tensor] = {}
    done, what = 0, f"the features of {count:,} images"
    for outputs, batch in network.passes(job.split, behind):
        found = {name: pooled(output) if job.pool else output for name, output in outputs.items()} | {
            TARGETS: batch.targets
        }
        if not tensors:
            shapes = {name: ((count, *tensor.shape[1:]), tensor.dtype) for name, tensor in found.items()}
            _require_types(shapes, job.format)
            require_room(folder, what, bytes_of(shapes), "out=")
            with writing(folder, what, bytes_of(shapes), "out="):
                try:
                    tensors = FORMATS[job.format](folder, shapes)
                except OSError:
                    for name in shapes:
                        (folder / _file(name, job.format)).unlink(missing_ok=True)
                    raise
        for name, tensor in found.items():
            tensors[name][done : done + len(batch)] = tensor.cpu()
        done += len(batch)
    files = {name: _file(name, job.format) for name in tensors}
    description = {
        "engine": __version__, "torch": str(torch.__version__), "overrides": list(session.overrides),
        "split": job.split, "images": count, "classes": list(network.classes), "pooled": job.pool,
        "data": network.source(job.split).fingerprint,
        "arrays": {
            name: {"file": files[name], "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in tensors.items()
        },
    }  # fmt: skip
    with writing(folder, what, 0, "out="):
        for file in sorted(set(files.values())):
            flush(folder / file)
        write_whole(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    for name, tensor in tensors.items():
        print(f"{folder / files[name]}: {name} {list(tensor.shape)}")
    say(f"{DESCRIPTION} beside them says what they are of")


def require_names(names: Sequence[str]) -> None:
    """Raise UsageError for a module whose outputs would be in the targets' place."""
    if TARGETS in names:
        raise UsageError(
            f"layers: {TARGETS} is the name of the file of the images' targets: name a module around this, or within it"
        )


def _require_types(shapes: Shapes, form: str) -> None:
    for name, (_, dtype) in shapes.items():
        if dtype not in KINDS or (form == "npy" and dtype == torch.bfloat16):
            raise UsageError(
                f"layers: {name} gives {dtype}, which format={form} does not have: choose format=safetensors"
            )


def _file(name: str, form: str) -> str:
    return SAFETENSORS if form == "safetensors" else f"{name}.npy"


def as_npy(folder: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Return tensors that are NumPy's files, a file each, for which the disk keeps room. Raises OSError."""
    made = {}
    for name, (shape, dtype) in shapes.items():
        kind, path = np.dtype(str(dtype).removeprefix("torch.")), folder / f"{name}.npy"
        numbers = np.lib.format.open_memmap(path, "w+", kind, shape)
        with path.open("r+b") as file:
            reserve(file.fileno(), path.stat().st_size)
        made[name] = torch.from_numpy(numbers)
    return made


def as_safetensors(folder: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Return tensors that are one file of safetensors, for which the disk keeps room. Raises OSError.

    The format says where each lies before any is there.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, (shape, dtype) in sorted(shapes.items(), key=lambda item: -item[1][1].itemsize):  # aligned, that way
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": KINDS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / SAFETENSORS
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        reserve(file.fileno(), 8 + len(text) + end)
        file.truncate(8 + len(text) + end)
    made = {}
    for name, (shape, dtype) in shapes.items():
        begin, end = header[name]["data_offsets"]
        numbers = np.memmap(path, np.uint8, "r+", offset=8 + len(text) + begin, shape=(end - begin,))
        made[name] = torch.from_numpy(numbers).view(dtype).view(shape)
    return made


FORMATS: Mapping[str, Callable[[Path, Shapes], dict[str, Tensor]]] = {"npy": as_npy, "safetensors": as_safetensors}
