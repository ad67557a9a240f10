"""Checks a data source: random access that is the same in any order, any company and any thread."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

from engine.decode import decode
from engine.interfaces import Records, Source
from engine.options import Data
from engine.testing.promises import Promises

THREADS = 8
MOST = 24  # records read of each split
ROUNDS = 6

ALONE = "a record is the same whatever else is asked for, in any order, again and again"
THREADED = "records() is safe to call from threads"
FINGERPRINT = "the fingerprint changes when the records change, and only then"


def check_source(source: Data | Source) -> None:
    """Check a source, or, given Data options, both splits, each opened twice.

    Promises: the length is right; records() gives the same records in any order, repetition and thread, in one of
    the three encodings, with the source's shape, and targets of the right type and range; the fingerprint tells
    equal and different records apart; name_of names; both splits agree on classes and shape.
    Raises BrokenPromise. At most 24 records of each split are read.
    """
    promises = Promises(source)
    if not isinstance(source, Data):
        _check_split(promises, source)
        return
    with promises.works('build() opens "train" and "test"'):
        train, test = source.build("train"), source.build("test")
        again = {"train": source.build("train"), "test": source.build("test")}
    for split, opened in (("train", train), ("test", test)):
        _check_split(promises, opened)
        same = opened.fingerprint == again[split].fingerprint
        promises.expect(same, FINGERPRINT, f"{split} opened twice has two fingerprints")
    agree = list(train.classes) == list(test.classes) and tuple(train.shape) == tuple(test.shape)
    promises.expect(
        agree,
        "both splits have the same classes and shape",
        f"{train.classes} {train.shape}, {test.classes} {test.shape}",
    )
    if train.fingerprint == test.fingerprint:
        equal = len(train) == len(test) and _equal(train.records(_spread(train)), test.records(_spread(test)))
        promises.expect(equal, FINGERPRINT, "train and test hold different records under the same one")


def _check_split(promises: Promises, source: Source) -> None:
    _check_facts(promises, source)
    indices = _spread(source)
    single = {}
    for index in indices:
        with promises.works("every index from 0 to len - 1 can be read, its image decoded to the source's shape"):
            single[index] = source.records([index])
            _check_records(promises, source, single[index], 1)
    for request in _requests(indices):
        with promises.works("records() takes any sequence of indices"):
            records = source.records(request)
        _check_records(promises, source, records, len(request))
        difference = _difference(records, request, single)
        promises.expect(not difference, ALONE, f"records({list(request)}): {difference}")
    _check_threads(promises, source, indices, single)


def _check_facts(promises: Promises, source: Source) -> None:
    length, shape, classes = len(source), tuple(source.shape), list(source.classes)
    promises.expect(length > 0, "a source has records", "its length is 0")
    sides = len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)
    promises.expect(sides, "shape is (channels, height, width)", f"it is {shape}")
    names = all(isinstance(name, str) and name for name in classes) and len(set(classes)) == len(classes)
    promises.expect(names, "classes are names, each once", f"they are {classes[:10]}")
    printed = isinstance(source.fingerprint, str) and bool(source.fingerprint)
    promises.expect(printed, "the fingerprint is a text", f"it is {source.fingerprint!r}")
    with promises.works("name_of names every record"):
        named = [source.name_of(index) for index in _spread(source)]
    promises.expect(
        all(isinstance(name, str) and name for name in named) and len(set(named)) == len(named),
        "name_of names every record, each differently",
        f"it gives {named[:3]}",
    )


def _check_records(promises: Promises, source: Source, records: Records, count: int) -> None:
    images, targets, shape = records.images, records.targets, tuple(source.shape)
    if records.encoding == "encoded":
        promise = 'encoding "encoded": images are the bytes of files that decode to the source\'s shape'
        promises.expect(not isinstance(images, Tensor) and len(images) == count, promise, f"for {count} records")
        with promises.works(promise):
            decode(images[0], source.shape)  # type: ignore[arg-type]
    else:
        promise = f'encoding "{records.encoding}": images are '
        promises.expect(records.encoding in ("raw", "tensor"), "encoding is raw, tensor or encoded", records.encoding)
        raw = records.encoding == "raw"
        right = isinstance(images, Tensor) and (images.dtype == torch.uint8 if raw else images.is_floating_point())
        seen = f"they are {images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else f"a {type(images)}"
        promises.expect(right, f"{promise}{'uint8' if raw else 'floats'}", seen)
        assert isinstance(images, Tensor)
        promises.expect(images.shape == (count, *shape), f"{promise}[n, {str(shape)[1:-1]}]", seen)
        promises.expect(bool(images.isfinite().all()), f"{promise}finite", "some are not")
    _check_targets(promises, targets, count, len(source.classes))


def _check_targets(promises: Promises, targets: Tensor, count: int, classes: int) -> None:
    seen = f"they are {targets.dtype} {list(targets.shape)} for {count} records"
    if targets.is_floating_point():
        right = targets.ndim == 2 and targets.shape[0] == count and classes in (0, targets.shape[1])
        promises.expect(right, "float targets are [n, outputs], one output for each class if there are any", seen)
        promises.expect(bool(targets.isfinite().all()), "targets are finite", "some are not")
        return
    promise = "targets are int64 [n] numbers of classes (or floats [n, outputs])"
    promises.expect(targets.dtype == torch.int64 and targets.shape == (count,) and classes > 0, promise, seen)
    in_range = bool(((targets >= 0) & (targets < classes)).all())
    promises.expect(in_range, promise, f"{targets.tolist()} is not within 0..{classes - 1}")


def _check_threads(promises: Promises, source: Source, indices: list[int], single: dict[int, Records]) -> None:
    start = Barrier(THREADS)

    def read(number: int) -> str:
        start.wait()
        requests = [indices[(number + turn) % len(indices) :] for turn in range(ROUNDS)]
        return next(filter(None, (_difference(source.records(r), r, single) for r in requests)), "")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns a hundred times as often, so a race shows
    try:
        with promises.works(THREADED), ThreadPoolExecutor(THREADS) as pool:
            different = list(filter(None, pool.map(read, range(THREADS))))
    finally:
        sys.setswitchinterval(interval)
    promises.expect(not different, THREADED, f"{THREADS} threads at once: {'; '.join(different[:1])}")


def _spread(source: Source) -> list[int]:
    """Return indices from all parts of the source, the first four and the last among them."""
    last = len(source) - 1
    return sorted({last * place // (MOST - 5) for place in range(MOST - 4)} | set(range(min(4, last + 1))))


def _requests(indices: list[int]) -> list[Sequence[int]]:
    first, last = indices[0], indices[-1]
    scattered = tuple(indices[1::2] + indices[::2])
    return [indices, indices[::-1], scattered, [first, last, first, first], range(min(4, len(indices))), indices]


def _difference(records: Records, request: Sequence[int], single: dict[int, Records]) -> str:
    """Return, in words, the first record that is not what it is on its own; "" if all are."""
    for place, index in enumerate(request):
        alone = single[index]
        image, expected = records.images[place], alone.images[0]
        same = torch.equal(image, expected) if isinstance(image, Tensor) else image == expected  # type: ignore[arg-type]
        if not same or not torch.equal(records.targets[place], alone.targets[0]):
            return f"record {index} differs from records([{index}])"
    return ""


def _equal(one: Records, other: Records) -> bool:
    images = (one.images, other.images)
    same = torch.equal(*images) if all(isinstance(i, Tensor) for i in images) else images[0] == images[1]  # type: ignore[arg-type]
    return bool(same) and torch.equal(one.targets, other.targets)
