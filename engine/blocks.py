"""A source that is read in whole blocks: consecutive records in one request, kept while they are in use.

With ``data.shuffle=blocks`` the records of some blocks are shuffled together, so all records of a block are wanted soon
after the first. Read at once they are one long request instead of many short ones, which is what disks and networks are
quick at.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import torch
from torch import Tensor

from engine.interfaces import Pictures, Records, Source
from engine.pictures import ADDRESS, BYTES, FILE, OFFSET


@dataclass
class Block:
    """Some consecutive records in memory, as pictures or as records; neither: the source could not give all of them.

    left: how many are still to be asked for.
    """

    pictures: Pictures | None
    records: Records | None
    targets: Tensor
    left: int

    @property
    def there(self) -> bool:
        """Whether its records are in memory."""
        return self.pictures is not None or self.records is not None


class BlockSource(Source):
    """Gives the records of another source, which it reads in blocks of ``block`` records; safe to call from threads.

    A block is read by one request when one of its records is first asked for: of images that lie one after the other in
    a file, the whole stretch; else all of its records by a single call. However many threads ask at once, it is read
    once. A block is let go when as many records have been asked for as it has, and the one unused for longest when more
    than ``keep`` are there.

    A stretch that the file or the disk gives only in part is left where it is from the first record that is missing
    on; of a block that the source does not give in one call, each batch asks for its own records. So a batch with a bad
    record gets the error it would get without blocks, and no other batch does.
    """

    def __init__(self, source: Source, block: int, keep: int) -> None:
        self.source, self.block, self.keep = source, block, keep
        self.classes, self.shape, self.fingerprint = source.classes, source.shape, source.fingerprint
        self.colour = source.colour
        self._kept: OrderedDict[int, Future[Block]] = OrderedDict()
        self._lock, self._closed = Lock(), False
        self._reader: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        """Name a record as the source does."""
        return self.source.name_of(index)

    def pictures(self, indices: Tensor) -> tuple[Pictures, Tensor] | None:
        """Return where images are in the blocks' memory, and their targets; None where the source says so."""
        places, parts = self._parts(indices)
        tables, keep, targets = [], [], []
        if not all(block.there for block, _ in parts):
            return self.source.pictures(indices)  # None, or what it says of the record that it cannot give
        for block, rows in parts:
            if block.pictures is None:
                return None
            tables.append(block.pictures.table[rows])
            targets.append(block.targets[rows])
            keep += block.pictures.keep
        if not parts:
            return self.source.pictures(indices)
        self._served(indices)
        fit = all(block.pictures.fit for block, _ in parts if block.pictures)
        return Pictures(_in_place(tables, places), self.shape[0], keep, fit), _in_place(targets, places)

    def records(self, indices: Sequence[int]) -> Records:
        """Return records out of the blocks' memory."""
        rows_of_all = torch.as_tensor(indices, dtype=torch.int64)
        places, parts = self._parts(rows_of_all)
        found, done = [], 0
        for block, rows in parts:
            own, done = rows_of_all[places[done : done + len(rows)]].tolist(), done + len(rows)
            if block.records is not None:
                found.append((block.records, rows))
            elif not block.there:
                found.append((self.source.records(own), torch.arange(len(own))))
        if not found or len(found) < len(parts):  # nothing, or what is there as pictures
            return self.source.records(indices)
        self._served(rows_of_all)
        targets = _in_place([records.targets[rows] for records, rows in found], places)
        tensors = [records.images[rows] for records, rows in found if isinstance(records.images, Tensor)]
        if tensors:
            return Records(found[0][0].encoding, _in_place(tensors, places), targets)
        files = [b""] * len(indices)
        in_order = (records.images[row] for records, rows in found for row in rows.tolist())
        for place, data in zip(places.tolist(), in_order, strict=True):
            files[place] = data
        return Records(found[0][0].encoding, files, targets)

    def ahead(self, blocks: Sequence[int]) -> None:
        """Begin to read blocks that will soon be asked for, one after the other, in a thread of the source's own.

        Whoever asks for one that cannot be read has it tried again and is told.
        """
        for number in blocks:
            with self._lock:
                if self._closed:
                    return
                if number in self._kept:
                    continue
                if self._reader is None:
                    self._reader = ThreadPoolExecutor(1, thread_name_prefix="engine-blocks")
                    weakref.finalize(self, self._reader.shutdown, wait=False, cancel_futures=True)
                self._reader.submit(_read_into, self._room_for(number), weakref.ref(self), number)

    def close(self) -> None:
        """Begin to read no more of the blocks ahead; whoever asks for one still gets it."""
        with self._lock:
            self._closed = True
            if self._reader is not None:
                self._reader.shutdown(wait=False, cancel_futures=True)
                self._reader = None

    def _parts(self, indices: Tensor) -> tuple[Tensor, list[tuple[Block, Tensor]]]:
        """Return the blocks of records with the rows in each, and the places in ``indices`` of all these rows."""
        numbers, places = torch.sort(indices // self.block, stable=True)
        found, counts = torch.unique_consecutive(numbers, return_counts=True)
        rows = (indices[places] - numbers * self.block).split(counts.tolist())
        return places, [(self._get(number), own) for number, own in zip(found.tolist(), rows, strict=True)]

    def _get(self, number: int) -> Block:
        with self._lock:
            future = self._kept.get(number)
            if future is None:
                future = self._room_for(number)
            self._kept.move_to_end(number)
        _read_into(future, weakref.ref(self), number)
        return future.result()

    def _room_for(self, number: int) -> Future[Block]:
        """Return the future of a block that is to be read; the lock is held."""
        future = self._kept[number] = Future()
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return future

    def _served(self, indices: Tensor) -> None:
        """Let go of blocks all of whose records have been asked for."""
        found, counts = torch.unique(indices // self.block, return_counts=True)
        with self._lock:
            for number, count in zip(found.tolist(), counts.tolist(), strict=True):
                future = self._kept.get(number)
                if future is None or not future.done() or future.exception() is not None:
                    continue
                future.result().left -= count
                if future.result().left <= 0:
                    del self._kept[number]

    def claim(self, future: Future[Block]) -> bool:
        """Return whether the caller is the one to read a block: nobody has begun to."""
        with self._lock:
            return not (future.running() or future.done()) and future.set_running_or_notify_cancel()

    def forget(self, number: int, future: Future[Block]) -> None:
        """Let go of a block that could not be read, so that it is tried again."""
        with self._lock:
            if self._kept.get(number) is future:
                del self._kept[number]

    def read(self, number: int) -> Block:
        """Return a block, read now."""
        first = number * self.block
        rows = range(first, min(first + self.block, len(self.source)))
        try:
            found = self.source.pictures(torch.arange(rows.start, rows.stop))
            if found is not None:
                return Block(in_memory(found[0]), None, found[1], len(rows))
            records = self.source.records(rows)
        except Exception:  # the batch with the record that is to blame meets it too, and no other
            return Block(None, None, torch.empty(0), len(rows))
        return Block(None, records, records.targets, len(rows))


def _read_into(future: Future[Block], source: weakref.ref[BlockSource], number: int) -> None:
    """Read a block for those who wait for its future, unless somebody does so already."""
    reading = source()
    if reading is None or not reading.claim(future):  # None: nobody waits any more
        return
    try:
        block = reading.read(number)
    except BaseException as error:  # whoever waits is told, whatever it is
        reading.forget(number, future)
        future.set_exception(error)
    else:
        future.set_result(block)


def _in_place(parts: Sequence[Tensor], places: Tensor) -> Tensor:
    """Return the rows of ``parts``, one after the other, each at its place."""
    rows = torch.cat(list(parts))
    out = torch.empty_like(rows)
    out[places] = rows
    return out


def in_memory(pictures: Pictures) -> Pictures:
    """Return pictures whose stretches of files have been read, each by one request; what could not be stays there."""
    table, keep = pictures.table.clone(), list(pictures.keep)
    for first, last in stretches(table):
        rows = table[first:last]  # a view: what is written into it is written into the table
        starts = rows[:, OFFSET] - rows[0, OFFSET]
        memory = torch.empty(int(rows[:, BYTES].sum()), dtype=torch.uint8)
        there = starts + rows[:, BYTES] <= _read(int(rows[0, FILE]), memory, int(rows[0, OFFSET]))
        rows[there, ADDRESS] = (starts + memory.data_ptr())[there]
        rows[there, FILE] = rows[there, OFFSET] = 0
        keep.append(memory)
    return Pictures(table, pictures.channels, keep, pictures.fit)


def stretches(table: Tensor) -> Iterator[tuple[int, int]]:
    """Yield first and last (exclusive) row of pictures that follow each other in one file."""
    in_file = table[:, ADDRESS] == 0
    joined = in_file[1:] & in_file[:-1] & (table[1:, FILE] == table[:-1, FILE])
    joined &= table[1:, OFFSET] == table[:-1, OFFSET] + table[:-1, BYTES]
    starts = [0, *((~joined).nonzero()[:, 0] + 1).tolist(), len(table)]
    for first, last in pairwise(starts):
        if first < last and in_file[first]:
            yield first, last


def _read(file: int, memory: Tensor, offset: int) -> int:
    """Fill memory from an open file; return how many bytes there were before its end, or a fault of the disk."""
    rest = memory.numpy().data
    while len(rest):
        try:
            count = os.preadv(file, [rest], offset)
        except OSError:  # the pass that reads the records left in the file meets it too, and names the record
            break
        if count == 0:
            break
        rest, offset = rest[count:], offset + count
    return len(memory) - len(rest)
