"""Starting the processes of a run on this machine, through torch.distributed's elastic launcher.

The run is composed once, here; each process gets the composed options. If a process dies or stops answering, all are
ended and started again from the newest checkpoint, ``parallel.restarts`` times at most. A mistake of the user, a run
that cannot go on, or a stop that was asked for ends the run as it does in one process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from engine.errors import EXIT_CRASHED, EngineError, RunFailed, Stopped, UsageError
from engine.session import Session

SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"
"""What ends the processes in good order. The launcher by itself knows no SIGUSR1, which schedulers send: it would die
and leave them behind."""
KINDS: tuple[type[EngineError], ...] = (UsageError, RunFailed, Stopped)


@dataclass(frozen=True)
class Payload:
    """What a process needs to do its part of a session."""

    session: dict[str, Any]
    ended: str  # folder in which a process says how it ended, if not well


def launch(session: Session) -> None:
    """Do the session's job in ``parallel.processes`` processes; returns when all are done.

    Raises what one process would have raised: UsageError, RunFailed, Stopped; RunFailed also if processes were lost
    more often than ``parallel.restarts``.
    """
    parallel = session.options.parallel
    for restart in range(parallel.restarts + 1):
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            lost = _attempt(session, restart, Path(folder))
        if lost is None:
            return
        if restart < parallel.restarts:
            print(
                f"engine: {lost}; all processes start again from the newest checkpoint (restart {restart + 1} of "
                f"{parallel.restarts})", file=sys.stderr, flush=True,
            )  # fmt: skip
    raise RunFailed(
        f"{lost}, after {parallel.restarts} restarts (parallel.restarts); engine train resume={session.out} goes on"
    )


def _attempt(session: Session, restart: int, folder: Path) -> str | None:
    """Run the processes once; return which was lost and how, or None if all have done their work."""
    parts = {field.name: getattr(session, field.name) for field in dataclasses.fields(session)}
    del parts["registry"], parts["origins"]  # a process makes its own registry, and explains nothing
    if restart:
        parts["options"] = dataclasses.replace(session.options, resume="auto")  # from the newest checkpoint of ``out``
    payload = folder / "payload"
    payload.write_bytes(pickle.dumps(Payload(parts, str(folder))))
    parallel = session.options.parallel
    command = [sys.executable, "-m", "engine.distributed.worker", str(payload), str(os.getpid())]
    config = LaunchConfig(**_supported(
        min_nodes=1, max_nodes=1, nproc_per_node=parallel.processes, run_id=f"engine-{os.getpid()}-{restart}",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0,
        logs_specs=DefaultLogsSpecs(), signals_to_handle=SIGNALS, shutdown_timeout=round(parallel.shutdown),
    ))  # fmt: skip
    try:
        with _environment(session):
            elastic_launch(config, command[0])(*command[1:])
    except SignalException as signalled:
        _raise_what_was_said(folder)
        name = signalled.sigval.name
        raise Stopped(f"stopped by {name} before the first step: nothing was lost; run it again") from None
    except ChildFailedError as failed:
        _raise_what_was_said(folder)
        return _worst(failed, folder)
    return None


def _supported(**settings: Any) -> dict[str, Any]:
    """Return the settings that this torch's launcher has: the time for shutting down came with torch 2.12."""
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(settings["shutdown_timeout"])
    return {name: value for name, value in settings.items() if name in known}


@contextmanager
def _environment(session: Session) -> Iterator[None]:
    """Within ``with``, processes that are started compute with their share of the cores, and gloo is quiet."""
    parallel = session.options.parallel
    threads = parallel.threads or max(1, len(os.sched_getaffinity(0)) // parallel.processes)
    # The launcher's hint about threads, and gloo's about a host name that it does not need, help nobody.
    ours = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR", "LOGLEVEL": "CRITICAL"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    if not parallel.threads and before["OMP_NUM_THREADS"]:
        os.environ["OMP_NUM_THREADS"] = before["OMP_NUM_THREADS"]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def say_ended(folder: Path, rank: int, error: BaseException) -> int:
    """Write down how a process ended, for its launcher; return its exit code."""
    from engine.distributed.watch import ProcessLost

    code = error.exit_code if isinstance(error, EngineError) else EXIT_CRASHED
    said = {
        "code": code, "lost": isinstance(error, ProcessLost), "text": " ".join(str(error).split()),
        "ours": isinstance(error, EngineError),
    }  # fmt: skip
    partial = folder / f".{rank}"
    partial.write_text(json.dumps(said))
    partial.rename(folder / f"ended-{rank}.json")
    return code


def _said(folder: Path) -> dict[int, dict[str, Any]]:
    found = {int(path.stem.removeprefix("ended-")): path for path in folder.glob("ended-*.json")}
    return {rank: json.loads(path.read_text()) for rank, path in sorted(found.items())}


def _raise_what_was_said(folder: Path) -> None:
    """Raise the EngineError with which a process ended, the user's mistakes first; not that it lost another."""
    said = [each for each in _said(folder).values() if each["ours"] and not each["lost"]]
    for kind in KINDS:
        for each in said:
            if each["code"] == kind.exit_code:
                raise kind(each["text"])


def _worst(failed: ChildFailedError, folder: Path) -> str:
    """Return which process was lost and how. Raises RunFailed if one crashed by a defect: it would do so again."""
    said = _said(folder)
    crashed = [rank for rank, each in said.items() if not each["ours"]]
    if crashed:
        raise RunFailed(f"rank {crashed[0]} crashed ({said[crashed[0]]['text']}): its traceback is above")
    texts = [each["text"] for each in said.values() if each["lost"]]
    silent = [rank for rank in failed.failures if rank not in said]
    ends = [f"rank {rank} was ended by {failed.failures[rank].signal_name()}" for rank in silent
            if failed.failures[rank].exitcode < 0]  # fmt: skip
    ends += [f"rank {rank} ended with exit code {failed.failures[rank].exitcode}" for rank in silent
             if failed.failures[rank].exitcode >= 0]  # fmt: skip
    return "; ".join([*ends[:1], *texts[:1]]) or "the processes failed"


def require_free_choice(session: Session) -> None:
    """Raise UsageError if more processes are asked for than there are GPUs, where the run is to compute on them."""
    wanted, count = session.options.run.device, session.options.parallel.processes
    gpus = torch.cuda.device_count()
    if (wanted == "cuda" or (wanted == "auto" and gpus)) and count > gpus:
        raise UsageError(f"parallel.processes={count}: this machine has {gpus} GPUs; use as many, or run.device=cpu")
