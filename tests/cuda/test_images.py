"""The GPU's pass over images, compiled for the host, against csrc/images.h written out in float64, pixel by pixel."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_reference import coloured, plan_for, resampled
from PIL import Image
from torch import Tensor

from engine.errors import UsageError
from engine.ops import cuda_images
from engine.plan import AFFINE, BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION, Plan

TIE = 1e-3  # grey levels by which a sum in float32 may be off, so that a number near a half is rounded otherwise


@pytest.fixture(autouse=True)
def _orders_are_by_index(host: ModuleType) -> Iterator[None]:
    yield
    host.shuffle(0)


def images_of(rng: np.random.Generator, count: int, channels: int, height: int, width: int) -> Tensor:
    """Return random bytes, some of them gray, black or white."""
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8))
    images[0, :, : height // 3] = images[0, :1, : height // 3]
    images[-1, :, height // 2] = int(rng.choice([0, 255]))
    return images.contiguous(memory_format=torch.channels_last) if rng.random() < 0.5 else images


def run(
    host: ModuleType, images: Tensor, plan: Plan, dtype: torch.dtype = torch.float32, index: Tensor | None = None
) -> Tensor:
    """Return what the kernels make of images, in two orders of threads, layouts and contents of memory the same."""
    results = []
    for seed, layout in enumerate((torch.contiguous_format, torch.channels_last)):
        out = torch.empty(len(plan), *plan.shape, dtype=dtype, memory_format=layout)
        out.fill_(78 - seed if dtype == torch.uint8 else torch.nan)
        host.shuffle(seed)
        cuda_images.transform(images, plan, out, index, code=host)
        results.append(out)
    assert not results[0].isnan().any(), "a pixel was not written"
    assert torch.equal(*results)
    return results[0]


def reflected(plan: Plan, image: np.ndarray, number: int) -> np.ndarray:
    """Return what an image with a reflected border shows, by numpy's own."""
    sides, chosen = [], []
    for (origin, _, first, last, _, _), size in zip(
        plan.axes[number].int().tolist(), plan.sizes[number].tolist(), strict=True
    ):
        sides.append((max(0, first - origin), max(0, origin + size - last)))
        chosen.append((slice(first, last), slice(max(0, origin - first), max(0, origin - first) + size)))
    (rows, shown_rows), (columns, shown_columns) = chosen
    padded = np.pad(image[:, rows, columns], [(0, 0), *sides], mode="reflect")
    out = padded[:, shown_rows, shown_columns]
    return out[:, :, ::-1] if plan.mirrored[number] else out


def levels_of(host: ModuleType, images: Tensor, plan: Plan) -> np.ndarray:
    """Return the bytes that a pass shows before colours are changed and boxes erased, compared with the definition."""
    plain = copy.copy(plan)
    plain.kinds, plain.factors, plain.boxes, plain.values = [], [], [], []
    levels = run(host, images, plain, torch.uint8).numpy()
    for number, image in enumerate(images.numpy()):
        wanted = reflected(plan, image, number) if plan.reflected else resampled(plan, image, number)
        assert np.abs(levels[number] - wanted).max() <= 0.5 + TIE
    return levels


def check(host: ModuleType, images: Tensor, plan: Plan, tolerance: float = 5e-6) -> None:
    """Compare every pixel in every type of output."""
    levels = levels_of(host, images, plan)
    floats, halves = (run(host, images, plan, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(floats.bfloat16(), halves), "not rounded as torch rounds"
    for number in range(len(plan)):
        wanted = coloured(plan, levels[number], number)
        scale = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(floats[number], wanted, rtol=0, atol=tolerance * scale)


def window(rng: np.random.Generator, plan: Plan, kind: str) -> None:
    """Add windows of a kind, another for each image, which all become one size."""
    size = torch.tensor(rng.integers(1, 45, 2)).expand(len(plan), 2)
    old = plan.sizes
    if kind == "resized":
        extents = torch.tensor(rng.uniform(0.2, 1, (len(plan), 2))) * old
        starts = torch.tensor(rng.uniform(0, 1, (len(plan), 2))) * (old - extents)
        assert plan.window(torch.cat([starts, extents], 1), size, beyond=rng.random() < 0.5)
        return
    offsets = torch.tensor(rng.integers(-20, 20, (len(plan), 2)))
    fill = [int(level) for level in rng.integers(0, 256, plan.channels)]
    assert plan.window(torch.cat([offsets, size], 1), size, fill=fill, reflect=kind == "reflected")


def colour(rng: np.random.Generator, plan: Plan) -> None:
    """Add a change of colour of some kind to each image."""
    clip = rng.random() < 0.5
    kinds = torch.tensor(rng.choice([NOTHING, AFFINE, BRIGHTNESS, CONTRAST, SATURATION, HUE], len(plan)))
    if HUE in kinds:  # colorsys means colours from 0 to 1
        assert plan.change(NOTHING, torch.zeros(len(plan)), clip=True)
    factors = torch.tensor(rng.uniform(-0.5, 1.5, (len(plan), 12)), dtype=torch.float32)
    factors[kinds == HUE] %= 0.5
    assert plan.change(kinds, factors, clip=clip)


def random_plan(rng: np.random.Generator, images: Tensor) -> Plan:
    plan = plan_for(images)
    for kind in {0: [], 1: ["resized"], 2: ["border"], 3: ["resized", "border"], 4: ["reflected"]}[rng.integers(5)]:
        window(rng, plan, kind)
    assert plan.mirror(torch.tensor(rng.random(len(plan)) < 0.5))
    for _ in range(rng.integers(4)):
        colour(rng, plan)
    for _ in range(rng.integers(3)):
        corners = torch.tensor(rng.integers(-5, 50, (len(plan), 4)))
        assert plan.erase(corners, torch.tensor(rng.random((len(plan), plan.channels))))
    return plan


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.sampled_from([1, 3]))
def test_any_plan(host: ModuleType, seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    images = images_of(rng, int(rng.integers(1, 4)), channels, *map(int, rng.integers(2, 60, 2)))
    plan = random_plan(rng, images)
    turns = any(bool(((kinds & 255) == HUE).any()) for kinds in plan.kinds)
    # The hue is a quotient of small differences, and jumps where black is not quite black.
    check(host, images, plan, 2e-3 if turns else 5e-5)


@pytest.mark.parametrize("clip", [False, True], ids=["open", "clipped"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [NOTHING, AFFINE, BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_one_change(host: ModuleType, kind: int, channels: int, clip: bool) -> None:
    rng = np.random.default_rng([kind, channels, clip])
    images = images_of(rng, 4, channels, 13, 21)
    plan = plan_for(images)
    factors = torch.tensor(rng.normal(size=(4, 12)), dtype=torch.float32)
    assert plan.change(kind, factors % 0.5 if kind == HUE else factors, clip=clip)
    check(host, images, plan, 2e-5 if kind == HUE else 5e-6)


@pytest.mark.parametrize("clip", [False, True], ids=["open", "clipped"])
def test_several_contrasts_take_their_means_from_what_went_before(host: ModuleType, clip: bool) -> None:
    rng = np.random.default_rng(5)
    images = images_of(rng, 3, 3, 17, 40)
    plan = plan_for(images)
    window(rng, plan, "border")
    for kind in (CONTRAST, BRIGHTNESS, CONTRAST, SATURATION, CONTRAST, AFFINE):
        assert plan.change(kind, torch.tensor(rng.uniform(-1, 2, (3, 12)), dtype=torch.float32), clip=clip)
    check(host, images, plan, 1e-5)


@pytest.mark.parametrize(("box", "size"), [([1, 2, 40, 50], [7, 11]), ([10, 20, 9, 8], [40, 33])])
def test_windows_are_within_a_grey_level_of_pillows(host: ModuleType, box: list[int], size: list[int]) -> None:
    images = images_of(np.random.default_rng(box), 2, 3, 45, 60)
    plan = plan_for(images)
    assert plan.window(torch.tensor([box] * 2), torch.tensor([size] * 2))
    top, left, height, width = box
    for out, image in zip(run(host, images, plan, torch.uint8), images, strict=True):
        cut = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).crop((left, top, left + width, top + height))
        wanted = np.asarray(cut.resize((size[1], size[0]), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(out.numpy().astype(int) - wanted).max() <= 1


def test_an_index_chooses_among_images_and_none_depends_on_the_others(host: ModuleType) -> None:
    rng = np.random.default_rng(1)
    images, index = images_of(rng, 9, 3, 20, 30), torch.tensor([8, 0, 3, 3, 5])
    plan = plan_for(images[index])
    window(rng, plan, "resized")
    for _ in range(3):
        colour(rng, plan)
    together = run(host, images, plan, index=index)
    assert torch.equal(together, run(host, images[index], plan))
    for number in range(len(plan)):
        alone = copy.copy(plan)
        for name in ("axes", "mirrored", "sizes"):
            setattr(alone, name, getattr(plan, name)[number : number + 1])
        for name in ("kinds", "factors"):
            setattr(alone, name, [part[number : number + 1] for part in getattr(plan, name)])
        assert torch.equal(run(host, images, alone, index=index[number : number + 1])[0], together[number])


def test_images_may_be_a_part_of_others_and_none_at_all(host: ModuleType) -> None:
    images = images_of(np.random.default_rng(2), 6, 3, 16, 24)
    part = images[::2, :, 3:, 1::2]
    assert torch.equal(run(host, part, plan_for(part), torch.uint8), part)
    empty = images[:0]
    out = torch.empty(0, 3, 16, 24)
    cuda_images.transform(empty, Plan(3, torch.zeros(0, 2, dtype=torch.int64)), out, code=host)


def test_erased_boxes_of_bytes(host: ModuleType) -> None:
    images = images_of(np.random.default_rng(3), 2, 3, 9, 40)
    plan = plan_for(images)
    assert plan.erase(torch.tensor([[2, 30, 100, 100], [0, 0, 1, 40]]), torch.tensor([[0.0, 0.5, 1.0]] * 2))
    wanted = images.clone()
    wanted[0, :, 2:, 30:] = wanted[1, :, :1] = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None]
    assert torch.equal(run(host, images, plan, torch.uint8), wanted)


def test_what_does_not_fit_is_told(host: ModuleType) -> None:
    images = torch.zeros(2, 3, 8, 9, dtype=torch.uint8)
    plan, out = plan_for(images), torch.empty(2, 3, 8, 9)
    reaching, odd, bright = plan_for(images), plan_for(images), plan_for(images)
    reaching.axes[1, 0, 3] = 9  # reads a row more than there is
    odd.sizes = torch.tensor([[8, 9], [4, 4]])
    assert bright.change(BRIGHTNESS, torch.ones(2))
    row = torch.zeros(2, dtype=torch.int64)
    for given_to, text in {
        (images.float(), plan, out, None): "images for this plan are uint8",
        (images[:1], plan, out, None): "a plan for 2 images, but there are 1",
        (images, plan, out, row.int()): "an index for this plan is int64",
        (images, plan, out, row[:1]): "an index for this plan is int64",
        (images[:0], plan, out, row): "no images to choose from",
        (images, odd, out, None): "different sizes",
        (images, plan, out[:, :, 1:], None): "the plan makes",
        (images, plan, out.half(), None): "out must be uint8, float32 or bfloat16",
        (images, plan, out.mT.contiguous().mT, None): "out must be dense",
        (images, bright, out.byte(), None): "the plan changes colours",
        (images, reaching, out, None): "an axis reads beyond the image",
    }.items():
        with pytest.raises(ValueError, match=text):
            cuda_images.transform(*given_to, code=host)


def test_where_it_was_not_built_one_line_says_so() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    if cuda_images.available():
        pytest.skip("engine._cuda is built")
    with pytest.raises(UsageError, match=r"^images cannot be transformed on a GPU: engine\._cuda is not built"):
        cuda_images.transform(images, plan_for(images), torch.empty(1, 3, 8, 8))
