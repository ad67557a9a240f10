"""Orders of an epoch: every record once, whatever is asked for, and how well shuffled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Key
from engine.order import Shuffle, order_of

KEY = Key.of(7)
CLASSES, EACH = 64, 128
SORTED = torch.arange(CLASSES).repeat_interleave(EACH)  # the classes of records as a folder lists them
BATCH = 64
PIECES = Shuffle("blocks", block=EACH, mixed=8)


def statistic(order: torch.Tensor, classes: torch.Tensor) -> float:
    """Return Pearson's chi-square of the batches' class counts against equal shares, averaged over the batches."""
    batches = classes[order].view(-1, BATCH)
    counts = torch.stack([torch.bincount(batch, minlength=CLASSES) for batch in batches]).double()
    expected = BATCH / CLASSES
    return float(((counts - expected) ** 2 / expected).sum(1).mean())


def mean_of_fair_draws() -> tuple[float, float]:
    """Return the statistic's expectation for batches drawn without replacement, and five of its standard deviations.

    The expectation is CLASSES - 1 times the correction for a finite population (of records); the variance is about
    that of a chi-square variable, over the batches.
    """
    records = len(SORTED)
    degrees = CLASSES - 1
    batches = records / BATCH
    return degrees * (records - BATCH) / (records - 1), 5 * (2 * degrees / batches) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_every_record_comes_once_in_windows_of_whole_blocks(length, block, mixed, epoch):
    order = order_of(Shuffle("blocks", block, mixed), KEY, length)
    records = order.records(epoch)
    assert torch.equal(records.sort().values, torch.arange(length))
    sizes = {number: min(block, length - number * block) for number in range(-(-length // block))}
    place = 0
    while place < length:  # a window ends where all records of so many blocks have come
        seen = (records[place : place + block * mixed] // block).unique_consecutive().unique().tolist()
        window = sorted(seen, key=lambda number: (records // block == number).nonzero()[0].item())[:mixed]
        size = sum(sizes[number] for number in window)
        assert set((records[place : place + size] // block).tolist()) == set(window)
        assert len(window) == mixed or place + size == length
        place += size


def test_seed_and_epoch_decide_and_nothing_else():
    for shuffle in (Shuffle(), PIECES):
        one, other = (order_of(shuffle, KEY, 1000) for _ in range(2))
        other.records(3)  # what was asked before is of no account
        assert torch.equal(one.records(1), other.records(1))
        assert not torch.equal(one.records(0), one.records(1))
        assert not torch.equal(one.records(0), order_of(shuffle, Key.of(8), 1000).records(0))


def test_full_order_mixes_sorted_classes_like_fair_draws():
    expected, margin = mean_of_fair_draws()
    assert statistic(order_of(Shuffle(), KEY, len(SORTED)).records(0), SORTED) == pytest.approx(expected, abs=margin)
    assert statistic(torch.arange(len(SORTED)), SORTED) == BATCH * CLASSES - BATCH, "unshuffled: one class a batch"


def test_block_order_mixes_sorted_classes_within_a_window_only():
    """Batches of a window that holds m of K classes: multinomial over these, whose chi-square has another mean.

    With n samples, E = K (1 - 1/m) + n (K/m - 1), the first term corrected for the window's finite population.
    """
    n, m, window = BATCH, PIECES.mixed, PIECES.window
    expected = CLASSES * (1 - 1 / m) * (window - n) / (window - 1) + n * (CLASSES / m - 1)
    found = statistic(order_of(PIECES, KEY, len(SORTED)).records(0), SORTED)
    # Of a batch, K/m times a chi-square variable with m - 1 degrees of freedom, shifted.
    margin = 5 * CLASSES / m * (2 * (m - 1) * n / len(SORTED)) ** 0.5
    assert found == pytest.approx(expected, abs=margin)


def test_block_order_of_records_stored_at_random_is_as_good_as_a_full_one():
    classes = SORTED[torch.randperm(len(SORTED), generator=torch.Generator().manual_seed(0))]
    expected, margin = mean_of_fair_draws()
    assert statistic(order_of(PIECES, KEY, len(SORTED)).records(0), classes) == pytest.approx(expected, abs=margin)


@pytest.mark.parametrize("shuffle", [Shuffle(), PIECES])
def test_neighbours_stay_together_no_more_often_than_by_chance(shuffle):
    """A random order of n keeps (n - 1) / n pairs on average, Poisson; so does each window."""
    epochs, length = 20, len(SORTED)
    windows = 1 if shuffle.kind == "full" else length / shuffle.window
    order = order_of(shuffle, KEY, length)
    kept = sum(int((order.records(epoch).diff() == 1).sum()) for epoch in range(epochs))
    expected = epochs * windows
    assert abs(kept - expected) < 5 * expected**0.5


def test_blocks_ahead_are_those_of_the_next_window_in_pace_with_the_present_one():
    shuffle, length = Shuffle("blocks", block=10, mixed=4), 115  # 12 blocks, the last one of 5
    order = order_of(shuffle, KEY, length)
    windows, place = [], 0
    for _ in range(3):
        rest = order.records(0)[place:] // 10
        size = 40 if 11 not in rest[:35] else 35
        windows.append((place, size, set(rest[:size].tolist())))
        place += size
    following = [windows[1][2], windows[2][2], set((order.records(1)[:35] // 10).tolist())]
    for (first, size, _), blocks in zip(windows, following, strict=True):
        assert order.ahead(0, first) == []
        assert len(order.ahead(0, first + size // 2 - 1)) == (2 if size == 40 else 1)
        assert set(order.ahead(0, first + size - 1)) == blocks
    assert order_of(Shuffle(), KEY, length).ahead(0, 50) == []
