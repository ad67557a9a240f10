"""The stream of batches is a pure function of (seed, position)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from loading_parts import Noise, augmentations

from engine import Augment, Key, Records, UsageError
from engine.interfaces import Augmentation, Source
from engine.loader import Layout, Loader, Position, TestLoader
from engine.order import Shuffle
from engine.randomness import uniform

LAYOUT = Layout(torch.device("cpu"))


class Numbers(Source):
    """Record i is an image filled with i; remembers what was asked for."""

    classes = tuple(str(i) for i in range(10))
    shape = (1, 2, 2)
    fingerprint = "numbers"

    def __init__(self, length: int = 103) -> None:
        self.length, self.asked = length, Counter()

    def __len__(self) -> int:
        return self.length

    def records(self, indices) -> Records:
        self.asked.update(indices)
        if 77 in indices and self.length == 78:
            raise UsageError("photo_77.jpg cannot be read; delete it")
        images = torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
        return Records("raw", images, torch.tensor(indices) % 10)

    def name_of(self, index: int) -> str:
        return f"photo_{index}.jpg"


class Jitter(Augmentation):
    """Adds a random amount to each image, and checks that nobody else's draw changes its own."""

    def draw(self, key, samples, shape):
        return uniform(key, samples, 1)

    def apply(self, images, targets, parameters):
        return images.float() + parameters[:, :, None, None], targets


@dataclass
class JitterOptions(Augment):
    """Adds noise."""

    def build(self):
        return Jitter()


def loader(source=None, **settings) -> Loader:
    given = {"batch": 8, "layout": LAYOUT, **settings}
    return Loader(source or Numbers(), {"jitter": Jitter()}, Key.of(given.pop("seed", 0)), **given)


def records_of(steps) -> list[int]:
    return [int(image.flatten()[0]) for step in steps for batch in step.batches for image in batch.images]


def test_each_epoch_is_a_permutation_and_differs_from_the_last():
    source = Numbers(104)  # 13 steps of 8, so every record comes once an epoch
    steps = list(islice(loader(source).steps(Position()), 26))
    first, second = records_of(steps[:13]), records_of(steps[13:])
    assert sorted(first) == sorted(second) == list(range(104))
    assert first != second
    assert [s.epochs_done for s in steps if s.epochs_done] == [1, 2]
    assert [s.epoch for s in steps] == [0] * 13 + [1] * 13


def test_samples_that_do_not_fill_a_step_are_left_out_but_others_each_epoch():
    run = loader(Numbers(103))
    assert run.steps_per_epoch == 12
    epochs = [records_of(islice(run.steps(Position(0, epoch * 103)), 12)) for epoch in range(40)]
    missing = [set(range(103)) - set(epoch) for epoch in epochs]
    assert all(len(m) == 7 for m in missing)
    assert len(set().union(*missing)) > 80, "40 epochs x 7 draws of 103 leave out nearly every record once"


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (2, 3), (5, 8)])
def test_threads_and_prefetch_do_not_change_a_bit(threads, prefetch):
    plain = list(islice(loader(accumulate=2).steps(Position()), 15))
    threaded = list(islice(loader(accumulate=2, threads=threads, prefetch=prefetch).steps(Position()), 15))
    for one, other in zip(plain, threaded, strict=True):
        assert one.end == other.end
        for a, b in zip(one.batches, other.batches, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.samples, b.samples)


@settings(max_examples=25, deadline=None)
@drawn(
    threads=st.integers(0, 4),
    prefetch=st.integers(1, 6),
    world=st.sampled_from([1, 2, 4]),
    done=st.integers(0, 17),
    shuffle=st.sampled_from([Shuffle(), Shuffle("blocks", block=16, mixed=3)]),
)
def test_no_way_to_make_the_batches_changes_a_bit(threads, prefetch, world, done, shuffle):
    """Cropped, mirrored and normalised in one pass, then mixed in pairs: whoever makes them, and from any step on."""
    made = {"batch": 16, "accumulate": 2, "layout": LAYOUT, "shuffle": shuffle}  # 3 steps an epoch of 120
    source, named, key = Noise(), augmentations(), Key.of(9)
    whole = Loader(source, named, key, **made)
    start, expected = Position(), []
    for _ in range(done):
        start = whole.step_at(start).end
    for _ in range(4):
        expected.append(whole.step_at(expected[-1].end if expected else start))
    made |= {"threads": threads, "prefetch": prefetch, "world": world}
    shares = [islice(Loader(source, named, key, **made, rank=rank).steps(start), 4) for rank in range(world)]
    for step, *parts in zip(expected, *shares, strict=True):
        assert all(part.end == step.end for part in parts)
        for micro, batch in enumerate(step.batches):
            for name in ("images", "targets", "samples"):
                together = torch.cat([getattr(part.batches[micro], name) for part in parts])
                assert torch.equal(getattr(batch, name), together)


def test_resume_reads_nothing_that_came_before():
    """Position is O(1): going on at step 1,000,000 asks the source for that step's records alone."""
    whole = list(islice(loader().steps(Position()), 30))
    source = Numbers()
    resumed = list(islice(loader(source).steps(whole[19].end), 10))
    assert all(
        torch.equal(a.images, b.images)
        for one, other in zip(whole[20:], resumed, strict=True)
        for a, b in zip(one.batches, other.batches, strict=True)
    )
    assert sum(source.asked.values()) == 10 * 8
    far = Numbers()
    next(loader(far).steps(Position(1_000_000, 1_000_000 * 103)))
    assert sum(far.asked.values()) == 8


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_one_global_order(world):
    whole = list(islice(loader(accumulate=2).steps(Position()), 8))
    shares = [list(islice(loader(accumulate=2, rank=r, world=world).steps(Position()), 8)) for r in range(world)]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        for micro in range(2):
            together = torch.cat([part.batches[micro].images for part in parts])
            assert torch.equal(step.batches[micro].images, together)


def test_seed_changes_order_and_draws():
    a, b = (next(loader(seed=s).steps(Position())) for s in (0, 1))
    assert not torch.equal(a.batches[0].images, b.batches[0].images)


def test_batch_larger_than_the_data_set_says_what_to_do():
    with pytest.raises(UsageError, match=r"run.batch=64 x run.accumulate=2 needs 128 images a step, but"):
        loader(batch=64, accumulate=2)


def test_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UsageError, match="multiple of 3"):
        loader(world=3)


@pytest.mark.parametrize("threads", [0, 2])
def test_unreadable_record_surfaces_with_its_name(threads):
    with pytest.raises(UsageError, match=r"photo_77\.jpg"):
        list(islice(loader(Numbers(78), threads=threads).steps(Position()), 9))


def test_undecodable_bytes_are_named():
    class Broken(Numbers):
        def records(self, indices):
            return Records("encoded", [b"no image"] * len(indices), torch.zeros(len(indices), dtype=torch.int64))

    with pytest.raises(UsageError, match=r"photo_\d+\.jpg"):
        next(loader(Broken()).steps(Position()))


@pytest.mark.parametrize("threads", [0, 2])
def test_test_split_is_read_once_in_order(threads):
    batches = list(TestLoader(Numbers(103), {}, batch=8, layout=LAYOUT, threads=threads))
    assert [len(b) for b in batches] == [8] * 12 + [7]
    read = torch.cat([b.images[:, 0, 0, 0] for b in batches])
    torch.testing.assert_close(read, torch.arange(103) / 255)  # no augmentation made numbers of the pixels


def test_test_split_is_shared_by_ranks_without_overlap():
    parts = [TestLoader(Numbers(103), {}, batch=8, layout=LAYOUT, rank=r, world=2) for r in range(2)]
    seen = torch.cat([b.samples for part in parts for b in part])
    assert sorted(seen.tolist()) == list(range(103))


def test_layout_converts_and_keeps_labels_whole():
    layout = Layout(torch.device("cpu"), torch.float64, channels_last=True)
    (batch,) = islice(TestLoader(Numbers(8), {}, batch=8, layout=layout), 1)
    assert batch.images.dtype == torch.float64
    assert batch.targets.dtype == torch.int64
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_label_out_of_range_is_named_before_it_reaches_the_model():
    class Wrong(Numbers):
        def records(self, indices) -> Records:
            records = super().records(indices)
            records.targets[torch.tensor(indices) == 40] = 10
            return records

    with pytest.raises(UsageError, match=r"photo_40\.jpg is of class 10, but the classes are 0 to 9"):
        list(islice(loader(Wrong()).steps(Position()), 13))
