"""Run as a program: ``mutating.py FOLDER SEED COUNT`` damages Caffe files at random and reads them, in limited memory.

Prints what became of them as JSON. Anything but a UsageError or a right network is a failure, told with its traceback;
so is more memory than ``MEMORY`` beyond what torch takes itself. A file that takes longer than ``SECONDS`` ends it.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from caffe_files import block, floats, layer, varint, whole
from protobuf_reader import blobs_of

from engine import UsageError
from engine.plugins.caffe import CaffeNetwork
from engine.plugins.caffe.weights import fitted, read_caffemodel
from engine.plugins.caffe.wire import layers_of, opened

SECONDS = 30
MEMORY = 3 * 2**30
SHAPE = (3, 32, 32)
NUMBERS = ("0", "-1", "1", "2", "7", "33", "1000", "65536", "4294967296", "1e30", "nan", "0x10", "true", "MAX", '"x"',
           "1e39", "3e38", "-3e38", "9" * 5000)  # fmt: skip
NAMES = ("", ".", "/", "fc.", ".fc", "a//b", "/".join("a" * 2000), ".".join("b" * 17), "stride", "conv/1/stride",
         "conv/1/stride/x", "ip/bias", "outputs", "blobs", "_steps", "_made/x", "weight", "training/x", "bn", "ip",
         "x" * 5000)  # fmt: skip
DIMS = (0, 1, 1, 2, 3, 2**16, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63, 2**64 - 1)
KINDS = ("Convolution", "InnerProduct", "BatchNorm", "Scale", "PReLU", "Bias", "Wonder")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a file's bytes after one to four changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not out:
            return b""
        place, length = rng.randrange(len(out)), rng.choice((1, 1, 2, 8, 64, 1000))
        kind = rng.randrange(6)
        if kind == 0:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del out[place : place + length]
        elif kind == 3:
            out[place:place] = out[place : place + length]
        elif kind == 4:
            del out[place:]
        else:  # where lengths and names are
            head = rng.randrange(min(len(out), 400))
            out[head] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, out[head] ^ 1))
    return bytes(out)


def invented(rng: random.Random) -> bytes:
    """Return a .caffemodel of a few layers whose names and dimensions are bad on purpose."""
    made = b""
    for _ in range(rng.randint(1, 3)):
        blobs = []
        for _ in range(rng.randint(1, 4)):
            dims = [rng.choice(DIMS) for _ in range(rng.choice((0, 1, 2, 3, 4, 32, 33)))]
            old = b"".join(whole(place, size) for place, size in enumerate(dims[:4], 1))
            shape = rng.choice((block(7, block(1, b"".join(map(varint, dims)))), old))
            blobs.append(shape + block(5, floats([rng.choice((0.0, 1.0, 1e30))] * rng.choice((0, 1, 1, 2, 6)))))
        made += layer(rng.choice(NAMES), rng.choice(KINDS), blobs)
    return made


def rewritten(text: str, rng: random.Random) -> str:
    """Return a prototxt after one to three changes of its words."""
    words = text.replace("{", " { ").replace("}", " } ").split(" ")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(words))
        kind = rng.randrange(8)
        if kind == 0:
            del words[place : place + rng.randint(1, 4)]
        elif kind == 1:
            words.insert(place, rng.choice(words))
        elif kind == 2:
            words[place] = rng.choice(words)
        elif kind == 3:
            digits = [at for at, word in enumerate(words) if word.strip().isdecimal()]
            words[rng.choice(digits or [place])] = rng.choice(NUMBERS)
        elif kind == 4:
            words[place] = rng.choice(("{", "}", "[", "]", ":", ",", '"', "#", "<", ">", "\0", "é"))
        elif kind == 5:
            words = words[:place]
        elif kind == 6:
            named = [at for at, word in enumerate(words[1:], 1) if words[at - 1].strip() in ("name:", "type:")]
            kind_of_name = rng.choice(named or [place])
            words[kind_of_name] = rng.choice([*(f'"{name}"' for name in NAMES), "9" * 5000])
        else:
            words[place] = words[place][:1] + chr(rng.randrange(1, 300)) + words[place][1:]
        if not words:
            return ""
    return " ".join(words)


def require_line(error: UsageError, path: Path) -> None:
    """Raise AssertionError unless an error is one line that begins with the file."""
    assert str(error).startswith(str(path)), error
    assert "\n" not in str(error), error


def try_weights(path: Path, wanted: dict[str, torch.Tensor]) -> str:
    """Read a damaged .caffemodel; what is accepted must be what protobuf reads."""
    try:
        with opened(path, "a Caffe .caffemodel") as data:
            stored = [(layer.name, [np.array(b.values) for b in layer.blobs]) for layer in layers_of(data)]
        state = read_caffemodel(path)
    except UsageError as error:
        require_line(error, path)
        return "weights refused"
    expected = blobs_of(path.read_bytes())
    assert expected is not None, "accepted what protobuf refuses"
    assert [name for name, _ in stored] == [name for name, _ in expected]
    for (_, ours), (_, theirs) in zip(stored, expected, strict=True):
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, theirs, strict=True))
    try:
        fitted(state, wanted, path)
    except UsageError:
        return "weights of another network"
    return "weights read"


def try_network(path: Path) -> str:
    """Build what a damaged prototxt describes; what is accepted must compute."""
    try:
        network = CaffeNetwork(prototxt=str(path)).build(SHAPE, 10)
    except UsageError as error:
        require_line(error, path)
        return "network refused"
    with torch.no_grad():
        made = network.to("meta").eval()(torch.empty(2, *SHAPE, device="meta"))
    for head in made if isinstance(made, list) else [made]:
        assert head.shape == (2, 10)
    return "network built"


def main(folder: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    models = [path.read_bytes() for path in sorted(folder.glob("*.caffemodel"))]
    texts = [path.read_text() for path in sorted(folder.glob("*.prototxt"))]
    wanted = CaffeNetwork(prototxt=texts[0]).build(SHAPE, 10).state_dict()
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outcomes: Counter[str] = Counter()
    model, text = folder / "damaged.bin", folder / "damaged.txt"
    for number in range(count):
        signal.alarm(SECONDS)
        try:
            if number % 2:
                model.write_bytes(invented(rng) if number % 8 == 1 else damaged(rng.choice(models), rng))
                outcomes[try_weights(model, wanted)] += 1
            else:
                text.write_text(rewritten(rng.choice(texts), rng), encoding="utf-8")
                outcomes[try_network(text)] += 1
        except Exception:  # whatever it is: neither a clear error nor a right network
            outcomes["failed"] += 1
            print(f"file {number} of seed {seed}: {traceback.format_exc()}"[-3000:], file=sys.stderr)
    signal.alarm(0)
    print(json.dumps({**outcomes, "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
