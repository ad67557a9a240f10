"""Bringing the processes of a run together, and seeing that they are about the same run."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.distributed.group import ALONE, Group, entered
from engine.distributed.place import Place
from engine.distributed.store import answered
from engine.distributed.watch import KEEPER, ProcessLost, Watch, first_line
from engine.errors import UsageError
from engine.options import Parallel

LOOPBACK = "lo"
SIOCGIFADDR = 0x8915  # asks Linux for an interface's IPv4 address


@contextmanager
def joined(options: Parallel, place: Place) -> Iterator[Group]:
    """Within ``with``, the processes of ``place.world`` are one group, the current one; alone, a group of one.

    Raises UsageError for an interface that does not exist, for the loopback interface where there are several
    machines, and if the others cannot be reached in time. The bound addresses are exchanged and can be printed.
    """
    if place.world == 1:
        yield ALONE
        return
    timeout = timedelta(seconds=options.timeout)
    interface = choose_interface(options.interface, place)
    os.environ.update(place.variables())
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    try:
        # Torch itself waits for ever where somebody else listens at rank 0's port, and says nothing.
        address = address_of(interface) or socket.gethostname()
        store = answered(lambda: _store(address, timeout), 2 * options.timeout)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("engine", store), rank=place.rank, world_size=place.world, timeout=timeout
        )
    except (RuntimeError, ValueError) as error:  # what torch raises for a port in use, a wrong address, a missing rank
        raise UsageError(
            f"parallel: rank {place.rank} cannot reach the other {place.world - 1} processes at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} by interface {interface} "
            f"({first_line(error)}); see that all were started, and name the network's interface with "
            "parallel.interface="
        ) from error
    watch = Watch(dist.PrefixStore("watch", store.clone()), place.rank, place.world, options.timeout)
    group = Group(range(place.world), place.rank, dist.group.WORLD, dist.PrefixStore("exchange", store), watch)
    processes: list[Any] = []
    try:
        told = [*_machine(), os.getpid(), f"{address_of(interface)} ({interface})"]
        processes += group.exchange(told, "addresses")
        group.connection = f"{backend}; {_machines(processes)}"
        with entered(group):
            yield group
        group.leave()
    except ProcessLost as lost:
        end_silent(lost.silent, processes)
        raise
    except BaseException:
        with suppress(RuntimeError):  # where the store has gone, too
            watch.tell_failure()
            watch.linger()
        raise
    finally:
        watch.close()
        dist.destroy_process_group()


def _store(address: str, timeout: timedelta) -> Any:
    """Return a store that rank 0 keeps, so that it outlives the launcher; a launcher's own is asked where that is."""
    found, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    found.set_timeout(timeout)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return found  # rank 0 keeps it
    kept = None
    if rank == KEEPER:
        kept = dist.TCPStore(address, 0, world, is_master=True, timeout=timeout, wait_for_workers=False)
        found.set("engine", f"{address} {kept.port}")
    address, port = found.get("engine").decode().split()
    return kept or dist.TCPStore(address, int(port), world, is_master=False, timeout=timeout, wait_for_workers=False)


def _machine() -> tuple[str, str]:
    """Return this machine's name, and what tells it and its numbers of processes from any other."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname(), f"{boot} {os.readlink('/proc/self/ns/pid')}"


def end_silent(ranks: Sequence[int], processes: Sequence[Sequence[Any]]) -> None:
    """End the processes of these ranks that are on this machine: they hang, and their launcher would wait for them.

    processes: by rank, what each has told of itself: its machine's name, that machine, its number, its address.
    """
    machine = _machine()[1]
    for _, theirs, number, _ in (processes[rank] for rank in ranks if processes):
        if theirs == machine:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def _machines(processes: Sequence[Sequence[Any]]) -> str:
    """Return, in words, by which addresses the processes of each machine speak with the others."""
    told = []
    for _, found in groupby(range(len(processes)), key=lambda rank: processes[rank][1]):
        first, *others = found
        ranks = f"ranks {first} to {others[-1]}" if others else f"rank {first}"
        told.append(f"{ranks} on {processes[first][0]} {processes[first][3]}")
    return "; ".join(told)


def choose_interface(wanted: str, place: Place) -> str:
    """Return the network interface to use. Raises UsageError if it does not exist or cannot reach other machines."""
    there = [name for _, name in socket.if_nameindex()]
    if wanted and wanted not in there:
        raise UsageError(f"parallel.interface={wanted}: there is no such interface here; choose of {', '.join(there)}")
    chosen = wanted or (LOOPBACK if place.machines == 1 else _interface_towards(place, there))
    if place.machines > 1 and (chosen == LOOPBACK or address_of(chosen).startswith("127.")):
        raise UsageError(
            f"parallel.interface={chosen}: the {place.machines} machines cannot reach each other by the loopback "
            f"interface; name the network's with parallel.interface=, one of {', '.join(there)}"
        )
    return chosen


def _interface_towards(place: Place, there: list[str]) -> str:
    """Return the interface by which rank 0's machine is reached, or that has its address."""
    address = place.address or os.environ.get("MASTER_ADDR", "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # nothing is sent: the kernel chooses a route, and with it an address of ours
            own = probe.getsockname()[0]
        except OSError as error:
            raise UsageError(f"parallel: rank 0's machine '{address}' is not known here ({error.strerror})") from error
    own_is_master = own.startswith("127.")
    found = [name for name in there if address_of(name) == own and not own_is_master]
    if found:
        return found[0]
    outward = [name for name in there if name != LOOPBACK and address_of(name)]
    return outward[0] if len(outward) == 1 else LOOPBACK


def address_of(interface: str) -> str:
    """Return an interface's IPv4 address; "" if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:
            return ""
