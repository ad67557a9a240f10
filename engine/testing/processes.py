"""Several processes that are one group, for the time of a function: to try a strategy without a launcher.

They are forked from a server that has imported torch already, so that they start in a tenth of a second, and have a
network of their own where the system lets them, so that tests meet no other's ports and can count bytes.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import pickle
import socket
import struct
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, UP_AND_RUNNING = 0x8914, 0x41
PORT = 29400  # in the network of their own
# torch._dynamo, which DistributedDataParallel needs, takes a second to import.
PRELOADED = ["torch", "torch.distributed.fsdp", "torch._dynamo", "engine.distributed.joining", "engine.testing"]


def together(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout: float = 60,
    lost: Sequence[int] = (),
    **options: Any,
) -> list[Any]:
    """Return what ``function(*arguments)`` returns in each of ``world`` processes that are joined, by rank.

    Within it ``engine.distributed.current()`` is their group. The function belongs to a module and is pickled, as are
    arguments and results. options: those of ``Parallel``; lost: the ranks of processes that the function kills or
    stops, which are not waited for. Raises AssertionError with the traceback of the first
    process that failed, or naming those that are not through after ``timeout`` seconds.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo tells that the own network has no host names
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    pipes = [context.Pipe() for _ in range(world)]
    settings = {"timeout": timeout / 2, "interface": "lo"} | options
    processes = []
    first: Any = None
    port = PORT
    for rank, (_, theirs) in enumerate(pipes):
        process = context.Process(
            target=_carry_out, args=(theirs, rank, world, first, port, settings, function, arguments), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        if rank == 0:  # makes the network, and says where it is
            first, port = _received(pipes[0][0], timeout, 0)
    try:
        return _results([ours for ours, _ in pipes], timeout, lost)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(pipes: Sequence[Connection], timeout: float, lost: Sequence[int]) -> list[Any]:
    results: dict[int, Any] = dict.fromkeys(lost)
    while len(results) < len(pipes):
        waited_for = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waited_for, timeout)
        missing = [rank for rank in range(len(pipes)) if rank not in results]
        assert ready, f"ranks {missing} are not through after {timeout} s"
        for pipe in ready:
            rank = pipes.index(pipe)
            results[rank] = _received(pipes[rank], timeout, rank)
    return [results[rank] for rank in range(len(pipes))]


def _received(pipe: Connection, timeout: float, rank: int) -> Any:
    assert pipe.poll(timeout), f"rank {rank} is not through after {timeout} s"
    try:
        works, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    assert works, f"rank {rank} failed:\n{value}"
    return value


def _carry_out(
    pipe: Connection,
    rank: int,
    world: int,
    first: int | None,
    port: int,
    settings: dict[str, Any],
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    try:
        if rank == 0:
            _send(pipe, True, (os.getpid(), enter_own_network()))
        else:
            _enter_network_of(first)
        from engine.distributed.joining import joined
        from engine.distributed.place import Place
        from engine.options import Parallel

        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        place = Place(rank, world, rank, world, address="127.0.0.1", port=port)
        with joined(Parallel(**settings), place):
            result = function(*arguments)
        _send(pipe, True, result)
    except BaseException:
        _send(pipe, False, traceback.format_exc())


def _send(pipe: Connection, works: bool, value: Any) -> None:
    """Send what lives on when this process has ended; by itself a pipe shares the memory of torch's tensors."""
    pipe.send_bytes(pickle.dumps((works, value)))


def enter_own_network() -> int:
    """Give this process a network with nothing but a loopback interface; return a port that is free there.

    Where the system does not let it, it stays in the network it is in.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP_AND_RUNNING))
        return PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _enter_network_of(process: int | None) -> None:
    """Enter another process's network, if it has one of its own."""
    with open(f"/proc/{process}/ns/net") as theirs, open("/proc/self/ns/net") as ours:
        if os.fstat(theirs.fileno()).st_ino != os.fstat(ours.fileno()).st_ino:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(theirs.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def bytes_sent(interface: str = "lo") -> int:
    """Return how many bytes this process's network has sent by an interface, headers included."""
    with open("/proc/net/dev") as table:
        for line in table:
            name, _, numbers = line.partition(":")
            if name.strip() == interface:
                return int(numbers.split()[8])
    raise AssertionError(f"there is no interface {interface}")
