"""A link between two processes: messages in both directions, each a few plain facts and tensors. It dies alone.

Each link is a process group of two, so that a process that dies takes no other with it, and new ones may come at any
time: torch.distributed's usual groups can do neither.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine import UsageError
from engine.distributed.joining import choose_interface
from engine.distributed.place import Place
from engine.distributed.watch import first_line

ALIGNED = 8  # bytes at whose multiples tensors begin in a message, so that they can be seen as what they are


class LinkLost(Exception):
    """The other process has died or did not answer in time."""


@dataclass(frozen=True)
class Message:
    """What one process tells another."""

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Packed:
    """A message as bytes; the same may be sent to several."""

    sizes: Tensor  # int64 [2]: bytes of the facts, and of all
    content: Tensor  # uint8


def pack(message: Message) -> Packed:
    """Return a message as bytes; its tensors may be anywhere and change afterwards."""
    tensors = [tensor.detach().to("cpu").contiguous().reshape(-1) for tensor in message.tensors]
    forms = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in message.tensors]
    facts = json.dumps([message.kind, dict(message.facts), forms]).encode()
    facts += b" " * (-len(facts) % ALIGNED)
    parts = [torch.frombuffer(bytearray(facts), dtype=torch.uint8)]
    for tensor in tensors:
        content = tensor.view(torch.uint8)
        parts += [content, content.new_zeros(-len(content) % ALIGNED)]
    whole = torch.cat(parts)
    return Packed(torch.tensor([len(facts), len(whole)]), whole)


def unpack(packed: Packed) -> Message:
    """Return the message that was packed; its tensors are parts of the same memory."""
    begin = int(packed.sizes[0])
    kind, facts, forms = json.loads(bytes(packed.content[:begin].numpy()))
    tensors = []
    for name, shape in forms:
        dtype: torch.dtype = getattr(torch, name)
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(packed.content[begin : begin + size].view(dtype).view(shape))
        begin += size + -size % ALIGNED
    return Message(kind, facts, tensors)


class Link:
    """One process's end of a link; ``side`` is 0 in the server, 1 in a worker.

    ``timeout``: seconds after which an answer is given up. Every method raises LinkLost once the other end is gone.
    """

    def __init__(self, store: dist.Store, side: int, interface: str, timeout: float) -> None:
        gloo: Any = dist.ProcessGroupGloo  # of which torch's type hints do not tell all
        options = gloo._Options()
        options._devices = [gloo.create_device(interface=interface)]
        options._timeout = timedelta(seconds=timeout)
        try:
            self._group = gloo(store, side, 2, options)
        except RuntimeError as error:
            raise LinkLost(first_line(error)) from error
        self._other = 1 - side

    def send(self, message: Message | Packed) -> None:
        """Send a message."""
        packed = pack(message) if isinstance(message, Message) else message
        try:
            self._group.send([packed.sizes], self._other, 0).wait()
            self._group.send([packed.content], self._other, 1).wait()
        except RuntimeError as error:
            raise LinkLost(first_line(error)) from error

    def receive(self) -> Message:
        """Return the next message."""
        sizes = torch.empty(2, dtype=torch.int64)
        try:
            self._group.recv([sizes], self._other, 0).wait()
            content = torch.empty(int(sizes[1]), dtype=torch.uint8)
            self._group.recv([content], self._other, 1).wait()
        except RuntimeError as error:
            raise LinkLost(first_line(error)) from error
        return unpack(Packed(sizes, content))


def interface_to(address: str, wanted: str) -> str:
    """Return the network interface by which ``address`` is reached: the loopback one within this machine.

    Raises UsageError if ``wanted`` does not exist, or if the address is not known here.
    """
    try:
        socket.gethostbyname(address)
    except OSError as error:
        raise UsageError(f"parallel.server: the machine '{address}' is not known here ({error.strerror})") from error
    local = address.startswith("127.") or address == "localhost"
    return choose_interface(wanted, Place(world=2, local_world=2 if local else 1, address=address))


def answers(address: str, port: int, seconds: float) -> bool:
    """Return whether somebody listens at an address."""
    try:
        with socket.create_connection((address, port), timeout=seconds):
            return True
    except OSError:
        return False
