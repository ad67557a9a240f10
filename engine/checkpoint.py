"""Checkpoints: whole or absent, whatever happens while they are written.

A checkpoint is written into a hidden folder, flushed to the disk, and renamed to its name as the last act;
only then are older ones removed, each renamed away first. At any instant, then, the newest visible
checkpoint is complete. The manifest's format is ``engine.manifest``'s; tensors are safetensors files under
canonical parameter names. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import manifest
from engine.errors import RunFailed, UsageError


class Checkpoints:
    """The checkpoints of one run: ``keep`` newest and, if ``best`` is set, the best-scoring one."""

    def __init__(self, run: Path, keep: int, best: bool, higher_is_better: bool) -> None:
        self.run = run
        self._keep, self._best, self._sign = keep, best, 1 if higher_is_better else -1

    def save(
        self,
        step: int,
        files: Mapping[str, Mapping[str, Tensor]],
        facts: Mapping[str, Any],
        score: float | None,
    ) -> Path:
        """Write the checkpoint after ``step`` steps and return its folder; the earlier ones stay until it is whole.

        files: safetensors file name -> tensors. facts: JSON values for the manifest. score: this very step's
        evaluation, if there was one. Raises RunFailed naming the folder if it cannot be written.
        """
        folder = manifest.folder_of(self.run, step)
        partial = folder.with_name(f".partial-{folder.name}")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._write(partial, files, {**facts, "step": step, "score": score})
            _publish(partial, folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunFailed(self._loss(folder, error)) from error
        self._retain(folder)
        return folder

    def _write(self, partial: Path, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        described = {}
        for name, tensors in files.items():
            path = partial / name
            save_file(_separate(tensors), path)
            _flush(path)
            described[name] = {"bytes": path.stat().st_size, "sha256": manifest.file_checksum(path)}
        content = {"format": manifest.FORMAT, **facts, "files": described}
        content = json.loads(json.dumps(content))  # as a reader will see it, for the checksum's sake
        content["checksum"] = manifest.checksum(content)
        path = partial / manifest.NAME
        path.write_text(json.dumps(content, indent=1))
        _flush(path)
        _flush(partial)

    def _loss(self, folder: Path, error: Exception) -> str:
        kept = manifest.checkpoints(self.run)
        last = f"the newest whole checkpoint is {kept[0].name}" if kept else "there is no earlier checkpoint"
        reason = getattr(error, "strerror", None) or str(error)
        return f"checkpoint {folder} could not be written ({reason}); {last}; make room and go on with resume=auto"

    def _retain(self, newest: Path) -> None:
        # Folders beyond the newest are damaged ones that the run went back behind; they must not displace it.
        found = [folder for folder in manifest.checkpoints(self.run) if folder.name <= newest.name]
        kept = set(found[: self._keep])
        if self._best:
            scores = {folder: score for folder in found if (score := score_of(folder)) is not None}
            if scores:
                kept.add(max(reversed(found), key=lambda f: self._sign * scores[f] if f in scores else float("-inf")))
        for folder in found:
            if folder not in kept:
                _remove(folder)
        for leftover in (self.run / manifest.FOLDER).glob(".*-step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def score_of(folder: Path) -> float | None:
    """Return the evaluation a checkpoint was saved with, or None (no evaluation then, or it is damaged)."""
    try:
        return manifest.read(folder).get("score")
    except UsageError:
        return None


def load(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return a checkpoint's manifest and its tensors by file, every byte verified.

    Raises UsageError naming the file that is missing, truncated or altered.
    """
    facts = manifest.verify(folder)
    return facts, {name: load_file(folder / name) for name in facts["files"]}


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimiser's state under "parameter/entry" names: its tensors, and its plain numbers."""
    tensors, numbers = {}, {}
    for name, parameter in _named(optimizer).items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{entry}"] = value
            elif value is not None:
                numbers[f"{name}/{entry}"] = value
    return tensors, numbers


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Take up what ``optimizer_state`` returned, in each parameter's own memory order.

    Raises UsageError if the state belongs to other parameters.
    """
    parameters = _named(optimizer)
    for key, value in {**tensors, **numbers}.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise UsageError(f"the checkpoint's optimiser state is for '{name}', which does not train here")
        parameter = parameters[name]
        if isinstance(value, Tensor):
            like = parameter if value.shape == parameter.shape else value
            value = torch.empty_like(like, dtype=value.dtype, device=parameter.device).copy_(value)
        optimizer.state[parameter][entry] = value


def _named(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


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


def _publish(partial: Path, folder: Path) -> None:
    if folder.exists():  # the same step, saved before the run was resumed from an earlier one
        folder.rename(folder.with_name(f".replaced-{folder.name}"))
    partial.rename(folder)
    _flush(folder.parent)


def _remove(folder: Path) -> None:
    hidden = folder.with_name(f".removed-{folder.name}")
    folder.rename(hidden)  # a half-removed folder must not look like a checkpoint
    shutil.rmtree(hidden, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
