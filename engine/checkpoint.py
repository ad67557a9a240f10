"""Checkpoints: whole or absent, whatever happens while they are written.

A checkpoint is written into a hidden folder, flushed to the disk, and renamed to its name as the last act;
only then are older ones removed, each renamed away first. At any instant, then, the newest visible
checkpoint is complete. The manifest's format is ``engine.manifest``'s; tensors are safetensors files under
canonical parameter names. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from engine import manifest
from engine.distributed.group import current
from engine.errors import RunFailed, UsageError
from engine.folder import flush
from engine.pieces import Piece, pieces_of, wholes
from engine.stored import Stored, fill, shape_of, stored_files, write_manifest, write_pieces


class Checkpoints:
    """The checkpoints of one run: ``keep`` newest and, if ``best`` is set, the best-scoring one.

    With ``background`` a checkpoint is written while training goes on, from a copy; the next one, and ``close``, wait
    for it and raise what went wrong.
    """

    def __init__(self, run: Path, keep: int, best: bool, higher_is_better: bool, background: bool = False) -> None:
        self.run = run
        self._keep, self._best, self._sign = keep, best, 1 if higher_is_better else -1
        self._group = current().channel("checkpoints")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine-save") if background else None
        self._under_way: Future[Path] | None = None

    def save(
        self,
        step: int,
        files: Mapping[str, Mapping[str, Tensor | Piece]],
        facts: Mapping[str, Any],
        score: float | None,
    ) -> Path:
        """Write the checkpoint after ``step`` steps and return its folder; the earlier ones stay until it is whole.

        files: safetensors file name -> tensors, or this process's pieces of them. All processes call this; rank 0's
        facts (JSON values for the manifest) and score (this very step's evaluation, if there was one) are kept.
        Raises RunFailed naming the folder if it cannot be written, in every process.
        """
        pieces = {name: pieces_of(tensors, self._group.rank == 0) for name, tensors in files.items()}
        facts = {**facts, "step": step, "score": score}
        if self._pool is None:
            return self._save(step, pieces, facts)
        self.wait()
        copies = {
            name: {key: dataclasses.replace(p, values=p.values.clone()) for key, p in parts.items() if p.writes}
            for name, parts in pieces.items()
        }
        facts = json.loads(json.dumps(facts))  # lists in it may change, too
        self._under_way = self._pool.submit(self._save, step, copies, facts)
        return manifest.folder_of(self.run, step)

    def wait(self) -> None:
        """Wait until what is being written is there. Raises RunFailed if it cannot be."""
        pending, self._under_way = self._under_way, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for what is being written, and write no more. Raises RunFailed if it cannot be."""
        self.wait()
        if self._pool is not None:
            self._pool.shutdown()

    def give_up(self) -> None:
        """As ``close``, where the run has failed already: what goes wrong here as well is told, not raised."""
        try:
            self.close()
        except RunFailed as error:
            print(f"engine: {error}", file=sys.stderr)

    def _save(self, step: int, files: Mapping[str, Mapping[str, Piece]], facts: Mapping[str, Any]) -> Path:
        folder = manifest.folder_of(self.run, step)
        partial = folder.with_name(f".partial-{folder.name}")
        leads = self._group.rank == 0
        written: dict[str, Any] = {}
        try:
            with self._together(folder):
                if leads:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
            with self._together(folder) as told:
                written = write_pieces(partial, files, self._group.rank, self._group.world)
                told.append(written)
            with self._together(folder):
                if leads:
                    write_manifest(partial, facts, told)
                    _publish(partial, folder)
        except RunFailed:
            if leads:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if leads:
            self._retain(folder)
        return folder

    @contextmanager
    def _together(self, folder: Path) -> Iterator[list[Any]]:
        """Go on once every process is through with what is within ``with``; if one failed, RunFailed in all of them.

        The list that is yielded has what this process put in, and on leaving what every process did, by rank.
        """
        told: list[Any] = []
        failure: Exception | None = None
        try:
            yield told
        except (OSError, SafetensorError) as error:
            failure = error
        reason = self._loss(folder, failure) if failure else ""
        answers = self._group.exchange({"failed": reason, "told": told[0] if told else None}, "checkpoint")
        told[:] = [answer["told"] for answer in answers]
        failed = [answer["failed"] for answer in answers if answer["failed"]]
        if failed:
            raise RunFailed(failed[0]) from failure

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


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return a checkpoint's manifest and its tensors by file, every byte verified.

    Raises UsageError naming the file that is missing, truncated or altered.
    """
    facts = manifest.verify(folder)
    return facts, stored_files(folder, facts)


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
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    pieces: Callable[[Mapping[str, Tensor]], Mapping[str, Piece]] = wholes,
) -> None:
    """Take up what ``optimizer_state`` returned, in each parameter's own memory order.

    pieces: which piece this process holds of tensors that are named and shaped as parameters are. Raises UsageError
    if the state belongs to other parameters.
    """
    parameters = _named(optimizer)
    held = pieces(parameters)
    for key in (*tensors, *numbers):
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise UsageError(f"the checkpoint's optimiser state is for '{name}', which does not train here")
        parameter = parameters[name]
        if key in numbers:
            optimizer.state[parameter][entry] = numbers[key]
        elif shape_of(tensors, key) == held[name].shape:
            value = torch.empty_like(parameter, dtype=tensors[key].dtype)
            fill(pieces({name: value})[name], tensors, key)
            optimizer.state[parameter][entry] = value
        else:
            optimizer.state[parameter][entry] = tensors[key].to(parameter.device, copy=True)


def optimizer_pieces(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    pieces: Callable[[Mapping[str, Tensor]], Mapping[str, Piece]],
    leads: bool,
) -> dict[str, Piece]:
    """Return what this process holds of an optimiser's tensors, named as ``optimizer_state`` names them."""
    parameters = _named(optimizer)
    held = pieces(parameters)
    found = {}
    for key, value in tensors.items():
        name = key.rpartition("/")[0]
        alike = value.shape == parameters[name].shape
        writes = held[name].writes if held[name].is_whole else leads  # a count of steps, say
        found[key] = pieces({name: value})[name] if alike else Piece.whole(value, writes)
    return found


def _named(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def _publish(partial: Path, folder: Path) -> None:
    if folder.exists():  # the same step, saved before the run was resumed from an earlier one
        folder.rename(folder.with_name(f".replaced-{folder.name}"))
    partial.rename(folder)
    flush(folder.parent)


def _remove(folder: Path) -> None:
    hidden = folder.with_name(f".removed-{folder.name}")
    folder.rename(hidden)  # a half-removed folder must not look like a checkpoint
    shutil.rmtree(hidden, ignore_errors=True)
