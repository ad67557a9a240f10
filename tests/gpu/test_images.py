"""The pass over images on a GPU, against the CPU's on the same plans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import ops
from engine.ops import cuda_images
from engine.pictures import Pictures
from engine.plan import AFFINE, BRIGHTNESS, CONTRAST, HUE, SATURATION, Plan

pytestmark = pytest.mark.gpu
COUNT, CHANNELS, HEIGHT, WIDTH = 16, 3, 251, 300
SIZE = torch.tensor([[224, 192]] * COUNT)


def plans() -> dict[str, Callable[[np.random.Generator, Plan], None]]:
    """Return what is added to a plan, by a name."""

    def resize(rng: np.random.Generator, plan: Plan) -> None:
        extents = torch.tensor(rng.uniform(0.3, 1, (COUNT, 2))) * plan.sizes
        starts = torch.tensor(rng.uniform(0, 1, (COUNT, 2))) * (plan.sizes - extents)
        assert plan.window(torch.cat([starts, extents], 1), SIZE)
        assert plan.mirror(torch.tensor(rng.random(COUNT) < 0.5))

    def crop(rng: np.random.Generator, plan: Plan, reflect: bool = False) -> None:
        starts = torch.tensor(rng.integers(-40, 140, (COUNT, 2)))
        assert plan.window(torch.cat([starts, SIZE], 1), SIZE, fill=(10, 20, 30), reflect=reflect)
        assert plan.mirror(torch.tensor(rng.random(COUNT) < 0.5))

    def normalise(rng: np.random.Generator, plan: Plan) -> None:
        crop(rng, plan)
        assert plan.change(AFFINE, torch.tensor(rng.normal(size=(COUNT, 12)), dtype=torch.float32))
        assert plan.erase(torch.tensor(rng.integers(0, 200, (COUNT, 4))), torch.zeros(COUNT, CHANNELS))

    def jitter(rng: np.random.Generator, plan: Plan, clip: bool = False) -> None:
        crop(rng, plan)
        for kind in (BRIGHTNESS, CONTRAST, SATURATION, CONTRAST):
            assert plan.change(kind, torch.tensor(rng.uniform(0.5, 1.5, COUNT)), clip=clip)

    def turn(rng: np.random.Generator, plan: Plan) -> None:
        jitter(rng, plan, clip=True)
        assert plan.change(HUE, torch.tensor(rng.uniform(-0.5, 0.5, COUNT)), clip=True)

    return {
        "resized": resize, "bordered": crop, "reflected": lambda rng, plan: crop(rng, plan, reflect=True),
        "normalised": normalise, "jittered": jitter, "jittered and clipped": lambda rng, plan: jitter(rng, plan, True),
        "hue": turn,
    }  # fmt: skip


def prepared(name: str) -> tuple[Tensor, Plan]:
    """Return images and a plan for them."""
    rng = np.random.default_rng(sorted(plans()).index(name))
    images = torch.from_numpy(rng.integers(0, 256, (COUNT, CHANNELS, HEIGHT, WIDTH), dtype=np.uint8))
    plan = Plan(CHANNELS, torch.tensor([[HEIGHT, WIDTH]] * COUNT))
    plans()[name](rng, plan)
    return images, plan


def on_gpu(images: Tensor, plan: Plan, dtype: torch.dtype, layout: torch.memory_format, index: Tensor | None = None):
    out = torch.empty(len(plan), *plan.shape, dtype=dtype, device=images.device, memory_format=layout)
    out.fill_(77 if dtype == torch.uint8 else torch.nan)
    cuda_images.transform(images, plan, out, index)
    return out


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", plans())
def test_small_shapes(gpu: torch.device, name: str, layout: torch.memory_format) -> None:
    """Every kernel, as `make gpu-test` runs these under compute-sanitizer."""
    images, plan = prepared(name)
    there = images.to(gpu).contiguous(memory_format=layout)
    for dtype in (torch.float32, torch.bfloat16, *([] if plan.kinds else [torch.uint8])):
        expected = torch.empty(len(plan), *plan.shape, dtype=dtype, memory_format=layout)
        ops.transform(Pictures.of_pixels(images), plan, expected)
        out = on_gpu(there, plan, dtype, layout)
        assert torch.equal(out, on_gpu(there, plan, dtype, layout)), "the bits differ from one time to the next"
        apart = (out.cpu().double() - expected.double()).abs()
        if name == "resized":  # a sum near a half may be rounded up here and down there, once in a while
            white = 255 if dtype == torch.uint8 else 1
            assert float(apart.max()) <= 1.01 * white / 255
            assert float((apart > 0).double().mean()) <= 1e-3
        else:
            # Of bfloat16 the last bit; the hue is a quotient of small differences.
            relative = 2**-7 if dtype == torch.bfloat16 else 1e-3 if name == "hue" else 1e-5
            assert float(apart.max()) <= relative * max(1, float(expected.double().abs().max()))


def test_an_index_on_the_gpu_chooses_images(gpu: torch.device) -> None:
    images, plan = prepared("jittered and clipped")
    stored = images.to(gpu)
    index = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).to(gpu)
    layout = torch.channels_last
    chosen = on_gpu(stored, plan, torch.float32, layout, index)
    assert torch.equal(chosen, on_gpu(stored[index], plan, torch.float32, layout))


def test_a_call_waits_for_its_own_stream_and_no_other(gpu: torch.device) -> None:
    """The images are written at the end of much work on a side stream; read from another they would still be black."""
    images, plan = prepared("resized")
    expected = on_gpu(images.to(gpu), plan, torch.float32, torch.contiguous_format)
    late, given, work = torch.zeros_like(images, device=gpu), images.to(gpu), torch.ones(4096, 4096, device=gpu)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(20):
            work = work @ work / len(work)
        late.copy_(given)
        out = on_gpu(late, plan, torch.float32, torch.contiguous_format)
    side.synchronize()
    assert torch.equal(out, expected)
