"""Plans put together: what one pass makes equals the same done pass by pass, and whatever is in the batch besides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_reference import ISAS, expected, plan_for, run, run_on

from engine.pictures import Pictures
from engine.plan import AFFINE, BRIGHTNESS, CONTRAST, HUE, SATURATION, Plan


def images_of(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng([seed, height, width])
    return torch.from_numpy(rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8))


def window(box, size, **options):
    """Return a step: something that is added to a plan."""

    def add(plan: Plan) -> bool:
        count = len(plan)
        return plan.window(torch.tensor([box] * count), torch.tensor([size] * count), **options)

    return add


def mirror(plan: Plan) -> bool:
    return plan.mirror(torch.arange(len(plan)) % 2 == 0)


def erase(plan: Plan) -> bool:
    boxes = torch.tensor([[1, 2, 6, 9]] * len(plan))
    return plan.erase(boxes, torch.full((len(plan), plan.channels), 0.2))


CROP = window([3, 5, 20, 16], [20, 16])
SHRINK = window([2.25, 0.5, 25, 20.5], [11, 13])
GROW = window([4, 4, 20, 12], [40, 30])
# Weights that are sums of few powers of two: the order of a sum, which a mirror turns, then makes no difference.
HALVE = window([2, 4, 24, 16], [12, 8])
DOUBLE = window([4, 4, 20, 12], [40, 24])
OVER = window([-4, -3, 38, 40], [38, 40], fill=(10, 20, 30))
REFLECT = window([-4, -3, 38, 40], [38, 40], reflect=True)
CHAINS = {
    "crop, crop": [CROP, window([2, 1, 9, 10], [9, 10])],
    "crop, grow": [CROP, window([0, 0, 20, 16], [50, 44])],
    "crop, grow with what is beyond": [CROP, window([4, 4, 10, 8], [50, 44], beyond=True)],
    "crop, reflect": [CROP, window([-5, -5, 30, 26], [30, 26], reflect=True)],
    "shrink, crop": [SHRINK, window([1, 2, 8, 9], [8, 9])],
    "grow, crop": [GROW, window([5, 3, 30, 20], [30, 20])],
    "grow, over the edge": [GROW, window([-5, -3, 50, 36], [50, 36], fill=(1, 2, 3))],
    "over the edge, crop": [OVER, window([1, 2, 30, 33], [30, 33])],
    "over the edge, back inside": [OVER, window([4, 3, 30, 32], [30, 32])],
    "over the edge twice": [OVER, window([-2, -2, 44, 44], [44, 44], fill=(10, 20, 30))],
    "mirror, crop": [mirror, CROP],
    "mirror, halve, mirror": [mirror, HALVE, mirror],
    "mirror, over the edge": [mirror, OVER],
    "mirror, reflect, mirror": [mirror, REFLECT, mirror],
    "crop, erase, mirror": [CROP, erase, mirror],
    "mirror, double, erase, erase": [mirror, DOUBLE, erase, lambda plan: plan.erase(
        torch.tensor([[4, 4, 90, 90]] * len(plan)), torch.full((len(plan), plan.channels), 0.9))],
}  # fmt: skip


@pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS.keys())
def test_one_pass_equals_several(steps):
    images = images_of(4, 3, 30, 34)
    whole, stepwise = plan_for(images), images
    for step in steps:
        assert step(whole)
        alone = plan_for(stepwise)
        assert step(alone)
        stepwise = run(alone, stepwise, torch.uint8)
    assert torch.equal(run(whole, images, torch.uint8), stepwise)


def test_what_cannot_be_put_on_top_is_refused_and_leaves_the_plan_as_it_was():
    images = images_of(2, 3, 30, 34)
    for before, refused in {
        SHRINK: GROW, OVER: window([0, 0, 38, 40], [20, 20]), REFLECT: CROP, erase: CROP,
    }.items():  # fmt: skip
        plan, same = plan_for(images), plan_for(images)
        assert before(plan)
        assert before(same)
        assert not refused(plan)
        assert torch.equal(run(plan, images, torch.uint8), run(same, images, torch.uint8))


def test_the_whole_image_in_its_own_size_can_always_be_taken():
    images = images_of(2, 3, 30, 34)
    for step in (SHRINK, OVER, REFLECT, erase):
        plan = plan_for(images)
        assert step(plan)
        size = plan.sizes[0].tolist()
        wanted = run(plan, images, torch.uint8)
        assert window([0, 0, *size], size)(plan)
        assert torch.equal(run(plan, images, torch.uint8), wanted)


def test_a_window_that_was_computed_may_be_off_by_rounding():
    images = images_of(1, 3, 30, 34)
    exact, rounded = plan_for(images), plan_for(images)
    assert window([0.0, 0.0, 30.0, 34.0], [10, 11])(exact)
    assert window([-1e-12, 1e-12, 30 + 2e-12, 34.0], [10, 11])(rounded)
    assert torch.equal(run(exact, images, torch.uint8), run(rounded, images, torch.uint8))


def random_plan(rng: np.random.Generator, sizes: torch.Tensor, channels: int) -> Plan:
    """Return windows of their own for images of several sizes, a border, mirrors, changes and a box."""
    count, plan = len(sizes), Plan(channels, sizes)
    extents = torch.tensor(rng.uniform(0.3, 1, (count, 2))) * sizes
    starts = torch.tensor(rng.uniform(0, 1, (count, 2))) * (sizes - extents)
    out = torch.tensor(rng.integers(1, 40, 2)).expand(count, 2)
    assert plan.window(torch.cat([starts, extents], 1), out)
    offsets = torch.tensor(rng.integers(-6, 7, (count, 2)))
    size = torch.tensor(rng.integers(1, 40, 2)).expand(count, 2)
    assert plan.window(torch.cat([offsets, size], 1), size, fill=(50, 100, 150)[:channels])
    assert plan.mirror(torch.tensor(rng.random(count) < 0.5))
    for _ in range(rng.integers(0, 4)):
        kinds = torch.tensor(rng.choice([AFFINE, BRIGHTNESS, CONTRAST, SATURATION, HUE], count))
        factors = torch.tensor(rng.uniform(-0.5, 0.5, (count, 12)), dtype=torch.float32)
        assert plan.change(kinds, factors, clip=True)
    assert plan.erase(torch.tensor(rng.integers(0, 30, (count, 4))), torch.tensor(rng.random((count, channels))))
    return plan


def one_of(plan: Plan, number: int) -> Plan:
    """Return the plan of one image alone."""
    alone = Plan(plan.channels, plan.sizes[number : number + 1])
    for name in ("axes", "mirrored", "sizes"):
        setattr(alone, name, getattr(plan, name)[number : number + 1])
    for name in ("kinds", "factors", "boxes", "values"):
        setattr(alone, name, [part[number : number + 1] for part in getattr(plan, name)])
    alone.fill, alone.reflected = plan.fill, plan.reflected
    return alone


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.sampled_from([1, 3]), isa=st.sampled_from(ISAS))
def test_an_image_is_the_same_alone_and_as_defined(seed, channels, isa):
    rng = np.random.default_rng(seed)
    sizes = torch.tensor(rng.integers(1, 50, (3, 2)))
    pixels = [torch.from_numpy(rng.integers(0, 256, (1, channels, *size), dtype=np.uint8)) for size in sizes.tolist()]
    each = [Pictures.of_pixels(image) for image in pixels]
    together = Pictures(torch.cat([one.table for one in each]), channels, each)
    plan = random_plan(rng, sizes, channels)
    out = run_on(together, plan, isa=isa)
    for number, picture in enumerate(each):
        alone = run_on(picture, one_of(plan, number), isa=isa)
        assert torch.equal(alone[0], out[number])
        if not any(int(kinds[number]) & 255 in (HUE, AFFINE) for kinds in plan.kinds):
            wanted = expected(plan, pixels[number][0].numpy(), number)
            assert np.abs(alone[0].numpy() - wanted).max() <= 1.01 / 255  # a grey level, where one is rounded
