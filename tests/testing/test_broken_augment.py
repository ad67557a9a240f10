"""check_augment names the promise that a broken augmentation breaks."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from engine import UsageError, uniform
from engine.interfaces import Augmentation
from engine.resampling import Resampling, Windows
from engine.testing import BrokenPromise, check_augment
from engine.testing.augment import KEY


class Shift(Augmentation):
    """A right one: each image gets brighter by its own amount, in floats."""

    def draw(self, key, samples, shape):
        return uniform(key, samples, 1)

    def apply(self, images, targets, parameters):
        return images.float() + parameters[:, :, None, None], targets


class DrawsFromTorch(Shift):
    def draw(self, key, samples, shape):
        return torch.rand(len(samples), 1)


class DrawsFromPython(Shift):
    def draw(self, key, samples, shape):
        return torch.tensor([[random.random()] for _ in samples])


class DrawsFromNumpyWhenApplied(Shift):
    def apply(self, images, targets, parameters):
        return super().apply(images, targets, parameters * float(np.random.rand()))


class DrawsByPlace(Shift):
    def draw(self, key, samples, shape):
        return uniform(key, torch.arange(len(samples)), 1)


class DrawsByBatch(Shift):
    def draw(self, key, samples, shape):
        return super().draw(key, samples, shape) + float(samples[0]) % 7


class RemembersDraws(Shift):
    drawn = 0

    def draw(self, key, samples, shape):
        self.drawn += 1
        return uniform(key.at(self.drawn), samples, 1)


class DependsOnTheBatch(Shift):
    def apply(self, images, targets, parameters):
        images = images.float()
        return images - images.mean((0, 2, 3), keepdim=True), targets


class EditsImages(Shift):
    def apply(self, images, targets, parameters):
        return images.mul_(2), targets


class EditsTargets(Shift):
    def apply(self, images, targets, parameters):
        return images, targets.zero_()


class EditsSamples(Shift):
    def draw(self, key, samples, shape):
        return uniform(key, samples.add_(1), 1)


class UsesUpItsParameters(Shift):
    def apply(self, images, targets, parameters):
        result = super().apply(images, targets, parameters)
        parameters.zero_()
        return result


class DropsAnImage(Shift):
    def apply(self, images, targets, parameters):
        return images[1:], targets[1:]


class Doubles(Shift):
    def apply(self, images, targets, parameters):
        return images.long(), targets


class DividesByZero(Shift):
    def apply(self, images, targets, parameters):
        return images.float() / (images.float().amin((1, 2, 3), keepdim=True) * 0), targets


class ShortLabels(Shift):
    def apply(self, images, targets, parameters):
        return images, targets.float().view(len(images), -1)[:, :2]


class FloatsOnly(Shift):
    def apply(self, images, targets, parameters):
        return images + parameters[:, :, None, None] * torch.sigmoid(images.new_ones(())), targets

    def test(self, images):
        return torch.nn.functional.avg_pool2d(images, 1)


class EvenSizesOnly(Shift):
    def apply(self, images, targets, parameters):
        n, c, h, w = images.shape
        return images.view(n, c, 2, h // 2, w).flatten(2, 3), targets


class GrayOnly(Shift):
    def apply(self, images, targets, parameters):
        if images.shape[1] != 1:
            raise UsageError("gray images only")
        return images, targets


class EvaluatesAtRandom(Shift):
    def test(self, images):
        return images.float() + torch.rand(())


class EvaluatesInPlace(Shift):
    def test(self, images):
        return images.clamp_(max=0)


class EvaluatesTheBatch(Shift):
    def test(self, images):
        images = images.float()
        return images - images.mean()


class MixesWithoutSayingSo(Shift):
    def apply(self, images, targets, parameters):
        return (images.float() + images.flip(0).float()) / 2, targets


class MixesBeyondItsGroup(MixesWithoutSayingSo):
    group = 2


class MixesItsGroup(Augmentation):
    group = 2

    def apply(self, images, targets, parameters):
        pairs = images.float().unflatten(0, (-1, 2))
        return ((pairs + pairs.flip(1)) / 2).flatten(0, 1), targets


class FusesAnother(Shift):
    def fuse(self, plan, parameters):
        return plan.mirror(torch.ones(len(plan), dtype=torch.bool))


class FusesWithoutLabels(Shift):
    def apply(self, images, targets, parameters):
        return images, torch.zeros_like(targets)

    def fuse(self, plan, parameters):
        return True


class FusesAnotherTest(Shift):
    def test(self, images):
        return images // 2 if images.dtype == torch.uint8 else images / 2

    def fuse_test(self, plan):
        return True


class ChangesAPlanAndRefuses(Shift):
    def fuse(self, plan, parameters):
        plan.mirror(torch.ones(len(plan), dtype=torch.bool))
        return False


class DrawsByTheRecordsOfTheBatch(Shift):
    by_record = True

    def draw_by_record(self, key, records, epoch, shape):
        return uniform(key.at(epoch), torch.arange(len(records)), 1)


class CropsByTheBatch(Resampling):
    def draw_windows(self, key, samples, sizes):
        smallest = sizes.amin(0).expand(len(sizes), 2)
        return Windows(torch.cat([torch.zeros_like(smallest), smallest], 1), smallest)

    def test_windows(self, sizes):
        return self.draw_windows(KEY, sizes[:, 0], sizes)


class MirrorsAsItFuses(Augmentation):
    """A right one: both ways are the same, and each record is mirrored in the epochs that its number says."""

    by_record = True

    def draw_by_record(self, key, records, epoch, shape):
        return (records + epoch) % 2 == 0

    def apply(self, images, targets, parameters):
        return torch.where(parameters[:, None, None, None], images.flip(3), images), targets

    def fuse(self, plan, parameters):
        return plan.mirror(parameters)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (DrawsFromTorch, "key alone, not from a global random generator; torch's was used"),
        (DrawsFromPython, "key alone, not from a global random generator; Python's was used"),
        (DrawsFromNumpyWhenApplied, "key alone, not from a global random generator; NumPy's was used"),
        (DrawsByPlace, r"pure function of \(key, sample\)"),
        (DrawsByBatch, r"pure function of \(key, sample\)"),
        (RemembersDraws, r"pure function of \(key, sample\)"),
        (DependsOnTheBatch, r"pure function of \(key, sample\)"),
        (MixesWithoutSayingSo, r"pure function of \(key, sample\)"),
        (MixesBeyondItsGroup, r"pure function of \(key, sample\)"),
        (EditsImages, "never edits what it is given; it changed the images"),
        (EditsTargets, "never edits what it is given; it changed the targets"),
        (EditsSamples, "never edits what it is given; it changed the samples"),
        (UsesUpItsParameters, "is a function of its arguments"),
        (DropsAnImage, "keeps the batch size"),
        (Doubles, "uint8 or float"),
        (DividesByZero, "finite values"),
        (ShortLabels, r"floats \[n, classes\]"),
        (FloatsOnly, "uint8 and float images of any shape"),
        (EvenSizesOnly, "uint8 and float images of any shape"),
        (GrayOnly, "uint8 and float images of any shape.*gray images only"),
        (EvaluatesAtRandom, "not from a global random generator"),
        (EvaluatesInPlace, r"test\(\) is the same every time.*it changed the images"),
        (FusesAnother, r"fuse\(\) returns True, a pass does to uint8 images what apply\(\) does"),
        (FusesWithoutLabels, "targets stay"),
        (FusesAnotherTest, r"fuse_test\(\) returns True, a pass does to uint8 images what test\(\) does"),
        (ChangesAPlanAndRefuses, "returns False, the plan is as it was"),
        (DrawsByTheRecordsOfTheBatch, r"pure function of \(key, record, epoch\)"),
        (CropsByTheBatch, r"pure function of \(key, sample, size\)"),
        (EvaluatesTheBatch, r"test\(\) is the same every time.*alone differs"),
    ],
)
def test_broken_augmentation_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"^{broken.__name__} breaks a promise: .*{promise}"):
        check_augment(broken())


@pytest.mark.parametrize("sound", [Shift, MixesItsGroup, MirrorsAsItFuses])
def test_sound_augmentation_passes(sound):
    check_augment(sound())


def test_the_check_leaves_the_global_generators_as_they_were():
    torch.manual_seed(3)
    random.seed(3)
    check_augment(Shift())
    after = torch.rand(()), random.random()
    torch.manual_seed(3)
    random.seed(3)
    assert after == (torch.rand(()), random.random())
