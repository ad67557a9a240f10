"""JPEG decoded at a part of its size where a window is reduced by as much: beside Pillow, within a stated tolerance."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Key, ops
from engine.chain import Samples
from engine.host_to_device import Layout
from engine.interfaces import Records, Source
from engine.pictures import Pictures
from engine.plan import Plan
from engine.plugins.augment import Resize
from engine.preparation import Preparation

pytestmark = pytest.mark.skipif(not ops.jpeg_decodes(), reason="built without libjpeg-turbo's headers")


def photograph(height: int = 240, width: int = 320) -> bytes:
    """Return a JPEG of smooth shades and some edges."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (8, 10, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((30, 200, 90), (40, 50, 120, 130))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def passed(data: bytes, box: tuple[int, int, int, int], size: int, scaled: bool) -> np.ndarray:
    pictures = Pictures.of_files([data], 3)
    plan = Plan(3, pictures.sizes.clone())
    assert plan.window(torch.tensor([box]), torch.tensor([[size, size]]))
    out = torch.empty(1, 3, size, size, dtype=torch.uint8)
    ops.transform(pictures, plan, out, scaled=scaled)
    return out[0].permute(1, 2, 0).numpy().astype(int)


def pillows(data: bytes, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    top, left, height, width = box
    with Image.open(io.BytesIO(data)) as image:
        window = image.convert("RGB").crop((left, top, left + width, top + height))
    return np.array(window.resize((size, size), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 240, 320), 60), ((3, 7, 200, 301), 90), ((17, 2, 219, 200), 50), ((0, 0, 240, 320), 24)]
)
def test_a_reduced_window_is_near_pillows(box, size):
    data = photograph()
    expected, found = pillows(photograph(), box, size), passed(data, box, size, scaled=True)
    assert np.abs(found - expected).mean() < 2  # docs/augmentation.md: 1.4 on average over photographs
    assert np.quantile(np.abs(found - expected), 0.99) <= 24
    assert np.abs(passed(data, box, size, scaled=False) - expected).max() <= 1


@pytest.mark.parametrize(("box", "size"), [((0, 0, 240, 320), 121), ((5, 9, 150, 160), 100), ((0, 0, 60, 60), 224)])
def test_a_window_that_is_reduced_by_less_is_exact(box, size):
    data = photograph()
    assert np.abs(passed(data, box, size, scaled=True) - pillows(data, box, size)).max() <= 1


class Photograph(Source):
    """One JPEG, as its file."""

    classes, shape, fingerprint = ("any",), (3, 224, 224), "photograph"

    def __len__(self) -> int:
        return 1

    def records(self, indices) -> Records:
        return Records("encoded", [photograph() for _ in indices], torch.zeros(len(indices), dtype=torch.int64))


def test_an_evaluation_decodes_at_full_size():
    expected = pillows(photograph(), (0, 0, 240, 320), 60)
    resize = {"resize": Resize(size=60, width=60).build()}
    row = torch.zeros(1, dtype=torch.int64)
    apart = {}
    for key in (None, Key.of(0)):
        images, _, _ = Preparation(Photograph(), resize, Layout(torch.device("cpu")), key).batch(Samples(row, row, 0))
        apart[key] = np.abs(images[0].permute(1, 2, 0).numpy().astype(int) - expected).max()
    assert apart[None] <= 1
    assert apart[Key.of(0)] > 1
