"""Keys instead of generator state: every draw is a function of (seed, purpose, what it is drawn for).

Nothing here remembers anything, so an interrupted run that goes on at step k draws what the undisturbed run
would have drawn, for any number of loader threads, prefetch depth or world size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import ops


@dataclass(frozen=True, slots=True)
class Key:
    """A 64-bit key; ``at`` derives the key of a purpose, a step or anything else that names a draw."""

    value: int

    @classmethod
    def of(cls, seed: int) -> Key:
        """Return the root key of a run."""
        return cls(_hash(_word(seed) + b"engine"))

    def at(self, *path: str | int) -> Key:
        """Return the key of a place below this one: ``key.at("augment", "flip")``; distinct paths never meet."""
        value = self.value
        for part in path:
            value = _hash(_word(value) + (b"s" + part.encode() if isinstance(part, str) else b"i" + _word(part)))
        return Key(value)


def _word(number: int) -> bytes:
    return number.to_bytes(16, "little", signed=True)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def uniform(key: Key, samples: Tensor, draws: int) -> Tensor:
    """Return float32 [n, draws] in [0, 1): row i depends on (key, samples[i]) alone.

    samples: int64 [n], not negative. Values are multiples of 2^-24, from Philox4x32-10 (Salmon et al. 2011).
    """
    return ops.uniform(key.value, samples, draws)


def permutation(key: Key, length: int) -> Tensor:
    """Return a uniformly random order of 0..length-1, int64: the ranks of 64-bit Philox words.

    Two equal words (chance length^2 / 2^65) keep their original order.
    """
    words = ops.philox(key.value, torch.arange(length), 1)
    # The sign bit of the high word may be set; any fixed total order of the words gives a uniform permutation.
    return torch.argsort((words[:, 0] << 32) | words[:, 1], stable=True)


def seed_torch(key: Key, device: torch.device) -> None:
    """Point torch's own generators (dropout, initialisation) at ``key``; costs about a microsecond on a CPU."""
    torch.default_generator.manual_seed(key.value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key.value)
