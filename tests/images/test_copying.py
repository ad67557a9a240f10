"""Crops, borders, mirrors and erased boxes move whole pixels, so they are compared exactly, with numpy's indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_reference import ISAS, plan_for, run

from engine.plan import AFFINE

every_isa = pytest.mark.parametrize("isa", ISAS)
layouts = pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])


def batch(channels: int, height: int, width: int, nhwc: bool, count: int = 6):
    rng = np.random.default_rng([channels, height, width])
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8))
    return rng, images.contiguous(memory_format=torch.channels_last) if nhwc else images


def cropped(images: torch.Tensor, offsets: np.ndarray, size: tuple[int, int], mirrored: np.ndarray, **padding):
    """Return the crops of images padded by numpy; offsets are of the unpadded ones."""
    most = 140
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (most, most), (most, most)), **padding)
    crops = []
    for image, (top, left), mirror in zip(padded, offsets + most, mirrored, strict=True):
        crop = image[:, top : top + size[0], left : left + size[1]]
        crops.append(crop[:, :, ::-1] if mirror else crop)
    return torch.from_numpy(np.ascontiguousarray(np.stack(crops)))


@every_isa
@layouts
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reflect", [False, True], ids=["filled", "reflected"])
@pytest.mark.parametrize(("height", "width", "out"), [(32, 32, (32, 32)), (9, 50, (30, 7)), (5, 3, (1, 90))])
def test_crops_over_the_edge(isa, nhwc, channels, reflect, height, width, out):
    rng, images = batch(channels, height, width, nhwc)
    offsets = rng.integers(-40, 41, (len(images), 2))
    offsets[0] = 0
    mirrored = rng.random(len(images)) < 0.5
    plan = plan_for(images)
    boxes = torch.tensor(np.concatenate([offsets, [out] * len(images)], 1))
    fill = (0, 99, 255)[:channels]
    assert plan.window(boxes, boxes[:, 2:], fill=None if reflect else fill, reflect=reflect)
    assert plan.mirror(torch.tensor(mirrored))
    if reflect:
        wanted = cropped(images, offsets, out, mirrored, mode="reflect")
    else:
        shown = cropped(torch.ones_like(images), offsets, out, mirrored, mode="constant")
        wanted = cropped(images, offsets, out, mirrored, mode="constant")
        wanted = torch.where(shown > 0, wanted, torch.tensor(fill, dtype=torch.uint8).view(-1, 1, 1))
    for out_nhwc in (False, True):
        assert torch.equal(run(plan, images, torch.uint8, nhwc=out_nhwc, isa=isa), wanted)


@every_isa
@layouts
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_erased_boxes_follow_the_mirror(isa, nhwc, dtype):
    rng, images = batch(3, 21, 35, nhwc)
    mirrored = rng.random(len(images)) < 0.5
    boxes = torch.tensor(np.sort(rng.integers(-5, 45, (len(images), 2, 2)), 1).reshape(-1, 4))
    values = torch.tensor(rng.integers(0, 256, (len(images), 3))) / 255
    plan = plan_for(images)
    assert plan.erase(boxes, values)
    assert plan.mirror(torch.tensor(mirrored))
    wanted = images.clone().float()
    for image, (top, left, bottom, right), value in zip(wanted, boxes.clamp(min=0).tolist(), values, strict=True):
        image[:, top:bottom, left:right] = (value * 255).round()[:, None, None]
    wanted = torch.stack([image.flip(2) if mirror else image for image, mirror in zip(wanted, mirrored, strict=True)])
    wanted = wanted if dtype == torch.uint8 else wanted / 255
    out = run(plan, images, dtype, nhwc=nhwc, isa=isa)
    torch.testing.assert_close(out, wanted.to(dtype), rtol=0 if dtype == torch.uint8 else 1e-6, atol=0)


@every_isa
@pytest.mark.parametrize("channels", [1, 3])
def test_types_and_layouts_hold_the_same_numbers(isa, channels):
    for width in (1, 5, 16, 33, 64):
        rng, images = batch(channels, 12, width, False)
        plan = plan_for(images)
        factors = torch.tensor(rng.normal(size=(len(images), 12)), dtype=torch.float32)
        assert plan.change(AFFINE, factors)
        out = run(plan, images, isa=isa)
        assert torch.equal(run(plan, images, nhwc=True, isa=isa), out)
        for nhwc in (False, True):
            assert torch.equal(run(plan, images, torch.bfloat16, nhwc=nhwc, isa=isa), out.to(torch.bfloat16))


def test_bytes_come_out_as_they_are_and_floats_from_0_to_1():
    _, images = batch(3, 16, 20, True)
    plan = plan_for(images)
    assert torch.equal(run(plan, images, torch.uint8), images)
    torch.testing.assert_close(run(plan, images), images.float() / 255, rtol=1e-6, atol=0)
