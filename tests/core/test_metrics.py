"""Means against numpy in float64; the best evaluation; the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import Observer, hookimpl, metrics
from engine.interfaces import Strategy
from engine.loader import Position
from engine.metrics import Best, Clock, Metrics
from engine.preparation import Spent

CPU = torch.device("cpu")
PAGE = Path(__file__).parents[2] / "docs" / "tensorboard.md"


@dataclass
class Told(Observer):
    """Keeps the names of all numbers that it is told."""

    def __post_init__(self) -> None:
        self.tags: set[str] = set()

    def build(self) -> object:
        return self

    @hookimpl
    def on_log(self, scalars):
        self.tags |= set(scalars)

    @hookimpl
    def on_evaluate_end(self, scalars):
        self.tags |= set(scalars)


class Alone(Strategy):
    rank, world = 0, 1


class Twice(Strategy):
    """Two processes that hold the same numbers."""

    rank, world = 0, 2

    def sum(self, values):
        return values * 2


def batches(count: int, seed: int = 0) -> list[tuple[float, int, int]]:
    """Return so many (summed loss, right answers, samples)."""
    draw = np.random.default_rng(seed)
    return [(float(np.float32(draw.uniform(0, 1e4))), int(draw.integers(0, 65)), 64) for _ in range(count)]


def add(to: Metrics, batch: tuple[float, int, int]) -> None:
    loss, right, samples = batch
    to.add(torch.tensor(loss), [torch.tensor(right)], samples)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_means_are_those_of_numpy(count):
    taken, given = Metrics("train", ["accuracy"], CPU, Alone()), batches(count)
    for batch in given:
        add(taken, batch)
    losses, right, samples = np.array(given, dtype=np.float64).T
    read = taken.read()
    assert list(read) == ["train/loss", "train/accuracy"]
    assert read["train/loss"] == pytest.approx(losses.sum() / samples.sum(), rel=1e-14)
    assert read["train/accuracy"] == right.sum() / samples.sum()


def test_batches_of_different_sizes_count_by_their_samples():
    taken = Metrics("test", [], CPU, Alone())
    taken.add(torch.tensor(6.0), [], 3)
    taken.add(torch.tensor(10.0), [], 1)
    assert taken.read() == {"test/loss": 4.0}


def test_many_small_losses_do_not_drown_in_a_large_sum():
    taken = Metrics("train", [], CPU, Alone())
    taken.add(torch.tensor(1e8), [], 1)  # in float32, adding 1 to this changes nothing
    for _ in range(999):
        taken.add(torch.tensor(1.0), [], 1)
    assert taken.read()["train/loss"] == (1e8 + 999) / 1000


def test_sums_are_the_same_to_the_bit_however_often_they_are_looked_at():
    rarely, often = (Metrics("train", ["accuracy"], CPU, Alone()) for _ in range(2))
    for batch in batches(150, seed=1):
        add(rarely, batch)
        add(often, batch)
        assert often.sums[-1] > 0
    assert torch.equal(rarely.sums, often.sums)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_both_ways_of_adding_give_the_same_bits(count):
    rows = torch.tensor(batches(count, seed=2), dtype=torch.float64) / 3
    one, other = torch.full((3,), 0.1, dtype=torch.float64), torch.full((3,), 0.1, dtype=torch.float64)
    metrics.add_by_scan(one, rows)
    metrics.add_each(other, rows)
    assert torch.equal(one, other)


def test_reading_begins_anew_and_over_no_samples_the_mean_is_nan():
    taken = Metrics("train", ["accuracy"], CPU, Alone())
    assert all(math.isnan(value) for value in taken.read().values())
    add(taken, (8.0, 2, 4))
    assert taken.read() == {"train/loss": 2.0, "train/accuracy": 0.5}
    assert all(math.isnan(value) for value in taken.read().values())
    add(taken, (3.0, 0, 1))
    assert taken.read() == {"train/loss": 3.0, "train/accuracy": 0.0}


@pytest.mark.parametrize("per_step", [1, 3])
def test_masked_steps_do_not_count_whatever_they_held(per_step):
    taken, given = Metrics("train", ["accuracy"], CPU, Alone(), masked=True), batches(150, seed=2)
    counted = []
    for step, first in enumerate(range(0, len(given), per_step)):
        applied = step % 4 != 1
        for batch in given[first : first + per_step]:
            add(taken, batch if applied else (math.nan, 0, batch[2]))
        counted += given[first : first + per_step] if applied else []
        taken.settle(torch.tensor(applied))
    losses, right, samples = np.array(counted, dtype=np.float64).T
    read = taken.read()
    assert read["train/loss"] == pytest.approx(losses.sum() / samples.sum(), rel=1e-14)
    assert read["train/accuracy"] == right.sum() / samples.sum()


def test_an_unsettled_step_is_not_read_yet_and_not_lost():
    taken = Metrics("train", [], CPU, Alone(), masked=True)
    taken.add(torch.tensor(2.0), [], 1)
    taken.settle(torch.tensor(True))
    taken.add(torch.tensor(8.0), [], 1)
    assert taken.read() == {"train/loss": 2.0}
    taken.settle(torch.tensor(True))
    assert taken.read() == {"train/loss": 8.0}


def test_other_scalars_come_in_the_same_single_transfer(monkeypatch):
    transfers = []
    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counting(self, *args, name=name, original=original):
            transfers.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counting)
    taken = Metrics("train", ["accuracy"], CPU, Alone())
    for _ in range(100):
        taken.add(torch.tensor(2.0, requires_grad=True), [torch.tensor(1)], 2)
        taken.settle(torch.tensor(True))
    assert transfers == [], "adding must not wait for the device"
    also = {"train/lr": torch.tensor([0.5]), "train/skipped": torch.tensor(3), "flag": torch.tensor(True)}
    read = taken.read(also)
    assert transfers == ["tolist"]
    assert read == {"train/loss": 1.0, "train/accuracy": 0.5, "train/lr": 0.5, "train/skipped": 3.0, "flag": 1.0}


def test_sums_of_all_processes_are_read_but_other_scalars_are_this_processs():
    taken = Metrics("train", [], CPU, Twice())
    taken.add(torch.tensor(6.0), [], 2)
    assert taken.read({"x": torch.tensor(5.0)}) == {"train/loss": 3.0, "x": 5.0}
    taken.add(torch.tensor(6.0), [], 2)
    taken.add(torch.tensor(6.0), [], 2)
    assert taken.read() == {"train/loss": 3.0}, "what was read must not be added to the next sums"


@pytest.mark.parametrize(("higher", "sign"), [(True, 1), (False, -1)])
def test_best_keeps_the_first_of_equals_and_no_number_that_is_not_finite(higher, sign):
    best = Best("accuracy", higher)
    assert not best.take(math.nan, 1)
    assert (best.score, best.stale, best.latest, best.latest_step) == (None, 1, None, 1)
    assert best.take(sign * 1.0, 2)
    assert (best.score, best.step, best.stale) == (sign * 1.0, 2, 0)
    assert not best.take(sign * 1.0, 3), "a tie is no improvement"
    assert not best.take(sign * 0.5, 4)
    assert not best.take(math.inf, 5)
    assert not best.take(-math.inf, 6)
    assert (best.score, best.step, best.stale, best.latest) == (sign * 1.0, 2, 4, None)
    assert best.take(sign * 1.5, 7)
    assert (best.score, best.step, best.stale, best.latest) == (sign * 1.5, 7, 0, sign * 1.5)


def test_best_may_be_zero_or_negative():
    best = Best("loss", higher_is_better=False)
    assert best.take(0.0, 1)
    assert best.take(-1.0, 2)
    assert not best.take(0.0, 3)


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock.time)
    return clock


def test_clock_measures_between_readings_without_the_pauses(now):
    def fail_after(seconds: float) -> None:
        now.time += seconds
        raise KeyError

    clock = Clock()
    now.time += 50  # assembling is not training
    spent = Spent(read=1.0, decode=2.0, augment=3.0)
    clock.start(Position(step=10, sample=100), 2.0, spent)
    now.time += 3
    with clock.paused():
        now.time += 40
    now.time += 1
    with pytest.raises(KeyError), clock.paused():
        fail_after(7)
    spent.add(Spent(read=0.5, decode=0.25, augment=2.0))  # the loader's own total, which goes on growing
    assert clock.read(Position(step=14, sample=500), 3.0, spent) == {
        "speed/images_per_second": 100.0,  # 400 images in 3 + 1 seconds
        "speed/data_wait_share": 0.25,
        "data/read_ms": 125.0,  # 0.5 s over 4 steps
        "data/decode_ms": 62.5,
        "data/augment_ms": 500.0,
        "data/wait_ms": 250.0,
    }
    now.time += 2
    assert set(clock.read(Position(step=14, sample=500), 3.0, spent).values()) == {0.0}
    assert clock.started == 1000.0


def test_clock_survives_an_interval_too_short_to_measure(now):
    clock = Clock()
    clock.start(Position(), 0.0, Spent())
    assert all(math.isfinite(value) for value in clock.read(Position(1, 64), 0.0, Spent()).values())


def test_what_is_logged_is_documented(make):
    """Every tag that the loop itself gives has a row in docs/tensorboard.md."""
    told = Told()
    make(run={"steps": 2, "log_every": 1, "evaluate_every": "1 steps"}, observe={"told": told}).fit()
    rows = "".join(line for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    assert {"train/loss", "speed/data_wait_share", "data/read_ms", "test/accuracy"} <= told.tags
    assert [tag for tag in sorted(told.tags) if f"`{tag}`" not in rows] == []
