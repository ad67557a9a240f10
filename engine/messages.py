"""What a process and its worker say to each other: pickles through a socket, tensors through memory they share.

The memory is a file without a name (memfd), so it takes nothing of /dev/shm, whose size containers limit, and goes when
both processes have. A tensor is copied into it and out of it, and it is used again for the next message.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTH = struct.Struct("<Q")  # of the message that follows, in bytes
ALIGNED = 64  # bytes to which a tensor's place in shared memory is rounded up


def send(channel: socket.socket, message: bytes) -> None:
    """Send a message. Raises OSError if nobody is at the other end."""
    channel.sendall(LENGTH.pack(len(message)) + message)


def receive(channel: socket.socket) -> bytes:
    """Return the next message. Raises EOFError if the other end is closed, ConnectionError if its process died."""
    (length,) = LENGTH.unpack(_exactly(channel, LENGTH.size))
    return _exactly(channel, length)


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    rest = memoryview(data)
    while len(rest):
        count = channel.recv_into(rest)
        if count == 0:
            raise EOFError
        rest = rest[count:]
    return bytes(data)


class SharedMemory:
    """Memory that two processes have mapped, by a file's descriptor; the writer lets it grow."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._mapped: mmap.mmap | None = None

    def bytes(self, size: int) -> np.ndarray:
        """Return the first ``size`` bytes, uint8, of memory that is at least as large."""
        if self._mapped is None or len(self._mapped) < size:
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._mapped = mmap.mmap(self._file, os.fstat(self._file).st_size)
        return np.frombuffer(self._mapped, np.uint8, size)


class _Packer(pickle.Pickler):
    """Leaves tensors out of a pickle, and keeps them."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []
        self.size = 0

    def persistent_id(self, thing: Any) -> Any:
        """Return where in memory a tensor is to be, and of what form; None for all that is pickled as usual."""
        if type(thing) is not Tensor or thing.layout is not torch.strided or thing.device.type != "cpu":
            return None
        dense = thing.is_contiguous() or thing.is_contiguous(memory_format=torch.channels_last)
        tensor = thing.detach() if dense else thing.detach().contiguous()
        self.tensors.append(tensor)
        place, self.size = self.size, self.size + -(-tensor.nbytes // ALIGNED) * ALIGNED
        return place, tensor.dtype, tuple(tensor.shape), tensor.stride()


class _Unpacker(pickle.Unpickler):
    """Makes tensors anew from memory, of which they are copies."""

    def __init__(self, file: BytesIO, memory: np.ndarray, pinned: bool) -> None:
        super().__init__(file)
        self._memory, self._pinned = memory, pinned

    def persistent_load(self, form: Any) -> Tensor:
        """Return a tensor of the form that ``persistent_id`` gave."""
        place, dtype, shape, stride = form
        tensor = torch.empty_strided(shape, stride, dtype=dtype, pin_memory=self._pinned)
        # numpy's copy runs in this thread alone; a loader has one for each worker already.
        np.copyto(_bytes_of(tensor), self._memory[place : place + tensor.nbytes])
        return tensor


def _bytes_of(tensor: Tensor) -> np.ndarray:
    """Return the memory of a dense tensor."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()


def packed(thing: Any, memory: SharedMemory) -> bytes:
    """Return a message that stands for ``thing``, the tensors in it copied into shared memory."""
    file = BytesIO()
    packer = _Packer(file)
    packer.dump(thing)
    shared, place = memory.bytes(packer.size) if packer.size else np.empty(0, np.uint8), 0
    for tensor in packer.tensors:
        np.copyto(shared[place : place + tensor.nbytes], _bytes_of(tensor))
        place += -(-tensor.nbytes // ALIGNED) * ALIGNED
    return LENGTH.pack(packer.size) + file.getvalue()


def unpacked(message: bytes, memory: SharedMemory, pinned: bool) -> Any:
    """Return what ``packed`` was given, its tensors copied out of shared memory, into pinned memory if asked for."""
    (size,) = LENGTH.unpack(message[: LENGTH.size])
    shared = memory.bytes(size) if size else np.empty(0, np.uint8)
    return _Unpacker(BytesIO(message[LENGTH.size :]), shared, pinned).load()
