"""The compiled Philox4x32-10 against an independent one in Python integers, itself held to published vectors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import __version__, _cpu, ops

WORD = 2**32 - 1


def philox4x32(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Return ten rounds of Philox4x32 as Salmon et al. (2011) write them: a keyed bijection of the counter."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return a, b, c, d


def reference(key: int, sample: int, blocks: int) -> list[int]:
    words: list[int] = []
    for block in range(blocks):
        words += philox4x32((sample & WORD, sample >> 32 & WORD, block, 0), (key & WORD, key >> 32))
    return words


# The known-answer vectors of Random123 (kat_vectors, "philox 4x32 10"): counter, key, answer.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), PUBLISHED)
def test_the_reference_gives_the_published_vectors(counter: str, key: str, answer: str) -> None:
    assert philox4x32(words(counter), words(key)) == words(answer)


def test_the_extension_gives_the_published_vector_it_can_reach() -> None:
    assert ops.philox(0, torch.zeros(1, dtype=torch.int64), 1)[0].tolist() == list(words(PUBLISHED[0][2]))


@settings(deadline=None)
@given(
    key=st.integers(0, 2**64 - 1),
    samples=st.lists(st.integers(0, 2**63 - 1), max_size=40),
    blocks=st.integers(0, 3),
)
def test_the_extension_equals_the_reference(key: int, samples: list[int], blocks: int) -> None:
    out = ops.philox(key, torch.tensor(samples, dtype=torch.int64), blocks)
    assert out.dtype == torch.int64
    assert out.shape == (len(samples), 4 * blocks)
    assert out.tolist() == [reference(key, sample, blocks) for sample in samples]


@pytest.mark.parametrize("sample", [2**32 - 1, 2**32, 2**32 + 1, 5 * 2**40 + 3, 2**63 - 1])
def test_samples_above_32_bits_use_the_high_word(sample: int) -> None:
    low = sample & WORD
    big, small = ops.philox(7, torch.tensor([sample, low]), 2).tolist()
    assert big == reference(7, sample, 2)
    assert (big == small) == (sample == low)


def test_a_row_depends_on_its_sample_alone() -> None:
    samples = torch.arange(1000) * 7919
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = ops.philox(3, samples, 2)
    assert torch.equal(ops.philox(3, samples[order], 2), whole[order])
    assert torch.equal(torch.cat([ops.philox(3, part, 2) for part in samples.split(17)]), whole)
    assert torch.equal(ops.philox(3, samples, 1), whole[:, :4])
    assert torch.equal(ops.philox(3, torch.stack([samples, samples], 1)[:, 0], 2), whole)  # not contiguous


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**63 - 1), max_size=40), st.integers(0, 11))
def test_uniform_numbers_are_the_upper_bits_of_the_words(key: int, samples: list[int], draws: int) -> None:
    out = ops.uniform(key, torch.tensor(samples, dtype=torch.int64), draws)
    assert out.dtype == torch.float32
    assert out.shape == (len(samples), draws)
    expected = [[word // 2**8 / 2**24 for word in reference(key, sample, 3)[:draws]] for sample in samples]
    assert out.tolist() == expected


@pytest.mark.parametrize(
    "samples",
    [
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.empty(2, dtype=torch.int64).to("meta"),
    ],
)
def test_other_samples_are_refused(samples: torch.Tensor) -> None:
    for function in (ops.philox, ops.uniform):
        with pytest.raises(ValueError, match=rf"{function.__name__}: samples must be int64 \[n\] on the CPU"):
            function(0, samples, 1)


def test_impossible_numbers_are_refused() -> None:
    samples = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="blocks must be at least 0, not -1"):
        ops.philox(0, samples, -1)
    with pytest.raises(ValueError, match="draws must be at least 0, not -1"):
        ops.uniform(0, samples, -1)
    with pytest.raises(ValueError, match="blocks must be from 0 to"):  # the kernel's own check
        _cpu.philox(0, 0, 0, 2**32 + 1, 0)
    for key in (-1, 2**64):
        with pytest.raises(TypeError):
            ops.philox(key, samples, 1)


# Without torch in the process: the extension can only be loaded and called like this if it links none.
ALONE = """
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("engine._cpu", sys.argv[1])
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)
samples, out = (ctypes.c_int64 * 1)(0), (ctypes.c_int64 * 4)()
cpu.philox(0, ctypes.addressof(samples), 1, 1, ctypes.addressof(out))
assert "torch" not in sys.modules
print(*("%08x" % word for word in out))
"""


def test_the_extension_works_without_torch() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", ALONE, _cpu.__file__], capture_output=True, text=True)
    assert done.stdout.strip() == PUBLISHED[0][2], done.stderr


def test_the_build_says_what_it_is() -> None:
    facts = ops.build_facts()
    assert facts["version"] == __version__
    assert facts["compiler"].startswith(("GCC ", "Clang "))
    assert "-std=c++17" in facts["flags"]
    assert facts["instruction_set"] in {"AVX-512", "AVX2", "SSE2", "NEON", "scalar"}
