"""A JPEG file that was cut short: what batches need of it decides whether it is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Key, UsageError, ops
from engine.chain import Samples
from engine.decode import decode, decode_whole
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, Plan, Records, Source
from engine.preparation import Preparation

pytestmark = pytest.mark.skipif(not ops.jpeg_decodes(), reason="built without libjpeg-turbo's headers")
HEIGHT, WIDTH, SIDE = 256, 192, 64


def photograph(progressive: bool) -> bytes:
    """Return a JPEG whose bytes are spread evenly over its rows."""
    coarse = np.random.default_rng(2).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    image.save(out, "JPEG", quality=95, progressive=progressive)
    return out.getvalue()


class Files(Source):
    """One photograph whole, then the same cut short."""

    classes, shape, fingerprint = ("any",), (3, HEIGHT, WIDTH), "files"

    def __init__(self, progressive: bool) -> None:
        whole = photograph(progressive)
        self.files = [whole, whole[: len(whole) * 6 // 10]]

    def __len__(self) -> int:
        return 2

    def name_of(self, index: int) -> str:
        return ("whole.jpg", "cut.jpg")[index]

    def records(self, indices) -> Records:
        return Records("encoded", [self.files[index] for index in indices], torch.zeros(len(indices)).long())


class Crop(Augmentation):
    """The square of 64 pixels whose upper left corner is at (top, 50), by the native pass."""

    def __init__(self, top: int) -> None:
        self.top = top

    def apply(self, images, targets, parameters):
        raise AssertionError("a native pass can do it")

    def fuse(self, plan: Plan, parameters: None) -> bool:
        boxes = torch.tensor([[self.top, 50, SIDE, SIDE]]).expand(len(plan), 4)
        return plan.window(boxes, torch.full((len(plan), 2), SIDE))


def batch(source: Source, index: int, top: int) -> np.ndarray:
    row = torch.tensor([index])
    made = Preparation(source, {"crop": Crop(top)}, Layout(torch.device("cpu")), Key.of(0))
    return made.batch(Samples(row, row, 0))[0][0].permute(1, 2, 0).numpy()


def test_a_crop_above_the_cut_has_the_pixels_of_the_whole_file():
    source = Files(progressive=False)
    with Image.open(io.BytesIO(source.files[0])) as image:
        right = np.asarray(image.convert("RGB"))
    for top in (0, 37, 70):
        given = batch(source, 1, top)
        assert np.array_equal(given, batch(source, 0, top))
        assert np.abs(given.astype(int) - right[top : top + SIDE, 50 : 50 + SIDE]).max() <= 1


@pytest.mark.parametrize(("progressive", "top"), [(False, 130), (False, HEIGHT - SIDE), (True, 0)])
def test_a_crop_that_needs_what_is_lost_is_refused_by_name(progressive, top):
    """Every row of a progressive file needs all of its scans."""
    source = Files(progressive)
    assert batch(source, 0, top).shape == (SIDE, SIDE, 3)
    with pytest.raises(UsageError, match=r"^cut\.jpg cannot be decoded \(Premature end of JPEG file\); delete"):
        batch(source, 1, top)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_whole_is_refused(progressive):
    source = Files(progressive)
    for whole in (lambda data: decode_whole(data, 3), lambda data: decode(data, (3, SIDE, SIDE))):
        whole(source.files[0])
        with pytest.raises(UsageError, match=r"^cannot be decoded \(Premature end of JPEG file\); delete"):
            whole(source.files[1])
    row = torch.tensor([1])
    with pytest.raises(UsageError, match=r"^cut\.jpg cannot be decoded"):
        Preparation(source, {}, Layout(torch.device("cpu"))).batch(Samples(row, row, 0))
