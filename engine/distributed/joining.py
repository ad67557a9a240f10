"""Bringing the processes of a run together, and seeing that they are about the same run."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.distributed.group import ALONE, Group, entered
from engine.distributed.place import Place
from engine.distributed.watch import Watch
from engine.errors import EngineError, UsageError
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
        store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("engine", store), rank=rank, world_size=world, timeout=timeout
        )
    except (RuntimeError, ValueError) as error:  # what torch raises for a port in use, a wrong address, a missing rank
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"parallel: rank {place.rank} cannot reach the other {place.world - 1} processes at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} by interface {interface} ({reason}); see "
            "that all were started, and name the network's interface with parallel.interface="
        ) from error
    watch = Watch(dist.PrefixStore("watch", store.clone()), rank, world, options.timeout)
    group = Group(range(world), rank, dist.group.WORLD, dist.PrefixStore("exchange", store), watch)
    try:
        group.connection = _connection(group, place, interface, backend)
        with entered(group):
            yield group
    except EngineError:
        group.tell_failure()
        raise
    finally:
        watch.close()
        dist.destroy_process_group()


def _connection(group: Group, place: Place, interface: str, backend: str) -> str:
    """Return, in words, by which addresses the processes speak with each other."""
    told = f"{socket.gethostname()} {address_of(interface)} ({interface})"
    bound = group.exchange(told, "addresses")
    machines = [f"ranks {first} to {first + place.local_world - 1} on {bound[first]}"
                for first in range(0, group.world, place.local_world)]  # fmt: skip
    return f"{backend}; {'; '.join(machines)}"


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
