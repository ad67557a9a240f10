"""The GPU's kernels of networks of one bit under the sanitizers: steps outside of arrays, misaligned loads, races."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "csrc"))
import sanitize


def check(name: str, sanitizers: Sequence[str], shapes: int, seed: int) -> None:
    program = sanitize.cuda_binary(sanitizers, name)
    result = sanitize.run(program, str(shapes), str(seed), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"{shapes} shapes, 0 failures\n"), result.stdout + result.stderr


@pytest.mark.timeout(300)  # it compiles
def test_kernels_stay_within_their_arrays() -> None:
    check("binary-cuda", sanitize.MEMORY, 12, 0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_shapes_stay_within_their_arrays() -> None:
    check("binary-cuda", sanitize.MEMORY, 1000, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_shapes_have_no_races() -> None:
    if sanitize.no_races():
        pytest.skip(sanitize.no_races())
    check("binary-cuda-races", sanitize.RACES, 100, 1)
