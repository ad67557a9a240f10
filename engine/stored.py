"""The files of a checkpoint: tensors in safetensors files, whole or in pieces, and the manifest that says which."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine import manifest
from engine.errors import UsageError
from engine.folder import flush
from engine.pieces import Piece, overlap

FILES, PIECES = "files", "pieces"  # of the manifest


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint's file, by name, each read when asked for; their pieces may be in other files."""

    def __init__(self, folder: Path, name: str, pieces: Mapping[str, Any]) -> None:
        self._folder, self._name, self._pieces = folder, name, pieces
        with self._open(name) as file:
            self._whole = set(file.keys())

    def __len__(self) -> int:
        return len(self._whole) + len(self._pieces)

    def __iter__(self) -> Iterator[str]:
        yield from sorted({*self._whole, *self._pieces})

    def __contains__(self, key: object) -> bool:
        return key in self._whole or key in self._pieces

    def __getitem__(self, key: str) -> Tensor:
        """Return a whole tensor."""
        if key in self._whole:
            with self._open(self._name) as file:
                return file.get_tensor(key)
        shape = self.shape(key)
        return self.box(key, (0,) * len(shape), shape)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor, without reading it."""
        if key in self._pieces:
            return tuple(self._pieces[key]["shape"])
        if key not in self._whole:
            raise KeyError(key)
        with self._open(self._name) as file:
            return tuple(file.get_slice(key).get_shape())

    def box(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """Return a box of a tensor; only what is in it is read. UsageError if the pieces do not cover it."""
        if key in self._whole:
            with self._open(self._name) as file:
                part = tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
                return file.get_slice(key)[part] if part else file.get_tensor(key)
        out: Tensor | None = None
        filled = 0
        for file_name, begins, piece_sizes in self._pieces[key]["parts"]:
            met = overlap(begins, piece_sizes, offsets, sizes)
            if met is None:
                continue
            with self._open(file_name) as file:
                values = file.get_slice(key)[met[0]] if met[0] else file.get_tensor(key)
            out = values.new_empty(tuple(sizes)) if out is None else out
            out[met[1]] = values
            filled += values.numel()
        if out is None or filled != math.prod(sizes):
            raise UsageError(f"{self._folder}: the pieces of '{key}' do not make the whole; use another checkpoint")
        return out

    def _open(self, name: str) -> Any:
        return safe_open(self._folder / name, "pt")


def stored_files(folder: Path, facts: Mapping[str, Any]) -> dict[str, Stored]:
    """Return a checkpoint's tensors by file, the files of single processes left out: their pieces are in the others."""
    pieces = facts.get(PIECES, {})
    parts = {part[0] for tensors in pieces.values() for tensor in tensors.values() for part in tensor["parts"]}
    return {name: Stored(folder, name, pieces.get(name, {})) for name in facts[FILES] if name not in parts}


def shape_of(tensors: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Return a tensor's shape, read or not."""
    return tensors.shape(key) if isinstance(tensors, Stored) else tuple(tensors[key].shape)


@torch.no_grad()
def fill(piece: Piece, tensors: Mapping[str, Tensor], key: str) -> None:
    """Copy a process's piece of a whole tensor into its memory."""
    sizes = tuple(piece.values.shape)
    if piece.values.numel() == 0:
        return
    if isinstance(tensors, Stored):
        piece.values.copy_(tensors.box(key, piece.offsets, sizes))
    else:
        box = tuple(slice(begin, begin + size) for begin, size in zip(piece.offsets, sizes, strict=True))
        piece.values.copy_(tensors[key][box])


def write_pieces(
    folder: Path, files: Mapping[str, Mapping[str, Piece]], rank: int, world: int
) -> dict[str, dict[str, Any]]:
    """Write what this process is to write; return, for the manifest, its files and where its pieces are.

    Rank 0's whole tensors are in the file they belong to, all else is in files of single processes. Raises OSError.
    """
    told: dict[str, dict[str, Any]] = {FILES: {}, PIECES: {}}
    for name, held in files.items():
        whole = {key: piece.values for key, piece in held.items() if piece.is_whole and piece.writes}
        parts = {key: piece for key, piece in held.items() if piece.writes and (rank != 0 or not piece.is_whole)}
        if rank == 0:
            told[FILES][name] = _write(folder / name, whole)
        if parts:
            stem = name.removesuffix(".safetensors")
            own = f"{stem}-{rank + 1:05d}-of-{world:05d}.safetensors"
            told[FILES][own] = _write(folder / own, {key: piece.values for key, piece in parts.items()})
            told[PIECES][name] = {
                key: {"shape": list(p.shape), "parts": [[own, list(p.offsets), list(p.values.shape)]]}
                for key, p in parts.items()
            }
    return told


def write_manifest(folder: Path, facts: Mapping[str, Any], told: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest of what all processes have written, which makes a folder a checkpoint. Raises OSError."""
    files: dict[str, Any] = {}
    pieces: dict[str, dict[str, Any]] = {}
    for each in told:
        files |= each[FILES]
        for name, tensors in each[PIECES].items():
            for key, tensor in tensors.items():
                known = pieces.setdefault(name, {}).setdefault(key, {"shape": tensor["shape"], "parts": []})
                known["parts"] += tensor["parts"]
    content = {"format": manifest.FORMAT, **facts, FILES: files} | ({PIECES: pieces} if pieces else {})
    content = json.loads(json.dumps(content))  # as a reader will see it, for the checksum's sake
    content["checksum"] = manifest.checksum(content)
    path = folder / manifest.NAME
    path.write_text(json.dumps(content, indent=1))
    flush(path)
    flush(folder)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    save_file(_separate(tensors), path)
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": manifest.file_checksum(path)}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them; tied weights are stored twice."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
    return separate
