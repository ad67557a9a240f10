"""CUDA on the host finds what is wrong with a kernel, and runs the same kernel without the defect."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from building import ON_HOST, Source
from on_host import library
from torch import Tensor

THREADS, BLOCKS = 256, 3
SHARED = 4 * 256  # bytes
SEEDS = range(1, 9)
Run = Callable[..., tuple[str, Tensor]]


@pytest.fixture(scope="module", params=["switch", "ucontext"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function from a kernel's name to what went wrong in it and what it wrote; for both kinds of fibers."""
    flags = [*ON_HOST, *(["-DENGINE_UCONTEXT"] if request.param == "ucontext" else [])]
    source = Source(Path(__file__).with_name("kernels.cu"), flags)
    kernels = ctypes.CDLL(str(library(f"kernels-{request.param}", [source])))
    kernels.run_case.restype = ctypes.c_char_p

    def run(
        name: str,
        correct: bool = True,
        seed: int = 0,
        grid: Sequence[int] = (BLOCKS, 1, 1),
        block: Sequence[int] = (THREADS, 1, 1),
        shared: int = SHARED,
    ) -> tuple[str, Tensor]:
        out = torch.zeros(max(THREADS * BLOCKS, 4096))
        sizes = [(ctypes.c_uint * 3)(*three) for three in (grid, block)]
        address = ctypes.c_void_p(out.data_ptr())
        wrong = kernels.run_case(
            name.encode(), correct, ctypes.c_uint64(seed), *sizes, ctypes.c_uint64(shared), address
        )
        return wrong.decode(), out[: THREADS * BLOCKS].view(BLOCKS, THREADS)

    return run


THREAD = torch.arange(THREADS).float()
CORRECT = {
    "missing_barrier": THREAD.flip(0),
    "missing_warp_barrier": THREAD.view(-1, 32).flip(1).flatten(),
    "warp_barrier_for_a_block": THREAD.view(-1, 2, 32).flip(1).flatten(),
    "warp_ahead": THREAD.view(-1, 2, 32).flip(1).flatten(),
    "divergent_barrier": torch.ones(THREADS),
    "left_before_barrier": torch.ones(THREADS),
    "missing_lane": torch.full((THREADS,), 2.0),
    "left_before_shuffle": torch.full((THREADS,), 2.0),
    "divergent_shuffle": torch.full((THREADS,), 3.0),
    "partial_mask": torch.full((THREADS,), 3.0),
    "absent_lane": (THREAD % 32).view(-1, 2, 4).flip(1).flatten(),
    "uninitialised": torch.full((THREADS,), 2.0),
    "behind_the_end": torch.ones(THREADS),
    "order_of_blocks": torch.arange(BLOCKS).float()[:, None].expand(BLOCKS, THREADS),
    "sums": torch.full((THREADS,), 31 * 32 / 2),
    "down_by_three": torch.tensor([min(lane + 3, 31) if lane < 29 else lane for lane in range(32)] * (THREADS // 32)),
}


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_kernel_gives_what_it_should_in_every_order(run: Run, name: str) -> None:
    for seed in (0, *SEEDS):
        wrong, out = run(name, seed=seed)
        assert wrong == ""
        assert torch.equal(out, CORRECT[name].float().expand(BLOCKS, THREADS))


@pytest.mark.parametrize(
    "name",
    ["missing_barrier", "missing_warp_barrier", "warp_barrier_for_a_block", "warp_ahead", "order_of_blocks"],
)
def test_a_missing_barrier_shows_as_a_result_that_depends_on_the_seed(run: Run, name: str) -> None:
    results = []
    for seed in SEEDS:
        wrong, out = run(name, correct=False, seed=seed)
        assert wrong == ""
        results.append(out)
    assert any(not torch.equal(results[0].nan_to_num(-2), other.nan_to_num(-2)) for other in results[1:])
    again = run(name, correct=False, seed=SEEDS[0])[1]
    assert torch.equal(results[0].nan_to_num(-2), again.nan_to_num(-2)), "the same seed, the same order"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("divergent_barrier", r"waits at the barrier of .*kernels.cu:\d+ while thread \d+ waits at the barrier of"),
        ("left_before_barrier", r"thread 0 waits at the barrier of .*kernels.cu:\d+ while thread 128 has left"),
        ("missing_lane", r"thread \d+ waits for its warp at .*kernels.cu:\d+ while thread \d+ waits at the barrier"),
        ("left_before_shuffle", r"thread \d+ waits for its warp at .*kernels.cu:\d+ while thread \d+ has left"),
        ("divergent_shuffle", r"thread \d+ waits for its warp at .*:\d+ while thread \d+ waits for its warp at"),
        ("partial_mask", r"a shuffle without all lanes at .*kernels.cu:\d+"),
        ("behind_the_end", "a store went behind the shared memory"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_defect_is_an_error_of_the_launch(run: Run, name: str, told: str, seed: int) -> None:
    wrong, _ = run(name, correct=False, seed=seed)
    assert re.search(told, wrong), wrong
    assert "in block" in wrong
    assert run(name, seed=seed)[0] == "", "the next launch is not affected"


def test_a_lane_that_does_not_exist_is_told(run: Run) -> None:
    size = (40, 1, 1)  # the last warp has eight lanes
    assert run("absent_lane", block=size)[0] == ""
    assert "a shuffle from a lane that is not there" in run("absent_lane", correct=False, block=size)[0]


def test_shared_memory_is_nan_before_the_first_store(run: Run) -> None:
    wrong, out = run("uninitialised", correct=False)
    assert wrong == ""
    assert torch.equal(out.isnan().nonzero()[:, 1], torch.full((BLOCKS,), 7)), "in each block afresh"


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        ({"block": (1025, 1, 1)}, "1 to 1024 threads"),
        ({"block": (32, 8, 5)}, "not 1280"),
        ({"block": (1, 1, 65)}, "64 along z"),
        ({"block": (32, 0, 1)}, "not 0"),
        ({"grid": (1, 65536, 1)}, "65535 x 65535 blocks"),
        ({"grid": (0, 1, 1)}, "not 0 x 1 x 1"),
        ({"shared": 99 * 1024 + 1}, "101376 bytes of shared memory"),
    ],
)
def test_a_launch_that_no_gpu_takes_is_refused(run: Run, launch: dict, told: str) -> None:
    wrong, out = run("missing_barrier", **launch)
    assert told in wrong
    assert not out.any(), "nothing ran"


def test_a_kernel_may_not_take_more_shared_memory_than_its_launch_gives(run: Run) -> None:
    assert "more shared memory than its launch gives" in run("missing_barrier", shared=SHARED - 1)[0]
    assert run("missing_barrier", shared=SHARED)[0] == ""


@pytest.mark.parametrize("seed", [0, 1])
def test_every_thread_of_every_block_runs_once_and_knows_its_place(run: Run, seed: int) -> None:
    grid, block = (2, 3, 4), (4, 3, 5)
    wrong, out = run("places", grid=grid, block=block, seed=seed)
    assert wrong == ""
    got = torch.as_strided(out, (24, 60), (60, 1), 0).contiguous().view(torch.int32)
    assert torch.equal(got, (torch.arange(24)[:, None] * 1000 + torch.arange(60)).int())
