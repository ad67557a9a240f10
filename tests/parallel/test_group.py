"""Collectives against plain computation, what they send against the network's own count, and who is lost."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from collections import Counter

import pytest
import torch

from engine.distributed import Group, current
from engine.testing import together
from engine.testing.processes import bytes_sent

LARGE = 1 << 20  # elements: 4 MiB, beside which headers are nothing


def values(rank: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def every_collective() -> None:
    """Each against what one process computes of all processes' values."""
    group = current()
    world, rank = group.world, group.rank
    everyone = [values(each, 2 * world, 3) for each in range(world)]
    mine = everyone[rank]
    close = {"rtol": 1e-14, "atol": 1e-14}
    total = group.all_reduce(mine.clone(), "x")
    torch.testing.assert_close(total, sum(everyone[1:], everyone[0].clone()), **close)
    largest = group.all_reduce(mine.clone(), largest=True)
    assert torch.equal(largest, torch.stack(everyone).amax(0))
    assert torch.equal(group.all_gather(mine), torch.cat(everyone))
    assert torch.equal(group.all_gather(mine.t()), torch.cat([each.t() for each in everyone]))  # any memory order
    pieces = [each.chunk(world)[rank] for each in everyone]
    assert torch.equal(group.all_to_all(mine), torch.cat(pieces))
    assert torch.equal(group.reduce_scatter(mine), torch.stack(pieces).sum(0))
    for source in range(world):
        assert torch.equal(group.broadcast(mine.clone(), source), everyone[source])
    pending = [group.begin_all_reduce(mine.clone()), group.begin_all_gather(mine), group.begin_all_to_all(mine)]
    assert torch.equal(pending[1].wait(), torch.cat(everyone))
    assert torch.equal(pending[2].wait(), torch.cat(pieces))
    assert torch.equal(pending[0].wait(), total)
    assert torch.equal(pending[0].wait(), total), "a result may be asked for again"
    told = {"rank": rank, "text": "ü" * rank, "none": None}
    assert [each["rank"] for each in group.exchange(told)] == list(range(world))


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_every_collective_is_what_one_process_would_compute(world):
    together(world, every_collective)


def test_alone_everything_is_as_it_was():
    group = Group()
    tensor = values(0, 4)
    for answer in (
        group.all_reduce(tensor), group.all_gather(tensor), group.all_to_all(tensor), group.reduce_scatter(tensor),
        group.broadcast(tensor),
    ):  # fmt: skip
        assert torch.equal(answer, values(0, 4))
    assert group.exchange("x") == ["x"]
    assert group.traffic.read(1)["communication/bytes"] == 0
    group.leave()


def sent() -> list[dict[str, float]]:
    """For each collective: what the network counted over all processes, and what they counted themselves."""
    group = current()
    tensor = torch.ones(LARGE)
    rows = []
    for name in ("all_reduce", "all_gather", "all_to_all", "reduce_scatter", "broadcast"):
        rows.append({"name": name, "network": math.inf, "counted": 0.0})
        for _ in range(3):  # processes also ask the store whether others are alive: the more, the slower the machine
            group.exchange("all are here")
            before = bytes_sent()
            group.exchange("all have looked")
            group.traffic.sent = Counter()
            getattr(group, name)(tensor.clone())
            told = group.exchange(sum(group.traffic.sent.values()))
            rows[-1]["network"] = min(rows[-1]["network"], bytes_sent() - before)
            rows[-1]["counted"] = sum(told)
            group.exchange("all have looked again")
    return rows


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.soak), 4])
def test_bytes_are_counted_as_the_network_counts_them(world):
    for row in together(world, sent)[0]:
        assert row["network"] == pytest.approx(row["counted"], rel=0.01), row


def in_groups() -> tuple[int, int, float, list[int]]:
    group = current()
    part = group.split([[0, 2], [1, 3]])
    alone = group.split([[0], [1], [2, 3]])
    assert alone.world == (2 if group.rank > 1 else 1)
    total = part.all_reduce(torch.tensor([float(group.rank)]))
    return part.rank, part.world, float(total), part.exchange(group.rank)


def test_parts_of_a_group_are_groups():
    assert together(4, in_groups) == [
        (0, 2, 2.0, [0, 2]), (0, 2, 4.0, [1, 3]), (1, 2, 2.0, [0, 2]), (1, 2, 4.0, [1, 3])
    ]  # fmt: skip


def in_a_thread() -> list[list[int]]:
    """Exchanges of two threads, in another order in each process, do not meet each other's."""
    group = current()
    other = group.channel("another")
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.extend(other.exchange(100 * n + group.rank) for n in range(20)))
    if group.rank == 0:
        thread.start()
        thread.join(0)
    mine = [group.exchange(n + group.rank) for n in range(20)]
    if group.rank == 1:
        thread.start()
    thread.join()
    assert mine == [[n, n + 1] for n in range(20)]
    return found


def test_a_channel_is_for_another_thread():
    assert together(2, in_a_thread) == [[[100 * n, 100 * n + 1] for n in range(20)]] * 2


def lose(lost: int, how: int, by: str) -> None:
    """Work together until one process is killed or stopped."""
    group = current()
    for step in range(1000):
        if group.rank == lost and step == 3:
            os.kill(os.getpid(), how)
        if by == "exchange":
            group.exchange(step, "steps")
        else:
            group.all_reduce(torch.ones(3), "work")


@pytest.mark.parametrize(
    ("lost", "how", "by", "told"),
    [
        (1, signal.SIGKILL, "collective", "rank 0: all_reduce work failed .*; rank 1 does not answer"),
        (0, signal.SIGKILL, "collective", "rank 1: all_reduce work failed .*; rank 0 has ended"),
        (1, signal.SIGSTOP, "collective", "rank 0: all_reduce work failed .*Timed out.*; rank 1 does not answer"),
        pytest.param(  # who keeps the store
            0,
            signal.SIGSTOP,
            "exchange",
            "rank 1: exchange steps failed .no answer in 2 s.; rank 0 does not answer",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            1,
            signal.SIGSTOP,
            "exchange",
            "rank 0: exchange steps failed .no answer.; rank 1 does not answer",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_who_is_lost_is_named(lost, how, by, told):
    with pytest.raises(AssertionError, match=f"ProcessLost: {told}"):
        together(2, lose, lost, how, by, lost=[lost], timeout=4)


def hang() -> None:
    """Beat on, and take no part: as a process that waits for a disk."""
    group = current()
    group.all_reduce(torch.ones(3), "first")
    if group.rank == 1:
        threading.Event().wait(30)
    group.all_reduce(torch.ones(3), "second")


@pytest.mark.soak
def test_who_is_late_is_named_with_what_it_does():
    with pytest.raises(AssertionError) as raised:
        together(2, hang, lost=[1], timeout=4)
    assert re.search("all_reduce second failed .*; rank 1 is behind, last in all_reduce first", str(raised.value))


def fail_alone(which: int, by: str) -> None:
    group = current()
    if group.rank == which:
        raise ValueError("a mistake of this process alone")
    group.exchange(1) if by == "exchange" else group.all_reduce(torch.ones(3))


@pytest.mark.parametrize(("which", "by"), [(0, "exchange"), (1, "collective")])
def test_when_one_fails_the_others_do_not_wait(which, by):
    with pytest.raises(AssertionError, match=f"rank {1 - which}.*rank {which} has failed: its message says why"):
        together(2, fail_alone, which, by, lost=[which])
