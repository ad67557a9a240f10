"""Starting the processes of a run on a Ray cluster, instead of by torch.distributed's launcher.

Ray finds the machines; each process is the same as elsewhere, and speaks with the others through torch.distributed. The
engine and the run folder must be where every machine finds them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine.distributed.launching import Payload, payload_of, raise_what_was_said, said_in, variables, worst
from engine.errors import Stopped, UsageError
from engine.session import Session
from engine.signals import StopRequests

LOOK = 0.5  # seconds between two looks at the processes


class Process:
    """A Ray actor that carries out one process of a run, in a process of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def place(self) -> tuple[str, int]:
        """Return this machine's address and a port that is free on it."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def run(self, content: bytes, ours: dict[str, str]) -> tuple[int, dict[int, dict[str, Any]]]:
        """Do a payload's part; return the exit code and, by rank, what the process said of its end."""
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            payload: Payload = pickle.loads(content)  # from the command that started this actor
            path = Path(folder) / "payload"
            path.write_bytes(pickle.dumps(dataclasses.replace(payload, ended=folder)))
            command = [sys.executable, "-m", "engine.distributed.worker", str(path), str(os.getpid())]
            self._process = subprocess.Popen(command, env=os.environ | ours, start_new_session=True)
            return self._process.wait(), said_in(Path(folder))

    def stop(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def attempt(session: Session, restart: int, folder: Path) -> str | None:
    """Run the processes once; return which was lost and how, or None if all have done their work.

    Raises UsageError if Ray is not installed or has not enough machines, and what ``launching.launch`` does.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("parallel.launcher=ray needs Ray: pip install ray, or leave parallel.launcher out") from None
    parallel = session.options.parallel
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True, logging_level="ERROR")
    there = ray.cluster_resources()
    gpus = 1 if session.options.run.device != "cpu" and there.get("GPU", 0) else 0
    needs = {"num_cpus": max(1, parallel.threads), "num_gpus": gpus}
    _require_room(there, parallel.processes, needs)
    kind = ray.remote(Process).options(max_concurrency=2, scheduling_strategy="SPREAD", **needs)
    actors = [kind.remote() for _ in range(parallel.processes)]
    try:
        places = ray.get([actor.place.remote() for actor in actors])
        machines = len({address for address, _ in places})
        address, port = places[0]
        cores = int(there["CPU"]) // machines
        running = {}
        for rank, actor in enumerate(actors):
            ours = variables(session, cores) | {
                "RANK": str(rank), "WORLD_SIZE": str(parallel.processes), "MASTER_ADDR": address,
                "MASTER_PORT": str(port), "LOCAL_RANK": "0",  # Ray shows each process its own GPU alone
                "LOCAL_WORLD_SIZE": str(max(1, parallel.processes // machines)),
            }  # fmt: skip
            running[actor.run.remote(payload_of(session, folder, restart), ours)] = rank
        codes, stopped = _wait(ray, actors, running, folder, parallel.shutdown)
    finally:
        for actor in actors:
            ray.kill(actor)
    if not codes:
        return None
    raise_what_was_said(folder)
    if stopped:
        raise Stopped(
            f"stopped by {stopped} without a new checkpoint; engine train out={session.out} resume=auto goes on"
        )
    return worst(codes, folder)


def _require_room(there: dict[str, float], processes: int, needs: dict[str, int]) -> None:
    for name, wanted in (("CPU", needs["num_cpus"]), ("GPU", needs["num_gpus"])):
        if processes * wanted > there.get(name, 0):
            raise UsageError(
                f"parallel.processes={processes}: they need {processes * wanted} {name}s, the Ray cluster has "
                f"{there.get(name, 0):.0f}: start fewer, or add machines"
            )


def _wait(
    ray: Any, actors: list[Any], running: dict[Any, int], folder: Path, patience: float
) -> tuple[dict[int, int], str]:
    """Wait for all processes; once one has failed, or a signal asks for it, all are asked to stop.

    Returns the exit codes of those that failed, by rank, and the signal. What they said is put into ``folder``.
    """
    codes: dict[int, int] = {}
    asked = ""
    with StopRequests() as stop:
        while running:
            ready, _ = ray.wait(list(running), timeout=patience if codes else LOOK)
            if codes and not ready:
                break  # they do not end, and their actors will be killed
            for reference in ready:
                rank = running.pop(reference)
                try:
                    code, said = ray.get(reference)
                except ray.exceptions.RayError as error:  # the machine is lost, or its actor
                    reason = f"Ray lost rank {rank} ({str(error).strip().splitlines()[0]})"
                    code, said = 3, {rank: {"code": 3, "lost": True, "text": reason}}
                for each, words in said.items():
                    (folder / f"ended-{each}.json").write_text(json.dumps(words))
                if code:
                    codes[rank] = code
            wanted = stop.requested or ("SIGTERM" if codes else "")
            if wanted and not asked:
                asked = wanted
                for actor in actors:
                    actor.stop.remote(signal.Signals[wanted].value)
        return codes, stop.requested or ""
