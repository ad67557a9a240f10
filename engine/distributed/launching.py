"""Starting the processes of a run on this machine, through torch.distributed's elastic launcher.

The run is composed once, here; each process gets the composed options. If a process dies or stops answering, all are
ended and started again from the newest checkpoint, ``parallel.restarts`` times at most. A mistake of the user, a run
that cannot go on, or a stop that was asked for ends the run as it does in one process.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from engine.distributed.joining import joined
from engine.distributed.place import place_of, require_room
from engine.errors import EXIT_CRASHED, EXIT_INTERRUPTED, EngineError, RunFailed, Stopped, UsageError
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
    restart: int  # how often the processes have been started again


def perform(session: Session, work: Callable[[Session], None]) -> None:
    """Do ``work(session)`` as one of the processes that a launcher has started, or start them, if there are several."""
    place = place_of(os.environ)
    if place.world == 1 and session.options.parallel.processes > 1:
        launch(session)
        return
    with joined(session.options.parallel, place):
        work(session)


def launch(session: Session) -> None:
    """Do the session's job in ``parallel.processes`` processes; returns when all are done.

    Raises what one process would have raised: UsageError, RunFailed, Stopped; RunFailed also if processes were lost
    more often than ``parallel.restarts``.
    """
    parallel, batch = session.options.parallel, session.options.run.batch
    if parallel.shares_samples and parallel.processes > batch:
        raise UsageError(
            f"run.batch={batch} is fewer than one for each of {parallel.processes} processes: raise run.batch, or "
            "start fewer"
        )
    if parallel.launcher != "ray":
        require_room(parallel.processes)
    attempt = _attempt
    if parallel.launcher == "ray":
        from engine.distributed.on_ray import attempt
    for restart in range(parallel.restarts + 1):
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            lost = attempt(session, restart, Path(folder))
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
    payload = folder / "payload"
    payload.write_bytes(payload_of(session, folder, restart))
    parallel = session.options.parallel
    command = [sys.executable, "-m", "engine.distributed.worker", str(payload), str(os.getpid())]
    config = LaunchConfig(**_supported(
        min_nodes=1, max_nodes=1, nproc_per_node=parallel.processes, run_id=f"engine-{os.getpid()}-{restart}",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0,
        logs_specs=DefaultLogsSpecs(), signals_to_handle=SIGNALS, shutdown_timeout=round(parallel.shutdown),
    ))  # fmt: skip
    try:
        with _started_with(variables(session, len(os.sched_getaffinity(0)))):
            elastic_launch(config, command[0])(*command[1:])
    except SignalException as signalled:
        raise_what_was_said(folder)
        raise Stopped(
            f"stopped by {signalled.sigval.name} without a new checkpoint; engine train out={session.out} resume=auto "
            "goes on with the newest, or starts again"
        ) from None
    except ChildFailedError as failed:
        raise_what_was_said(folder)
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        return worst(codes, folder)
    return None


def payload_of(session: Session, folder: Path, restart: int) -> bytes:
    """Return what a process that does its part of ``session`` reads; it says in ``folder`` how it ended, if badly."""
    parts = {field.name: getattr(session, field.name) for field in dataclasses.fields(session)}
    del parts["registry"], parts["origins"]  # a process makes its own registry, and explains nothing
    return pickle.dumps(Payload(parts, str(folder), restart))


def _supported(**settings: Any) -> dict[str, Any]:
    """Return the settings that this torch's launcher has: the time for shutting down came with torch 2.12."""
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(settings["shutdown_timeout"])
    return {name: value for name, value in settings.items() if name in known}


def variables(session: Session, cores: int) -> dict[str, str]:
    """Return the variables of processes that are started: they compute with their share of the cores, quietly."""
    parallel = session.options.parallel
    threads = parallel.threads or os.environ.get("OMP_NUM_THREADS") or max(1, cores // parallel.processes)
    # What gloo says of a host name that it does not need helps nobody.
    return {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}


@contextmanager
def _started_with(ours: Mapping[str, str]) -> Iterator[None]:
    """Within ``with``, processes that are started have these variables, and the launcher logs nothing of them."""
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    logging.disable()  # how a process ended is said better by us
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def say_ended(folder: Path, rank: int, error: BaseException) -> int:
    """Write down how a process ended, for its launcher; return its exit code."""
    from engine.distributed.watch import ProcessLost

    code = EXIT_CRASHED
    if isinstance(error, EngineError | KeyboardInterrupt):
        code = error.exit_code if isinstance(error, EngineError) else EXIT_INTERRUPTED
    said = {"code": code, "lost": isinstance(error, ProcessLost), "text": " ".join(str(error).split())}
    partial = folder / f".{rank}"
    partial.write_text(json.dumps(said))
    partial.rename(folder / f"ended-{rank}.json")
    return code


def said_in(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what processes have written down of how they ended, by rank."""
    found = {int(path.stem.removeprefix("ended-")): path for path in folder.glob("ended-*.json")}
    return {rank: json.loads(path.read_text()) for rank, path in sorted(found.items())}


def raise_what_was_said(folder: Path) -> None:
    """Raise the EngineError with which a process ended, the user's mistakes first; not that it lost another.

    KeyboardInterrupt if one was interrupted: by a second Ctrl-C.
    """
    said = [each for each in said_in(folder).values() if not each["lost"]]
    if any(each["code"] == EXIT_INTERRUPTED for each in said):
        raise KeyboardInterrupt
    for kind in KINDS:
        for each in said:
            if each["code"] == kind.exit_code:
                raise kind(each["text"])


def worst(codes: Mapping[int, int], folder: Path) -> str:
    """Return which process was lost and how; ``codes`` are the exit codes of those that failed.

    Raises RunFailed if one crashed by a defect: it would do so again.
    """
    said = said_in(folder)
    crashed = [rank for rank, each in said.items() if each["code"] == EXIT_CRASHED]
    if crashed:
        raise RunFailed(f"rank {crashed[0]} crashed ({said[crashed[0]]['text']}): its traceback is above")
    texts = [each["text"] for each in said.values() if each["lost"]]
    silent = sorted((code >= 0, rank, code) for rank, code in codes.items() if rank not in said)
    ends = [f"rank {rank} was ended by {signal.Signals(-code).name}" if code < 0 else
            f"rank {rank} ended with exit code {code}" for _, rank, code in silent]  # fmt: skip
    return "; ".join([*ends[:1], *texts[:1]]) or "the processes failed"
