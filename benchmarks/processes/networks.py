"""Networks of their own for a benchmark's processes: a loopback, or machines at a switch with links of one rate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PORT = 29321
BURST = {"100mbit": "128kb", "1gbit": "512kb"}  # packets of 64 kB must pass through the filter as a whole


@dataclass(frozen=True)
class Network:
    """Where each process lives: its network namespace, its interface, and the address of rank 0."""

    spaces: Sequence[str]
    interface: str
    address: str


def available() -> str:
    """Return why networks cannot be made here; "" if they can."""
    if os.geteuid() != 0:
        return "networks of their own need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} is missing (Debian: iproute2)" if missing else ""


@contextmanager
def network(world: int, link: str = "") -> Iterator[Network]:
    """Within ``with``, there is a network for ``world`` processes: one loopback, or links of a rate ("100mbit").

    Each link is a pair of virtual interfaces at a bridge, and lets through so much in each direction (tc's token bucket
    filter). Everything is removed afterwards.
    """
    name = f"engine{os.getpid()}"
    if not link:
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "-n", name, "link", "set", "lo", "up")
            yield Network([name] * world, "lo", "127.0.0.1")
        finally:
            _run("ip", "netns", "delete", name)
        return
    spaces = [f"{name}-{rank}" for rank in range(world)]
    switch = f"{name}-s"
    made: list[str] = []
    try:
        for space in (switch, *spaces):
            _run("ip", "netns", "add", space)
            made.append(space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for rank, space in enumerate(spaces):
            port = f"port{rank}"
            _run("ip", "link", "add", "net0", "netns", space, "type", "veth", "peer", "name", port, "netns", switch)
            _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", space, "address", "add", f"10.9.0.{rank + 1}/24", "dev", "net0")
            _run("ip", "-n", space, "link", "set", "net0", "up")
            for where, interface in ((space, "net0"), (switch, port)):
                rate = ("rate", link, "burst", BURST[link], "latency", "400ms")
                _run("tc", "-n", where, "qdisc", "add", "dev", interface, "root", "tbf", *rate)
        yield Network(spaces, "net0", "10.9.0.1")
    finally:
        for space in made:
            _run("ip", "netns", "delete", space)


def carry_out(script: Path, work: dict[str, Any], world: int, link: str = "", timeout: float = 1800) -> Any:
    """Run ``script`` in ``world`` processes, each with one thread; return what rank 0 prints as JSON in its last line.

    work: given to each as JSON in the variable WORK. Raises RuntimeError with what a process said that failed.
    """
    with network(world, link) as there:
        processes = []
        for rank, space in enumerate(there.spaces):
            variables = os.environ | {
                "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0" if link else str(rank),
                "LOCAL_WORLD_SIZE": "1" if link else str(world), "MASTER_ADDR": there.address,
                "MASTER_PORT": str(PORT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
                "WORK": json.dumps(work | {"interface": there.interface}),
            }  # fmt: skip
            command = ["ip", "netns", "exec", space, sys.executable, str(script)]
            processes.append(
                subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )
        try:
            told = [process.communicate(timeout=timeout)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    for rank, (process, text) in enumerate(zip(processes, told, strict=True)):
        if process.returncode:
            raise RuntimeError(f"rank {rank} of {world} failed:\n{text}")
    return json.loads(told[0].strip().splitlines()[-1])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
