"""What an augmentation fuses, carried out by the native pass, is what it does to a batch on its own."""

from __future__ import annotations

import pytest
import torch

from engine import Augment, Key, ops
from engine.pictures import Pictures
from engine.plan import Plan
from engine.plugins.augment import (
    Affine,
    AlternatingFlip,
    CenterCrop,
    ColorJitter,
    CutMix,
    Cutout,
    Flip,
    GaussianNoise,
    Lighting,
    Mixup,
    Normalize,
    PadCrop,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomShortestSize,
    Resize,
)

KEY = Key.of(1).at("augment")
JITTER = {"brightness": [0.4], "contrast": [0.4], "saturation": [0.4], "hue": [0.1]}
FUSED: list[Augment] = [
    Resize(24), Resize(70, 30), CenterCrop(33, 21), CenterCrop(50, pad_if_needed=True), RandomCrop(31),
    RandomCrop(31, test="whole"), RandomCrop(45, 60, pad_if_needed=True), RandomResizedCrop(32),
    RandomShortestSize([30, 30]), PadCrop(), PadCrop(7, fill="reflect"), Flip(), AlternatingFlip(),
    ColorJitter(**JITTER), ColorJitter(**JITTER, clip=False), Lighting(components="training"), Cutout(),
    RandomErasing(1.0, value=[0.3]), Normalize(mean=[0.4], std=[0.3]),
]  # fmt: skip
NOT_FUSED: list[Augment] = [
    Affine(), GaussianNoise(), RandomErasing(random=True), Mixup(), CutMix(), RandAugment(),
]  # fmt: skip


def name(options: Augment) -> str:
    return repr(options).replace("engine.plugins.augment.", "")


def drawn_for(augmentation, images):
    samples, shape = torch.arange(len(images)), tuple(images.shape[1:])
    if augmentation.by_record:
        return augmentation.draw_by_record(KEY, samples, 3, shape)
    return augmentation.draw(KEY, samples, shape)


def ready(options: Augment, channels: int):
    augmentation = options.build()
    if isinstance(options, Lighting):
        augmentation.axes = torch.eye(channels).double() / 10
    return augmentation


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", FUSED, ids=name)
def test_a_pass_is_the_augmentation_to_a_grey_level(pictures, passed, options, channels):
    images = pictures(12, channels)
    augmentation = ready(options, channels)
    drawn = drawn_for(augmentation, images)
    applied, _ = augmentation.apply(images, torch.zeros(12), drawn)
    for found, expected in (
        (passed(augmentation, images, drawn), applied),
        (passed(augmentation, images, test=True), augmentation.test(images)),
    ):
        assert found is not None
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        level = 1 if found.dtype == torch.uint8 else 1e-4
        assert float((found.double() - expected.double()).abs().max()) <= level
    assert not torch.equal(applied, images)


@pytest.mark.parametrize("options", NOT_FUSED, ids=name)
def test_what_a_pass_cannot_do_is_refused(pictures, passed, options):
    images = pictures(4)
    augmentation = options.build()
    assert passed(augmentation, images, drawn_for(augmentation, images)) is None
    assert torch.equal(passed(augmentation, images, test=True), images)


@pytest.mark.parametrize(
    "chain",
    [
        [Resize(30), CenterCrop(30), RandomCrop(24), Flip(), Lighting(), Normalize(mean=[0.4], std=[0.3])],
        [RandomShortestSize([28, 28]), RandomCrop(24), Flip(), Lighting(), Normalize(mean=[0.4], std=[0.3])],
        [RandomResizedCrop(24), Flip(), ColorJitter(**JITTER), Normalize(mean=[0.4], std=[0.3])],
        [PadCrop(2, fill="reflect"), AlternatingFlip(), Normalize(mean=[0.4], std=[0.3]), Cutout(12)],
    ],
    ids=["alexnet", "vgg and resnet", "inception", "airbench"],
)
def test_a_whole_preset_is_one_pass_and_the_same_step_by_step(pictures, chain):
    images = pictures(16)
    plan, stepwise = Plan(3, torch.tensor([[40, 52]] * 16)), images
    for options in chain:
        augmentation = ready(options, 3)
        drawn = drawn_for(augmentation, stepwise)
        assert augmentation.fuse(plan, drawn)
        stepwise, _ = augmentation.apply(stepwise, torch.zeros(16), drawn)
        assert plan.shape == stepwise.shape[1:]
    out = torch.empty(stepwise.shape)
    ops.transform(Pictures.of_pixels(images), plan, out)
    level = 1.01 / 255 / 0.3
    assert float((out - stepwise).abs().max()) <= level * (1 + 0.4 + 0.4)  # which a change of colours may multiply


def test_colours_are_not_changed_after_a_box_but_by_a_linear_map(pictures):
    """A clipped change would have to see the box; the mean of a contrast would count it."""
    images = pictures(4)
    plan = Plan(3, torch.tensor([[40, 52]] * 4))
    cutout, jitter, normalize = Cutout().build(), ColorJitter(**JITTER).build(), Normalize([0.4], [0.3]).build()
    assert cutout.fuse(plan, drawn_for(cutout, images))
    kinds = len(plan.kinds)
    assert not jitter.fuse(plan, drawn_for(jitter, images))
    assert len(plan.kinds) == kinds
    assert normalize.fuse(plan, None)


@pytest.mark.parametrize("options", FUSED + NOT_FUSED, ids=name)
def test_images_may_be_on_another_device_which_is_never_read(pictures, options):
    """torch's meta device has no numbers: reading one raises, and so does an operation with a tensor of the host."""
    augmentation, images = ready(options, 3), pictures(6)
    drawn = drawn_for(augmentation, images)
    applied, labels = augmentation.apply(images, torch.full((6, 4), 0.25), drawn)
    there, labels_there = augmentation.apply(images.to("meta"), torch.full((6, 4), 0.25, device="meta"), drawn)
    assert (there.device.type, there.dtype, there.shape) == ("meta", applied.dtype, applied.shape)
    assert (labels_there.device.type, labels_there.shape) == ("meta", labels.shape)
    assert augmentation.test(images.to("meta")).shape == augmentation.test(images).shape
    with pytest.raises(RuntimeError):
        there + torch.ones(there.shape)


def test_the_meta_device_notices_what_it_is_used_for():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device="meta").tolist()
