"""Keys, uniform numbers and permutations: what they promise, and statistics against their exact distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.randomness import Key, permutation, seed_torch, uniform

CPU = torch.device("cpu")
ROOT = Key.of(0)
PARTS = st.one_of(st.text(max_size=5), st.integers(-(2**40), 2**70))
PATHS = st.lists(PARTS, max_size=4).map(tuple)


@settings(max_examples=300, deadline=None)
@given(PATHS, PATHS)
def test_distinct_paths_never_meet(one, other):
    assert (ROOT.at(*one) == ROOT.at(*other)) == (one == other)


@settings(max_examples=100, deadline=None)
@given(PATHS, PATHS)
def test_a_path_may_be_walked_in_pieces(one, other):
    assert ROOT.at(*one).at(*other) == ROOT.at(*one, *other)


def test_kind_order_and_depth_of_a_path_matter():
    paths = [(), (1,), ("1",), (1, 1), ("1", "1"), ("11",), (11,), (1, "1"), ("1", 1), (0,), (-1,), ("",), ("", "")]
    paths += [("a", "b"), ("b", "a"), ("ab",), ("a", "b", "c"), ("ab", "c"), (2**32,), (2**64,), (115,), ("s",)]
    keys = [ROOT.at(*path).value for path in paths] + [Key.of(seed).value for seed in range(1, 100)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_keys_of_neighbouring_steps_share_no_more_bits_than_chance():
    keys = [ROOT.at("step", 0).at(step).value for step in range(4000)]
    assert len(set(keys)) == len(keys)
    distances = [(a ^ b).bit_count() for a, b in itertools.pairwise(keys)]
    # The distance of random 64-bit words is binomial: mean 32, variance 16.
    assert abs(sum(distances) / len(distances) - 32) < 4 * math.sqrt(16 / len(distances))


def test_seeds_of_any_sign_and_size_give_keys():
    seeds = [-1, 0, 1, 2**31, 2**63, 2**64 - 1, 2**100]
    assert len({Key.of(seed).value for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("draws", [1, 3, 4, 5])
def test_uniform_numbers_have_the_right_moments_and_lie_below_one(draws):
    numbers = uniform(ROOT.at("u", draws), torch.arange(40000), draws)
    assert numbers.shape == (40000, draws)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    count, values = numbers.numel(), numbers.double()
    assert abs(values.mean() - 1 / 2) < 4.5 * math.sqrt(1 / 12 / count)
    assert abs((values - 1 / 2).square().mean() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / count)
    assert torch.equal(values * 2**24, (values * 2**24).floor()), "multiples of 2^-24"
    for column, other in itertools.combinations(values.T, 2):
        assert abs(((column - 0.5) * (other - 0.5)).mean()) < 4.5 / 12 / math.sqrt(len(column))


def test_uniform_numbers_fill_every_bin_alike():
    numbers = uniform(ROOT.at("bins"), torch.arange(64000), 1).flatten()
    counts = torch.histc(numbers, bins=64, min=0, max=1).double()
    chi_square = ((counts - 1000).square() / 1000).sum()
    assert abs(chi_square - 63) < 4.5 * math.sqrt(2 * 63)


def test_a_samples_numbers_do_not_depend_on_its_batch():
    key, samples = ROOT.at("batch"), torch.tensor([7, 3, 2**40, 0, 7])
    together = uniform(key, samples, 6)
    for row, sample in zip(together, samples, strict=True):
        assert torch.equal(row, uniform(key, sample[None], 6)[0])
    assert torch.equal(together[0], together[4])
    assert torch.equal(together[:, :2], uniform(key, samples, 2)), "asking for more numbers changes none"
    assert not torch.equal(together, uniform(ROOT.at("other"), samples, 6))
    assert len(together[:4].unique()) == 24


def test_no_samples_and_no_draws_are_empty():
    assert uniform(ROOT, torch.empty(0, dtype=torch.int64), 3).shape == (0, 3)
    assert uniform(ROOT, torch.arange(3), 0).shape == (3, 0)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 1000, 4097])
def test_a_permutation_holds_every_index_once(length):
    order = permutation(ROOT.at("order", length), length)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(length))


def test_permutations_differ_by_epoch_and_are_stable_across_calls():
    orders = [permutation(ROOT.at("order", epoch), 50) for epoch in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 20
    assert all(torch.equal(order, permutation(ROOT.at("order", e), 50)) for e, order in enumerate(orders))
    assert not any(torch.equal(permutation(Key.of(1).at("order", e), 50), order) for e, order in enumerate(orders))


@pytest.mark.parametrize("length", [2, 3, 4])
def test_every_order_of_a_short_list_is_as_likely(length):
    orders, drawn = math.factorial(length), 6000
    counts = dict.fromkeys(itertools.permutations(range(length)), 0)
    for epoch in range(drawn):
        counts[tuple(permutation(ROOT.at("short", epoch), length).tolist())] += 1
    expected, freedom = drawn / orders, orders - 1
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom) + 4.5


def test_every_index_comes_to_every_place_alike():
    length, drawn = 8, 4000
    counts = torch.zeros(length, length, dtype=torch.float64)
    for epoch in range(drawn):
        counts[torch.arange(length), permutation(ROOT.at("places", epoch), length)] += 1
    expected, freedom = drawn / length, (length - 1) ** 2
    chi_square = ((counts - expected).square() / expected).sum()
    assert abs(chi_square - freedom) < 4.5 * math.sqrt(2 * freedom)


def test_seeding_torch_repeats_dropout_and_initialisation():
    dropout, images = torch.nn.Dropout(0.5), torch.ones(200)

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed_torch(ROOT.at("step", step), CPU)
        return dropout(images), torch.nn.Linear(5, 5).weight

    first, weight = draw(1)
    second, other_weight = draw(2)
    torch.rand(17)  # whatever happened in between
    again, same_weight = draw(1)
    assert torch.equal(first, again)
    assert torch.equal(weight, same_weight)
    assert not torch.equal(first, second)
    assert not torch.equal(weight, other_weight)


def test_torch_takes_keys_of_all_sizes():
    for value in (0, 2**63 - 1, 2**63, 2**64 - 1):
        seed_torch(Key(value), CPU)
        assert 0 <= torch.rand(()).item() < 1
