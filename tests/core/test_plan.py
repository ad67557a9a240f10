"""Plans carried out by tensor operations: against Pillow's float images and numpy, and beside the native pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine import ops
from engine.pictures import Pictures
from engine.plan import AFFINE, BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION, Plan
from engine.plan_on_tensors import carry_out


def floats(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def plan_for(images: torch.Tensor) -> Plan:
    return Plan(images.shape[1], torch.tensor(images.shape[2:]).expand(len(images), 2).clone())


def resized(image: torch.Tensor, height: int, width: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Return Pillow's float32 [c, height, width] of a box (left, top, right, bottom)."""
    channels = [Image.fromarray(channel.numpy()) for channel in image.float()]
    return np.stack([np.asarray(c.resize((width, height), Image.Resampling.BILINEAR, box=box)) for c in channels])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize(("height", "width"), [(9, 13), (40, 21), (17, 50)])
def test_windows_of_floats_are_pillows(dtype, channels, beyond, height, width):
    images = floats(3, channels, 31, 34)
    boxes = torch.tensor([[2, 3, 25, 30], [0, 0, 31, 34], [11, 9, 17, 19]])
    plan = plan_for(images)
    assert plan.window(boxes, torch.tensor([[height, width]] * 3), beyond=beyond)
    results = carry_out(plan, images.to(dtype))
    assert results.dtype == dtype
    for image, (top, left, tall, wide), result in zip(images, boxes.tolist(), results, strict=True):
        if beyond:  # as Pillow's box, whose filter reaches over its edges
            expected = resized(image, height, width, (left, top, left + wide, top + tall))
        else:
            window = image[:, top : top + tall, left : left + wide].contiguous()
            expected = resized(window, height, width, (0, 0, wide, tall))
        np.testing.assert_allclose(result.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "offset"), [((4, 5), (-3, -2)), ((3, 7), (-9, 11)), ((2, 3), (-17, -20)), ((1, 6), (-4, 5))]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_reflection_is_numpys_however_far(size, offset, dtype):
    images = (floats(2, 3, *size) * 255).to(dtype)
    plan = plan_for(images)
    assert plan.window(torch.tensor([[*offset, 12, 9]] * 2), torch.tensor([[12, 9]] * 2), reflect=True)
    most = 40
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (most, most), (most, most)), mode="reflect")
    top, left = offset[0] + most, offset[1] + most
    assert np.array_equal(carry_out(plan, images).numpy(), padded[:, :, top : top + 12, left : left + 9])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_what_is_beyond_the_edge_is_filled(dtype):
    images = (floats(1, 3, 4, 4) * 255).to(torch.uint8)
    fill = (255, 0, 51)
    plan = plan_for(images)
    assert plan.window(torch.tensor([[-1, -2, 6, 7]]), torch.tensor([[6, 7]]), fill=fill)
    given = images if dtype == torch.uint8 else images.to(dtype) / 255
    result = carry_out(plan, given)
    expected = np.empty((3, 6, 7))
    expected[:] = np.array(fill)[:, None, None]
    expected[:, 1:5, 2:6] = images[0].numpy()
    np.testing.assert_allclose(result[0].numpy() * (1 if dtype == torch.uint8 else 255), expected, atol=1e-9)


def test_an_empty_plan_returns_the_images_themselves():
    images = floats(2, 3, 5, 6)
    plan = plan_for(images)
    assert plan.empty
    assert carry_out(plan, images) is images
    plan.mirror(torch.tensor([False, True]))
    assert not plan.empty
    assert torch.equal(carry_out(plan, images), torch.stack([images[0], images[1].flip(2)]))


def test_each_image_is_changed_in_its_own_way():
    images = floats(4, 3, 5, 6).double()
    plan = plan_for(images)
    matrix = torch.tensor([[0.0, 1, 0, 0.5], [0, 0, 1, 0], [2, 0, 0, -0.25]])
    factors = torch.zeros(4, 12)
    factors[:3, 0] = torch.tensor([9.0, 0.5, 2.0])
    factors[3] = matrix.flatten()
    assert plan.change(torch.tensor([NOTHING, BRIGHTNESS, SATURATION, AFFINE]), factors)
    result = carry_out(plan, images)
    gray = (images[2] * torch.tensor([0.2989, 0.587, 0.114]).double().view(3, 1, 1)).sum(0)
    assert torch.equal(result[0], images[0])
    torch.testing.assert_close(result[1], images[1] / 2)
    torch.testing.assert_close(result[2], 2 * images[2] - gray, rtol=0, atol=1e-7)
    red, green, blue = images[3]
    torch.testing.assert_close(result[3], torch.stack([green + 0.5, blue, 2 * red - 0.25]))


def test_colours_of_boxes_are_what_they_were_set_to_when_they_were_set():
    """Set among bytes: rounded to a grey level. Set among normalised numbers: as it is. Changed after: changed."""
    images = torch.zeros(1, 1, 2, 4, dtype=torch.uint8)
    first, second = torch.tensor([[0, 0, 2, 1]]), torch.tensor([[0, 2, 2, 3]])
    plan = plan_for(images)
    assert plan.erase(first, torch.tensor([[0.5]]))
    assert plan.change(AFFINE, torch.tensor([[2.0, 0, 0, 10.0, *[0.0] * 8]]))
    assert plan.erase(second, torch.tensor([[-0.5]]))
    assert not plan.change(CONTRAST, torch.tensor([0.5]))
    assert not plan.change(AFFINE, torch.zeros(1, 12), clip=True)
    result = carry_out(plan, images)
    assert result[0, 0, 0].tolist() == pytest.approx([2 * 128 / 255 + 10, 10, -0.5, 10])


def test_a_plan_that_ends_in_different_sizes_is_refused():
    plan = Plan(3, torch.tensor([[4, 4], [5, 5]]))
    with pytest.raises(ValueError, match="different sizes"):
        carry_out(plan, torch.zeros(2, 3, 5, 5))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.sampled_from([1, 3]), colours=st.integers(0, 4))
def test_the_native_pass_is_the_same(seed, channels, colours):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 40, 2).tolist()
    images = torch.from_numpy(rng.integers(0, 256, (3, channels, height, width), dtype=np.uint8))
    plan = plan_for(images)
    extents = torch.tensor(rng.uniform(0.3, 1, (3, 2))) * plan.sizes
    starts = torch.tensor(rng.uniform(0, 1, (3, 2))) * (plan.sizes - extents)
    out = torch.tensor(rng.integers(1, 40, 2)).expand(3, 2)
    assert plan.window(torch.cat([starts, extents], 1), out)
    size = torch.tensor(rng.integers(1, 40, 2)).expand(3, 2)
    offsets = torch.tensor(rng.integers(-6, 7, (3, 2)))
    assert plan.window(torch.cat([offsets, size], 1), size, fill=(50, 100, 150)[:channels])
    assert plan.mirror(torch.tensor(rng.random(3) < 0.5))
    for _ in range(colours):
        kinds = torch.tensor(rng.choice([NOTHING, AFFINE, BRIGHTNESS, CONTRAST, SATURATION], 3))
        assert plan.change(kinds, torch.tensor(rng.uniform(-0.5, 1.2, (3, 12))), clip=bool(rng.random() < 0.5))
    assert plan.erase(torch.tensor(rng.integers(-3, 40, (3, 4))), torch.tensor(rng.random((3, channels))))
    native = torch.empty(3, *plan.shape, dtype=torch.float32 if colours else torch.uint8)
    ops.transform(Pictures.of_pixels(images), plan, native)
    ours = carry_out(plan, images)
    # A level where a value lies on a half; changes of colour can multiply it, by up to 3 x 1.2 each.
    level = 1.01 * (3.6**colours / 255 if colours else 1)
    assert (ours.dtype, ours.shape) == (native.dtype, native.shape)
    assert float((ours.double() - native.double()).abs().max()) <= level
    assert float((ours.double() - native.double()).abs().mean()) <= level / 20


def test_hues_are_turned_as_by_the_native_pass():
    images = (floats(8, 3, 20, 20) * 255).to(torch.uint8)
    plan = plan_for(images)
    assert plan.change(HUE, torch.linspace(-0.5, 0.5, 8))
    native = torch.empty(8, 3, 20, 20)
    ops.transform(Pictures.of_pixels(images), plan, native)
    torch.testing.assert_close(carry_out(plan, images), native, rtol=0, atol=2e-5)
