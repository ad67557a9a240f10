"""Augmentation on the device, here the CPU with tensor operations, gives the samples that the host gives."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from engine import Key, UsageError
from engine.host_to_device import Layout
from engine.loader import Loader, Position, TestLoader
from engine.plugins.augment import (
    AlternatingFlip,
    ColorJitter,
    Cutout,
    Flip,
    Mixup,
    Normalize,
    PadCrop,
    RandomResizedCrop,
)
from engine.plugins.data.memory import InMemory

CHAINS = {
    "cifar": {"pad_crop": PadCrop(), "flip": Flip(), "normalize": Normalize(), "cutout": Cutout(size=3)},
    "reflected": {"pad_crop": PadCrop(padding=2, fill="reflect"), "alternating_flip": AlternatingFlip()},
    "crops": {
        "random_resized_crop": RandomResizedCrop(size=10), "flip": Flip(),
        "color_jitter": ColorJitter(brightness=[0.4], contrast=[0.4], saturation=[0.4], hue=[0.1]),
    },
    "mixed": {"flip": Flip(), "normalize": Normalize(), "mixup": Mixup()},
}  # fmt: skip


def source(count=40):
    pixels = torch.randint(0, 256, (count, 3, 16, 14), generator=torch.Generator().manual_seed(0))
    return InMemory(pixels.to(torch.uint8), torch.arange(count) % 5, [f"class {number}" for number in range(5)])


def made(chain, augment_on, channels_last=False):
    data = source()
    augmentations = {name: options.build() for name, options in CHAINS[chain].items()}
    for augmentation in augmentations.values():
        augmentation.prepare(lambda: data)
    layout = Layout(torch.device("cpu"), torch.float32, channels_last, augment_on)
    loader = Loader(data, augmentations, Key.of(0), batch=12, layout=layout, threads=2)
    steps = list(islice(loader.steps(Position()), 7))
    tests = list(TestLoader(data, augmentations, batch=16, layout=layout))
    return [batch for step in steps for batch in step.batches] + tests + [loader.example()]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("augment_on", ["device", "resident"])
def test_samples_are_those_of_the_host(chain, augment_on):
    for here, there in zip(made(chain, "host"), made(chain, augment_on), strict=True):
        assert torch.equal(here.samples, there.samples)
        assert there.images.dtype == torch.float32
        torch.testing.assert_close(here.targets, there.targets)
        # A grey level where a resampled value lies on a half: in numbers of 0 to 1, and made four times larger by std.
        apart = (here.images - there.images).abs()
        assert apart.max() < 1.1 / 255 * 5
        assert (apart > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("augment_on", ["device", "resident"])
def test_images_have_the_layout_that_was_asked_for(augment_on):
    batch = made("cifar", augment_on, channels_last=True)[0]
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["data.augment_on=device", "data.workers=processes"], "choose threads, or not device"),
        (["data.augment_on=resident", "data.shuffle=blocks"], "choose data.shuffle=full"),
    ],
)
def test_what_does_not_go_together_is_refused(engine, tmp_path, given, line):
    code, _, err = engine("train", f"out={tmp_path / 'run'}", *given)
    assert code == UsageError.exit_code
    assert line in err


def test_a_run_trains_alike_wherever_it_augments(engine, tmp_path):
    weights = []
    for augment_on in ("host", "resident"):
        out = tmp_path / augment_on
        words = ("run.steps=5", "augment=[pad_crop,normalize]", "observe=[]", f"data.augment_on={augment_on}")
        code, _, err = engine("train", f"out={out}", *words)
        assert code == 0, err
        (file,) = out.glob("checkpoints/*/model.safetensors")
        weights.append(load_file(file))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-5)
