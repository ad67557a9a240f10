"""Kernels under the sanitizers, which see into the host's threads: steps outside of arrays, and races."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sanitize
from building import CONVOLUTIONS, ON_HOST, Source

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["switch", "ucontext"])
def outside(request: pytest.FixtureRequest) -> Path:
    flags = [*ON_HOST, *(["-DENGINE_UCONTEXT"] if request.param == "ucontext" else [])]
    return sanitize.program(f"outside-{request.param}", [Source(HERE / "outside.cu", flags)], sanitize.MEMORY)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("shared_load", "heap-buffer-overflow"),
        ("array_load", "heap-buffer-overflow"),
        ("array_store", "heap-buffer-overflow"),
        ("own_array", "index 4 out of bounds"),
        ("misaligned", "misaligned address"),
    ],
)
def test_a_step_outside_is_told_with_its_line(outside: Path, name: str, told: str) -> None:
    result = sanitize.run(outside, name, capture_output=True, text=True)
    assert result.returncode not in (0, 2, 3)
    assert told in result.stderr
    assert re.search(rf"{name}\S* .*outside\.cu:\d+", result.stderr), result.stderr


def test_a_correct_kernel_is_not_complained_of(outside: Path) -> None:
    result = sanitize.run(outside, "correct", capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "and then a correct launch\n")
    assert not re.search("ERROR|runtime error", result.stderr)


def test_threads_that_were_stopped_leave_nothing_behind(outside: Path) -> None:
    result = sanitize.run(outside, "divergent", capture_output=True, text=True)
    assert result.returncode == 0
    assert not re.search("ERROR|runtime error", result.stderr)
    assert "while thread 50 has left" in result.stdout
    assert "and then a correct launch" in result.stdout


@pytest.fixture(scope="module")
def kernels() -> Path:
    if sanitize.no_races():
        pytest.skip(sanitize.no_races())
    sources = [HERE / "kernels.cu", HERE / "run_kernel.cpp"]
    return sanitize.program("kernels", [Source(path, ON_HOST) for path in sources], sanitize.RACES)


@pytest.mark.parametrize(
    "name", ["missing_barrier", "missing_warp_barrier", "warp_barrier_for_a_block", "warp_ahead"]
)  # fmt: skip
def test_a_missing_barrier_is_a_race_in_the_first_order_that_is_tried(kernels: Path, name: str) -> None:
    result = sanitize.run(kernels, name, "0", capture_output=True, text=True)
    assert "data race" in result.stderr
    assert re.search(rf"{name}\S* .*kernels\.cu:\d+", result.stderr), result.stderr
    assert result.returncode == 66


@pytest.mark.parametrize(
    "name",
    ["missing_barrier", "missing_warp_barrier", "warp_barrier_for_a_block", "warp_ahead", "sums", "down_by_three"],
)
def test_what_barriers_and_shuffles_put_in_order_is_no_race(kernels: Path, name: str) -> None:
    result = sanitize.run(kernels, name, "1", capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


def check_convolutions(program: str, shapes: int, seed: int) -> None:
    result = sanitize.run(sanitize.PROGRAMS[program](), str(shapes), str(seed), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{shapes} shapes, 0 failures" in result.stdout
    called = {name for name, count in re.findall(r"^(\w+): (\d+) calls$", result.stdout, re.MULTILINE) if int(count)}
    assert called == {path.stem for path in CONVOLUTIONS}


@pytest.mark.timeout(300)  # it compiles
def test_every_algorithm_stays_within_its_arrays() -> None:
    check_convolutions("cuda", 3, 0)


def check_images(program: str, passes: int, seed: int) -> None:
    result = sanitize.run(sanitize.PROGRAMS[program](), str(passes), str(seed), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{passes} passes, 0 failures" in result.stdout


@pytest.mark.timeout(300)  # it compiles
def test_the_pass_over_images_stays_within_its_arrays() -> None:
    check_images("images", 60, 0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("program", ["images", "images-races"])
def test_many_passes_over_images_under_the_sanitizers(program: str) -> None:
    if program == "images-races" and sanitize.no_races():
        pytest.skip(sanitize.no_races())
    check_images(program, 600, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("program", "shapes"), [("cuda", 60), ("races", 20)])
def test_many_shapes_under_the_sanitizers(program: str, shapes: int) -> None:
    if program == "races" and sanitize.no_races():
        pytest.skip(sanitize.no_races())
    check_convolutions(program, shapes, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("program", "told"), [("rounding", "400 tensors"), ("binary", "400 shapes"), ("responses", "400 images")]
)
def test_many_other_kernels_under_the_sanitizers(program: str, told: str) -> None:
    result = sanitize.run(sanitize.PROGRAMS[program](), "400", "1", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert told in result.stdout
    assert result.stdout.endswith(" 0 failures\n")
