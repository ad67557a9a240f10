"""What the tests of file formats share: pictures to write, and ways to read them back."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from engine import UsageError
from engine.interfaces import Records, Source
from engine.options import Data

HEIGHT, WIDTH = 16, 12


@pytest.fixture
def pictures() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a function that makes images, uint8 [n, 16, 12, 3], and labels 0 to 2, always the same."""

    def make(count: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        images = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
        return images, np.arange(count) % 3

    return make


@pytest.fixture
def png() -> Callable[[np.ndarray], bytes]:
    """Return a function from uint8 [h, w, 3] to the bytes of a PNG."""

    def encoded(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()

    return encoded


@pytest.fixture
def outcome() -> Callable[..., Records | str]:
    """Return a function that opens a split and gives all of its records, or else the line that refuses it."""

    def read(options: Data, split: str = "train") -> Records | str:
        try:
            source = options.build(split)
            return source.records(range(len(source)))
        except UsageError as error:
            return str(error)

    return read


@pytest.fixture
def refused(outcome: Callable[..., Records | str]) -> Callable[..., str]:
    """Return a function that gives the one line that refuses a split or one of its records."""

    def message(options: Data, split: str = "train") -> str:
        text = outcome(options, split)
        assert isinstance(text, str), "nothing was refused"
        assert "\n" not in text
        assert not text.endswith(".")
        return text

    return message


@pytest.fixture
def engine(engine: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Return a function that trains three steps by the command line; it returns what standard error was told."""

    def train(*words: str, code: int = 0) -> str:
        ended, _, told = engine("train", "run.steps=3", "run.batch=8", "observe=[]", "out=run", *words)
        assert ended == code, told
        return told.strip()

    return train


@pytest.fixture
def same_everywhere() -> Callable[[Source], None]:
    """Return a function that reads a source from 8 threads at once and from a forked process: all get the same."""

    def check(source: Source) -> None:
        random = Random(0)
        asked = [[random.randrange(len(source)) for _ in range(7)] for _ in range(60)]
        alone = [source.records(indices) for indices in asked]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(source.records, asked))
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one.targets, other.targets)
            same = torch.equal if isinstance(one.images, torch.Tensor) else list.__eq__
            assert same(one.images, other.images)
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(theirs, _text(source.records(asked[0])))
            finally:
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        assert told == _text(alone[0])
        assert _text(source.records(asked[0])) == told  # the child's end closed nothing of ours

    return check


def _text(records: Records) -> bytes:
    images = records.images
    data = images.numpy().tobytes() if isinstance(images, torch.Tensor) else b"".join(images)
    return repr((hash(bytes(data)), len(data), records.targets.tolist())).encode()


def varint(number: int) -> bytes:
    out, number = bytearray(), number & (1 << 64) - 1
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.fixture
def datum() -> Callable[..., bytes]:
    """Return an encoder of Caffe's Datum: the wire format by hand; pixels [c, h, w] raw, or a file's bytes."""

    def encode(image: np.ndarray | bytes, label: int | None) -> bytes:
        if isinstance(image, bytes):
            message, end = b"", b"\x38\x01"
            data = image
        else:
            message = b"".join(bytes([8 * (n + 1)]) + varint(side) for n, side in enumerate(image.shape))
            data, end = image.tobytes(), b""
        message += b"\x22" + varint(len(data)) + data
        return message + (b"" if label is None else b"\x28" + varint(label)) + end

    return encode
